"""The table of a job's transitions is what jobs do: every status is walked with every event, listed or not."""

from pathlib import Path

import pytest

from service.errors import ConflictError
from service.jobs.job import Job, JobHome
from service.jobs.records.journal import JobJournal
from service.jobs.totals import JobTotals
from service.jobs.transitions import TRANSITIONS, JobEvent, find_next
from service.schemas.jobs import JobStatus
from tests.support import make_plan

ENDS = {"complete": JobStatus.COMPLETED, "fail": JobStatus.FAILED, "stop": JobStatus.STOPPED}


def make_job(status: JobStatus) -> Job:
    job = Job(make_plan(total_timesteps=100)._replace(reward=None))
    if status is not JobStatus.QUEUED:
        assert job.start()
    if status.is_final:
        job.finish(status)
    return job


def interrupt(job: Job, folder: Path) -> Job:
    """Return a job as the next server finds it in the jobs' file after this one was killed."""
    journal = JobJournal(folder / "jobs.db")
    journal.write([job.make_record(0, 1)])
    journal.interrupt_active()
    record = journal.load(job.job_id)
    journal.close()
    assert record is not None
    return Job.restore(record) if record.state.status.is_final else job


def apply(event: JobEvent, job: Job, folder: Path) -> Job:
    """Have an event happen to a job; return the job after it."""
    name = event.name.lower()
    if event is JobEvent.START:
        job.start()
    elif event is JobEvent.RESTART:
        job.restart("Its worker died.")
    elif event is JobEvent.RESUME:
        job.resume(None, JobHome(JobTotals()), None)
    elif event is JobEvent.INTERRUPT:
        return interrupt(job, folder)
    elif event is JobEvent.REVIVE:
        return Job.revive(job.make_record(0, 1), JobHome(JobTotals()))
    else:
        job.finish(ENDS[name])
    return job


@pytest.mark.parametrize("event", JobEvent)
@pytest.mark.parametrize("status", JobStatus)
def test_a_job_does_what_the_table_says(status: JobStatus, event: JobEvent, tmp_path: Path) -> None:
    if event is JobEvent.REVIVE and status is not JobStatus.RUNNING:
        pytest.skip("the next server follows only jobs that were running")
    expected = find_next(status, event)
    job, after = make_job(status), None
    try:
        after = apply(event, job, tmp_path).status
    except (ConflictError, ValueError):
        assert expected is None
    assert after in ((expected,) if expected is not None else (None, status))


def test_only_a_completed_job_stays_as_it_is() -> None:
    left = {status for status in JobStatus if not any(find_next(status, event) for event in JobEvent)}
    assert left == {JobStatus.COMPLETED}
    assert {status for status, _ in TRANSITIONS} | set(TRANSITIONS.values()) == set(JobStatus)
