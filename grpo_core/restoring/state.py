"""Copy what a step changes in an environment or one of its wrappers, and put it back.

For known environments only the few attributes that a step changes are copied, for physics engines and emulators their
own state, and for all others every attribute.
"""

import copy
import importlib
import types
from collections.abc import Callable, Iterable
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
from stable_baselines3.common.monitor import Monitor, ResultsWriter

from grpo_core.environments.nested import Env, get_own, list_nested_envs
from grpo_core.replaced_methods import has_replaced_methods
from grpo_core.restoring.copying.copier import CONSTANTS_OF_ENVS, CopyError, describe_kind, is_tool
from grpo_core.restoring.copying.growth import Growth
from grpo_core.restoring.copying.layers import ELSEWHERE, IMMUTABLE, KeptAttribute, Layers
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.native.mujoco_state import MujocoModel
from grpo_core.restoring.object_graph import GENERATORS

# Attributes that a step changes, from the sources of Gymnasium 1.4 and SB3 2.9; the tests check each entry with
# ``check_branchable``. Only exact types match, since a subclass may keep more state.
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
# Of these packages' environments only the engine's state is restored.
_ENGINES = ("gymnasium.envs.mujoco.", "ale_py.")
# Attributes that a reset draws and keeps outside the physics engine, by the name of Gymnasium's class: the classes
# themselves can only be imported with MuJoCo installed.
_MUJOCO_STATE: dict[str, tuple[str, ...]] = {"ReacherEnv": ("goal",), "PusherEnv": ("goal_pos", "cylinder_pos")}
# Positions that MuJoCo computes one simulator step late. Environments and reward wrappers read them before they step:
# the forward reward of Ant and Humanoid is their difference before and after a step.
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
    # Shown again if an episode ends before both frames are new.
    MaxAndSkipEnv: ("_obs_buffer",),
    NoopResetEnv: (),
    StickyActionEnv: ("_sticky_action",),
    WarpFrame: (),
}
#: Attributes of a ``Monitor``, and so of its subclasses, in which it goes on counting over a restore.
MONITOR_RECORDS = (
    *("results_writer", "t_start", "total_steps", "current_reset_info"),
    *("episode_returns", "episode_lengths", "episode_times"),
)
#: Known wrappers that only keep records that no other code changes: of episodes, and of what was checked.
BOOKKEEPING = (Monitor, OrderEnforcing, PassiveEnvChecker)
# Attributes of every gym.Env, and of every gym.Wrapper, that are no part of a state.
_CONSTANTS = CONSTANTS_OF_ENVS | {"_action_space", "_observation_space", "_np_random", "_np_random_seed"}
_CONSTANTS_OF_WRAPPERS = _CONSTANTS | {"env"}
_TOO_DEEP = "its attributes are nested too deep to be copied"
# A reference to a window is often called so. Such an attribute is copied like any other, and left out only if it
# cannot be copied; a replay then has to prove that no step depends on it.
DRAWING_NAMES = frozenset({"screen", "surf", "clock", "window", "viewer", "renderer"})
# Put back without a copy: modules, spaces, generators and files of results.
_NOT_STATE = (gym.Space, *GENERATORS, types.ModuleType, types.BuiltinFunctionType, ResultsWriter)

# Often set when something is first drawn, which no restore undoes.
_OUTLASTING = (types.ModuleType, ResultsWriter)
_MISSING = object()

#: Description of a layer that captures and restores itself.
OWN_METHODS = "capture_state() and restore_state()"


class StateAccess(NamedTuple):
    """Functions that copy the state of one environment or wrapper and put it back.

    :param capture: Returns a copy of the state.
    :param restore: Puts a copy of a captured state back.
    :param is_cheap: Whether both together take much less time than a step.
    :param is_proven: Whether the copy is known to be complete; otherwise a replay has to prove it.
    :param means: What is captured, or by what, for people to read.
    :param is_copied: Whether attributes are copied together with those of other layers.
    """

    capture: Callable[[], Any]
    restore: Callable[[Any], None]
    is_cheap: bool = True
    is_proven: bool = True
    means: str = "its own state"
    is_copied: bool = False


def is_known(env: Env) -> bool:
    """Return whether the attributes that a step of this layer changes are known.

    They are not where it or its class was given methods from elsewhere, which may change anything.
    """
    is_known_kind = type(env) in _WRAPPER_STATE or type(env) in _SIMULATOR_STATE
    return is_known_kind and not has_replaced_methods(env)


def is_known_engine(env: Env) -> bool:
    """Return whether a step of this environment changes, but for known attributes, the state of its engine alone."""
    return type(env).__module__.startswith(_ENGINES) and not has_replaced_methods(env)


def list_constants(env: Env) -> frozenset[str]:
    """List the attributes of a layer that are no part of its state; what is no wrapper may call its game ``env``."""
    return _CONSTANTS_OF_WRAPPERS if isinstance(env, gym.Wrapper) else _CONSTANTS


def access_own_methods(env: Env) -> StateAccess | None:
    """Return an object's own ``capture_state`` and ``restore_state``, which include all it wraps; None without them."""
    capture, restore = get_own(env, "capture_state"), get_own(env, "restore_state")
    if not (callable(capture) and callable(restore)) or _passes_on(env, "capture_state", capture):
        return None
    return StateAccess(capture, restore, is_proven=False, means=OWN_METHODS)


def _passes_on(env: Env, name: str, method: Any) -> bool:
    """Return whether a method is that of what a wrapper holds, whose ``__getattr__`` just looks everything up there."""
    if hasattr(type(env), name) or name in vars(env):
        return False
    return any(method == get_own(inner, name) for inner in list_nested_envs(env)[1:])


def list_restored_layers(env: Env) -> list[Env]:
    """List the layers that are restored one by one, the outermost first: one with own methods answers for the rest."""
    layers = list_nested_envs(env)
    return layers[: next((i + 1 for i, layer in enumerate(layers) if access_own_methods(layer) is not None), None)]


def access_wrapper(env: Env, layers: Layers) -> StateAccess | None:
    """Return the access to the state of one wrapper, without what it wraps; None if it keeps no state.

    :param layers: All layers, with which the wrapper is copied together if it is not known.
    :raises NotBranchableError: If the wrapper is not known and cannot be copied.
    """
    names = _WRAPPER_STATE.get(type(env)) if is_known(env) else None
    if names is not None:
        parts = [_access_attributes(env, names)] if names else []
        if layers.are_copied and type(env) not in BOOKKEEPING:  # in a wrapper that may change it, as the core below
            parts.append(_access_parameters(env))
        return _join(*parts) if parts else None
    records = MONITOR_RECORDS if isinstance(env, Monitor) else ()
    return _try_capture(_access_all_attributes(env, layers, frozenset(records)))


def access_innermost_env(env: Env, common_random_numbers: bool, layers: Layers) -> StateAccess:
    """Return the access to the state of an environment without its wrappers.

    :param common_random_numbers: Whether an emulator's own random generator is part of its state.
    :param layers: All layers, with which the environment is copied together if it is not known.
    :raises NotBranchableError: If the environment cannot be copied.
    """
    is_wrapped = layers.are_copied  # in a wrapper that is not known, and may change what it wraps
    names = _SIMULATOR_STATE.get(type(env)) if is_known(env) else None
    if names is not None:
        state = _access_attributes(env, names)
        return _join(state, _access_parameters(env)) if is_wrapped else state
    modules = [base.__module__ for base in type(env).__mro__]
    if any(module.startswith("gymnasium.envs.box2d.") for module in modules):
        raise _refuse(env, "Box2D's contacts and solver state cannot be copied", is_final=True)
    if "ale_py.env" in modules:
        return _access_atari(env, common_random_numbers, layers)
    if is_known_engine(env):
        state = _access_mujoco(env)
        return _join(state, _access_parameters(env), _access_mujoco_parameters(env)) if is_wrapped else state
    return _try_capture(_access_all_attributes(env, layers))


def _try_capture(access: StateAccess) -> StateAccess:
    """Return the access if its capture does not fail."""
    access.capture()
    return access


def _refuse(env: Env, reason: str, *, is_final: bool = False) -> NotBranchableError:
    """Say that a layer cannot be restored, why, and what helps.

    :param is_final: Whether methods of its own would not help.
    """
    episodes = 'group_mode="episode", which only resets and steps'
    name = type(env).__name__
    if isinstance(env, gym.Wrapper):
        return NotBranchableError(
            f"the wrapper {name} cannot be copied ({reason}), which branching groups need. Remove it, or, if it is "
            f"yours, give it capture_state() and restore_state(state) for itself and all it wraps; or train with "
            f"{episodes}."
        )
    problem = f"{name} cannot be restored to an earlier state, which branching groups need: {reason}."
    if is_final:
        return NotBranchableError(f"{problem} Train with {episodes}.")
    return NotBranchableError(
        f"{problem} Train with {episodes}. Or, if the environment is yours, give it, or a wrapper around it, two "
        "methods: capture_state() returning a copy of its state and restore_state(state) putting a copy back."
    )


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind is np.ndarray or kind is list:
        return value.copy()
    return value if isinstance(value, IMMUTABLE) else copy.deepcopy(value)


def _access_attributes(env: Env, names: tuple[str, ...]) -> StateAccess:
    attributes = env.__dict__

    def capture() -> tuple[Any, ...]:
        return tuple([_copy(attributes[name]) for name in names])

    def restore(state: tuple[Any, ...]) -> None:
        for name, value in zip(names, state, strict=True):
            # Copied again: the next step may change the value in place, and other branches still need it.
            attributes[name] = _copy(value)

    return StateAccess(capture, restore, means=", ".join(names))


def _access_some(env: Env, select: Callable[[dict[str, Any]], Iterable[str]], means: str) -> StateAccess:
    """Copy some of the attributes, which need not be the same at each capture.

    :param select: Names them, among all that there are.
    """
    attributes = env.__dict__

    def capture() -> dict[str, Any]:
        return {name: _copy(attributes[name]) for name in select(attributes)}

    def restore(state: dict[str, Any]) -> None:
        for name, value in state.items():
            attributes[name] = _copy(value)

    return StateAccess(capture, restore, means=means)


def _access_parameters(env: Env) -> StateAccess:
    """Copy the numbers, texts and arrays among the attributes, by which a step goes although it changes none."""
    kinds = (*IMMUTABLE, np.ndarray)
    return _access_some(
        env,
        lambda held: [name for name in held if name not in _CONSTANTS and isinstance(held[name], kinds)],
        "parameters",
    )


def _access_mujoco_parameters(env: Any) -> StateAccess:
    """Copy what wrappers change in a MuJoCo model to vary its physics, from one episode to the next for instance."""
    model = MujocoModel(env.model)
    return StateAccess(model.capture, model.restore, means="MuJoCo's parameters")


def _join(*parts: StateAccess) -> StateAccess:
    """Access several parts of a known environment's state as one, restored in their order."""

    if len(parts) == 1:
        return parts[0]

    def capture() -> list[Any]:
        return [part.capture() for part in parts]

    def restore(state: list[Any]) -> None:
        for part, captured in zip(parts, state, strict=True):
            part.restore(captured)

    return StateAccess(capture, restore, means=", ".join(part.means for part in parts if part.means))


def _access_all_attributes(env: Env, layers: Layers, left_out: frozenset[str] = frozenset()) -> StateAccess:
    """Copy every attribute.

    :param layers: All layers, with which it is copied together.
    :param left_out: Names of attributes that are no part of its state, or copied elsewhere.
    """
    copied = _CopiedAttributes(env, left_out, layers)
    means = "a copy of its attributes"
    return StateAccess(copied.capture, copied.restore, False, False, means, is_copied=True)


class _CopiedAttributes:
    """All attributes of one layer, see ``_access_all_attributes``: those that are no state are kept, and not copied."""

    def __init__(self, env: Env, left_out: frozenset[str], layers: Layers) -> None:
        self._env = env
        self._attributes = env.__dict__
        self._left_out = set(list_constants(env) | left_out)
        self._layers = layers
        layers.include(env, self._is_state, self._left_out)
        self._growth = Growth(type(env).__name__)

    def capture(self) -> dict[str, Any]:
        """Copy them.

        :raises NotBranchableError: If one cannot be copied.
        """
        while True:
            state = {name: value for name, value in self._attributes.items() if self._is_state(name, value)}
            try:
                copied = self._layers.copy(state, is_capture=True)
                self._growth.follow(copied)
                copied.update(self._layers.list_kept(self._env))
                return copied
            except CopyError as error:
                if error.name not in DRAWING_NAMES:
                    raise _refuse(self._env, str(error)) from error
                self._left_out.add(error.name)
            except RecursionError as error:
                raise _refuse(self._env, _TOO_DEEP) from error

    def restore(self, state: dict[str, Any]) -> None:
        """Put copies of them back, and what is not copied; delete what there was not at the capture.

        :raises NotBranchableError: If one cannot be copied again, or has not travelled with the state.
        """
        attributes, left_out = self._attributes, self._left_out
        for name in [name for name in attributes if name not in state and name not in left_out]:
            if not self._outlasts(attributes[name]):
                del attributes[name]
        copied = {}
        for name, value in state.items():
            if name in left_out:
                continue
            if type(value) is KeptAttribute:
                if attributes.get(name, _MISSING) is not value.value:
                    self._put_back(name, value)
            else:
                copied[name] = value
        try:
            attributes.update(self._layers.copy(copied, is_capture=False))
        except CopyError as error:
            raise _refuse(self._env, str(error)) from error
        except RecursionError as error:  # weak references are followed here alone
            raise _refuse(self._env, _TOO_DEEP) from error

    def _put_back(self, name: str, kept: KeptAttribute) -> None:
        if kept.value is not ELSEWHERE:
            if kept.value is not None:
                self._attributes[name] = kept.value
            return
        held = self._attributes.get(name, _MISSING)
        if held is _MISSING or self._is_state(name, held):
            what = "missing" if held is _MISSING else "None" if held is None else f"of type {describe_kind(held)}"
            raise _refuse(
                self._env, f"{name} held what no state takes to another process, and is {what} where one is restored"
            )

    def _outlasts(self, value: Any) -> bool:
        """Return whether a restore leaves alone what there was not at the capture."""
        return self._layers.is_layer(value) or isinstance(value, _OUTLASTING) or is_tool(value)

    def _is_state(self, name: str, value: Any) -> bool:
        if name in self._left_out or self._layers.is_layer(value):
            return False
        if isinstance(value, types.MethodType) and self._layers.is_layer(value.__self__):
            return bool(getattr(value.__self__, value.__func__.__name__, None) == value)
        if isinstance(value, types.FunctionType | type):
            # Lambdas and closures cannot be sent to another process, and few environments exchange them in a step.
            return "<" not in value.__qualname__
        return not (isinstance(value, _NOT_STATE) or is_tool(value))


def _access_mujoco(env: Any) -> StateAccess:
    """Copy one of Gymnasium's MuJoCo environments: the engine's state, and what a reset draws."""
    mujoco = importlib.import_module("mujoco")
    parts = mujoco.mjtState.mjSTATE_INTEGRATION
    drawn = _MUJOCO_STATE.get(type(env).__name__, ())
    # They may not exist yet, since a reset creates them.
    attributes = _access_some(env, lambda held: [name for name in drawn if name in held], ", ".join(drawn))

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

    means = f"MuJoCo's state, and {attributes.means}" if attributes.means else "MuJoCo's state"
    return StateAccess(capture, restore, means=means)


def _access_atari(env: Any, common_random_numbers: bool, layers: Layers) -> StateAccess:
    """Copy an Atari game: ALE's own state, and attributes that a subclass may have added.

    :raises NotBranchableError: If ALE itself repeats actions, since its state lacks the action it would repeat.
    """
    stickiness = env.ale.getFloat("repeat_action_probability")
    if stickiness > 0:
        raise _refuse(
            env,
            f"ALE does not save the action that its repeat_action_probability={stickiness:g} repeats. Pass "
            f"repeat_action_probability=0 and repeat actions in a wrapper, AtariWrapper(env, "
            f"action_repeat_probability={stickiness:g}) for one",
            is_final=True,
        )
    attributes = None if is_known_engine(env) else _access_all_attributes(env, layers, frozenset({"ale"}))

    def capture() -> tuple[Any, ...]:
        return env.ale.cloneState(include_rng=common_random_numbers), attributes and attributes.capture()

    def restore(state: tuple[Any, ...]) -> None:
        env.ale.restoreState(state[0])
        if attributes is not None:
            attributes.restore(state[1])

    # Not cheap: both take 65 µs, a step 230 µs, and the wrappers' frames come on top. Not proven: ALE's state lacks the
    # unfinished picture, which matters in few games (Q*bert).
    means = "ALE's state" if attributes is None else f"ALE's state, and {attributes.means}"
    is_copied = attributes is not None
    return StateAccess(capture, restore, is_cheap=False, is_proven=False, means=means, is_copied=is_copied)
