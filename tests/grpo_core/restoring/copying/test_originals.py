"""Restores write into the objects that an environment was given, whoever else holds them."""

import pickle
import types
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.banks.choose_bank import make_bank
from grpo_core.restoring.simulator import Simulator, check_branchable

N_LARGE = 1 << 14


class Slotted:
    __slots__ = ("added", "n")

    def __init__(self) -> None:
        self.n = 0


class Plain:
    def __init__(self) -> None:
        self.n = 0

    def __repr__(self) -> str:
        return repr(vars(self))


class Given(gym.Env[Any, Any]):
    """Counts its steps in an object that it was given."""

    observation_space, action_space = spaces.Box(-1e6, 1e6, (1,), np.float64), spaces.Discrete(2)

    def __init__(self, given: Any = None, count: Callable[[Any], Any] = lambda given: None) -> None:
        self.given, self.count = given, count
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.count(self.given)
        return np.array([float(self.t)]), float(action), False, self.t >= 20, {}


def count_item(given: Any) -> None:
    given["n"] += 1


def move_and_count(given: Any) -> None:
    given.move_to_end("n")
    given["n"] += 1


def set_slots(given: Any) -> None:
    given.n += 1
    given.added = [given.n]


def add_large(given: Any) -> None:
    given[7] += 1


GIVEN: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "dict": (lambda: {"n": 0, "a": [1]}, count_item),
    "counter": (lambda: Counter(n=1), count_item),
    "default": (lambda: defaultdict(int), count_item),
    "ordered": (lambda: OrderedDict(n=0, m=1), move_and_count),
    "list": (lambda: [1, [2]], lambda given: given.append(3)),
    "deque": (lambda: deque([1, 2], 2), lambda given: given.append(3)),
    "set": (lambda: {1}, lambda given: given.add(len(given) + 1)),
    "bytes": (lambda: bytearray(b"1"), lambda given: given.append(3)),
    "array": (lambda: np.zeros((2, 2)), lambda given: given.__setitem__(0, given[0] + 1)),
    "large": (lambda: np.zeros(N_LARGE), add_large),
    "objects": (lambda: np.array([1, [2]], object), lambda given: given[1].append(3)),
    "object": (Plain, lambda given: setattr(given, f"n{len(vars(given))}", 1)),
    "namespace": (lambda: types.SimpleNamespace(n=0), lambda given: setattr(given, f"n{len(vars(given))}", 1)),
    "slots": (Slotted, set_slots),
}


def show(value: Any) -> str:
    """Return all that a value holds, as text."""
    if isinstance(value, Slotted):
        return f"{value.n} {getattr(value, 'added', None)}"
    return f"{value.tolist() if isinstance(value, np.ndarray) else value}"


@pytest.mark.parametrize(("make", "count"), GIVEN.values(), ids=GIVEN)
def test_a_restore_rewinds_the_very_object(make: Callable[[], Any], count: Callable[[Any], Any]) -> None:
    given = make()
    env = Given(given, count)
    simulator = Simulator(env)
    env.reset(seed=0)
    states, shown = [], []
    for _ in range(3):
        states.append(simulator.capture())
        shown.append(show(given))
        env.step(0)
    for i in (1, 0, 2, 1):
        simulator.restore(states[i])
        assert env.given is given
        assert show(given) == shown[i]
        env.step(0)
        assert show(given) == [*shown, None][i + 1] or i == 2


def test_objects_inside_each_other_and_views_keep_their_places() -> None:
    table, part = np.zeros((2, 3)), {"a": [1]}
    given = {"table": table, "row": table[1], "part": part, "again": part, "pair": (part, 1)}
    given["me"] = given
    env = Given(given)
    simulator = Simulator(env)
    state = simulator.capture()
    part["a"].append(2)
    table[1, 2] = 5
    simulator.restore(state)
    assert given["part"] is given["again"] is given["pair"][0] is part
    assert given["me"] is given
    assert part == {"a": [1]}
    assert table.sum() == 0
    assert given["row"].base is table


def test_an_object_that_takes_turns_with_another_is_never_written_to_for_it() -> None:
    ways = {"up": [0, 1], "down": [0, -1]}
    env = Given()
    env.given = ways["up"]
    simulator = Simulator(env)
    state = simulator.capture()
    env.given = ways["down"]
    simulator.restore(state)
    assert env.given is ways["up"]
    assert ways == {"up": [0, 1], "down": [0, -1]}


def test_what_holds_the_same_already_is_not_written_to() -> None:
    given = [{"level": 1}]
    env = Given(given)
    simulator = Simulator(env)
    state = simulator.capture()
    items = iter(given[0].items())  # a dictionary that is filled anew ends this with an error
    simulator.restore(state)
    assert next(items) == ("level", 1)


def test_a_state_that_has_travelled_is_restored_by_copies() -> None:
    given = {"n": 0}
    env = Given(given, count_item)
    simulator = Simulator(env)
    env.reset(seed=0)
    state = pickle.loads(pickle.dumps(simulator.capture()))
    env.step(0)
    simulator.restore(state)
    assert (env.given, given) == ({"n": 0}, {"n": 1})
    assert env.given is not given


def test_a_given_object_that_is_replaced_for_good_is_left_as_it_was() -> None:
    given = {"n": 0}
    env = Given(given)
    simulator = Simulator(env)
    simulator.capture()
    env.given = {"n": 5}
    state = simulator.capture()
    env.given["n"] = 6
    simulator.restore(state)
    assert (env.given, given) == ({"n": 5}, {"n": 0})


@pytest.mark.parametrize(("make", "count"), GIVEN.values(), ids=GIVEN)
def test_a_trial_passes_and_leaves_all_as_it_was(make: Callable[[], Any], count: Callable[[Any], Any]) -> None:
    given = make()
    before = show(given)
    check_branchable(Given(given, count), n_steps=8)
    assert show(given) == before


def test_what_several_environments_hold_and_none_changes_stays_theirs() -> None:
    given = {"level": 1, "inner": {"x": [1]}}
    envs = [Given(given), Given(given)]
    with warnings.catch_warnings(action="error"):
        make_bank(DummyVecEnv([lambda env=env: env for env in envs]), needs_restore=True)  # type: ignore[misc]
    simulators = [Simulator(env) for env in envs]
    for simulator in simulators:
        simulator.restore(simulator.capture())
    assert envs[0].given is envs[1].given is given


def test_what_several_environments_hold_and_change_is_rewound_in_none_for_another() -> None:
    inner = {"n": 0}
    envs = [Given({"inner": inner}, lambda given: count_item(given["inner"])) for _ in range(2)]
    with pytest.warns(UserWarning, match=r"Given\.given\['inner'\] is held by several environments") as said:
        bank = make_bank(DummyVecEnv([lambda env=env: env for env in envs]), needs_restore=True)  # type: ignore[misc]
    assert len(said) == 1
    first, second = (bank._simulators[i] for i in range(2))  # type: ignore[attr-defined]
    for env in envs:
        env.reset(seed=0)
    states = [simulator.capture() for simulator in (first, second)]
    second.restore(states[1])
    for _ in range(3):
        envs[1].step(0)
    first.restore(states[0])
    assert [env.given["inner"]["n"] for env in envs] == [0, 3]
    assert inner == {"n": 0}


def test_an_environment_that_holds_another_does_not_rewind_it() -> None:
    other = Given({"n": 0}, count_item)
    env = Given([other])
    with pytest.warns(UserWarning, match="held by several environments"):
        bank = make_bank(DummyVecEnv([lambda: env, lambda: other]), needs_restore=True)
    first = bank._simulators[0]  # type: ignore[attr-defined]
    state = first.capture()
    other.reset(seed=0)
    other.step(0)
    first.restore(state)
    assert (other.t, other.given) == (1, {"n": 1})
