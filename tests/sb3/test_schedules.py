"""Step size and clip ranges follow the training's progress, however they are spelt."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from grpo import GRPO
from tests.sb3.environments import MatchEnv
from tests.sb3.small_models import build
from tests.weights import copy_weights, is_same


class Watch(BaseCallback):
    """Notes what was logged of the update before each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[dict[str, Any]] = []

    def _on_rollout_start(self) -> None:
        self.logged.append(dict(self.logger.name_to_value))

    def _on_step(self) -> bool:
        return True


def watch(n_rollouts: int = 4, **changes: Any) -> tuple[GRPO, list[dict[str, Any]]]:
    """Train on rollouts of 16 steps.

    :return: The model, and what every update but the last logged.
    """
    model, callback = build(MatchEnv(episode_length=10**6), **changes), Watch()
    model.learn(16 * n_rollouts, callback)
    return model, callback.logged[1:]


@pytest.mark.parametrize(
    "schedule",
    [
        LinearSchedule(0.8, 0.0, 1.0),
        FloatSchedule(LinearSchedule(0.8, 0.0, 1.0)),
        lambda progress: 0.8 * progress,
    ],
    ids=["linear", "float", "function"],
)
@pytest.mark.parametrize("name", ["learning_rate", "clip_range"])
def test_schedules_fall_with_the_remaining_progress(name: str, schedule: Callable[[float], float]) -> None:
    changes: dict[str, Any] = {name: schedule}
    model, logged = watch(**changes)
    expected = [0.8 * (1.0 - i / 4) for i in (0, 1, 2)]  # the progress at which each rollout began
    assert [row[f"train/{name}"] for row in logged] == pytest.approx(expected)
    if name == "learning_rate":
        assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("value", [0.3, np.float32(0.3), ConstantSchedule(0.3), FloatSchedule(0.3), lambda _: 0.3])
@pytest.mark.parametrize("name", ["learning_rate", "clip_range"])
def test_constants_stay(name: str, value: Any) -> None:
    changes: dict[str, Any] = {name: value}
    _, logged = watch(**changes)
    assert [row[f"train/{name}"] for row in logged] == pytest.approx([0.3] * 3)


def test_the_value_networks_step_size_follows_in_proportion() -> None:
    model, _ = watch(learning_rate=LinearSchedule(0.1, 0.02, 1.0), vf_lr_factor=3.0)
    policy, value = (group["lr"] for group in model.policy.optimizer.param_groups)
    assert (policy, value) == pytest.approx((0.04, 0.12))  # a quarter of the way from the end


@pytest.mark.parametrize("high", [LinearSchedule(0.3, 0.3, 1.0), 0.3, lambda _: 0.3])
def test_an_upper_clip_range_may_be_spelt_like_the_lower_one(high: Any) -> None:
    arguments: dict[str, Any] = {"learning_rate": 0.05, "n_epochs": 4, "clip_range": 0.01}
    expected, _ = watch(clip_range_high=0.3, **arguments)
    model, _ = watch(clip_range_high=high, **arguments)
    assert is_same(copy_weights(expected), copy_weights(model))
    narrow, _ = watch(**arguments)
    assert not is_same(copy_weights(expected), copy_weights(narrow)), "without it, the lower one holds on both sides"


def test_a_last_rollout_that_goes_beyond_the_total_is_judged_by_where_it_began() -> None:
    asked: list[float] = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 0.1

    build(MatchEnv(episode_length=10**6), learning_rate=schedule).learn(24)
    assert min(asked) == pytest.approx(1 / 3)  # 16 of 24 steps were taken
    assert max(asked) == 1.0


@pytest.mark.parametrize("name", ["learning_rate", "clip_range", "clip_range_high"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), "0.1", "lin_0.1"])
def test_what_is_no_schedule_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.* is not allowed"):
        build(**{name: value})


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), None, "much"])
@pytest.mark.parametrize("name", ["learning_rate", "clip_range", "clip_range_high"])
def test_what_a_schedule_returns_is_checked_when_it_is_used(name: str, value: Any) -> None:
    changes: dict[str, Any] = {name: lambda progress: 0.1 if progress > 0.5 else value}
    model = build(MatchEnv(episode_length=10**6), **changes)
    with pytest.raises(ValueError, match=rf"{name}\(progress_remaining=0.5\)=.* is not allowed: .*; correct it"):
        model.learn(32)


def test_a_step_size_may_rest_at_0() -> None:
    build(MatchEnv(episode_length=10**6), learning_rate=lambda _: 0.0).learn(16)
