"""Tiny environments over every space, which branch exactly and refuse actions that are not in their space."""

import copy
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Step = tuple[Any, float, bool, bool, dict[str, Any]]

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.array([-1.0, -2.0], np.float32), np.array([1.0, 0.5], np.float32)),
}
OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(4),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "dict": spaces.Dict(
        {
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "place": spaces.Box(-1.0, 1.0, (2,), np.float32),
            "room": spaces.Discrete(3),
        }
    ),
}
MASKABLE = [name for name in ACTION_SPACES if name != "box"]

_N_PLACES = 4


class _State(NamedTuple):
    place: int
    n_steps: int


class MatchEnv(gym.Env[Any, Any]):
    """Shows one of four places, drawn anew in every step, and pays for the action that belongs to it.

    The closer the action, the more it pays, 1 at most.

    :param episode_length: Steps after which an episode ends.
    :param truncates: Whether that is a time limit, and not an end in its own right.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] = OBSERVATION_SPACES["box"],
        action_space: spaces.Space[Any] = ACTION_SPACES["discrete"],
        episode_length: int = 6,
        truncates: bool = False,
    ) -> None:
        # Copied because a space holds a random generator, which algorithms seed.
        self.observation_space, self.action_space = copy.deepcopy(observation_space), copy.deepcopy(action_space)
        self.observation_space.seed(0)
        self.action_space.seed(0)
        self._observations = [self.observation_space.sample() for _ in range(_N_PLACES)]
        self._targets = [np.asarray(self.action_space.sample(), np.float64) for _ in range(_N_PLACES)]
        self._episode_length, self._truncates = episode_length, truncates
        self._state = _State(0, 0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = _State(self._draw_place(), 0)
        return self._observations[self._state.place], {}

    def step(self, action: Any) -> Step:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}.")
        distance = float(np.abs(np.asarray(action, np.float64) - self._targets[self._state.place]).mean())
        self._state = _State(self._draw_place(), self._state.n_steps + 1)
        is_over = self._state.n_steps >= self._episode_length
        observation = self._observations[self._state.place]
        return observation, 1.0 - distance, is_over and not self._truncates, is_over and self._truncates, {}

    def capture_state(self) -> _State:
        return self._state

    def restore_state(self, state: _State) -> None:
        self._state = state

    def _draw_place(self) -> int:
        return int(self.np_random.integers(_N_PLACES))


class IndifferentEnv(MatchEnv):
    """Pays the same for every action."""

    def step(self, action: Any) -> Step:
        observation, _, *rest = super().step(action)
        return observation, 1.0, *rest


class MaskedMatchEnv(MatchEnv):
    """Rules one choice out, per component if there are several: the one with the number of the place.

    It raises where such a choice is taken.
    """

    def action_masks(self) -> npt.NDArray[np.bool_]:
        return make_masks(self.action_space, self._state.place)

    def step(self, action: Any) -> Step:
        if not is_allowed(self.action_space, self.action_masks(), action):
            raise ValueError(f"{action!r} is ruled out in place {self._state.place}.")
        return super().step(action)


def list_components(space: spaces.Space[Any]) -> list[int]:
    """List the number of choices of each component of an action."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec]
    assert isinstance(space, spaces.MultiBinary)
    return [2] * int(space.shape[0])


def make_masks(space: spaces.Space[Any], place: int) -> npt.NDArray[np.bool_]:
    """Allow all choices of each component but one, laid out as sb3-contrib does."""
    return np.concatenate([np.arange(n) != place % n for n in list_components(space)])


def is_allowed(space: spaces.Space[Any], masks: npt.NDArray[np.bool_], action: Any) -> bool:
    """Look every component of an action up in its part of the masks."""
    offset = 0
    for n, choice in zip(list_components(space), np.ravel(action), strict=True):
        if not masks[offset + int(choice)]:
            return False
        offset += n
    return True
