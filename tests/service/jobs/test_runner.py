"""The runner tells a worker that hangs from one that gets no processor, and an attempt at a job from the next one."""

import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from service.jobs.job import Job
from service.jobs.runner import _StallWatch
from service.schemas.jobs import JobStatus
from service.workers.task import Progress, Task
from service.workers.threads import ThreadExecutor
from tests.support import PATIENCE_SECONDS, make_plan, make_registry, open_model_store, wait_until


class Worker:
    """A worker that ends when it is told to, with a policy that bears its number."""

    delay_seconds = 0.0

    def __init__(self, number: int, progress: Progress) -> None:
        self._number, self.progress = number, progress
        self.ended = threading.Event()
        self.n_stops, self.is_killed = 0, False
        progress.attach_stop(self.stop)

    def stop(self) -> None:
        self.n_stops += 1

    def wait(self, timeout_seconds: float) -> bool:
        return self.ended.wait(timeout_seconds)

    def get_content(self) -> bytes:
        return b"%d" % self._number

    def kill(self) -> None:
        self.is_killed = True


class Workers(ThreadExecutor):
    """Starts such workers, once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Worker] = []
        self.n_asked, self.may_start = 0, threading.Event()

    def start(self, task: Task, progress: Progress) -> Worker:  # type: ignore[override]
        self.n_asked += 1
        assert self.may_start.wait(PATIENCE_SECONDS)
        self.started.append(worker := Worker(len(self.started) + 1, progress))
        return worker

    def wait_for(self, job: Job) -> Worker:
        """Wait for the worker of a job."""
        wait_until(lambda: any(worker.progress is job.progress for worker in self.started))
        return next(worker for worker in self.started if worker.progress is job.progress)


def test_the_time_in_which_others_had_the_processor_is_not_idle() -> None:
    watch = _StallWatch()
    assert watch.measure_idle(30.0, delay_seconds=28.0) == pytest.approx(2.0)
    assert watch.measure_idle(0.1, delay_seconds=29.0) == pytest.approx(0.1)  # it has moved
    assert watch.measure_idle(10.0, delay_seconds=29.0) == pytest.approx(10.0)  # it hangs
    assert watch.measure_idle(20.0, delay_seconds=34.0) == pytest.approx(15.0)


def test_a_first_look_counts_the_delays_since_the_start() -> None:
    assert _StallWatch().measure_idle(10.0, delay_seconds=9.0) == pytest.approx(1.0)


@pytest.mark.parametrize("max_running", [1, 2])
@pytest.mark.parametrize("has_worker", [False, True])
def test_what_a_worker_ends_with_after_a_stop_is_not_the_resumed_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_worker: bool, max_running: int
) -> None:
    store, workers = open_model_store(tmp_path), Workers()
    monkeypatch.setattr(store, "publish", publish := Mock(return_value="a" * 64))
    registry = make_registry(store, workers, max_running=max_running)
    stopped = registry.submit(make_plan(model_name="m")._replace(reward=None))
    wait_until(lambda: workers.n_asked == 1)
    if has_worker:
        workers.may_start.set()
        wait_until(lambda: bool(workers.started))
    stopped.stop()
    resumed: Job = registry.resume(stopped, None)
    workers.may_start.set()
    first = workers.wait_for(stopped)
    first.ended.set()  # before anybody has seen that its job was stopped
    second = workers.wait_for(resumed)
    assert (stopped.status, resumed.status) == (JobStatus.STOPPED, JobStatus.RUNNING)
    assert (registry.get(resumed.job_id), registry.list_jobs()) == (resumed, [resumed])
    assert (first.n_stops, publish.call_count) == (1, 0)
    second.ended.set()
    assert resumed.finished.wait(PATIENCE_SECONDS)
    assert resumed.status is JobStatus.COMPLETED
    assert [call.args[1] for call in publish.call_args_list] == [second.get_content()]
    registry.shutdown(PATIENCE_SECONDS)
