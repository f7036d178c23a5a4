"""Small models, and a record of what they log and learn from."""

import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core.groups.advantage import Floats
from grpo_core.options.rewards import RewardFunction

SMALL: dict[str, Any] = {"net_arch": [8]}


def build(env: Any = "CartPole-v1", algorithm: type[GRPO] = GRPO, **changes: Any) -> GRPO:
    arguments = {"n_steps": 32, "group_size": 2, "horizon": 8, "n_epochs": 2, "seed": 0, "policy_kwargs": SMALL}
    return algorithm("MlpPolicy", env, **{**arguments, **changes})


class Record(BaseCallback):
    """Keeps what each rollout logged and the advantages it learned from; may act on steps and around rollouts."""

    def __init__(
        self,
        on_step: Callable[[GRPO], bool] = lambda model: True,
        on_start: Callable[[GRPO], None] = lambda model: None,
        on_end: Callable[[GRPO], None] = lambda model: None,
    ) -> None:
        super().__init__()
        self.step, self.start, self.end = on_step, on_start, on_end
        self.advantages: list[Floats] = []
        self.logged: list[dict[str, float]] = []
        self.n_rollouts_started = 0

    @property
    def grpo(self) -> GRPO:
        assert isinstance(self.model, GRPO)
        return self.model

    def _on_rollout_start(self) -> None:
        self.n_rollouts_started += 1
        self.start(self.grpo)

    def _on_step(self) -> bool:
        return self.step(self.grpo)

    def _on_rollout_end(self) -> None:
        self.advantages.append(self.grpo.rollout_buffer.advantages.copy())
        self.logged.append(dict(self.grpo.logger.name_to_value))
        self.end(self.grpo)


class NoRestore(gym.Env[Any, Any]):
    observation_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2,))
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self) -> None:
        self.lock = threading.Lock()  # nothing can copy it

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample() * 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample() * 0, float(np.sum(action)), False, False, {}


class Stateless(NoRestore):
    """Every step is like the first; rewards are the sum of the action."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def capture_state(self) -> None:
        return None

    def restore_state(self, state: None) -> None:
        return None


def constant(value: float) -> RewardFunction:
    return lambda state, action, next_state: torch.full((len(state), 1), value)


def normalized(env_id: str = "Pendulum-v1", **options: Any) -> VecNormalize:
    return VecNormalize(make_vec_env(env_id, n_envs=2, vec_env_cls=DummyVecEnv), **options)
