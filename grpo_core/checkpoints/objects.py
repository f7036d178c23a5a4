"""Describe in JSON and plain arrays what simulators hold, and rebuild it, without a pickle.

A description makes no object of a class that the environment's own packages do not define, and runs no code: an object
is made empty, and its attributes are put back. What such a description cannot say exactly is refused.
"""

import base64
import enum
import inspect
import math
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from zlib import crc32

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.banks.single_env import Observed
from grpo_core.groups.group import AnchorState
from grpo_core.restoring.copying.copier import CopyError, describe_kind, is_plain, list_slots
from grpo_core.restoring.copying.layers import ELSEWHERE, KeptAttribute, LayerMethod, LayerReference
from grpo_core.restoring.copying.originals import Noted
from grpo_core.restoring.copying.references import ArrayView, WeakContainer, WeakReference
from grpo_core.restoring.generators import get_generator_state, is_restorable_generator, set_generator_state
from grpo_core.restoring.object_graph import SCALARS, list_children
from grpo_core.saving.space_json import space_from_json, space_to_json

# JSON values, one per object; an object that others hold is written once and referred to by its number.
Node = Any
# Classes of this library that states are made of.
_OWN_CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(AnchorState, Observed, LayerReference, LayerMethod, deque, OrderedDict),
        *(ArrayView, WeakReference, WeakContainer),
    )
}
_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
_CONTAINERS = (list, tuple, set, frozenset, dict, OrderedDict, deque)
_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
# A larger state would make a checkpoint slow, and its file large.
MAX_BYTES = 2**26
_MAX_OBJECTS = 1_000_000
# Python writes no longer integers in decimal digits unless it is told to.
_MAX_INT_BITS = 14_000
_MISSING = object()


class UnknownObjectError(ValueError):
    """Something cannot be described exactly, or a description does not fit what is here."""


class Writer:
    """Describes objects.

    :param packages: Packages whose classes and functions may be named.
    :param fixtures: What is there in every process, by where it is: states refer to it, and do not hold it.
    """

    def __init__(self, packages: Collection[str], fixtures: Mapping[str, Any]) -> None:
        self._packages = packages
        self._places = {id(value): place for place, value in fixtures.items()}
        #: The objects that ``describe`` refers to, and the arrays among them.
        self.objects: list[Node] = []
        self.arrays: list[npt.NDArray[Any]] = []
        # By the id of the object, which is kept so that no other one gets its id.
        self._numbers: dict[int, tuple[int, Any]] = {}
        self._n_bytes = 0

    def describe(self, value: Any) -> Node:
        """Describe a value.

        :raises UnknownObjectError: If it, or something in it, is of a kind that is not described.
        """
        if value is None or type(value) in (bool, str):
            return value
        if type(value) is Noted:  # of another process's objects, when it is read
            return None
        if type(value) is int and value.bit_length() <= _MAX_INT_BITS:
            return value
        if type(value) is float and math.isfinite(value):
            return value
        if id(value) in self._numbers:
            return {"object": self._numbers[id(value)][0]}
        number = len(self.objects)
        if number >= _MAX_OBJECTS:
            raise UnknownObjectError(f"a state of more than {_MAX_OBJECTS:,} objects is not described")
        self._numbers[id(value)] = number, value
        self.objects.append(None)
        self.objects[number] = self._describe(value)
        return {"object": number}

    def _describe(self, value: Any) -> Node:
        kind = type(value)
        if kind in _CONTAINERS:
            return self._describe_container(value)
        if kind in (float, complex):
            return ["number", repr(value)]
        if kind is bytes:
            return ["bytes", base64.b64encode(value).decode()]
        if isinstance(value, np.ndarray | np.generic):
            return self._describe_array(value)
        if is_restorable_generator(value):
            return self._describe_generator(value)
        if isinstance(value, enum.Flag):  # a combination has no member of its own
            return ["flag", self._name(kind), value.value]
        if isinstance(value, enum.Enum):
            return ["member", self._name(kind), value.name]
        if isinstance(value, gym.Space):
            return self._describe_space(value)
        if isinstance(value, type | types.FunctionType):
            return self._find_place(value) or ["named", self._name(value)]
        return self._describe_instance(value)

    def _describe_container(self, value: Any) -> Node:
        name = type(value).__name__
        if isinstance(value, dict):
            return [name, [[self.describe(key), self.describe(item)] for key, item in value.items()]]
        if isinstance(value, set | frozenset) and not _has_order_of_its_items(value):
            raise UnknownObjectError("a set that has shrunk is not described: made anew, it would have another order")
        items = [self.describe(item) for item in value]
        return [name, items, value.maxlen] if isinstance(value, deque) else [name, items]

    def _describe_array(self, value: Any) -> Node:
        if value.dtype.hasobject or not (type(value) is np.ndarray or isinstance(value, np.generic)):
            raise UnknownObjectError(f"an array of {value.dtype} ({type(value).__name__}) is not described")
        if isinstance(value, np.generic):
            return ["scalar", self._add(np.asarray(value))]
        base = value.base
        if base is None and value.flags.forc:
            return ["array", self._add(value)]
        if type(base) is np.ndarray and base.base is None and base.flags.c_contiguous and not base.dtype.hasobject:
            offset = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            return ["view", self.describe(base), offset, list(value.shape), list(value.strides), value.dtype.str]
        raise UnknownObjectError("an array that shows another one's memory is not described")

    def _add(self, array: npt.NDArray[Any]) -> int:
        self._n_bytes += array.nbytes
        if self._n_bytes > MAX_BYTES:
            raise UnknownObjectError(f"states of more than {MAX_BYTES // 2**20} MiB are not described")
        self.arrays.append(array)
        return len(self.arrays) - 1

    def _describe_generator(self, value: Any) -> Node:
        if not is_described_generator(value):
            kind = type(getattr(value, "bit_generator", value)).__name__
            raise UnknownObjectError(f"a random generator of type {kind} is not described")
        if isinstance(value, np.random.Generator):
            return ["drawing", self.describe(value.bit_generator)]  # others may draw from that, too
        if isinstance(value, np.random.BitGenerator):
            return ["bits", type(value).__name__, self.describe(get_generator_state(value))]
        shared = [self.describe(value._bit_generator)] if isinstance(value, np.random.RandomState) else []
        return [type(value).__name__, self.describe(get_generator_state(value)), *shared]

    def _describe_kept(self, kept: KeptAttribute) -> Node:
        """Describe what a restore puts back as it is: by where it is, and anew where it can be made anew."""
        value = kept.value
        if value is None or value is ELSEWHERE:
            return ["kept", kept.height, kept.name, value is None, None, None, None]
        place, node = self._places.get(id(value)), None
        if place is None or is_described_generator(value):
            try:
                node = self.describe(value)
            except UnknownObjectError as error:
                raise UnknownObjectError(f"{kept.name} was another one in an earlier state, and {error}") from error
        return ["kept", kept.height, kept.name, False, place, _mark(value), node]

    def _describe_instance(self, value: Any) -> Node:
        kind = type(value)
        if kind is KeptAttribute:
            return self._describe_kept(value)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return ["fields", self._name(kind), [self.describe(item) for item in value]]
        if not _is_plain(value):
            if (place := self._find_place(value)) is None:
                raise UnknownObjectError(f"an object of {describe_kind(value)} is more than its attributes")
            return place
        name = self._name(kind)
        slots = [slot for slot in list_slots(kind) if getattr(value, slot, _MISSING) is not _MISSING]
        attributes = {**getattr(value, "__dict__", {}), **{slot: getattr(value, slot) for slot in slots}}
        return ["instance", name, [[attribute, self.describe(item)] for attribute, item in attributes.items()]]

    def _describe_space(self, value: gym.Space[Any]) -> Node:
        if (place := self._find_place(value)) is not None:
            return place
        if type(value) not in _SPACES:
            raise UnknownObjectError(f"a copy of a space of type {type(value).__name__} is not described")
        return ["space", space_to_json(value), self.describe(value._np_random)]

    def _find_place(self, value: Any) -> Node | None:
        """Say where a fixture is; None for other objects."""
        place = self._places.get(id(value))
        return None if place is None else ["fixture", place]

    def _name(self, value: type | types.FunctionType) -> list[str]:
        """Return the module and the name of a class or function."""
        if _OWN_CLASSES.get(value.__name__) is value:
            return ["", value.__name__]
        name = [value.__module__, value.__qualname__]
        if find_named(name, self._packages) is not value:
            raise UnknownObjectError(
                f"{'.'.join(map(str, name))} is not of the environment's own packages, or cannot be found there"
            )
        return name


class Reader:
    """Rebuilds the objects that a ``Writer`` described.

    :param objects: The descriptions.
    :param arrays: The arrays that they refer to.
    :param packages: Packages whose classes and functions may be named.
    :param fixtures: What is there in every process, by where it is.
    """

    def __init__(
        self,
        objects: Sequence[Node],
        arrays: Sequence[npt.NDArray[Any]],
        packages: Collection[str],
        fixtures: Mapping[str, Any],
    ) -> None:
        self._descriptions, self._arrays, self._packages, self._fixtures = objects, arrays, packages, fixtures
        #: The attributes that were made without what they held, which is not here.
        self.lost: list[str] = []
        self._made: dict[int, Any] = {}
        self._makers: dict[str, Callable[..., Any]] = {
            "number": lambda _, text: complex(text) if "j" in text else float(text),
            "bytes": lambda _, text: base64.b64decode(text),
            "list": self._make_list,
            "tuple": lambda _, items: tuple(map(self.make, items)),
            "set": lambda _, items: set(map(self.make, items)),
            "frozenset": lambda _, items: frozenset(map(self.make, items)),
            "dict": lambda number, pairs: self._make_dict(number, {}, pairs),
            "OrderedDict": lambda number, pairs: self._make_dict(number, OrderedDict(), pairs),
            "deque": lambda _, items, max_length: deque(map(self.make, items), max_length),
            "array": lambda _, index: self._arrays[index].copy(order="K"),
            "scalar": lambda _, index: self._arrays[index][()],
            "view": self._make_view,
            "drawing": lambda _, bits: np.random.Generator(self.make(bits)),
            "bits": lambda _, kind, state: self._fill(_BIT_GENERATORS[kind](0), state),
            "Random": lambda _, state: self._fill(random.Random(0), state),
            "RandomState": lambda _, state, bits: self._fill(np.random.RandomState(self.make(bits)), state),
            "member": lambda _, name, member: self._find(name, enum.EnumMeta)[member],
            "flag": lambda _, name, flags: self._find(name, enum.EnumMeta)(flags),
            "named": lambda _, name: self._find(name, type | types.FunctionType),
            "fields": self._make_fields,
            "fixture": lambda _, place: fixtures[place],
            "space": self._make_space,
            "kept": self._make_kept,
            "instance": self._make_instance,
        }

    def make(self, node: Node) -> Any:
        """Make what a node describes.

        :raises UnknownObjectError: If it describes nothing that can be made here.
        """
        if not isinstance(node, dict):
            return node
        number = node["object"]
        if number not in self._made:
            kind, *arguments = self._descriptions[number]
            made = self._makers[kind](number, *arguments)
            self._made[number] = made
        return self._made[number]

    def _make_list(self, number: int, items: Sequence[Node]) -> list[Any]:
        made = self._made[number] = list[Any]()  # first: something in it may refer to it
        made.extend(map(self.make, items))
        return made

    def _make_dict(self, number: int, made: dict[Any, Any], pairs: Sequence[tuple[Node, Node]]) -> dict[Any, Any]:
        self._made[number] = made
        made.update((self.make(key), self.make(item)) for key, item in pairs)
        return made

    def _make_view(
        self, _: int, base: Node, offset: int, shape: Sequence[int], strides: Sequence[int], dtype: str
    ) -> npt.NDArray[Any]:
        return np.ndarray(tuple(shape), np.dtype(dtype), self.make(base), offset, tuple(strides))

    def _make_space(self, _: int, described: Mapping[str, Any], generator: Node) -> gym.Space[Any]:
        space = space_from_json(described)
        space._np_random = self.make(generator)
        return space

    def _fill(self, generator: Any, state: Node) -> Any:
        set_generator_state(generator, self.make(state))
        return generator

    def _make_kept(
        self, _: int, height: int, name: str, is_tool: bool, place: str | None, mark: str | None, node: Node
    ) -> KeptAttribute:
        if mark is None:
            return KeptAttribute(height, name, None if is_tool else ELSEWHERE)
        # What is here in its place is preferred: functions and others may hold it, too.
        held = self._fixtures.get(place, ELSEWHERE) if place is not None else ELSEWHERE
        if held is not ELSEWHERE and _mark(held) == mark:
            return KeptAttribute(height, name, held)
        if node is None:
            self.lost.append(name)
            return KeptAttribute(height, name)
        return KeptAttribute(height, name, self.make(node))

    def _make_instance(self, number: int, name: Sequence[str], attributes: Sequence[tuple[str, Node]]) -> Any:
        kind = self._find(name, type)
        if kind.__new__ is not object.__new__ or hasattr(kind, "__del__"):
            raise UnknownObjectError(f"an object of {'.'.join(name)} is more than its attributes")
        made = self._made[number] = object.__new__(kind)
        for attribute, node in attributes:
            slot = inspect.getattr_static(kind, attribute, None)
            if isinstance(slot, types.MemberDescriptorType):
                slot.__set__(made, self.make(node))
            else:  # past properties and ``__class__``, which would run code or make it another object
                vars(made)[attribute] = self.make(node)
        return made

    def _make_fields(self, _: int, name: Sequence[str], items: Sequence[Node]) -> Any:
        kind = self._find(name, type)
        if not (issubclass(kind, tuple) and hasattr(kind, "_fields")):
            raise UnknownObjectError(f"{'.'.join(name)} is no named tuple")
        if len(items) != len(kind._fields):
            raise UnknownObjectError(f"{'.'.join(name)} has {len(kind._fields)} fields, not {len(items)}")
        return tuple.__new__(kind, map(self.make, items))

    def _find(self, name: Sequence[str], kinds: Any) -> Any:
        found = _OWN_CLASSES.get(name[1]) if name[0] == "" else find_named(name, self._packages)
        if found is None or not isinstance(found, kinds):
            raise UnknownObjectError(f"{'.'.join(name)} is not something that a saved state may contain")
        return found


def is_described_generator(value: Any) -> bool:
    """Tell whether a random generator can be made anew from its description."""
    if isinstance(value, np.random.Generator):
        return type(value) is np.random.Generator and is_described_generator(value.bit_generator)
    if isinstance(value, np.random.RandomState):
        return type(value) is np.random.RandomState and is_described_generator(value._bit_generator)
    return type(value) in (random.Random, *_BIT_GENERATORS.values())


def _mark(value: Any) -> str:
    """Return by what an object that is not described is known again in another process."""
    kind = describe_kind(value)
    if isinstance(value, np.random.Generator):
        return f"{kind} of {describe_kind(value.bit_generator)}"
    if isinstance(value, gym.Space):
        said = str(space_to_json(value)) if type(value) in _SPACES else repr(value)
        return kind if " at 0x" in said else f"{kind} {said}"
    if isinstance(value, types.FunctionType):
        code, cells = value.__code__, [held for _, held in list_children(value)]
        parts = [code.co_code, code.co_names, *map(_show, (*code.co_consts, *(value.__defaults__ or ()), *cells))]
        return f"{kind} {value.__qualname__} {crc32(repr(parts).encode())}"
    return f"{kind} {getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, SCALARS) else describe_kind(value)


def _has_order_of_its_items(value: set[Any] | frozenset[Any]) -> bool:
    """Tell whether a set that is made of the same items has the same order, and keeps it when more are added."""
    anew = type(value)(list(value))
    return sys.getsizeof(anew) == sys.getsizeof(value) and list(anew) == list(value)


def _is_plain(value: Any) -> bool:
    """Tell whether an object is its attributes and nothing else."""
    try:
        return is_plain(value) and not hasattr(type(value), "__del__")
    except CopyError:
        return False


def find_named(name: Sequence[str], packages: Collection[str]) -> Any:
    """Return a class or function by its module and name; None if no imported module of the packages has it."""
    module_name, path = name
    if not isinstance(module_name, str) or module_name.partition(".")[0] not in packages:
        return None
    found: Any = sys.modules.get(module_name)
    for part in path.split("."):
        found = getattr(found, part, None)
    # A module may have imported what another package defines.
    return found if getattr(found, "__module__", None) == module_name else None


def list_packages(kinds: Mapping[Any, Any] | Collection[type]) -> set[str]:
    """List the packages that define some classes and what they inherit from, without Python's own."""
    modules = {base.__module__.partition(".")[0] for kind in kinds for base in kind.__mro__}
    return modules - set(sys.stdlib_module_names)
