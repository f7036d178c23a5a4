"""Where a job is, what it has measured, and how its policy does."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas.training import TrainConfig

EndedBy = Literal["total_timesteps", "stop_reward", "patience", "max_seconds", "stop"]
VerdictState = Literal["waiting", "starting", "learning", "solved", "steady", "flat", "worse", "no_signal", "failed"]


class JobStatus(StrEnum):
    """Where a training job is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether it can no longer change."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class EpisodeFigures(BaseModel):
    """What some whole episodes say of a policy. Rewards are the environment's own."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    n_episodes: int = Field(ge=1)
    mean_reward: float = Field(description="Mean sum of rewards of an episode.")
    std_reward: float = Field(ge=0, description="Standard deviation of the sums.")
    mean_reward_ci95: tuple[float, float] | None = Field(description="95 % interval; null of a single episode.")
    min_reward: float
    max_reward: float
    mean_length: float = Field(ge=0, description="Steps per episode.")
    success_rate: float | None = Field(ge=0, le=1, description="Null where success is not defined.")
    success_rate_ci95: tuple[float, float] | None


class EvaluationRow(EpisodeFigures):
    """What some whole episodes say of a job's policy as it was at one time."""

    timesteps: int = Field(description="Simulator steps that the policy had been trained for.")
    elapsed_seconds: float = Field(description="Time since the job was started.")


class Verdict(BaseModel):
    """Whether a job is learning, in a word and in a sentence."""

    state: VerdictState
    text: str = Field(description="What it means and, where something can be done, what to try.")


class TrainingStatus(BaseModel):
    """Where a job is. Times are UTC."""

    job_id: str
    status: JobStatus
    progress: float = Field(ge=0, le=1)
    current_timesteps: int
    total_timesteps: int
    created_at: datetime
    start_time: datetime | None = Field(description="None while the job is queued.")
    end_time: datetime | None
    error_message: str | None
    metrics: dict[str, float] = Field(description="Stable-Baselines3's log keys, as of the latest rollout.")
    warnings: list[str]
    model_name: str | None = Field(description="Where the policy is kept; None as long as there is none.")
    sha256: str | None = Field(description="SHA-256 of the model file.")
    elapsed_seconds: float = Field(description="Time since the job was started; 0 while it is queued.")
    eta_seconds: float | None = Field(description="Time that is left at the pace so far; None if unknown.")
    verdict: Verdict
    evaluation: EvaluationRow | None = Field(description="The latest evaluation.")
    best_evaluation: EvaluationRow | None = Field(description="The one with the highest mean reward.")
    ended_by: EndedBy | None = Field(description="Why the training ended; None while it goes on, or if it failed.")
    tensorboard_run: str | None = Field(description="Name of the run in TensorBoard; None where none was asked for.")
    config: TrainConfig


class JobSummary(BaseModel):
    """One line of the job list."""

    job_id: str
    status: JobStatus
    progress: float
    env_name: str
    model_name: str = Field(description="The name that was asked for.")
    current_timesteps: int
    total_timesteps: int
    created_at: datetime


class JobList(BaseModel):
    """All jobs the server remembers, oldest first."""

    jobs: list[JobSummary]


class HistoryRow(BaseModel):
    """What one rollout and the update before it measured."""

    timesteps: int
    elapsed_seconds: float
    metrics: dict[str, float]


class JobMetrics(BaseModel):
    """What a job has measured over time."""

    job_id: str
    keys: list[str] = Field(description="Every key of the rows' metrics, sorted.")
    rows: list[HistoryRow] = Field(description="Oldest first: all, or every second, fourth, ... of a long job.")
    evaluations: list[EvaluationRow]


class StopResponse(BaseModel):
    """A job was told to stop."""

    message: str
    job_id: str
