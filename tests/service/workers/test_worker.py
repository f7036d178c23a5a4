"""What a worker reports to the server."""

import json
import os
from multiprocessing import Pipe

from service.jobs.job import Job
from service.workers.messages import deliver
from service.workers.worker import Reporter
from tests.support import make_plan


def test_nothing_is_said_of_steps_before_any_are_known() -> None:
    job = Job(make_plan(total_timesteps=100))
    job.start()
    job.progress.advance(64)  # of the checkpoint that the training goes on from
    here, there = Pipe()
    with here, there:
        reporter = Reporter(there)
        reporter.publish_warning("it went on with new episodes")
        reporter.publish_metrics({"train/loss": 0.5})
        reporter.publish_warning("as the last one")
        while here.poll():
            kind, value = json.loads(here.recv_bytes())
            deliver(job.progress, kind, value, b"")
    assert (job.describe().current_timesteps, job.state.repeated_timesteps) == (64, 0)
    assert job.describe().warnings == ["it went on with new episodes", "as the last one"]
    assert job.describe().metrics == {"train/loss": 0.5}


def test_a_child_that_an_environment_has_forked_reports_nothing_and_ends() -> None:
    here, there = Pipe()
    with here, there:
        reporter = Reporter(there)
        child = os.fork()
        if child == 0:
            try:
                reporter.publish_warning("it is no worker")
            finally:
                os._exit(1)
        assert os.waitpid(child, 0) == (child, 0)
        assert not here.poll()
