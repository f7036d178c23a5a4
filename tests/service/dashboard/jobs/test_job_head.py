"""The head of a job's page."""

from service.dashboard.jobs.job_head import choose_tone
from service.schemas.jobs import JobStatus


def test_a_fall_is_no_alarm_before_the_end() -> None:
    assert choose_tone("worse", JobStatus.RUNNING) == "warn"
    assert choose_tone("worse", JobStatus.COMPLETED) == "bad"
    assert choose_tone("learning", JobStatus.RUNNING) == "good"
    assert choose_tone("waiting", JobStatus.QUEUED) == ""
