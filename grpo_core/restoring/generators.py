"""Capture, restore and reseed the random generators of an environment and its wrappers."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from grpo_core.environments.nested import Env, list_nested_envs
from grpo_core.restoring.contents import GENERATORS, walk
from grpo_core.restoring.state import StateAccess, is_known

# How the state of each process-wide generator is read and set. Not torch's, which models in other threads borrow:
# ``update.seeding`` adds it.
_PROCESS_WIDE: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "np.random": (np.random.get_state, np.random.set_state),
    "random": (random.getstate, random.setstate),
}
# Values looked at, nearest first: a trial looks often, and environments may hold tables.
_MAX_SEARCHED = 2_000


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


def find_noise(env: Env, *, process_wide: bool = True, shared: bool = True) -> Noise:
    """Return the random generators of an environment and its wrappers, see ``Noise``."""
    layers = list_nested_envs(env)
    known = [layer for layer in layers if is_known(layer)]
    return Noise(layers, known, process_wide=process_wide, shared=shared)


def access_generators(nested_envs: Sequence[Env]) -> StateAccess:
    """Copy the random generators among the attributes of wrappers and environment, including ``np_random``.

    :param nested_envs: The wrappers and the environment.
    """

    def read(env: Env) -> dict[str, Any]:
        # Gymnasium creates the generator on first access.
        _ = env.np_random
        return env.__dict__

    def capture() -> list[dict[str, Any]]:
        return [
            {name: get_generator_state(value) for name, value in read(env).items() if is_restorable_generator(value)}
            for env in nested_envs
        ]

    def restore(state: list[dict[str, Any]]) -> None:
        for env, generator_states in zip(nested_envs, state, strict=True):
            attributes = read(env)
            for name, generator_state in generator_states.items():
                set_generator_state(attributes[name], generator_state)

    return StateAccess(capture, restore)
