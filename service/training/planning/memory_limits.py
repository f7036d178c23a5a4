"""Estimate a job's memory before it starts, and refuse jobs that need too much."""

import json
import math
from typing import Any

from gymnasium import spaces

from grpo_core.actor.extractors import ExtractorPlan, count_features
from grpo_core.groups.archive import MAX_ARCHIVE_BYTES
from grpo_core.groups.group import MAX_FILLED
from grpo_core.options.network_json import network_to_json
from grpo_core.options.presets import LEAST_STEPS
from grpo_core.saving.model_file import SERVICE_LIMITS, expected_shapes
from grpo_core.saving.space_json import space_to_json
from grpo_core.spaces import count_inputs, count_outputs, observation_dtype
from service.errors import InvalidRequestError
from service.schemas.training import TrainConfig

# Limits of one rollout, and of one minibatch on its way through the networks.
_MAX_ROLLOUT_BYTES = 256 * 2**20
_MAX_MINIBATCH_BYTES = 256 * 2**20
# Limit of all rollout workers, and what one takes before it plays: what it does not share with the process it is forked
# from, which itself takes five times that.
_MAX_WORKERS_BYTES = 2 * 2**30
_BYTES_PER_WORKER, _BYTES_OF_IMPORTS = 40 * 2**20, 200 * 2**20
# Python objects of one branch: captured states, anchors and bookkeeping.
_BYTES_PER_BRANCH = 1024
_PAGE_BYTES = 4096
# Rewards, flags, advantages and other numbers of one step.
_BYTES_PER_STEP = 64
# What NumPy puts before an array in a file, how many arrays are neither weights nor moments, and what spaces may take
# of the metadata.
_ARRAY_HEAD_BYTES = 128
_N_OTHER_ARRAYS = 64
_MAX_SPACE_BYTES = SERVICE_LIMITS.meta_bytes // 2
# Episodes are stored side by side, padded to the longest. Early in training most end long before their limit, so many
# fit into a rollout: CartPole's first episodes last a twentieth of its limit.
_EARLY_END = 16


def check_memory(config: TrainConfig, model: Any, max_episode_steps: int | None) -> None:
    """Check that a job's rollouts, minibatches and model file stay within the limits.

    :param model: A ``GRPO`` with the job's policy and environment, with or without its networks.
    :param max_episode_steps: Time limit of the environment; None if it has none.
    :raises InvalidRequestError: If one is too large; the message says how large, the limit and what to lower.
    """
    network = network_to_json(model.policy_kwargs, model.policy_class)
    longest = min(config.horizon or math.inf, max_episode_steps or math.inf)
    _check_rollout(config, model.observation_space, model.action_space, max_episode_steps)
    _check_minibatch(config, model.observation_space, network, longest)
    _check_model(config, model.observation_space, model.action_space, network)


def shrink(
    settings: dict[str, Any], observation_space: spaces.Space[Any], max_episode_steps: int | None, is_episodic: bool
) -> None:
    """Halve the rollouts and minibatches of a general preset where observations are large, to stay within the limits.

    :param settings: ``n_steps``, ``n_envs``, ``group_size``, ``horizon`` and ``batch_size``; the first and the last
        are changed.
    :param max_episode_steps: Time limit of the environment; None if it has none.
    :param is_episodic: Whether groups are whole episodes.
    """
    observation_bytes = observation_dtype(observation_space).itemsize * math.prod(observation_space.shape or ())
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    # Convolutions keep about 80 bytes per pixel of an image, whose channels are its shortest axis.
    n_pixels = sum(math.prod(part.shape) // min(part.shape) for part in parts if part.shape and len(part.shape) == 3)

    def is_too_large() -> bool:
        n_envs, n_steps, group_size = (int(settings[name]) for name in ("n_envs", "n_steps", "group_size"))
        if not is_episodic:
            return n_envs * n_steps * 4 * observation_bytes > _MAX_ROLLOUT_BYTES // 2
        n_rows, n_branches = _count_episodes(n_envs, n_steps, group_size, settings["horizon"], max_episode_steps)
        # Nothing is left to halve once each environment has one group.
        is_large = n_rows * n_branches * 4 * observation_bytes > _MAX_ROLLOUT_BYTES // 2
        return n_branches > n_envs * group_size and is_large

    while settings["n_steps"] * settings["n_envs"] > LEAST_STEPS and is_too_large():
        settings["n_steps"] //= 2
    while settings["batch_size"] > LEAST_STEPS and settings["batch_size"] * 80 * n_pixels > _MAX_MINIBATCH_BYTES:
        settings["batch_size"] //= 2


def _check_rollout(
    config: TrainConfig,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    max_episode_steps: int | None,
) -> None:
    n_steps = config.n_envs * config.n_steps
    longest = min(config.horizon or math.inf, max_episode_steps or math.inf)
    most_filled = MAX_FILLED if config.fill_rollouts and config.group_mode != "episode" else 1
    if config.group_mode == "episode":
        n_rows, n_branches = _count_episodes(
            config.n_envs, config.n_steps, config.group_size, config.horizon, max_episode_steps
        )
        n_cells = n_rows * n_branches
        remedy = "lower n_envs, n_steps or group_size, or send horizon to cut episodes."
    else:
        n_cells, n_branches = n_steps, n_steps // (config.horizon or 1) * most_filled
        remedy = "lower n_envs or n_steps."
    dtype = observation_dtype(observation_space)
    observation_bytes = dtype.itemsize * math.prod(observation_space.shape or ())
    # Observations before and after each step, stored once and gathered once more for the networks.
    cell_bytes = 4 * observation_bytes + 8 * count_outputs(action_space) + _BYTES_PER_STEP
    rollout_bytes = n_cells * cell_bytes + n_branches * (_BYTES_PER_BRANCH + observation_bytes)
    # Padding: advantages are computed of all cells. Observations take a page of memory when a step is written to it,
    # and small ones fill theirs with what pads them.
    n_padding = (most_filled - 1) * n_cells
    rollout_bytes += n_padding * _BYTES_PER_STEP + 2 * min(n_padding * observation_bytes, n_cells * _PAGE_BYTES)
    if config.anchor_selection == "archive":
        rollout_bytes += MAX_ARCHIVE_BYTES  # what it may grow to: how large states are shows only in training
    if rollout_bytes > _MAX_ROLLOUT_BYTES:
        raise InvalidRequestError(
            f"n_envs * n_steps = {config.n_envs} * {config.n_steps} steps of {config.env_name} in branches of "
            f"{longest:.0f} take {rollout_bytes / 2**20:.0f} MiB per rollout, more than the "
            f"limit of {_MAX_ROLLOUT_BYTES // 2**20} MiB; {remedy}"
        )
    _check_workers(config, rollout_bytes)


def _check_workers(config: TrainConfig, rollout_bytes: float) -> None:
    """Count what rollout workers take: themselves, and among them the rollout, once played and once packed."""
    if config.n_rollout_workers == 1:
        return
    n_bytes = _BYTES_OF_IMPORTS + config.n_rollout_workers * _BYTES_PER_WORKER + 2 * rollout_bytes
    if n_bytes > _MAX_WORKERS_BYTES:
        raise InvalidRequestError(
            f"n_rollout_workers={config.n_rollout_workers} take {n_bytes / 2**20:.0f} MiB beside the job itself, more "
            f"than the limit of {_MAX_WORKERS_BYTES // 2**20} MiB; lower n_rollout_workers, n_envs or n_steps."
        )


def _count_episodes(
    n_envs: int, n_steps: int, group_size: int, horizon: int | None, max_episode_steps: int | None
) -> tuple[float, int]:
    """Return how many steps of how many episodes a rollout has room for."""
    longest = min(horizon or math.inf, max_episode_steps or math.inf)
    n_rows = horizon or max(longest, n_steps // group_size)
    episode_steps = max(1.0, min(longest, (max_episode_steps or math.inf) / _EARLY_END))
    return n_rows, n_envs * math.ceil(n_steps / (group_size * episode_steps)) * group_size


def _check_minibatch(
    config: TrainConfig, observation_space: spaces.Space[Any], network: dict[str, Any], longest: float
) -> None:
    n_steps = config.n_envs * config.n_steps
    if config.group_mode == "episode":
        n_steps += int(config.n_envs * config.group_size * longest)
    batch_size = config.batch_size
    if config.importance_level == "branch":
        batch_size += int(min(longest, n_steps))  # branches are not split
    # Two networks keep the output of every layer, and its gradient, until the optimizer's step.
    plan = ExtractorPlan.from_json(network)
    n_kept = 2 * 2 * (sum(config.net_arch) + _count_convolved(observation_space, plan))
    n_kept += count_inputs(observation_space) + count_features(observation_space, plan)
    minibatch_bytes = 4 * min(batch_size, n_steps) * n_kept
    if minibatch_bytes > _MAX_MINIBATCH_BYTES:
        raise InvalidRequestError(
            f"batch_size={config.batch_size} with net_arch={config.net_arch} on observations of {config.env_name} "
            f"takes {minibatch_bytes // 2**20} MiB per minibatch, more than the limit of "
            f"{_MAX_MINIBATCH_BYTES // 2**20} MiB; lower either."
        )


def _count_convolved(space: spaces.Space[Any], plan: ExtractorPlan) -> int:
    """Return an upper bound of the outputs of NatureCNN's convolutions for one observation: four per pixel."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return sum(4 * math.prod((part.shape or ())[1:]) for part in parts if plan.uses_cnn(part))


def _check_model(
    config: TrainConfig,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    network: dict[str, Any],
) -> None:
    described = {"observation": space_to_json(observation_space), "action": space_to_json(action_space)}
    if (n_space_bytes := len(json.dumps(described, indent=1))) > _MAX_SPACE_BYTES:
        raise InvalidRequestError(
            f"the spaces of {config.env_name} take {n_space_bytes // 2**10} KiB in a model file, more than the limit "
            f"of {_MAX_SPACE_BYTES // 2**10} KiB; give their Boxes fewer or equal bounds."
        )
    shapes = expected_shapes({"spaces": described, "network": network})
    # Adam keeps two moments of every weight, and counts its steps; statistics are a mean and a variance in float64.
    n_arrays = 4 * len(shapes)
    n_bytes = 3 * 4 * sum(map(math.prod, shapes.values())) + n_arrays * _ARRAY_HEAD_BYTES
    if config.normalize and config.normalize.norm_obs:
        n_bytes += 2 * 8 * count_inputs(observation_space)
    for n, most, what in (
        (-(-n_bytes // 2**20), SERVICE_LIMITS.array_bytes // 2**20, "MiB"),
        (n_arrays, SERVICE_LIMITS.n_members - _N_OTHER_ARRAYS, "arrays"),
    ):
        if n > most:
            raise InvalidRequestError(
                f"net_arch={config.net_arch} on observations of {config.env_name} makes a model of {n} {what}, more "
                f"than the limit of {most} {what}; use smaller layers, or fewer or smaller observations: the wrappers "
                "atari and resize shrink images."
            )
