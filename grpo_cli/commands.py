"""All commands, and the errors that end them."""

import sys
from collections.abc import Sequence

from grpo_cli import evaluate, export, info, play, serve, train
from grpo_terminal import INTERRUPTED, Parser, UsageError

_USAGE_ERROR = 2


def run(arguments: Sequence[str] | None) -> int:
    """Run one command, and return the exit status."""
    options = make_parser().read(arguments)
    try:
        status: int = options.run(options)
        return status
    except UsageError as error:
        sys.stderr.write(f"grpo: {error}\n")
        return _USAGE_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("grpo: interrupted.\n")
        return INTERRUPTED


def make_parser() -> Parser:
    """Make what reads the command line."""
    parser = Parser(prog="grpo", description="Train policies with GRPO, play them, serve them.")
    commands = parser.add_commands()
    for module in (train, evaluate, play, info, export, serve):
        module.add_command(commands)
    return parser
