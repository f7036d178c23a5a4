"""The curves of runs, as the browser draws them."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from service.jobs.job import Job

#: Stands for the evaluations with their intervals, beside what training itself earned.
REWARD = "reward"
TRAINING_KEY = "rollout/ep_rew_mean"
# Means over the last episodes: until another one ends they stay the same, which is no news but a staircase.
_OF_EPISODES = ("rollout/ep_", "rollout/success")
# Points of a line: more could not be told apart in a chart of a few hundred pixels.
MAX_POINTS = 400


class Line(NamedTuple):
    """A metric over time, in columns.

    :param steps: Simulator steps.
    :param seconds: Time since the run started.
    :param values: Each the mean of a stretch if there are many; None where it is not finite, which is a gap.
    :param bounds: The lowest and the highest value of each stretch; empty if every value is there.
    """

    steps: list[int]
    seconds: list[float]
    values: list[float | None]
    bounds: list[tuple[float | None, float | None]]


def describe_curves(job: Job, metrics: Iterable[str]) -> dict[str, Any]:
    """Describe some of a job's curves: for each metric its steps, seconds and values.

    :param metrics: ``REWARD`` or log keys.
    """
    line, final = job.summarize(), job.final_evaluation
    wanted = {TRAINING_KEY if metric == REWARD else metric for metric in metrics}
    return {
        "id": job.job_id,
        "name": line.display_name or line.model_name,
        "env": line.env_name,
        "recipe": line.recipe,
        "start": _to_epoch(job.start_time),
        "keys": job.history.list_keys(),
        "lines": {metric: read_line(job.history.list_points(metric), metric) for metric in wanted},
        "evaluations": [
            [row.timesteps, round(row.elapsed_seconds, 2), row.mean_reward, *(row.mean_reward_ci95 or ())]
            for row in job.history.list_evaluations()
        ],
        "final": None
        if final is None
        else [final.timesteps, round(line.elapsed_seconds, 2), final.mean_reward, *(final.mean_reward_ci95 or ())],
    }


def read_line(points: Sequence[tuple[int, float, float]], key: str) -> Line:
    """Write the points of a metric as a line.

    A mean over past episodes is taken only where it has changed, and at last.

    :param points: Steps, seconds and values, oldest first.
    """
    if key.startswith(_OF_EPISODES):
        points = [point for i, point in enumerate(points) if i in (0, len(points) - 1) or point[2] != points[i - 1][2]]
    if len(points) <= MAX_POINTS:
        steps, seconds = [point[0] for point in points], [round(point[1], 2) for point in points]
        return Line(steps, seconds, [_round(point[2]) for point in points], [])
    line = Line([], [], [], [])
    for i in range(MAX_POINTS):
        stretch = points[len(points) * i // MAX_POINTS : len(points) * (i + 1) // MAX_POINTS]
        finite = [value for _, _, value in stretch if math.isfinite(value)]
        line.steps.append(stretch[-1][0])
        line.seconds.append(round(stretch[-1][1], 2))
        line.values.append(_round(sum(finite) / len(finite)) if finite else None)
        line.bounds.append((_round(min(finite)), _round(max(finite))) if finite else (None, None))
    return line


def _round(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _to_epoch(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
