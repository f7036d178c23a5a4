"""Kill workers, slots and nodes of a Ray cluster at random instants while jobs train there, and look for what is lost.

``python -m tests.chaos.ray_kills --kills 100 --seed 0`` starts a head and two nodes on this machine, prints one JSON
report, and ends with status 1 if a completed model was lost, a job hangs, or one that was interrupted ends with another
model than one that was not. ``--kills 0 --jobs 1000`` runs that many short jobs through the two nodes.
"""

import argparse
import hashlib
import json
import math
import os
import random
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from service.jobs.job import Job
from service.jobs.registry import JobRegistry
from service.logs import LogStyle
from service.models.files.identity import read_folder_id
from service.schemas.jobs import JobStatus
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_executor import RayExecutor
from tests.support import make_plan, make_registry, open_model_store, wait_until

# Of six kills, three are of a worker, two of the actor that starts workers, and one is of a node.
_TARGETS = ("worker", "slot", "worker", "slot", "worker", "node")
_LENGTHS = (2_048, 16_384)
_N_SEEDS = 2
_N_NODES = 2
_CPUS_PER_NODE = 2
_STORE_BYTES = 100 * 2**20
_MAX_PAUSE_SECONDS = 3.0
_MAX_TRIES = 4
# A job that has not ended by then hangs.
_HANG_SECONDS = 600.0


class LocalCluster:
    """A head that runs nothing and some nodes, all on this machine and on loopback alone."""

    def __init__(self, n_nodes: int = _N_NODES, cpus_per_node: int = _CPUS_PER_NODE) -> None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        from ray.cluster_utils import Cluster

        self._fixed = {"node_ip_address": "127.0.0.1", "object_store_memory": _STORE_BYTES, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={**self._fixed, "num_cpus": 0})
        self._cpus_per_node = cpus_per_node
        self.nodes: list[Any] = []
        for _ in range(n_nodes):
            self.add_node()

    @property
    def address(self) -> str:
        """Where a server finds it."""
        return str(self._cluster.address)

    def add_node(self) -> None:
        """Start a node."""
        for _ in range(_MAX_TRIES - 1):
            with suppress(Exception):  # Ray gives a node 30 s to start, whatever else the machine does
                self._add_node()
                return
        self._add_node()

    def _add_node(self) -> None:
        self.nodes.append(self._cluster.add_node(num_cpus=self._cpus_per_node, **self._fixed))

    def kill_node(self, node: Any) -> None:
        """Kill a node and all that runs on it at once."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """End all of it."""
        self._cluster.shutdown()


def find_slots(cluster: LocalCluster) -> list[psutil.Process]:
    """List the processes of the actors that start workers, on all nodes."""
    found = []
    for node in cluster.nodes:
        for entry in node.all_processes.get("raylet", []):
            with suppress(psutil.Error):
                children = psutil.Process(entry.process.pid).children(recursive=True)
                found += [child for child in children if _is_slot(child)]
    return found


def _is_slot(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it has just ended, which must not hide the others
        return "ray::Slot" in next(iter(process.cmdline()), "")
    return False


def find_workers(cluster: LocalCluster) -> list[psutil.Process]:
    """List the processes that run tasks, on all nodes."""
    found = []
    for slot in find_slots(cluster):
        with suppress(psutil.Error):
            forkservers = [child for child in slot.children() if "forkserver" in " ".join(child.cmdline())]
            found += [worker for forkserver in forkservers for worker in forkserver.children()]
    return found


@contextmanager
def open_registry(cluster: LocalCluster, models_dir: Path, max_queued: int = 8) -> Iterator[JobRegistry]:
    """Open a registry of jobs that train on the cluster."""
    store = open_model_store(models_dir)
    options = RayOptions(cluster.address, wait_seconds=_HANG_SECONDS, server_id=read_folder_id(models_dir) or "")
    executor = RayExecutor(LogStyle(), options)
    registry = make_registry(
        store,
        executor,
        max_running=_N_NODES * _CPUS_PER_NODE,
        max_queued=max_queued,
        max_kept=10_000,
        stall_seconds=60.0,
        n_threads_per_job=1,
        keeper=executor,
    )
    try:
        yield registry
    finally:
        registry.shutdown(grace_seconds=30)
        executor.close()


def submit(registry: JobRegistry, name: str, total_timesteps: int, seed: int) -> Job:
    """Queue a job whose model depends on nothing but its length and its seed."""
    request = {"env_name": "CartPole-v1", "total_timesteps": total_timesteps, "seed": seed, "n_eval_episodes": 0}
    return registry.submit(make_plan(**request, checkpoint_every=1024, max_restarts=100, model_name=name))


def hash_model(models_dir: Path, name: str) -> str:
    """Hash what is in a model's file, but for its name."""
    with zipfile.ZipFile(models_dir / f"{name}.zip") as archive:
        members = [archive.read(member).replace(name.encode(), b"") for member in archive.namelist()]
    return hashlib.sha256(b"".join(members)).hexdigest()


def run(n_kills: int, seed: int, max_seconds: float = math.inf) -> dict[str, Any]:
    """Keep jobs running, and kill so many processes and nodes under them, or fewer if the time is over."""
    draw, begun = random.Random(seed), time.monotonic()
    kills, losses, outcomes = Counter[str](), Counter[str](), dict[tuple[int, int], set[str]]()
    jobs: list[tuple[Job, int, int]] = []
    cluster = LocalCluster()
    with tempfile.TemporaryDirectory() as folder:
        models_dir = Path(folder)
        with open_registry(cluster, models_dir) as registry:

            def refill() -> None:
                while registry.count_active() < _N_NODES * _CPUS_PER_NODE and len(jobs) < 100_000:
                    length, job_seed = draw.choice(_LENGTHS), draw.randrange(_N_SEEDS)
                    jobs.append((submit(registry, f"m{len(jobs):06d}", length, job_seed), length, job_seed))

            while sum(kills.values()) < n_kills and time.monotonic() - begun < max_seconds:
                refill()
                target = draw.choice(_TARGETS)
                pause = time.monotonic() + draw.uniform(0.0, _MAX_PAUSE_SECONDS)
                _wait(lambda: time.monotonic() > pause and bool(find_workers(cluster)))  # noqa: B023
                refill()
                kills[target] += _kill(cluster, target, draw)
            for job, _, _ in jobs:
                losses["jobs hung"] += not job.finished.wait(_HANG_SECONDS)
        for job, length, job_seed in jobs:
            status = job.describe()
            losses["jobs that did not complete"] += status.status is not JobStatus.COMPLETED
            name = job.config.model_name
            is_there = (models_dir / f"{name}.zip").exists()
            losses["completed models lost"] += status.status is JobStatus.COMPLETED and not is_there
            if is_there:
                outcomes.setdefault((length, job_seed), set()).add(hash_model(models_dir, name))
        losses["trainings that end with another model"] = sum(len(each) > 1 for each in outcomes.values())
    cluster.close()
    statuses = [job.describe() for job, _, _ in jobs]
    return {
        "suite": "ray_kills",
        "seed": seed,
        "kills": dict(kills),
        "jobs": len(jobs),
        "jobs completed": sum(status.status is JobStatus.COMPLETED for status in statuses),
        "jobs that went on elsewhere": sum(status.n_restarts > 0 for status in statuses),
        "restarts": sum(status.n_restarts for status in statuses),
        "trainings compared": len(outcomes),
        "errors": sorted({status.error_message for status in statuses if status.error_message})[:5],
        "losses": {name: n for name, n in losses.items() if n},
        "seconds": round(time.monotonic() - begun),
        "ray": version("ray"),
    }


def _kill(cluster: LocalCluster, target: str, draw: random.Random) -> int:
    if target == "node":
        cluster.add_node()  # so that there are always two
        cluster.kill_node(draw.choice(cluster.nodes[:-1]))
        return 1
    found = find_workers(cluster) if target == "worker" else find_slots(cluster)
    with suppress(psutil.Error, IndexError):
        draw.choice(found).kill()
        return 1
    return 0


def _wait(condition: Callable[[], bool]) -> None:
    with suppress(TimeoutError):
        wait_until(condition, _HANG_SECONDS)


def run_short_jobs(n_jobs: int, max_seconds: float) -> dict[str, Any]:
    """Run short jobs through the two nodes, as many as the time allows."""
    cluster = LocalCluster()
    with tempfile.TemporaryDirectory() as folder, open_registry(cluster, Path(folder), max_queued=16) as registry:
        submit(registry, "first", 256, 0).finished.wait(_HANG_SECONDS)
        jobs, begun = list[Job](), time.monotonic()
        while len(jobs) < n_jobs and time.monotonic() - begun < max_seconds:
            wait_until(lambda: registry.count_active() < 16)
            jobs.append(submit(registry, f"m{len(jobs):06d}", 256, len(jobs)))
        n_hung = sum(not job.finished.wait(_HANG_SECONDS) for job in jobs)
        seconds = time.monotonic() - begun
        ends = Counter(str(job.status) for job in jobs)
    cluster.close()
    rate = round(60 * len(jobs) / seconds, 1)
    return {"suite": "ray_jobs", "jobs": dict(ends), "hung": n_hung, "seconds": round(seconds), "jobs per minute": rate}


def main() -> int:
    """Run the suite.

    :return: The exit status: 1 if anything was lost.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=0, help="short jobs to run through the nodes")
    parser.add_argument("--max-seconds", type=float, default=3600.0, help="kill and submit no more after that")
    options = parser.parse_args()
    status = 0
    if options.kills:
        report = run(options.kills, options.seed, options.max_seconds)
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        status = 1 if report["losses"] else 0
    if options.jobs:
        jobs = run_short_jobs(options.jobs, options.max_seconds)
        sys.stdout.write(json.dumps(jobs, indent=2) + "\n")
        status = status or (1 if jobs["jobs"].keys() != {"completed"} or jobs["hung"] else 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
