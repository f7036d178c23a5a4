"""The table of a job's transitions is what jobs do: every status is walked with every event, listed or not."""

import pytest

from service.errors import ConflictError
from service.jobs.job import Job, JobServices
from service.jobs.totals import JobTotals
from service.jobs.transitions import TRANSITIONS, JobEvent, find_next
from service.schemas.jobs import JobStatus
from tests.support import make_plan

ENDS = {JobEvent.COMPLETE: JobStatus.COMPLETED, JobEvent.FAIL: JobStatus.FAILED, JobEvent.STOP: JobStatus.STOPPED}


def make_job(status: JobStatus) -> Job:
    job = Job(make_plan(total_timesteps=100)._replace(reward=None))
    if status is not JobStatus.QUEUED:
        assert job.start()
    if status.is_final:
        job.finish(status)
    return job


def apply(event: JobEvent, job: Job) -> Job:
    """Have an event happen to a job; return the job as it goes on."""
    if event is JobEvent.START:
        job.start()
    elif event is JobEvent.RESTART:
        job.restart("Its worker died.")
    elif event is JobEvent.RESUME:
        return job.resume(None, JobServices(JobTotals()), None)
    else:
        job.finish(ENDS[event])
    return job


@pytest.mark.parametrize("event", JobEvent)
@pytest.mark.parametrize("status", JobStatus)
def test_a_job_does_what_the_table_says(status: JobStatus, event: JobEvent) -> None:
    expected, job = find_next(status, event), make_job(status)
    try:
        job = apply(event, job)
    except (ConflictError, ValueError):
        assert (expected, job.status) == (None, status)
    else:
        assert job.status is (status if expected is None else expected)


def test_only_a_completed_job_stays_as_it_is() -> None:
    left = {status for status in JobStatus if not any(find_next(status, event) for event in JobEvent)}
    assert left == {JobStatus.COMPLETED}
    assert {status for status, _ in TRANSITIONS} | set(TRANSITIONS.values()) == set(JobStatus)
