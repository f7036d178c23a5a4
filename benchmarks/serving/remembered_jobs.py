"""Measure a server that remembers 10,000 jobs of earlier servers: its start, its lists, and what a new job costs.

``python -m benchmarks.serving.remembered_jobs``
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fastapi.testclient import TestClient

from api import create_app
from benchmarks.lib.http_jobs import make_plan
from service.jobs.job import Job
from service.jobs.records.database import FILE_NAME
from service.jobs.records.journal import JobJournal
from service.jobs.records.recorder import JobRecorder
from service.schemas.jobs import JobStatus
from service.settings import Settings

N_JOBS = 10_000
_N_REPETITIONS = 20
_N_ROWS = 100


def write_jobs(models_dir: Path) -> float:
    """Write jobs that have ended; return the size of their file in MiB."""
    journal = JobJournal(models_dir / FILE_NAME)
    plan = make_plan({})
    for start in range(0, N_JOBS, 500):
        records = []
        for number in range(start, start + 500):
            job = Job(plan)
            job.start()
            for row in range(_N_ROWS):
                job.progress.advance(32 * row)
                job.progress.publish_metrics({f"train/{key}": row / 7 for key in range(16)})
            job.finish(JobStatus.COMPLETED if number % 3 else JobStatus.FAILED)
            records.append(job.make_record(0, 1))
        journal.write(records)
    journal.close()
    return (models_dir / FILE_NAME).stat().st_size / 2**20


def measure(call: Callable[[], object]) -> float:
    """Return the median time of a call, in ms."""
    samples = []
    for _ in range(_N_REPETITIONS):
        start = time.perf_counter()
        call()
        samples.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(samples), 2)


def main() -> None:
    """Measure, and print JSON."""
    with tempfile.TemporaryDirectory() as folder:
        models_dir = Path(folder)
        figures = {"size of the file, MiB": round(write_jobs(models_dir), 1)}
        start = time.perf_counter()
        app = create_app(Settings(models_dir=models_dir, executor="thread"))
        figures["start with them, ms"] = round(1000 * (time.perf_counter() - start), 1)
        with TestClient(app, base_url="http://localhost") as client:
            last = client.get("/training/jobs").json()["jobs"][-1]["job_id"]
            middle = client.get("/training/jobs").json()["jobs"][N_JOBS // 2]["job_id"]
            for name, path in {
                "all, ms": "/training/jobs",
                "all that failed, ms": "/training/jobs?status=failed",
                "a page of 100 in the middle, ms": f"/training/jobs?limit=100&after={middle}",
                "all that failed, sorted by reward, ms": "/training/jobs?status=failed&sort=-mean_reward",
                "found by a word, sorted by reward, ms": "/training/jobs?search=cart&sort=-mean_reward&limit=50",
                "status of an old one, ms": f"/training/{last}/status",
                "Prometheus' metrics, ms": "/metrics",
            }.items():
                figures[name] = measure(lambda path=path: client.get(path).raise_for_status())  # type: ignore[misc]
        recorder, plan = JobRecorder(JobJournal(models_dir / FILE_NAME)), make_plan({})
        figures["write a new job down, synced, ms"] = measure(lambda: recorder.begin(Job(plan)))
        recorder.close()
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
