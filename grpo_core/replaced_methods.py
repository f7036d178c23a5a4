"""Notice that methods of other packages' classes were replaced, as a program does to watch or to mend them."""

import functools
import operator
from collections.abc import Callable, Iterable
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


def has_replaced_methods(owner: Any) -> bool:
    """Tell, within microseconds, whether an object or its class, which is a package's, was given other methods."""
    kind = type(owner)
    return not vars(owner).keys().isdisjoint(_get_own(kind)) or is_patched(kind)


def is_patched(kind: type) -> bool:
    """Return whether a class has methods that were written in none of the packages it comes from, whenever given."""
    own = _get_own(kind)
    methods = [getattr(kind, name, None) for name in own]
    return not all(map(operator.is_, methods, own.values())) and any(_is_foreign(kind, method) for method in methods)


def _find_own(kind: type) -> dict[str, Any]:
    """Return the methods of a class as they were first seen; None for those that were foreign then."""
    methods = {name: getattr(kind, name) for name in _list_methods(kind, None)}
    return {name: None if _is_foreign(kind, method) else method for name, method in methods.items()}


_get_own: Callable[[type], dict[str, Any]] = functools.lru_cache(maxsize=1024)(_find_own)


def _is_foreign(kind: type, method: Any) -> bool:
    function = method.fget if isinstance(method, property) else method
    module: str = getattr(function, "__globals__", {}).get("__name__", "")  # not __module__, which wraps() copies
    package = module.partition(".")[0]
    return all(base.__module__.partition(".")[0] != package for base in kind.__mro__)


def _list_methods(kind: type, names: Iterable[str] | None) -> list[str]:
    names = (name for name in dir(kind) if name[:2] != "__") if names is None else names
    return [name for name in names if isinstance(getattr(kind, name, None), FunctionType | property)]


def _read(kind: type, names: Iterable[str]) -> list[Any]:
    return [_unwrap(getattr(kind, name, None)) for name in names]


def _unwrap(method: Any) -> Any:
    """Look inside what torch wraps around an optimizer's ``step`` when it makes the first one."""
    return method.__wrapped__ if getattr(method, "hooked", False) else method
