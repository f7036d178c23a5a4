"""A cluster that cannot be reached is nobody's mistake: whoever needs it is asked to come back."""

import threading
from importlib.util import find_spec

import pytest

from service.errors import ClusterUnavailableError
from service.logs import LogStyle
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_executor import RayExecutor
from service.workers.receipts import Receipts
from service.workers.short_tasks import ShortTasks
from service.workers.task import ClusterLostError, Task, TaskDrainedError
from tests.support import Recorder

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"),
]
# Where nothing listens.
NOWHERE = "127.0.0.1:9"
TASK = Task("service.training.train:train_in_task", (), "CartPole-v1")


def test_whoever_needs_a_cluster_that_is_away_is_asked_to_come_back() -> None:
    short_tasks = ShortTasks(RayExecutor(LogStyle(), RayOptions(NOWHERE)), 60.0, threading.Event())
    with pytest.raises(ClusterUnavailableError, match=r"the Ray cluster 127\.0\.0\.1:9 cannot be used") as refusal:
        short_tasks.run(TASK, "")
    assert refusal.value.status_code == 503
    assert int(refusal.value.headers["Retry-After"]) > 0


def test_jobs_of_a_cluster_that_is_away_are_looked_for_until_the_limit_or_the_end() -> None:
    recorder = Recorder()
    with pytest.raises(ClusterLostError):
        RayExecutor(LogStyle(), RayOptions(NOWHERE, wait_seconds=0.0)).adopt("a job", recorder, Receipts())
    executor = RayExecutor(LogStyle(), RayOptions(NOWHERE))
    executor.drain()
    with pytest.raises(TaskDrainedError, match="the server ended"):
        executor.adopt("a job", recorder, Receipts())
    # A stop does not end the search: the job may go on somewhere, and is stopped once it is found.
    stopped = Recorder()
    stopped.attach_stop = lambda stop: stop()  # type: ignore[method-assign]
    ending = RayExecutor(LogStyle(), RayOptions(NOWHERE))

    def end_server(warning: str) -> None:
        assert "until the cluster answers" in warning
        ending.drain()

    stopped.publish_warning = end_server  # type: ignore[method-assign]
    with pytest.raises(TaskDrainedError, match="the server ended"):
        ending.adopt("a job", stopped, Receipts())
