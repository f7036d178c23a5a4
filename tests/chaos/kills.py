"""Kill the server, its workers and the process they are forked from at random instants, and look for what is lost.

In the end every job that was interrupted is resumed. All jobs of one seed and length, whether they were interrupted or
not, must end with the same model.

``python -m tests.chaos.kills --kills 200`` prints one JSON report and ends with status 1 if anything was lost.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

from benchmarks.lib.server import hold_port
from grpo_core import __version__

_ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 300.0
# Of four kills, one is of a worker, one of the forkserver, and two are of the server.
_TARGETS = ("server", "worker", "server", "forkserver")
# Mostly while workers start and train their first steps, at times when there are checkpoints.
_MAX_PAUSE_SECONDS = (2.0, 2.0, 2.0, 8.0)
# The last ones are of one to some seconds, most of which are killed under way.
LENGTHS = (64, 256, 1024, 16_384, 65_536)
_N_SEEDS = 3


class Ledger:
    """What clients were told: the jobs they know, and the files of those that they saw completed."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lock, self.lengths = threading.Lock(), lengths
        self.seen: set[str] = set()
        self.completed: dict[str, tuple[str, str]] = {}
        self.uploaded: dict[str, set[str]] = {}
        self.n_acknowledged = 0
        #: What trainings of each seed and length ended with.
        self.outcomes: dict[tuple[int, int], set[str]] = {}
        self.n_interrupted, self.n_resumed_midway = 0, 0


class Clients:
    """Two clients that train and one that uploads, for as long as the context lasts."""

    def __init__(self, port: int, ledger: Ledger, models_dir: Path) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._ledger, self._models_dir = ledger, models_dir
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=target) for target in (self._train, self._train, self._upload)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def call(self, path: str, body: bytes | None = None, method: str | None = None) -> Any:
        """Send a request, and return what the JSON of its answer says."""
        kind = "application/zip" if method == "PUT" else "application/json"
        with urlopen(
            Request(self._url + path, body, {"Content-Type": kind}, method=method), timeout=_PATIENCE_SECONDS
        ) as response:
            return json.load(response)

    def _train(self) -> None:
        while not self._ending.is_set():
            with suppress(OSError, ValueError, HTTPException):  # the server is dead, or refuses
                body = {"total_timesteps": random.choice(self._ledger.lengths), "seed": random.randrange(_N_SEEDS)}
                body |= {"n_eval_episodes": 0, "checkpoint_every": 1024}
                job_id = self.call("/train", json.dumps(body).encode())["job_id"]
                with self._ledger.lock:
                    self._ledger.seen.add(job_id)
                self._follow(job_id)
            time.sleep(0.02)

    def _follow(self, job_id: str) -> None:
        while not self._ending.is_set():
            status = self.call(f"/training/{job_id}/status")
            if status["status"] not in ("queued", "running"):
                if status["status"] == "completed":
                    with self._ledger.lock:
                        self._ledger.completed[job_id] = status["model_name"], status["sha256"]
                return
            time.sleep(0.02)

    def _upload(self) -> None:
        for number in range(10**9):
            if self._ending.wait(0.02):
                return
            with suppress(OSError, ValueError, HTTPException, IndexError):
                content = random.choice(sorted(self._models_dir.glob("CartPole*.zip"))).read_bytes()
                name = f"upload-{number % 4}"
                with self._ledger.lock:
                    self._ledger.uploaded.setdefault(name, set()).add(hashlib.sha256(content).hexdigest())
                self.call(f"/models/{name}/file?overwrite=true", content, "PUT")
                self._ledger.n_acknowledged += 1


@contextmanager
def serve(models_dir: Path, port: int) -> Iterator[psutil.Popen]:
    """Start a server, wait until it answers, and kill it in the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPO_")}
    variables = {"GRPO_EXECUTOR": "process", "GRPO_MAX_RUNNING_JOBS": "2", "GRPO_PRELOAD": "1"}
    variables |= {name: str(_PATIENCE_SECONDS) for name in ("GRPO_TASK_SECONDS", "GRPO_STALL_SECONDS")}
    command = [sys.executable, "run_api.py", "--port", str(port), "--models-dir", str(models_dir)]
    process = psutil.Popen(command, cwd=_ROOT, env={**environment, **variables}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with (
                suppress(OSError, HTTPException),
                urlopen(f"http://127.0.0.1:{port}/health", timeout=_PATIENCE_SECONDS),
            ):
                break
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def list_processes(server: psutil.Popen, target: str) -> list[psutil.Process]:
    """List the processes of a kind."""
    with suppress(psutil.Error):
        forkservers = [child for child in server.children() if "forkserver" in " ".join(child.cmdline())]
        if target == "forkserver":
            return forkservers
        return [worker for forkserver in forkservers for worker in forkserver.children()]
    return []


def find_losses(clients: Clients, ledger: Ledger, models_dir: Path, start: float) -> Counter[str]:
    """Count what a server that has started again lacks of what clients were told."""
    losses: Counter[str] = Counter()
    listed = {job["job_id"]: job["status"] for job in clients.call("/training/jobs")["jobs"]}
    losses["jobs not listed"] = len(ledger.seen - listed.keys())
    losses["jobs without an end"] = sum(status in ("queued", "running") for status in listed.values())
    for job_id, (name, sha256) in ledger.completed.items():
        file = models_dir / f"{name}.zip"
        is_there = file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256
        losses["completed models lost"] += not is_there
        losses["completed jobs forgotten"] += listed.get(job_id) != "completed"
    for name, hashes in ledger.uploaded.items():
        file = models_dir / f"{name}.zip"
        losses["uploads damaged"] += file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() not in hashes
    models = clients.call("/models")["models"]
    losses["corrupt models"] = sum(model["status"] not in ("loaded", "saved") for model in models)
    # A save of this server may be on its way.
    losses["leftovers"] = sum(file.stat().st_mtime < start for file in models_dir.glob(".tmp-*"))
    losses["jobs' files moved aside"] = len(list(models_dir.glob(".jobs.sqlite3.damaged-*")))
    return losses


def resume_all(clients: Clients, ledger: Ledger) -> Counter[str]:
    """Resume every job that was interrupted, and count those that do not complete."""
    losses: Counter[str] = Counter()
    failed = [job for job in clients.call("/training/jobs")["jobs"] if job["status"] == "failed"]
    ledger.n_interrupted = len(failed)
    for job in failed:
        path = f"/training/{job['job_id']}"
        ledger.n_resumed_midway += clients.call(f"{path}/status")["checkpoint"] is not None
        clients.call(f"{path}/resume", b"")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while clients.call(f"{path}/status")["status"] in ("queued", "running") and time.monotonic() < deadline:
            time.sleep(0.02)
        losses["interrupted jobs that resume to no end"] += clients.call(f"{path}/status")["status"] != "completed"
    return losses


def compare_outcomes(clients: Clients, ledger: Ledger, models_dir: Path) -> Counter[str]:
    """Count the trainings of one seed and length that did not all end with the same model, but for its name."""
    for job in clients.call("/training/jobs")["jobs"]:
        status = clients.call(f"/training/{job['job_id']}/status")
        if status["status"] == "completed":
            training = status["config"]["seed"], status["config"]["total_timesteps"]
            content = _hash_but_for_name(models_dir / f"{status['model_name']}.zip", status["model_name"])
            ledger.outcomes.setdefault(training, set()).add(content)
    return Counter({"trainings that end with another model": sum(len(each) > 1 for each in ledger.outcomes.values())})


def _hash_but_for_name(file: Path, name: str) -> str:
    with zipfile.ZipFile(file) as archive:
        members = [archive.read(member).replace(name.encode(), b"") for member in archive.namelist()]
    return hashlib.sha256(b"".join(members)).hexdigest()


def count_orphans(processes: list[psutil.Process]) -> int:
    """Count the processes of a dead server that do not end either."""
    _, alive = psutil.wait_procs(processes, _PATIENCE_SECONDS)
    return sum(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in alive)


def run(n_kills: int, seed: int, loses: bool = False, lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """Kill so many processes, and report.

    :param loses: Whether to lose the jobs' file and cut a model between two servers, which must be found.
    :param lengths: The jobs' steps, drawn from these.
    """
    draw = random.Random(seed)
    begun = time.monotonic()
    ledger, kills, losses = Ledger(lengths), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        models_dir = Path(folder) / "models"
        while sum(kills.values()) < n_kills:
            start = time.time()
            with hold_port() as port, serve(models_dir, port) as server:
                clients = Clients(port, ledger, models_dir)
                losses |= find_losses(clients, ledger, models_dir, start)
                with clients:
                    _wait(lambda: bool(ledger.completed))  # there must be something to lose
                    _kill(server, draw, kills, losses, n_kills)
            if loses:
                _lose(models_dir)
        start = time.time()
        with hold_port() as port, serve(models_dir, port):
            clients = Clients(port, ledger, models_dir)
            losses |= find_losses(clients, ledger, models_dir, start)
            losses |= resume_all(clients, ledger) | compare_outcomes(clients, ledger, models_dir)
    return {
        "suite": "kills",
        "seed": seed,
        "kills": dict(kills),
        "jobs seen": len(ledger.seen),
        "jobs seen completed": len(ledger.completed),
        "uploads acknowledged": ledger.n_acknowledged,
        "interrupted jobs resumed": ledger.n_interrupted,
        "of which from a checkpoint": ledger.n_resumed_midway,
        "trainings compared": len(ledger.outcomes),
        "losses": {name: n for name, n in losses.items() if n},
        "seconds": round(time.monotonic() - begun),
        "versions": {"grpo": __version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version},
    }


def _kill(server: psutil.Popen, draw: random.Random, kills: Counter[str], losses: Counter[str], n_kills: int) -> None:
    """Kill processes of a server until it is the server's turn."""
    target = ""
    while target != "server" and sum(kills.values()) < n_kills:
        target = draw.choice(_TARGETS)
        if target == "server" and not list_processes(server, "worker"):
            _wait_for(server, "worker")
        time.sleep(draw.uniform(0.0, draw.choice(_MAX_PAUSE_SECONDS)))
        if target == "server":
            family = server.children(recursive=True)
            server.send_signal(signal.SIGKILL)
            server.wait()
            losses["orphans"] += count_orphans(family)
        else:
            _wait_for(server, target)
            with suppress(psutil.Error, IndexError):
                draw.choice(list_processes(server, target)).send_signal(signal.SIGKILL)
        kills[target] += 1


def _wait_for(server: psutil.Popen, target: str) -> None:
    _wait(lambda: bool(list_processes(server, target)))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def _lose(models_dir: Path) -> None:
    for file in models_dir.glob(".jobs.sqlite3*"):
        file.unlink()
    for file in sorted(models_dir.glob("CartPole*.zip"))[:1]:
        file.write_bytes(file.read_bytes()[:-100])


def main() -> int:
    """Run the suite.

    :return: The exit status: 1 if anything was lost.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--negative-control", action="store_true", help="lose something on purpose: must be found")
    options = parser.parse_args()
    report = run(options.kills, options.seed, options.negative_control)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 1 if report["losses"] else 0


if __name__ == "__main__":
    sys.exit(main())
