"""Capture, restore and reseed the random generators of an environment and its wrappers."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from zlib import crc32

import gymnasium as gym
import numpy as np
import torch

from grpo_core.environments.nested import Env, list_nested_envs
from grpo_core.restoring.object_graph import GENERATORS, walk
from grpo_core.restoring.state import StateAccess, is_known

# How the state of each process-wide generator is read and set. Not torch's, which models in other threads borrow:
# ``update.seeding`` adds it.
_PROCESS_WIDE: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "np.random": (np.random.get_state, np.random.set_state),
    "random": (random.getstate, random.setstate),
}
# Objects looked at, nearest first: a trial looks often, and environments may hold many.
_MAX_SEARCHED = 2_000
# Errors of putting a state back: the generator is gone, or of another kind.
_NOT_THE_SAME = (KeyError, TypeError, ValueError, RuntimeError)


def get_generator_state(generator: Any) -> Any:
    """Return a copy of the state of a generator."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.BitGenerator):
        return generator.state
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().copy()
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    """Put the state of a generator back."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = state
    elif isinstance(generator, torch.Generator):
        generator.set_state(torch.from_numpy(state))
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def is_restorable_generator(value: Any) -> bool:
    """Return whether a value is a generator with a state of its own: the operating system's has none.

    Torch's are no part of ``GENERATORS``, since ``isinstance`` takes ten times as long then.
    """
    if type(value) is torch.Generator:
        return value is not torch.default_generator  # process-wide, see above
    return isinstance(value, GENERATORS) and not isinstance(value, random.SystemRandom)


def _reseed(generator: Any, seed: int) -> None:
    """Begin a new sequence in a generator."""
    if isinstance(generator, np.random.Generator | np.random.BitGenerator):
        bits: Any = getattr(generator, "bit_generator", generator)
        bits.state = type(bits)(seed).state
    elif isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    else:
        generator.seed(seed)


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
        states = {path: get_generator_state(generator) for path, generator in self.find().items()}
        return {**states, **{name: get() for name, (get, _) in self._process_wide.items()}}

    def restore(self, states: Mapping[str, Any]) -> set[str]:
        """Put the states back, as far as the generators still exist.

        :return: Where there are generators now to which none of the states belongs.
        """
        found = self.find()
        new = set[str]()
        for path, generator in found.items():
            try:
                set_generator_state(generator, states[path])
            except _NOT_THE_SAME:
                new.add(path)
        for name, (_, put) in self._process_wide.items():
            put(states[name])
        return new

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Let the generators go on as if nothing that is done inside had put them back.

        Where there was none, a new sequence begins, which depends on a draw from the environment's ``np_random``.
        """
        states = self.capture()
        yield
        new = self.restore(states)
        rng = getattr(self._envs[-1], "np_random", None) if new else None
        if isinstance(rng, np.random.Generator):
            self.reseed(rng, new)

    def reseed(self, rng: np.random.Generator, only: Collection[str] | None = None) -> None:
        """Begin new sequences in all of them; each depends on one draw from ``rng`` and on where it is.

        So it makes no difference to the others, nor to ``rng``, whether a generator has been made yet.

        :param only: Where the others are not.
        """
        base = int(rng.integers(2**63))
        for path, generator in self.find().items():
            if only is not None and path not in only:
                continue
            seed = int(np.random.SeedSequence([base, crc32(path.encode())]).generate_state(1)[0])
            _reseed(generator, seed)
        if self._process_wide:
            of_numpy, of_python = map(int, np.random.SeedSequence(base).generate_state(2))
            np.random.seed(of_numpy)  # environments draw from it, though they should not
            random.seed(of_python)

    def find(self) -> dict[str, Any]:
        """Return the generators that are there now, by where they are, without the process-wide ones."""
        found = walk(self._envs, self._known, _MAX_SEARCHED, self._shared, scalars=False)
        return {path: value for path, value in found if is_restorable_generator(value)}


def find_noise(env: Env, *, process_wide: bool = True, shared: bool = True) -> Noise:
    """Return the random generators of an environment and its wrappers, see ``Noise``."""
    layers = list_nested_envs(env)
    known = [layer for layer in layers if is_known(layer)]
    return Noise(layers, known, process_wide=process_wide, shared=shared)


def access_generators(nested_envs: Sequence[Env]) -> StateAccess:
    """Copy the random generators among the attributes of wrappers and environment, including ``np_random``.

    Those of spaces are included, except of known layers, whose steps draw from none.

    :param nested_envs: The wrappers and the environment.
    """

    unknown = {id(env) for env in nested_envs if not is_known(env)}

    def read(env: Env) -> dict[str, Any]:
        # Gymnasium creates the generator on first access.
        _ = env.np_random
        found = {name: value for name, value in env.__dict__.items() if is_restorable_generator(value)}
        if id(env) in unknown:
            for name, value in env.__dict__.items():
                if isinstance(value, gym.Space):
                    found |= {f"{name}.{place}": space.np_random for place, space in enumerate(_list_spaces(value))}
        return found

    def capture() -> list[dict[str, Any]]:
        return [{name: get_generator_state(value) for name, value in read(env).items()} for env in nested_envs]

    def restore(state: list[dict[str, Any]]) -> None:
        for env, generator_states in zip(nested_envs, state, strict=True):
            generators = read(env)
            for name, generator_state in generator_states.items():
                with suppress(*_NOT_THE_SAME):
                    set_generator_state(generators[name], generator_state)

    return StateAccess(capture, restore)


def _list_spaces(space: gym.Space[Any]) -> Iterator[gym.Space[Any]]:
    """Yield a space and the spaces in it; each draws from a generator of its own."""
    yield space
    parts = getattr(space, "spaces", ())
    for part in parts.values() if isinstance(parts, dict) else parts:
        yield from _list_spaces(part)
