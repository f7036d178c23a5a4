"""Environments and models for the tests of shards."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo import GRPO
from grpo_core.saving.model_state import get_weights
from grpo_core.shards.pool import WorkerPool

TOTAL = 300


class NoisyCartPole(CartPoleEnv):
    """Draws from its own generator and from the process-wide one, and cannot be stepped in batches."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        noise = self.np_random.normal() + np.random.normal()
        return observation + np.float32(1e-3 * noise), reward, terminated, truncated, info


class OwnNoise(gym.ActionWrapper[Any, Any, Any]):
    """Has a generator that no reset seeds."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.generator = np.random.default_rng()

    def action(self, action: Any) -> Any:
        return int(self.generator.integers(2)) if self.generator.random() < 0.1 else action


class NestedNoise(OwnNoise):
    """Has it in an object, which is copied."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.held = [self.generator]
        del self.generator

    def action(self, action: Any) -> Any:
        return int(self.held[0].integers(2)) if self.held[0].random() < 0.1 else action


class DyingCartPole(CartPoleEnv):
    """Kills its process at its tenth step there, unless that is the trainer: until a file exists, if one is named."""

    def __init__(self, note: Path | None) -> None:
        super().__init__()
        self.note, self.trainer_pid, self.n_steps = note, os.getpid(), 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        if self.n_steps > 10 and os.getpid() != self.trainer_pid and not (self.note and self.note.exists()):
            if self.note is not None:
                self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)  # type: ignore[no-untyped-call]  # Gymnasium has no types here


class HangingCartPole(CartPoleEnv):
    """Hangs at its tenth step in a process, unless that is the trainer: in the one that makes a file, or in all.

    :param note: The file.
    :param is_catching: Whether all hang.
    """

    def __init__(self, note: Path, is_catching: bool) -> None:
        super().__init__()
        self.note, self.is_catching, self.trainer_pid, self.n_steps = note, is_catching, os.getpid(), 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        if self.n_steps > 10 and os.getpid() != self.trainer_pid and (self.is_catching or not self.note.exists()):
            self.note.touch()
            threading.Event().wait()
        return super().step(action)  # type: ignore[no-untyped-call]  # Gymnasium has no types here


class BrokenCartPole(CartPoleEnv):
    """Fails in workers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.trainer_pid = os.getpid()

    def step(self, action: Any) -> Any:
        if os.getpid() != self.trainer_pid:
            raise ArithmeticError("the pole is a circle")
        return super().step(action)  # type: ignore[no-untyped-call]  # Gymnasium has no types here


def make_model(env: Any = "CartPole-v1", n_shards: int | None = 4, **arguments: Any) -> GRPO:
    defaults: dict[str, Any] = {"n_steps": 256, "n_epochs": 2, "seed": 3, "device": "cpu", "n_rollout_shards": n_shards}
    return GRPO("MlpPolicy", env, **(defaults | arguments))


def learn(model: GRPO, n_workers: int, pool: WorkerPool, total: int = TOTAL) -> bytes:
    """Train a model, and return its weights."""
    pool.n_workers = n_workers
    model.rollout_pool = pool if n_workers > 1 else None
    model.learn(total)
    return to_bytes(model)


def to_bytes(model: GRPO) -> bytes:
    return b"".join(array.tobytes() for array in get_weights(model.policy).values())


def wrap(make_env: Any, n_envs: int = 1) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(gym.wrappers.TimeLimit(make_env(), 60)) for _ in range(n_envs)])
