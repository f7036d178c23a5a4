"""Notice attributes that grow with a training, so that each capture copies more than the one before."""

import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

# Captures after which sizes are first measured, by when episodes have been under way; then at twice as many each time.
_FIRST_MEASURED = 64
# What is warned of: this many times the first size, and at least this many items, which take some tenths of a
# millisecond.
_MIN_FACTOR, _MIN_ITEMS = 16, 10_000
# No more is counted of one attribute.
_MAX_COUNTED = 100_000
_BYTES_PER_ITEM = 8


class Growth:
    """Measures the captured states of one layer now and then, and warns once.

    :param name: Name of the layer.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._n_captures = 0
        self._first: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        self._has_warned = False

    def follow(self, state: Mapping[str, Any]) -> None:
        """Take note of a captured state, by the names of attributes."""
        self._n_captures = n = self._n_captures + 1
        if n & (n - 1) or n < _FIRST_MEASURED or self._has_warned:  # powers of two
            return
        sizes = {name: count_items(value) for name, value in state.items()}
        latest, self._latest = self._latest, sizes
        for name, size in sizes.items():
            first = self._first.setdefault(name, size)
            if first < latest.get(name, 0) < size and size >= max(_MIN_ITEMS, _MIN_FACTOR * first):
                self._warn(name)
                return

    def _warn(self, name: str) -> None:
        self._has_warned = True
        warnings.warn(
            f"{self._name}.{name} grows with the training, to more than {_MIN_FACTOR} times what it held at first. "
            "Every captured state copies all of it, so that training gets slower and slower. Empty it in reset(), keep "
            "the latest in a deque(maxlen=...), collect it in a callback from the infos of steps, or give the "
            "environment capture_state() and restore_state(state), which leave it out.",
            stacklevel=2,
        )


def count_items(value: Any) -> int:
    """Count what a value holds, in numbers or objects, those of what it holds included; up to a maximum."""
    n_items, seen, waiting = 0, set[int](), deque([value])
    while waiting and n_items < _MAX_COUNTED:
        value = waiting.popleft()
        if isinstance(value, np.ndarray | bytes | bytearray | str):
            n_items += (value.nbytes if isinstance(value, np.ndarray) else len(value)) // _BYTES_PER_ITEM
        elif (inner := _list_inner(value)) and id(value) not in seen:
            seen.add(id(value))
            n_items += len(inner)
            waiting.extend(list(inner)[: _MAX_COUNTED - n_items])
    return n_items


def _list_inner(value: Any) -> Any:
    """Return what a value holds directly, in what has a length."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    attributes = getattr(value, "__dict__", None)
    return attributes.values() if isinstance(attributes, dict) and not isinstance(value, type) else ()
