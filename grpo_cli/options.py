"""Options and errors that several commands share."""

import argparse
import ast
import importlib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym

from grpo_core.environments.making import EnvSetup, resolve_env_name
from grpo_core.environments.packages import (
    describe_missing_package,
    describe_origin,
    explain_missing_packages,
    is_module_name,
)
from grpo_core.environments.wrappers import WRAPPERS, Wrapper, parse_wrappers
from grpo_core.suggestions import suggest
from grpo_terminal import Parser, UsageError

MAX_SEED = 2**32 - 1
DEFAULT_EPISODES = 20
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def write(line: str) -> None:
    """Print a line of the command's output."""
    sys.stdout.write(f"{line}\n")


def add_parser(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
    """Add a command.

    :param run: Runs it, and returns the exit status.
    :param text: One line of help.
    """
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=run)
    return parser


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add the model file: a word of its own, or ``--model``; ``get_model_path`` reads it."""
    parser.add_argument("file", nargs="?", type=Path, metavar="MODEL", help="model file")
    parser.add_argument("--model", type=Path, metavar="MODEL", help="the same")


def get_model_path(options: argparse.Namespace) -> Path:
    """Return the path of the model file that a command names.

    :raises UsageError: If it names none, or two.
    """
    paths: list[Path] = [path for path in (options.file, options.model) if path is not None]
    if not paths:
        raise UsageError("no model file is named; write its path after the command, or after --model.")
    if len(paths) > 1:
        raise UsageError(f"two model files are named, {paths[0]} and {paths[1]}; leave one out.")
    return paths[0]


def prepare_output(option: str, path: Path) -> None:
    """Make the folder of a file that a command writes at its end, when much would be lost.

    :raises UsageError: If the file cannot be written there.
    """
    prepare_folder(option, path.parent)
    is_folder = False
    try:
        with suppress(FileNotFoundError):
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written ({error.strerror}); name another place.") from error
    if is_folder:
        raise UsageError(f"{option} {path} is a folder; name a file in it.")


def prepare_folder(option: str, folder: Path) -> None:
    """Make the folder that a command writes to.

    :raises UsageError: If nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{option} cannot write to the folder {folder} ({error.strerror}); name another place."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option} cannot write to the folder {folder}: it is read-only; name another place.")


def add_env_module_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--env-module``."""
    parser.add_argument("--env-module", action="append", default=[], help="module that registers environments")


def add_playing_options(parser: Parser) -> None:
    """Add the options of commands that play with a model."""
    add_model_option(parser)
    parser.add_argument("--env", help="default: the environment that the file names")
    parser.add_argument(
        "--seed", type=make_int_parser(0, MAX_SEED), default=0, help="seed of the first episode (%(default)s)"
    )
    add_env_setup_options(parser)
    parser.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most likely")
    add_env_module_option(parser)


def add_env_setup_options(parser: Parser) -> None:
    """Add ``--env-kwargs`` and ``--wrapper``."""
    parser.add_pairs("--env-kwargs", "arguments of the environment's constructor; values as Python writes them")
    parser.add_argument(
        "--wrapper",
        action="append",
        default=[],
        metavar="WRAPPER",
        help='wrapper around the environment, the innermost first: a name, or JSON such as {"name": "frame_stack", '
        f'"n": 4}}; may be repeated. Known: {", ".join(WRAPPERS)}',
    )


def parse_env_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """Read the values of ``--env-kwargs``.

    :raises UsageError: If one is not written NAME=VALUE, or its value is nothing that a model file keeps.
    """
    env_kwargs: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.isidentifier():
            raise UsageError(f"--env-kwargs {pair} is not written NAME=VALUE, such as map_name=8x8.")
        if name in env_kwargs:
            raise UsageError(f"--env-kwargs {pair} is not allowed: it sets {name} for the second time; leave one out.")
        env_kwargs[name] = read_literal(text)
        try:
            json.dumps(env_kwargs[name], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"--env-kwargs {pair} has a value that JSON, and so a model file, cannot hold ({error}); register the "
                "environment with it under a name of its own, in an --env-module."
            ) from error
    return env_kwargs


def read_literal(text: str) -> Any:
    """Read a Python literal, or true, false, none and null in any case; return anything else as a string."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def parse_wrapper_options(texts: Sequence[str]) -> list[Wrapper]:
    """Read the values of ``--wrapper``.

    :raises UsageError: If one is unknown, or an option does not fit.
    """
    try:
        return parse_wrappers([json.loads(text) if text.lstrip().startswith("{") else text for text in texts])
    except ValueError as error:
        raise UsageError(f"--wrapper cannot be used: {error}.") from error


def make_int_parser(smallest: int, largest: int = 10**12) -> Callable[[str], int]:
    """Make a function that reads a whole number within a range, for argparse's ``type``."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,13}", text) or not smallest <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest} to {largest}")
        return int(text)

    return parse


def has_packages(*names: str) -> bool:
    """Tell whether packages are installed."""
    return all(find_spec(name) is not None for name in names)


def require_packages(option: str, *names: str) -> None:
    """Check that the packages of an option are installed.

    :raises UsageError: If one is missing.
    """
    if not has_packages(*names):
        raise UsageError(f"{option} needs {' and '.join(names)}: pip install {' '.join(names)}, or leave it out.")


def import_env_modules(names: Sequence[str]) -> None:
    """Import modules that register environments.

    :raises UsageError: If one cannot be found, or has no name of a module.
    """
    if not names:
        return
    for name in names:
        if not is_module_name(name):
            raise UsageError(
                f"--env-module {name!r} is not the name of a module; write it as in an import, without '.py'."
            )
    _look_in_current_folder()
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = describe_missing_package(error)
            raise UsageError(
                f"--env-module {name} cannot be imported ({error}); run from the folder it is in. Or {missing}"
            ) from error


def _look_in_current_folder() -> None:
    """Find modules where "python -m" looks first: neither a script's folder nor an installed command's is this one."""
    if sys.path[:1] != [""]:
        sys.path.insert(0, "")


def describe_setup(setup: EnvSetup) -> str:
    """Name an environment with its arguments."""
    # A file may name them, so that they may hold what a terminal takes for a command.
    return f"{setup.env_name} with {json.dumps(setup.env_kwargs)}" if setup.env_kwargs else setup.env_name


def resolve_env(env_name: str) -> str:
    """Return the full id of the environment that ``--env`` names.

    :raises UsageError: If it is not written as an id, or its module cannot be found.
    """
    if ":" in env_name:
        _look_in_current_folder()
    try:
        with explain_missing_packages(env_name):
            return resolve_env_name(env_name)
    except (gym.error.Error, ImportError) as error:
        raise UsageError(f"--env {env_name} cannot be made: {explain(error, EnvSetup(env_name))}") from error


def explain(error: Exception, setup: EnvSetup) -> str:
    """Return why an environment cannot be made; where nothing registers it, with what may.

    :param error: Anything, as constructors raise what they like.
    """
    known = describe_origin(setup.env_name, "add --env-module")
    if not isinstance(error, gym.error.UnregisteredEnv) or known is not None:
        if isinstance(error, (gym.error.Error, ImportError, ValueError, TypeError)) and str(error):
            return str(error)
        # A KeyError's text is the key alone, and assertions often have none.
        text = f"{type(error).__name__} {error}".rstrip()
        return f"{text}; see --env-kwargs" if setup.env_kwargs else text
    hint = suggest(setup.env_name, gym.registry, n_most=1, spell=str)
    condition = f"{hint} If" if hint else "if"
    return f"it is not registered; {condition} a module of yours registers it, add --env-module and the module's name."
