"""Modules of the operator's own, which register environments and reward functions when they are imported."""

import importlib
import os
import sys
from collections.abc import Sequence

from service.errors import describe_error


class ExtensionError(Exception):
    """A module cannot be imported; the message names it, the reason and the remedy."""


def import_extensions(names: Sequence[str]) -> None:
    """Import modules, from the current folder too.

    The folder comes last: nothing in it takes the place of a module that the server itself needs. Workers look for
    modules where the server does, and import what an environment or a reward function of a job comes from.

    :raises ExtensionError: If one of them fails.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # it runs code of the operator's
            reason = " ".join(describe_error(error).split())
            raise ExtensionError(
                f"the module '{name}' of --env-module (GRPO_ENV_MODULES) cannot be imported ({reason}); mend it, start "
                "the server in the folder that it is in, or add that folder to PYTHONPATH."
            ) from error
