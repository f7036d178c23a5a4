"""Objects of any structure are copied whole, and what must not be copied is refused by name and left alone."""

import collections
import copy
import io
import itertools
import socket
import threading
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest

from grpo_core.restoring.copying.copier import Copier, CopyError


class Slotted:
    __slots__ = ("__weakref__", "left", "right")

    def __init__(self) -> None:
        self.left, self.right = [1], {"a": 2}


class Plain:
    def __init__(self) -> None:
        self.values: list[Any] = [1.0]
        self.me = self

    def tick(self) -> int:
        return len(self.values)


class Point(NamedTuple):
    x: list[int]
    y: int


class Counted(dict[str, int]):
    """A dictionary with an attribute."""

    def __init__(self) -> None:
        super().__init__(a=1)
        self.n = 3


class Client:
    """Registers itself, and deregisters with its end, as a connection does."""

    connected: list[int] = []  # noqa: RUF012  # one for all

    def __init__(self) -> None:
        self.number = 7
        Client.connected.append(self.number)

    def __del__(self) -> None:
        Client.connected.remove(self.number)


class CopiesItself(Client):
    def __deepcopy__(self, memo: Any) -> Any:
        return CopiesItself()


def copy_one(value: Any) -> Any:
    return Copier().copy(value, {})


@pytest.mark.parametrize(
    "value",
    [
        [1, [2.0, "three", None], (4, [5])],
        {"a": {1, 2}, (1, 2): frozenset({3})},
        collections.deque([1, 2], maxlen=3),
        collections.OrderedDict(a=[1]),
        collections.defaultdict(list, a=[1]),
        Counted(),
        np.arange(6).reshape(2, 3).T,
        Point([1], 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_copy_equals_what_the_standard_library_makes(value: Any) -> None:
    copied, expected = copy_one(value), copy.deepcopy(value)
    assert type(copied) is type(expected)
    assert repr(copied) == repr(expected)
    assert getattr(copied, "__dict__", None) == getattr(expected, "__dict__", None)


def test_nothing_that_changes_is_shared_with_a_copy() -> None:
    original: dict[str, Any] = {
        "slotted": Slotted(),
        "plain": Plain(),
        "array": np.zeros(2),
        "objects": np.array([[1], 2], object),
    }
    copied = copy_one(original)
    original["slotted"].left.append(9)
    original["plain"].values.append(9.0)
    original["array"][0] = 9
    original["objects"][0].append(9)
    assert copied["slotted"].left == [1]
    assert copied["plain"].values == [1.0]
    assert copied["array"].tolist() == [0, 0]
    assert copied["objects"].tolist() == [[1], 2]
    assert copied["plain"].me is copied["plain"]


def test_what_is_shared_inside_stays_shared() -> None:
    grid, shared = np.zeros((2, 3)), [1]
    plain = Plain()
    copied = copy_one([grid, grid[1], shared, shared, plain, plain.tick])
    copied[1][2] = 5
    assert copied[0].tolist() == [[0, 0, 0], [0, 0, 5]]
    assert copied[2] is copied[3]
    copied[4].values.append(2.0)
    assert copied[5]() == 2
    assert grid.sum() == 0
    assert plain.tick() == 1


def test_iterators_go_on_from_where_they_were() -> None:
    numbers, count = iter([1, 2, 3]), itertools.count()
    next(numbers), next(count)
    copied = copy_one([numbers, count])
    next(numbers), next(count)
    assert (next(copied[0]), next(copied[1])) == (2, 1)


def test_an_object_with_a_finaliser_is_refused_before_it_is_touched() -> None:
    plain, client = Plain(), Client()
    plain.values.append(client)
    with pytest.raises(CopyError, match=r"\['arm'\]\[0\].values\[1\] \(.*Client\) must not be copied: its __del__"):
        copy_one({"arm": [plain]})
    assert Client.connected == [7]


class Remote(gym.Env[Any, Any], Client):
    """Closes its connection with its end."""


def test_an_environment_with_a_finaliser_is_refused_before_it_is_touched() -> None:
    remote = Remote()
    connected = list(Client.connected)
    with pytest.raises(CopyError, match=r"\['game'\] \(.*Remote\) must not be copied: its __del__"):
        copy_one({"game": remote})
    assert Client.connected == connected


def test_an_object_that_says_how_it_is_copied_is_copied_so() -> None:
    original = CopiesItself()
    assert type(copy_one([original])[0]) is CopiesItself


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (threading.Lock, "lock"),
        (lambda: (n for n in range(3)), "generator"),
        (lambda: threading.Thread(), "Thread"),
        (lambda: memoryview(b""), "memoryview"),
    ],
)
def test_what_cannot_be_copied_is_named(make: Any, kind: str) -> None:
    with pytest.raises(CopyError, match=rf"\[0\] \(.*{kind}\) cannot be copied"):
        copy_one([make()])


def test_open_files_and_sockets_are_not_copied() -> None:
    with open(__file__) as file, socket.socket() as connection:
        for handle in (file, connection):
            with pytest.raises(CopyError, match="cannot be copied"):
                copy_one(handle)
    assert copy_one(io.StringIO("text")).getvalue() == "text"


def test_what_draws_is_shared_and_what_pygame_computes_with_is_copied() -> None:
    pygame = pytest.importorskip("pygame")
    surface, rect = pygame.Surface((2, 2)), pygame.Rect(0, 0, 2, 2)
    copied = copy_one([surface, rect, pygame.time.Clock()])
    assert copied[0] is surface
    assert copied[1] == rect
    assert copied[1] is not rect
