"""Objects are described in JSON and arrays, and made again, without running any code that a description names."""

import dataclasses
import enum
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from grpo_core.checkpoints.objects import Reader, UnknownObjectError, Writer
from grpo_core.restoring.copying import references
from grpo_core.restoring.copying.layers import ELSEWHERE, KeptAttribute
from grpo_core.restoring.copying.references import WeakContainer, WeakReference


class Mode(enum.Flag):
    """How to walk."""

    FAST = 1
    FAR = 2


def shrink(items: set[int]) -> set[int]:
    """Take all but five out of a set: its order is still that of the large one."""
    for item in list(items)[5:]:
        items.discard(item)
    return items


def test_what_is_kept_is_known_again_by_what_it_is() -> None:
    def make(n: int) -> Callable[[], int]:
        return lambda: n

    def travel(value: Any, held: Any) -> tuple[Any, list[str]]:
        writer = Writer({"tests"}, {"there": value})
        node = writer.describe(KeptAttribute(0, "thing", value))
        reader = Reader(json.loads(json.dumps(writer.objects)), writer.arrays, {"tests"}, {"there": held})
        return reader.make(node).value, reader.lost

    for value, same, other in (
        (make(1), make(1), make(2)),
        (spaces.Box(0, np.array([1, 2, 3])), spaces.Box(0, np.array([1, 2, 3])), spaces.Box(0, np.array([1, 1, 3]))),
        (math, math, json),
        (max, max, min),
    ):
        assert travel(value, same) == (same, [])
        assert travel(value, other) == (ELSEWHERE, ["thing"])
    rng, held = np.random.default_rng(1), np.random.default_rng(2)
    assert travel(rng, held) == (held, [])
    made, lost = travel(rng, None)
    assert (made.random(), lost) == (rng.random(), [])


@pytest.mark.parametrize(
    ("value", "is_described"),
    [
        (Mode.FAST | Mode.FAR, True),
        (10**4000, True),
        (10**5000, False),
        (set(range(300)) - set(range(5, 300)), True),
        (shrink({*range(300)}), False),
    ],
    ids=["flags", "integer", "integer that JSON cannot hold", "set", "set that has shrunk"],
)
def test_what_is_described_is_made_again(value: Any, is_described: bool) -> None:
    writer = Writer({"tests"}, {})
    if not is_described:
        with pytest.raises(UnknownObjectError):
            writer.describe([value])
        return
    node = json.loads(json.dumps([writer.describe([value]), writer.objects]))
    (made,) = Reader(node[1], writer.arrays, {"tests"}, {}).make(node[0])
    assert made == value
    assert type(made) is type(value)


def test_all_that_stands_for_references_is_described() -> None:
    kinds = [kind for kind in vars(references).values() if dataclasses.is_dataclass(kind)]
    value = [*kinds, WeakContainer("WeakSet", [(WeakReference(None, target=3),)])]
    writer = Writer({"tests"}, {})
    node = json.loads(json.dumps([writer.describe(value), writer.objects]))
    *made_kinds, made = Reader(node[1], writer.arrays, {"tests"}, {}).make(node[0])
    assert made_kinds == kinds
    ((reference,),) = made.items
    assert (made.kind, vars(reference)) == ("WeakSet", vars(WeakReference(None, target=3)))


@pytest.mark.parametrize("kind", [np.random.Generator, np.random.RandomState])
def test_generators_that_share_their_bits_share_them_again(kind: Callable[[Any], Any]) -> None:
    bits = np.random.MT19937(3)
    both = [bits, kind(bits)]
    both[1].normal()
    writer = Writer({"tests"}, {})
    node = json.loads(json.dumps([writer.describe(both), writer.objects]))
    made = Reader(node[1], writer.arrays, {"tests"}, {}).make(node[0])
    drawn = [[pair[0].random_raw(), pair[1].normal(), pair[1].random(), pair[0].random_raw()] for pair in (both, made)]
    assert drawn[0] == drawn[1]


class Trap:
    """Its setter runs code."""

    was_sprung = False

    @property
    def inner(self) -> int:
        return 0

    @inner.setter
    def inner(self, value: int) -> None:
        Trap.was_sprung = True

    @classmethod
    def _make(cls, items: Any) -> "Trap":
        Trap.was_sprung = True
        return cls()


class Finalised:
    def __del__(self) -> None:
        pass


@pytest.mark.parametrize("attribute", ["inner", "__class__"])
def test_a_description_runs_no_code_of_the_class_that_it_names(attribute: str) -> None:
    named = [__name__, "Trap"]
    objects = [["instance", named, [[attribute, {"object": 1}]]], ["named", [__name__, "Finalised"]]]
    made = Reader(objects, [], {"tests"}, {}).make({"object": 0})
    assert type(made) is Trap
    with pytest.raises(UnknownObjectError, match="no named tuple"):
        Reader([["fields", named, []]], [], {"tests"}, {}).make({"object": 0})
    assert not Trap.was_sprung
    with pytest.raises(UnknownObjectError, match="has 5 fields, not 1"):
        Reader([["fields", ["", "AnchorState"], [1]]], [], set(), {}).make({"object": 0})
