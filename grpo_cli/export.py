"""``grpo export``: write a policy for programs that have neither this library nor torch."""

import argparse
from pathlib import Path
from typing import Any

from grpo_cli.model import read_model
from grpo_cli.options import add_model_option, add_parser, get_model_path, write
from grpo_core.export.policy_file import EXPORT_FORMATS, MissingPackageError, check_installed, export_model, find_format
from grpo_core.saving.atomic_write import write_atomic
from grpo_core.saving.model_file import ModelFileError
from grpo_core.spaces import UnsupportedSpaceError
from grpo_terminal import UsageError


def add_command(commands: Any) -> None:
    """Add the command to a parser."""
    parser = add_parser(commands, "export", _run, "write a policy as ONNX or TorchScript")
    add_model_option(parser)
    suffixes = " or ".join(f"{one.suffix} ({name})" for name, one in EXPORT_FORMATS.items())
    text = f"file to save, ending in {suffixes}; its folder is made if it is missing"
    parser.add_argument("-o", "--output", type=Path, required=True, help=text)
    parser.add_argument("--masks", action="store_true", help="have it take action masks beside every observation")


def _run(options: argparse.Namespace) -> int:
    model_path = get_model_path(options)
    try:
        name = find_format(options.output)
        check_installed(name)
        exported = export_model(read_model(model_path), name, options.masks)
    except (ValueError, MissingPackageError) as error:
        option = "--masks" if isinstance(error, UnsupportedSpaceError) else f"--output {options.output}"
        if isinstance(error, ModelFileError):
            option = f"--model {model_path}"
        raise UsageError(f"{option} cannot be used: {error}") from error
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.output, exported)
    except OSError as error:
        raise UsageError(f"--output {options.output} cannot be written: {error}") from error
    write(f"saved {options.output}, {len(exported):,} bytes")
    return 0
