"""Leave an environment that is tried out, and all that is around it, as it was found."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.monitor import Monitor

from grpo_core.environments.nested import Env, list_nested_envs
from grpo_core.restoring.contents import Noise
from grpo_core.restoring.report import LayerAccess
from grpo_core.restoring.state import is_known

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

    def restore(self, state: Any) -> None:
        """Put a copy of a captured state back."""
        ...


@contextmanager
def preserve(subject: Restorable, noise: Noise) -> Iterator[None]:
    """Leave the environment, and everything outside of it, as they were found."""
    noise_before = noise.capture()
    envs = list_nested_envs(subject.env)
    # What a known layer does not count as state is for people to read: how many episodes a Monitor has seen.
    known = [_remember(env) for env in envs if is_known(env)]
    loud = [_remember(env, _LOUD[kind]) for env in envs for kind in _LOUD if isinstance(env, kind)]
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
        for put_back in known:
            put_back()
        if not is_restored:
            with suppress(Exception):  # foreign code; the trial has its own error to tell
                subject.env.reset()
        for put_back in loud:
            put_back()
        noise.restore(noise_before)


def _silence(env: Env) -> None:
    """Keep a trial out of a Monitor's file and off the videos."""
    for kind, names in _LOUD.items():
        if isinstance(env, kind):
            env.__dict__.update(dict.fromkeys(names))


def _remember(env: Env, names: Sequence[str] | None = None) -> Callable[[], None]:
    """Return a function that gives a layer back its attributes, the very same objects, with what they hold now."""
    attributes = env.__dict__
    before = {name: attributes[name] for name in (attributes if names is None else names)}
    held = [(value, value.copy()) for value in before.values() if isinstance(value, list | dict | np.ndarray)]

    def put_back() -> None:
        if names is None:
            attributes.clear()
        attributes.update(before)
        for value, copied in held:
            if isinstance(value, dict):
                value.clear()
                value.update(copied)
            elif isinstance(value, list) or (value.ndim and value.flags.writeable):
                value[:] = copied

    return put_back
