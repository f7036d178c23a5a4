"""The client in a terminal: ``python -m grpo_client``, or ``grpo-client`` where the package is installed.

Exit status: 0, 1 if the server refused or a job failed, 2 if the command line cannot work, 130 after Ctrl-C.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from grpo_client.answers.text import clean
from grpo_client.client import DEFAULT_URL, Client
from grpo_client.connection import read_url
from grpo_client.errors import GRPOError, InvalidArgument, ServerUnreachable
from grpo_client.terminal.catalogue import add_catalogue_commands
from grpo_client.terminal.command import (
    KEY_VARIABLE,
    PROGRAM,
    REFUSED,
    URL_VARIABLE,
    USAGE,
    Reply,
    complain,
    name_commands,
)
from grpo_client.terminal.jobs import add_job_commands
from grpo_client.terminal.models import add_model_commands
from grpo_client.terminal.sweeps import add_sweep_commands
from grpo_terminal import INTERRUPTED, Parser, UsageError, end_well

# People at a terminal should learn within seconds that no server is there.
_MAX_RETRIES = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status.

    :param arguments: The words after the program's name; None takes them from the command line.
    """
    return end_well(lambda: _run(make_parser().read(arguments)))


def _run(options: argparse.Namespace) -> int:
    try:
        with _open_client(options) as client:
            reply: Reply = options.run(client, options)
    except (UsageError, InvalidArgument) as error:
        return complain(str(error), USAGE)
    except ServerUnreachable as error:
        return complain(f"{error} For another address, use --url or {URL_VARIABLE}.", REFUSED)
    except (GRPOError, OSError) as error:
        return complain(str(error), REFUSED)
    except KeyboardInterrupt:
        return complain(f"interrupted; submitted jobs go on, and {PROGRAM} jobs lists them.", INTERRUPTED)
    text = json.dumps(reply.content, indent=2) if options.json else name_commands(clean(reply.text))
    sys.stdout.write(f"{text}\n" if text else "")
    return reply.exit_status


def _open_client(options: argparse.Namespace) -> Client:
    # An empty --url is a variable that a script has not set: it must not reach another server.
    url = options.url if options.url is not None else os.environ.get(URL_VARIABLE) or DEFAULT_URL
    try:
        read_url(url)
    except InvalidArgument as error:
        raise UsageError(f"--url {url} cannot be asked: {error}") from error
    try:
        return Client(url, options.api_key or os.environ.get(KEY_VARIABLE), max_retries=_MAX_RETRIES)
    except InvalidArgument as error:
        raise UsageError(f"--api-key cannot be sent: {error}") from error


def make_parser() -> Parser:
    """Make what reads the command line."""
    parser = Parser(prog=PROGRAM, description="Talk to a GRPO server.")
    commands = parser.add_commands({"list": "jobs", "ls": "jobs", "ps": "jobs", "kill": "stop", "cancel": "stop"})
    add_job_commands(commands)
    add_sweep_commands(commands)
    add_model_commands(commands)
    add_catalogue_commands(commands)
    return parser
