"""Physics engines anywhere in an environment's attributes, and what belongs to them.

A copy of an engine is slow, since the model comes with it, and often wrong: arrays that show a part of its memory show
it no longer. Engines stay where they are when attributes are copied, and copy their own state instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.native.mujoco_state import STRUCTS_MODULE, MujocoData, MujocoModel, Window, is_model

# Copies by the id of the original, as in ``copy.deepcopy``.
Memo = dict[Any, Any]
# How a value is copied, or left where it is.
Way = Callable[[Any, Memo], Any]

# By package or module, what no step changes: descriptions of a model before it is compiled, tools that draw it, tables
# of names, and dm_control's doors to MuJoCo's structures.
_CONSTANT_MODULES = (
    "mujoco",
    "dm_control.mjcf",
    "dm_control.mujoco",
    "dm_control._render",
    "gymnasium.envs.mujoco.mujoco_rendering",
    "gymnasium_robotics.utils.mujoco_utils",
)
_DM_CONTROL_PHYSICS = "dm_control.mujoco.engine"
# Captured states keep the engine that they are of. Where an environment builds one anew at each reset, all of them
# together may take ``_MAX_BYTES``, and each counts as at least ``_MIN_ENGINE_BYTES`` besides its arrays.
_MAX_BYTES = 2**30
_MIN_ENGINE_BYTES = 2**19
# Objects that environments make later and that are to travel, engines apart, are kept up to this number.
_MAX_KEPT = 4096


class Engine(Protocol):
    """An engine that copies its own state."""

    def capture(self) -> Any:
        """Copy the state."""

    def restore(self, state: Any) -> None:
        """Put a captured state back."""

    def find_window(self, array: Any) -> Window | None:
        """Say which part of the engine's memory an array shows; None if it shows other memory."""

    def open_window(self, window: Window) -> Any:
        """Return an array that shows a part of the engine's memory."""


class _Left:
    """An object that stays where it is. A captured state holds this in its place, and so keeps it.

    :param value: The object.
    :param engine: Access to its state; None if it is no engine.
    :param index: Its number, by which it travels to another process, where the environment has one like it; None if
        it has been built since, so that the one there may be another.
    """

    __slots__ = ("__weakref__", "engine", "index", "value")

    def __init__(self, value: Any, engine: Engine | None, index: int | None) -> None:
        self.value, self.engine, self.index = value, engine, index

    def __deepcopy__(self, memo: Memo) -> Any:
        return self.value

    def __reduce__(self) -> tuple[Any, ...]:
        if self.index is None:
            raise NotBranchableError(
                f"The environment builds its {type(self.value).__name__} anew, so that no other process has this one, "
                "and states of it cannot be sent there. Build it once and edit it at resets, keep it in a DummyVecEnv "
                'without rollout workers, or train with group_mode="episode", which only resets and steps.'
            )
        return _Number, (self.index,)


@dataclass(frozen=True)
class _Number:
    """Stands for an object that stays where it is in a state that has travelled.

    :param index: Its number.
    """

    index: int

    def __deepcopy__(self, memo: Memo) -> Any:
        return memo["native"].find(self).value


@dataclass
class _Outlook:
    """Stands in a captured state for an array over memory that is not NumPy's.

    :param values: A copy; None once the memory is known to be an engine's.
    :param left: The engine.
    :param window: The part of its memory.
    """

    values: Any
    left: _Left | _Number | None = None
    window: Window | None = None

    def __deepcopy__(self, memo: Memo) -> Any:
        if self.left is None:
            return self.values.copy()
        return memo["native"].find(self.left).engine.open_window(self.window)


class NativeParts:
    """The objects that copies of an environment's attributes leave in place, and the state of engines among them."""

    def __init__(self) -> None:
        # By the id of the object.
        self._left: WeakValueDictionary[int, _Left] = WeakValueDictionary()
        # By their numbers, for states that come back.
        self._kept: list[_Left] = []
        self._is_settled = False
        # Belongs to the capture that is being made.
        self._used: dict[int, _Left] = {}
        self._outlooks: list[tuple[Any, _Outlook]] = []

    def settle(self) -> None:
        """Take the engines that are there, if any, for those that are in every process."""
        self._is_settled = any(left.engine is not None for left in self._kept)

    def find_way(self, value: Any) -> Way | None:
        """Return how to leave a value where it is; None if it is to be copied."""
        if not _is_from(value, *_CONSTANT_MODULES):
            return None
        return self._leave_physics if _is_from(value, _DM_CONTROL_PHYSICS) else self._leave

    def look_out(self, array: Any, memo: Memo) -> Any:
        """Copy an array over memory that is not NumPy's, or say which part of an engine's memory it shows."""
        outlook = memo[id(array)] = _Outlook(array.copy(order="K"))
        self._outlooks.append((array, outlook))
        return outlook

    def find(self, left: _Left | _Number) -> _Left:
        """Return the object itself for what stands in a state.

        :raises LookupError: If there is none here.
        """
        if isinstance(left, _Left):
            return left
        if left.index >= len(self._kept):
            raise LookupError("it was made in another process, and not in this one")
        return self._kept[left.index]

    def capture(self) -> list[tuple[_Left, Any]]:
        """Copy the states of the engines that the attributes copied since the last capture lead to."""
        engines = [(left, left.engine) for left in self._used.values() if left.engine is not None]
        for array, outlook in self._outlooks:
            for left, engine in engines:
                window = engine.find_window(array)
                if window is not None:
                    outlook.values, outlook.left, outlook.window = None, left, window
                    break
        self._used, self._outlooks = {}, []
        if not self._is_settled:
            self.settle()
        return [(left, engine.capture()) for left, engine in engines]

    def restore(self, states: list[tuple[_Left | _Number, Any]]) -> None:
        """Put captured states back into their engines."""
        for left, state in states:
            engine = self.find(left).engine
            assert engine is not None, "it has a state"
            engine.restore(state)

    def _leave(self, value: Any, memo: Memo) -> _Left:
        left = self._left.get(id(value)) or self._register(value)
        if left.engine is not None:
            self._used[id(value)] = left
        memo[id(value)] = left
        return left

    def _leave_physics(self, value: Any, memo: Memo) -> _Left:
        for struct in (value.model.ptr, value.data.ptr):
            engine = self._leave(struct, memo).engine
            if isinstance(engine, MujocoData):
                engine.is_half_stepped = True
        return self._leave(value, memo)

    def _register(self, value: Any) -> _Left:
        engine = _make_engine(value)
        if engine is not None:
            self._check_memory()
        is_built_anew = self._is_settled and _is_from(value, STRUCTS_MODULE, _DM_CONTROL_PHYSICS)
        travels = not is_built_anew and len(self._kept) < _MAX_KEPT
        left = self._left[id(value)] = _Left(value, engine, len(self._kept) if travels else None)
        if travels:
            self._kept.append(left)
        return left

    def _check_memory(self) -> None:
        """Check that the engines of all captured states leave room for more.

        :raises NotBranchableError: If they do not.
        """
        engines = [left.value for left in self._left.values() if left.engine is not None]
        n_bytes = sum(_MIN_ENGINE_BYTES + engine.nbuffer for engine in engines)
        if n_bytes > _MAX_BYTES:
            raise NotBranchableError(
                f"The environment builds its physics engine anew, and captured states hold {len(engines)} of these, "
                f"{n_bytes / 2**20:,.0f} MiB and more than the {_MAX_BYTES / 2**20:,.0f} MiB that branching groups may "
                'take for them. Build it once and edit it at resets, or train with group_mode="episode", which only '
                "resets and steps."
            )


def shows_foreign_memory(array: Any) -> bool:
    """Return whether an array shows memory that neither NumPy nor a constant of Python owns."""
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base is not None and not isinstance(base, bytes)


def _make_engine(value: Any) -> Engine | None:
    """Return the access to an engine's own state; None if the value is no engine."""
    kind = type(value)
    if kind.__module__ != STRUCTS_MODULE:
        return None
    if kind.__name__ == "MjData":
        return MujocoData(value)
    return MujocoModel(value) if is_model(value) else None


def _is_from(value: Any, *modules: str) -> bool:
    """Return whether a value's type, or one that it inherits from, is of some modules or packages."""
    return any(
        base.__module__ == module or base.__module__.startswith(f"{module}.")
        for base in type(value).__mro__
        for module in modules
    )
