"""Notice that methods of other packages' classes were replaced, as a program does to watch or to mend them."""

import operator
from collections.abc import Iterable
from types import FunctionType
from typing import Any


class KnownMethods:
    """The methods of some classes as they are when this is made: where ours are imported, or first need the classes.

    :param kinds: The classes; methods that they inherit are theirs, too.
    :param names: Names of the methods that count; None: all but Python's own.
    """

    def __init__(self, kinds: Iterable[type], names: Iterable[str] | None = None) -> None:
        self._methods = {kind: _list_methods(kind, names) for kind in kinds}
        self._known = {kind: _read(kind, methods) for kind, methods in self._methods.items()}

    def are_replaced(self, kinds: Iterable[type] | None = None) -> bool:
        """Tell, within microseconds, whether methods are others now; classes that are not known have none that count.

        :param kinds: The classes in question; None: all.
        """
        return not all(
            all(map(operator.is_, _read(kind, self._methods[kind]), self._known[kind]))
            for kind in (self._methods if kinds is None else kinds)
            if kind in self._methods
        )


def _list_methods(kind: type, names: Iterable[str] | None) -> list[str]:
    names = (name for name in dir(kind) if name[:2] != "__") if names is None else names
    return [name for name in names if isinstance(getattr(kind, name, None), FunctionType | property)]


def _read(kind: type, names: Iterable[str]) -> list[Any]:
    return [_unwrap(getattr(kind, name, None)) for name in names]


def _unwrap(method: Any) -> Any:
    """Look inside what torch wraps around an optimizer's ``step`` when it makes the first one."""
    return method.__wrapped__ if getattr(method, "hooked", False) else method
