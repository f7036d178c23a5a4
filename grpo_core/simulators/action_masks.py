"""Ask an environment which actions it allows, and draw one of them."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def get_action_masks(env: gym.Env[Any, Any]) -> Any:
    """Return which actions the environment allows now, as its ``action_masks()`` says; None if it has none."""
    return env.get_wrapper_attr("action_masks")() if env.has_wrapper_attr("action_masks") else None


def sample_action(action_space: spaces.Space[Any], masks: Any) -> Any:
    """Draw an allowed action; environments may refuse the others.

    :param masks: What ``get_action_masks`` returned.
    """
    if masks is None or not isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete):
        return action_space.sample()
    flat = np.array(masks, np.int8).ravel()
    if isinstance(action_space, spaces.Discrete):
        return action_space.sample(mask=flat)
    return action_space.sample(mask=tuple(np.split(flat, np.cumsum(action_space.nvec.ravel())[:-1])))
