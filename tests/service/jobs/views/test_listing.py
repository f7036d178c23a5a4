"""Lists of jobs: which ones, in which order, and on which page."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from grpo_core.options.hyperparameters import HYPERPARAMETERS
from service.jobs.records.record import PastJob, compute_recipe
from service.jobs.views.listing import JobQuery, choose_page
from service.schemas.jobs import JobSort, JobStatus, JobSummary
from tests.support import make_plan


def make_line(job_id: str, **fields: Any) -> PastJob:
    made: dict[str, Any] = {
        "job_id": job_id,
        "status": JobStatus.COMPLETED,
        "progress": 1.0,
        "env_name": "CartPole-v1",
        "model_name": f"model-{job_id}",
        "current_timesteps": 100,
        "total_timesteps": 100,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=ord(job_id)),
        **fields,
    }
    return PastJob(JobSummary(**made))


JOBS = [
    make_line("a", mean_reward=3.0, tags=["paper"], note="A rate of 0.001", elapsed_seconds=5.0),
    make_line("b", status=JobStatus.FAILED, env_name="Pendulum-v1", seed=7, recipe="r"),
    make_line("c", mean_reward=-1.0, hidden=True, display_name="Älpler", recipe="r", elapsed_seconds=5.0),
    make_line("d", mean_reward=9.0, env_name="acrobot", current_timesteps=50, tags=["paper", "x"]),
]


def list_ids(query: JobQuery, **page: Any) -> str:
    return "".join(job.job_id for job in choose_page(JOBS, query, **page).jobs)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("created_at", "abcd"),
        ("-created_at", "dcba"),
        ("mean_reward", "cadb"),  # without a value: last, whatever the direction
        ("-mean_reward", "dacb"),
        ("env_name", "dcab"),  # equal ones: the newest first
        ("-env_name", "bcad"),
        ("status", "dcab"),
        ("current_timesteps", "dcba"),
        ("-elapsed_seconds", "cadb"),
        ("-seed", "bdca"),
        ("name", "abdc"),
    ],
)
def test_every_order_is_total(sort: JobSort, expected: str) -> None:
    assert list_ids(JobQuery(sort=sort)) == expected
    assert list_ids(JobQuery(sort=sort), limit=1) == expected[0]
    assert [list_ids(JobQuery(sort=sort), limit=1, after=job_id) for job_id in expected] == [*expected[1:], ""]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (JobQuery(statuses=frozenset({JobStatus.FAILED})), "b"),
        (JobQuery(statuses=frozenset()), ""),
        (JobQuery(env_name="Pendulum-v1"), "b"),
        (JobQuery(env_name="Pendulum"), ""),
        (JobQuery(tag="paper"), "ad"),
        (JobQuery(tag="pap"), ""),
        (JobQuery(hidden=True), "c"),
        (JobQuery(hidden=False), "abd"),
        (JobQuery(recipe="r"), "bc"),
        (JobQuery(search="PAPER"), "ad"),
        (JobQuery(search="  paper\tx "), "d"),
        (JobQuery(search="älpler"), "c"),
        (JobQuery(search="A\u0308LPLER"), "c"),  # as macOS composes it
        (JobQuery(tag="\uff30APER"), "ad"),
        (JobQuery(search="0.001"), "a"),
        (JobQuery(search="failed pendulum"), "b"),
        (JobQuery(search="model-c"), "c"),
        (JobQuery(search="paper", hidden=False, sort="-mean_reward"), "da"),
    ],
)
def test_filters_combine(query: JobQuery, expected: str) -> None:
    assert list_ids(query) == expected
    assert choose_page(JOBS, query, limit=1).n_jobs == len(expected)


def test_a_page_begins_behind_a_job_that_the_filter_leaves_out() -> None:
    assert list_ids(JobQuery(env_name="CartPole-v1"), after="b") == "c"
    assert list_ids(JobQuery(env_name="CartPole-v1", sort="-mean_reward"), after="d") == "ac"


def test_a_recipe_is_of_everything_but_the_seed_and_the_names() -> None:
    def compute(**request: Any) -> str:
        return compute_recipe(make_plan(**request).config.model_dump(mode="json"))

    recipe = compute(seed=1, model_name="m")
    assert recipe == compute(seed=2, model_name="n", tensorboard_log=True)
    others = [compute(gamma=0.5), compute(total_timesteps=7), compute(net_arch=[8]), compute(env_name="Acrobot-v1")]
    assert len({recipe, *others}) == 5
    # A job of a version that did not have a field yet shares the recipe of those with its default.
    older = make_plan(seed=1).config.model_dump(mode="json")
    assert older.pop("max_grad_norm") == HYPERPARAMETERS["max_grad_norm"].default
    assert recipe == compute_recipe(older)
