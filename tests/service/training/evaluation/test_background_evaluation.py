"""Without an eval_freq, policies are evaluated for a small share of the time, and training continues as if not."""

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from grpo_core.evaluation import make_policy, play_episodes
from service.training.evaluation.background_evaluation import _Points as Points
from service.training.evaluation.evaluator import FINAL_SEED, SEED_ON_THE_WAY
from tests.conftest import RegisterEnv
from tests.environments import FloatArray, LineEnv
from tests.models import make_model
from tests.service.training.jobs import Clock, assert_trained_alike, run_job
from tests.support import Recorder


class LuckyEnv(gym.Env[FloatArray, Any]):
    """Pays by all three generators that the whole process shares."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        luck = np.random.random() + random.random() + float(torch.rand(()))
        return np.full(1, luck / 3, np.float32), luck * (1 + int(action)), False, False, {}


class BrokenLaterEnv(LineEnv):
    """Breaks when it is reset with a seed of evaluations."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        if seed is not None and seed >= SEED_ON_THE_WAY:
            raise RuntimeError("out of order")
        return super().reset(seed=seed)


@pytest.fixture
def ample_time(ample_time: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evaluations on the way take as long as they like, too."""
    for name in ("_SHORT_TIME_SHARE", "_SHORT_SECONDS", "_FIRST_SECONDS"):
        monkeypatch.setattr(f"service.training.evaluation.background_evaluation.{name}", 1e9)


@pytest.mark.usefixtures("ample_time")
@pytest.mark.parametrize("request_", [{}, {"env_name": "Pendulum-v1"}, {"n_envs": 2, "normalize": True}], ids=str)
def test_training_continues_as_without_it(request_: dict[str, Any]) -> None:
    without, silent = run_job(**request_, n_eval_episodes=0)
    with_it, recorder = run_job(**request_, n_eval_episodes=1)
    assert silent.evaluations == silent.final_evaluations == []
    assert recorder.evaluations
    assert_trained_alike(without, with_it)
    assert without.meta["rng_state"] == with_it.meta["rng_state"]


@pytest.mark.usefixtures("ample_time")
def test_not_even_the_generators_of_the_whole_process_notice(register_env: RegisterEnv) -> None:
    env_name = register_env(LuckyEnv, max_episode_steps=8)

    def train(n_eval_episodes: int) -> tuple[Any, Recorder]:
        np.random.seed(1)
        random.seed(1)
        torch.manual_seed(1)
        return run_job(env_name=env_name, group_mode="episode", total_timesteps=256, n_eval_episodes=n_eval_episodes)

    (without, _), (with_it, recorder) = train(0), train(3)
    assert recorder.evaluations
    assert_trained_alike(without, with_it)


@pytest.mark.usefixtures("ample_time")
def test_the_first_is_of_the_untrained_policy() -> None:
    content, recorder = run_job(env_name="CartPole-v1", n_eval_episodes=8)
    first = recorder.evaluations[0]
    env = gym.make("CartPole-v1")
    untrained = make_policy(make_model("CartPole-v1").make_actor(), True, np.random.default_rng(0))
    rewards = [episode.reward for episode in play_episodes(env, untrained, 8, SEED_ON_THE_WAY)]
    assert first["timesteps"] == 0
    assert 5 <= first["n_episodes"] <= 8
    assert first["mean_reward"] == np.mean(rewards[: first["n_episodes"]])
    assert "evaluation" not in content.meta
    assert [row["timesteps"] for row in recorder.evaluations] == sorted(
        {row["timesteps"] for row in recorder.evaluations}
    )


def test_nothing_is_kept_or_ended_by_it() -> None:
    # Such large steps destroy what was learned.
    content, recorder = run_job(learning_rate=0.05, lr_schedule="constant", seed=3)
    assert content.meta["num_timesteps"] >= 640
    assert content.meta["config"]["keep_best"] is False
    assert recorder.ended_by == []


@pytest.mark.usefixtures("ample_time")
def test_episodes_that_fail_end_it_with_one_warning_and_the_job_goes_on(register_env: RegisterEnv) -> None:
    content, recorder = run_job(env_name=register_env(BrokenLaterEnv))
    assert content.meta["num_timesteps"] >= 640
    assert recorder.evaluations == recorder.final_evaluations == []
    during, afterwards = recorder.warnings
    assert "not evaluated during training" in during
    assert "RuntimeError: out of order" in during
    assert "saved but not evaluated" in afterwards
    assert content.meta["final_evaluation"] is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give evaluations a clock that only the environment's steps move on."""
    return Clock(monkeypatch, "evaluation.work_time")


def test_it_takes_a_small_share_of_the_time(register_env: RegisterEnv, clock: Clock) -> None:
    """Counted in steps of an environment whose every step takes one second."""
    evaluated = list[float]()
    env_name = register_env(lambda: TickingEnv(clock, evaluated), max_episode_steps=20)
    _, recorder = run_job(
        env_name=env_name, total_timesteps=12_800, n_eval_episodes=5, ent_coef=0.0, restart_probability=0.1
    )
    assert 0.03 * clock.seconds < len(evaluated) < 0.055 * clock.seconds
    # Not all at once, either: what has been earned by then is never exceeded by more than the step that notices.
    assert all(n <= 0.05 * seconds + 2 for n, seconds in enumerate(evaluated, 1))
    warning, _ = recorder.warnings  # the other is that the final evaluation has no time for an episode
    # A point in four takes 100 s of the 32 s that each has earned.
    assert len(recorder.evaluations) <= 20 / 3
    assert int(warning.split()[0]) == 20 - len(recorder.evaluations)
    assert "another run of the same seed may draw the curve through other points" in warning


def test_the_curve_does_not_depend_on_the_clock(register_env: RegisterEnv, clock: Clock) -> None:
    """A machine of a quarter of the speed draws the same curve; one without time for it all leaves points out."""

    def draw(step_seconds: float, evaluated_seconds: float) -> list[Any]:
        name = f"Ticking{1e5 * step_seconds:.0f}x{1e5 * evaluated_seconds:.0f}-v0"
        env_name = register_env(lambda: TickingEnv(clock, [], step_seconds, evaluated_seconds), name, 7)
        return run_job(env_name=env_name, total_timesteps=2_560)[1].evaluations

    whole = draw(0.001, 0.00025)
    assert len(whole) >= 15
    assert {row["n_episodes"] for row in whole} == {5}
    assert draw(0.004, 0.001) == whole
    part = draw(0.001, 0.005)
    assert 2 <= len(part) < 15
    assert all(row in whole for row in part)


@pytest.mark.usefixtures("ample_time")
def test_long_episodes_are_fewer_and_so_are_the_points(
    register_env: RegisterEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tenths of 640 steps are 192. A quarter of them is too little for a third episode of 20 steps.

    So a point takes 40 steps, the first of which are free: the n-th comes where 3/10 of the steps are at least 40 n.
    """
    monkeypatch.setattr("service.training.evaluation.background_evaluation._SHORT_STEP_SHARE", 0.3)
    env_name = register_env(lambda: TickingEnv(Clock(monkeypatch), []), max_episode_steps=20)
    _, recorder = run_job(env_name=env_name, total_timesteps=640, n_steps=32, group_size=2)
    assert {row["n_episodes"] for row in recorder.evaluations} == {2}
    first, *others = [row["timesteps"] for row in recorder.evaluations]
    assert first == 0
    assert len(others) == 4
    for n, timesteps in enumerate(others, 1):
        assert 0.3 * timesteps >= 40 * n


def test_an_evaluation_that_a_checkpoint_interrupts_is_made_again() -> None:
    points = Points(total_timesteps=2000, stride=2)
    assert points.reach(0, is_busy=False)
    points.end(10)
    assert points.reach(400, is_busy=False)
    points.take_back()
    assert points.reach(400, is_busy=False)
    assert points.n_left_out == 0


@pytest.mark.usefixtures("ample_time")
def test_a_resumed_job_draws_the_rest_of_the_curve() -> None:
    request: dict[str, Any] = {"n_eval_episodes": 2, "checkpoint_every": 300, "model_name": "m"}
    _, whole = run_job(**request)
    (described, content), resumed = whole.checkpoints[0], Recorder()
    run_job(resumed, content, **request)
    assert 0 < described["timesteps"] < 640
    assert resumed.evaluations == [row for row in whole.evaluations if row["timesteps"] > described["timesteps"]] != []


class TickingEnv(LineEnv):
    """Takes some seconds for every step, and notes those of episodes with a seed of evaluations on the way."""

    def __init__(
        self,
        clock: Clock,
        evaluated: list[float],
        step_seconds: float = 1.0,
        evaluated_seconds: float | None = None,
    ) -> None:
        super().__init__()
        self._clock, self._evaluated = clock, evaluated
        self._step_seconds = step_seconds
        self._evaluated_seconds = step_seconds if evaluated_seconds is None else evaluated_seconds
        self._is_evaluated = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        self._is_evaluated = seed is not None and SEED_ON_THE_WAY <= seed < FINAL_SEED
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        self._clock.seconds += self._evaluated_seconds if self._is_evaluated else self._step_seconds
        if self._is_evaluated:
            self._evaluated.append(self._clock.seconds)
        return super().step(action)
