"""Train one CartPole job and two at once, in threads and in processes, and ask for actions meanwhile.

Run it with ``python -m benchmarks.serving.concurrency``. Two servers take turns in every round, so that other work on
the machine slows both alike. The time of a job runs from its start to its end, by its status; the time to the first
step, from ``POST /train`` to a status with a step. Plain loops in one process and in two show what the machine can do:
on two idle cores their ratio is 1.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from benchmarks.lib.server import Client, get_percentile, serve

EXECUTORS = ("thread", "process")
_POLL_SECONDS = 0.2
_FIRST_STEP_POLL_SECONDS = 0.001
_N_REQUESTS = 300
_N_LOOPS = 15_000_000
_OBSERVATION = [0.1, 0.0, 0.05, 0.0]


@dataclass
class Times:
    """Times of one executor, an entry per round: seconds, and ms of answers."""

    alone: list[float] = field(default_factory=list)
    two_at_once: list[float] = field(default_factory=list)
    first_step: list[float] = field(default_factory=list)
    answers_idle: list[float] = field(default_factory=list)
    answers_beside_two: list[float] = field(default_factory=list)


def train(client: Client, total_timesteps: int, seed: int) -> str:
    """Start a job, and return its id."""
    job_id: str = client.call("POST", "/train", {"total_timesteps": total_timesteps, "seed": seed})["job_id"]
    return job_id


def wait_for_end(client: Client, job_id: str) -> float:
    """Wait until a job is completed, and return how many seconds it ran."""
    while (status := client.call("GET", f"/training/{job_id}/status"))["status"] in ("queued", "running"):
        time.sleep(_POLL_SECONDS)
    if status["status"] != "completed":
        raise RuntimeError(f"job {job_id} {status['status']}: {status['error_message']}")
    started_at, ended_at = (datetime.fromisoformat(status[name]) for name in ("start_time", "end_time"))
    return (ended_at - started_at).total_seconds()


def time_answers(client: Client) -> list[float]:
    """Ask for an action again and again, and return the time of each answer, in ms."""
    request = {"model_name": "asked", "observation": _OBSERVATION}
    return [client.time_call("POST", "/inference", request) for _ in range(_N_REQUESTS)]


@contextmanager
def start_server(executor: str, models_dir: Path) -> Iterator[Client]:
    """Start a server that is ready to train at once, and train the model to ask."""
    with serve(models_dir, GRPO_EXECUTOR=executor, GRPO_MAX_RUNNING_JOBS="2") as server:
        with closing(server.connect()) as client:
            job = client.call("POST", "/train", {"total_timesteps": 64, "model_name": "asked"})
            wait_for_end(client, job["job_id"])
            client.close()  # the server would close it while the other one is measured
            yield client


def measure(client: Client, measured: Times, total_timesteps: int, seed: int) -> None:
    """Measure one round of one executor.

    :param measured: Times to add to.
    """
    sent_at = time.perf_counter()
    job_id = train(client, total_timesteps, seed)
    while client.call("GET", f"/training/{job_id}/status")["current_timesteps"] == 0:
        time.sleep(_FIRST_STEP_POLL_SECONDS)
    measured.first_step.append(time.perf_counter() - sent_at)
    measured.alone.append(wait_for_end(client, job_id))

    jobs = [train(client, total_timesteps, seed + i) for i in range(2)]
    measured.two_at_once.append(max([wait_for_end(client, job_id) for job_id in jobs]))

    measured.answers_idle.extend(time_answers(client))
    endless = [train(client, 10_000_000, seed) for _ in range(2)]
    measured.answers_beside_two.extend(time_answers(client))
    for job_id in endless:
        client.call("POST", f"/training/{job_id}/stop")
    client.close()


def time_loops(n_processes: int) -> float:
    """Return the seconds that plain loops take, one per process."""
    command = [sys.executable, "-c", f"for _ in range({_N_LOOPS}): pass"]
    started_at = time.perf_counter()
    for process in [subprocess.Popen(command) for _ in range(n_processes)]:
        process.wait()
    return time.perf_counter() - started_at


def format_row(executor: str, measured: Times) -> str:
    """Format the times of an executor as a row of Markdown."""
    alone, two = statistics.median(measured.alone), statistics.median(measured.two_at_once)
    ratio = statistics.median(b / a for a, b in zip(measured.alone, measured.two_at_once, strict=True))
    answers = [
        f"{statistics.median(times_ms):.1f} / {get_percentile(times_ms, 99):.1f}"
        for times_ms in (measured.answers_idle, measured.answers_beside_two)
    ]
    first_step = 1000 * statistics.median(measured.first_step)
    return f"| {executor} | {alone:.1f} | {two:.1f} | {ratio:.2f} | {first_step:.0f} | {' | '.join(answers)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total-timesteps", type=int, default=2000)
    parser.add_argument("--n-rounds", type=int, default=3)
    arguments = parser.parse_args()
    measured = {executor: Times() for executor in EXECUTORS}
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
