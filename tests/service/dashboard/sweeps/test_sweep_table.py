"""The table of a sweep's settings, and what pages say of its end."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nicegui import Client, ui

from service.dashboard.sweeps import sweep_page
from service.dashboard.sweeps.sweep_page import TrialModels
from service.dashboard.sweeps.sweep_table import describe_spread, write_sweep_table
from service.dashboard.sweeps.sweeps_page import describe_best
from service.schemas.sweeps import SettingRow, SweepDescription, SweepStatus, Trial, TrialStatus
from tests.models import make_model
from tests.support import open_model_store


def make_sweep(*trials: Trial) -> SweepDescription:
    """Make a sweep with one setting."""
    row = SettingRow(
        number=1,
        values={"gamma": 0.9},
        rung=0,
        total_timesteps=64,
        n_seeds=0,
        mean_reward=None,
        rewards=[],
        mean_reward_ci95=None,
        ci95_over=None,
        trials=list(trials),
    )
    return SweepDescription(
        sweep_id="s",
        name="s",
        status=SweepStatus.COMPLETED,
        method="grid",
        env_name="CartPole-v1",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        end_time=None,
        n_settings=1,
        counts={},
        timesteps=0,
        best_mean_reward=None,
        request={},
        ended_by=None,
        held_by=None,
        settings=[row],
        best=None,
    )


def test_every_job_has_a_link_to_its_page() -> None:
    trials = [Trial(number=i, setting=1, seed=i, total_timesteps=64, job_id=f"id{i}") for i in range(2)]
    waiting = Trial(number=3, setting=1, seed=2, total_timesteps=64)
    table = write_sweep_table(make_sweep(*trials, waiting), {})
    assert '<a href="/dashboard/jobs/id0">seed 0</a> <a href="/dashboard/jobs/id1">seed 1</a>' in table
    assert "seed 2" not in table
    assert '<td data-name="gamma">0.9</td><td data-name="Steps">64</td>' in table  # as a phone shows them


def test_the_spread_over_seeds_is_a_margin_and_a_range() -> None:
    (row,) = make_sweep().settings
    seeds = {"rewards": [480.0, 500.0], "mean_reward_ci95": (480.0, 502.0), "ci95_over": "seeds"}
    assert describe_spread(row.model_copy(update=seeds)) == "± 11 (95 %), seeds from 480.0 to 500.0"
    few = {"rewards": [480.0, 500.0]}
    assert describe_spread(row.model_copy(update=few)) == "seeds from 480.0 to 500.0"
    episodes = {"rewards": [480.0], "mean_reward_ci95": (470.0, 490.0), "ci95_over": "episodes"}
    assert describe_spread(row.model_copy(update=episodes)) == "95 % interval 470.0 to 490.0 over episodes"
    assert describe_spread(row) == ""


def test_the_success_of_a_goal_task_stands_beside_the_reward() -> None:
    sweep = make_sweep()
    assert "success" not in write_sweep_table(sweep, {})
    sweep.settings[0] = sweep.settings[0].model_copy(update={"mean_reward": 0.5, "success_rate": 0.75})
    assert '<b>0.5</b> <span class="small">success 75 %</span></td>' in write_sweep_table(sweep, {})


def test_why_jobs_have_failed_can_be_opened_and_is_said_once() -> None:
    failed = [
        Trial(number=i, setting=1, seed=i, total_timesteps=64, status=TrialStatus.FAILED, error_message="a < b")
        for i in range(2)
    ]
    table = write_sweep_table(make_sweep(*failed), {})
    assert '<summary class="jobs-of bad">2 failed</summary><p>a &lt; b</p></details>' in table
    assert "<details" not in write_sweep_table(make_sweep(failed[0].model_copy(update={"error_message": None})), {})


def test_a_model_is_found_although_another_has_its_name_by_now(tmp_path: Path) -> None:
    store = open_model_store(tmp_path, max_versions=2)
    contents = [make_model("CartPole-v1", seed).to_bytes() for seed in range(2)]
    sha256 = hashlib.sha256(contents[0]).hexdigest()
    trial = Trial(number=1, setting=1, seed=0, total_timesteps=64, model_name="s-1", sha256=sha256)
    models = TrialModels(store.folder)
    assert models.find([trial]) == {}
    store.publish("s-1", contents[0])
    assert models.find([trial]) == {"s-1": "s-1"}
    store.publish("s-1", contents[1])
    assert models.find([trial]) == {"s-1": "s-1@1"}
    table = write_sweep_table(make_sweep(trial), {"s-1": "s-1@1"})
    assert '<a href="/dashboard/models/s-1@1">s-1@1</a>' in table
    store.delete("s-1")
    assert models.find([trial]) == {}
    assert "s-1, deleted" in write_sweep_table(make_sweep(trial), {})


@pytest.mark.parametrize(
    ("status", "said"), [(SweepStatus.RUNNING, "not evaluated yet"), (SweepStatus.COMPLETED, "not evaluated")]
)
def test_after_the_end_no_evaluation_is_still_to_come(status: SweepStatus, said: str) -> None:
    sweep = make_sweep().model_copy(update={"status": status})
    assert describe_best(sweep) == said
    assert describe_best(sweep.model_copy(update={"best_mean_reward": 480.0})) == "480.0"


def test_an_end_for_want_of_evaluations_is_explained() -> None:
    with Client(ui.page("/sweep")) as client:
        sweep_page._show_content(make_sweep().model_copy(update={"ended_by": "no_evaluation"}), {})
    texts = [getattr(element, "text", "") for element in client.elements.values()]
    assert "The sweep ended because no job of its last round completed with an evaluation." in texts
