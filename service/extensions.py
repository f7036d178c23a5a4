"""The operator's own modules, which register environments and reward functions when imported."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from grpo_core.options.rewards import ENVIRONMENT_REWARD
from service.errors import describe_error, printable
from service.schemas.fields import RewardName

_REWARD_NAME: TypeAdapter[str] = TypeAdapter(RewardName)


class ExtensionError(Exception):
    """A module or a reward function cannot be used; the message names it, the reason and the remedy."""


def import_extensions(names: Sequence[str], reward_functions: Mapping[str, object]) -> None:
    """Import modules, also from the current folder.

    The current folder is searched last, so nothing in it can replace a module that the server itself needs. Workers
    search the same folders, and import the modules that a job's environment or reward functions come from.

    :param reward_functions: What the modules add their own to.
    :raises ExtensionError: If an import fails, or they add what is not a reward function, or has a name that no
        request can give.
    """
    _check_reward_functions(reward_functions, "the start script")
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
        _check_reward_functions(reward_functions, f"the module '{name}'")


def _check_reward_functions(reward_functions: Mapping[str, object], origin: str) -> None:
    """Check what was added last.

    :param origin: What has added it.
    """
    for name, function in reward_functions.items():
        try:
            _REWARD_NAME.validate_python(name, strict=True)
        except ValidationError as error:
            raise ExtensionError(
                f"{origin} adds a reward function under the name {printable(repr(name))}, which no request can give; "
                "choose up to 64 letters from a to z, digits, '.', '_' and '-'."
            ) from error
        if name == ENVIRONMENT_REWARD:
            raise ExtensionError(
                f"{origin} adds a reward function under the name '{name}', which stands for the environment's own "
                "reward; choose another."
            )
        if not callable(function):
            kind = type(function).__name__
            raise ExtensionError(
                f"{origin} adds the reward function '{name}', which is of type {kind} and cannot be called; give "
                "REWARD_FUNCTIONS a function of (state, action, next_state)."
            )
