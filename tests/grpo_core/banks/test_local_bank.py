"""Banks in this process: which environments are tried out, and how thoroughly; what they raise."""

import threading
from collections.abc import Callable
from copy import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.banks.choose_bank import make_bank
from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.banks.single_env import Order
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.simulator import check_branchable
from tests.grpo_core.banks.support import Camera, Env, Fragile, follow, make_cart_pole, make_slippery, start


class Gauge(Camera):
    """Fills the same info in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.info: dict[str, Any] = {"lock": threading.Lock()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *outcome, info = super().step(action)
        self.info.update(info)
        self.info.setdefault("places", np.zeros(1))[0] = info["place"]
        self.info.setdefault("nested", {"places": [0]})["places"][0] = info["place"]
        self.info.setdefault("pair", (np.zeros(1), "fixed"))[0][0] = info["place"]
        self.info.setdefault("object", SimpleNamespace()).place = info["place"]
        return *outcome, self.info


def test_an_info_does_not_change_afterwards() -> None:
    bank = make_bank(DummyVecEnv([Gauge]), needs_restore=False)
    bank.reset({0: 0})
    infos = [bank.step({0: Order(1)})[0].info for _ in range(3)]
    assert len({info["place"] for info in infos}) > 1
    for info in infos:
        assert info["places"] == info["place"]
        assert info["nested"] == {"places": [info["place"]]}
        assert info["pair"] == (info["place"], "fixed")
        assert info["object"].place == info["place"]
        assert info["lock"] is infos[0]["lock"], "what cannot be copied stays"
    infos[0]["mine"] = True
    assert "mine" not in bank.step({0: Order(1)})[0].info


class Never:
    """A plan that never turns."""

    turns_at = -1


class Later(Never):
    """A plan that turns later than a brief trial lasts."""

    turns_at = 30


class Turning(gym.Env[Any, Any]):
    """Turns round after some steps, by what only two functions know, which is not restored."""

    observation_space, action_space = spaces.Box(-99.0, 99.0, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.move: Callable[[int], int]
        self.turn: Callable[[], None]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        way = [1, -1]
        self.t, self.x, self.move, self.turn = 0, 0, lambda x: x + way[0], lambda: way.reverse()
        return np.array([0.0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.t, self.x = self.t + 1, self.move(self.x)
        if self.t == getattr(self.plan, "turns_at", self.plan):
            self.turn()
        return np.array([self.x], np.float32), 0.0, False, self.t >= 60, {}


@pytest.mark.parametrize(
    ("alike", "other"),
    [
        (-1, 30),
        (SimpleNamespace(turns_at=-1), SimpleNamespace(turns_at=30)),
        (Never(), Later()),
        (Never, Later),
    ],
    ids=["a number", "a number inside", "an object", "a class"],
)
def test_an_environment_of_the_same_class_with_other_parts_is_tried_out_as_thoroughly(alike: Any, other: Any) -> None:
    bank = make_bank(DummyVecEnv([lambda: Turning(alike), lambda: Turning(copy(alike))]), needs_restore=True)
    assert [report.n_steps > 8 for report in bank.reports] == [True, False]
    with pytest.raises(NotBranchableError):
        make_bank(DummyVecEnv([lambda: Turning(alike), lambda: Turning(other)]), needs_restore=True)


def test_a_restorable_wrapper_does_no_harm_in_this_process() -> None:
    bank = make_bank(DummyVecEnv([lambda: RestorableWrapper(make_cart_pole())]), needs_restore=True)
    assert bank.findings.is_cheap
    assert follow(bank, start(bank), [0, 1, 1]) == follow(bank, start(bank), [0, 1, 1])
    check_branchable(RestorableWrapper(make_cart_pole()))


@pytest.mark.parametrize(
    ("make_env", "is_cheap"),
    [
        (make_cart_pole, True),
        (make_slippery, True),
        (Camera, False),
        (lambda: wrappers.FrameStackObservation(make_cart_pole(), 2), False),
    ],
    ids=["attributes", "an integer", "a copy", "a copied wrapper"],
)
def test_only_cheap_restores_make_sharing_an_environment_cheap(make_env: Callable[[], Env], is_cheap: bool) -> None:
    assert make_bank(DummyVecEnv([make_env]), needs_restore=True).findings.is_cheap is is_cheap


def test_an_environment_in_this_process_raises_its_own_error() -> None:
    bank = make_bank(DummyVecEnv([Fragile]), needs_restore=True)
    bank.reset({0: 0})
    with pytest.raises(ZeroDivisionError, match="the wheels came off"):
        bank.step({0: Order(1)})


def test_a_step_that_a_reset_puts_in_place_is_the_one_taken() -> None:
    class Rebinding(Gauge):
        def reset(self, **arguments: Any) -> Any:
            self.n_resets = getattr(self, "n_resets", 0) + 1
            self.step = partial(self.step_in, self.n_resets)  # type: ignore[method-assign]
            return super().reset(**arguments)

        def step_in(self, n_resets: int, action: Any) -> Any:
            observation, _, *_, info = super().step(action)
            return observation, float(n_resets), True, False, info

    bank = make_bank(DummyVecEnv([Rebinding]), needs_restore=False)
    for n_resets in range(1, 5):
        bank.reset({0: 0})
        assert bank.step({0: Order(0)})[0].reward == n_resets
