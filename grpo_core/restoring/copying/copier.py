"""Deep copies of what environments keep in their attributes, except of what a second copy would harm.

Python's ``copy.deepcopy`` copies a client object too, and when the copy is thrown away its ``__del__`` closes the
connection that the original still uses. A ``Copier`` refuses such objects before it touches them, and says where they
are. Tools that only draw are shared between the copies.
"""

import concurrent.futures
import copyreg
import functools
import io
import logging
import multiprocessing.connection
import multiprocessing.process
import socket
import subprocess
import threading
import types
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from grpo_core.restoring.copying.references import (
    ArrayView,
    WeakContainer,
    WeakReference,
    find_target,
    list_entries,
    measure_offset,
)
from grpo_core.restoring.copying.tables import Tables, is_frame
from grpo_core.restoring.native.parts import Memo, NativeParts, Way, shows_foreign_memory
from grpo_core.restoring.object_graph import GENERATORS

# Copied by sharing, as ``copy.deepcopy`` does, or because a copy would be the same: modules and loggers.
_ATOMIC = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    type(Ellipsis),
    type(NotImplemented),
    np.generic,
    np.dtype,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CodeType,
    types.ModuleType,
    property,
    weakref.ref,
    logging.Logger,
)
# What the operating system or the interpreter holds only once. Some of them can be pickled, but only to be sent to
# another process.
_ONE_OF_A_KIND = (
    io.IOBase,
    socket.socket,
    types.GeneratorType,
    types.CoroutineType,
    types.AsyncGeneratorType,
    types.FrameType,
    threading.Thread,
    subprocess.Popen,
    multiprocessing.process.BaseProcess,
    multiprocessing.connection.Connection,
    concurrent.futures.Executor,
)
# What draws or plays sounds, by the package it comes from. Other classes of pygame hold state: Rect, Vector2, Group.
_PYGAME_TOOLS = frozenset(
    {"Surface", "Clock", "Font", "Sound", "Channel", "Joystick", "PixelArray", "Window", "Renderer", "Texture"}
)
_DRAWING_MODULES = (
    "pyglet",
    "glfw",
    "OpenGL",
    "matplotlib",
    "tkinter",
    "gymnasium.envs.mujoco.mujoco_rendering",
    "mujoco.renderer",
    "mujoco.rendering",
    "mujoco.gl_context",
)
#: Attributes of environments and wrappers that no step changes.
CONSTANTS_OF_ENVS = frozenset(
    {"_cached_spec", "spec", "_metadata", "metadata", "render_mode", "_ezpickle_args", "_ezpickle_kwargs"}
)
# Views are copied together with the array that they show a part of. Where that is this many times as large, it must be
# copied for its own sake.
_MAX_BASE_FACTOR = 4
_MISSING = object()


class CopyError(Exception):
    """Something must not or cannot be copied.

    :param reason: Why, as the end of a sentence that begins with what cannot be copied.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""
        #: The attribute that it is in, once that is known.
        self.name = ""

    def __str__(self) -> str:
        return f"{self.path.lstrip('.')} {self.reason}".strip()

    def lead(self, step: str) -> None:
        """Put a step on the way to the culprit in front of its path."""
        self.path = step + self.path


def is_tool(value: Any) -> bool:
    """Return whether something only draws or plays sounds, so that no step depends on a copy of it."""
    kind = type(value)
    return _draws(kind.__module__ or "", kind.__name__)


@functools.lru_cache(maxsize=1024)
def _draws(module: str, name: str) -> bool:
    if module.partition(".")[0] == "pygame":
        return name in _PYGAME_TOOLS
    return any(module == tool or module.startswith(f"{tool}.") for tool in _DRAWING_MODULES)


def describe_kind(value: Any) -> str:
    """Name the type of a value as people know it."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class Copier:
    """Copies objects of any structure. It remembers the way in which each type is copied.

    :param native: Leaves physics engines where they are, and has their states; None if these are not needed.
    """

    def __init__(self, native: NativeParts | None = None) -> None:
        self._native = native or NativeParts()
        self._tables = Tables()
        self._ways: dict[type, Way | None] = {
            list: self._copy_list,
            tuple: self._copy_tuple,
            dict: self._copy_dict,
            set: self._copy_set,
            frozenset: self._copy_frozenset,
            np.ndarray: self._copy_array,
            types.MethodType: self._copy_method,
            weakref.ref: self._copy_weak_reference,
            weakref.ProxyType: self._copy_weak_reference,
            weakref.CallableProxyType: self._copy_weak_reference,
            weakref.WeakSet: self._copy_weak_container,
            weakref.WeakKeyDictionary: self._copy_weak_container,
            weakref.WeakValueDictionary: self._copy_weak_container,
            ArrayView: self._copy_reference,
            WeakReference: self._copy_reference,
            WeakContainer: self._copy_reference,
        }

    def copy(self, value: Any, memo: Memo) -> Any:
        """Copy a value.

        :param memo: Copies made so far; objects in it are not copied again.
        :raises CopyError: If it, or something in it, must not or cannot be copied.
        """
        kind = type(value)
        way = self._ways.get(kind, _MISSING)
        if way is None:
            return value
        copied = memo.get(id(value), _MISSING)
        if copied is not _MISSING:
            return copied
        if way is _MISSING:
            way = self._ways[kind] = self._find_way(value)
            if way is None:
                return value
        return way(value, memo)  # type: ignore[operator]  # _MISSING is replaced above

    def finish(self, memo: Memo) -> None:
        """Lead what only refers to objects to the copies of these, now that everything in a state is copied."""
        for reference, original in memo.get("references", ()):
            reference.lead_to(memo.get(id(original)))

    def copies_attributes_of(self, value: Any) -> bool:
        """Return whether the attributes of an object that has been copied are all that was copied of it."""
        return self._ways.get(type(value)) in (self._copy_instance, self._copy_env)

    def write_array(self, array: Any, copied: Any, memo: Memo) -> None:
        """Write into an array what its copy holds."""
        if self._tables.write(array, copied):
            return
        if not copied.dtype.hasobject:
            array[...] = copied
            return
        for index, item in np.ndenumerate(copied):
            array[index] = self.copy(item, memo)

    def _find_way(self, value: Any) -> Way | None:
        kind = type(value)
        way_to_leave = self._native.find_way(value)
        if way_to_leave is not None:
            return way_to_leave
        if isinstance(value, _ATOMIC) or is_tool(value):
            return None
        is_env = isinstance(value, gym.Env)  # copied by its attributes, whatever it says of deep copies
        if is_frame(value):
            return _copy_frame
        if hasattr(kind, "__deepcopy__") and not is_env:
            return self._copy_as_told
        if isinstance(value, _ONE_OF_A_KIND) and not isinstance(value, io.StringIO | io.BytesIO):
            raise CopyError(f"({describe_kind(value)}) cannot be copied")
        if hasattr(kind, "__del__") and not isinstance(value, io.StringIO | io.BytesIO):
            raise CopyError(
                f"({describe_kind(value)}) must not be copied: its __del__() would release, with the copy, what the "
                "original still uses"
            )
        if hasattr(kind, "__swig_destroy__"):
            raise CopyError(f"({describe_kind(value)}) cannot be copied: it lives in native code")
        if is_env:
            return self._copy_env
        if kind.__bases__ == (tuple,) and hasattr(kind, "_make"):
            return self._copy_named_tuple
        return self._copy_instance if is_plain(value) else self._copy_reduced

    def _copy_list(self, value: Any, memo: Memo) -> Any:
        copied: list[Any] = []
        memo[id(value)] = copied
        try:
            for item in value:
                copied.append(self.copy(item, memo))
        except CopyError as error:
            error.lead(f"[{len(copied)}]")
            raise
        return copied

    def _copy_tuple(self, value: Any, memo: Memo) -> Any:
        items: list[Any] = []
        try:
            for item in value:
                items.append(self.copy(item, memo))
        except CopyError as error:
            error.lead(f"[{len(items)}]")
            raise
        if all(before is after for before, after in zip(value, items, strict=True)):
            return value
        # Something inside may refer to the tuple, and was given a copy of it then.
        return memo.setdefault(id(value), tuple(items))

    def _copy_named_tuple(self, value: Any, memo: Memo) -> Any:
        items = [self.copy(item, memo) for item in value]
        if all(before is after for before, after in zip(value, items, strict=True)):
            return value
        return memo.setdefault(id(value), value._make(items))

    def _copy_set(self, value: Any, memo: Memo) -> Any:
        copied = memo[id(value)] = {self.copy(item, memo) for item in value}
        return copied

    def _copy_frozenset(self, value: Any, memo: Memo) -> Any:
        copied = memo[id(value)] = frozenset(self.copy(item, memo) for item in value)
        return copied

    def _copy_dict(self, value: Any, memo: Memo) -> Any:
        copied: dict[Any, Any] = {}
        memo[id(value)] = copied
        key: Any = None
        try:
            for key, item in value.items():
                copied[self.copy(key, memo)] = self.copy(item, memo)
        except CopyError as error:
            error.lead(f"[{key!r}]" if isinstance(key, str | int) else "[...]")
            raise
        return copied

    def _copy_array(self, value: Any, memo: Memo) -> Any:
        base = value.base
        if base is None:
            copied = self._tables.restore(value) if _is_restore(memo) else self._tables.capture(value)
            if copied is not None:
                memo[id(value)] = copied
                return copied
        if value.dtype.hasobject:
            copied = np.empty_like(value)
            memo[id(value)] = copied
            for index, item in np.ndenumerate(value):
                copied[index] = self.copy(item, memo)
            return copied
        if base is not None and shows_foreign_memory(value):
            return self._native.look_out(value, memo)
        if type(base) is np.ndarray and base.flags.c_contiguous:
            return self._copy_view(value, base, memo)
        copied = memo[id(value)] = value.copy(order="K")
        return copied

    def _copy_view(self, value: Any, base: Any, memo: Memo) -> Any:
        """Copy an array that shows a part of another one.

        :param base: The other one, of one piece.
        """
        is_small = base.nbytes > _MAX_BASE_FACTOR * value.nbytes
        if is_small and not _is_restore(memo):
            reference = ArrayView(value.copy(order="K"), measure_offset(value, base), value.strides)
            return _refer(value, reference, base, memo)
        copied_base = None if is_small else self.copy(base, memo)
        # Otherwise it is a placeholder for what is not copied.
        is_copied = type(copied_base) is np.ndarray
        copied = _show_again(value, base, copied_base) if is_copied else value.copy(order="K")
        memo[id(value)] = copied
        return copied

    def _copy_weak_reference(self, value: Any, memo: Memo) -> Any:
        target = find_target(value)
        if target is not None:
            return _refer(value, WeakReference(value, is_proxy=type(value) is not weakref.ref), target, memo)
        if type(value) is weakref.ref and value() is None:
            return memo.setdefault(id(value), WeakReference(None))
        return value

    def _copy_weak_container(self, value: Any, memo: Memo) -> Any:
        container = memo[id(value)] = WeakContainer(type(value).__name__, [])
        for target, *strong in list_entries(value):
            reference = self._copy_weak_reference(weakref.ref(target), memo)
            container.items.append((reference, *[self.copy(item, memo) for item in strong]))
        return container

    def _copy_reference(self, value: Any, memo: Memo) -> Any:
        copied = memo[id(value)] = value.make(lambda target: self.copy(target, memo))
        return copied

    def _copy_method(self, value: Any, memo: Memo) -> Any:
        try:
            owner = self.copy(value.__self__, memo)
        except CopyError as error:
            error.lead(".__self__")
            raise
        return types.MethodType(value.__func__, owner)

    def _copy_instance(self, value: Any, memo: Memo) -> Any:
        kind = type(value)
        copied = memo[id(value)] = object.__new__(kind)
        name = ""
        try:
            attributes = getattr(value, "__dict__", None)
            if attributes:
                copies = copied.__dict__
                for name, item in attributes.items():
                    copies[name] = self.copy(item, memo)
            for name in list_slots(kind):
                item = getattr(value, name, _MISSING)
                if item is not _MISSING:
                    object.__setattr__(copied, name, self.copy(item, memo))
        except CopyError as error:
            error.lead(f".{name}")
            raise
        return copied

    def _copy_env(self, value: Any, memo: Memo) -> Any:
        """Copy an environment that another one holds by its attributes: pickle might make a new one."""
        copied = memo[id(value)] = object.__new__(type(value))
        name = ""
        try:
            for name, item in value.__dict__.items():
                copied.__dict__[name] = item if is_constant_of_env(name, item) else self.copy(item, memo)
        except CopyError as error:
            error.lead(f".{name}")
            raise
        return copied

    def _copy_as_told(self, value: Any, memo: Memo) -> Any:
        """Copy by the object's own ``__deepcopy__``."""
        try:
            copied = value.__deepcopy__(memo)
        except Exception as error:  # foreign code
            raise CopyError(f"({describe_kind(value)}) cannot be copied: {_name(error)}") from error
        if copied is not value:
            memo[id(value)] = copied
        return copied

    def _copy_reduced(self, value: Any, memo: Memo) -> Any:
        """Copy as pickle would: by the function, the arguments and the state that the object names."""
        if isinstance(value, GENERATORS) or (type(value) is torch.Generator and value is not torch.default_generator):
            memo.setdefault("generators", []).append(value)
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            reduced: Any = value.__reduce_ex__(4) if reducer is None else reducer(value)
            if isinstance(reduced, str):
                return value
            # Kept as long as the memo: the id of what is freed would be given to another object.
            memo.setdefault(id(memo), []).append(reduced)
            make, arguments, state, items, pairs = (*reduced, *(None,) * 5)[:5]
            copied = memo[id(value)] = make(*[self.copy(argument, memo) for argument in arguments])
            if state is not None:
                _set_state(copied, self.copy(state, memo))
            for item in items or ():
                copied.append(self.copy(item, memo))
            for key, item in pairs or ():
                copied[self.copy(key, memo)] = self.copy(item, memo)
        except CopyError:
            raise
        except Exception as error:  # foreign code
            raise CopyError(f"({describe_kind(value)}) cannot be copied: {_name(error)}") from error
        return copied


def is_constant_of_env(name: str, value: Any) -> bool:
    """Return whether an attribute of an environment inside another is shared between its copies."""
    return name in CONSTANTS_OF_ENVS or isinstance(value, gym.Space)


def _refer(value: Any, reference: Any, original: Any, memo: Memo) -> Any:
    """Return what stands in a state for a value that refers to an original; ``finish`` leads it to the copy of that."""
    memo[id(value)] = reference
    memo.setdefault("references", []).append((reference, original))
    return reference


def _is_restore(memo: Memo) -> bool:
    return "envs" in memo


def _copy_frame(value: Any, memo: Memo) -> Any:
    """Copy a data frame; pandas copies a column when it is first written to."""
    copied = memo[id(value)] = value.copy(deep=False)
    return copied


def is_plain(value: Any) -> bool:
    """Return whether an object is its attributes and nothing else.

    :raises CopyError: If it cannot be copied.
    """
    kind: Any = type(value)
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return False
    if kind in copyreg.dispatch_table or getattr(kind, "__getstate__", None) is not getattr(
        object, "__getstate__", None
    ):
        return False
    if any(hasattr(kind, name) for name in ("__setstate__", "__getnewargs__", "__getnewargs_ex__")):
        return False
    try:
        make, arguments, _, items, pairs = value.__reduce_ex__(4)
    except Exception as error:  # foreign code; objects of native code say here that they cannot be copied
        raise CopyError(f"({describe_kind(value)}) cannot be copied: {_name(error)}") from error
    is_made_by_new = make is copyreg.__newobj__ and arguments == (kind,)  # type: ignore[attr-defined]  # undocumented
    return is_made_by_new and items is None and pairs is None and kind.__new__ is object.__new__


def list_slots(kind: type) -> list[str]:
    names: list[str] = copyreg._slotnames(kind)  # type: ignore[attr-defined]  # undocumented, but what pickle goes by
    return names


def _set_state(copied: Any, state: Any) -> None:
    """Give a new object its state as pickle does."""
    if hasattr(copied, "__setstate__"):
        copied.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    copied.__dict__.update(attributes or {})
    for name, item in (slots or {}).items():
        setattr(copied, name, item)


def _show_again(view: Any, base: Any, copied_base: Any) -> Any:
    """Return what shows the same part of a copied array as a view shows of the original."""
    return np.ndarray(view.shape, view.dtype, copied_base, measure_offset(view, base), view.strides)


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
