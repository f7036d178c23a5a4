"""Read an environment's action masks, and draw allowed actions."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from grpo_core.environments.nested import find_action_masks


def get_action_masks(env: gym.Env[Any, Any]) -> Any:
    """Return the environment's ``action_masks()`` for its current state; None if it has no such method."""
    get_masks = find_action_masks(env)
    return None if get_masks is None else get_masks()


def sample_action(action_space: spaces.Space[Any], masks: Any) -> Any:
    """Draw an allowed action.

    :param masks: The result of ``get_action_masks``.
    """
    if masks is None or not isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return action_space.sample()
    flat = np.array(masks, np.int8).ravel()
    if isinstance(action_space, spaces.MultiBinary):
        may_be_0, may_be_1 = flat.reshape(-1, 2).T
        # Gymnasium writes a free choice as 2, and the only choice as itself.
        return action_space.sample(mask=np.where(may_be_0 & may_be_1, 2, may_be_1).reshape(action_space.shape))
    if isinstance(action_space, spaces.Discrete):
        return action_space.sample(mask=flat)
    return action_space.sample(mask=tuple(np.split(flat, np.cumsum(action_space.nvec.ravel())[:-1])))
