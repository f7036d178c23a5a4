"""The record of a job, by which it survives the server."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from service.jobs.records.history import HistoryPart
from service.schemas.jobs import (
    EndedBy,
    EvaluationRow,
    FinalEvaluation,
    JobCheckpoint,
    JobLabels,
    JobStatus,
    JobSummary,
    fold_text,
)
from service.schemas.training import ConfigOrigins, TrainConfig
from service.training.planning.plan import TrainingPlan

# Settings that do not affect what is learned, except by chance.
_NOT_OF_RECIPE = frozenset(
    {"seed", "model_name", "replace", "tensorboard_log", "device", "checkpoint_every", "max_restarts"}
)
#: Begins the ``error_message`` of a job whose server was killed.
INTERRUPTED = "interrupted by restart"
#: The warning of an ended job whose checkpoint was there when it ended.
CHECKPOINT_GONE = (
    "its checkpoint is gone, so that a resume begins again: it has made room for those of other jobs "
    "(GRPO_MAX_MODELS_BYTES), or was deleted."
)

#: How the server of a job ended.
ServerEnd = Literal["shutdown", "restart"]


class PlanRecord(BaseModel):
    """The request for a job: the fields of ``TrainingPlan``, without its rewards, which the configuration names."""

    config: dict[str, Any]
    config_origins: ConfigOrigins
    warnings: list[str]
    reward_threshold: float | None
    sweep_id: str | None = None
    init_sha256: str | None = None

    @classmethod
    def describe(cls, plan: TrainingPlan) -> "PlanRecord":
        """Write down a plan."""
        return cls(**{**plan._asdict(), "config": plan.config.model_dump(mode="json"), "warnings": list(plan.warnings)})

    def make_plan(self) -> TrainingPlan:
        """Rebuild the plan without its rewards: they are code, and looked up by name when they are needed."""
        changed = {"config": TrainConfig.read(self.config), "reward": None, "warnings": tuple(self.warnings)}
        return TrainingPlan(**{**dict(self), **changed})


class JobEnd(NamedTuple):
    """How and when a job ends: fields of its state.

    :param is_unsaved: Whether its finished policy is only in memory, for a resume to save.
    """

    status: JobStatus
    error_message: str | None
    end_time: datetime
    ended_by: EndedBy | None
    is_unsaved: bool

    @property
    def is_interruption(self) -> bool:
        """Whether it ended with its server."""
        return self.ended_by in ("shutdown", "restart")


class JobState(BaseModel):
    """Everything about a job that changes, except its history."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    status: JobStatus
    created_at: datetime
    # How it had ended, if it is resumed and its worker has not begun yet: until then its model and its figures stay.
    end_before: JobEnd | None = None
    # When it last left the queue, and how long it had run by then.
    start_time: datetime | None = None
    seconds_before_start: float = 0.0
    end_time: datetime | None = None
    elapsed_seconds: float = 0.0
    current_timesteps: int = 0
    metrics: dict[str, float] = {}
    warnings: list[str]
    error_message: str | None = None
    model_name: str | None = None
    sha256: str | None = None
    ended_by: EndedBy | None = None
    is_unsaved: bool = False
    evaluation: EvaluationRow | None = None
    best_evaluation: EvaluationRow | None = None
    final_evaluation: FinalEvaluation | None = None
    checkpoint: JobCheckpoint | None = None
    n_restarts: int = 0
    n_lost_workers: int = 0
    repeated_timesteps: int = 0
    n_reports: int = 0
    n_stops: int = 0
    stopped_by: Literal["stop", "shutdown"] = "stop"
    last_saved: tuple[str, str] | None = None
    n_silent_rollouts: int = 0
    last_signal_timesteps: int = 0
    has_warned_of_silence: bool = False

    @property
    def n_silent_timesteps(self) -> int:
        """Simulator steps since a rollout had a signal, or since the start."""
        return self.current_timesteps - self.last_signal_timesteps

    def note_signal(self, timesteps: int) -> None:
        """Count rollouts without a signal anew.

        :param timesteps: Simulator steps at the end of the last rollout that had one; 0 for none.
        """
        self.n_silent_rollouts, self.last_signal_timesteps, self.has_warned_of_silence = 0, timesteps, False

    def compute_progress(self, total_timesteps: int) -> float:
        """Compute how much of the job is done, in [0, 1].

        :param total_timesteps: Simulator steps to take in all.
        """
        if self.status is JobStatus.COMPLETED:
            return 1.0
        return min(1.0, self.current_timesteps / total_timesteps)

    def enter(self, end: JobEnd) -> None:
        """Take on a job's end."""
        self.status, self.error_message, self.end_time, self.ended_by, self.is_unsaved = end
        self.end_before = None
        if end.status is JobStatus.COMPLETED:  # nothing is left to go on from
            self.checkpoint = None
            self.warnings = [each for each in self.warnings if each != CHECKPOINT_GONE]

    def reopen(self, status: JobStatus) -> None:
        """Have a job that is resumed wait for its worker; the model and the figures of its end stay until that begins.

        :param status: Its status from now on.
        """
        self.end_before = self.get_end()
        self.status, self.n_stops, self.stopped_by, self.is_unsaved = status, 0, "stop", False
        self.ended_by = self.error_message = self.end_time = None

    @property
    def begins_at(self) -> int:
        """Simulator steps from which its worker goes on."""
        if self.end_before is None:
            return self.current_timesteps
        return 0 if self.checkpoint is None else self.checkpoint.timesteps

    def get_end(self) -> JobEnd:
        """Return the end of a job that has ended."""
        end_time = self.end_time or self.created_at
        return JobEnd(self.status, self.error_message, end_time, self.ended_by, self.is_unsaved)

    def choose_ended_by(self, status: JobStatus, server_end: ServerEnd | None) -> EndedBy | None:
        """Return what ends a job that ends with a status now; None for a failure of its own."""
        if status is JobStatus.FAILED:
            return server_end
        return self.stopped_by if status is JobStatus.STOPPED else self.ended_by or "total_timesteps"

    def forget_checkpoint(self, job_id: str) -> None:
        """Note that the checkpoint is gone."""
        if self.checkpoint is None:
            return
        promise, self.checkpoint = self.describe_resume(job_id), None
        self.warnings.append(CHECKPOINT_GONE)
        if self.error_message is not None:
            self.error_message = self.error_message.replace(promise, self.describe_resume(job_id))

    def describe_end(self) -> str:
        """Say how and where the job has ended, for its history to keep: a resume takes the end out of it."""
        step = f"step {self.current_timesteps:,}"
        if self.get_end().is_interruption:
            return f"been interrupted at {step}."
        if self.status is JobStatus.STOPPED:
            return f"been stopped at {step}."
        return f"failed at {step}: {self.error_message or ''}"

    def describe_interruption(self, job_id: str, was_killed: bool) -> str:
        """Say that the job, which is active, ends with its server, and from where a resume goes on.

        :param was_killed: Whether the server did not stop the job before it ended.
        """
        cause = f"{INTERRUPTED}: the server ended" if was_killed else "the server was shut down"
        return f"{cause} while the job was {self.status}; {self.describe_resume(job_id)}"

    def describe_resume(self, job_id: str) -> str:
        """Say from where a resume would go on."""
        if self.checkpoint is not None:
            resumed = f"goes on from step {self.checkpoint.timesteps:,}"
        elif self.current_timesteps > 0:
            resumed = "starts again from step 0: it has no checkpoint"
        else:
            resumed = "lets it begin"
        return f"POST /training/{job_id}/resume {resumed}."


class JobRecord(NamedTuple):
    """A job as it is written down.

    :param history: All of its history, or the part since the last record.
    :param written_at: When it was written; None before.
    """

    job_id: str
    plan: PlanRecord
    state: JobState
    history: HistoryPart
    labels: JobLabels = JobLabels()
    written_at: datetime | None = None

    def summarize(self) -> JobSummary:
        """Return the job's line in lists of jobs."""
        config = self.plan.config
        return summarize_job(self.job_id, config, compute_recipe(config), self.state, self.labels)


@dataclass(eq=True)
class PastJob:
    """A job's line in the list: all that is in memory of one that ended some time ago."""

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

    @cached_property
    def json_line(self) -> bytes:
        """The line in JSON."""
        return self.summary.model_dump_json().encode()

    @cached_property
    def search_text(self) -> str:
        """The text that a search looks through, folded."""
        line = self.summary
        parts = (line.display_name or "", line.model_name, line.env_name, line.job_id, line.status, *line.tags)
        return fold_text("\n".join((*parts, line.note)))


def summarize_job(
    job_id: str, config: Mapping[str, Any], recipe: str, state: JobState, labels: JobLabels
) -> JobSummary:
    """Return a short description for lists of jobs."""
    return JobSummary(
        job_id=job_id,
        status=state.status,
        progress=state.compute_progress(config["total_timesteps"]),
        env_name=config["env_name"],
        model_name=config["model_name"],
        current_timesteps=state.current_timesteps,
        total_timesteps=config["total_timesteps"],
        created_at=state.created_at,
        elapsed_seconds=state.elapsed_seconds,
        seed=config["seed"],
        recipe=recipe,
        **pick_figures(state.final_evaluation, state.evaluation),
        **dict(labels),
    )


def pick_figures(final: FinalEvaluation | None, latest: EvaluationRow | None) -> dict[str, Any]:
    """Return the figures that stand for a job in its line, each None if missing.

    An evaluation before the first step says nothing about the job.
    """
    chosen = final or (latest if latest is not None and latest.timesteps > 0 else None)
    return {name: getattr(chosen, name, None) for name in ("mean_reward", "mean_reward_ci95", "success_rate")}


def compute_recipe(config: Mapping[str, Any]) -> str:
    """Compute a short hash of a configuration without its seed and its names.

    Defaults are left out, so that jobs from before a field was added keep theirs.
    """
    defaults = TrainConfig.list_defaults()
    chosen = {
        name: value
        for name, value in config.items()
        if name not in _NOT_OF_RECIPE and (name not in defaults or value != defaults[name])
    }
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
