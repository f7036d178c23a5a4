"""List an environment's layers, and look up the attributes of each."""

from typing import Any

import gymnasium as gym

from grpo_core.environments.errors import InvalidEnvironmentError

Env = gym.Env[Any, Any]


def list_nested_envs(env: Env) -> list[Env]:
    """List an environment's wrappers, the outermost first, followed by the environment itself."""
    nested_envs = [env]
    while isinstance(nested_envs[-1], gym.Wrapper):
        nested_envs.append(nested_envs[-1].env)
    return nested_envs


def name_env(env: Env) -> str:
    """Write an environment for people as it writes itself, or by its class if that fails."""
    try:
        return str(env)
    except Exception:  # foreign code may raise anything
        return f"<{type(env).__name__} of {type(env.unwrapped).__name__}>"


def find_action_masks(env: Env) -> Any:
    """Return ``action_masks`` of the outermost layer that has it; None if none has.

    :raises InvalidEnvironmentError: If it has it and it cannot be read.
    """
    found = (get_own(layer, "action_masks") for layer in list_nested_envs(env))
    return next((masks for masks in found if masks is not None), None)


def get_own(layer: Env, name: str) -> Any:
    """Return an attribute of one layer; None without one, or if its ``__getattr__`` just answers to any name.

    :raises InvalidEnvironmentError: If the layer has it and it cannot be read.
    """
    found = _get(layer, name)
    is_there = found is None or hasattr(type(layer), name) or name in getattr(layer, "__dict__", ())
    return found if is_there or _get(layer, f"no_{name}") is None else None


def _get(layer: Env, name: str) -> Any:
    try:
        return getattr(layer, name, None)
    except Exception as error:
        if isinstance(error, LookupError) and not hasattr(type(layer), name):  # of a ``__getattr__`` that looks it up
            return None
        raise InvalidEnvironmentError(
            f"{name} of {name_env(layer)} raised {type(error).__name__}: {error}. Correct it, or let it raise "
            "AttributeError if there is none."
        ) from error
