"""The operator's own modules, which register environments and reward functions when imported."""

import importlib
import os
import sys
from collections.abc import Sequence

from service.errors import describe_error


class ExtensionError(Exception):
    """A module cannot be imported; the message names the module, the reason and the remedy."""


def import_extensions(names: Sequence[str]) -> None:
    """Import modules, also from the current folder.

    The current folder is searched last, so nothing in it can replace a module that the server itself needs. Workers
    search the same folders, and import the modules that a job's environment or reward functions come from.

    :raises ExtensionError: If an import fails.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # the module is foreign code
            reason = " ".join(describe_error(error).split())
            raise ExtensionError(
                f"the module '{name}' of --env-module (GRPO_ENV_MODULES) cannot be imported ({reason}); fix it, start "
                "the server in its folder, or add that folder to PYTHONPATH."
            ) from error
