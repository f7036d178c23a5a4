"""The table of jobs: its pages, its groups, and the settings in which jobs differ."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.dashboard.jobs.address import PAGE_SIZE, read_view
from service.dashboard.jobs.table import Configs, find_differences, make_table
from service.jobs.records.record import PastJob
from service.schemas.jobs import JobStatus, JobSummary


def make_job(number: int, **fields: Any) -> PastJob:
    made: dict[str, Any] = {
        "job_id": f"{number:08x}-0000",
        "status": JobStatus.COMPLETED,
        "progress": 1.0,
        "env_name": "CartPole-v1",
        "model_name": f"m{number}",
        "current_timesteps": 1000 + number,
        "total_timesteps": 1000,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number),
        "seed": number,
        "recipe": "r",
        **fields,
    }
    return PastJob(JobSummary(**made))


class Source:
    """Configurations, and which of them were asked for."""

    def __init__(self, **configs: dict[str, Any]) -> None:
        self.asked: list[str] = []
        self._configs = configs

    def list_configs(self, job_ids: Iterable[str]) -> Configs:
        self.asked = list(job_ids)
        return {job_id: self._configs.get(job_id, {"gamma": 0.9, "seed": 1}) for job_id in self.asked}


def test_only_the_page_is_described_and_asked_for() -> None:
    jobs, source = [make_job(i) for i in range(2 * PAGE_SIZE + 1)], Source()
    table = make_table(jobs, read_view({"page": "3"}), source.list_configs)
    assert table.n_pages == 3
    assert [row["name"] for row in table.rows] == ["m0"]
    assert source.asked == [jobs[0].job_id]
    # A page that is gone, such as that of jobs which were deleted: the last one is there instead.
    assert make_table(jobs, read_view({"page": "4"}), source.list_configs).rows == table.rows


def test_groups_are_sorted_by_what_their_rows_show() -> None:
    rewards = {"mixed": (500.0, 100.0), "steady": (400.0, 400.0)}
    pairs = [(recipe, reward) for recipe, each in rewards.items() for reward in each]
    jobs = [make_job(i, recipe=recipe, mean_reward=reward) for i, (recipe, reward) in enumerate(pairs)]
    jobs.append(make_job(9, recipe="steady", mean_reward=1.0, status=JobStatus.RUNNING))
    for sort, expected in (("-mean_reward", ["steady", "mixed"]), ("mean_reward", ["mixed", "steady"])):
        rows = make_table(jobs, read_view({"group": "recipe", "sort": sort}), Source().list_configs).rows
        assert [row["group"] for row in rows] == expected


def test_a_row_tells_what_is_known() -> None:
    figures = {"mean_reward": 12.34, "mean_reward_ci95": (10.0, 14.0), "success_rate": 0.75}
    job = make_job(1, **figures, elapsed_seconds=61.0, display_name="best")
    (row,) = make_table([job], read_view({}), Source().list_configs).rows
    shown = [row[name] for name in ("name", "status", "reward", "interval", "success", "steps", "time", "seed")]
    assert shown == ["best", "completed", "12.3", "10 to 14", "success 75 %", "1,001", "1:01 min", "1"]
    (row,) = make_table([make_job(1, status=JobStatus.QUEUED)], read_view({}), Source().list_configs).rows
    assert (row["reward"], row["interval"], row["success"], row["time"]) == ("", "", "", "")


def test_only_settings_that_differ_within_an_environment_have_a_column() -> None:
    jobs = [make_job(0), make_job(1), make_job(2, env_name="Pendulum-v1")]
    configs: Configs = {
        jobs[0].job_id: {"seed": 1, "gamma": 0.9, "n_steps": 32, "net_arch": [8]},
        jobs[1].job_id: {"seed": 2, "gamma": 0.9, "n_steps": 32, "net_arch": [16]},
        jobs[2].job_id: {"seed": 3, "gamma": 0.5, "n_steps": 64, "net_arch": [8]},
    }
    assert find_differences(jobs, configs) == ["net_arch"]
    table = make_table(jobs, read_view({}), lambda job_ids: configs)
    assert [row["settings"] for row in table.rows] == [["8"], ["16"], ["8"]]


def test_reward_functions_have_one_column_and_it_is_the_first() -> None:
    jobs = [make_job(i) for i in range(3)]
    sums = {"environment": 1.0, "mine": 0.5}
    chosen = [("environment", None), ("mine", None), (None, sums)]
    configs: Configs = {
        job.job_id: {"gamma": gamma, "reward_function_type": name, "reward_functions": summed}
        for job, gamma, (name, summed) in zip(jobs, (0.7, 0.8, 0.9), chosen, strict=True)
    }
    table = make_table(jobs, read_view({"sort": "created_at"}), lambda job_ids: configs)
    assert table.settings == ["reward_function_type", "gamma"]
    assert [row["settings"][0] for row in table.rows] == ["environment", "mine", "environment: 1, mine: 0.5"]


def test_groups_have_the_mean_of_their_jobs_and_its_spread() -> None:
    rewards = [1.0, 2.0, 6.0]
    jobs = [make_job(i, mean_reward=reward, elapsed_seconds=10.0) for i, reward in enumerate(rewards)]
    jobs += [make_job(7, recipe="other", mean_reward=5.0), make_job(8, recipe="other")]
    first, second = make_table(jobs, read_view({"group": "recipe"}), Source().list_configs).rows
    assert (first["n"], first["reward"], first["margin"], first["interval"]) == (2, "5", "", "")
    assert (second["n"], second["reward"], second["margin"], second["interval"]) == (3, "3", "", "seeds from 1 to 6")
    assert (second["time"], second["seed"], second["ids"][0]) == ("30 s", "3 seeds", jobs[2].job_id)
    assert (second["steps"], second["steps_of"], second["time_of"]) == ("1,002", "max", "total")
    five = [make_job(i, mean_reward=float(i)) for i in range(1, 6)]
    (row,) = make_table(five, read_view({"group": "recipe"}), Source().list_configs).rows
    # 2.776 sqrt(2.5 / 5), by t of four degrees of freedom; as ends it could promise more than an episode can earn.
    assert (row["margin"], row["interval"]) == ("± 1.96", "seeds from 1 to 5")
    repeated = [make_job(i, seed=i % 2, mean_reward=float(i % 2)) for i in range(6)]
    (row,) = make_table(repeated, read_view({"group": "recipe"}), Source().list_configs).rows
    assert (row["interval"], row["seed"]) == ("seeds from 0 to 1", "2 seeds")
    (row,) = make_table([make_job(1)], read_view({"group": "recipe"}), Source().list_configs).rows
    assert row["seed"] == "1 seed"


def test_a_group_of_jobs_that_ended_early_has_their_reward() -> None:
    stopped = make_job(0, status=JobStatus.STOPPED, mean_reward=500.0)
    running = make_job(1, status=JobStatus.RUNNING, mean_reward=3.0)
    (row,) = make_table([stopped, running], read_view({"group": "recipe"}), Source().list_configs).rows
    assert row["reward"] == "500.0"
    completed = make_job(2, mean_reward=400.0)
    (row,) = make_table([stopped, running, completed], read_view({"group": "recipe"}), Source().list_configs).rows
    assert row["reward"] == "400.0"


def test_a_group_has_the_mean_success_of_the_jobs_in_its_reward() -> None:
    jobs = [make_job(i, mean_reward=float(i), success_rate=rate) for i, rate in enumerate((0.25, 0.75))]
    jobs.append(make_job(2, mean_reward=9.0, success_rate=1.0, status=JobStatus.STOPPED))
    (row,) = make_table(jobs, read_view({"group": "recipe"}), Source().list_configs).rows
    assert (row["reward"], row["success"]) == ("0.5", "success 50 %")
    (row,) = make_table([make_job(1, mean_reward=1.0)], read_view({"group": "recipe"}), Source().list_configs).rows
    assert row["success"] == ""


def test_groups_of_one_name_are_told_apart_by_what_differs() -> None:
    jobs = [make_job(i, model_name=name, recipe=f"{i}") for i, name in enumerate(("a", "a", "b"))]
    rates = (0.001, 0.002, 0.002)
    configs: Configs = {job.job_id: {"learning_rate": rate} for job, rate in zip(jobs, rates, strict=True)}
    rows = make_table(jobs, read_view({"group": "recipe", "sort": "seed"}), lambda job_ids: configs).rows
    assert [row["name"] for row in rows] == ["a · learning rate 0.001", "a · learning rate 0.002", "b"]


def test_a_group_tells_how_its_jobs_stand() -> None:
    jobs = [make_job(0), make_job(1), make_job(2, status=JobStatus.FAILED), make_job(3, recipe="other")]
    first, second = make_table(jobs, read_view({"group": "recipe"}), Source().list_configs).rows
    assert (first["status"], second["status"]) == ("completed", "2 completed, 1 failed")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("balance-1", "balance-12"), "balance"),
        (("m", "m"), "m"),
        (("only-7",), "only-7"),
        (("first", "second"), "first and others"),
    ],
)
def test_a_group_has_the_name_that_its_jobs_share(names: tuple[str, ...], expected: str) -> None:
    jobs = [make_job(10 - i, model_name=name) for i, name in enumerate(names)]
    (row,) = make_table(jobs[::-1], read_view({"group": "recipe"}), Source().list_configs).rows
    assert row["name"] == expected


def test_an_open_group_lists_its_jobs() -> None:
    jobs = [make_job(0), make_job(1, env_name="Pendulum-v1"), make_job(2)]
    source = Source()
    table = make_table(
        jobs, read_view({"group": "env_name", "open": "CartPole-v1", "sort": "-seed"}), source.list_configs
    )
    assert [row["name"] for row in table.rows] == ["CartPole-v1", "m2", "m0", "Pendulum-v1"]
    assert [row.get("member", False) for row in table.rows] == [False, True, True, False]
    many = [make_job(i) for i in range(150)]
    rows = make_table(many, read_view({"group": "env_name", "open": "CartPole-v1"}), source.list_configs).rows
    assert len(rows) == 1 + 100 + 1
    assert rows[-1] == {"rest": "100 of 150 jobs are listed; a search finds the others."}
