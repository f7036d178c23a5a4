"""A walk that notes what is done to it, and models that are trained on it while somebody watches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo import GRPO


class StepLog:
    """What really happened in the simulators, kept outside of anything that a restore puts back.

    It is closed while the simulators are tried out, where everything has to be put back.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.steps: list[tuple[int, int]] = []  # position before, action
        self.seeds: list[int | None] = []  # of the resets
        self.n_restores = 0


class Walk(gym.Env[Any, Any]):
    """A walk on the integers that falls off at ``+-edge``. Every observation carries a stamp of its own.

    It observes the position, the steps of the episode, and how many steps were taken in all; a step earns the
    position that it leads to. Stepping it after the fall raises: a dead branch must not be stepped.

    :param spread: Episodes start at a random position below this.
    """

    moves: tuple[int, ...] = (-1, 1)
    observation_space = spaces.Box(-np.inf, np.inf, (3,))

    def __init__(self, log: StepLog, edge: int = 10**6, spread: int = 1) -> None:
        self.action_space = spaces.Discrete(len(self.moves))
        self.log, self.edge, self.spread = log, edge, spread
        self.position, self.n_steps = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.log.is_open:
            self.log.seeds.append(seed)
        self.position, self.n_steps = int(self.np_random.integers(self.spread)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if abs(self.position) >= self.edge:
            raise AssertionError("stepped after the fall")
        if self.log.is_open:
            self.log.steps.append((self.position, int(action)))
        self.position += self.moves[int(action)]
        self.n_steps += 1
        return self._observe(), self._earn(), abs(self.position) >= self.edge, False, {}

    def capture_state(self) -> tuple[int, int]:
        return self.position, self.n_steps

    def restore_state(self, state: tuple[int, int]) -> None:
        self.log.n_restores += self.log.is_open
        self.position, self.n_steps = state

    def _observe(self) -> Any:
        return np.array([self.position, self.n_steps, len(self.log.steps)], np.float32)

    def _earn(self) -> float:
        return float(self.position)


class FencedWalk(Walk):
    """It may also stand still, and must not leave ``[-1, 1]``."""

    moves = (-1, 0, 1)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_masks()[int(action)], "took an illegal action"
        return super().step(action)

    def action_masks(self) -> Any:
        return np.array([self.position > -1, True, self.position < 1])


class Slow(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper nobody knows: it is deep-copied, so that branches are played one after the other."""


class Seen(NamedTuple):
    """A copy of what one rollout stored."""

    observations: Any
    next_observations: Any
    actions: Any
    log_probs: Any
    rewards: Any
    step_mask: Any
    terminated: Any
    truncated: Any


class Watch(BaseCallback):
    """Copies every rollout, and calls a function when it ends, before the policy learns from it."""

    def __init__(self, on_end: Callable[[GRPO], None] | None = None, on_start: Callable[[GRPO], None] | None = None):
        super().__init__()
        self.on_end, self.on_start = on_end, on_start
        self.rollouts: list[Seen] = []
        self.n_vec_steps = 0

    @property
    def grpo(self) -> GRPO:
        assert isinstance(self.model, GRPO)
        return self.model

    def _on_rollout_start(self) -> None:
        if self.on_start is not None:
            self.on_start(self.grpo)

    def _on_step(self) -> bool:
        self.n_vec_steps += 1
        return True

    def _on_rollout_end(self) -> None:
        stored = self.grpo.rollout_buffer
        self.rollouts.append(Seen(**{name: getattr(stored, name).copy() for name in Seen._fields}))
        if self.on_end is not None:
            self.on_end(self.grpo)


def make_walk(
    log: StepLog, is_slow: bool = False, time_limit: int | None = None, kind: type[Walk] = Walk, **options: Any
) -> gym.Env[Any, Any]:
    walk: gym.Env[Any, Any] = kind(log, **options)
    walk = walk if time_limit is None else gym.wrappers.TimeLimit(walk, time_limit)
    return Slow(walk) if is_slow else walk


def walk_model(log: StepLog, n_envs: int = 1, walk: dict[str, Any] | None = None, **changes: Any) -> GRPO:
    """A model that is to be trained on the walk.

    :param walk: Arguments of ``make_walk``.
    """
    env = DummyVecEnv([lambda: make_walk(log, **(walk or {}))] * n_envs)
    arguments = {"group_size": 2, "horizon": 4, "n_steps": 8, "n_epochs": 1, "seed": 0, **changes}
    model = GRPO("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, **arguments)
    log.is_open = True
    return model


def cartpole_model(algorithm: type[GRPO] = GRPO, **changes: Any) -> GRPO:
    arguments = {"env": "CartPole-v1", "n_steps": 64, "group_size": 2, "horizon": 16, "seed": 0, **changes}
    return algorithm("MlpPolicy", **arguments)


def collect(model: GRPO, n_rollouts: int = 1, **watch: Callable[[GRPO], None]) -> Watch:
    """Train for a number of rollouts, none of which may end early, and return what was seen."""
    callback = Watch(**watch)
    while len(callback.rollouts) < n_rollouts:
        model.learn(1, callback=callback, reset_num_timesteps=False)
    return callback
