"""Look through all that an environment and its wrappers hold: to put their random generators back, and to compare."""

import logging
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from grpo_core.environments.nested import Env

GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
# How the state of each process-wide generator is read and set. Not torch's: models in other threads borrow it.
_PROCESS_WIDE: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "np.random": (np.random.get_state, np.random.set_state),
    "random": (random.getstate, random.setstate),
}
# Values looked at, nearest first, for generators and to compare: a trial looks often, and environments may hold tables.
_MAX_SEARCHED, _MAX_COMPARED = 2_000, 10_000
#: Larger arrays are not read.
MAX_ARRAY_BYTES = 2**22
_MAX_NAMED = 3
_OF_MODULE = " of the module"
# Modules whose globals are not an environment's own.
_LIBRARIES = frozenset({"gymnasium", "stable_baselines3", "sb3_contrib", "numpy", "builtins", "typing", "abc"})
SCALARS = (type(None), bool, int, float, complex, str, bytes, np.generic)
_OPAQUE = (*GENERATORS, EnvSpec, logging.Logger)
_CODE = (type, types.ModuleType, types.BuiltinFunctionType, property, staticmethod, classmethod)


def get_generator_state(generator: Any) -> Any:
    """Return a copy of the state of one of ``GENERATORS``."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    """Put the state of one of ``GENERATORS`` back."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def is_restorable_generator(value: Any) -> bool:
    """Return whether a value is a generator with a state: the operating system's has none."""
    return isinstance(value, GENERATORS) and not isinstance(value, random.SystemRandom)


class Noise:
    """All random generators that the steps of an environment may draw from, the process-wide ones included.

    Those of the layers' attributes, of what these hold, of spaces, of classes and of the modules that define them are
    found anew at each capture and restore, by where they are: a reset may create new ones.

    :param envs: The layers of the environment.
    :param known: Those of them whose attributes are known; they are not searched further.
    :param process_wide: Whether to include the process-wide ones, which others may be using at the same time.
    :param shared: Whether to include those of classes and modules, which other environments may be using.
    """

    def __init__(
        self, envs: Sequence[Env], known: Sequence[Env] = (), *, process_wide: bool = True, shared: bool = True
    ) -> None:
        self._envs, self._known, self._shared = envs, known, shared
        self._process_wide = _PROCESS_WIDE if process_wide else {}

    def capture(self) -> dict[str, Any]:
        """Copy the states of all generators, by where they are."""
        states = {path: get_generator_state(generator) for path, generator in self._find().items()}
        return {**states, **{name: get() for name, (get, _) in self._process_wide.items()}}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Put the states back, as far as the generators still exist."""
        for path, generator in self._find().items():
            if path in states:
                try:
                    set_generator_state(generator, states[path])
                except (TypeError, ValueError):
                    continue  # another kind of generator is there now
        for name, (_, put) in self._process_wide.items():
            put(states[name])

    def reseed(self, rng: np.random.Generator, only: Collection[str] | None = None) -> None:
        """Begin new sequences in all of them; each depends on one draw from ``rng`` and on where it is.

        So it makes no difference to the others, nor to ``rng``, whether a generator has been made yet.

        :param only: Where the others are not.
        """
        base = int(rng.integers(2**63))
        for path, generator in self._find().items():
            if only is not None and path not in only:
                continue
            seed = int(np.random.SeedSequence([base, crc32(path.encode())]).generate_state(1)[0])
            if isinstance(generator, np.random.Generator):
                generator.bit_generator.state = type(generator.bit_generator)(seed).state
            else:
                generator.seed(seed)
        if self._process_wide:
            of_numpy, of_python = map(int, np.random.SeedSequence(base).generate_state(2))
            np.random.seed(of_numpy)  # environments draw from it, though they should not
            random.seed(of_python)

    def _find(self) -> dict[str, Any]:
        found = walk(self._envs, self._known, _MAX_SEARCHED, self._shared)
        return {path: value for path, value in found if is_restorable_generator(value)}


def describe_contents(envs: Sequence[Any], known: Sequence[Env] = (), *, shared: bool = True) -> dict[str, Any]:
    """Return the numbers, texts and arrays that layers hold, in a form to compare, by where they are.

    :param envs: The layers, or any other objects.
    :param known: Layers whose attributes are known and left out.
    :param shared: Whether what classes and modules hold is included.
    """
    return {path: _describe(value) for path, value in walk(envs, known, _MAX_COMPARED, shared)}


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


def walk(envs: Sequence[Any], known: Sequence[Env], max_values: int, shared: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield all that can be reached from layers, nearest first, with the way there.

    An object that is reached again is yielded as a text that says where it was.

    :param envs: The layers.
    :param known: Layers of whose attributes only spaces and generators are looked at.
    :param max_values: After how many values it ends.
    :param shared: Whether to begin with what classes and modules hold, too.
    """
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
        for step, child in list_children(value) if n_left else ():
            if n_left == 0:
                break
            if is_known and not isinstance(child, (*GENERATORS, gym.Space)):
                continue
            place = f"{path}{step}"
            n_left -= 1
            if isinstance(child, SCALARS):
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
    elif isinstance(value, np.ndarray):
        yield from ((f"[{i}]", child) for i, child in enumerate(value.flat if value.dtype.hasobject else ()))
    elif not isinstance(value, _OPAQUE):
        if isinstance(value, gym.Env | gym.Space):
            _create_generator(value)
        yield from _list_attributes(value)


def _list_attributes(value: Any) -> Iterator[tuple[str, Any]]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from ((f".{name}", child) for name, child in list(attributes.items()))
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if isinstance(getattr(base, name, None), types.MemberDescriptorType):
                yield f".{name}", getattr(value, name, None)


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
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value)) if all(isinstance(item, SCALARS) for item in value) else len(value)
    return len(value) if isinstance(value, list | tuple | dict | deque) else type(value).__name__
