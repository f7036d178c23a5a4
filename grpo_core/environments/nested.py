"""List what an environment is made of."""

from typing import Any

import gymnasium as gym

Env = gym.Env[Any, Any]


def list_nested_envs(env: Env) -> list[Env]:
    """List an environment's wrappers, the outermost first, followed by the environment itself."""
    nested_envs = [env]
    while isinstance(nested_envs[-1], gym.Wrapper):
        nested_envs.append(nested_envs[-1].env)
    return nested_envs
