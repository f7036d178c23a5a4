"""Which attributes of a ``GRPO`` are pickled or copied: all except those rebuilt from its environment."""

import pickle
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize

from grpo_core.banks.rewrapping import unwrap_env, wrap_env
from grpo_core.restoring.copying.copier import CopyError, describe_kind
from grpo_core.restoring.copying.layers import LayerReference
from grpo_core.restoring.outside_changes import find_monitor

# Simulators and their storage are made anew. A logger holds open files, and a copy should not write into them.
_LEFT_OUT = frozenset(
    {"_collector", "_is_collecting", "_vec_monitor", "_grouped_env", "_next_groups", "_actor", "_batch", "_vec_step"}
    | {"rollout_buffer", "_logger", "_custom_logger", "rollout_pool"}
)


def reduce_model(model: Any) -> dict[str, Any]:
    """Return the attributes to pickle.

    :raises TypeError: If the environment is in worker processes, which belong to this one alone, or writes a file.
    """
    # The last forward pass left a tensor of a graph there, which cannot be copied.
    model.policy.action_dist.distribution = None
    state = {name: value for name, value in vars(model).items() if name not in _LEFT_OUT}
    if model.env is not None:
        _refuse_files(model.env)
        if model.env is model._grouped_env:  # else it was replaced since groups were played
            state["_findings"] = model._collector.findings
            state["_starts"] = None if model._collector.is_outdated() else _pickle_starts(model._collector)
        state["env"], state["_wrappers"] = unwrap_env(model.env)
    return {**state, "_vec_normalize_env": None}


def _refuse_files(env: VecEnv) -> None:
    """Refuse monitors that write a file, which two copies of one would spoil.

    :raises TypeError: If there is one.
    """
    monitors: list[Any] = []
    while isinstance(env, VecEnvWrapper):
        monitors.append(env)
        env = env.venv
    monitors += map(find_monitor, getattr(env, "envs", ()))
    for monitor in monitors:
        if (writer := getattr(monitor, "results_writer", None)) is not None:
            raise TypeError(
                f"the model cannot be copied or pickled: a monitor writes {writer.file_handler.name}, and two copies "
                "would spoil that file; make the environment without monitor_dir or filename."
            )


def restore_model(model: Any, state: Mapping[str, Any]) -> None:
    """Put pickled attributes back, and make anew what was left out; the next rollout goes on from the anchor states.

    :param state: What ``reduce_model`` returned.
    :raises CopyError: If it is a copy inside a captured state of the very environment that the model trains in.
    """
    attributes = dict(state)
    wrappers, findings, starts = (attributes.pop(name, None) for name in ("_wrappers", "_findings", "_starts"))
    vars(model).update(attributes, rollout_pool=None, _custom_logger=False)
    if model.env is None:
        return
    if any(isinstance(env, LayerReference) for env in (model.env, *getattr(model.env, "envs", ()))):
        raise CopyError(
            f"({describe_kind(model)}) is a model that trains in this very environment, so that a copy would have "
            "none; give the environment model.make_actor() or GRPO.load(path) instead, and a newer one now and then"
        )
    model.env = wrap_env(model.env, wrappers)
    model._vec_normalize_env = unwrap_vec_normalize(model.env)
    # With what was found out: measured anew, restoring may seem to cost more or less than it did.
    bank = model._make_bank(model.env, model._mode, findings=findings)
    model._use_groups(model._make_groups(model.env, model._mode, bank))
    if starts is None:
        return
    # These bytes were made by ``reduce_model`` and are a part of a pickle that is read already.
    kind, *states = pickle.loads(starts)  # no file of a model or a checkpoint comes here
    if kind == model._collector.has_plain_states:
        anchors = model._collector.anchors
        anchors.starts, anchors.archive, anchors.n_archived = states


def _pickle_starts(collector: Any) -> bytes | None:
    """Pickle anchor states, which are to be restored as they are and never copied; None if that is not possible."""
    anchors = collector.anchors
    try:
        return pickle.dumps((collector.has_plain_states, anchors.starts, anchors.archive, anchors.n_archived))
    except Exception:  # pickling may call foreign code
        return None  # training then begins with new episodes
