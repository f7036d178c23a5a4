"""Answers of newer and older servers are read alike."""

import dataclasses
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

import grpo_client
from grpo_client import GRPOError, JobEvent, JobSummary, MetricHistory, ServerUnreachable, TrainingStatus
from grpo_client.answers import Submission
from service.schemas import environments, inference, jobs, models, server, training

SUMMARY = {"job_id": "j", "status": "running", "progress": 0.5}


def test_what_is_not_known_is_kept_and_what_is_missing_is_none() -> None:
    summary = JobSummary.parse({**SUMMARY, "colour": "green"})
    assert (summary.env_name, summary.created_at, summary.extra) == (None, None, {"colour": "green"})
    assert summary.to_json()["colour"] == "green"


def test_times_and_answers_within_answers_are_read_and_written_back() -> None:
    body = {
        **SUMMARY,
        "current_timesteps": 1,
        "total_timesteps": 2,
        "created_at": "2026-11-25T10:00:00Z",
        "verdict": {"state": "learning", "text": "It learns."},
        "best_evaluation": {"n_episodes": 2, "mean_reward": 1.5, "std_reward": 0.5, "mean_reward_ci95": [1.0, 2.0]},
        "warnings": ["w"],
    }
    status = TrainingStatus.parse(body)
    assert status.created_at == datetime(2026, 11, 25, 10, tzinfo=UTC)
    assert status.verdict is not None
    assert status.verdict.text == "It learns."
    assert status.best_evaluation is not None
    assert status.best_evaluation.mean_reward_ci95 == (1.0, 2.0)
    assert status.warnings == ("w",)
    written = status.to_json()
    assert written["best_evaluation"]["mean_reward_ci95"] == [1.0, 2.0]
    assert written["created_at"] == "2026-11-25T10:00:00+00:00"
    assert TrainingStatus.parse(written) == status


def test_lists_of_answers_are_tuples() -> None:
    rows = [{"timesteps": 1, "elapsed_seconds": 0.1, "metrics": {"a": 1.0}}]
    history = MetricHistory.parse({"job_id": "j", "keys": ["a"], "rows": rows})
    assert history.rows[0].metrics == {"a": 1.0}
    assert (history.keys, history.evaluations) == (("a",), ())


@pytest.mark.parametrize("body", [None, [], "text", {}, {"job_id": "j"}, {**SUMMARY, "created_at": "yesterday"}])
def test_what_no_server_would_send_is_told(body: object) -> None:
    with pytest.raises(ServerUnreachable, match="no JobSummary of a GRPO server"):
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
        (grpo_client.Evaluation, jobs.EvaluationRow),
        (grpo_client.JobSummary, jobs.JobSummary),
        (grpo_client.MetricHistory, jobs.JobMetrics),
        (grpo_client.MetricRow, jobs.HistoryRow),
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
    fields = {field.name for field in dataclasses.fields(answer)} - {"extra"}
    assert fields == schema.model_fields.keys()
