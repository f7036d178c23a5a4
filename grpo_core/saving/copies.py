"""What of a ``GRPO`` goes into a pickle or a copy: all of it but what is made anew from its environment."""

import inspect
import pickle
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

# Simulators and their storage are made anew. A logger holds open files, and a copy should not write into them.
_LEFT_OUT = frozenset(
    {"_collector", "_vec_monitor", "_grouped_env", "_actor", "_batch", "_sweep", "rollout_buffer"}
    | {"_logger", "_custom_logger", "rollout_pool"}
)
# Attributes of a VecEnvWrapper that SB3 makes from others, and that cannot be pickled.
_OF_WRAPPERS = ("venv", "class_attributes")

# A wrapper's class and its own attributes.
_Wrapper = tuple[type[VecEnvWrapper], dict[str, Any]]


def reduce_model(model: Any) -> dict[str, Any]:
    """Return the attributes to pickle.

    :raises TypeError: If the environment is in worker processes, which belong to this one alone.
    """
    # What the last forward pass left there belongs to a graph and cannot be copied.
    model.policy.action_dist.distribution = None
    state = {name: value for name, value in vars(model).items() if name not in _LEFT_OUT}
    if model.env is not None:
        state["_starts"] = _pickle_starts(model._collector)
        state["env"], state["_wrappers"] = unwrap_env(model.env)
    return {**state, "_vec_normalize_env": None}


def restore_model(model: Any, state: Mapping[str, Any]) -> Any:
    """Put pickled attributes back.

    :return: What kind of states these are, the anchor states that the next rollout goes on from, and the archive, if
        any, of others; None if it begins anew.
    """
    attributes = dict(state)
    wrappers, starts = attributes.pop("_wrappers", ()), attributes.pop("_starts", None)
    vars(model).update(attributes)
    if model.env is not None:
        model.env = wrap_env(model.env, wrappers)
        model._vec_normalize_env = unwrap_vec_normalize(model.env)
    # These bytes were made by ``reduce_model`` and are a part of a pickle that is read already.
    return None if starts is None else pickle.loads(starts)  # no file of a model or a checkpoint comes here


def unwrap_env(env: VecEnv) -> tuple[VecEnv, list[_Wrapper]]:
    """Separate a vectorised environment from its wrappers, the outermost first, which SB3 cannot pickle."""
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
    for kind, attributes in reversed(wrappers):
        wrapper = kind.__new__(kind)
        vars(wrapper).update(attributes, venv=env, class_attributes=dict(inspect.getmembers(kind)))
        env = wrapper
    return env


def _pickle_starts(collector: Any) -> bytes | None:
    """Pickle anchor states, which are to be restored as they are and never copied; None if that is not possible."""
    try:
        return pickle.dumps((collector.has_plain_states, collector.anchors.starts, collector.anchors.archive))
    except Exception:  # pickling may call foreign code
        return None  # training then begins with new episodes
