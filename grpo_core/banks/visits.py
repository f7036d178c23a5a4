"""Notice when others reset or step the environments of a ``DummyVecEnv``: an evaluation, or a callback."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from weakref import WeakMethod, ref

from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.restoring.outside_changes import OutsideChanges

_MOVES = ("reset", "step", "step_wait")


# Called with the environments that are about to be moved, and whether they are to be stepped and not reset.
Leave = Callable[[Iterable[int], bool], None]


class Visits:
    """Where visits to the environments of a ``DummyVecEnv``, which several models may share, are reported."""

    def __init__(self) -> None:
        # Belongs to the player that moved the environments last.
        self._leave: WeakMethod[Leave] | None = None
        self._watchers: list[ref[OutsideChanges]] = []

    def add(self, changes: OutsideChanges) -> None:
        """Let visits be told apart from what is set on the environments from outside."""
        self._watchers = [watcher for watcher in self._watchers if watcher() is not None]
        self._watchers.append(ref(changes))

    def begin(self, leave: "WeakMethod[Leave]") -> None:
        """Learn who moves the environments now, by the method that lets others do so."""
        self._leave = leave

    def receive(self, visit: Callable[[], Any], indices: Iterable[int], is_to_step: bool) -> Any:
        """Let a visit move environments, once whoever moved them last knows of it."""

        def leave_and_visit() -> Any:
            if self._leave is not None and (leave := self._leave()) is not None:
                leave(indices, is_to_step)
            return visit()

        call: Callable[[], Any] = leave_and_visit
        for watcher in self._watchers:
            if (changes := watcher()) is not None:
                call = partial(changes.notice, call)
        return call()


class _Noticed:
    """Takes the place of a method of a ``DummyVecEnv``; no collector calls those.

    :param base: The ``DummyVecEnv``.
    :param name: The method's name.
    """

    def __init__(self, base: DummyVecEnv, name: str, visits: Visits) -> None:
        self._base, self._name, self._method = base, name, getattr(base, name)
        self.visits = visits

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = partial(self._method, *args, **kwargs)
        name = (args or [kwargs.get("method_name")])[0] if self._name == "env_method" else self._name
        if name not in _MOVES:
            return call()
        return self.visits.receive(call, self._base._get_indices(kwargs.get("indices")), name != "reset")

    def __reduce__(self) -> Any:
        return getattr, (self._base, self._name)  # copied or pickled, it is the method again


def is_noticed(method: Any) -> bool:
    """Return whether a method is just the one of a ``DummyVecEnv`` with its visits noticed."""
    return isinstance(method, _Noticed)


def notice_visits(base: DummyVecEnv) -> Visits:
    """Return who is to know of visits to a ``DummyVecEnv``, which are noticed from now on."""
    methods = vars(base)
    if not is_noticed(methods.get("reset")):
        visits = Visits()
        methods |= {name: _Noticed(base, name, visits) for name in ("reset", "step_wait", "env_method")}
    noticed: _Noticed = methods["reset"]
    return noticed.visits
