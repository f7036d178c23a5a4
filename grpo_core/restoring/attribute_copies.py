"""Compare what attributes hold with a copy that was made before, and write such a copy back in place.

It looks into small arrays and tensors, small containers, and small objects that consist of their attributes alone: it
runs after every step.
"""

import copy
import functools
import math
import operator
import types
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from grpo_core.restoring.copying.layers import IMMUTABLE


class _Mapping(dict[Any, Any]):
    """What an object held in its attributes, or a dict of a class of its own in its items.

    :param owner: The object.
    """

    def __init__(self, items: Mapping[Any, Any], owner: Any) -> None:
        super().__init__(items)
        self.owner = owner

    def __copy__(self) -> "_Mapping":
        return _Mapping(self, self.owner)


class _Row(list[Any]):
    """What a tuple held, or a list of a class of its own.

    :param owner: The tuple or list.
    """

    def __init__(self, items: Iterable[Any], owner: Any) -> None:
        super().__init__(items)
        self.owner = owner

    def __copy__(self) -> "_Row":
        return _Row(self, self.owner)


# What is compared after every step: objects, and containers of these types or classes made of them, with up to
# _MAX_ITEMS items, those inside them included, and arrays and tensors of up to _MAX_BYTES, or _MAX_INNER_BYTES where
# they are inside of anything.
_MAPPINGS = frozenset({dict, defaultdict, Counter, OrderedDict, _Mapping})
_SEQUENCES = frozenset({list, deque, _Row})
_NESTING = _MAPPINGS | _SEQUENCES
_CONTAINERS = _NESTING | {set, bytearray}
_ARRAYS = frozenset({np.ndarray, torch.Tensor})
_MAX_ITEMS = 256
_MAX_DEPTH = 4
_MAX_BYTES, _MAX_INNER_BYTES = 2**16, 2**12
# An object whose class has none of these of its own is its attributes and nothing else.
_WAYS_TO_COPY = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__deepcopy__", "__copy__", "__del__")
# Flag of classes that are written in Python.
_IS_OF_PYTHON = 1 << 9


def is_same(held: Any, value: Any) -> bool:
    """Return whether two values are one object, or equal and of a kind that cannot be written to."""
    if held is value:
        return True
    if isinstance(value, tuple):  # of arrays, for one, which cannot be compared at once
        return type(held) is type(value) and len(held) == len(value) and all(map(is_same, held, value))
    return isinstance(value, IMMUTABLE) and type(held) is type(value) and bool(held == value)


def is_compared(value: Any) -> bool:
    """Return whether a value is compared by what it is; others may only be found to be other objects."""
    return isinstance(value, IMMUTABLE) or is_small(value)


def is_plain(value: Any) -> bool:
    """Return whether an attribute with a name of drawing tools holds none of them."""
    return value is not None and is_compared(value)


def is_small(value: Any) -> bool:
    """Return whether a value is an array, a container or a plain object whose contents are compared."""
    if type(value) in _ARRAYS:
        return _measure(value) <= _MAX_BYTES
    return _is_opened(value) and _count(value, _MAX_DEPTH) <= _MAX_ITEMS


def _is_opened(value: Any, depth: int = _MAX_DEPTH) -> bool:
    """Return whether a value inside another is compared by what it holds; tuples are where something in them is."""
    base = _get_base(type(value))
    if base is tuple:
        return depth > 1 and any(_is_opened(item, depth - 1) for item in value)
    return base is not None and (base not in _ARRAYS or _measure(value) <= _MAX_INNER_BYTES)


def _measure(array: Any) -> float:
    """Return the bytes of an array; infinitely many of a tensor on a GPU, for one, which is not looked into."""
    is_array = type(array) is np.ndarray or (array.is_cpu and array.layout is torch.strided and array.is_contiguous())
    return array.nbytes if is_array else math.inf


def _find_base(kind: Any) -> Any:
    """Return what a type is compared as: a container, an array, a tuple, or an object that is its attributes alone."""
    if kind in _CONTAINERS or kind in _ARRAYS or kind is types.SimpleNamespace:
        return kind
    if issubclass(kind, gym.Env | gym.Space | type | types.ModuleType):
        return None
    if (base := next((base for base in kind.__mro__ if base in _NESTING or base is tuple), None)) is not None:
        return base
    changed = (
        getattr(kind, name, None) is not getattr(object, name, None)
        and getattr(getattr(kind, name), "__module__", None) != "dataclasses"  # a frozen one with slots has its own
        for name in _WAYS_TO_COPY
    )
    is_python = kind.__new__ is object.__new__ and kind.__flags__ & _IS_OF_PYTHON
    if not is_python or not (kind.__dictoffset__ or _get_slots(kind)):
        return None
    return object if issubclass(kind, UserDict | UserList) or not any(changed) else None


def _find_kind(kind: Any) -> Any:
    """Return the type of a copy of the items that a value of some type holds."""
    base = _get_base(kind)
    if base is None or kind in _CONTAINERS or kind in _ARRAYS:
        return kind
    return _Row if base in _SEQUENCES or base is tuple else _Mapping


def _list_slots(kind: Any) -> list[str]:
    """List the attributes that a class of Python's keeps outside of ``__dict__``."""
    members = {name: member for base in reversed(kind.__mro__) for name, member in vars(base).items()}
    return [name for name, member in members.items() if isinstance(member, types.MemberDescriptorType)]


_get_base: Callable[[Any], Any] = functools.lru_cache(maxsize=1024)(_find_base)
_get_kind: Callable[[Any], Any] = functools.lru_cache(maxsize=1024)(_find_kind)
_get_slots: Callable[[Any], list[str]] = functools.lru_cache(maxsize=1024)(_list_slots)


def _open(value: Any) -> Any:
    """Return a value's items: itself, or what a class made of a container holds, or the attributes of an object."""
    if type(value) in _CONTAINERS:
        return value
    base = _get_base(type(value))
    if base in _MAPPINGS:
        return dict(base.items(value))
    if base in _SEQUENCES or base is tuple:
        return [*base.__iter__(value)]
    if not (slots := _get_slots(type(value))):
        return vars(value)
    return getattr(value, "__dict__", {}) | {name: getattr(value, name) for name in slots if hasattr(value, name)}


def _count(value: Any, depth: int) -> int:
    """Count the items of a container and of those inside it, to one more than are compared."""
    if type(value) in _ARRAYS:
        return 0
    n_items = len(_open(value))
    for _, item in _list_inner(value, depth):
        if n_items > _MAX_ITEMS:
            break
        n_items += _count(item, depth - 1)
    return n_items


def _list_inner(value: Any, depth: int) -> list[tuple[Any, Any]]:
    """List what is opened inside a container or an object, with keys or places, unless it is too deep or too large."""
    kind, value = _get_kind(type(value)), _open(value)
    if depth == 1 or len(value) > _MAX_ITEMS or kind not in _NESTING:
        return []
    if not any(map(_get_base, {*map(type, value.values() if kind in _MAPPINGS else value)})):  # most hold none
        return []
    items = value.items() if kind in _MAPPINGS else enumerate(value)
    return [(key, item) for key, item in items if _is_opened(item, depth - 1)]


def copy_contents(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """Copy the items of a container or a plain object, with those inside it, but not what else it holds."""
    kind = _get_kind(type(value))
    if kind is torch.Tensor:
        return value.detach().clone()
    copied = copy.copy(value) if type(value) is kind else kind(_open(value), value)
    if kind in _CONTAINERS:
        for key, item in _list_inner(value, depth):
            copied[key] = copy_contents(item, depth - 1)
    return copied


def holds(value: Any, contents: Any, depth: int = _MAX_DEPTH) -> bool:
    """Return whether a container, an object or an array holds just what a copy of it holds."""
    kind = _get_kind(type(value))
    if kind is not type(contents):
        return False
    if kind in _ARRAYS:
        if value.dtype != contents.dtype or value.shape != contents.shape:
            return False
        if kind is torch.Tensor:
            return bool(((value == contents) | ((value != value) & (contents != contents))).all())  # NaN is NaN
        if value.dtype.hasobject:
            return all(map(is_same, contents.flat, value.flat))
        return bool(value.tobytes() == contents.tobytes())
    if kind not in _CONTAINERS or len(value := _open(value)) != len(contents):
        return False
    if kind in _MAPPINGS:
        return all(key in contents and _is_equal(contents[key], item, depth) for key, item in value.items())
    if kind in _SEQUENCES:
        if all(map(operator.is_, value, contents)):  # the usual case, at C's speed
            return True
        return all(_is_equal(before, item, depth) for before, item in zip(contents, value, strict=True))
    return bool(value == contents)


def _is_equal(before: Any, item: Any, depth: int) -> bool:
    return is_same(before, item) or (depth > 1 and _is_opened(item, depth - 1) and holds(item, before, depth - 1))


def write_contents(value: Any, contents: Any, depth: int = _MAX_DEPTH) -> bool:
    """Write contents into the object that an environment holds now, which others of its layers may hold too.

    :return: Whether that was possible.
    """
    if _get_kind(type(value)) is not type(contents):
        return False
    if type(value) in _ARRAYS:
        if value.shape != contents.shape or not (type(value) is torch.Tensor or value.flags.writeable):
            return False
        with torch.no_grad():
            value[...] = contents
        return True
    items, new = _open(value), copy.copy(contents)
    for key, item in _list_inner(contents, depth):
        held = items[key] if _has(items, key) else None
        new[key] = held if write_contents(held, item, depth - 1) else make_contents(item, depth - 1)
    return _fill(value, new) is value


def make_contents(contents: Any, depth: int = _MAX_DEPTH) -> Any:
    """Make a container or an array with some contents; of an object give the very same its contents back."""
    if type(contents) not in _CONTAINERS:
        return copy_contents(contents)
    made = copy.copy(contents)
    for key, item in _list_inner(contents, depth):
        made[key] = make_contents(item, depth - 1)
    return _fill(contents.owner, made) if type(contents) in (_Mapping, _Row) else made


def _fill(value: Any, items: Any) -> Any:
    """Let a container or an object hold some items and nothing else; make a tuple of others anew, and return it."""
    base = _get_base(type(value))
    if base is tuple:
        is_same = len(value) == len(items) and all(map(operator.is_, value, items))
        return value if is_same else tuple.__new__(type(value), items)
    if base in _CONTAINERS:
        base.clear(value)
        (base.update if hasattr(base, "update") else base.extend)(value, items)
        return value
    slots = _get_slots(type(value))
    if hasattr(value, "__dict__"):
        vars(value).clear()
        vars(value).update({name: item for name, item in items.items() if name not in slots})
    for name in slots:
        if name in items:
            object.__setattr__(value, name, items[name])
        elif hasattr(value, name):
            object.__delattr__(value, name)
    return value


def _has(items: Any, key: Any) -> bool:
    return key < len(items) if isinstance(items, list | deque) else key in items
