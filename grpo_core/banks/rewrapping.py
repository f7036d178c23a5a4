"""Take a vectorised environment out of its wrappers, which cannot be pickled, and put it into them again."""

import inspect
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

# Attributes of a VecEnvWrapper that SB3 makes from others, and that cannot be pickled.
_OF_WRAPPERS = ("venv", "class_attributes")

# A wrapper's class and its own attributes.
_Wrapper = tuple[type[VecEnvWrapper], dict[str, Any]]


def unwrap_env(env: VecEnv) -> tuple[VecEnv, list[_Wrapper]]:
    """Separate a vectorised environment from its wrappers, the outermost first, which SB3 cannot pickle.

    :raises TypeError: If the environment is in worker processes.
    """
    wrappers: list[_Wrapper] = []
    while isinstance(env, VecEnvWrapper):
        attributes = {name: value for name, value in vars(env).items() if name not in _OF_WRAPPERS}
        wrappers.append((type(env), attributes))
        env = env.venv
    if isinstance(env, SubprocVecEnv):
        raise TypeError(
            "a model whose environments are in processes of their own, in a SubprocVecEnv, can be neither copied nor "
            "pickled; use model.save(path) and GRPO.load(path, env=env), or a DummyVecEnv."
        )
    return env, wrappers


def wrap_env(env: VecEnv, wrappers: list[_Wrapper]) -> VecEnv:
    """Put a vectorised environment into the wrappers that ``unwrap_env`` returned."""
    for kind, attributes in reversed(wrappers):
        wrapper = kind.__new__(kind)
        vars(wrapper).update(attributes, venv=env, class_attributes=dict(inspect.getmembers(kind)))
        env = wrapper
    return env
