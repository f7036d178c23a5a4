"""Train one CartPole job and two at once, in threads and in processes, beside requests for actions.

Run it with ``python -m benchmarks.concurrency``. Two real servers take turns in every round, so that whatever else the
machine does meets both alike. A job's time is from its start to its end as its status tells them; the latency of the
first step, from ``POST /train`` to a status that counts one. Plain loops in one process and in two say what the machine
has to give: on two cores that are free their ratio is 1.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EXECUTORS = ("thread", "process")
_START_SECONDS = 60.0
_POLL_SECONDS = 0.2
_FIRST_STEP_POLL_SECONDS = 0.001
_N_REQUESTS = 300
_N_LOOPS = 15_000_000
_OBSERVATION = [0.1, 0.0, 0.05, 0.0]
_HEADERS = {"Content-Type": "application/json"}


@dataclass
class Measured:
    """What was measured of one executor, in seconds, an entry per round."""

    alone: list[float] = field(default_factory=list)
    two_at_once: list[float] = field(default_factory=list)
    first_step: list[float] = field(default_factory=list)
    answers_idle: list[float] = field(default_factory=list)
    answers_beside_two: list[float] = field(default_factory=list)


class Client:
    """One connection to a server.

    :param port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request, and return the answer's content.

        :raises RuntimeError: If it is a refusal.
        """
        self._connection.request(method, path, None if body is None else json.dumps(body), _HEADERS)
        response = self._connection.getresponse()
        content = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {content}")
        return content

    def close(self) -> None:
        """Close the connection, which the server would not keep for long; the next request opens another."""
        self._connection.close()

    def train(self, total_timesteps: int, seed: int) -> str:
        """Start a job and return its id."""
        job_id: str = self.call("POST", "/train", {"total_timesteps": total_timesteps, "seed": seed})["job_id"]
        return job_id

    def get_status(self, job_id: str) -> dict[str, Any]:
        """Ask for a job's status."""
        status: dict[str, Any] = self.call("GET", f"/training/{job_id}/status")
        return status

    def wait_for_end(self, job_id: str) -> float:
        """Wait until a job has completed; return how many seconds it ran."""
        while (status := self.get_status(job_id))["status"] in ("queued", "running"):
            time.sleep(_POLL_SECONDS)
        assert status["status"] == "completed", status
        return _to_seconds(status["end_time"]) - _to_seconds(status["start_time"])

    def time_answers(self) -> list[float]:
        """Ask for an action again and again; return how many seconds each answer took."""
        request, seconds = {"model_name": "asked", "observation": _OBSERVATION}, []
        for _ in range(_N_REQUESTS):
            asked_at = time.perf_counter()
            self.call("POST", "/inference", request)
            seconds.append(time.perf_counter() - asked_at)
        return seconds


def _to_seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def wait_for_port(port: int) -> None:
    """Wait until a server listens.

    :raises OSError: If none does in time.
    """
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


@contextmanager
def start_server(executor: str, models_dir: Path) -> Iterator[Client]:
    """Run a server of its own process, ready to train at once, with a model to ask."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    variables = {"GRPO_EXECUTOR": executor, "GRPO_MAX_RUNNING_JOBS": "2"}
    command = [sys.executable, "run_api.py", "--port", str(port), "--models-dir", str(models_dir)]
    with open(models_dir / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stdout=log, stderr=log)
    try:
        wait_for_port(port)
        client = Client(port)
        job = client.call("POST", "/train", {"total_timesteps": 64, "model_name": "asked"})
        client.wait_for_end(job["job_id"])
        client.close()
        yield client
    finally:
        process.terminate()
        process.wait()


def measure(client: Client, measured: Measured, total_timesteps: int, seed: int) -> None:
    """Measure one round of one executor."""
    sent_at = time.perf_counter()
    job_id = client.train(total_timesteps, seed)
    while client.get_status(job_id)["current_timesteps"] == 0:
        time.sleep(_FIRST_STEP_POLL_SECONDS)
    measured.first_step.append(time.perf_counter() - sent_at)
    measured.alone.append(client.wait_for_end(job_id))

    jobs = [client.train(total_timesteps, seed + i) for i in range(2)]
    measured.two_at_once.append(max([client.wait_for_end(job_id) for job_id in jobs]))

    measured.answers_idle.extend(client.time_answers())
    endless = [client.train(10_000_000, seed) for _ in range(2)]
    measured.answers_beside_two.extend(client.time_answers())
    for job_id in endless:
        client.call("POST", f"/training/{job_id}/stop")
    client.close()


def time_loops(n_processes: int) -> float:
    """Return how many seconds plain loops take, one per process."""
    command = [sys.executable, "-c", f"for _ in range({_N_LOOPS}): pass"]
    started_at = time.perf_counter()
    for process in [subprocess.Popen(command) for _ in range(n_processes)]:
        process.wait()
    return time.perf_counter() - started_at


def format_row(executor: str, measured: Measured) -> str:
    """Describe an executor in a row of Markdown."""
    alone, two = statistics.median(measured.alone), statistics.median(measured.two_at_once)
    ratio = statistics.median(b / a for a, b in zip(measured.alone, measured.two_at_once, strict=True))
    answers = [
        f"{1000 * statistics.median(seconds):.1f} / {1000 * statistics.quantiles(seconds, n=100)[98]:.1f}"
        for seconds in (measured.answers_idle, measured.answers_beside_two)
    ]
    first_step = 1000 * statistics.median(measured.first_step)
    return f"| {executor} | {alone:.1f} | {two:.1f} | {ratio:.2f} | {first_step:.0f} | {' | '.join(answers)} |"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total-timesteps", type=int, default=2000)
    parser.add_argument("--n-rounds", type=int, default=3)
    arguments = parser.parse_args()
    measured = {executor: Measured() for executor in EXECUTORS}
    with ExitStack() as stack:
        clients = {}
        for executor in EXECUTORS:
            models_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            clients[executor] = stack.enter_context(start_server(executor, models_dir))
        loops = []
        for seed in range(arguments.n_rounds):
            loops.append((time_loops(1), time_loops(2)))
            for executor, client in clients.items():
                measure(client, measured[executor], arguments.total_timesteps, seed)
    print(f"CartPole-v1, {arguments.total_timesteps} steps, medians of {arguments.n_rounds} rounds; answers of")
    print("POST /inference, one client, in ms: median / 99th percentile.\n")
    print("| executor | one job, s | two at once, s | ratio | first step, ms | answer, idle | answer beside two jobs |")
    print("|---|---|---|---|---|---|---|")
    for executor in EXECUTORS:
        print(format_row(executor, measured[executor]))
    alone, two = (statistics.median(seconds) for seconds in zip(*loops, strict=True))
    print(f"| plain loops | {alone:.1f} | {two:.1f} | {statistics.median(b / a for a, b in loops):.2f} | | | |")


if __name__ == "__main__":
    main()
