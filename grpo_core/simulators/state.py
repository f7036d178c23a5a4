"""Copy what a step changes in one layer of an environment, and put it back: the simulator's or a wrapper's.

Known environments hand out the few attributes that a step changes, physics engines and emulators their own state;
whatever else there is gets deep-copied. Random generators are no part of a layer's state; see ``make_random_layer``.
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
# Code, spaces and generators do not travel with a state, nor do the environment's own layers.
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


class Layer(NamedTuple):
    """How one layer of an environment hands out its state and takes it back.

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
    """Stands in a captured state for something that is not copied: a layer, or one of a layer's attributes.

    :param depth: Number of layers inwards from the captured one.
    :param name: Name of the attribute; None for the layer itself.
    """

    depth: int
    name: str | None = None

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        layer = memo["layers"][self.depth]
        return layer if self.name is None else getattr(layer, self.name)


def list_layers(env: Env) -> list[Env]:
    """List an environment's wrappers from the outermost to the innermost, and then the environment itself."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def make_own_layer(env: Env) -> Layer | None:
    """Take the two methods by which an environment or wrapper copies itself and all it wraps, if it has them."""
    capture, restore = getattr(env, "capture_state", None), getattr(env, "restore_state", None)
    return Layer(capture, restore) if callable(capture) and callable(restore) else None


def make_wrapper_layer(env: Env) -> Layer | None:
    """Make the layer of one wrapper, without what it wraps; None if it keeps no state.

    :raises NotBranchableError: If the wrapper is not known and cannot be copied.
    """
    names = _WRAPPER_STATE.get(type(env))
    if names is not None:
        return _make_attribute_layer(env, names) if names else None
    layer = _make_whole_layer(env)
    try:
        layer.capture()
    except (TypeError, ValueError, copy.Error) as error:
        raise NotBranchableError(
            f"the wrapper {type(env).__name__} cannot be copied ({error}), which branching groups need. Leave it "
            "out, give it capture_state() and restore_state(state) for itself and all it wraps, or train with "
            'group_mode="episode", which only resets and steps.'
        ) from error
    return layer


def make_core_layer(env: Env, keep_random_state: bool) -> Layer:
    """Make the layer of the innermost environment.

    :param keep_random_state: Whether an emulator's own random generator is part of its state.
    :raises NotBranchableError: If the environment cannot be copied.
    """
    names = _SIMULATOR_STATE.get(type(env))
    if names is not None:
        return _make_attribute_layer(env, names)
    modules = [base.__module__ for base in type(env).__mro__]
    if any(module.startswith("gymnasium.envs.box2d.") for module in modules):
        raise _refuse(env, "Box2D keeps contacts and its solver's memory where nothing can copy them")
    if "gymnasium.envs.mujoco.mujoco_env" in modules:
        return _make_mujoco_layer(env)
    if "ale_py.env" in modules:
        return _make_atari_layer(env, keep_random_state)
    layer = _make_whole_layer(env)
    try:
        layer.capture()
    except (TypeError, ValueError, copy.Error) as error:
        raise _refuse(env, f"it cannot be copied: {error}") from error
    return layer._replace(is_proven=False)


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


def _make_attribute_layer(env: Env, names: tuple[str, ...]) -> Layer:
    attributes = env.__dict__

    def capture() -> tuple[Any, ...]:
        return tuple([_copy(attributes[name]) for name in names])

    def restore(state: tuple[Any, ...]) -> None:
        for name, value in zip(names, state, strict=True):
            # Copied again: the step after a restore may change the value in place, and siblings still need it.
            attributes[name] = _copy(value)

    return Layer(capture, restore)


def _make_whole_layer(env: Env, engine: frozenset[str] = frozenset()) -> Layer:
    """Make a layer of every attribute, deep-copied together.

    :param engine: Names of attributes that another layer takes care of.
    """
    layers = list_layers(env)
    attributes = env.__dict__

    def is_state(name: str) -> bool:
        value = attributes[name]
        is_picture = type(value).__module__.split(".")[0] == "pygame"
        return not (name in _CONSTANTS or name in engine or is_picture or isinstance(value, _NOT_STATE))

    def capture() -> dict[str, Any]:
        state = {name: value for name, value in attributes.items() if is_state(name)}
        # What refers to another layer, or to something another layer holds, must go on doing so, and not to a copy.
        memo: dict[Any, Any] = {id(layer): _Reference(depth) for depth, layer in enumerate(layers)}
        for depth, layer in enumerate(layers):
            for name, value in layer.__dict__.items():
                if not (depth == 0 and name in state) and not isinstance(value, (*_IMMUTABLE, gym.Env)):
                    memo[id(value)] = _Reference(depth, name)
        return copy.deepcopy(state, memo)

    def restore(state: dict[str, Any]) -> None:
        # Attributes that are made only when they are first used are state as well.
        for name in [name for name in attributes if name not in state and is_state(name)]:
            del attributes[name]
        memo: dict[Any, Any] = {"layers": layers}
        attributes.update(copy.deepcopy(state, memo))

    return Layer(capture, restore, is_cheap=False)


def _make_mujoco_layer(env: Any) -> Layer:
    """Make the layer of a MuJoCo environment: Gymnasium's own, or a subclass with attributes of its own."""
    mujoco = importlib.import_module("mujoco")
    parts = mujoco.mjtState.mjSTATE_INTEGRATION
    is_known = type(env).__module__.startswith("gymnasium.envs.mujoco.")
    attributes = (
        _make_present_layer(env, _MUJOCO_STATE.get(type(env).__name__, ()))
        if is_known
        else _make_whole_layer(env, frozenset({"model", "data", "mujoco_renderer"}))
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

    return Layer(capture, restore, attributes.is_cheap, is_known)


def _make_present_layer(env: Env, names: tuple[str, ...]) -> Layer:
    """Make a layer of attributes that a reset makes, so that there may be none of them yet."""
    attributes = env.__dict__

    def capture() -> dict[str, Any]:
        return {name: _copy(attributes[name]) for name in names if name in attributes}

    def restore(state: dict[str, Any]) -> None:
        for name, value in state.items():
            attributes[name] = _copy(value)

    return Layer(capture, restore)


def _make_atari_layer(env: Any, keep_random_state: bool) -> Layer:
    """Make the layer of an Atari game: ALE's own state, and the attributes that a subclass may have added.

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
    attributes = None if is_known else _make_whole_layer(env, frozenset({"ale"}))

    def capture() -> tuple[Any, ...]:
        return env.ale.cloneState(include_rng=keep_random_state), attributes and attributes.capture()

    def restore(state: tuple[Any, ...]) -> None:
        env.ale.restoreState(state[0])
        if attributes is not None:
            attributes.restore(state[1])

    # Measured: 65 µs for both beside 230 µs for a step, and the frames of the wrappers around it come on top. Never
    # proven: ALE leaves the unfinished picture out of its state, which few games (Q*bert) show.
    return Layer(capture, restore, is_cheap=False, is_proven=False)


def make_random_layer(layers: Sequence[Env]) -> Layer:
    """Make a layer of the random generators that wrappers and the environment hold, ``np_random`` first of all.

    :param layers: The wrappers and the environment.
    """

    def read(layer: Env) -> dict[str, Any]:
        # Gymnasium makes the generator when it is first asked for.
        _ = layer.np_random
        return layer.__dict__

    def capture() -> list[dict[str, Any]]:
        return [
            {name: _get_state(value) for name, value in read(layer).items() if isinstance(value, _GENERATORS)}
            for layer in layers
        ]

    def restore(state: list[dict[str, Any]]) -> None:
        for layer, generator_states in zip(layers, state, strict=True):
            attributes = read(layer)
            for name, generator_state in generator_states.items():
                _set_state(attributes[name], generator_state)

    return Layer(capture, restore)


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
