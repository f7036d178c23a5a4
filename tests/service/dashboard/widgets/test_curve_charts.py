"""The points of a job's history that the charts get."""

from typing import Any

from service.dashboard.widgets.curve_charts import collect_points
from service.jobs.history import JobEvent


def make_metrics(event_id: int, timesteps: int, **metrics: float) -> JobEvent:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return JobEvent(event_id, "job.metrics", {"timesteps": timesteps, "elapsed_seconds": 1.0, "metrics": named})


def make_evaluation(timesteps: int, mean_reward: float, interval: Any) -> JobEvent:
    payload = {"timesteps": timesteps, "mean_reward": mean_reward, "mean_reward_ci95": interval}
    return JobEvent(1, "job.evaluation", payload)


def test_each_metric_goes_to_its_chart_and_entropy_is_the_negative_of_its_loss() -> None:
    row = make_metrics(
        1,
        64,
        rollout__ep_rew_mean=20.0,
        train__entropy_loss=-0.6,
        train__approx_kl=0.01,
        rollout__zero_std_group_fraction=0.5,
        time__fps=1000.0,
    )
    assert collect_points([row]) == {
        "training": [[64, 20.0]],
        "entropy": [[64, 0.6]],
        "kl": [[64, 0.01]],
        "silence": [[64, 0.5]],
    }


def test_evaluations_bring_their_interval_if_there_is_one() -> None:
    events = [make_evaluation(100, 30.0, (20.0, 40.0)), make_evaluation(200, 50.0, None)]
    assert collect_points(events) == {"evaluation": [[100, 30.0, 20.0, 40.0], [200, 50.0]]}


def test_the_final_evaluation_is_a_point_of_its_own() -> None:
    payload = {"timesteps": 300, "mean_reward": 40.0, "mean_reward_ci95": (30.0, 50.0), "complete": True}
    assert collect_points([JobEvent(1, "job.final_evaluation", payload)]) == {"final": [[300, 40.0, 30.0, 50.0]]}


def test_other_events_make_no_points() -> None:
    assert collect_points([JobEvent(1, "job.status", {"status": "running"})]) == {}


def test_a_long_history_is_thinned_and_keeps_its_ends() -> None:
    line = collect_points([make_metrics(i, i, train__approx_kl=float(i)) for i in range(2000)])["kl"]
    assert len(line) <= 601
    assert (line[0], line[-1]) == ([0, 0.0], [1999, 1999.0])
    assert len(collect_points([make_metrics(i, i, train__approx_kl=0.0) for i in range(600)])["kl"]) == 600
