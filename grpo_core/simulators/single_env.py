"""One environment in the process it runs in: reset, restore, step, observe and capture."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.simulators.simulator import NotBranchableError, Simulator, SimulatorState


class Observed(NamedTuple):
    """One environment's observation after its last reset or step.

    :param observation: What the policy sees, not normalised: an array, an integer, or a dictionary of arrays.
    :param action_masks: Which actions are allowed, flat, as the environment's ``action_masks()`` says; None if it has
        no such method.
    """

    observation: Any
    action_masks: npt.NDArray[np.bool_] | None


class Order(NamedTuple):
    """An order to one environment: perhaps restore, then step, then perhaps capture.

    :param action: The action to take.
    :param restore: The state to take it from; None for the one the environment is in.
    :param capture: Whether to capture the state after the step.
    """

    action: Any
    restore: SimulatorState | None = None
    capture: bool = False


class Outcome(NamedTuple):
    """The outcome of an order.

    :param observed: The observation after the step, the last one of the episode if that is over.
    :param state: The state after the step; None if it was not asked for or the episode is over.
    """

    observed: Observed
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    state: SimulatorState | None


class SingleEnv:
    """One environment in the process it runs in.

    :param env: The environment.
    :param simulator: What captures and restores it; None if nothing is ever captured.
    """

    def __init__(self, env: gym.Env[Any, Any], simulator: Simulator | None) -> None:
        self._env = env
        self._observe = make_observer(env.observation_space)
        has_masks = env.has_wrapper_attr("action_masks")
        self._get_masks = env.get_wrapper_attr("action_masks") if has_masks else None
        self._simulator = simulator

    def reset(self, seed: int | None) -> tuple[Observed, SimulatorState | None]:
        """Start a new episode, and capture its first state unless nothing is ever captured."""
        observation, _ = self._env.reset(seed=seed)
        state = None if self._simulator is None else self._simulator.capture()
        return self._observe(observation, self._get_masks and self._get_masks()), state

    def step(self, order: Order) -> Outcome:
        """Restore a state, take an action and capture the state after it, as ordered."""
        if order.restore is not None:
            self._need_simulator().restore(order.restore)
        observation, reward, terminated, truncated, info = self._env.step(order.action)
        keep = order.capture and not (terminated or truncated)
        return Outcome(
            self._observe(observation, self._get_masks and self._get_masks()),
            float(reward),
            bool(terminated),
            bool(truncated),
            info,
            self._need_simulator().capture() if keep else None,
        )

    def _need_simulator(self) -> Simulator:
        if self._simulator is None:
            raise NotBranchableError(
                "This bank only resets and steps. Make it with make_bank(..., needs_restore=True)."
            )
        return self._simulator


def make_observer(space: spaces.Space[Any]) -> Callable[[Any, Any], Observed]:
    """Make a function that copies observations into the dtypes that VecEnvs use; environments may reuse their arrays.

    :param space: The observation space.
    :return: A function of an observation and of what ``action_masks()`` returned, or None if there is no such method.
    """
    copy_observation = _make_copier(space)

    def observe(observation: Any, action_masks: Any) -> Observed:
        masks = None if action_masks is None else np.array(action_masks, np.bool_).ravel()
        return Observed(copy_observation(observation), masks)

    return observe


def _make_copier(space: spaces.Space[Any]) -> Callable[[Any], Any]:
    if isinstance(space, spaces.Dict):
        copiers = {key: _make_copier(subspace) for key, subspace in space.spaces.items()}
        return lambda observation: {key: copy_part(observation[key]) for key, copy_part in copiers.items()}
    if isinstance(space, spaces.Discrete):
        return int
    dtype = space.dtype
    return lambda observation: np.array(observation, dtype)
