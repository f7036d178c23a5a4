"""Replace the environment's rewards in a rollout by those of reward functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from grpo_core.groups.rollout import Array, GroupRollout
from grpo_core.options.rewards import RewardFunction, get_reward_name
from grpo_core.spaces import unpack


def apply_reward_functions(
    rollout: GroupRollout,
    reward_function: RewardFunction | Sequence[RewardFunction | None],
    weights: Sequence[float] | None = None,
) -> dict[str, float]:
    """Replace the rewards by a weighted sum of rewards, each computed in one call over all live steps.

    :param rollout: Its ``rewards`` are overwritten where ``step_mask`` is True.
    :param reward_function: One, or several; None among several stands for the environment's own rewards.
    :param weights: Weight of each; None: 1 each.
    :return: The mean of each over the live steps, unweighted, by name.
    :raises ValueError: If one does not return one number per step.
    """
    reward_functions = [reward_function] if callable(reward_function) else list(reward_function)
    weights = [1.0] * len(reward_functions) if weights is None else weights
    own = rollout.rewards[rollout.step_mask]
    total, means = np.zeros(len(own), np.float64), {}
    for function, weight in zip(reward_functions, weights, strict=True):
        rewards = own
        if function is not None:  # each gets copies of its own, in case it changes them
            rewards = _compute_rewards(function, _make_arguments(rollout), len(own))
        total += weight * rewards
        means[get_reward_name(function)] = float(rewards.mean())
    rollout.rewards[rollout.step_mask] = total
    return means


def _make_arguments(rollout: GroupRollout) -> tuple[Any, Any, Any]:
    """Copy what a reward function takes for all live steps: observations, clipped actions and next observations.

    :return: One tensor ``(n_steps, n)`` each, or a dict of such.
    """
    mask, space = rollout.step_mask, rollout.action_space
    actions = rollout.actions[mask]
    if isinstance(space, spaces.Box):
        actions = np.clip(actions, space.low, space.high)
    return _to_rows(rollout.observations[mask]), _to_rows(actions), _to_rows(rollout.next_observations[mask])


def _to_rows(batch: Array) -> Any:
    """Turn a batch ``(n_steps, ...)`` into a tensor ``(n_steps, n)``, or a dict of such for Dict observations."""
    unpacked = unpack(batch)
    if isinstance(unpacked, dict):
        return {key: torch.from_numpy(array.reshape(len(array), -1)) for key, array in unpacked.items()}
    return torch.from_numpy(unpacked.reshape(len(unpacked), -1))


def _compute_rewards(reward_function: RewardFunction, arguments: tuple[Any, Any, Any], n_steps: int) -> Array:
    """Call a reward function and check what it returns; shape ``(n_steps,)``."""
    name = get_reward_name(reward_function)
    returned = reward_function(*arguments)
    rule = f"it must return one reward per step, shape ({n_steps}, 1)."
    if returned is None:
        raise ValueError(f"reward function '{name}' returned None; {rule}")
    rewards = torch.as_tensor(returned)
    if rewards.numel() != n_steps:
        raise ValueError(f"reward function '{name}' returned shape {tuple(rewards.shape)} for {n_steps} steps; {rule}")
    return np.asarray(rewards.detach().cpu().reshape(n_steps).numpy())
