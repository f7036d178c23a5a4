"""The first figure of a job and of a model: what the policy earns, not what training reports."""

from datetime import UTC, datetime
from typing import Any

import pytest

from service.dashboard.widgets.headline import Headline, choose_headline, describe_figures, describe_model
from service.jobs.job import Job
from service.schemas.jobs import EpisodeFigures, FinalEvaluation, JobStatus, TrainingStatus
from service.schemas.models import ModelCard, ModelStatus
from tests.support import make_evaluation, make_plan

FIGURES: dict[str, Any] = {
    "n_episodes": 10,
    "mean_reward": 500.0,
    "std_reward": 4.0,
    "mean_reward_ci95": (480.5, 500.0),
    "min_reward": 490.0,
    "max_reward": 500.0,
    "mean_length": 500.0,
    "success_rate": None,
    "success_rate_ci95": None,
}
FINAL = FinalEvaluation(**FIGURES, timesteps=10_000, seconds=0.5, complete=True)
OF_GOALS = FINAL.model_copy(update={"success_rate": 0.9, "success_rate_ci95": (0.596, 0.982)})
CUT = FINAL.model_copy(update={"n_episodes": 4, "complete": False})


@pytest.fixture(scope="module")
def status() -> TrainingStatus:
    """The status of a job whose training reports a mean."""
    job = Job(make_plan(env_name="CartPole-v1"))
    return job.describe().model_copy(update={"metrics": {"rollout/ep_rew_mean": 170.8}, "status": JobStatus.RUNNING})


def test_before_an_evaluation_the_training_mean_is_not_the_headline(status: TrainingStatus) -> None:
    assert choose_headline(status) == Headline("", "", "no evaluation yet", "training mean 170.8")
    over = status.model_copy(update={"status": JobStatus.COMPLETED})
    assert choose_headline(over) == Headline("", "", "no evaluation", "training mean 170.8")
    assert choose_headline(over.model_copy(update={"metrics": {}})).training == ""


def test_while_it_runs_the_latest_evaluation_is_the_headline(status: TrainingStatus) -> None:
    headline = choose_headline(status.model_copy(update={"evaluation": make_evaluation(4096, 300.0)}))
    assert headline == Headline(
        "300.0",
        "all 2 episodes earned 300.0",
        "evaluation after 4,096 steps, mean of 2 episodes",
        "training mean 170.8",
    )


@pytest.mark.parametrize(
    ("final", "caption"),
    [
        (FINAL, "final evaluation, mean of 10 episodes"),
        (CUT, "final evaluation, mean of the first 4 episodes"),
    ],
    ids=["complete", "cut"],
)
def test_at_the_end_the_final_evaluation_is(status: TrainingStatus, final: FinalEvaluation, caption: str) -> None:
    given = {"evaluation": make_evaluation(4096, 300.0), "final_evaluation": final, "status": JobStatus.COMPLETED}
    assert choose_headline(status.model_copy(update=given)) == Headline(
        "500.0", "95 % interval 480.5 to 500.0", caption, "training mean 170.8"
    )


def test_a_model_shows_its_final_evaluation_before_others() -> None:
    card = ModelCard(name="any", status=ModelStatus.SAVED, n_bytes=1, sha256=None, modified_at=datetime.now(UTC))
    assert describe_model(card) is None
    other = EpisodeFigures(**{**FIGURES, "mean_reward": 3.0, "n_episodes": 1, "mean_reward_ci95": None})
    card = card.model_copy(update={"evaluation": other})
    assert describe_model(card) == Headline("3", "", "evaluation, mean of 1 episode")
    card = card.model_copy(update={"final_evaluation": CUT, "config": {"n_eval_episodes": 10}})
    assert describe_model(card) == Headline(
        "500.0", "95 % interval 480.5 to 500.0", "final evaluation, mean of the first 4 episodes"
    )


def test_the_success_rate_stands_beside_the_reward_where_the_environment_knows_success(status: TrainingStatus) -> None:
    for final, success, success_interval in (
        (FINAL, "", ""),
        (OF_GOALS, "success 90 %", "95 % interval 59.6 to 98.2 %"),
    ):
        headline = choose_headline(status.model_copy(update={"final_evaluation": final}))
        assert (headline.success, headline.success_interval) == (success, success_interval)


def test_an_evaluation_is_written_in_one_line() -> None:
    assert describe_figures(FINAL) == "500.0 (480.5 to 500.0), 10 episodes"
    assert describe_figures(OF_GOALS) == "500.0 (480.5 to 500.0), success 90 %, 10 episodes"
