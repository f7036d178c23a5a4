"""The command line of the library: train, evaluate, play, describe and export policies without a server.

``python grpo.py train --env CartPole-v1 --output cartpole``, or ``grpo train`` where the package is installed. Options
that rl-baselines3-zoo has too go by its names.
"""

import argparse
import sys
from collections.abc import Sequence

from grpo_cli import evaluate, export, info, play, train
from grpo_cli.options import UsageError

_USAGE_ERROR, _INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    :param arguments: The words after the program's name; None takes them from the command line.
    :return: The exit status: 0, 2 if the command line cannot work, 130 after Ctrl-C.
    """
    options = _make_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except UsageError as error:
        sys.stderr.write(f"grpo: {error}\n")
        return _USAGE_ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grpo", description="GRPO without a server.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (train, evaluate, play, info, export):
        module.add_command(commands)
    return parser
