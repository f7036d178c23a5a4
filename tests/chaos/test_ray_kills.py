"""A short form of ``python -m tests.chaos.ray_kills``, and what it costs a job when its node dies."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from service.errors import InvalidRequestError
from service.jobs.job import Job
from service.logs import LogStyle
from service.schemas.jobs import JobStatus
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_executor import RayExecutor
from service.workers.task import Task, TaskFailedError
from tests.chaos.ray_kills import LocalCluster, find_workers, hash_model, open_registry, submit
from tests.support import Recorder, make_training_task, wait_until

# Not by importing it, which LocalCluster does when it has told Ray to stay on loopback.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head and two nodes with one processor each."""
    cluster = LocalCluster(cpus_per_node=1)
    yield cluster
    cluster.close()


def has_checkpoint(job: Job) -> bool:
    return job.describe().checkpoint is not None


def test_a_job_goes_on_after_its_worker_and_its_node_died_to_the_same_model(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    with open_registry(cluster, tmp_path) as registry:
        whole = submit(registry, "whole", 30_000, 0)
        assert whole.finished.wait(300)
        job = submit(registry, "killed", 30_000, 0)
        wait_until(lambda: has_checkpoint(job))
        find_workers(cluster)[0].kill()
        wait_until(lambda: job.describe().n_restarts == 1)
        wait_until(lambda: bool(find_workers(cluster)))
        (process,) = find_workers(cluster)
        node = next(node for node in cluster.nodes if _runs(node, process.pid))
        cluster.kill_node(node)
        assert job.finished.wait(300)
        status = job.describe()
    assert (status.status, status.error_message) == (JobStatus.COMPLETED, None)
    assert status.n_restarts == 2
    killed, lost = status.warnings[:2]
    assert re.search(r"on the node 127\.0\.0\.1 \(\w{8}\), the worker process was killed", killed)
    assert re.search(r"the node 127\.0\.0\.1 \(\w{8}\).* was lost.* The job went on from", lost)
    assert hash_model(tmp_path, "killed") == hash_model(tmp_path, "whole")


def _runs(node: object, pid: int) -> bool:
    import psutil

    entries = node.all_processes["raylet"]  # type: ignore[attr-defined]
    return any(child.pid == pid for e in entries for child in psutil.Process(e.process.pid).children(recursive=True))


def test_a_task_that_no_node_has_room_for_fails_in_words(cluster: LocalCluster) -> None:
    executor = RayExecutor(LogStyle(), RayOptions(cluster.address, wait_seconds=0.5))
    task = make_training_task(env_name="CartPole-v1", total_timesteps=64)._replace(device="cuda")
    try:
        with pytest.raises(TaskFailedError, match=r"GRPO_RAY_WAIT_SECONDS.*needs 1 CPU and 1 GPU"):
            executor.start(task, Recorder())
    finally:
        executor.close()


def test_a_node_without_the_environments_package_is_named(cluster: LocalCluster) -> None:
    executor = RayExecutor(LogStyle(), RayOptions(cluster.address))
    try:
        run = executor.start(Task("no_such_package:train", (), "CartPole-v1"), Recorder())
        wait_until(lambda: run.wait(0.1))
        with pytest.raises(
            (TaskFailedError, InvalidRequestError), match=r"'no_such_package' \(on the node 127\.0\.0\.1"
        ):
            run.get_content()
    finally:
        executor.close()
