"""Servers that are killed, or ended, while their jobs train on a cluster, and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest

from service.context import JOB_ID
from service.logs import LogStyle
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_executor import RayExecutor
from service.workers.cluster.slot_pool import Needs
from service.workers.receipts import Receipts
from service.workers.task import TaskDrainedError
from tests.chaos.ray_kills import LocalCluster, find_slots, find_workers
from tests.support import Recorder, make_training_task, wait_until

ROOT = Path(__file__).parents[2]
# Processes that import torch, on a machine where others do too.
PATIENCE_SECONDS = 300.0
LONG = {"env_name": "CartPole-v1", "total_timesteps": 10_000_000, "seed": 2, "checkpoint_every": 8192}
JOB = {**LONG, "total_timesteps": 40_000, "eval_freq": 8192, "n_eval_episodes": 5}

# Not by importing it, which LocalCluster does when it has told Ray to stay on loopback.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head and a node with room for two jobs."""
    cluster = LocalCluster(n_nodes=1)
    yield cluster
    cluster.close()


class Server:
    """A server in a process of its own, with a models folder that it keeps when it is started again."""

    def __init__(self, cluster: LocalCluster, models_dir: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        variables = {"GRPO_EXECUTOR": "ray", "GRPO_RAY_ADDRESS": cluster.address, "GRPO_LOG_LEVEL": "warning"}
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPO_")}
        self._environment |= {**variables, "GRPO_PRELOAD": "0"}
        self._command = [sys.executable, "run_api.py", "--port", str(self._port), "--models-dir", str(models_dir)]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment)
        wait_until(self._answers, PATIENCE_SECONDS)

    def end(self, number: signal.Signals) -> int:
        """End it with a signal; return its status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def call(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """Send a request, and return what the JSON of its answer says."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = Request(f"http://127.0.0.1:{self._port}{path}", content, headers, method=method)
        with urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)

    def wait_for(self, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for something of a job's status, and return the status."""
        seen: dict[str, Any] = {}

        def holds() -> bool:
            seen.update(self.call(f"/training/{job_id}/status"))
            return condition(seen) or seen["status"] == "failed"

        wait_until(holds, PATIENCE_SECONDS)
        return seen

    def list_curve(self, job_id: str) -> list[tuple[int, dict[str, float]]]:
        """List the metrics of a job that do not depend on the clock, with their steps."""
        rows = self.call(f"/training/{job_id}/metrics")["rows"]
        return [
            (row["timesteps"], {key: value for key, value in row["metrics"].items() if not key.startswith("time/")})
            for row in rows
        ]

    def _answers(self) -> bool:
        try:
            return bool(self.call("/health"))
        except (URLError, OSError):
            return False


@pytest.fixture
def start_server(cluster: LocalCluster, tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Start servers with a folder each, and kill them when the test is over."""
    servers: list[Server] = []

    def start(folder: str) -> Server:
        servers.append(Server(cluster, tmp_path / folder))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
    for slot in find_slots(cluster):
        slot.kill()
    wait_until(lambda: not find_slots(cluster))


def has_ended(status: dict[str, Any]) -> bool:
    return status["status"] in ("completed", "stopped")


def is_under_way(status: dict[str, Any]) -> bool:
    return bool(status["current_timesteps"] > 4096)


def test_killed_servers_find_their_own_jobs_again_and_end_them_as_if_nothing_had_happened(
    start_server: Callable[[str], Server], cluster: LocalCluster
) -> None:
    one, other = start_server("one"), start_server("other")
    jobs = {server: server.call("/train", {**JOB, "model_name": "m"})["job_id"] for server in (one, other)}
    for server, job_id in jobs.items():
        server.wait_for(job_id, is_under_way)
        server.end(signal.SIGKILL)
    workers = {worker.pid for worker in find_workers(cluster)}
    assert len(workers) == 2
    for server in jobs:
        server.start()
    ends = [server.wait_for(job_id, has_ended) for server, job_id in jobs.items()]
    assert [(end["status"], end["n_restarts"], end["warnings"]) for end in ends] == [("completed", 0, [])] * 2
    curves = [server.list_curve(job_id) for server, job_id in jobs.items()]
    for server, job_id in jobs.items():
        assert [job["job_id"] for job in server.call("/training/jobs")["jobs"]] == [job_id]
    whole = one.call("/train", {**JOB, "model_name": "m", "replace": True})["job_id"]
    undisturbed = one.wait_for(whole, has_ended)
    assert [end["sha256"] for end in ends] == [undisturbed["sha256"]] * 2
    assert curves == [one.list_curve(whole)] * 2
    assert [end["evaluation"]["mean_reward"] for end in ends] == [undisturbed["evaluation"]["mean_reward"]] * 2


def test_a_server_that_is_ended_takes_its_jobs_with_it_and_one_that_lost_a_slot_says_so(
    start_server: Callable[[str], Server], cluster: LocalCluster, tmp_path: Path
) -> None:
    server = start_server("models")
    stopped = server.call("/train", {**LONG, "model_name": "stopped"})["job_id"]
    server.wait_for(stopped, is_under_way)
    assert server.end(signal.SIGTERM) == 0
    assert (tmp_path / "models" / "stopped.zip").exists()
    wait_until(lambda: not find_slots(cluster))
    server.start()
    assert server.call(f"/training/{stopped}/status")["status"] == "stopped"
    lost = server.call("/train", {**LONG, "model_name": "lost"})["job_id"]
    server.wait_for(lost, is_under_way)
    server.end(signal.SIGKILL)
    for slot in find_slots(cluster):
        slot.kill()
    wait_until(lambda: not find_slots(cluster))
    server.start()
    failed = server.wait_for(lost, has_ended)
    assert failed["status"] == "failed"
    assert failed["error_message"].startswith("interrupted by restart: the server ended while the job was running;")
    server.call(f"/training/{lost}/resume", method="POST")
    server.wait_for(lost, is_under_way)
    server.call(f"/training/{lost}/stop", method="POST")
    assert server.wait_for(lost, has_ended)["status"] == "stopped"


def test_a_stop_that_the_next_server_took_while_it_looked_for_the_job_is_known_to_the_one_after(
    start_server: Callable[[str], Server],
) -> None:
    server = start_server("models")
    job_id = server.call("/train", {**LONG, "model_name": "m"})["job_id"]
    server.wait_for(job_id, is_under_way)
    server.end(signal.SIGKILL)
    server.start()  # for some seconds the slot takes the first one for alive
    server.call(f"/training/{job_id}/stop", method="POST")
    server.end(signal.SIGKILL)
    server.start()
    end = server.wait_for(job_id, has_ended)
    assert (end["status"], end["model_name"]) == ("stopped", "m")


def list_slots(server_id: str) -> list[str]:
    """List the slots of a server of this process, those that wait for a node included."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return []
    named = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in named if each["name"].startswith(server_id)]


@pytest.mark.parametrize("n_cpus", [64, 1])
def test_a_stop_ends_a_job_whose_slot_waits_for_room_or_imports_and_leaves_no_slot_behind(
    n_cpus: int, cluster: LocalCluster
) -> None:
    recorder, server_id = Recorder(), f"needs-{n_cpus}"
    executor = RayExecutor(LogStyle(), RayOptions(cluster.address, server_id=server_id))
    task = make_training_task(env_name="CartPole-v1", total_timesteps=10_000_000)._replace(n_cpus=n_cpus)
    try:
        with ThreadPoolExecutor(1) as threads:
            start = threads.submit(executor.start_lasting, task, recorder, Receipts())
            wait_until(lambda: bool(list_slots(server_id) if n_cpus == 64 else find_slots(cluster)), PATIENCE_SECONDS)
            recorder._stop()
            error = start.exception(PATIENCE_SECONDS)
        assert isinstance(error, TaskDrainedError)
        assert str(error) == "the job was stopped before it was started."
        wait_until(lambda: not list_slots(server_id) and not find_slots(cluster))
        assert not executor.is_busy
    finally:
        executor.close()


def test_a_slot_whose_server_does_not_come_back_ends_when_its_lease_does(cluster: LocalCluster) -> None:
    options = RayOptions(cluster.address, lease_seconds=8.0, server_id="gone")
    executor, token = RayExecutor(LogStyle(), options), JOB_ID.set("a job")
    try:
        task = make_training_task(env_name="CartPole-v1", total_timesteps=10_000_000)
        run = executor.start_lasting(task, Recorder(), Receipts())
        (slot,), (worker,) = find_slots(cluster), find_workers(cluster)
        # One that found room after its server was killed: nobody has it prepared.
        executor._pool._make_actor(Needs(1.0, 0.0, True))
        wait_until(lambda: len(find_slots(cluster)) == 2, PATIENCE_SECONDS)
        for _ in range(20):  # twice the lease and more, in which it is asked
            assert not run.wait(1.0)
        assert psutil.pid_exists(slot.pid)
        assert [slot.pid] == [each.pid for each in find_slots(cluster)]
        # From now on nobody asks.
        wait_until(lambda: not find_slots(cluster), PATIENCE_SECONDS)
        wait_until(lambda: not psutil.pid_exists(worker.pid), PATIENCE_SECONDS)
        assert executor.adopt("a job", Recorder(), Receipts()) is None
    finally:
        JOB_ID.reset(token)
        executor.close()
