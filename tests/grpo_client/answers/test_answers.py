"""Answers are read from JSON, and have the fields of the server's schemas."""

import dataclasses
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

import grpo_client
from grpo_client import GRPOError, JobEvent, JobSummary, MetricHistory, ServerUnreachable, TrainingStatus
from grpo_client.answers.jobs import Submission
from service.schemas import environments, inference, jobs, models, server, training
from tests.grpo_client.scripted_server import make_status

SUMMARY = {
    "job_id": "j",
    "status": "running",
    "progress": 0.5,
    "env_name": "CartPole-v1",
    "model_name": "m",
    "current_timesteps": 1,
    "total_timesteps": 2,
    "created_at": "2026-11-25T10:00:00Z",
}


def test_unknown_fields_are_ignored() -> None:
    assert JobSummary.parse({**SUMMARY, "colour": "green"}) == JobSummary.parse(SUMMARY)


FIGURES = {
    "n_episodes": 2,
    "mean_reward": 1.5,
    "std_reward": 0.5,
    "mean_reward_ci95": [1.0, 2.0],
    "min_reward": 1.0,
    "max_reward": 2.0,
    "mean_length": 3.0,
    "success_rate": None,
    "success_rate_ci95": None,
}


def test_times_and_nested_answers_are_read_and_written_back() -> None:
    status = TrainingStatus.parse(make_status(best_evaluation=FIGURES, warnings=["w"]))
    assert status.created_at == datetime(2026, 11, 25, 10, tzinfo=UTC)
    assert status.verdict.text == "It learns."
    assert status.best_evaluation is not None
    assert status.best_evaluation.mean_reward_ci95 == (1.0, 2.0)
    assert status.warnings == ("w",)
    written = status.to_json()
    assert written["best_evaluation"]["mean_reward_ci95"] == [1.0, 2.0]
    assert written["created_at"] == "2026-11-25T10:00:00+00:00"
    assert TrainingStatus.parse(written) == status


def test_a_printed_status_begins_with_what_the_saved_policy_earns() -> None:
    final = {**FIGURES, "mean_reward": 500.0, "timesteps": 64, "seconds": 0.1, "complete": False}
    changes = {"evaluation": FIGURES, "final_evaluation": final, "metrics": {"rollout/ep_rew_mean": 170.8}}
    status = make_status(**changes, status="completed", model_name="m")
    _, first, verdict, training, _ = str(TrainingStatus.parse(status)).splitlines()
    assert first.startswith("the saved policy: mean reward 500.00 (95 % interval 1.00 to 2.00)")
    assert first.endswith("2 episodes; time ran out before there were more")
    assert verdict == "verdict: It learns."
    assert (
        training == "mean reward while training: 170.8 (latest episodes, sampled actions: it lags behind evaluations)"
    )


def test_before_that_it_shows_the_latest_evaluation() -> None:
    lines = str(TrainingStatus.parse(make_status(evaluation=FIGURES))).splitlines()
    assert lines[-1].startswith("latest evaluation: mean reward 1.50")
    untrained = make_status(evaluation={**FIGURES, "timesteps": 0}, current_timesteps=64)
    lines = str(TrainingStatus.parse(untrained)).splitlines()
    assert lines[-1].startswith("latest evaluation, before training: mean reward 1.50")


@pytest.mark.parametrize(("status", "yet"), [("failed", ""), ("running", " yet")])
def test_a_policy_that_is_not_saved_is_not_called_so(status: str, yet: str) -> None:
    final = {**FIGURES, "timesteps": 64, "seconds": 0.1, "complete": True}
    lines = str(TrainingStatus.parse(make_status(final_evaluation=final, status=status))).splitlines()
    assert lines[1].startswith(f"the final policy, which is not saved{yet}: mean reward 1.50")


def test_lists_of_answers_are_tuples() -> None:
    rows = [{"timesteps": 1, "elapsed_seconds": 0.1, "metrics": {"a": 1.0}}]
    history = MetricHistory.parse({"job_id": "j", "keys": ["a"], "rows": rows, "evaluations": []})
    assert history.rows[0].metrics == {"a": 1.0}
    assert (history.keys, history.evaluations) == (("a",), ())


@pytest.mark.parametrize("body", [None, [], "text", {}, {"job_id": "j"}, {**SUMMARY, "created_at": "yesterday"}])
def test_an_answer_that_no_grpo_server_sends_is_refused(body: object) -> None:
    with pytest.raises(ServerUnreachable, match="not a JobSummary of a GRPO server"):
        JobSummary.parse(body)


def test_answers_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        JobSummary.parse(SUMMARY).status = "completed"  # type: ignore[misc]  # what is tested


def test_only_the_last_event_carries_a_status() -> None:
    with pytest.raises(GRPOError, match=r"job\.progress is not the last event"):
        _ = JobEvent(1, "job.progress", {}).final_status


@pytest.mark.parametrize(
    ("answer", "schema"),
    [
        (grpo_client.ServerInfo, server.ServerInfo),
        (grpo_client.Health, server.Health),
        (Submission, training.TrainResponse),
        (grpo_client.TrainingStatus, jobs.TrainingStatus),
        (grpo_client.Verdict, jobs.Verdict),
        (grpo_client.EpisodeFigures, jobs.EpisodeFigures),
        (grpo_client.Evaluation, jobs.EvaluationRow),
        (grpo_client.FinalEvaluation, jobs.FinalEvaluation),
        (grpo_client.ValueCheck, models.ValueFigures),
        (grpo_client.JobSummary, jobs.JobSummary),
        (grpo_client.MetricHistory, jobs.JobMetrics),
        (grpo_client.MetricRow, jobs.HistoryRow),
        (grpo_client.Forgotten, jobs.JobDeleteResponse),
        (grpo_client.Stopped, jobs.StopResponse),
        (grpo_client.Prediction, inference.InferenceResponse),
        (grpo_client.ItemError, inference.ItemError),
        (grpo_client.ModelSummary, models.ModelSummary),
        (grpo_client.ModelCard, models.ModelCard),
        (grpo_client.Comparison, models.EvaluateResponse),
        (grpo_client.Deleted, models.DeleteResponse),
        (grpo_client.EnvironmentSummary, environments.EnvironmentSummary),
        (grpo_client.Environment, environments.EnvironmentDescription),
        (grpo_client.RewardFunction, environments.RewardFunctionSummary),
    ],
)
def test_every_field_of_the_server_has_one_here(answer: type, schema: type[BaseModel]) -> None:
    assert {field.name for field in dataclasses.fields(answer)} == schema.model_fields.keys()
