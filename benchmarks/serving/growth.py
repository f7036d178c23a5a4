"""Measure a server with 1,000 models to list, 300 models in a small cache, and 10,000 finished jobs.

``python -m benchmarks.serving.growth``
"""

import argparse
import logging
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fastapi.testclient import TestClient

from api import create_app
from benchmarks.lib.http_jobs import make_plan
from benchmarks.lib.server import Server, get_percentile, serve
from grpo import GRPO
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.journal import JobJournal
from service.jobs.records.recorder import JobRecorder
from service.jobs.registry import JobRegistry
from service.jobs.runner import JobRunner
from service.settings import Settings
from service.workers.task import Progress, Run, Task, TaskFailedError

N_LISTED = 1000
N_LISTINGS = 20
N_SERVED = 300
N_JOBS = 10_000
N_CLIENTS = 8
CACHE_MIB = 512
# Two networks of 4*700 + 700*700 weights are 4 MB: 130 of 300 models fit.
LARGE_NET_ARCH = [700, 700]
OBSERVATION = [0.1, 0.0, 0.05, 0.0]
_SAMPLE_SECONDS = 0.02
_SETTLE_SECONDS = 20.0


class Listings(NamedTuple):
    """Times of ``GET /models``; ``verified_s`` is how long a damaged file was listed as ``saved``."""

    first_ms: float
    verifying_ms: list[float]
    verified_s: float
    verified_ms: list[float]


class Served(NamedTuple):
    """Answers of many models through a small cache.

    :param errors: Answers with another status than 200.
    :param n_wrong: Answers of another model.
    """

    times_ms: list[float]
    errors: list[str]
    n_wrong: int
    n_loaded: int
    idle_mib: float
    peak_mib: float


def make_content(seed: int, net_arch: list[int], n_steps: int) -> bytes:
    """Return the file of a CartPole model.

    :param n_steps: Training steps; any at all give the file its optimizer's arrays.
    """
    kwargs = {"net_arch": net_arch}
    model = GRPO("MlpPolicy", "CartPole-v1", n_steps=64, group_size=2, horizon=32, seed=seed, policy_kwargs=kwargs)
    return (model.learn(n_steps) if n_steps else model).to_bytes()


def measure_listings(models_dir: Path) -> Listings:
    """List a large folder: right after the start, while its files are verified, and afterwards."""
    content = make_content(0, [64, 64], n_steps=64)
    for i in range(N_LISTED - 1):
        (models_dir / f"m{i:04}.zip").write_bytes(content)
    (models_dir / "z.zip").write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    with serve(models_dir) as server:
        client = server.connect()
        started = time.perf_counter()
        first_ms = client.time_call("GET", "/models")
        verifying_ms = []
        while client.call("GET", "/models")["models"][-1]["status"] == "saved":
            verifying_ms.append(client.time_call("GET", "/models"))
        verified_s = time.perf_counter() - started
        # The damaged file may have come early: wait for the others to be verified.
        time.sleep(_SETTLE_SECONDS)
        client = server.connect()
        verified_ms = [client.time_call("GET", "/models") for _ in range(N_LISTINGS)]
        statuses = [model["status"] for model in client.call("GET", "/models")["models"]]
        if statuses != ["saved"] * (N_LISTED - 1) + ["corrupt"]:
            raise RuntimeError("a file is listed with a wrong status")
        return Listings(first_ms, verifying_ms, verified_s, verified_ms)


@contextmanager
def _watch_memory(server: Server) -> Iterator[list[float]]:
    """Read a server's memory again and again, in MiB."""
    readings: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            readings.append(server.measure_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield readings
    finally:
        done.set()
        watcher.join()


def measure_cache(models_dir: Path, n_requests: int) -> Served:
    """Ask more models than the cache can hold, from several clients at once."""
    contents = [make_content(seed, LARGE_NET_ARCH, n_steps=0) for seed in range(3)]
    for i in range(N_SERVED):
        # Three files under a hundred names each: the server caches by name.
        source = models_dir / f"m{i % 3}.zip"
        if i < 3:
            source.write_bytes(contents[i])
        else:
            os.link(source, models_dir / f"m{i}.zip")
    variables = {"GRPO_MAX_CACHED_MODELS": str(N_SERVED), "GRPO_MAX_CACHED_BYTES": str(CACHE_MIB * 2**20)}
    with serve(models_dir, **variables) as server:
        client = server.connect()
        idle_mib = server.measure_memory()
        expected = [client.call("POST", "/inference", _ask(i)) for i in range(3)]
        errors: list[str] = []
        wrong: list[int] = []

        def ask_many(seed: int) -> list[float]:
            client, rng, times_ms = server.connect(), random.Random(seed), []
            for _ in range(n_requests // N_CLIENTS):
                i = rng.randrange(N_SERVED)
                started = time.perf_counter()
                try:
                    if client.call("POST", "/inference", _ask(i)) != expected[i % 3]:
                        wrong.append(i)
                except RuntimeError as error:
                    errors.append(str(error))
                times_ms.append(1e3 * (time.perf_counter() - started))
            return times_ms

        with _watch_memory(server) as readings, ThreadPoolExecutor(N_CLIENTS) as pool:
            times_ms = [time_ms for times in pool.map(ask_many, range(N_CLIENTS)) for time_ms in times]
        n_loaded = server.call("GET", "/health")["loaded_models"]
        return Served(times_ms, errors, len(wrong), n_loaded, idle_mib, max(readings))


class _Failing:
    """Runs jobs that have failed before they begin."""

    is_busy = False
    delay_seconds = 0.0

    def warm_up(self) -> None:
        """Nothing to get ready."""

    def start(self, task: Task, progress: Progress) -> Run:
        """Run nothing."""
        return self

    def wait(self, timeout_seconds: float) -> bool:
        """It has ended."""
        return True

    def get_content(self) -> bytes:
        """Fail."""
        raise TaskFailedError("as it should")

    def kill(self) -> None:
        """Nothing runs."""

    def drain(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Nothing is open."""


def measure_jobs(models_dir: Path) -> dict[str, float]:
    """Return the times of requests to a server with 10,000 finished jobs, in ms; submission is timed without HTTP."""
    app = create_app(Settings(models_dir=models_dir))
    store, recorder = app.state.service.store, JobRecorder(JobJournal())
    runner = JobRunner(store, _Failing(), recorder, max_running=1, stall_seconds=60.0)
    registry = JobRegistry(
        store, runner, recorder, CheckpointFolder(models_dir, lambda job_id: False), max_queued=1, max_kept=N_JOBS
    )
    plan = make_plan({})
    logging.getLogger("grpo.service").setLevel(logging.CRITICAL)
    submitting: list[float] = []
    for _ in range(N_JOBS):
        start = time.perf_counter()
        job = registry.submit(plan)
        submitting.append(1000 * (time.perf_counter() - start))
        job.finished.wait()
    app.state.service.registry = registry
    times = {"submit the last 1,000, median each": statistics.median(submitting[-1000:])}
    paths = {"status of one": f"/training/{job.job_id}/status"}
    paths |= {"a page of 100": "/training/jobs?limit=100", "all of them": "/training/jobs"}
    with TestClient(app, base_url="http://localhost") as client:
        for name, path in paths.items():
            samples = []
            for _ in range(N_LISTINGS):
                start = time.perf_counter()
                client.get(path).raise_for_status()
                samples.append(1000 * (time.perf_counter() - start))
            times[name] = statistics.median(samples)
    return times


def _ask(i: int) -> dict[str, object]:
    return {"model_name": f"m{i}", "observation": OBSERVATION}


def format_tables(listings: Listings, served: Served, jobs: dict[str, float]) -> str:
    """Format the tables as Markdown."""
    verifying = f"{statistics.median(listings.verifying_ms):.1f}" if listings.verifying_ms else "-"
    return "\n".join(
        [
            f"| GET /models of {N_LISTED:,} models | measured | aim |",
            "|---|---|---|",
            f"| first, right after the start, ms | {listings.first_ms:.1f} | <= 50 |",
            f"| while the files are verified, median, ms | {verifying} | |",
            f"| once they are, median of {N_LISTINGS}, ms | {statistics.median(listings.verified_ms):.1f} | <= 50 |",
            f"| a damaged file was found after, s | {listings.verified_s:.1f} | |",
            "",
            f"| {N_SERVED} models of 4 MB through {CACHE_MIB} MiB, {N_CLIENTS} clients | measured | aim |",
            "|---|---|---|",
            f"| answers | {len(served.times_ms)} | |",
            f"| errors | {len(served.errors)} | 0 |",
            f"| wrong answers | {served.n_wrong} | 0 |",
            f"| in memory at the end | {served.n_loaded} | |",
            f"| median, ms | {statistics.median(served.times_ms):.1f} | |",
            f"| 99th percentile, ms | {get_percentile(served.times_ms, 99):.1f} | |",
            f"| resident before, MiB | {served.idle_mib:.0f} | |",
            f"| resident at most, MiB | {served.peak_mib:.0f} | |",
            *sorted(set(served.errors))[:5],
            "",
            f"| {N_JOBS:,} finished jobs | ms |",
            "|---|---|",
            *(f"| {name} | {time_ms:.3f} |" for name, time_ms in jobs.items()),
        ]
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-requests", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        listings = measure_listings(Path(name))
    with tempfile.TemporaryDirectory() as name:
        served = measure_cache(Path(name), arguments.n_requests)
    with tempfile.TemporaryDirectory() as name:
        jobs = measure_jobs(Path(name))
    print(format_tables(listings, served, jobs))


if __name__ == "__main__":
    main()
