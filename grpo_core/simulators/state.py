"""Copy what a step changes in an environment or in one of its wrappers, and put it back.

Of known environments only the few attributes that a step changes are copied, of physics engines and emulators their
own state, and of anything else every attribute. Random generators are separate, see ``access_generators``.
"""

import copy
import importlib
import random
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from stable_baselines3.common.atari_wrappers import (
    AtariWrapper,
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
    StickyActionEnv,
    WarpFrame,
)
from stable_baselines3.common.monitor import Monitor

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
# What a reset draws and keeps outside the physics engine, by the name of Gymnasium's class: the classes themselves
# can only be imported where MuJoCo is installed.
_MUJOCO_STATE: dict[str, tuple[str, ...]] = {"ReacherEnv": ("goal",), "PusherEnv": ("goal_pos", "cylinder_pos")}
# Positions computed one simulator step late, which environments and reward wrappers read before they step: Ant's and
# Humanoid's forward reward is the difference of such positions before and after.
_MUJOCO_POSITIONS = ("xpos", "xipos", "geom_xpos", "site_xpos")
_WRAPPER_STATE: dict[type, tuple[str, ...]] = {
    TimeLimit: ("_elapsed_steps",),
    Monitor: ("rewards", "needs_reset"),
    OrderEnforcing: (),
    PassiveEnvChecker: (),
    AtariWrapper: (),
    ClipRewardEnv: (),
    EpisodicLifeEnv: ("lives", "was_real_done"),
    FireResetEnv: (),
    # Shown again where an episode ends before both of its frames are new.
    MaxAndSkipEnv: ("_obs_buffer",),
    NoopResetEnv: (),
    StickyActionEnv: ("_sticky_action",),
    WarpFrame: (),
}
# What every gym.Env or gym.Wrapper holds and no step changes, and what environments draw their pictures with.
_CONSTANTS = frozenset(
    {"env", "_action_space", "_observation_space", "_metadata", "_cached_spec", "spec", "metadata", "render_mode"}
    | {"_np_random", "_np_random_seed"}
    | {"screen", "surf", "clock", "window", "viewer", "renderer", "isopen"}
)
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
# Code, spaces and generators do not travel with a state, nor does what a wrapper wraps.
_NOT_STATE = (
    gym.Env,
    gym.Space,
    *_GENERATORS,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
)
_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset, np.generic)

Env = gym.Env[Any, Any]


class NotBranchableError(ValueError):
    """The environment's state cannot be captured and restored."""


class StateAccess(NamedTuple):
    """How to copy the state of one environment or wrapper, and how to put it back.

    :param capture: Returns a copy of the state.
    :param restore: Puts a copy of a captured state back.
    :param is_cheap: Whether both together take little beside a step.
    :param is_proven: False for what has only been deep-copied: whether that is enough is for a replay to show.
    """

    capture: Callable[[], Any]
    restore: Callable[[Any], None]
    is_cheap: bool = True
    is_proven: bool = True


@dataclass(frozen=True)
class _Reference:
    """Stands in a captured state for what is not copied: a nested environment, or an attribute of one.

    :param depth: How many wrappers further in it is than the captured one.
    :param name: Name of the attribute; None for the environment or wrapper itself.
    """

    depth: int
    name: str | None = None

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        env = memo["nested_envs"][self.depth]
        return env if self.name is None else getattr(env, self.name)


def list_nested_envs(env: Env) -> list[Env]:
    """List an environment's wrappers from the outermost to the innermost, and then the environment itself."""
    nested_envs = [env]
    while isinstance(nested_envs[-1], gym.Wrapper):
        nested_envs.append(nested_envs[-1].env)
    return nested_envs


def access_own_methods(env: Env) -> StateAccess | None:
    """Use the two methods by which an environment or wrapper copies itself and all it wraps; None without them."""
    capture, restore = getattr(env, "capture_state", None), getattr(env, "restore_state", None)
    return StateAccess(capture, restore) if callable(capture) and callable(restore) else None


def access_wrapper(env: Env) -> StateAccess | None:
    """Find how to copy the state of one wrapper, without what it wraps; None if it keeps none.

    :raises NotBranchableError: If the wrapper is not known and cannot be copied.
    """
    names = _WRAPPER_STATE.get(type(env))
    if names is not None:
        return _access_attributes(env, names) if names else None
    access = _access_all_attributes(env)
    try:
        access.capture()
    except (TypeError, ValueError, copy.Error) as error:
        raise NotBranchableError(
            f"the wrapper {type(env).__name__} cannot be copied ({error}), which branching groups need. Leave it "
            "out, give it capture_state() and restore_state(state) for itself and all it wraps, or train with "
            'group_mode="episode", which only resets and steps.'
        ) from error
    return access


def access_innermost_env(env: Env, common_random_numbers: bool) -> StateAccess:
    """Find how to copy the state of an environment without its wrappers.

    :param common_random_numbers: Whether an emulator's own random generator is part of its state.
    :raises NotBranchableError: If the environment cannot be copied.
    """
    names = _SIMULATOR_STATE.get(type(env))
    if names is not None:
        return _access_attributes(env, names)
    modules = [base.__module__ for base in type(env).__mro__]
    if any(module.startswith("gymnasium.envs.box2d.") for module in modules):
        raise _refuse(env, "Box2D keeps contacts and its solver's memory where nothing can copy them")
    if "gymnasium.envs.mujoco.mujoco_env" in modules:
        return _access_mujoco(env)
    if "ale_py.env" in modules:
        return _access_atari(env, common_random_numbers)
    access = _access_all_attributes(env)
    try:
        access.capture()
    except (TypeError, ValueError, copy.Error) as error:
        raise _refuse(env, f"it cannot be copied: {error}") from error
    return access._replace(is_proven=False)


def _refuse(env: Env, reason: str) -> NotBranchableError:
    return NotBranchableError(
        f"{type(env).__name__} cannot be restored to an earlier state, which branching groups need: {reason}. Train "
        'with group_mode="episode", which only resets and steps, or give the environment, or a wrapper around it, two '
        "methods: capture_state() returning a copy of its state and restore_state(state) putting a copy back."
    )


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind is np.ndarray or kind is list:
        return value.copy()
    return value if isinstance(value, _IMMUTABLE) else copy.deepcopy(value)


def _access_attributes(env: Env, names: tuple[str, ...]) -> StateAccess:
    attributes = env.__dict__

    def capture() -> tuple[Any, ...]:
        return tuple([_copy(attributes[name]) for name in names])

    def restore(state: tuple[Any, ...]) -> None:
        for name, value in zip(names, state, strict=True):
            # Copied again: the step after a restore may change the value in place, and siblings still need it.
            attributes[name] = _copy(value)

    return StateAccess(capture, restore)


def _access_all_attributes(env: Env, engine: frozenset[str] = frozenset()) -> StateAccess:
    """Copy every attribute, all in one deep copy.

    :param engine: Names of the attributes that are copied elsewhere.
    """
    nested_envs = list_nested_envs(env)
    attributes = env.__dict__

    def is_state(name: str) -> bool:
        value = attributes[name]
        is_picture = type(value).__module__.split(".")[0] == "pygame"
        return not (name in _CONSTANTS or name in engine or is_picture or isinstance(value, _NOT_STATE))

    def capture() -> dict[str, Any]:
        state = {name: value for name, value in attributes.items() if is_state(name)}
        # References to a nested environment, or to something that one holds, must stay references, not copies.
        memo: dict[Any, Any] = {id(nested): _Reference(depth) for depth, nested in enumerate(nested_envs)}
        for depth, nested in enumerate(nested_envs):
            for name, value in nested.__dict__.items():
                if not (depth == 0 and name in state) and not isinstance(value, (*_IMMUTABLE, gym.Env)):
                    memo[id(value)] = _Reference(depth, name)
        return copy.deepcopy(state, memo)

    def restore(state: dict[str, Any]) -> None:
        # Attributes that are made only when they are first used are state as well.
        for name in [name for name in attributes if name not in state and is_state(name)]:
            del attributes[name]
        memo: dict[Any, Any] = {"nested_envs": nested_envs}
        attributes.update(copy.deepcopy(state, memo))

    return StateAccess(capture, restore, is_cheap=False)


def _access_mujoco(env: Any) -> StateAccess:
    """Copy a MuJoCo environment: the engine's state, what resets draw, and a subclass's own attributes."""
    mujoco = importlib.import_module("mujoco")
    parts = mujoco.mjtState.mjSTATE_INTEGRATION
    is_known = type(env).__module__.startswith("gymnasium.envs.mujoco.")
    attributes = (
        _access_present_attributes(env, _MUJOCO_STATE.get(type(env).__name__, ()))
        if is_known
        else _access_all_attributes(env, frozenset({"model", "data", "mujoco_renderer"}))
    )

    def capture() -> tuple[Any, ...]:
        physics = np.empty(mujoco.mj_stateSize(env.model, parts))
        mujoco.mj_getState(env.model, env.data, physics, parts)
        positions = [getattr(env.data, name).copy() for name in _MUJOCO_POSITIONS]
        return physics, positions, attributes.capture()

    def restore(state: tuple[Any, ...]) -> None:
        physics, positions, attribute_state = state
        mujoco.mj_setState(env.model, env.data, physics, parts)
        for name, position in zip(_MUJOCO_POSITIONS, positions, strict=True):
            getattr(env.data, name)[:] = position
        attributes.restore(attribute_state)

    return StateAccess(capture, restore, attributes.is_cheap, is_known)


def _access_present_attributes(env: Env, names: tuple[str, ...]) -> StateAccess:
    """Copy attributes that a reset creates, so that they may not be there yet."""
    attributes = env.__dict__

    def capture() -> dict[str, Any]:
        return {name: _copy(attributes[name]) for name in names if name in attributes}

    def restore(state: dict[str, Any]) -> None:
        for name, value in state.items():
            attributes[name] = _copy(value)

    return StateAccess(capture, restore)


def _access_atari(env: Any, common_random_numbers: bool) -> StateAccess:
    """Copy an Atari game: ALE's own state, and the attributes that a subclass may have added.

    :raises NotBranchableError: If ALE itself repeats actions: which one it would repeat is not in its state.
    """
    stickiness = env.ale.getFloat("repeat_action_probability")
    if stickiness > 0:
        raise _refuse(
            env,
            f"ALE does not save the action that its repeat_action_probability={stickiness:g} repeats. Pass "
            f"repeat_action_probability=0 and repeat actions in a wrapper, AtariWrapper(env, "
            f"action_repeat_probability={stickiness:g}) for one",
        )
    is_known = type(env).__module__ == "ale_py.env"
    attributes = None if is_known else _access_all_attributes(env, frozenset({"ale"}))

    def capture() -> tuple[Any, ...]:
        return env.ale.cloneState(include_rng=common_random_numbers), attributes and attributes.capture()

    def restore(state: tuple[Any, ...]) -> None:
        env.ale.restoreState(state[0])
        if attributes is not None:
            attributes.restore(state[1])

    # Measured: 65 µs for both beside 230 µs for a step, and the frames of the wrappers around it come on top. Never
    # proven: ALE leaves the unfinished picture out of its state, which few games (Q*bert) show.
    return StateAccess(capture, restore, is_cheap=False, is_proven=False)


def access_generators(nested_envs: Sequence[Env]) -> StateAccess:
    """Copy the random generators that wrappers and the environment hold, ``np_random`` first of all.

    :param nested_envs: The wrappers and the environment.
    """

    def read(env: Env) -> dict[str, Any]:
        # Gymnasium makes the generator when it is first asked for.
        _ = env.np_random
        return env.__dict__

    def capture() -> list[dict[str, Any]]:
        return [
            {name: _get_state(value) for name, value in read(env).items() if isinstance(value, _GENERATORS)}
            for env in nested_envs
        ]

    def restore(state: list[dict[str, Any]]) -> None:
        for env, generator_states in zip(nested_envs, state, strict=True):
            attributes = read(env)
            for name, generator_state in generator_states.items():
                _set_state(attributes[name], generator_state)

    return StateAccess(capture, restore)


def _get_state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
