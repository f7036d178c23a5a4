"""Reset, restore, step, observe and capture one environment in its own process."""

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.banks.episode_rows import sample_rows
from grpo_core.environments.errors import InvalidEnvironmentError
from grpo_core.environments.first_calls import (
    call_reset,
    call_step,
    check_masks,
    check_observation,
    check_reset,
    check_step,
    explain_stumble,
    is_usual,
)
from grpo_core.environments.flags import read_success
from grpo_core.environments.nested import find_action_masks, name_env
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.generators import find_noise
from grpo_core.restoring.simulator import Simulator, SimulatorState

# Types of what needs no copy; a void may have fields to write to.
_UNCHANGING = frozenset({type(None), bool, int, float, complex, str, bytes, *np.sctypeDict.values()} - {np.void})
_FILLED_AGAIN = (np.ndarray, dict, list, set)


class Observed(NamedTuple):
    """One environment's observation after a reset or step.

    :param observation: What the policy sees, not normalised: an array of the space's shape, an integer, or a dictionary
        of these.
    :param action_masks: The environment's ``action_masks()``, flat, ``(n_mask_bits,)``; None if it has no such method
        or the episode is over.
    """

    observation: Any
    action_masks: npt.NDArray[np.bool_] | None


class Order(NamedTuple):
    """An order to one environment: step, with an optional restore before and an optional capture after it.

    :param action: The action to take.
    :param restore: The state to restore first; None steps from the current state.
    :param capture: Whether to capture the state after the step.
    """

    action: Any
    restore: SimulatorState | None = None
    capture: bool = False


class Outcome(NamedTuple):
    """The outcome of an order.

    :param observed: The observation after the step; at an episode's end, its last one.
    :param reward: The environment's own reward.
    :param state: The state after the step; None if it was not ordered or the episode is over.
    """

    observed: Observed
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    state: SimulatorState | None


class SingleEnv:
    """One environment in its own process.

    What its methods return is checked at the first reset, the first step and the first end of an episode, and later on
    where it is of unusual types or cannot be used.

    :param env: The environment.
    :param simulator: Captures and restores it; None if states are never captured.
    :param rewound: Where those of its random generators are that restoring puts back.
    """

    def __init__(self, env: gym.Env[Any, Any], simulator: Simulator | None, rewound: Collection[str] = ()) -> None:
        self._env, self._name = env, type(env.unwrapped).__name__
        self._rewound, self._noise = rewound, find_noise(env, process_wide=False, shared=False)
        self._observe = make_observer(env.observation_space)
        self._get_masks: Callable[[], Any] | None
        self.find_masks()
        self._simulator = simulator
        # Whether a branch is under way; and, while other code moves the environment, where it was left, if it was.
        self._is_under_way, self._is_over = False, False
        self._visit: tuple[SimulatorState | None, Exception | None] | None = None
        #: Called after each restore.
        self.after_restore: Callable[[], None] = lambda: None
        if simulator is not None:
            sample_rows(env)
        # What is called first. None: the environment's own method as it is by then, since a reset may replace it.
        self._reset_env: Callable[..., Any] | None = self._reset_first
        self._step_env: Callable[[Any], Any] | None = self._step_first

    def find_masks(self) -> None:
        """Look up where action masks come from: another ``action_masks`` may have been assigned.

        :raises InvalidEnvironmentError: If it is no method.
        """
        self._get_masks = find_action_masks(self._env)
        if self._get_masks is not None and not callable(self._get_masks):
            raise InvalidEnvironmentError(
                f"action_masks of {name_env(self._env)} is a {type(self._get_masks).__name__}; make it a method "
                "without arguments that returns the flags."
            )

    def reset(self, seed: int | None) -> tuple[Observed, SimulatorState | None]:
        """Start a new episode; return the first observation, and the first state unless states are never captured."""
        if self._rewound and seed is not None:  # a reset may pass its seed on to none of those
            self._noise.reseed(np.random.default_rng(seed), self._rewound)
        returned = (self._reset_env or self._env.reset)(seed=seed)
        if type(returned) is not tuple or len(returned) != 2:
            check_reset(self._name, returned)
        self.find_masks()
        self._visit, self._is_under_way, self._is_over = None, True, False
        state = None if self._simulator is None else self._simulator.capture()
        return self._observe_checked("reset()", returned[0]), state

    def step(self, order: Order) -> Outcome:
        """Restore, step and capture as ordered.

        :raises NotBranchableError: If a restore or capture is ordered but states are never captured, or if it is to go
            on from where other code has moved it, and that state could not be captured.
        """
        start = order.restore
        if self._visit is not None:
            (left, error), self._visit = self._visit, None
            if start is None and error is not None:
                raise error
            start = left if start is None else start
        if start is not None:
            self._need_simulator().restore(start)
            self.after_restore()
        try:
            returned = (self._step_env or self._env.step)(order.action)
        except Exception as error:
            explain_stumble(self._env, error, order.action)
            raise
        if not is_usual(returned):
            check_step(self._name, returned)
        observation, reward, terminated, truncated, info = returned
        self._is_over = bool(terminated or truncated)
        self._is_under_way = not self._is_over
        keep = order.capture and self._is_under_way
        return Outcome(
            self._observe_checked("step()", observation),
            float(reward),
            bool(terminated),
            bool(truncated),
            _copy_info(info),
            self._need_simulator().capture() if keep else None,
        )

    def leave(self, is_to_step: bool) -> None:
        """Let other code move the environment: the branch under way goes on from here with the next step.

        :param is_to_step: Whether it will be stepped, and not reset.
        """
        if self._visit is None:
            # An environment that is never captured goes on where the visit ends, as in SB3.
            is_kept = self._is_under_way and self._simulator is not None
            try:
                self._visit = (self._need_simulator().capture() if is_kept else None), None
            except Exception as error:  # foreign code; it concerns the branch, if it is to go on, and not the visitor
                self._visit = None, error
        if self._is_over and is_to_step:
            self._env.reset()  # a VecEnv would have done so at the end of the episode
        self._is_over = False

    def _observe_checked(self, method: str, observation: Any) -> Observed:
        try:
            return self._observe(observation, None if self._is_over else self._get_masks and self._get_masks())
        except Exception:  # whatever the form of the observation may cause
            check_observation(self._name, method, observation, self._env.observation_space)
            raise

    def _reset_first(self, seed: int | None) -> Any:
        returned = call_reset(self._env, seed=seed)
        check_masks(self._env.action_space, self._get_masks and self._get_masks())
        self._reset_env = None
        return returned

    def _step_first(self, action: Any) -> Any:
        returned = call_step(self._env, action)
        if not (returned[2] or returned[3]):
            check_masks(self._env.action_space, self._get_masks and self._get_masks())
        self._step_env = self._step_until_end
        return self._check_end(returned)

    def _step_until_end(self, action: Any) -> Any:
        return self._check_end(self._env.step(action))

    def _check_end(self, returned: Any) -> Any:
        if returned[2] or returned[3]:
            read_success(returned[4])
            self._step_env = None
        return returned

    def _need_simulator(self) -> Simulator:
        if self._simulator is None:
            raise NotBranchableError(
                "This bank only resets and steps; make it with make_bank(..., needs_restore=True) to restore states."
            )
        return self._simulator


def make_observer(space: spaces.Space[Any]) -> Callable[[Any, Any], Observed]:
    """Make a function that copies observations, in the dtypes of VecEnvs: environments may reuse their arrays.

    :param space: The observation space.
    :return: A function of an observation and the result of ``action_masks()``, None if there is no such method. It
        raises where an observation has another form.
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
    dtype, shape = space.dtype, space.shape

    def copy_array(observation: Any) -> npt.NDArray[Any]:
        array = np.array(observation, dtype)
        if array.shape != shape:  # it might be broadcast where it is stored
            raise ValueError(f"an observation has shape {array.shape} instead of {shape}")
        return array

    return copy_array


def _copy_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Copy an info as SB3's ``DummyVecEnv`` does: the next step, or a restore, may change what is in it."""
    return {name: value if type(value) in _UNCHANGING else _copy_value(value) for name, value in info.items()}


def _copy_value(value: Any) -> Any:
    if type(value) is tuple and _UNCHANGING.issuperset(map(type, value)):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # foreign objects may refuse to be copied
        return copy.copy(value) if isinstance(value, _FILLED_AGAIN) else value
