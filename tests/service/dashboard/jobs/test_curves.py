"""The curves of jobs, as the browser gets them."""

import json
import math
import time
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest

from service.dashboard.jobs.curves import MAX_POINTS, describe_curves, read_line
from service.jobs.job import Job, JobServices
from service.jobs.records.history import MetricColumn
from service.jobs.totals import JobTotals
from service.schemas.jobs import JobStatus
from tests.support import make_evaluation, make_final_evaluation, make_plan


def test_a_job_brings_its_line_its_evaluations_and_all_keys() -> None:
    job = Job(make_plan(total_timesteps=100, model_name="m"))
    job.start()
    for i in range(1, 4):
        job.progress.advance(10 * i)
        job.progress.publish_metrics({"rollout/ep_rew_mean": float(i), "train/approx_kl": math.nan if i == 2 else 0.5})
    job.progress.publish_evaluation(make_evaluation(20, 3.0).model_dump(exclude={"elapsed_seconds"}))
    job.progress.publish_final_evaluation(make_final_evaluation(2.5).model_dump())
    job.finish(JobStatus.COMPLETED)
    curves = describe_curves(job, ["reward", "train/approx_kl", "no/such"])
    lines = curves["lines"]
    assert lines.keys() == {"rollout/ep_rew_mean", "train/approx_kl", "no/such"}
    assert lines["rollout/ep_rew_mean"][::2] == ([10, 20, 30], [1.0, 2.0, 3.0], [])
    assert lines["train/approx_kl"].values == [0.5, None, 0.5]
    assert lines["no/such"].steps == []
    assert curves["keys"] == ["rollout/ep_rew_mean", "train/approx_kl"]
    (evaluation,) = curves["evaluations"]
    assert (evaluation[0], evaluation[2], evaluation[3:]) == (20, 3.0, [3.0, 3.0])
    assert curves["final"][2] == 2.5
    json.dumps(curves, allow_nan=False)
    record = job.make_record(0, 1)
    assert describe_curves(Job.restore(record), ["reward"])["keys"] == curves["keys"]


def test_after_a_resume_no_time_of_a_curve_lies_in_the_future() -> None:
    job = Job(make_plan(total_timesteps=100))
    job.stop()
    record = job.make_record(0, 1)
    now = time.time()
    record.state.elapsed_seconds = 3600.0
    record.state.start_time = datetime.fromtimestamp(now - 7200.0, UTC)
    job = Job.restore(record)

    def find_end() -> float:
        start: float = describe_curves(job, ["reward"])["start"]
        return start + job.summarize().elapsed_seconds

    assert find_end() == pytest.approx(now - 3600.0)
    job = job.resume(None, JobServices(JobTotals()), None)
    assert find_end() == pytest.approx(now - 3600.0)  # also while it waits
    job.start()
    assert now - 1.0 < find_end() < time.time() + 1.0
    job.finish(JobStatus.COMPLETED)
    assert now - 1.0 < find_end() < time.time() + 1.0


def make_column(values: list[float]) -> MetricColumn:
    """Make a metric with a value at every step, half a second apart."""
    steps = np.arange(len(values))
    return MetricColumn(steps, steps / 2, np.array(values))


def test_a_mean_over_past_episodes_is_no_staircase() -> None:
    values = [1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0]
    assert read_line(make_column(values), "rollout/ep_rew_mean")[::2] == ([0, 3, 5, 7], [1.0, 2.0, 3.0, 3.0], [])
    assert read_line(make_column(values), "train/loss").values == values
    assert read_line(make_column([]), "rollout/ep_rew_mean") == ([], [], [], [], [])


def test_a_plateau_keeps_points_for_its_time() -> None:
    line = read_line(make_column([*range(400, 500), *[500.0] * 400]), "rollout/ep_rew_mean")
    plateau = [step for step, value in zip(line.steps, line.values, strict=True) if value == 500.0]
    assert (plateau[0], plateau[-1]) == (100, 499)
    assert max(after - before for before, after in pairwise(plateau)) <= 8
    # A plateau of 80 % of many reports: where there are too many points, it has its share of them.
    many = read_line(make_column([*range(2000), *[2000.0] * 8000]), "rollout/ep_rew_mean")
    assert max(after - before for before, after in pairwise(many.steps)) <= 200  # two percent of the run


def test_a_long_line_is_the_mean_of_stretches_with_their_bounds() -> None:
    values = [float(i % 4) for i in range(4 * MAX_POINTS)]
    line = read_line(make_column(values), "train/loss")
    assert (line.steps[0], line.steps[-1]) == (3, 4 * MAX_POINTS - 1)
    assert line.seconds[0] == 1.5
    assert line.values == [1.5] * MAX_POINTS
    assert (line.lows, line.highs) == ([0.0] * MAX_POINTS, [3.0] * MAX_POINTS)
    assert read_line(make_column(values), "train/loss", has_bounds=False) == (*line[:3], [], [])
    values[1], values[4:8] = math.inf, [math.nan] * 4
    values[8:10] = [1.7e308] * 2
    broken = read_line(make_column(values), "train/loss")
    assert broken.values[:4] == [float(f"{(0 + 2 + 3) / 3:.5g}"), None, None, 1.5]
    assert broken.lows[:2] == [0.0, None]
    short = read_line(make_column(values[:MAX_POINTS]), "train/loss")
    assert (len(short.values), short.lows, short.highs) == (MAX_POINTS, [], [])
