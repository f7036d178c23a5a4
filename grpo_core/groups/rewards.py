"""Replace the environment's rewards in a rollout by those of reward functions."""

import inspect
from collections.abc import Callable, Collection, Sequence
from itertools import chain, count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grpo_core.groups.rollout import Array, GroupRollout
from grpo_core.options.rewards import Reward, RewardFunction, get_reward_name
from grpo_core.spaces import FLOAT32_MAX, unpack

# What SB3's table shows of a name at least; it refuses two keys that look alike there.
_SHOWN_CHARS = 30


def apply_reward_functions(
    rollout: GroupRollout,
    clip_actions: Callable[[Array], Array],
    reward_function: Reward,
    weights: Sequence[float] | None = None,
) -> dict[str, float]:
    """Replace the rewards by a weighted sum of rewards, each computed in one call over all live steps.

    Where rollouts are cut, each shard calls it for its own steps.

    :param rollout: Its ``rewards`` are overwritten where ``step_mask`` is True.
    :param clip_actions: Turns what was drawn, ``(n_live_steps, *action_shape)``, into what the environment received.
    :param reward_function: One, or several; None among several stands for the environment's own rewards.
    :param weights: Weight of each; None: 1 each.
    :return: As the means of ``combine_rewards``.
    :raises ValueError: If one does not return one number per step.
    """
    mask = rollout.step_mask
    steps = rollout.observations[mask], clip_actions(rollout.actions[mask]), rollout.next_observations[mask]
    rollout.rewards[mask], means = combine_rewards(*steps, rollout.rewards[mask], reward_function, weights)
    return means


def combine_rewards(
    observations: Array,
    actions: Array,
    next_observations: Array,
    own: Array,
    reward_function: Reward,
    weights: Sequence[float] | None = None,
) -> tuple[npt.NDArray[np.float64], dict[str, float]]:
    """Reward steps with a weighted sum of reward functions, each called once for all steps.

    :param observations: Packed, shape ``(n_steps, *observation_shape)``.
    :param actions: As the environment received them, shape ``(n_steps, *action_shape)``.
    :param next_observations: As ``observations``.
    :param own: The environment's own rewards, shape ``(n_steps,)``.
    :param reward_function: One, or several; None among several stands for ``own``.
    :param weights: Weight of each; None: 1 each.
    :return: The sum, ``(n_steps,)``, and the mean of each function over the steps, unweighted, by name; the second of
        one name, such as ``partial``, is there as ``partial_2``.
    :raises ValueError: If a function does not return one number per step.
    """
    reward_functions = [reward_function] if callable(reward_function) else list(reward_function)
    weights = [1.0] * len(reward_functions) if weights is None else weights
    total, means = np.zeros(len(own), np.float64), dict[str, float]()
    for function, weight in zip(reward_functions, weights, strict=True):
        rewards = own
        if function is not None:  # each gets copies of its own, in case it changes them
            copies = [_to_rows(array.copy()) for array in (observations, actions, next_observations)]
            rewards = _compute_rewards(function, copies, len(own))
        total += weight * rewards
        means[_find_free_name(get_reward_name(function), means)] = float(rewards.mean())
    return total, means


def _find_free_name(name: str, taken: Collection[str]) -> str:
    shown = {key[:_SHOWN_CHARS] for key in taken}
    numbered = (f"{name[: _SHOWN_CHARS - 4]}_{i}" for i in count(2))
    return next(key for key in chain([name], numbered) if key[:_SHOWN_CHARS] not in shown)


def _to_rows(batch: Array) -> Any:
    """Turn a batch ``(n_steps, ...)`` into a tensor ``(n_steps, n)``, or a dict of such for Dict observations."""
    unpacked = unpack(batch)
    if isinstance(unpacked, dict):
        return {key: torch.from_numpy(array.reshape(len(array), -1)) for key, array in unpacked.items()}
    return torch.from_numpy(unpacked.reshape(len(unpacked), -1))


def _compute_rewards(reward_function: RewardFunction, arguments: Sequence[Any], n_steps: int) -> Array:
    """Call a reward function and check what it returns; shape ``(n_steps,)``."""
    name = get_reward_name(reward_function)
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # on again, if it turns gradients off
            returned = reward_function(*arguments)
    except Exception as error:
        error.add_note(f"Reward function '{name}' {_find_blame(reward_function, arguments)}.")
        raise
    rule = f"it must return one reward per step, shape ({n_steps}, 1) or ({n_steps},)."
    if returned is None:
        raise ValueError(f"reward function '{name}' returned None; {rule}")
    try:
        rewards = _to_array(returned)
    except Exception as error:  # of torch's, for what is no numbers, or foreign
        shown = f"{returned!r:.100} of type {type(returned).__name__}"
        raise ValueError(f"reward function '{name}' returned {shown} ({error}); {rule}") from error
    if rewards.size != n_steps:
        raise ValueError(f"reward function '{name}' returned shape {rewards.shape} for {n_steps} steps; {rule}")
    too_large = rewards[(np.abs(rewards) > FLOAT32_MAX) & np.isfinite(rewards)]
    if len(too_large):
        raise ValueError(
            f"reward function '{name}' returned {too_large[0]:g}; it must return a size up to {FLOAT32_MAX:.2g}, "
            "the largest number in float32: scale rewards down."
        )
    return rewards.reshape(n_steps)


def _find_blame(reward_function: RewardFunction, arguments: Sequence[Any]) -> str:
    """Tell a function that takes other arguments from one that raised an error of its own."""
    try:
        inspect.signature(reward_function).bind(*arguments)
    except TypeError:
        return "cannot be called with three arguments; define it with (state, action, next_state)"
    except ValueError:  # native code shows no signature
        pass
    return "raised it"


def _to_array(returned: Any) -> Array:
    """Turn what a reward function returned into an array, in double precision only if it is."""
    if isinstance(returned, np.ndarray):
        returned = np.ascontiguousarray(returned)  # torch takes no array that runs backwards
    rewards = torch.as_tensor(returned).detach().cpu()
    if rewards.is_complex():
        raise TypeError("rewards are real numbers")
    if rewards.is_floating_point():  # NumPy has no bfloat16
        rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    return np.asarray(rewards.numpy())
