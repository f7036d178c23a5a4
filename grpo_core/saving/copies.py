"""What of a ``GRPO`` goes into a pickle or a copy: all of it but what is made anew from its environment."""

import pickle
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import unwrap_vec_normalize

from grpo_core.simulators.rewrapping import unwrap_env, wrap_env

# Simulators and their storage are made anew. A logger holds open files, and a copy should not write into them.
_LEFT_OUT = frozenset(
    {"_collector", "_vec_monitor", "_grouped_env", "_actor", "_batch", "_sweep", "rollout_buffer"}
    | {"_logger", "_custom_logger", "rollout_pool"}
)


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


def _pickle_starts(collector: Any) -> bytes | None:
    """Pickle anchor states, which are to be restored as they are and never copied; None if that is not possible."""
    try:
        return pickle.dumps((collector.has_plain_states, collector.anchors.starts, collector.anchors.archive))
    except Exception:  # pickling may call foreign code
        return None  # training then begins with new episodes
