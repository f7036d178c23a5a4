"""Copies of large arrays and data frames, which seldom change: prices, maps, histories that grow by a row.

An array is compared with its last copy, which costs a fraction of another copy, and states share the copy while both
are equal. Nothing is taken to be constant, so nothing has to be guarded.
"""

import datetime
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Below this a copy is as quick as a comparison.
_MIN_BYTES = 1 << 16
# Kept for comparison, besides the newest pair.
_MAX_KEPT_BYTES = 1 << 26
# They cannot be changed, so a copy may hold the same objects.
_IMMUTABLE = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(np.number, np.bool_, np.str_, np.bytes_, np.datetime64, np.timedelta64),
    *(datetime.date, datetime.time, datetime.timedelta),
)
_FIRST_LAZY_PANDAS = 3


class _Pair(NamedTuple):
    """An array of the environment, and the copy of it that states hold."""

    live: Any
    copy: Any


class Tables:
    """Copies large arrays, and remembers the copies."""

    def __init__(self) -> None:
        self._by_live: OrderedDict[int, _Pair] = OrderedDict()
        self._by_copy: dict[int, _Pair] = {}

    def capture(self, array: Any) -> Any:
        """Return a copy that states may share; None if the array is small, or refers to objects that can change."""
        if array.nbytes < _MIN_BYTES or not array.flags.forc:
            return None
        pair = self._by_live.get(id(array))
        changed = None if pair is None else _find_changes(pair)
        if pair is not None and changed is not None and not changed.any():
            self._by_live.move_to_end(id(array))
            return pair.copy
        if array.dtype.hasobject and not _is_immutable(array, changed):
            return None
        copied = array.copy(order="K")
        self._keep(_Pair(array, copied))
        return copied

    def restore(self, copied: Any) -> Any:
        """Return an array for the environment with the values of a copy: the one that it had, if it still has them."""
        if copied.nbytes < _MIN_BYTES or not copied.flags.forc:
            return None
        pair = self._by_copy.get(id(copied))
        changed = None if pair is None else _find_changes(pair)
        if pair is not None and changed is not None and not changed.any():
            return pair.live
        if copied.dtype.hasobject and pair is None and not _is_immutable(copied, None):
            return None
        live = copied.copy(order="K")
        self._keep(_Pair(live, copied))
        return live

    def write(self, live: Any, copied: Any) -> bool:
        """Write the values of a copy into an array of the environment, unless it has them.

        :return: False if nothing was done: the array is small, or refers to objects that can change.
        """
        if copied.nbytes < _MIN_BYTES or live.base is not None or not copied.flags.forc:
            return False
        if copied.dtype.hasobject and id(copied) not in self._by_copy and not _is_immutable(copied, None):
            return False
        pair = _Pair(live, copied)
        changed = _find_changes(pair)
        if changed is None or changed.any():
            live[...] = copied
        self._keep(pair)
        return True

    def _keep(self, pair: _Pair) -> None:
        for before in (self._by_live.get(id(pair.live)), self._by_copy.get(id(pair.copy))):
            if before is not None:
                self._drop(before)
        self._by_live[id(pair.live)] = self._by_copy[id(pair.copy)] = pair
        n_bytes = sum(kept.live.nbytes for kept in self._by_live.values())
        while n_bytes > _MAX_KEPT_BYTES and len(self._by_live) > 1:
            oldest = next(iter(self._by_live.values()))
            n_bytes -= oldest.live.nbytes
            self._drop(oldest)

    def _drop(self, pair: _Pair) -> None:
        self._by_live.pop(id(pair.live), None)
        self._by_copy.pop(id(pair.copy), None)


def is_frame(value: Any) -> bool:
    """Return whether a value is a data frame or series of a pandas that copies only what is written to."""
    kind = type(value)
    if not kind.__module__.startswith("pandas.core.") or kind.__name__ not in ("DataFrame", "Series"):
        return False
    return int(sys.modules["pandas"].__version__.partition(".")[0]) >= _FIRST_LAZY_PANDAS


def _find_changes(pair: _Pair) -> npt.NDArray[np.bool_] | None:
    """Compare an array with its copy; None if their shapes or types differ by now."""
    live, copied = pair
    if live.shape != copied.shape or live.dtype != copied.dtype or live.strides != copied.strides:
        return None
    changes: npt.NDArray[np.bool_] = _read_words(live) != _read_words(copied)
    return changes


def _read_words(array: Any) -> Any:
    """Return an array's memory as integers, in which NaN equals itself; for objects, as their addresses."""
    if array.dtype == object:
        return np.asarray(_Addresses(array))
    flat = array.ravel(order="K").view(np.uint8)
    return flat.view(np.uint64) if flat.size % 8 == 0 else flat


class _Addresses:
    """The addresses of the objects in an array, in NumPy's protocol for memory of others."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.__array_interface__ = {
            "data": array.__array_interface__["data"],
            "shape": (array.size,),
            "typestr": np.dtype(np.intp).str,
            "version": 3,
        }


def _is_immutable(array: Any, changed: npt.NDArray[np.bool_] | None) -> bool:
    """Return whether the objects in an array cannot be changed.

    :param changed: Where to look; None everywhere.
    """
    if array.dtype != object:
        return False  # structures with objects in them
    items = array.ravel(order="K")
    return all(isinstance(item, _IMMUTABLE) for item in (items if changed is None else items[changed]))
