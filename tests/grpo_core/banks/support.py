"""Small environments, and what is seen of them in a bank."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from grpo_core.banks.bank import SimulatorBank
from grpo_core.banks.single_env import Order, Outcome

Env = gym.Env[Any, Any]
MakeWorkers = Callable[..., VecEnv]


def make_cart_pole(limit: int = 500) -> Env:
    return Monitor(gym.make("CartPole-v1", max_episode_steps=limit))


def make_slippery(**options: Any) -> Env:
    return gym.make("FrozenLake-v1", **options)


class Camera(gym.Env[Any, Any]):
    """Shows a moving picture; allows only steps that stay on the line."""

    action_space = spaces.Discrete(2)
    n_places = 40

    def __init__(self, shape: tuple[int, ...] = (40, 36, 1), with_dict: bool = False) -> None:
        self.with_dict = with_dict
        self.picture = np.zeros(shape, np.uint8)
        self.place = 0
        image_space = spaces.Box(0, 255, shape, np.uint8)
        places = spaces.Box(0, self.n_places, (2,), np.float32)
        self.observation_space = spaces.Dict({"image": image_space, "places": places}) if with_dict else image_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(10, 20))
        return self.show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 2 * int(action) - 1 + int(self.np_random.integers(2))
        return self.show(), self.place / 7, self.place > 30, False, {"place": self.place}

    def action_masks(self) -> list[bool]:
        assert self.place <= 30, "asked after the episode's end"
        return [self.place > 1, True]

    def show(self) -> Any:
        self.picture.reshape(-1)[:] = np.arange(self.picture.size) % 97 + self.place
        # Not the space's dtype, to which VecEnvs cast.
        picture = self.picture.copy()
        return {"image": picture, "places": [self.place, 1]} if self.with_dict else picture


class Fragile(gym.Env[Any, Any]):
    """Raises at action 1, and ends its process at action 2; neither is taken when it is tried out."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == 1:
            raise ZeroDivisionError("the wheels came off")
        if action == 2:
            os._exit(7)
        return np.zeros(1, np.float32), 1.0, False, False, {}

    def capture_state(self) -> Any:
        return "upright"

    def restore_state(self, state: Any) -> None:
        pass


def simplify(value: Any) -> Any:
    """Turn nested arrays into lists, which compare with ==."""
    if isinstance(value, dict):
        return {key: simplify(part) for key, part in value.items() if key != "t"}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def see(outcome: Outcome) -> Any:
    """Return all that a learner sees of an outcome, comparable with ==."""
    observed = outcome.observed
    seen = (observed.observation, observed.action_masks, outcome.reward, outcome.terminated, outcome.truncated)
    return [*map(simplify, seen), simplify(outcome.info)]


def follow(bank: SimulatorBank, state: Any, actions: Sequence[Any], i: int = 0) -> list[Any]:
    """Take actions from a state, restoring before every step as a rollout does."""
    seen = []
    for action in actions:
        outcome = bank.step({i: Order(action, state, capture=True)})[i]
        seen.append(see(outcome))
        state = outcome.state
        if state is None:
            break
    return seen


def start(bank: SimulatorBank, seed: int = 0) -> Any:
    """Reset the first environment and return its state."""
    return bank.reset({0: seed})[0][1]
