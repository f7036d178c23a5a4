"""Keep what code outside of an environment sets on it, which a restore would undo for good.

A curriculum or an opponent is set on an environment between two steps: by a callback, through ``env_method`` or
``set_attr``, or between two calls of ``learn``. Where attributes are restored by copies, the next branch would begin
without it, and so would all that follow.
"""

import operator
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, TypeVar

from stable_baselines3.common.monitor import Monitor

from grpo_core.environments.nested import Env, list_nested_envs
from grpo_core.restoring.attribute_copies import (
    copy_contents,
    holds,
    is_compared,
    is_plain,
    is_same,
    is_small,
    make_contents,
    write_contents,
)
from grpo_core.restoring.native.mujoco_state import MujocoModel, is_model
from grpo_core.restoring.simulator import Simulator, SimulatorState
from grpo_core.restoring.state import (
    BOOKKEEPING,
    DRAWING_NAMES,
    access_own_methods,
    is_known,
    is_known_engine,
    list_constants,
)

# Number of steps in which to learn what an environment changes by itself: a counter or a position shows in the first,
# rare events show later.
_N_LEARNED_STEPS = 512
# In the place of an attribute that was deleted.
_DELETED = object()

# An attribute: the place of its layer, and its name.
_Place = tuple[int, str]
_T = TypeVar("_T")


class OutsideChanges:
    """Keeps what is set from outside on environments whose attributes are restored by copies.

    It notices when an attribute is assigned or deleted, when a small container, array or plain object is written to,
    and when a MuJoCo model is edited, but not what happens inside other objects. Environments all of whose layers are
    known, or that capture and restore themselves, are left alone.

    :param envs: The environments.
    """

    def __init__(self, envs: Sequence[Env]) -> None:
        copied = [_list_copied(env) for env in envs]
        self._layers = [layer for layers in copied for layer in layers]
        self._constants = [list_constants(layer) for layer in self._layers]
        # The environment of each layer, by its place.
        self._env_indices = [i for i, layers in enumerate(copied) for _ in layers]
        self._monitors = [find_monitor(env) for env in envs]
        self._calls: list[_Calls | None] = []
        self._models = [
            MujocoModel(value) for layer in self._layers for value in vars(layer).values() if is_model(value)
        ]
        self._held: list[dict[str, Any]] = []
        self._contents: dict[_Place, Any] = {}
        self._edited: list[Any] = []
        self._n_looks = 0
        # Attributes that the environments change by themselves.
        self._state: set[_Place] = set()
        self._kept: dict[_Place, Any] = {}
        self._written: dict[_Place, Any] = {}
        self._kept_models: dict[int, Any] = {}

    def has_changes(self) -> bool:
        """Return whether anything is kept."""
        return bool(self._kept or self._written or self._kept_models)

    def watch(self, call: Callable[[], _T]) -> _T:
        """Call other code, and keep what it sets; everything before came from our own steps and resets."""
        self.look()
        try:  # no context manager: it would take a microsecond or two more at every step
            return call()
        finally:
            self.keep()

    def notice(self, visit: Callable[[], _T]) -> _T:
        """Let other code reset or step the environments: that changes their state, and sets nothing on them."""
        self.keep()
        try:
            return visit()
        finally:
            self.look()

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Keep what was set until now, and nothing of what is done inside: our own steps and resets."""
        self.keep()
        try:
            yield
        finally:
            self.look()

    def look(self) -> None:
        """Remember what the environments hold: whatever is another at the next ``keep`` was set from outside."""
        if 0 < self._n_looks <= _N_LEARNED_STEPS:
            # An object may be another only because a restore has copied it.
            changed = {place for place, value in self._list_changed().items() if is_compared(value)}
            self._state |= (changed | self._list_written()) - {*self._kept, *self._written}
        self._n_looks += 1
        self._remember()

    def keep(self) -> None:
        """Keep what was set since the latest ``look``, but not what an environment changes when it is reset or stepped.

        A ``Monitor`` tells whether that has happened. Without one, it is taken for granted where most of what
        the environments change by themselves has changed.
        """
        if self._n_looks == 0:
            return self.look()  # what was set before begins with them
        changed, written = self._list_changed(), self._list_written()
        of_state = self._state & (changed.keys() | written)
        is_guessed = 2 * len(of_state) > len(self._state)
        was_called = [
            is_guessed if before is None else now != before
            for now, before in zip(self._list_calls(), self._calls, strict=True)
        ]
        of_state = {(i, name) for i, name in of_state if was_called[self._env_indices[i]]}
        changed, written = {place: changed[place] for place in changed.keys() - of_state}, written - of_state
        for place, value in changed.items():
            self._kept[place] = value
            self._written.pop(place, None)
        for i, name in written:
            self._written[i, name] = copy_contents(vars(self._layers[i])[name])
        for i, (model, before) in enumerate(zip(self._models, self._edited, strict=False)):
            edited = model.capture()
            if edited[0] is not before[0] or edited[1] != before[1]:  # copies of what is equal are the same
                self._kept_models[i] = edited
        if changed or written or any(was_called):
            self._remember()  # or the next look would take it for what the environments did

    def put(self) -> None:
        """Set on the environments, as they are now, what is kept."""
        for (i, name), value in self._kept.items():
            if value is _DELETED:
                vars(self._layers[i]).pop(name, None)
            else:
                vars(self._layers[i])[name] = value
        self._put_written({*self._written})
        for i, edited in self._kept_models.items():
            self._models[i].restore(edited)

    def put_again(self) -> None:
        """Write what was written by others alone, after a restore, into what they go on writing to."""
        if self._written:
            self._put_written(self._written.keys() - self._state)

    def _put_written(self, places: Set[_Place]) -> None:
        for i, name in places:
            attributes, contents = vars(self._layers[i]), self._written[i, name]
            if not write_contents(attributes.get(name), contents):
                attributes[name] = make_contents(contents)

    def renew(self, simulator: Simulator, state: SimulatorState) -> SimulatorState:
        """Set what is kept in a state that was captured before, and leave the environment there.

        :param simulator: The simulator of the environment that it is a state of.
        """
        simulator.restore(state)
        self.put()
        simulator.originals.look_again()
        return simulator.capture()

    def clear(self) -> None:
        """Forget what is kept: all that is played from now on begins with it."""
        self._kept, self._written, self._kept_models = {}, {}, {}
        self._remember()

    def _remember(self) -> None:
        self._held = [dict(vars(layer)) for layer in self._layers]
        self._contents = {
            (i, name): copy_contents(value)
            for i, held in enumerate(self._held)
            for name, value in held.items()
            if name not in self._constants[i] and is_small(value)
        }
        self._edited = [model.capture() for model in self._models]
        self._calls = self._list_calls()

    def _list_calls(self) -> list["_Calls | None"]:
        return [None if monitor is None else _Calls(monitor) for monitor in self._monitors]

    def _list_changed(self) -> dict[_Place, Any]:
        """List the attributes that hold something else than before, and what."""
        changed: dict[_Place, Any] = {}
        for i, (layer, held) in enumerate(zip(self._layers, self._held, strict=False)):  # none before the first look
            now = vars(layer)
            if len(now) == len(held) and all(map(operator.is_, now.values(), held.values())):
                continue
            for name in held.keys() | now.keys():
                value, before = now.get(name, _DELETED), held.get(name, _DELETED)
                if value is before or name in self._constants[i] or (name in DRAWING_NAMES and not is_plain(value)):
                    continue
                if not (is_same(before, value) or holds(value, self._contents.get((i, name), _DELETED))):
                    changed[i, name] = value
        return changed

    def _list_written(self) -> set[_Place]:
        """List the attributes that hold the same object as before, which holds something else."""
        return {
            (i, name)
            for (i, name), contents in self._contents.items()
            if (value := vars(self._layers[i]).get(name, _DELETED)) is self._held[i][name]
            and not holds(value, contents)
        }


class _Calls:
    """A ``Monitor``'s record of the resets and steps so far.

    :param monitor: The environment's monitor.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._n_steps = monitor.total_steps
        self._rewards = monitor.rewards  # of the episode under way: every reset begins another list

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Calls) and self._n_steps == other._n_steps and self._rewards is other._rewards

    __hash__ = None  # type: ignore[assignment]


def find_monitor(env: Env) -> Monitor | None:
    """Return the outermost ``Monitor`` among an environment's wrappers; None without one."""
    return next((layer for layer in list_nested_envs(env) if isinstance(layer, Monitor)), None)


def _list_copied(env: Env) -> list[Env]:
    """List the layers that are restored by copies, with those inside them, whose parameters are then, too."""
    layers: list[Env] = []
    for layer in list_nested_envs(env):
        if access_own_methods(layer) is not None:
            break  # it answers for all that it wraps
        layers.append(layer)
    for i, layer in enumerate(layers):
        if not (is_known(layer) or is_known_engine(layer)):
            return [inner for inner in layers[i:] if type(inner) not in BOOKKEEPING]
    return []
