"""The checkpoint: a training under way, so that it goes on in another process to the same weights, bit for bit.

It is one zip, its members stored: ``checkpoint.json``, the model file as ``model.zip``, an ``arrays/<number>.npy`` per
array of the simulators, and attachments of the caller. Nothing in it is ever unpickled. A checkpoint is taken between
two rollouts, when an update has been made and no group is under way.
"""

import io
import json
import math
import struct
import tokenize
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from grpo_core.algorithm.grouped import GroupedAlgorithm
from grpo_core.checkpoints import simulators
from grpo_core.checkpoints.facts import (
    ATTACHED,
    FACTS_MEMBER,
    FORMAT,
    MAX_FILE_BYTES,
    MODEL_MEMBER,
    Caveat,
    read_caveat,
)
from grpo_core.checkpoints.objects import UnknownObjectError
from grpo_core.groups.correlation import GroupCorrelation
from grpo_core.npy import to_npy
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.saving import model_file
from grpo_core.saving.model_file import LIBRARY_LIMITS, Arrays, ModelContent, ModelFileError
from grpo_core.saving.model_state import get_weights, put_weights, restore_normalization
from grpo_core.saving.optimizer_state import describe_optimizer
from grpo_core.update.policies import copy_policy, find_not_finite

# What every checkpoint says, so that whoever reads one need not ask.
_FACTS = frozenset({
    "format", "num_timesteps", "total_timesteps", "episode_num", "episodes", "logged", "predict_rng_state",
    "group_correlation", "reference", "n_envs", "n_shards", "has_plain_states", "mode", "is_cheap", "simulators",
    "caveat", "own",
})  # fmt: skip
# More than any training takes, and fewer than a database's integers hold.
_MAX_TIMESTEPS = 2**53


class CheckpointError(ValueError):
    """The checkpoint is damaged, or of another training."""


@dataclass(frozen=True)
class Checkpoint:
    """A training under way.

    :param facts: The content of ``checkpoint.json``.
    :param model: The model as it was.
    :param arrays: The arrays that the facts refer to.
    :param attachments: The caller's additions, by name.
    """

    facts: dict[str, Any]
    model: ModelContent
    arrays: Sequence[npt.NDArray[Any]]
    attachments: Mapping[str, bytes]

    @property
    def timesteps(self) -> int:
        """Simulator steps that were taken by then."""
        return int(self.facts["num_timesteps"])

    @property
    def caveat(self) -> Caveat | None:
        """The obstacle to going on exactly as the training would have; None without one."""
        return read_caveat(self.facts["caveat"])


def to_bytes(
    model: GroupedAlgorithm, facts: Mapping[str, Any] | None = None, attachments: Mapping[str, bytes] | None = None
) -> bytes:
    """Describe the training of a ``GRPO`` as ``take`` does, and return the content alone."""
    return take(model, facts, attachments)[0]


def take(
    model: GroupedAlgorithm, facts: Mapping[str, Any] | None = None, attachments: Mapping[str, bytes] | None = None
) -> tuple[bytes, Caveat | None]:
    """Describe the training of a ``GRPO``, between two of its rollouts.

    Where the simulators' states cannot be described, the rest is, and ``caveat`` says why.

    :param model: The model in training.
    :param facts: JSON values of the caller's own, kept as ``facts["own"]``.
    :param attachments: Bytes of the caller's own, by name.
    :return: The content of the file, and what will keep the training from going on exactly as it would have.
    :raises ModelFileError: If the model is too large to be saved, or its numbers are not finite, so that it could
        not be read again.
    """
    optimizer, moments, lost = model.policy.optimizer, Arrays(), None
    if not model._follow_layers():
        lost = "the optimizer was put in place of the one that the model began with, and its moments are not kept"
    else:
        described_optimizer, moments = describe_optimizer(optimizer, model.policy)
        lost = described_optimizer.get("lost")
    # What an optimizer of the user's own keeps may well be infinite.
    _check_finite(model, moments if type(optimizer).__module__.startswith("torch.") else {})
    states, arrays, caveat = simulators.describe(_get_env(model), model._collector.anchors, model._mode)
    if lost is not None:
        caveat = _add_reason(caveat, lost)
    reference = {} if model._ref_policy is None else get_weights(model._ref_policy)
    described = {
        "format": FORMAT,
        "num_timesteps": model.num_timesteps,
        "total_timesteps": _to_number(model._total_timesteps),
        "episode_num": model._episode_num,
        "episodes": [list(model.ep_info_buffer or ()), [bool(success) for success in model.ep_success_buffer or ()]],
        "logged": _list_logged(model),
        "predict_rng_state": model._predict_rng.bit_generator.state,
        "group_correlation": model._group_correlation.to_json(),
        "reference": [model._ref_timesteps, list(reference)],
        "n_envs": model.n_envs,
        "n_shards": model._collector.n_shards,
        "has_plain_states": model._collector.has_plain_states,
        "mode": model._mode,
        "is_cheap": model._collector.findings.is_cheap,
        "simulators": states,
        "caveat": caveat,
        "own": dict(facts or {}),
    }
    text = json.dumps(described, default=_to_json, skipkeys=True)  # a Monitor's infos may have any keys, too
    members = {FACTS_MEMBER: text.encode(), MODEL_MEMBER: model.to_bytes()}
    members |= {f"arrays/{i}.npy": to_npy(array) for i, array in enumerate(arrays)}
    members |= {f"reference/{i}.npy": to_npy(array) for i, array in enumerate(reference.values())}
    members |= {f"{ATTACHED}{name}": content for name, content in (attachments or {}).items()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return file.getvalue(), caveat


def _add_reason(caveat: Caveat | None, reason: str) -> Caveat:
    return Caveat(reason if caveat is None else f"{caveat.reason}; and {reason}", is_certain=True)


def _list_logged(model: GroupedAlgorithm) -> list[tuple[str, Any, int, Sequence[str]]]:
    """List what the logger holds of the last update until it writes it with the next rollout's row: numbers alone."""
    if model._logged:  # no training has begun since it was restored
        return list(model._logged)
    logger = getattr(model, "_logger", None)  # none before training, nor in a copy
    if not isinstance(logger, Logger):
        return []
    return [
        (name, value, logger.name_to_count.get(name, 0), logger.name_to_excluded[name])
        for name, value in logger.name_to_value.items()
        if isinstance(value, int | float | np.number)
    ]


def _check_finite(model: GroupedAlgorithm, moments: Arrays) -> None:
    bad_moments = (name for name, array in moments.items() if not np.isfinite(array).all())
    for kind, name in (("weights", find_not_finite(model.policy)), ("moments", next(bad_moments, None))):
        if name is not None:
            raise ModelFileError(
                f"the {kind} of {name} are NaN or infinite; lower learning_rate or the size of the rewards."
            )


def from_bytes(content: bytes) -> Checkpoint:
    """Read a checkpoint without running anything in it.

    :raises CheckpointError: If it is damaged or none.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or len(content) > MAX_FILE_BYTES:
                raise CheckpointError("the checkpoint is compressed or too large; it was not written here.")
            # By its beginning: a checkpoint that was cut off may end as the model inside it does.
            if content[: model_file.N_HEAD_BYTES].endswith(model_file.META_MEMBER.encode()):
                raise CheckpointError("the file is a model, not a checkpoint; GRPO.load(path, env=env) reads it.")
            facts = json.loads(archive.read(FACTS_MEMBER))
            if facts["format"] != FORMAT:
                raise CheckpointError(f"the checkpoint's format is not {FORMAT}; another version wrote it.")
            if missing := sorted(_FACTS - facts.keys()):
                raise CheckpointError(f"the checkpoint lacks {', '.join(missing)}; another version wrote it.")
            if not 0 <= int(facts["num_timesteps"]) < _MAX_TIMESTEPS:
                raise CheckpointError(f"the checkpoint counts {facts['num_timesteps']} steps; it was not written here.")
            model = model_file.from_bytes(
                archive.read(MODEL_MEMBER), with_optimizer=True, with_own_parts=True, limits=LIBRARY_LIMITS
            )
            names = [info.filename for info in infos]
            arrays = [_read_npy(archive.read(f"arrays/{i}.npy")) for i in range(len(_list_names(names, "arrays/")))]
            reference = [
                _read_npy(archive.read(f"reference/{i}.npy")) for i in range(len(_list_names(names, "reference/")))
            ]
            facts["reference"] = [facts["reference"][0], dict(zip(facts["reference"][1], reference, strict=True))]
            read_caveat(facts["caveat"])
            attachments = {
                name.removeprefix(ATTACHED): archive.read(name) for name in names if name.startswith(ATTACHED)
            }
    except (CheckpointError, ModelFileError) as error:
        raise CheckpointError(str(error)) from error
    except (
        zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, OSError, EOFError, RuntimeError,
        NotImplementedError, OverflowError, ArithmeticError, IndexError, SyntaxError, struct.error, tokenize.TokenError,
    ) as error:  # fmt: skip  # what zipfile, json and numpy raise on damaged input
        raise CheckpointError(f"the checkpoint is damaged ({type(error).__name__}).") from error
    return Checkpoint(facts, model, arrays, attachments)


def restore(model: GroupedAlgorithm, checkpoint: Checkpoint) -> Caveat | None:
    """Put a training back into a new ``GRPO``; ``learn(..., reset_num_timesteps=False)`` then goes on with it.

    :param model: One with the same arguments, around environments of the same make.
    :return: The obstacle to going on exactly as it would have; None without one.
    :raises CheckpointError: If it is of another training.
    :raises ValueError: If the model has no environment.
    """
    facts, env = checkpoint.facts, _get_env(model)
    if (n_envs := facts["n_envs"]) != model.n_envs:
        raise CheckpointError(
            f"the checkpoint is of a training in n_envs={n_envs} environments, but here are {model.n_envs}; make as "
            "many: make_vec_env(env_id, n_envs)."
        )
    _restore_choices(model, facts)
    if (n_shards := facts["n_shards"]) != model._collector.n_shards:
        raise CheckpointError(
            f"the checkpoint is of a training whose rollouts are cut into {n_shards} shards, but here it would be "
            f"{model._collector.n_shards}; set n_rollout_shards={n_shards}. The number of workers may differ."
        )
    vec_normalize = unwrap_vec_normalize(env)
    if vec_normalize is None and checkpoint.model.meta.get("normalization") is not None:
        raise CheckpointError(
            "the checkpoint is of a training in VecNormalize, but this environment has none; make the model around "
            "VecNormalize(env)."
        )
    first_obs = env.reset()  # before all that a reset changes is put back
    try:
        lost = model._load_arrays(checkpoint.model)
        model._is_just_loaded = False  # it was being trained
        if vec_normalize is not None:
            restore_normalization(vec_normalize, checkpoint.model)
        _restore_progress(model, facts, checkpoint.model.meta)
        _restore_reference(model, *facts["reference"])
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]  # torch names each weight on a line of its own
        raise CheckpointError(f"the checkpoint is of another training ({type(error).__name__}: {reason}).") from error
    # SB3 resets the environment unless it has an observation of it.
    model._last_obs = first_obs
    model._last_episode_starts = np.ones((env.num_envs,), np.bool_)
    caveat = _restore_simulators(model, env, checkpoint)
    return caveat if lost is None or (caveat is not None and lost in caveat.reason) else _add_reason(caveat, lost)


def _restore_simulators(model: GroupedAlgorithm, env: VecEnv, checkpoint: Checkpoint) -> Caveat | None:
    facts = checkpoint.facts
    if facts["simulators"] is None:
        return checkpoint.caveat
    try:
        missing = simulators.restore(env, model._collector.anchors, facts["simulators"], checkpoint.arrays)
        model._collector.outside_changes.look()  # what is restored was not set from outside
    except (
        UnknownObjectError, NotBranchableError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
    ) as error:  # fmt: skip  # what a description that does not fit leads to
        model._collector.anchors.forget()
        reason = f"the simulators' states do not fit these environments ({type(error).__name__}: {error})"
        return Caveat(reason, is_certain=True)
    if facts["has_plain_states"] != model._collector.has_plain_states:
        model._collector.anchors.forget()
        reason = "these environments need another collector, perhaps because their wrappers differ"
        return Caveat(reason, is_certain=True)
    certain = [caveat for caveat in (checkpoint.caveat, missing) if caveat is not None and caveat.is_certain]
    return certain[0] if certain else checkpoint.caveat or missing


def _restore_choices(model: GroupedAlgorithm, facts: Mapping[str, Any]) -> None:
    """Play groups as they were played: measured anew, restoring may seem to cost more or less than it did.

    :raises CheckpointError: If these environments cannot be played so.
    """
    mode = facts["mode"] if model.group_mode == "auto" else model._mode
    is_cheap = bool(facts["is_cheap"])
    if (mode, is_cheap) == (model._mode, model._collector.findings.is_cheap):
        return
    if mode not in ("branch", "episode"):
        raise CheckpointError(f"the checkpoint's mode {mode!r} is not one that GRPO chooses; it was not written here.")
    try:
        bank = model._make_bank(env := _get_env(model), mode)
        bank.findings = bank.findings._replace(is_cheap=is_cheap)
        model._use_groups(model._make_groups(env, mode, bank))
    except ValueError as error:  # among them NotBranchableError
        raise CheckpointError(f"the checkpoint is of another training, in group_mode={mode!r}: {error}") from error


def _restore_progress(model: GroupedAlgorithm, facts: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    model.num_timesteps, model._n_updates = int(facts["num_timesteps"]), int(meta["n_updates"])
    total: Any = float(facts["total_timesteps"])  # SB3 knows only whole ones, and ``math.inf`` works
    model._total_timesteps, model._episode_num = total if math.isinf(total) else int(total), int(facts["episode_num"])
    model.rng.bit_generator.state = meta["rng_state"]
    model._predict_rng.bit_generator.state = facts["predict_rng_state"]
    model._group_correlation = GroupCorrelation.from_json(facts["group_correlation"])
    model._logged = [
        (str(name), value, int(count), tuple(excluded)) for name, value, count, excluded in facts["logged"]
    ]
    infos, successes = facts["episodes"]
    model.ep_info_buffer = deque(infos, maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(successes, maxlen=model._stats_window_size)


def _restore_reference(model: GroupedAlgorithm, timesteps: int, weights: dict[str, npt.NDArray[Any]]) -> None:
    model._ref_timesteps = timesteps
    if not weights:
        return
    model._ref_policy = copy_policy(model.policy)
    put_weights(model._ref_policy, weights)


def _get_env(model: GroupedAlgorithm) -> VecEnv:
    """Return the environment of a model in training.

    :raises ValueError: If there is none.
    """
    if model.env is None:
        raise ValueError("the model has no environment to train in; call set_env(env) first.")
    return model.env


def _list_names(names: Sequence[str], folder: str) -> list[str]:
    return [name.removeprefix(folder) for name in names if name.startswith(folder)]


def _read_npy(content: bytes) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _to_number(value: Any) -> int | float:
    """Turn a number of any make, infinity too, into Python's."""
    return int(value) if float(value).is_integer() else float(value)


def _to_json(value: Any) -> Any:
    """Turn what a Monitor keeps of an episode, which may be anything of its infos, into JSON."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
