"""The very objects of an environment, into which a restore writes what a captured state holds.

A user may have passed one in, or hold on to it: settings, a list of results, a curriculum. Were a copy put in its
place, the user would go on with an object that the environment no longer uses. Objects that the environment makes
later, in resets and steps, are replaced by copies: too many come and go to keep them.
"""

import operator
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from grpo_core.environments.nested import Env
from grpo_core.restoring.copying.copier import Copier, is_constant_of_env, list_slots
from grpo_core.restoring.native.parts import Memo
from grpo_core.restoring.object_graph import list_children, walk

# Objects looked at, nearest first: environments may hold tables of them.
_MAX_LOOKED_AT = 10_000
# Their items are found by hashes, which may depend on what the others hold.
_HASHED = (dict, defaultdict, Counter, OrderedDict, set)
_MISSING = object()
# Writes into an object what its copy holds.
_Write = Callable[[Any, Any, Memo], None]


class Originals:
    """The objects that were there when a state was first captured, or when they were last looked for.

    :param copier: Copies what they hold.
    """

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._held: dict[str, Any] | None = None
        self._released: dict[int, Any] = {}
        # The entries that ``note`` goes through: ids, objects, their types, and functions that write into them.
        self._entries: list[tuple[int, Any, type, _Write]] = []
        self._writers: dict[type, _Write] = {
            list: self._write_list,
            deque: self._write_list,
            dict: self._write_dict,
            Counter: self._write_dict,
            OrderedDict: self._write_dict,
            defaultdict: self._write_dict,
            set: self._write_set,
            bytearray: self._write_bytes,
            np.ndarray: self._write_array,
            types.SimpleNamespace: self._write_attributes,
        }

    @property
    def by_path(self) -> dict[str, Any]:
        """The objects, by where they were found."""
        return self._held or {}

    def look_again(self) -> None:
        """Look for the objects anew with the next capture: others have been set."""
        self._held = None

    def release(self, values: Sequence[Any]) -> None:
        """Let copies replace some objects for good, and every object that leads to them."""
        self._released |= {id(value): value for value in values}  # kept, so that no other object gets its id
        self.look_again()

    def note(self, envs: Sequence[Env], memo: Memo) -> "Noted":
        """Return which objects have been copied, with their copies.

        :param envs: The layers.
        :param memo: Copies of all captured objects.
        """
        if self._held is None:
            self._held = self._find(envs, memo)
            values = sorted(self._held.values(), key=lambda value: type(value) in _HASHED)
            self._entries = [(id(value), value, type(value), self._get_writer(value)) for value in values]
        return Noted(
            [
                (copied, value, write)
                for i, value, kind, write in self._entries
                if type(copied := memo.get(i)) is kind  # others are left in place
            ]
        )

    def write(self, noted: "Noted | None", memo: Memo) -> None:
        """Write into the objects what their copies hold; whatever refers to a copy refers to its original then."""
        if noted is None:
            return
        written = []
        for entry in noted.entries:
            copied, value, _ = entry
            if type(value) is type(copied) and (type(value) is not np.ndarray or _can_hold(value, copied)):
                memo[id(copied)] = value
                written.append(entry)
        for copied, value, write in written:
            write(value, copied, memo)

    def _get_writer(self, value: Any) -> _Write:
        return self._writers.get(type(value), self._write_attributes)

    def _find(self, envs: Sequence[Env], memo: Memo) -> dict[str, Any]:
        walked = list(walk(envs, (), _MAX_LOOKED_AT, shared=False))
        released = self._find_released([value for _, value in walked]) if self._released else ()
        found: dict[str, Any] = {}
        for path, value in walked:
            if id(value) not in released and self._is_kept(value, memo):
                found[path] = value
                if isinstance(value, np.ndarray) and value.base is not None and self._is_kept(value.base, memo):
                    found[f"{path}.base"] = value.base
        return found

    def _find_released(self, walked: Sequence[Any]) -> set[int]:
        """Return the ids of the objects that were released, and of those that lead to them."""
        holders = defaultdict[int, list[int]](list)
        for value in walked:
            for _, child in list_children(value):
                holders[id(child)].append(id(value))
        released, waiting = set[int](), list(self._released)
        while waiting:
            i = waiting.pop()
            if i not in released:
                released.add(i)
                waiting += holders[i]
        return released

    def _is_kept(self, value: Any, memo: Memo) -> bool:
        if type(memo.get(id(value))) is not type(value):
            return False  # not copied, or left in place anyway
        if type(value) is np.ndarray:
            # Only those views whose copies show a part of a copy.
            shows_copy = value.base is None or memo[id(value)].base is memo.get(id(value.base), value)
            return bool(value.flags.writeable and shows_copy)
        return type(value) in self._writers or self._copier.copies_attributes_of(value)

    def _write_list(self, value: Any, copied: Any, memo: Memo) -> None:
        items = [self._copier.copy(item, memo) for item in copied]
        if type(value) is list:
            value[:] = items  # as quick as a comparison
        elif not _are_same(value, items):
            value.clear()
            value.extend(items)

    def _write_dict(self, value: Any, copied: Any, memo: Memo) -> None:
        pairs = {self._copier.copy(key, memo): self._copier.copy(item, memo) for key, item in copied.items()}
        if not (_are_same(value, pairs) and _are_same(value.values(), pairs.values())):
            value.clear()
            value.update(pairs)
        if type(value) is defaultdict:
            value.default_factory = self._copier.copy(copied.default_factory, memo)

    def _write_set(self, value: Any, copied: Any, memo: Memo) -> None:
        # Always, and one by one: the order of a set depends on how it was filled.
        items = [self._copier.copy(item, memo) for item in copied]
        value.clear()
        value.update(items)

    def _write_bytes(self, value: Any, copied: Any, memo: Memo) -> None:
        value[:] = copied

    def _write_array(self, value: Any, copied: Any, memo: Memo) -> None:
        self._copier.write_array(value, copied, memo)

    def _write_attributes(self, value: Any, copied: Any, memo: Memo) -> None:
        attributes, is_env = getattr(value, "__dict__", {}), isinstance(value, gym.Env)
        copies = {
            name: item if is_env and is_constant_of_env(name, item) else self._copier.copy(item, memo)
            for name, item in getattr(copied, "__dict__", {}).items()
        }
        if list(attributes) != list(copies):
            attributes.clear()
        attributes.update(copies)
        for name in () if is_env else list_slots(type(value)):
            item = getattr(copied, name, _MISSING)
            if item is not _MISSING:
                object.__setattr__(value, name, self._copier.copy(item, memo))
            elif hasattr(value, name):
                object.__delattr__(value, name)


class Noted:
    """Which objects the copies in a captured state are of. It does not travel: elsewhere there are other objects.

    :param entries: Copies, each with its original and what writes into that; those first whose items no hash finds.
    """

    def __init__(self, entries: Sequence[tuple[Any, Any, _Write]]) -> None:
        self.entries = entries

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def _can_hold(value: Any, copied: Any) -> bool:
    """Return whether an array can still take what its copy holds."""
    return bool(value.shape == copied.shape and value.dtype == copied.dtype and value.flags.writeable)


def _are_same(held: Any, items: Any) -> bool:
    """Return whether two containers hold the same objects in the same order: then nothing has to be written."""
    return len(held) == len(items) and all(map(operator.is_, held, items))
