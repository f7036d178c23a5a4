"""What is written down of a job, so that it survives the server."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from grpo_core.options.hyperparameters import HYPERPARAMETERS
from service.jobs.history import HistoryPart
from service.schemas.jobs import EndedBy, EvaluationRow, FinalEvaluation, JobCheckpoint, JobStatus, JobSummary
from service.schemas.training import ConfigOrigins, TrainConfig
from service.training.plan import TrainingPlan


class PlanRecord(BaseModel):
    """What a job was asked to do. Of its rewards only the names are kept, which the configuration holds."""

    config: dict[str, Any]
    config_origins: ConfigOrigins
    warnings: list[str]
    reward_threshold: float | None
    sweep_id: str | None = None

    @classmethod
    def describe(cls, plan: TrainingPlan) -> "PlanRecord":
        """Write down a plan."""
        return cls(
            config=plan.config.model_dump(mode="json"),
            config_origins=plan.config_origins,
            warnings=list(plan.warnings),
            reward_threshold=plan.reward_threshold,
            sweep_id=plan.sweep_id,
        )

    def make_plan(self) -> TrainingPlan:
        """Make the plan again, but for its rewards: they are code, and looked up by name when they are needed."""
        return TrainingPlan(
            _read_config(self.config),
            None,
            tuple(self.warnings),
            self.reward_threshold,
            self.config_origins,
            self.sweep_id,
        )


class JobState(BaseModel):
    """All of a job that changes, but for its history."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    status: JobStatus
    created_at: datetime
    start_time: datetime | None
    end_time: datetime | None
    elapsed_seconds: float
    current_timesteps: int
    metrics: dict[str, float]
    warnings: list[str]
    error_message: str | None
    model_name: str | None
    sha256: str | None
    ended_by: EndedBy | None
    evaluation: EvaluationRow | None
    best_evaluation: EvaluationRow | None
    final_evaluation: FinalEvaluation | None
    checkpoint: JobCheckpoint | None = None
    n_restarts: int = 0
    last_saved_name: str | None = None
    n_silent_rollouts: int
    last_signal_timesteps: int


class JobRecord(NamedTuple):
    """A job as it is written down.

    :param history: All of its history, or what is new since the last record.
    """

    job_id: str
    plan: PlanRecord
    state: JobState
    history: HistoryPart


class PastJob(NamedTuple):
    """A job that ended some time ago: its line in the list, the rest of which is on the disk."""

    summary: JobSummary

    @property
    def job_id(self) -> str:
        """Its id."""
        return self.summary.job_id

    @property
    def status(self) -> JobStatus:
        """Its final status."""
        return self.summary.status

    def summarize(self) -> JobSummary:
        """Return its line in lists of jobs."""
        return self.summary


def _read_config(fields: Mapping[str, Any]) -> TrainConfig:
    """Read a configuration, perhaps one of another version: it lacks what this one has added since."""
    defaults = {name: row.default for name, row in HYPERPARAMETERS.items()}
    defaults |= {name: field.default for name, field in TrainConfig.model_fields.items() if not field.is_required()}
    known = {name: fields.get(name, defaults.get(name)) for name in TrainConfig.model_fields}
    try:
        return TrainConfig.model_validate(known)
    except ValidationError:
        return TrainConfig.model_construct(None, **known)
