"""Environments that several test modules use."""

import math
import sys
import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

FloatArray = npt.NDArray[np.float32]


class Gate:
    """Holds the steps of an environment back until the test admits them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._n_admitted: float = 0
        self.n_arrived = 0

    def pass_through(self) -> None:
        """Wait for admission; what an environment calls in its step."""
        with self._condition:
            self.n_arrived += 1
            place = self.n_arrived
            self._condition.wait_for(lambda: place <= self._n_admitted)

    def admit(self, n_steps: float = math.inf) -> None:
        """Let that many more steps pass; by default all there will ever be."""
        with self._condition:
            self._n_admitted += n_steps
            self._condition.notify_all()


def is_tried_out() -> bool:
    """Say whether the code that calls this runs while an environment is tried out or proven to be restored."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name in ("fill_in_request", "inspect_environment", "prove", "try_out"):
            return True
    return False


class LineEnv(gym.Env[FloatArray, Any]):
    """A walk along a line, one place left or right per step, paid for going right; over after five places.

    :param on_step: Called in every step, but for those that only try the environment out. It may wait or raise, and an
        array that it returns is observed.
    :param on_reset: The same in every reset.
    :param on_close: Called when the environment is closed.
    """

    def __init__(
        self,
        on_step: Callable[[], FloatArray | None] = lambda: None,
        on_reset: Callable[[], FloatArray | None] = lambda: None,
        on_close: Callable[[], None] = lambda: None,
        observation_size: int = 2,
    ) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._on_step, self._on_reset, self._on_close = on_step, on_reset, on_close
        self._place = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = 0
        observed = None if is_tried_out() else self._on_reset()
        return self._observe() if observed is None else observed, {}

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        observed = None if is_tried_out() else self._on_step()
        self._place += 1 if action == 1 else -1
        reward, is_over = float(action == 1), abs(self._place) >= 5
        return self._observe() if observed is None else observed, reward, is_over, False, {}

    def close(self) -> None:
        self._on_close()

    def capture_state(self) -> int:
        return self._place

    def restore_state(self, state: int) -> None:
        self._place = state

    def _observe(self) -> FloatArray:
        observation = np.zeros(self.observation_space.shape or (), np.float32)
        observation[0] = self._place
        return observation


class ForgetfulEnv(gym.Env[FloatArray, Any]):
    """The same walk, with a generator in it, which cannot be copied: it cannot be put back into an earlier state."""

    def __init__(self) -> None:
        self._line = LineEnv()
        self.observation_space, self.action_space = self._line.observation_space, self._line.action_space
        self._noise = (0.0 for _ in ())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._line.reset()

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        return self._line.step(action)


class SpaceEnv(gym.Env[Any, Any]):
    """A walk of seven steps over any spaces: each place shows an observation of its own, and ones are paid for.

    :param masks: Flags of the allowed actions at even places, and the other way round at odd ones; None allows all.
        A forbidden action ends in an error.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], masks: list[int] | None = None
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self._masks = masks
        self._place = 0
        if masks is not None:
            self.action_masks = self._get_masks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._masks is not None and not self._get_masks()[int(action)]:
            raise ValueError(f"action {action} is forbidden at place {self._place}")
        self._place += 1
        return self._observe(), float(np.mean(np.asarray(action) == 1)), self._place == 7, False, {}

    def capture_state(self) -> int:
        return self._place

    def restore_state(self, state: int) -> None:
        self._place = state

    def _get_masks(self) -> npt.NDArray[np.bool_]:
        assert self._masks is not None
        return np.array(self._masks, np.bool_) ^ bool(self._place % 2)

    def _observe(self) -> Any:
        self.observation_space.seed(self._place)
        return self.observation_space.sample()
