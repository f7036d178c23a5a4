"""Ask a real server while it trains: latencies of one client, throughput of 64, wrong answers, and ``/health``.

``python -m benchmarks.load [--executor thread]`` starts ``run_api.py`` and prints a Markdown table. Every answer is
compared with the known deterministic one.
"""

import argparse
import json
import socket
import sys
import tempfile
import time
from http.client import HTTPConnection
from typing import Any

from benchmarks.http_load import Client, Exchange, Sample, make_request
from benchmarks.serving import start

_N_OBSERVATIONS = 64
_N_CLIENTS = 64
_START_SECONDS = 60.0
_POLL_SECONDS = 0.05
# CartPole's default job; long enough for any measurement.
_ENDLESS = {"total_timesteps": 10_000_000}
_HEALTH = [Exchange(make_request("GET", "/health"), b'"healthy"')]


def call(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the server once."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def wait_until_up(port: int) -> None:
    """Wait for the server's first answer.

    :raises TimeoutError: If there is none.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            call(port, "GET", "/health")
            return
        except OSError:
            time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"the server did not answer within {_START_SECONDS:.0f} s")


def wait_for_job(port: int, job_id: str, status: str) -> None:
    """Wait until a job is in a status, and has taken steps if it is running."""
    while True:
        found = call(port, "GET", f"/training/{job_id}/status")
        if found["status"] == status and (status != "running" or found["current_timesteps"] > 0):
            return
        if found["status"] == "failed":
            raise RuntimeError(f"job {job_id} failed: {found['error_message']}")
        time.sleep(_POLL_SECONDS)


def make_exchanges(port: int) -> list[Exchange]:
    """Train a policy and ask it while nothing else runs; what it answers now is right for good."""
    job = call(port, "POST", "/train", {"total_timesteps": 2048, "model_name": "load", "seed": 0})
    wait_for_job(port, job["job_id"], "completed")
    exchanges = []
    for i in range(_N_OBSERVATIONS):
        observation = [0.02 * i - 0.6, 0.3 - 0.01 * i, 0.003 * i - 0.1, 0.05 * (i % 7)]
        body = {"model_name": "load", "observation": observation}
        expected = json.dumps(call(port, "POST", "/inference", body)["action"])
        request = make_request("POST", "/inference", json.dumps(body).encode())
        exchanges.append(Exchange(request, b'{"action":%s,' % expected.encode()))
    return exchanges


def start_jobs(port: int, n_jobs: int) -> list[str]:
    """Start jobs that would run for hours; return their ids once all of them take steps."""
    job_ids = [call(port, "POST", "/train", {**_ENDLESS, "seed": seed})["job_id"] for seed in range(n_jobs)]
    for job_id in job_ids:
        wait_for_job(port, job_id, "running")
    return job_ids


def stop_jobs(port: int, job_ids: list[str]) -> None:
    """Stop jobs and wait for their ends."""
    for job_id in job_ids:
        call(port, "POST", f"/training/{job_id}/stop")
        wait_for_job(port, job_id, "stopped")


def measure(port: int, seconds: float) -> dict[str, Sample]:
    """Go through the situations; return a sample of each by its name in the table."""
    exchanges = make_exchanges(port)
    client, health = Client(), Client()
    health.measure(port, _HEALTH, 1, 0.2)
    samples = {"1 client, idle": client.measure(port, exchanges, 1, seconds)}
    samples["64 clients, idle"] = client.measure(port, exchanges, _N_CLIENTS, seconds)
    for n_jobs in (1, 2):
        job_ids = start_jobs(port, n_jobs)
        jobs = f"{n_jobs} job{'s' if n_jobs > 1 else ''}"
        samples[f"1 client, {jobs}"] = client.measure(port, exchanges, 1, seconds)
        asked = health.start(port, _HEALTH, 1, seconds)
        samples[f"64 clients, {jobs}"] = client.measure(port, exchanges, _N_CLIENTS, seconds)
        samples[f"`/health` beside 64 clients, {jobs}"] = asked.result()
        stop_jobs(port, job_ids)
    client.close()
    health.close()
    return samples


def format_table(samples: dict[str, Sample]) -> str:
    """Write a row per situation, with the 99th percentile beside that of one client and no job."""
    lines = ["| situation | requests/s | p50 ms | p99 ms | beside idle p99 | wrong |", "|---|---|---|---|---|---|"]
    idle = samples["1 client, idle"].get_latency(99)
    for name, sample in samples.items():
        p50, p99 = sample.get_latency(50), sample.get_latency(99)
        numbers = f"{sample.requests_per_second:,.0f} | {p50:.2f} | {p99:.2f} | {p99 / idle:.1f} x | {sample.n_wrong}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Start a server, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", choices=("thread", "process"), help="GRPO_EXECUTOR of the server")
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    variables = {"GRPO_EXECUTOR": arguments.executor} if arguments.executor else {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run_api.py", "--port", str(port), "--models-dir", folder]
        with start(command, GRPO_MAX_RUNNING_JOBS="2", **variables):
            wait_until_up(port)
            samples = measure(port, arguments.seconds)
    print(f"executor: {arguments.executor or 'default'}\n\n{format_table(samples)}")


if __name__ == "__main__":
    main()
