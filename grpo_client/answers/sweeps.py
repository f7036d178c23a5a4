"""The server's answers about sweeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from grpo_client.answers.reading import Answer, Interval
from grpo_client.answers.text import clean, format_counts, format_fact, tabulate


@dataclass(frozen=True, kw_only=True)
class SweepStarted(Answer):
    """Confirmation that a sweep was accepted.

    :param seed: Seed of what was drawn.
    :param n_jobs: How many jobs it may make.
    :param timesteps: Simulator steps that all of them would take.
    """

    sweep_id: str
    name: str
    message: str
    seed: int
    n_settings: int
    n_jobs: int
    timesteps: int


@dataclass(frozen=True, kw_only=True)
class SweepChanged(Answer):
    """Confirmation that a sweep is stopped, goes on, or is forgotten."""

    sweep_id: str
    name: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Trial(Answer):
    """One job of a sweep: a setting with a seed.

    :param rung: Of successive halving: how often the setting was promoted.
    :param job_id: None until there is a job.
    :param mean_reward: What its saved policy earned in its final evaluation; None if that was not measured.
    :param model_name: None if it has no model, or the sweep has removed it.
    """

    number: int
    setting: int
    rung: int
    seed: int
    total_timesteps: int
    status: str
    job_id: str | None
    current_timesteps: int
    error_message: str | None
    mean_reward: float | None
    mean_reward_ci95: Interval | None
    n_episodes: int | None
    model_name: str | None
    sha256: str | None
    success_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class SettingRow(Answer):
    """One setting of a sweep, and what it earned.

    :param values: The fields in which settings differ.
    :param n_seeds: How many evaluated jobs the figures rest on.
    :param rewards: What each of these was evaluated at.
    :param mean_reward_ci95: None with two to four seeds, whose spread says too little.
    :param ci95_over: What the interval is over: ``"seeds"``, or of a single seed its ``"episodes"``.
    """

    number: int
    values: Mapping[str, Any]
    rung: int
    total_timesteps: int
    n_seeds: int
    mean_reward: float | None
    mean_reward_ci95: Interval | None
    ci95_over: str | None
    trials: tuple[Trial, ...]
    rewards: tuple[float, ...] = ()
    success_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class BestSetting(Answer):
    """The setting with the highest evaluated reward, and how sure that is.

    :param lead: By how much it is ahead of ``runner_up``.
    :param lead_ci95: 95 % interval of that over seeds; None with fewer than five seeds each.
    :param is_clear: Whether that interval lies above 0.
    """

    setting: int
    values: Mapping[str, Any]
    mean_reward: float
    mean_reward_ci95: Interval | None
    model_name: str | None
    runner_up: int | None
    lead: float | None
    lead_ci95: Interval | None
    is_clear: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class SweepSummary(Answer):
    """One line of the list of sweeps.

    :param counts: Numbers of jobs by status.
    :param timesteps: Simulator steps of all its jobs so far.
    """

    sweep_id: str
    name: str
    status: str
    method: str
    env_name: str
    created_at: datetime
    end_time: datetime | None
    n_settings: int
    counts: Mapping[str, int]
    timesteps: int
    best_mean_reward: float | None

    @property
    def is_active(self) -> bool:
        """Whether jobs of it may run."""
        return self.status in ("running", "stopping")


@dataclass(frozen=True, kw_only=True)
class Sweep(SweepSummary):
    """A sweep.

    :param request: What was sent; with another name it makes the same jobs.
    :param ended_by: ``"all"``, ``"budget"``, ``"no_evaluation"``, ``"stop"`` or ``"restart"``; None while it goes on.
    :param held_by: What the next job waits for.
    :param settings: The best first.
    """

    request: Mapping[str, Any]
    ended_by: str | None
    held_by: str | None
    settings: tuple[SettingRow, ...]
    best: BestSetting | None

    def __str__(self) -> str:
        return clean(_describe_sweep(self))


def _describe_sweep(sweep: Sweep) -> str:
    """Format a sweep: its status, a table of its settings, the best first, and how sure that is."""
    lines = [f"{sweep.status}: {sweep.name} in {sweep.env_name}, {format_counts(sweep.counts)}, sweep {sweep.sweep_id}"]
    if sweep.held_by is not None:
        lines.append(f"waiting: {sweep.held_by}")
    lines.append(tabulate([_describe_setting(row) for row in sweep.settings]))
    if sweep.best is not None:
        lines.append(sweep.best.text if sweep.n_settings == 1 else f"best: {sweep.best.text}")
        lines += [] if sweep.best.model_name is None else [f"model: {sweep.best.model_name}"]
    errors = {trial.error_message for row in sweep.settings for trial in row.trials if trial.error_message is not None}
    return "\n".join([*lines, *(f"error: {error}" for error in sorted(errors))])


def _describe_setting(row: SettingRow) -> dict[str, Any]:
    return {
        "setting": row.number,
        **{name: format_fact(value) for name, value in row.values.items()},
        "steps": f"{row.total_timesteps:,}",
        "reward": None if row.mean_reward is None else f"{row.mean_reward:.2f}",
        "spread": _describe_spread(row),
        "seeds": row.n_seeds,
    }


def _describe_spread(row: SettingRow) -> str | None:
    """Format the interval of a setting's reward, or what its seeds have earned where these are too few for one."""
    if (interval := row.mean_reward_ci95) is not None:
        return f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}, over {row.ci95_over}"
    if len(row.rewards) < 2:
        return None
    return f"seeds from {min(row.rewards):.2f} to {max(row.rewards):.2f}"
