"""Physics engines anywhere in an environment's attributes, and what belongs to them.

A copy of an engine is slow, since the model comes with it, and often wrong: arrays that show a part of its memory show
it no longer. Engines stay where they are when attributes are copied, and copy their own state instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

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
# Environments that build their engine anew at each reset would fill the memory with old ones.
_MAX_ENGINES = 8
_MAX_LEFT = 4096


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


@dataclass(frozen=True)
class _Placeholder:
    """Stands in a captured state for an object that stays where it is.

    :param index: Its number among those that stayed.
    """

    index: int

    def __deepcopy__(self, memo: Memo) -> Any:
        return memo["native"].get(self.index)


@dataclass
class _Outlook:
    """Stands in a captured state for an array over memory that is not NumPy's.

    :param values: A copy; None once the memory is known to be an engine's.
    :param index: The engine's number.
    :param window: The part of its memory.
    """

    values: Any
    index: int | None = None
    window: Window | None = None

    def __deepcopy__(self, memo: Memo) -> Any:
        if self.index is None:
            return self.values.copy()
        return memo["native"].get_engine(self.index).open_window(self.window)


class EngineGoneError(RuntimeError):
    """A captured state belongs to an engine that the environment has since replaced many times."""


class NativeParts:
    """The objects that copies of an environment's attributes leave in place, and the state of engines among them."""

    def __init__(self) -> None:
        self._n_left = 0
        self._left: dict[int, Any] = {}
        self._indices: dict[int, int] = {}
        self._engines: dict[int, Engine] = {}
        # Belongs to the capture that is being made.
        self._used: set[int] = set()
        self._outlooks: list[tuple[Any, _Outlook]] = []

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

    def get(self, index: int) -> Any:
        """Return an object that stayed where it is.

        :raises EngineGoneError: If it was forgotten since.
        """
        if index not in self._left:
            raise EngineGoneError("the environment has replaced its physics engine many times since the capture")
        return self._left[index]

    def get_engine(self, index: int) -> Engine:
        """Return an engine, see ``get``."""
        self.get(index)
        return self._engines[index]

    def capture(self) -> list[tuple[int, Any]]:
        """Copy the states of the engines that the attributes copied since the last capture lead to."""
        for array, outlook in self._outlooks:
            for index in self._used:
                window = self._engines[index].find_window(array)
                if window is not None:
                    outlook.values, outlook.index, outlook.window = None, index, window
                    break
        states = [(index, self._engines[index].capture()) for index in sorted(self._used)]
        self._used, self._outlooks = set(), []
        return states

    def restore(self, states: list[tuple[int, Any]]) -> None:
        """Put captured states back into their engines."""
        for index, state in states:
            self.get_engine(index).restore(state)

    def _leave(self, value: Any, memo: Memo) -> _Placeholder:
        index = self._indices.get(id(value))
        if index is None:
            index = self._register(value)
        # The last used are the last to be forgotten.
        self._left[index] = self._left.pop(index)
        if index in self._engines:
            self._engines[index] = self._engines.pop(index)
            self._used.add(index)
        placeholder: _Placeholder = memo.setdefault(id(value), _Placeholder(index))
        return placeholder

    def _leave_physics(self, value: Any, memo: Memo) -> _Placeholder:
        for struct in (value.model.ptr, value.data.ptr):
            engine = self._engines[self._leave(struct, memo).index]
            if isinstance(engine, MujocoData):
                engine.is_half_stepped = True
        return self._leave(value, memo)

    def _register(self, value: Any) -> int:
        index = self._n_left
        self._n_left += 1
        self._left[index], self._indices[id(value)] = value, index
        engine = _make_engine(value)
        if engine is not None:
            self._engines[index] = engine
            if len(self._engines) > _MAX_ENGINES:
                self._forget(next(iter(self._engines)))
        if len(self._left) > _MAX_LEFT:
            self._forget(next(iter(self._left)))
        return index

    def _forget(self, index: int) -> None:
        self._engines.pop(index, None)
        del self._indices[id(self._left.pop(index))]


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
