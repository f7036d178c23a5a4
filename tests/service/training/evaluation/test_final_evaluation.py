"""A job ends with an evaluation of the policy that it saves, within bounds, and whatever happens in it."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from grpo_core.evaluation import make_policy, play_episodes, summarize_episodes
from service.environments.step_limit import MAX_STEPS_WITHOUT_LIMIT
from service.schemas.jobs import FinalEvaluation
from service.training.evaluation.evaluator import SEED_ON_THE_WAY, Evaluator
from service.training.evaluation.final_evaluation import evaluate_finally
from service.training.stop_rules import StopRules
from tests.conftest import RegisterEnv
from tests.environments import FloatArray, LineEnv
from tests.models import make_model
from tests.service.training.jobs import Clock, run_job
from tests.support import Recorder, make_plan

FIRST_SEED = 2_000_000


class LastEnv(LineEnv):
    """A line that behaves in its own way in the final evaluation, which alone uses such seeds.

    :param on_step: Called in every step of it.
    :param ends: Whether its episodes end, after five steps, as those of evaluations on the way do.
    """

    def __init__(self, on_step: Callable[[], Any], ends: bool = True) -> None:
        super().__init__()
        self._do, self._ends = on_step, ends
        self._is_evaluated, self._is_final, self._n_steps = False, False, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        self._is_evaluated = seed is not None and seed >= SEED_ON_THE_WAY
        self._is_final, self._n_steps = seed is not None and seed >= FIRST_SEED, 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self._is_final:
            self._do()
        if self._is_evaluated:
            self._n_steps += 1
            terminated = self._n_steps == 5 and (self._ends or not self._is_final)
        return observation, reward, terminated, truncated, info


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, "evaluation.evaluator", "evaluation.work_time", "train")


def take(clock: Clock, seconds: float) -> Callable[[], None]:
    """Make what takes some time."""

    def do() -> None:
        clock.seconds += seconds

    return do


@pytest.mark.usefixtures("ample_time")
@pytest.mark.parametrize("request_", [{}, {"eval_freq": 64, "learning_rate": 0.05, "seed": 3}], ids=str)
def test_it_is_of_the_policy_that_is_saved(request_: dict[str, Any]) -> None:
    content, recorder = run_job(**request_, n_eval_episodes=4)
    policy = make_policy(content.make_actor(), True, np.random.default_rng(0))
    # Ten times as many, since a step of all is computed at once; each seed of jobs has a thousand of its own.
    first_seed = FIRST_SEED + 1000 * request_.get("seed", 0)
    expected = summarize_episodes(play_episodes(gym.make("CartPole-v1"), policy, 40, first_seed))
    (evaluation,) = recorder.final_evaluations
    assert evaluation["mean_reward"] == expected.mean_reward
    assert evaluation["mean_reward_ci95"] == expected.mean_reward_ci95
    assert (evaluation["n_episodes"], evaluation["complete"]) == (40, True)
    assert evaluation["timesteps"] == content.meta["num_timesteps"]
    # The file holds nothing that depends on the clock.
    assert FinalEvaluation(**content.meta["final_evaluation"]) == FinalEvaluation(**{**evaluation, "seconds": None})


@pytest.mark.usefixtures("ample_time")
def test_the_best_policy_is_not_judged_by_the_episodes_that_chose_it() -> None:
    content, recorder = run_job(eval_freq=64, learning_rate=0.05, lr_schedule="constant", seed=3, n_eval_episodes=3)
    best = max(row["mean_reward"] for row in recorder.evaluations)
    (evaluation,) = recorder.final_evaluations
    assert content.meta["evaluation"]["mean_reward"] == best
    assert evaluation["mean_reward"] != best


def test_it_can_be_left_out() -> None:
    content, recorder = run_job(n_eval_episodes=0)
    assert (recorder.final_evaluations, recorder.warnings) == ([], [])
    assert "final_evaluation" not in content.meta


@pytest.mark.usefixtures("ample_time")
def test_an_episode_without_an_end_is_cut_after_many_steps(register_env: RegisterEnv) -> None:
    _, recorder = run_job(env_name=register_env(lambda: LastEnv(lambda: None, ends=False)), n_eval_episodes=2)
    (evaluation,) = recorder.final_evaluations
    assert (evaluation["mean_length"], evaluation["complete"]) == (MAX_STEPS_WITHOUT_LIMIT, True)


def test_it_ends_after_an_episode_when_another_one_would_take_too_long(register_env: RegisterEnv, clock: Clock) -> None:
    # Of episodes of five steps of 0.11 s, 2 s hold three.
    env_name = register_env(lambda: LastEnv(take(clock, 0.11)))
    _, recorder = run_job(env_name=env_name, n_eval_episodes=10)
    (evaluation,) = recorder.final_evaluations
    assert (evaluation["n_episodes"], evaluation["mean_length"], evaluation["complete"]) == (3, 5.0, False)
    assert evaluation["seconds"] == pytest.approx(3 * 5 * 0.11)
    assert recorder.warnings == []


def test_a_busy_machine_does_not_make_it_shorter(
    register_env: RegisterEnv, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other programs have four fifths of the processor.
    monkeypatch.setattr(clock, "thread_time", lambda: clock.seconds / 5)
    env_name = register_env(lambda: LastEnv(take(clock, 0.45)))
    _, recorder = run_job(env_name=env_name, n_eval_episodes=10)
    (evaluation,) = recorder.final_evaluations
    assert (evaluation["n_episodes"], evaluation["seconds"]) == (4, pytest.approx(4 * 5 * 0.45))


def test_waiting_counts_in_part_and_never_beyond_what_anybody_waits(
    register_env: RegisterEnv, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "thread_time", lambda: 0.0)
    for n, (step_seconds, limit) in enumerate([(0.5, 2.0 * 5), (20.0, 30.0)]):
        before = clock.seconds
        env_name = register_env(lambda: LastEnv(take(clock, step_seconds), ends=False), f"Line-v{n}", 10**9)  # noqa: B023
        _, recorder = run_job(env_name=env_name)
        assert recorder.final_evaluations == []
        assert clock.seconds - before == pytest.approx(limit, rel=0.4)


def test_without_a_whole_episode_in_time_there_is_a_warning_instead(register_env: RegisterEnv, clock: Clock) -> None:
    env_name = register_env(lambda: LastEnv(take(clock, 0.5), ends=False), max_episode_steps=10**9)
    content, recorder = run_job(env_name=env_name)
    assert clock.seconds == pytest.approx(2.0)
    assert recorder.final_evaluations == []
    assert content.meta["final_evaluation"] is None
    *on_the_way, warning = recorder.warnings
    assert all("on the way" in other for other in on_the_way)
    assert "no episode ended within 2 s" in warning


@pytest.mark.parametrize("error", [RuntimeError("out of order"), SystemExit("out of order")], ids=repr)
def test_an_environment_that_fails_in_it_does_not_fail_the_job(register_env: RegisterEnv, error: BaseException) -> None:
    def fail() -> None:
        raise error

    content, recorder = run_job(env_name=register_env(lambda: LastEnv(fail)))
    assert content.meta["num_timesteps"] >= 640
    (warning,) = recorder.warnings
    assert warning.startswith("the policy was saved but not evaluated")
    assert f"{type(error).__name__}: out of order" in warning


@pytest.mark.parametrize(("n_stops", "seconds"), [(1, 1.0), (2, 0.0)])
def test_a_stopped_job_gets_a_short_one_and_one_that_is_stopped_twice_none(
    register_env: RegisterEnv, clock: Clock, n_stops: int, seconds: float
) -> None:
    class Stopping(Recorder):
        def advance(self, current_timesteps: int) -> None:
            super().advance(current_timesteps)
            if len(self.steps) == 300:
                for _ in range(n_stops):
                    self._stop()

    env_name = register_env(lambda: LastEnv(take(clock, 0.125), ends=False), max_episode_steps=10**9)
    content, recorder = run_job(Stopping(), env_name=env_name, total_timesteps=10_000)
    assert content.meta["ended_by"] == "stop"
    assert clock.seconds == pytest.approx(seconds)
    assert (recorder.final_evaluations, recorder.warnings) == ([], [])


def test_a_stop_in_the_middle_ends_it_early(register_env: RegisterEnv, clock: Clock) -> None:
    recorder = Recorder()

    def work() -> None:
        clock.seconds += 0.11
        if 0.6 < clock.seconds < 0.7:
            recorder._stop()

    content, _ = run_job(recorder, env_name=register_env(lambda: LastEnv(work)))
    (evaluation,) = recorder.final_evaluations
    assert evaluation["n_episodes"] == 1
    assert content.meta["ended_by"] == "total_timesteps"


def test_it_may_take_longer_after_a_long_training(register_env: RegisterEnv, clock: Clock) -> None:
    env_name = register_env(lambda: LastEnv(take(clock, 0.5), ends=False), max_episode_steps=10**9)
    model, evaluator = make_model(env_name), Evaluator(make_plan(env_name=env_name).config)
    for training_seconds, limit_seconds in ((1.0, 2.0), (100.0, 10.0), (10_000.0, 30.0)):
        clock.seconds, recorder = 0.0, Recorder()
        rules = StopRules(recorder, None)
        rules.begin(model)
        assert evaluate_finally(evaluator, model.make_numpy_actor(), 0, training_seconds, rules, recorder) is None
        assert clock.seconds == pytest.approx(limit_seconds)


@pytest.mark.usefixtures("ample_time")
def test_episodes_that_nothing_else_ends_are_said_to_be_cut(register_env: RegisterEnv) -> None:
    env_name = register_env(lambda: LastEnv(lambda: None, ends=False))
    content, recorder = run_job(env_name=env_name, group_mode="episode", horizon=16, n_eval_episodes=2)
    assert content.meta["final_evaluation"]["mean_length"] == 1000
    said = "2 of 2 episodes of the final evaluation lasted for 1,000 steps"
    assert [warning for warning in recorder.warnings if said in warning]
