"""What stands in a captured state for what only refers to an object: a view of an array, or a weak reference.

Whether the object is copied at all, for its own sake, is known once everything is.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Copies a part of a captured state for the environment, or returns the copy that was made already.
Copy = Callable[[Any], Any]


@dataclass(eq=False)
class ArrayView:
    """Stands for an array that shows a small part of another one.

    :param values: A copy.
    :param offset: Bytes from the beginning of the other array.
    :param base: The copy of the other array; None if that is not copied.
    """

    values: Any
    offset: int
    strides: tuple[int, ...]
    base: Any = None

    def lead_to(self, copied: Any) -> None:
        """Take the copy of the other array."""
        if type(copied) is np.ndarray:
            self.base = copied

    def make(self, copy: Copy) -> Any:
        """Return such an array for the environment."""
        if self.base is None:
            return self.values.copy(order="K")
        return np.ndarray(self.values.shape, self.values.dtype, copy(self.base), self.offset, self.strides)


class _Gone:
    """Nobody keeps one."""


@dataclass(eq=False)
class WeakReference:
    """Stands for a weak reference.

    :param original: The reference itself; None once it is led to a copy of its object, and if that is gone.
    :param is_proxy: Whether it is a proxy, and not to be called.
    :param target: The copy of its object; None if that is not copied.
    """

    original: Any
    is_proxy: bool = False
    target: Any = None

    def lead_to(self, copied: Any) -> None:
        """Take the copy of the object."""
        if copied is not None:
            self.original, self.target = None, copied

    def make(self, copy: Copy) -> Any:
        """Return such a reference for the environment."""
        if self.target is None:
            return weakref.ref(_Gone()) if self.original is None else self.original
        target = copy(self.target)
        return weakref.proxy(target) if self.is_proxy else weakref.ref(target)


@dataclass(eq=False)
class WeakContainer:
    """Stands for a container of the ``weakref`` module.

    :param kind: The name of its class.
    :param items: Of each entry what it holds weakly, as a ``WeakReference``, and what else there is: a key or a value.
    """

    kind: str
    items: list[tuple[Any, ...]]

    def make(self, copy: Copy) -> Any:
        """Return such a container for the environment."""
        made = getattr(weakref, self.kind)()
        for weak, *strong in self.items:
            if (target := copy(weak)()) is None:
                continue
            if self.kind == "WeakSet":
                made.add(target)
            elif self.kind == "WeakKeyDictionary":
                made[target] = copy(strong[0])
            else:
                made[copy(strong[0])] = target
        return made


def list_entries(container: Any) -> list[tuple[Any, ...]]:
    """List the entries of a container of the ``weakref`` module, of each first what it holds weakly."""
    if isinstance(container, weakref.WeakSet):
        return [(target,) for target in container]
    if isinstance(container, weakref.WeakKeyDictionary):
        return list(container.items())
    return [(target, key) for key, target in container.items()]


def find_target(reference: Any) -> Any:
    """Return the object of a weak reference or a proxy; None if it has gone, or if its end is to be told to someone.

    Copies come to their ends often, and nobody is to be told of those.
    """
    if type(reference) is weakref.ref:
        return None if reference.__callback__ is not None else reference()
    try:
        target = reference.__reduce_ex__.__self__  # a proxy hands out its object's methods
        return target if weakref.proxy(target) is reference else None  # one with a callback is another
    except (ReferenceError, AttributeError, TypeError):  # gone, or a method of foreign code
        return None


def measure_offset(view: Any, base: Any) -> int:
    """Return how many bytes from the beginning of an array a view of it begins."""
    offset: int = view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return offset
