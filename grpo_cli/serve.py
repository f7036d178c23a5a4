"""``grpo serve``: train and serve policies over HTTP."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from grpo_cli.options import add_parser, has_packages
from grpo_cli.server_options import add_server_options, get_server_options
from grpo_terminal import UsageError

_FOLDER = Path(__file__).parent
# Some of the server's packages, which the library does not bring along.
_PACKAGES = ("fastapi", "uvicorn", "nicegui")


def add_command(commands: Any) -> None:
    """Add the command to a parser."""
    add_server_options(add_parser(commands, "serve", _run, "train and serve policies over HTTP"))


def _run(options: argparse.Namespace) -> int:
    if not has_packages(*_PACKAGES):
        raise UsageError(
            "serve needs the packages of the server: pip install --find-links DIST 'sb3-grpo[server]', DIST being the "
            "folder of its wheel."
        )
    given = get_server_options(options)
    words = [f"--env-module={module}" for module in given.pop("env_modules", ())]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    # In place of this process, so that signals reach the server, and nothing is imported that it does without.
    os.execv(sys.executable, [sys.executable, str(find_server()), *words])


def find_server() -> Path:
    """Return the server's start script: in a folder beside this file where it is installed, above it in a checkout."""
    installed = _FOLDER / "server" / "run_api.py"
    return installed if installed.exists() else _FOLDER.parent / "run_api.py"
