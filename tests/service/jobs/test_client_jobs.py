"""The jobs that one client may have at a time."""

from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import InvalidRequestError, QueueFullError
from service.jobs.client_jobs import ClientJobs, JobLimits

LIMITS = JobLimits(n_active=2, max_timesteps=1000, max_seconds=60.0)


def make_job(job_id: str) -> Any:
    return SimpleNamespace(job_id=job_id)


def test_jobs_count_from_when_they_are_planned_until_they_end() -> None:
    active = {"a", "b"}
    jobs = ClientJobs(LIMITS, active.__contains__)

    def plan_meanwhile() -> Any:
        with pytest.raises(QueueFullError, match="2 of your jobs are running or queued"):
            jobs.start("here", lambda: make_job("c"))
        assert jobs.start("elsewhere", lambda: make_job("d")).job_id == "d"
        return make_job("b")

    jobs.start("here", lambda: make_job("a"))
    jobs.start("here", plan_meanwhile)
    active.remove("a")
    assert jobs.start("here", lambda: make_job("e")).job_id == "e"


def test_a_job_that_was_refused_is_not_counted() -> None:
    def refuse() -> Any:
        raise InvalidRequestError("no such environment")

    jobs = ClientJobs(LIMITS, {"a", "b"}.__contains__)
    for _ in range(5):
        with pytest.raises(InvalidRequestError):
            jobs.start("here", refuse)
    jobs.start("here", lambda: make_job("a"))
    jobs.start("here", lambda: make_job("b"))
