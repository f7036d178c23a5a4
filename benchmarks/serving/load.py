"""Ask a real server while it trains: latencies of one client, throughput of 64, wrong answers, and ``/health``.

``python -m benchmarks.serving.load [--executor thread]`` prints a Markdown table. Every answer is compared with the
known deterministic one.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.lib.http_load import Exchange, LoadClient, Sample, make_request
from benchmarks.lib.server import Server, serve

_N_OBSERVATIONS = 64
_N_CLIENTS = 64
_POLL_SECONDS = 0.05
# CartPole's default job; long enough for any measurement.
_ENDLESS = {"total_timesteps": 10_000_000}
_HEALTH = [Exchange(make_request("GET", "/health"), b'"healthy"')]


def wait_for_job(server: Server, job_id: str, status: str) -> None:
    """Wait until a job has a status and, if that is ``running``, has taken steps."""
    while True:
        found = server.call("GET", f"/training/{job_id}/status")
        if found["status"] == status and (status != "running" or found["current_timesteps"] > 0):
            return
        if found["status"] == "failed":
            raise RuntimeError(f"job {job_id} failed: {found['error_message']}")
        time.sleep(_POLL_SECONDS)


def make_exchanges(server: Server) -> list[Exchange]:
    """Train a policy, and ask it while nothing else runs: those answers are the right ones."""
    job = server.call("POST", "/train", {"total_timesteps": 2048, "model_name": "load", "seed": 0})
    wait_for_job(server, job["job_id"], "completed")
    exchanges = []
    for i in range(_N_OBSERVATIONS):
        observation = [0.02 * i - 0.6, 0.3 - 0.01 * i, 0.003 * i - 0.1, 0.05 * (i % 7)]
        body = {"model_name": "load", "observation": observation}
        expected = json.dumps(server.call("POST", "/inference", body)["action"])
        request = make_request("POST", "/inference", json.dumps(body).encode())
        exchanges.append(Exchange(request, b'{"action":%s,' % expected.encode()))
    return exchanges


def start_jobs(server: Server, n_jobs: int) -> list[str]:
    """Start jobs that would run for hours, and return their ids once all of them take steps."""
    job_ids = [server.call("POST", "/train", {**_ENDLESS, "seed": seed})["job_id"] for seed in range(n_jobs)]
    for job_id in job_ids:
        wait_for_job(server, job_id, "running")
    return job_ids


def stop_jobs(server: Server, job_ids: list[str]) -> None:
    """Stop jobs, and wait until they have ended."""
    for job_id in job_ids:
        server.call("POST", f"/training/{job_id}/stop")
        wait_for_job(server, job_id, "stopped")


def measure(server: Server, seconds: float) -> dict[str, Sample]:
    """Measure every situation, and return its sample by its name in the table."""
    exchanges = make_exchanges(server)
    client, health = LoadClient(), LoadClient()
    health.measure(server.port, _HEALTH, 1, 0.2)
    samples = {"1 client, idle": client.measure(server.port, exchanges, 1, seconds)}
    samples["64 clients, idle"] = client.measure(server.port, exchanges, _N_CLIENTS, seconds)
    for n_jobs in (1, 2):
        job_ids = start_jobs(server, n_jobs)
        jobs = f"{n_jobs} job{'s' if n_jobs > 1 else ''}"
        samples[f"1 client, {jobs}"] = client.measure(server.port, exchanges, 1, seconds)
        asked = health.start(server.port, _HEALTH, 1, seconds)
        samples[f"64 clients, {jobs}"] = client.measure(server.port, exchanges, _N_CLIENTS, seconds)
        samples[f"`/health` beside 64 clients, {jobs}"] = asked.result()
        stop_jobs(server, job_ids)
    client.close()
    health.close()
    return samples


def format_table(samples: dict[str, Sample]) -> str:
    """Format a row per situation; 99th percentiles are also given relative to one client and no job."""
    lines = ["| situation | requests/s | p50 ms | p99 ms | beside idle p99 | wrong |", "|---|---|---|---|---|---|"]
    idle = samples["1 client, idle"].get_latency(99)
    for name, sample in samples.items():
        p50, p99 = sample.get_latency(50), sample.get_latency(99)
        numbers = f"{sample.requests_per_second:,.0f} | {p50:.2f} | {p99:.2f} | {p99 / idle:.1f} x | {sample.n_wrong}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", choices=("thread", "process"), help="GRPO_EXECUTOR of the server")
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    variables = {"GRPO_EXECUTOR": arguments.executor} if arguments.executor else {}
    with tempfile.TemporaryDirectory() as folder:
        with serve(Path(folder), GRPO_MAX_RUNNING_JOBS="2", **variables) as server:
            samples = measure(server, arguments.seconds)
    print(f"executor: {arguments.executor or 'default'}\n\n{format_table(samples)}")


if __name__ == "__main__":
    main()
