"""Sweeps: the same training with several settings, and what they earned."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas.fields import MAX_SEED, ModelName, Request
from service.schemas.jobs import Interval95
from service.schemas.training import TrainRequest

# What is left of a model's name for the numbers of a sweep's jobs.
_MAX_NAME_CHARS = 70
_MAX_FIELDS = 16
MAX_VALUES = 64
MAX_SEEDS = 16
# Jobs of one sweep: a larger table could not be read.
MAX_JOBS = 512
# As POST /train allows.
_MAX_TIMESTEPS = 10_000_000

SweepMethod = Literal["grid", "random", "halving"]
Keep = Literal["best", "all"]
SweepName = Annotated[ModelName, Field(max_length=_MAX_NAME_CHARS)]


class Distribution(BaseModel):
    """A range to draw a field's values from."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    distribution: Literal["uniform", "loguniform", "integer"]
    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    step: int = Field(1, ge=1, le=_MAX_TIMESTEPS, description="Distance between the integers, from `low` on.")


class SweepRequest(Request):
    """Which settings to try."""

    _remedies: ClassVar = dict.fromkeys(
        TrainRequest.model_fields.keys() - {"model_name", "replace"}, "it is one of a training, so put it into base"
    )

    name: SweepName | None = Field(
        None, description="Name of the sweep; its models are called `<name>-01` and so on. Default: a generated one."
    )
    base: TrainRequest = Field(
        default_factory=TrainRequest, description="What all jobs have in common: a request for `POST /train`."
    )
    space: dict[str, Any] = Field(
        default_factory=dict,
        max_length=_MAX_FIELDS,
        description="What to vary; without it, `seeds` alone. "
        "Fields of `POST /train`, each with a list of values or with a range: `distribution` (`uniform`, "
        "`loguniform` or `integer`), `low`, `high`, and for integers a `step`.",
    )
    method: SweepMethod = Field(
        "grid",
        description="`grid`: every combination of the values. `random`: `n_trials` random settings. `halving`: random "
        "settings too, all trained for a few steps at first; then the best of them are trained anew with more steps, "
        "round by round, up to `total_timesteps`.",
    )
    n_trials: int | None = Field(
        None, ge=1, le=MAX_JOBS, description="How many random settings to try; not for a grid."
    )
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] | None = Field(
        None,
        min_length=1,
        max_length=MAX_SEEDS,
        description="Each setting is trained with each of these. Default: the seed of `base`, or else 0.",
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Seed for choosing random settings. Default: a random one."
    )
    max_active: int | None = Field(
        None,
        ge=1,
        le=64,
        description="How many jobs of the sweep may run or wait at the same time. Default: as many as the server runs.",
    )
    budget_timesteps: int | None = Field(
        None,
        ge=1,
        le=MAX_JOBS * _MAX_TIMESTEPS,
        description="Simulator steps that all jobs may take together, with those that are taken again after a restart. "
        "A job starts only if its steps, in whole rollouts, fit beside those that other jobs have taken or will take.",
    )
    reduction_factor: int | None = Field(
        None, ge=2, le=16, description="`halving` keeps one setting in this many for the next round. Default: 3."
    )
    min_timesteps: int | None = Field(
        None,
        ge=1,
        le=_MAX_TIMESTEPS,
        description="Fewest steps of a job in the first round of `halving`. Default: no limit.",
    )
    keep: Keep = Field("best", description="Which models are kept: only the `best` one so far, or `all`.")


class SweepStatus(StrEnum):
    """The status of a sweep."""

    RUNNING = "running"
    STOPPING = "stopping"  # its jobs are saving what they have learned
    COMPLETED = "completed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"  # by the end of the server

    @property
    def is_active(self) -> bool:
        """Whether jobs of it may run."""
        return self in (SweepStatus.RUNNING, SweepStatus.STOPPING)


class TrialStatus(StrEnum):
    """The status of one job of a sweep."""

    WAITING = "waiting"  # not a job yet
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"  # or refused before it was a job
    STOPPED = "stopped"  # by hand
    INTERRUPTED = "interrupted"  # by the end of the sweep or of the server
    SKIPPED = "skipped"  # beyond the budget

    @property
    def is_active(self) -> bool:
        """Whether it is a job that has not ended."""
        return self in (TrialStatus.QUEUED, TrialStatus.RUNNING)

    @property
    def is_final(self) -> bool:
        """Whether nothing more comes of it."""
        return self in (TrialStatus.COMPLETED, TrialStatus.FAILED, TrialStatus.STOPPED, TrialStatus.SKIPPED)


class Trial(BaseModel):
    """One job of a sweep: a setting with a seed."""

    number: int = Field(description="Its place in the sweep, from 1 on.")
    setting: int = Field(description="Number of the setting.")
    rung: int = Field(0, description="Of `halving`: how often the setting was promoted.")
    seed: int
    total_timesteps: int = Field(description="Simulator steps that it is to train for.")
    status: TrialStatus = TrialStatus.WAITING
    job_id: str | None = Field(None, description="Null until there is one.")
    current_timesteps: int = 0
    error_message: str | None = None
    mean_reward: float | None = Field(
        None, description="`mean_reward` of its `final_evaluation`; null where none was made."
    )
    mean_reward_ci95: Interval95 = Field(None, description="Its interval over episodes.")
    n_episodes: int | None = None
    success_rate: float | None = Field(None, description="Null where the environment does not define success.")
    model_name: str | None = Field(None, description="Its model; null if it has none, or the sweep has removed it.")
    sha256: str | None = Field(None, description="SHA-256 of the model's file, as it was saved.")


class SettingRow(BaseModel):
    """One setting, and what it earned."""

    number: int = Field(description="From 1 on.")
    values: dict[str, Any] = Field(description="The fields in which settings differ.")
    rung: int = Field(description="Of `halving`: the last one that it has figures for; else 0.")
    total_timesteps: int = Field(description="Simulator steps of each of its jobs on that rung.")
    n_seeds: int = Field(description="Completed jobs on that rung that were evaluated: what the figures rest on.")
    mean_reward: float | None = Field(description="Mean over these of their evaluated rewards; null without any.")
    rewards: list[float] = Field(description="What each of these was evaluated at, in the order of its seeds.")
    mean_reward_ci95: Interval95 = Field(
        description="95 % confidence interval of it; null with two to four seeds, whose spread says too little."
    )
    ci95_over: Literal["seeds", "episodes"] | None = Field(
        description="What the interval is over: `seeds`, or where there is one seed only, its `episodes`."
    )
    success_rate: float | None = Field(
        None, description="Mean over these of their success rates; null where the environment does not define success."
    )
    trials: list[Trial]


class BestSetting(BaseModel):
    """The setting with the highest evaluated reward, of those that have all their seeds if there are any."""

    setting: int = Field(description="Its number.")
    values: dict[str, Any]
    mean_reward: float
    mean_reward_ci95: Interval95
    model_name: str | None = Field(description="The model of it that was evaluated best.")
    runner_up: int | None = Field(description="Number of the next one that has as much evidence; null without any.")
    lead: float | None = Field(description="By how much it is ahead of that.")
    lead_ci95: Interval95 = Field(
        description="Welch's interval of the lead over seeds; null with fewer than five each."
    )
    is_clear: bool = Field(description="Whether that interval lies above 0.")
    text: str = Field(description="The same in words, and what to try.")


class SweepSummary(BaseModel):
    """One line of the list of sweeps."""

    sweep_id: str
    name: str
    status: SweepStatus
    method: SweepMethod
    env_name: str
    created_at: datetime
    end_time: datetime | None
    n_settings: int
    counts: dict[TrialStatus, int] = Field(description="Numbers of jobs by status.")
    timesteps: int = Field(
        description="Simulator steps that all its jobs have taken so far, with those taken again after a restart."
    )
    best_mean_reward: float | None = Field(description="Evaluated reward of the best setting so far.")


class SweepList(BaseModel):
    """Sweeps, the newest first."""

    sweeps: list[SweepSummary]
    n_total: int = Field(description="Number of all sweeps.")


class SweepDescription(SweepSummary):
    """A sweep."""

    request: dict[str, Any] = Field(
        description="As it was sent, with its name and its seeds filled in; sent again with another name, it makes the "
        "same jobs."
    )
    ended_by: Literal["all", "budget", "no_evaluation", "stop", "restart"] | None = Field(
        description="Why it ended: `all` jobs were done, or the budget did not allow another, or no job of a rung "
        "could be evaluated, or it was stopped, or the server ended."
    )
    held_by: str | None = Field(description="What its next job waits for; null if for nothing.")
    settings: list[SettingRow] = Field(description="The best first; those without a figure last.")
    best: BestSetting | None = Field(description="Null until a job was evaluated.")


class SweepMessage(BaseModel):
    """Confirms what was asked of a sweep."""

    message: str
    sweep_id: str
    name: str


class SweepStarted(SweepMessage):
    """A sweep was accepted."""

    seed: int = Field(description="Seed that the random settings were chosen with.")
    n_settings: int
    n_jobs: int = Field(description="How many jobs it may make.")
    timesteps: int = Field(description="Simulator steps that all of them would take.")
