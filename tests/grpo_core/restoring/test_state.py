"""What attributes hold and no state copies is put back as it is: generators, spaces, functions, modules, classes."""

import cmath
import math
import pickle
import types
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.simulator import Simulator, check_branchable


def make_function(n: int) -> Callable[[], int]:
    def give() -> int:
        return n

    return give


def make_class() -> type:
    class Local:
        """Has no name that another process could find."""

    return Local


# Of each kind two that differ.
KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "generator": lambda: (np.random.default_rng(0), np.random.Generator(np.random.Philox(0))),
    "space": lambda: (spaces.Discrete(3), spaces.Discrete(4)),
    "lambda": lambda: (lambda: 1, lambda: 2),
    "module": lambda: (math, cmath),
    "builtin": lambda: (max, min),
    "class": lambda: (dict, list),
    "local class": lambda: (make_class(), make_class()),
    "local function": lambda: (make_function(1), make_function(2)),
    "method of another object": lambda: ("a".upper, "a".lower),
}
MISSING = object()


class Still(gym.Env[Any, Any]):
    """Holds something in an attribute, in an object, in a dict and in a list."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.part = types.SimpleNamespace()
        self.table: dict[str, Any] = {}
        self.row: list[Any] = []


class Around(gym.Wrapper[Any, Any, Any, Any]):
    """Holds something, too."""


def hold(place: str, env: gym.Env[Any, Any], value: Any) -> None:
    """Let an environment hold a value; ``MISSING`` deletes it."""
    inner = env.unwrapped
    if place == "list":
        inner.__dict__["row"][:] = [] if value is MISSING else [value]
        return
    held = inner.__dict__["table"] if place == "dict" else vars(find_owner(place, env))
    held.pop("thing", None)
    if value is not MISSING:
        held["thing"] = value


def find_owner(place: str, env: gym.Env[Any, Any]) -> Any:
    inner = env.unwrapped
    return {"attribute": inner, "wrapper": env, "object": inner.__dict__["part"]}[place]


def look(place: str, env: gym.Env[Any, Any]) -> Any:
    if place == "list":
        return [*env.unwrapped.__dict__["row"], MISSING][0]
    held = env.unwrapped.__dict__["table"] if place == "dict" else vars(find_owner(place, env))
    return held.get("thing", MISSING)


def tell(value: Any) -> Any:
    """Return what tells a value from another, of which a copy may have been made."""
    return type(value.bit_generator) if isinstance(value, np.random.Generator) else value


@pytest.mark.parametrize("place", ["attribute", "wrapper", "object", "dict", "list"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_restore_puts_back_what_there_was(kind: str, place: str) -> None:
    thing, other = KINDS[kind]()
    for before, after in ((None, thing), (thing, None), (thing, other), (thing, MISSING), (thing, [1]), ([1], thing)):
        env = Around(Still())
        hold(place, env, before)
        simulator = Simulator(env)
        state = simulator.capture()
        for in_place in (True, False):
            hold(place, env, after)
            simulator.restore(state, in_place=in_place)
            assert tell(look(place, env)) == tell(before)
            assert look(place, env) is before or before == [1] or place not in ("attribute", "wrapper")


@pytest.mark.parametrize("place", ["attribute", "wrapper", "object", "dict", "list"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "module"])
def test_a_restore_deletes_what_there_was_not(kind: str, place: str) -> None:
    env = Around(Still())
    simulator = Simulator(env)
    state = simulator.capture()
    hold(place, env, KINDS[kind]()[0])
    simulator.restore(state)
    assert look(place, env) is MISSING


def test_a_restore_leaves_what_draws_and_the_modules_that_it_needs() -> None:
    pygame = pytest.importorskip("pygame")
    env = Around(Still())
    simulator = Simulator(env)
    state = simulator.capture()
    clock = pygame.time.Clock()
    env.unwrapped.__dict__.update(ticks=clock, library=pygame)
    drawing = simulator.capture()
    simulator.restore(state)
    assert env.unwrapped.__dict__["ticks"] is clock
    assert env.unwrapped.__dict__["library"] is pygame
    env.unwrapped.__dict__["ticks"] = None  # the window is closed
    simulator.restore(drawing)
    simulator.restore(pickle.loads(pickle.dumps(drawing)))
    assert env.unwrapped.__dict__["ticks"] is None


@pytest.mark.parametrize("place", ["attribute", "wrapper"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("class", "method of another object")])
def test_where_a_state_travels_to_nothing_is_lost_in_silence(kind: str, place: str) -> None:
    thing, other = KINDS[kind]()
    env = Around(Still())
    hold(place, env, thing)
    simulator = Simulator(env)
    state = pickle.loads(pickle.dumps(simulator.capture()))
    hold(place, env, other)
    simulator.restore(state)
    assert look(place, env) is other
    for value, is_there in ((None, "is None where"), (MISSING, "is missing where"), ([1], "is of type list where")):
        hold(place, env, value)
        with pytest.raises(NotBranchableError, match=f"thing held .* {is_there}"):
            simulator.restore(state)


@pytest.mark.parametrize("in_place", [True, False])
def test_an_object_inside_shares_what_is_put_back(in_place: bool) -> None:
    env = Around(Still())
    thing = np.random.default_rng(0)
    env.__dict__["thing"] = env.unwrapped.__dict__["part"].thing = thing
    simulator = Simulator(env)
    state = simulator.capture()
    for after in (None, np.random.default_rng(1)):
        env.__dict__["thing"] = env.unwrapped.__dict__["part"].thing = after
        simulator.restore(state, in_place=in_place)
        assert env.__dict__["thing"] is env.unwrapped.__dict__["part"].thing is thing


def test_common_random_numbers_are_those_of_the_generator_that_is_put_back() -> None:
    env = Around(Still())
    simulator = Simulator(env, common_random_numbers=True)
    env.__dict__["thing"] = np.random.default_rng(0)
    state = simulator.capture()
    drawn = []
    for _ in range(2):
        simulator.restore(state)
        drawn.append(env.__dict__["thing"].normal())
        env.__dict__["thing"] = np.random.default_rng(1)
    assert drawn[0] == drawn[1]


class Storm(gym.Env[Any, Any]):
    """From its fourth step on there is wind, from a generator that begins then."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Discrete(2)
    make: Callable[[int], Any] = staticmethod(np.random.default_rng)
    storm: Any

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t, self.storm = 0.0, 0, None
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        if self.t == 4:
            self.storm = self.make(int(self.np_random.integers(1000)))
        self.x += 0.1 * (2 * action - 1) + (0.0 if self.storm is None else self.blow(self.storm))
        return np.array([self.x, self.t], np.float32), -abs(self.x), False, self.t >= 12, {}

    def blow(self, storm: Any) -> float:
        return float(storm.normal())


class LazyStorm(Storm):
    """Its storm has no name before it comes up."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        del self.storm
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not hasattr(self, "storm"):
            self.storm = np.random.default_rng(5)
        return super().step(action)


class FunctionStorm(Storm):
    """The storm is a function."""

    make = staticmethod(make_function)

    def blow(self, storm: Any) -> float:
        return float(storm()) / 1000


@pytest.mark.parametrize("kind", [Storm, LazyStorm, FunctionStorm])
def test_an_environment_that_begins_to_hold_it_in_an_episode_is_restored_exactly(kind: type[Storm]) -> None:
    assert check_branchable(kind(), n_steps=12).rewound == ()


class Unsettled(LazyStorm):
    """Each storm is another one, whatever the seed."""

    make = staticmethod(lambda _: np.random.default_rng())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not hasattr(self, "storm"):
            self.storm = self.make(0)
        return super().step(action)


def test_an_environment_whose_storms_no_replay_meets_again_is_refused() -> None:
    with pytest.raises(NotBranchableError):
        check_branchable(Unsettled(), n_steps=12)
