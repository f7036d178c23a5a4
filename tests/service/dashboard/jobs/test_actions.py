"""What the page says before it carries out an action."""

from datetime import UTC, datetime

from service.dashboard.jobs.actions import describe_stop
from service.jobs.job import Job
from service.schemas.jobs import JobCheckpoint
from tests.support import make_plan


def test_a_stop_promises_a_policy_only_where_there_is_one() -> None:
    job = Job(make_plan())
    assert "nothing is kept" in describe_stop(job)
    job.state.checkpoint = JobCheckpoint(timesteps=32, created_at=datetime.now(UTC), exact=True, note=None)
    assert describe_stop(job) == "Its checkpoint is kept, and it can be resumed."
    job.state.checkpoint = None
    job.start()
    assert "nothing is kept" in describe_stop(job)
    job.progress.advance(32)
    assert describe_stop(job) == "The policy learned so far is kept and can be played."
