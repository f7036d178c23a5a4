"""The server's answers about jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from grpo_client.answers.evaluations import Evaluation, FinalEvaluation, describe_evaluation
from grpo_client.answers.reading import Answer, Interval
from grpo_client.answers.text import clean

FINAL_STATUSES = frozenset({"completed", "failed", "stopped"})


@dataclass(frozen=True, kw_only=True)
class JobSummary(Answer):
    """One line of the job list."""

    job_id: str
    status: str
    progress: float
    env_name: str
    model_name: str
    current_timesteps: int
    total_timesteps: int
    created_at: datetime
    elapsed_seconds: float = 0.0
    seed: int = 0
    mean_reward: float | None = None
    mean_reward_ci95: Interval | None = None
    success_rate: float | None = None
    recipe: str = ""
    display_name: str | None = None
    tags: tuple[str, ...] = ()
    note: str = ""
    hidden: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict(Answer):
    """Whether a job is learning, in a word and in a sentence."""

    state: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Answer):
    """A job's latest checkpoint, from which ``resume`` goes on.

    :param exact: Whether training goes on to the same weights as without an interruption; None where that depends on
        the environment.
    :param note: What keeps it from that, or may.
    """

    timesteps: int
    created_at: datetime
    exact: bool | None
    note: str | None


@dataclass(frozen=True, kw_only=True)
class TrainingStatus(Answer):
    """The status of a job. Times are UTC.

    :param progress: From 0 to 1.
    :param metrics: Stable-Baselines3's log keys as of the latest rollout.
    :param model_name: Name of the saved policy; None until there is one.
    :param final_evaluation: What the saved policy earns; None until the job has ended, and if that is unknown.
    :param config_origins: Who chose each field of ``config``: ``"request"``, ``"preset"`` or ``"default"``.
    """

    job_id: str
    status: str
    progress: float
    current_timesteps: int
    total_timesteps: int
    created_at: datetime
    start_time: datetime | None
    end_time: datetime | None
    error_message: str | None
    metrics: Mapping[str, float]
    warnings: tuple[str, ...]
    model_name: str | None
    sha256: str | None
    elapsed_seconds: float
    eta_seconds: float | None
    verdict: Verdict
    evaluation: Evaluation | None
    best_evaluation: Evaluation | None
    final_evaluation: FinalEvaluation | None
    ended_by: str | None
    checkpoint: Checkpoint | None = None
    n_restarts: int = 0
    tensorboard_run: str | None
    sweep_id: str | None = None
    config: Mapping[str, Any]
    config_origins: Mapping[str, str]
    display_name: str | None = None
    tags: tuple[str, ...] = ()
    note: str = ""
    hidden: bool = False

    def __str__(self) -> str:
        return clean(_describe_status(self))

    @property
    def is_final(self) -> bool:
        """Whether it can no longer change."""
        return self.status in FINAL_STATUSES

    @property
    def is_interrupted(self) -> bool:
        """Whether it ended because its server did: killed, or shut down."""
        return self.ended_by in ("shutdown", "restart")


@dataclass(frozen=True, kw_only=True)
class Submission(Answer):
    """Confirmation that a job was accepted.

    :param config: The request with every default filled in; sent again, it repeats the job.
    :param config_origins: Who chose each field of it: ``"request"``, ``"preset"`` or ``"default"``.
    """

    job_id: str
    message: str
    config: Mapping[str, Any]
    config_origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Forgotten(Answer):
    """Confirmation that a job was deleted."""

    job_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Stopped(Answer):
    """Confirmation that a job was told to stop."""

    job_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Resumed(Answer):
    """Confirmation that a job goes on.

    :param timesteps: Simulator steps that it goes on from; 0 begins again.
    """

    job_id: str
    message: str
    timesteps: int
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MetricRow(Answer):
    """Metrics of one rollout and the update before it."""

    timesteps: int
    elapsed_seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class MetricHistory(Answer):
    """Metrics of a job over time, oldest first."""

    job_id: str
    keys: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    evaluations: tuple[Evaluation, ...]
    final_evaluation: FinalEvaluation | None = None


def _describe_status(status: TrainingStatus) -> str:
    """Format the status of a job."""
    steps = f"{status.current_timesteps:,} of {status.total_timesteps:,} steps"
    lines = [f"{status.status}: {steps}{_format_times(status)}, job {status.job_id}"]
    if status.error_message is not None:
        lines.append(f"error: {status.error_message}")
    if status.final_evaluation is not None:
        cut = "" if status.final_evaluation.complete else "; time ran out before there were more"
        lines.append(f"{_name_policy(status)}: {describe_evaluation(status.final_evaluation)}{cut}")
    if status.verdict.state != "failed" or status.error_message is None:  # it would only say that there is an error
        lines.append(f"verdict: {status.verdict.text}")
    if status.final_evaluation is None and status.evaluation is not None:
        is_untrained = status.evaluation.timesteps == 0 and status.current_timesteps > 0
        when = ", before training" if is_untrained else ""
        lines.append(f"latest evaluation{when}: {describe_evaluation(status.evaluation)}")
    if status.best_evaluation is not None and status.config.get("keep_best"):
        lines.append(f"best evaluation: {describe_evaluation(status.best_evaluation)}")
    if "rollout/ep_rew_mean" in status.metrics:
        mean = f"{status.metrics['rollout/ep_rew_mean']:.1f}"
        lines.append(
            f"mean reward while training: {mean} (latest episodes, sampled actions: it lags behind evaluations)"
        )
    lines += [f"warning: {warning}" for warning in status.warnings]
    if status.model_name is not None:
        lines.append(f"model: {status.model_name}")
    return "\n".join(lines)


def _name_policy(status: TrainingStatus) -> str:
    if status.model_name is not None:
        return "the saved policy"
    return f"the final policy, which is not saved{'' if status.is_final else ' yet'}"


def _format_times(status: TrainingStatus) -> str:
    return f" in {status.elapsed_seconds:.1f} s" + (
        "" if status.eta_seconds is None else f", {status.eta_seconds:.0f} s left"
    )
