"""The head of a job's page."""

from nicegui import Client, ui

from service.dashboard.jobs.job_head import JobHead, choose_tone
from service.jobs.job import Job, JobServices
from service.jobs.totals import JobTotals
from service.schemas.jobs import JobStatus
from tests.support import make_plan


def test_a_fall_is_no_alarm_before_the_end() -> None:
    assert choose_tone("worse", JobStatus.RUNNING) == "warn"
    assert choose_tone("worse", JobStatus.COMPLETED) == "bad"
    assert choose_tone("learning", JobStatus.RUNNING) == "good"
    assert choose_tone("waiting", JobStatus.QUEUED) == ""


def test_an_end_is_outdated_once_the_job_has_gone_on_though_it_has_ended_again() -> None:
    job = Job(make_plan())
    job.stop()
    with Client(ui.page("/job")):
        head = JobHead(job, lambda action: None)
    assert not head.is_outdated
    job.resume(None, JobServices(JobTotals()), None)
    assert head.is_outdated
    job.stop()
    assert head.is_outdated
