"""Capture and restore simulator states, the ground groups stand on.

A ``Simulator`` is one Gymnasium environment with all its wrappers. ``capture`` copies what a step can change in
every layer; ``restore`` puts it back, so that many branches can start from one state. The random generator is
left out on purpose: branches draw independent noise.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.envs.toy_text.blackjack import BlackjackEnv
from gymnasium.envs.toy_text.cliffwalking import CliffWalkingEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from gymnasium.envs.toy_text.taxi import TaxiEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

# What a step changes, read in Gymnasium 1.4's and SB3 2.9's sources; ``check_branchable`` proves it in the tests.
# Exact types only: a subclass may keep state of its own.
_SIMULATOR_STATE: dict[type, tuple[str, ...]] = {
    CartPoleEnv: ("state", "steps_beyond_terminated"),
    AcrobotEnv: ("state",),
    PendulumEnv: ("state", "last_u"),
    MountainCarEnv: ("state",),
    Continuous_MountainCarEnv: ("state",),
    FrozenLakeEnv: ("s", "lastaction"),
    CliffWalkingEnv: ("s", "lastaction"),
    TaxiEnv: ("s", "lastaction", "fickle_step", "taxi_orientation"),
    BlackjackEnv: ("player", "dealer"),
}
_WRAPPER_STATE: dict[type, tuple[str, ...]] = {
    TimeLimit: ("_elapsed_steps",),
    Monitor: ("rewards", "needs_reset"),
    OrderEnforcing: (),
    PassiveEnvChecker: (),
}
# A wrapper we do not know is captured whole, but for what every gym.Wrapper holds and no step changes.
_WRAPPER_CONSTANTS = frozenset({"env", "_action_space", "_observation_space", "_metadata", "_cached_spec"})

SimulatorState = tuple[Any, ...]


class NotBranchableError(ValueError):
    """The environment's state cannot be captured and restored."""


class _Layer(NamedTuple):
    """How one layer of an environment hands out its state and takes it back."""

    capture: Callable[[], Any]
    restore: Callable[[Any], None]


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray | list):
        return value.copy()
    if value is None or isinstance(value, bool | int | float | str | np.generic | tuple):
        return value
    return copy.deepcopy(value)


def _attribute_layer(env: gym.Env[Any, Any], names: tuple[str, ...]) -> _Layer:
    attributes = env.__dict__

    def capture() -> tuple[Any, ...]:
        return tuple([_copy(attributes[name]) for name in names])

    def restore(state: tuple[Any, ...]) -> None:
        for name, value in zip(names, state, strict=True):
            # Copied again: the step after a restore may change the value in place, and siblings still need it.
            attributes[name] = _copy(value)

    return _Layer(capture, restore)


def _unknown_wrapper_layer(env: gym.Wrapper[Any, Any, Any, Any]) -> _Layer:
    attributes = env.__dict__
    layers: list[gym.Env[Any, Any]] = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)

    def copy_state(state: dict[str, Any]) -> dict[str, Any]:
        # What refers to the wrapper itself or to what it wraps must go on doing so, and not to a copy.
        return copy.deepcopy(state, {id(layer): layer for layer in layers})

    def capture() -> dict[str, Any]:
        return copy_state({name: value for name, value in attributes.items() if name not in _WRAPPER_CONSTANTS})

    def restore(state: dict[str, Any]) -> None:
        # Attributes that a wrapper makes only when it is first used are state as well.
        for name in attributes.keys() - state.keys() - _WRAPPER_CONSTANTS:
            del attributes[name]
        attributes.update(copy_state(state))

    try:
        capture()
    except (TypeError, ValueError, copy.Error) as error:
        raise NotBranchableError(
            f"the wrapper {type(env).__name__} cannot be copied ({error}), which branching groups need. Leave it "
            "out, or give it capture_state() and restore_state(state) for itself and all it wraps."
        ) from error
    return _Layer(capture, restore)


def _own_layer(env: gym.Env[Any, Any]) -> _Layer | None:
    """Take the two methods by which an environment or wrapper copies itself and all it wraps, if it has them."""
    capture, restore = getattr(env, "capture_state", None), getattr(env, "restore_state", None)
    return _Layer(capture, restore) if callable(capture) and callable(restore) else None


def _core_layer(env: gym.Env[Any, Any]) -> _Layer:
    if type(env) not in _SIMULATOR_STATE:
        known = ", ".join(sorted(known_type.__name__ for known_type in _SIMULATOR_STATE))
        raise NotBranchableError(
            f"{type(env).__name__} cannot be restored to an earlier state, which branching groups need. "
            f"Restorable here: {known}; any other environment becomes so with two methods, on itself or on a wrapper "
            "around it: capture_state() returning a copy of its state and restore_state(state) putting a copy back."
        )
    return _attribute_layer(env, _SIMULATOR_STATE[type(env)])


class Simulator:
    """One environment that can be put back into any state it has been in.

    :param env: A Gymnasium environment; classic control, toy text, or one with its own ``capture_state()`` and
        ``restore_state(state)`` methods. Wrappers are captured with it, and what they keep is put back with every
        branch, generators and running statistics of theirs included.
    :raises NotBranchableError: If the innermost environment is none of these.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.step = env.step
        self.reset = env.reset
        self._layers: list[_Layer] = []
        while (own_layer := _own_layer(env)) is None and isinstance(env, gym.Wrapper):
            names = _WRAPPER_STATE.get(type(env))
            if names is None:
                self._layers.append(_unknown_wrapper_layer(env))
            elif names:
                self._layers.append(_attribute_layer(env, names))
            env = env.env
        self._layers.append(own_layer or _core_layer(env))
        self._core = env

    def capture(self) -> SimulatorState:
        """Copy the state of every layer."""
        return tuple([layer.capture() for layer in self._layers])

    def restore(self, state: SimulatorState) -> None:
        """Put every layer back into a captured state; the state stays usable."""
        for layer, layer_state in zip(self._layers, state, strict=True):
            layer.restore(layer_state)

    @property
    def random_state(self) -> Any:
        """State of the environment's random generator."""
        return copy.deepcopy(self._core.np_random.bit_generator.state)

    @random_state.setter
    def random_state(self, state: Any) -> None:
        self._core.np_random.bit_generator.state = copy.deepcopy(state)


def make_simulators(env: VecEnv) -> list[Simulator]:
    """List the simulators behind a vectorised environment.

    :param env: A ``DummyVecEnv``, bare or inside one ``VecNormalize``.
    :raises NotBranchableError: If the vectorised environment is of another kind, or an environment in it
        cannot be restored.
    """
    base = env.venv if isinstance(env, VecNormalize) else env
    if not isinstance(base, DummyVecEnv):
        raise NotBranchableError(
            f"GRPO branches inside a DummyVecEnv, bare or in one VecNormalize, not inside {type(base).__name__}. "
            "Build it with make_vec_env(env_id, n_envs, vec_env_cls=DummyVecEnv)."
        )
    return [Simulator(single_env) for single_env in base.envs]


def check_branchable(env: gym.Env[Any, Any], n_steps: int = 64, seed: int = 0) -> None:
    """Prove that an environment can be restored: replay the same actions from one state and compare exactly.

    Run it on your own environment before you train on it. From its first state and from one on the way the same
    actions are taken three times with the same noise; observations, rewards and flags must be identical.

    :param env: The environment; it is left in some state on the way and has to be reset before use.
    :param n_steps: Number of simulator steps to replay, at least 1. An episode's end closes the replay.
    :param seed: Seed of the reset and of the actions.
    :raises NotBranchableError: If there is no way to restore it, or a replay differs; the message says where.
    """
    simulator = Simulator(env)
    simulator.reset(seed=seed)
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(n_steps)]
    _check_replays(env, simulator, actions)
    simulator.reset()
    for action in actions[: n_steps // 8]:
        if _is_over(simulator.step(action)):
            simulator.reset()
    _check_replays(env, simulator, actions)


def _check_replays(env: gym.Env[Any, Any], simulator: Simulator, actions: list[Any]) -> None:
    state, random_state = simulator.capture(), simulator.random_state
    first = _replay(simulator, actions)
    for _ in range(2):  # a captured state serves many branches, so once is not enough
        simulator.restore(state)
        simulator.random_state = random_state
        again = _replay(simulator, actions)
        for t, (before, after) in enumerate(zip(first, again, strict=False)):
            if not _same_step(before, after):
                raise NotBranchableError(
                    f"{env} is not restored exactly: replayed step {t} gave {after[:4]} instead of {before[:4]}. Its "
                    "capture_state() misses something that step() changes, or restore_state() hands out the captured "
                    "object itself instead of a copy."
                )
        if len(first) != len(again):
            raise NotBranchableError(f"{env} is not restored exactly: {len(first)} steps, then {len(again)} in replay.")


def _is_over(step: tuple[Any, ...]) -> bool:
    return bool(step[2] or step[3])


def _replay(simulator: Simulator, actions: list[Any]) -> list[tuple[Any, ...]]:
    steps = []
    for action in actions:
        steps.append(copy.deepcopy(simulator.step(action)))
        if _is_over(steps[-1]):
            break
    return steps


def _same_step(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return bool(np.array_equal(before[0], after[0]) and before[1:4] == after[1:4])
