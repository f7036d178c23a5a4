"""A command: how it is added, what it returns, and how people are told of errors."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from grpo_client.answers.text import clean
from grpo_client.client import DEFAULT_URL, Client

#: Environment variables.
URL_VARIABLE, KEY_VARIABLE = "GRPO_URL", "GRPO_API_KEY"
#: Exit statuses.
REFUSED, USAGE = 1, 2
#: How people called it, so that the commands it tells them of work as they are.
PROGRAM = "python -m grpo_client" if Path(sys.argv[0]).parts[-2:] == ("grpo_client", "__main__.py") else "grpo-client"
#: Of every file that is saved.
SAVED_HOW = "; a file of that name is replaced, and its folder made if it is missing"
# What the server tells people to send, and what they type for it.
_TYPED = {
    re.compile(request): typed
    for request, typed in {
        r"POST /training/([\w-]+)/(resume|stop)\b": rf"{PROGRAM} \2 \1",
        r"GET /training/jobs\b": f"{PROGRAM} jobs",
        r"GET /models/([\w.-]+)/versions\b": rf"{PROGRAM} versions \1",
        r"DELETE /models/([\w.-]+)(?=[,; ])": rf"{PROGRAM} delete \1",
        r"GET /(models|environments)\b(?!/)": rf"{PROGRAM} \1",
        r"GET /sweeps\b(?!/)": f"{PROGRAM} sweep list",
        r"POST /sweeps\b(?!/)": f"{PROGRAM} sweep start",
        r"POST /train\b": f"{PROGRAM} train",
        r"\bsend it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY', or log in at /login": (
            f"give the right one with --api-key or {KEY_VARIABLE}"
        ),
        r"\bset base_url to it\b": "give its URL with --url or GRPO_URL",
        r"\bsend replace=true": "add --set replace=true",
        r"\bsend overwrite=true": "add --overwrite",
    }.items()
}


class Reply(NamedTuple):
    """The outcome of a command.

    :param content: Output with ``--json``.
    :param text: Output without it.
    :param exit_status: Exit status of the program.
    """

    content: Any
    text: str
    exit_status: int = 0


Command = Callable[[Client, argparse.Namespace], Reply]


def add_command(commands: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    """Add a command, with the options that all of them have.

    :param commands: Where ``Parser.add_commands`` has made room for it.
    :param text: Its help.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--url", help=f"URL of the server; default: ${URL_VARIABLE}, or else {DEFAULT_URL}")
    parser.add_argument("--api-key", help=f"its key; ${KEY_VARIABLE} keeps it out of the list of processes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def complain(text: str, exit_status: int) -> int:
    """Write an error, and return the exit status."""
    sys.stderr.write(f"{PROGRAM}: {name_commands(clean(text))}\n")
    return exit_status


def name_commands(text: str) -> str:
    """Put commands and options in the place of the requests and fields that do the same."""
    for request, typed in _TYPED.items():
        text = request.sub(typed, text)
    return text


def report_saved(path: Path) -> Reply:
    """Reply that a file is saved."""
    return Reply({"path": str(path)}, f"saved {path}")
