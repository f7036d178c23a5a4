"""Notice when somebody else resets or steps the environments of a ``DummyVecEnv``: an evaluation, or a callback."""

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.restoring.outside import OutsideChanges

_MOVES = ("reset", "step", "step_wait")


class _Noticed:
    """Takes the place of a method of a ``DummyVecEnv``; no collector calls those.

    :param base: The ``DummyVecEnv``.
    :param name: The method's name.
    :param watchers: Who is to know of a call. A base may be that of several models.
    """

    def __init__(self, base: DummyVecEnv, name: str, watchers: "WeakSet[OutsideChanges]") -> None:
        self._base, self._name, self._method = base, name, getattr(base, name)
        self.watchers = watchers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call: Callable[[], Any] = partial(self._method, *args, **kwargs)
        name = (args or [kwargs.get("method_name")])[0] if self._name == "env_method" else self._name
        if name in _MOVES:
            for watcher in [*self.watchers]:
                call = partial(watcher.notice, call, is_to_step=name != "reset")
        return call()

    def __reduce__(self) -> Any:
        return getattr, (self._base, self._name)  # copied or pickled, it is the method again


def notice_visits(base: DummyVecEnv, changes: OutsideChanges) -> None:
    """Let what is set on environments from outside be told apart from what resets and steps of others change."""
    methods = vars(base)
    if not isinstance(methods.get("reset"), _Noticed):
        watchers: WeakSet[OutsideChanges] = WeakSet()
        methods |= {name: _Noticed(base, name, watchers) for name in ("reset", "step_wait", "env_method")}
    methods["reset"].watchers.add(changes)
