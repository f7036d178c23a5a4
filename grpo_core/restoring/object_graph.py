"""Look through all that an environment and its wrappers hold, to find something in it or to compare it."""

import functools
import logging
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from grpo_core.environments.nested import Env

#: Classes of random generators, which ``walk`` leaves alone; ``generators`` says what is in them.
GENERATORS = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
# Values looked at, nearest first, to compare: a trial looks often, and environments may hold tables.
_MAX_COMPARED = 10_000
#: Larger arrays are not read.
MAX_ARRAY_BYTES = 2**22
_MAX_NAMED = 3
_OF_MODULE = " of the module"
# Modules whose globals are not an environment's own.
_LIBRARIES = frozenset({"gymnasium", "stable_baselines3", "sb3_contrib", "numpy", "builtins", "typing", "abc"})
SCALARS = (type(None), bool, int, float, complex, str, bytes, np.generic)
_TYPES_OF_SCALARS = frozenset(SCALARS)
_CONTAINERS = (dict, list, tuple, deque)
# What ``list_children`` finds elsewhere than in their attributes.
_HOLD_MORE = (gym.Env, gym.Space, functools.partial, types.FunctionType, types.MethodType, np.ndarray, type)
_OPAQUE = (*GENERATORS, EnvSpec, logging.Logger)
_CODE = (type, types.ModuleType, types.BuiltinFunctionType, property, staticmethod, classmethod)


def describe_contents(envs: Sequence[Any], known: Sequence[Env] = (), *, shared: bool = True) -> dict[str, Any]:
    """Return the numbers, texts and arrays that layers hold, in a form to compare, by where they are.

    :param envs: The layers, or any other objects.
    :param known: Layers whose attributes are known and left out.
    :param shared: Whether what classes and modules hold is included.
    """
    return {path: _describe(value) for path, value in walk(envs, known, _MAX_COMPARED, shared, code=True)}


def list_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Name what differs between two descriptions of contents: up to three attributes.

    :param before: See ``describe_contents``.
    :param after: The same, of the same layers.
    """
    paths = [path for path, value in before.items() if path not in after or after[path] != value]
    paths += [path for path in after if path not in before]
    named: dict[str, str] = {}
    for path in paths:
        # One place for each attribute of a layer.
        named.setdefault(".".join(path.split(".")[:2]).partition("[")[0], path)
    return list(named.values())[:_MAX_NAMED]


def walk(
    envs: Sequence[Any],
    known: Sequence[Env],
    max_values: int,
    shared: bool = True,
    *,
    scalars: bool = True,
    code: bool = False,
) -> Iterator[tuple[str, Any]]:
    """Yield all that can be reached from layers, nearest first, with the way there.

    An object that is reached again is yielded as a text that says where it was.

    :param envs: The layers.
    :param known: Layers of whose attributes only spaces and generators are looked at.
    :param max_values: After how many values it ends.
    :param shared: Whether to begin with what classes and modules hold, too.
    :param scalars: Whether numbers and texts are yielded, and counted.
    :param code: Whether classes, modules and built-in functions are yielded; they are not looked into.
    """
    look_into = list_children if scalars else _list_objects
    leaves = (*SCALARS, *_CODE) if code else SCALARS
    seen: dict[int, str] = {}
    names = [type(env).__name__ for env in envs]
    queue: deque[tuple[str, Any]] = deque(
        (name if names.count(name) == 1 else f"{name}[{i}]", env)
        for i, (name, env) in enumerate(zip(names, envs))  # noqa: B905
    )
    for path, env in list(queue):
        seen[id(env)] = path
        queue.extend(_list_globals(path, env) if shared else ())
    known_ids = {id(env) for env in known}
    n_left = max_values
    kept: list[Any] = []  # so that no id is used twice
    while queue:
        path, value = queue.popleft()
        yield path, value
        if path.endswith(_OF_MODULE) and not isinstance(value, list | dict | deque):
            continue  # what a module holds leads to everything there is
        is_known = id(value) in known_ids
        for step, child in look_into(value) if n_left else ():
            if n_left == 0:
                break
            if is_known and not isinstance(child, (*GENERATORS, gym.Space)):
                continue
            place = f"{path}{step}"
            n_left -= 1
            if isinstance(child, leaves):
                yield place, child
            elif isinstance(child, _CODE):
                continue
            elif id(child) in seen:
                yield place, f"the same as {seen[id(child)]}"
            else:
                seen[id(child)] = place
                kept.append(child)
                queue.append((place, child))


def list_children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds directly, with the step to it."""
    if isinstance(value, dict):
        yield from (
            (f"[{key!r}]" if isinstance(key, SCALARS) else "[...]", child) for key, child in list(value.items())
        )
    elif isinstance(value, list | tuple | deque):
        yield from ((f"[{i}]", child) for i, child in enumerate(list(value)))
    elif isinstance(value, types.FunctionType):
        yield from _list_closure(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, np.ndarray):
        yield from ((f"[{i}]", child) for i, child in enumerate(value.flat if value.dtype.hasobject else ()))
    elif not isinstance(value, _OPAQUE):
        if isinstance(value, (gym.Env, gym.Space)):  # a union would be made anew each time
            _create_generator(value)
        yield from _list_attributes(value)


def _list_objects(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds directly, without numbers and texts; what holds only these is passed over at once."""
    held = value if isinstance(value, _CONTAINERS) else getattr(value, "__dict__", None)
    if isinstance(held, _CONTAINERS) and not (isinstance(value, _HOLD_MORE) or _list_slots(type(value))):
        if {*map(type, held.values() if isinstance(held, dict) else held)} <= _TYPES_OF_SCALARS:
            return
    yield from ((step, child) for step, child in list_children(value) if not isinstance(child, SCALARS))


def _list_attributes(value: Any) -> Iterator[tuple[str, Any]]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from ((f".{name}", child) for name, child in list(attributes.items()))
    for name in _list_slots(type(value)):
        yield f".{name}", getattr(value, name, None)


def _find_slots(kind: type) -> list[str]:
    names = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if isinstance(getattr(base, name, None), types.MemberDescriptorType):
                names.append(name)
    return names


_list_slots: Callable[[Any], list[str]] = functools.lru_cache(maxsize=1024)(_find_slots)


def _list_closure(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"'s {name}", cell.cell_contents
        except ValueError:
            continue  # not filled yet


def _create_generator(owner: Any) -> None:
    """Let Gymnasium create the generator that it creates on first access."""
    try:
        _ = owner.np_random
    except Exception:  # foreign code, if a class has a generator of its own
        return


def _list_globals(path: str, env: Env) -> Iterator[tuple[str, Any]]:
    """Yield what the classes of a layer and the modules that define them hold, apart from code."""
    modules = set()
    for base in type(env).__mro__:
        if base.__module__.partition(".")[0] in _LIBRARIES:
            continue
        modules.add(base.__module__)
        for name, value in list(base.__dict__.items()):
            if not _is_code(name, value):
                yield f"{path}.{name} of the class", value
    for module in sorted(modules):
        for name, value in list(getattr(sys.modules.get(module), "__dict__", {}).items()):
            if not _is_code(name, value) and not isinstance(value, gym.Env):
                yield f"{module}.{name}{_OF_MODULE}", value


def _is_code(name: str, value: Any) -> bool:
    return name.startswith("__") or isinstance(value, _CODE) or callable(value) or hasattr(type(value), "__get__")


def _describe(value: Any) -> Any:
    if isinstance(value, float | complex | np.inexact):
        return repr(value)  # NaN equals NaN then
    if isinstance(value, SCALARS):
        return value
    if isinstance(value, np.ndarray):
        is_read = value.nbytes <= MAX_ARRAY_BYTES and not value.dtype.hasobject
        return value.shape, str(value.dtype), hash(value.tobytes()) if is_read else None
    if isinstance(value, types.FunctionType | types.MethodType):
        return value.__qualname__, hash(value)
    if isinstance(value, types.BuiltinFunctionType):
        return value.__module__, value.__qualname__
    if isinstance(value, _CODE):
        return id(value)
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value)) if all(isinstance(item, SCALARS) for item in value) else len(value)
    return len(value) if isinstance(value, list | tuple | dict | deque) else type(value).__name__
