"""Leave an environment that is tried out, and all that is around it, as it was found."""

import copy
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.monitor import Monitor

from grpo_core.environments.nested import Env, list_nested_envs
from grpo_core.restoring.generators import Noise
from grpo_core.restoring.object_graph import GENERATORS, MAX_ARRAY_BYTES, SCALARS, walk
from grpo_core.restoring.proving.report import LayerAccess
from grpo_core.restoring.state import MONITOR_RECORDS, is_known

# Objects that are looked at, nearest first: environments may hold tables of them.
_MAX_HELD = 10_000
# Of arrays, all together: what is larger is left to the captured state, which shares arrays that no step writes to.
_MAX_HELD_BYTES = 2**26
# What has nothing in it that could change, but for generators, which are put back apart.
_HOLDS_NOTHING = (*GENERATORS, *SCALARS, tuple, frozenset, range, types.FunctionType, types.MethodType, np.dtype)
# Attributes of wrappers by which they write files.
_LOUD: dict[type, tuple[str, ...]] = {Monitor: ("results_writer",), RecordVideo: ("episode_trigger", "step_trigger")}


class Restorable(Protocol):
    """An environment whose state can be captured and restored."""

    env: Env
    is_cheap: bool

    @property
    def accesses(self) -> Sequence[LayerAccess]:
        """How each layer is restored."""
        ...

    def capture(self) -> Any:
        """Copy the state."""
        ...

    def list_hidden_generators(self) -> list[Any]:
        """Return the random generators that are copied with the state, but that no search finds."""
        ...

    def restore(self, state: Any, *, in_place: bool = True) -> None:
        """Put a copy of a captured state back.

        :param in_place: Whether into the objects that were there at first.
        """
        ...


@contextmanager
def preserve(subject: Restorable, noise: Noise) -> Iterator[None]:
    """Leave the environment, and everything outside of it, as they were found."""
    noise_before = noise.capture()
    envs = list_nested_envs(subject.env)
    held = _Held(value for _, value in walk(envs, (), _MAX_HELD, shared=False))
    # What does not count as state is for people to read: how many episodes a Monitor has seen.
    uncounted = _Held(_list_uncounted(envs), is_shallow=True)
    loud = [_remember(env, _LOUD[kind]) for env in envs for kind in _LOUD if isinstance(env, kind)]
    loud += [_remember(env, MONITOR_RECORDS) for env in envs if isinstance(env, Monitor)]
    before: list[Any] = []
    with suppress(Exception):  # foreign code; some environments have no state before their first reset
        before.append(subject.capture())
    is_restored = False
    for env in envs:
        _silence(env)
    try:
        yield
        if before:
            with suppress(Exception):  # foreign code; what cannot be restored is reset below
                subject.restore(before[0])
                is_restored = True
    finally:
        # Objects that are not looked into, such as an engine, have only been restored in their copies.
        (uncounted if is_restored and not held.is_whole else held).put_back()
        if not is_restored:
            for env in envs:
                _silence(env)
            with suppress(Exception):  # foreign code; the trial has its own error to tell
                subject.env.reset()
        for put_back in loud:
            put_back()
        noise.restore(noise_before)


def _list_uncounted(envs: Sequence[Env]) -> Iterator[Any]:
    """Yield the known layers and what they hold, and of other monitors only their records."""
    for env in envs:
        if is_known(env):
            yield from (env, *vars(env).values())
        elif isinstance(env, Monitor):
            yield from (vars(env).get(name) for name in MONITOR_RECORDS)


def _silence(env: Env) -> None:
    """Keep a trial out of a Monitor's file and off the videos."""
    for kind, names in _LOUD.items():
        if isinstance(env, kind):
            env.__dict__.update(dict.fromkeys(names))


def _remember(env: Env, names: Sequence[str]) -> Callable[[], None]:
    """Return a function that gives a layer some of its attributes back."""
    before = {name: env.__dict__[name] for name in names if name in env.__dict__}
    return lambda: env.__dict__.update(before)


class _Held:
    """Layers and what they hold: the very same objects, each with what is in it now.

    Restoring puts copies in their places, while others go on holding the objects themselves: the user, another
    environment, a function of the environment's own, a view of an array.

    :param values: These objects.
    :param is_shallow: Whether to leave out the attributes of all but the layers.
    """

    def __init__(self, values: Iterable[Any], is_shallow: bool = False) -> None:
        self._contents: list[tuple[Any, Any]] = []
        self._n_bytes_left = _MAX_HELD_BYTES
        #: Whether all was looked into.
        self.is_whole = True
        for value in values:
            with suppress(Exception):  # foreign code; some objects refuse to be looked at
                self._add(value, is_shallow and not isinstance(value, gym.Env))

    def _add(self, value: Any, is_shallow: bool) -> None:
        if isinstance(value, np.ndarray):
            if not value.flags.writeable:
                return
            if value.nbytes > min(MAX_ARRAY_BYTES, self._n_bytes_left):
                self.is_whole = False
                return
            self._n_bytes_left -= value.nbytes
            self._contents.append((value, value.copy()))
        elif type(value) in (dict, list, set, deque, bytearray):
            self._contents.append((value, copy.copy(value)))
        elif isinstance(attributes := getattr(value, "__dict__", None), dict):
            if not is_shallow:
                self._contents.append((attributes, dict(attributes)))
        elif not isinstance(value, _HOLDS_NOTHING):
            self.is_whole = False

    def put_back(self) -> None:
        """Give each of them what it held."""
        for value, before in self._contents:
            with suppress(Exception):  # as above
                _fill(value, before)


def _fill(value: Any, before: Any) -> None:
    if isinstance(value, np.ndarray):
        value[...] = before
    elif isinstance(value, list | bytearray):
        value[:] = before
    else:
        value.clear()
        (value.extend if isinstance(value, deque) else value.update)(before)
