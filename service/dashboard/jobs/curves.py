"""The curves of jobs, as the browser draws them."""

import math
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service.jobs.job import Job
from service.jobs.records.history import MetricColumn
from service.jobs.records.record import JobState

#: Stands for the evaluations with their intervals, beside what training itself earned.
REWARD = "reward"
TRAINING_KEY = "rollout/ep_rew_mean"
# Means over the last episodes stay the same until another one ends: drawn as reported, they would be staircases.
_OF_EPISODES = ("rollout/ep_", "rollout/success")
# A value that stays the same for more reports than this, or than a point stands for, is a plateau with its own points.
_STAIR_REPORTS = 8
# Points of a line: more could not be told apart in a chart of a few hundred pixels.
MAX_POINTS = 400


class Line(NamedTuple):
    """A metric over time, in columns.

    :param steps: Simulator steps.
    :param seconds: Time since the job started.
    :param values: Each the mean of a stretch if there are many; None where it is not finite, which is a gap.
    :param lows: The lowest value of each stretch; empty if every value is there, or without bounds.
    :param highs: Likewise the highest.
    """

    steps: list[int]
    seconds: list[float]
    values: list[float | None]
    lows: list[float | None]
    highs: list[float | None]


def describe_curves(job: Job, metrics: Iterable[str], has_bounds: bool = True) -> dict[str, Any]:
    """Describe some of a job's curves: for each metric its steps, seconds and values.

    :param metrics: ``REWARD`` or log keys.
    :param has_bounds: Whether the bounds of long lines are wanted, which double what is sent.
    """
    line, final = job.summarize(), job.state.final_evaluation
    wanted = {TRAINING_KEY if metric == REWARD else metric for metric in metrics}
    return {
        "id": job.job_id,
        "name": line.display_name or line.model_name,
        "env": line.env_name,
        "recipe": line.recipe,
        "start": _find_start(job.state),
        "keys": job.history.list_keys(),
        "lines": {metric: read_line(job.history.get_column(metric), metric, has_bounds) for metric in wanted},
        "evaluations": [
            [row.timesteps, round(row.elapsed_seconds, 2), row.mean_reward, *(row.mean_reward_ci95 or ())]
            for row in job.history.list_evaluations()
        ],
        "final": None
        if final is None
        else [final.timesteps, round(line.elapsed_seconds, 2), final.mean_reward, *(final.mean_reward_ci95 or ())],
    }


def read_line(column: MetricColumn, key: str, has_bounds: bool = True) -> Line:
    """Write a metric as a line of at most ``MAX_POINTS`` points.

    A mean over past episodes is taken only where it has changed, now and then on a plateau, and at last.
    """
    if key.startswith(_OF_EPISODES) and len(column.values):
        is_news = np.append(True, column.values[1:] != column.values[:-1])
        is_news[:: max(_STAIR_REPORTS, len(is_news) // MAX_POINTS)] = True
        is_news[-1] = True
        column = MetricColumn(*(part[is_news] for part in column))
    n_points = len(column.values)
    if n_points <= MAX_POINTS:
        return Line(column.timesteps.tolist(), _list_seconds(column.seconds), _round_all(column.values), [], [])
    ends = n_points * np.arange(MAX_POINTS + 1) // MAX_POINTS
    starts, lasts = ends[:-1], ends[1:] - 1
    is_finite = np.isfinite(column.values)
    counts = np.add.reduceat(is_finite.astype(np.float64), starts)
    # A stretch without a finite value is a gap, and so is one whose sum is not finite.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        means = np.add.reduceat(np.where(is_finite, column.values, 0.0), starts) / counts
    lows = np.minimum.reduceat(np.where(is_finite, column.values, np.inf), starts)
    highs = np.maximum.reduceat(np.where(is_finite, column.values, -np.inf), starts)
    return Line(
        column.timesteps[lasts].tolist(),
        _list_seconds(column.seconds[lasts]),
        _round_all(means),
        _round_all(lows) if has_bounds else [],
        _round_all(highs) if has_bounds else [],
    )


def _list_seconds(seconds: npt.NDArray[np.float64]) -> list[float]:
    return [round(value, 2) for value in seconds.tolist()]


def _round_all(values: npt.NDArray[np.float64]) -> list[float | None]:
    """Round to five digits, which are more than a chart shows; None stands for what is not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def _find_start(state: JobState) -> float | None:
    """Return the moment from which its seconds count: they go on after a resume, without the pause before it."""
    if state.start_time is None:
        return None
    return (state.start_time - timedelta(seconds=state.seconds_before_start)).timestamp()
