"""Large arrays of environments: their copies are shared while nothing changed, and exact when something did."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from grpo_core.restoring.copying.tables import Tables
from grpo_core.restoring.simulator import Simulator, check_branchable

N = 1 << 14


class Trader(gym.Env[Any, Any]):
    """Reads prices, and writes each step into a history of objects."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(3)

    def __init__(self) -> None:
        self.prices = np.random.default_rng(0).normal(size=N)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.history = np.full((N, 2), None)
        self.now = 0
        return np.zeros(2), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.history[self.now] = [int(action), f"hour {self.now}"]
        self.prices[self.now] += action  # the market moves
        n_bought = sum(row[0] for row in self.history[: self.now + 1])
        self.now += 1
        return np.array([self.prices[: self.now].sum(), n_bought]), float(n_bought), False, False, {}


def test_environment_with_large_arrays_is_restored_exactly() -> None:
    check_branchable(Trader())


def test_states_share_what_did_not_change() -> None:
    env = Trader()
    env.reset(seed=0)
    simulator = Simulator(env)
    first, second = simulator.capture()[0], simulator.capture()[0]
    assert first["prices"] is second["prices"]
    assert first["history"] is second["history"]
    env.step(1)
    third = simulator.capture()[0]
    assert third["prices"] is not first["prices"]
    assert third["history"] is not first["history"]


def test_restore_leaves_an_unchanged_array_in_place_and_replaces_a_changed_one() -> None:
    env = Trader()
    env.reset(seed=0)
    simulator = Simulator(env)
    prices = env.prices
    state = simulator.capture()
    simulator.restore(state)
    assert env.prices is prices
    prices[5] = 7.0
    simulator.restore(state)
    assert env.prices[5] != 7.0
    env.prices[6] = 8.0
    simulator.restore(state)
    assert env.prices[6] != 8.0


@pytest.mark.parametrize("value", [float("nan"), -0.0])
def test_bits_are_compared(value: float) -> None:
    tables, array = Tables(), np.zeros(N)
    array[0] = value
    copied = tables.capture(array)
    assert tables.capture(array) is copied
    array[0] = 0.0
    assert np.signbit(tables.capture(array)[0]) == np.False_
    assert tables.capture(array) is not copied


def test_objects_that_can_change_are_not_shared() -> None:
    tables, array = Tables(), np.full(N, None)
    assert tables.capture(array) is not None
    array[3] = [1]
    assert tables.capture(array) is None


def test_small_arrays_are_left_to_others() -> None:
    assert Tables().capture(np.zeros(8)) is None


def test_old_copies_are_forgotten() -> None:
    tables = Tables()
    for _ in range(40):
        tables.capture(np.zeros(1 << 20, np.uint32))  # 4 MiB each
    assert len(tables._by_live) == len(tables._by_copy) == 16
