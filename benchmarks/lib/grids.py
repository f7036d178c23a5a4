"""MiniGrid and MinAtar with flat observations, under ids of their own.

Stable-Baselines3's policy for images needs 36 x 36 pixels, and these have 7 x 7 and 10 x 10: every method gets them as
vectors, as PureJaxRL's PPO gets MinAtar (https://github.com/luchris429/purejaxrl).
"""

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation, TransformObservation

# Breakout has no end of its own while the ball is met; Gymnax cuts an episode there too.
_MINATAR_STEPS = 1_000


def make_minigrid(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make a MiniGrid task whose observation is the agent's view, shape ``(147,)``, without the mission's text."""
    from minigrid.wrappers import ImgObsWrapper  # imported here: only a run on this task needs the package

    return FlattenObservation(ImgObsWrapper(gym.make(env_id, **kwargs)))


def make_minatar(game: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make a game of MinAtar with its minimal actions, whose observation is its channels, shape ``(100 n,)``."""
    from minatar.gym import BaseEnv  # likewise

    env = FlattenObservation(BaseEnv(game, use_minimal_action_set=True, **kwargs))
    shape = env.observation_space.shape
    assert shape is not None
    space = gym.spaces.Box(0.0, 1.0, shape, np.float32)  # floats for zeros and ones: no network computes in bool
    return TransformObservation(env, lambda observation: observation.astype(np.float32), space)


@cache
def register_grids() -> None:
    """Register the tasks in this process; neither package is imported before one of them is made."""
    for name in ("MiniGrid-DoorKey-6x6", "MiniGrid-MultiRoom-N2-S4"):
        gym.register(
            f"{name}-flat-v0", entry_point="benchmarks.lib.grids:make_minigrid", kwargs={"env_id": f"{name}-v0"}
        )
    gym.register(
        "MinAtar-Breakout-flat-v1",
        entry_point="benchmarks.lib.grids:make_minatar",
        kwargs={"game": "breakout"},
        max_episode_steps=_MINATAR_STEPS,
    )
