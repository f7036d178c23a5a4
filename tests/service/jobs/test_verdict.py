"""A job's verdict follows from its curve, and is no more certain than that."""

from typing import Any, get_args

import numpy as np
import pytest

from service.jobs.verdict import Evidence, judge
from service.schemas.jobs import JobStatus, Verdict, VerdictState
from service.schemas.training import TrainConfig
from tests.support import make_plan

RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 1, 300)
RISE = np.linspace(0.0, 1.0, 300)
N_CURVES = 200


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return make_plan().config


@pytest.fixture
def judge_curve(config: TrainConfig) -> Any:
    def judge_it(curve: Any, status: JobStatus = JobStatus.RUNNING, **evidence: Any) -> Verdict:
        verdict = judge(Evidence(status, config, list(curve), **evidence))
        assert verdict.state in get_args(VerdictState)
        assert verdict.text.endswith(".")
        return verdict

    return judge_it


def smooth(noise: Any, width: int = 100) -> Any:
    """Average as ``rollout/ep_rew_mean`` does."""
    return np.convolve(noise, np.full(width, 1 / width), mode="valid")


class TestBeforeThereIsACurve:
    @pytest.mark.parametrize(
        ("status", "state"),
        [(JobStatus.QUEUED, "waiting"), (JobStatus.RUNNING, "starting"), (JobStatus.STOPPED, "starting")],
    )
    def test_it_says_so(self, judge_curve: Any, status: JobStatus, state: str) -> None:
        assert judge_curve([], status).state == state
        assert judge_curve([1.0, 9.0, 20.0], status).state == state

    def test_a_failure_is_one_whatever_came_before(self, judge_curve: Any) -> None:
        verdict = judge_curve(RISE * 500, JobStatus.FAILED, reward_threshold=400.0)
        assert verdict.state == "failed"
        assert "error_message" in verdict.text


class TestCurves:
    def test_one_that_rises_is_learning(self, judge_curve: Any) -> None:
        verdict = judge_curve(20 + 100 * RISE + NOISE)
        assert verdict.state == "learning"
        assert "Let it continue." in verdict.text
        assert "total_timesteps" in judge_curve(20 + 100 * RISE + NOISE, JobStatus.COMPLETED).text

    def test_the_figures_are_those_of_its_thirds(self, judge_curve: Any) -> None:
        text = judge_curve([10.0] * 10 + [20.0] * 10 + [30.0] * 10).text
        assert "it was about 10 and is about 30 now" in text

    @pytest.mark.parametrize("level", [-1200.0, 0.0, 25.0])
    def test_one_that_does_not_move_is_flat(self, judge_curve: Any, level: float) -> None:
        assert judge_curve([level] * 30).state == "flat"
        verdict = judge_curve(level + NOISE)
        assert verdict.state == "flat"
        assert "not clearly changed yet" in verdict.text

    def test_one_that_rose_and_stays_is_steady(self, judge_curve: Any) -> None:
        curve = np.concatenate([20 + 100 * RISE[::3], np.full(200, 120.0)]) + NOISE
        assert judge_curve(curve).state == "steady"

    def test_one_that_fell_from_the_start_or_from_its_best_is_worse(self, judge_curve: Any) -> None:
        assert judge_curve(120 - 100 * RISE + NOISE).state == "worse"
        peak = np.concatenate([np.full(100, 20.0), np.full(100, 120.0), np.full(100, 60.0)]) + NOISE
        verdict = judge_curve(peak)
        assert verdict.state == "worse"
        assert "it was about 120" in verdict.text
        assert "keep_best" in verdict.text

    def test_where_the_best_policy_is_saved_it_says_that(self, config: TrainConfig) -> None:
        keeping = config.model_copy(update={"keep_best": True})
        verdict = judge(Evidence(JobStatus.RUNNING, keeping, list(120 - 100 * RISE)))
        assert "is saved" in verdict.text

    def test_a_rise_that_drowns_in_noise_is_not_claimed(self, judge_curve: Any) -> None:
        assert judge_curve(RISE + 3 * NOISE).state == "flat"
        assert judge_curve(30 * RISE + 3 * NOISE).state == "learning"

    @pytest.mark.parametrize("n_points", [12, 30, 200])
    def test_noise_alone_is_seldom_taken_for_anything_else(self, judge_curve: Any, n_points: int) -> None:
        states = [judge_curve(RNG.normal(0, 1, n_points)).state for _ in range(N_CURVES)]
        assert states.count("flat") > 0.9 * N_CURVES

    def test_averages_over_many_episodes_that_wander_are_not_taken_for_learning(self, judge_curve: Any) -> None:
        # Pendulum without any learning: rewards of about -1200 ± 250.
        states = [judge_curve(-1200 + 250 * smooth(RNG.normal(0, 1, 400))[::3]).state for _ in range(N_CURVES)]
        assert states.count("flat") > 0.9 * N_CURVES


class TestEvaluations:
    def test_enough_of_them_go_before_what_rollouts_say(self, judge_curve: Any) -> None:
        assert judge_curve(100 * RISE, evaluation_rewards=[50.0] * 12).state == "flat"
        assert judge_curve(100 * RISE, evaluation_rewards=[50.0] * 11).state == "learning"


class TestSolved:
    def test_it_is_what_the_environment_calls_so(self, judge_curve: Any) -> None:
        verdict = judge_curve(500 * RISE, reward_threshold=475.0)
        assert verdict.state == "solved"
        assert "about 500" in verdict.text
        assert "475" in verdict.text
        assert judge_curve(400 * RISE, reward_threshold=475.0).state == "learning"
        assert judge_curve(500 * RISE).state == "learning"

    def test_an_evaluation_counts_and_of_several_the_one_that_is_saved(self, config: TrainConfig) -> None:
        def get_state(keep_best: bool, *rewards: float) -> str:
            kept = config.model_copy(update={"keep_best": keep_best})
            return judge(Evidence(JobStatus.RUNNING, kept, [500.0] * 12, rewards, 475.0)).state

        assert get_state(False, 480.0) == "solved"
        assert get_state(False, 480.0, 300.0) != "solved"
        assert get_state(True, 480.0, 300.0) == "solved"

    def test_a_few_lucky_episodes_are_not_enough(self, judge_curve: Any) -> None:
        assert judge_curve([500.0] * 3, reward_threshold=475.0).state == "starting"


class TestWithoutASignal:
    def test_it_passes_the_warning_on(self, judge_curve: Any) -> None:
        verdict = judge_curve([-200.0] * 30, no_signal_warning="no signal in the last 12 rollouts; raise group_size.")
        assert verdict.state == "no_signal"
        assert "raise group_size" in verdict.text

    def test_what_is_solved_needs_none(self, judge_curve: Any) -> None:
        assert judge_curve([500.0] * 30, reward_threshold=475.0, no_signal_warning="no signal.").state == "solved"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"train/approx_kl": 0.3}, "lower learning_rate"),
        ({"train/approx_kl": 1e-7, "train/entropy_loss": -0.6}, "higher learning_rate"),
        ({"train/approx_kl": 0.01, "train/entropy_loss": -0.001}, "ent_coef"),
        ({"train/approx_kl": 0.01, "train/entropy_loss": 0.5, "train/std": 0.1}, "total_timesteps"),
        ({}, "total_timesteps"),
    ],
)
def test_what_to_try_where_it_does_not_move_follows_from_the_latest_update(
    judge_curve: Any, metrics: dict[str, float], said: str
) -> None:
    assert said in judge_curve([20.0] * 30, metrics=metrics).text
