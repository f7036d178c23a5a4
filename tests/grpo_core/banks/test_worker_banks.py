"""Banks over workers: what these need, and what is said when one fails or dies."""

import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
from gymnasium import wrappers

from grpo_core.banks.choose_bank import find_obstacle, make_bank
from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.banks.single_env import Order
from grpo_core.restoring.errors import NotBranchableError
from tests.grpo_core.banks.support import Camera, Env, Fragile, MakeWorkers, make_cart_pole, start

# Forking starts a worker fast, and this process holds no lock that a worker needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class HoldsALock(gym.Wrapper[Any, Any, Any, Any]):
    """Cannot be copied."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.lock = threading.Lock()


def test_the_monitor_counts_on_from_the_restored_step_in_a_worker(make_workers: MakeWorkers) -> None:
    bank = make_bank(make_workers(lambda: RestorableWrapper(make_cart_pole(limit=6))), needs_restore=True)
    state = start(bank)
    for _ in range(4):
        state = bank.step({0: Order(0, state, capture=True)})[0].state
    for _ in range(3):
        last = bank.step({0: Order(1, bank.step({0: Order(1, state, capture=True)})[0].state)})[0]
        assert last.truncated
        assert (last.info["episode"]["l"], last.info["episode"]["r"]) == (6, 6)


@pytest.mark.parametrize(
    "make_env",
    [make_cart_pole, lambda: make_cart_pole().unwrapped, lambda: wrappers.TimeLimit(RestorableWrapper(Camera()), 9)],
    ids=["Monitor", "bare", "inside another"],
)
def test_workers_need_the_wrapper_outermost_to_be_restored(
    make_workers: MakeWorkers, make_env: Callable[[], Env]
) -> None:
    env = make_workers(make_env)
    with pytest.raises(NotBranchableError, match=r"vec_env_cls=SubprocVecEnv, wrapper_class=RestorableWrapper\)"):
        make_bank(env, needs_restore=True)
    assert "RestorableWrapper is the outermost wrapper" in str(find_obstacle(env))
    make_bank(env, needs_restore=False).reset({0: 0})


def test_a_workers_reason_reaches_the_parent(make_workers: MakeWorkers) -> None:
    env = make_workers(make_cart_pole_in_a_wrapper, lambda: RestorableWrapper(HoldsALock(make_cart_pole())))
    assert "HoldsALock cannot be copied" in str(find_obstacle(env))
    with pytest.raises(NotBranchableError, match=r"HoldsALock cannot be copied.*group_mode=\"episode\""):
        make_bank(env, needs_restore=True)


def make_cart_pole_in_a_wrapper() -> Env:
    return RestorableWrapper(make_cart_pole())


@pytest.mark.parametrize("needs_restore", [True, False])
def test_an_error_in_a_worker_is_raised_in_the_parent_and_other_workers_continue(
    make_workers: MakeWorkers, needs_restore: bool
) -> None:
    bank = make_bank(make_workers(*[lambda: RestorableWrapper(Fragile())] * 3), needs_restore=needs_restore)
    bank.reset(dict.fromkeys(range(3), 0))
    with pytest.raises(RuntimeError, match=r"Environment 1 failed in its worker process:\n(.|\n)*the wheels came off"):
        bank.step({0: Order(0), 1: Order(1), 2: Order(0)})
    outcomes = bank.step({i: Order(0, capture=needs_restore) for i in range(3)})
    assert [outcome.state is None for outcome in outcomes.values()] == [not needs_restore] * 3


@pytest.mark.parametrize(
    ("is_wrapped", "action"), [(False, 1), (False, 2), (True, 2)], ids=["plain raises", "plain exits", "wrapped exits"]
)
def test_a_dead_worker_raises_an_error_instead_of_blocking(
    make_workers: MakeWorkers, is_wrapped: bool, action: int
) -> None:
    workers = make_workers(*[lambda: RestorableWrapper(Fragile()) if is_wrapped else Fragile()] * 3)
    bank = make_bank(workers, needs_restore=is_wrapped)
    bank.reset(dict.fromkeys(range(3), 0))
    for _ in range(2):  # both when it dies and at the next call
        with pytest.raises(RuntimeError, match=r"Environment 1 failed.*\nThe process died with exit code [17]"):
            bank.step({0: Order(0), 1: Order(action), 2: Order(0)})
    assert bank.step({0: Order(0), 2: Order(0)})[2].reward == 1
