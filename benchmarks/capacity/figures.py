"""The figures that the capacity page reckons with: measured here, or by other benchmarks and read from their tables."""

import json
import os
import platform
import re
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import psutil

from benchmarks.capacity.simulation import simulate_load, simulate_queue
from benchmarks.lib.http_load import Exchange, LoadClient, make_request
from benchmarks.lib.server import Server, serve
from benchmarks.serving.replicas import serve_replicas
from grpo import GRPO
from grpo_core.checkpoints import checkpoint
from grpo_core.saving.atomic_write import write_atomic
from grpo_core.saving.model_file import from_bytes

FOLDER = Path(__file__).parents[1] / "results"
PATH = FOLDER / "capacity.json"
# A short job, and one that trains for as long as a user would wait.
_SHORT, _LONG, _ENDLESS = 256, 10_000, 10_000_000
_N_JOBS, _N_BURST = 8, 24
_N_CONNECTIONS = 64
_LOAD_SECONDS = 3.0
_N_ROUNDS = 5
_POLL_SECONDS, _CALM_SECONDS = 0.05, 0.5
_BODY = json.dumps({"model_name": "m", "observation": [0.1, 0.0, 0.05, 0.0]}).encode()
_EXCHANGE = Exchange(make_request("POST", "/inference", _BODY), b'"action":')


class Check(NamedTuple):
    """A figure that was measured, and what the simulation makes of it.

    :param what: Which, with its unit.
    """

    what: str
    measured: float
    simulated: float

    @property
    def deviation(self) -> float:
        """Of the simulation, as a share of what was measured."""
        return self.simulated / self.measured - 1


class Figures(NamedTuple):
    """All figures that this benchmark measures.

    :param machine: What they come from.
    :param job_seconds: Time of one job alone in its slot, by simulator steps of CartPole-v1.
    :param job_server_ms: Processor time of the server's own process for one short job.
    :param running_server_ms: The same for one second of a running job.
    :param job_bytes: What one job adds to the jobs' file.
    :param model_bytes: Size of a model file of a 64x64 network, by the optimizer's moments too.
    :param model_load_ms: Time to read and verify it.
    :param model_save_ms: Time to write it so that it survives a power cut.
    :param checkpoint_bytes: Size of a checkpoint of such a job.
    :param checkpoint_ms: Time of the training to make one.
    :param answer_us: Processor time of a replica for an answer.
    :param client_us: The same of the client.
    :param exchange_bytes: Size of a request and its answer, without what TCP adds.
    :param checks: The simulation beside measurements.
    """

    machine: str
    job_seconds: dict[str, float]
    job_server_ms: float
    running_server_ms: float
    job_bytes: float
    model_bytes: int
    model_load_ms: float
    model_save_ms: float
    checkpoint_bytes: int
    checkpoint_ms: float
    answer_us: float
    client_us: float
    exchange_bytes: int
    checks: list[Check]


def measure() -> Figures:
    """Measure everything; it takes some minutes on two idle cores."""
    files = _measure_files()
    jobs, job_checks = _measure_jobs()
    answers, answer_checks = _measure_answers()
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    return Figures(**{"machine": machine, **files, **jobs, **answers}, checks=[*job_checks, *answer_checks])


def write(figures: Figures) -> None:
    """Keep the figures."""
    plain = figures._asdict() | {"checks": [check._asdict() for check in figures.checks]}
    PATH.write_text(json.dumps(plain, indent=1) + "\n")


def read() -> Figures:
    """Read the figures that were kept."""
    plain = json.loads(PATH.read_text())
    return Figures(**plain | {"checks": [Check(**check) for check in plain["checks"]]})


def read_steps_per_second() -> dict[str, float]:
    """Read steps per second of one core, learning included, from the tables of speed, by environment."""
    training, mujoco = ((FOLDER / "speed" / f"{name}.md").read_text() for name in ("training", "mujoco"))
    rates = {}
    for name in ("Acrobot-v1", "Pendulum-v1"):
        rates[name] = _find(training, rf"\| {name}: steps per second, rollouts of 2048.*?\n\| GRPO \| ([\d,.]+)")
    seconds = _find(training, r"CartPole-v1: seconds for 10,000 steps.*?the training alone \| ([\d,.]+)")
    rates["CartPole-v1"] = 10_000 / seconds
    for name in ("HalfCheetah-v5", "Hopper-v5", "Ant-v5"):
        rates[name] = _find(mujoco, rf"\| {name}: .*?, collecting and learning.*?\n\| GRPO, 1 core \| ([\d,.]+)")
    return rates


def read_replica() -> dict[str, float]:
    """Read what a replica takes, and what N of them do of N times one, from the table of replicas."""
    table = (FOLDER / "speed" / "replicas.md").read_text()
    two = _find(table, r"\| 2 replicas \| [\d,.]+ \| ([\d,.]+) x")
    # Two that take less per answer than one alone show how exact the measurement is, and no gain to reckon with.
    memory = _find(table, r"\| 1 replica \|.*\| ([\d,.]+) \|\n")
    return {"memory_mib": memory, "measured": two, "efficiency": min(1.0, two)}


def read_batch_rate() -> float:
    """Read observations per second of one core, from arrays to arrays."""
    return _find((FOLDER / "speed" / "batches.md").read_text(), r"\| array to array \| ([\d,.]+)")


def _find(text: str, pattern: str) -> float:
    match = re.search(pattern, text, flags=re.DOTALL if ".*?" in pattern else 0)
    if match is None:
        raise ValueError(f"no line fits {pattern!r}; measure it with python -m benchmarks.measure_speed")
    return float(match[1].replace(",", ""))


def _measure_files() -> dict[str, Any]:
    model = GRPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=256, group_size=8, horizon=32, seed=0)
    model.learn(512)
    content, kept = model.to_bytes(env_name="CartPole-v1"), checkpoint.to_bytes(model)
    with tempfile.TemporaryDirectory() as folder:
        return {
            "model_bytes": len(content),
            "model_load_ms": _time(lambda: from_bytes(content).make_actor()),
            "model_save_ms": _time(lambda: write_atomic(Path(folder) / "m.zip", content)),
            "checkpoint_bytes": len(kept),
            "checkpoint_ms": _time(lambda: checkpoint.to_bytes(model)),
        }


def _time(call: Any, n_repetitions: int = 20) -> float:
    """Return the median duration of a call in ms."""
    durations = []
    for _ in range(n_repetitions):
        begun = time.perf_counter()
        call()
        durations.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(durations)


def _measure_jobs() -> tuple[dict[str, Any], list[Check]]:
    """Time jobs one after the other, then as many at once as there are cores, and predict the latter."""
    n_slots = min(2, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        with serve(Path(name), GRPO_PRELOAD="1", GRPO_MAX_RUNNING_JOBS=str(n_slots)) as server:
            _time_jobs(server, [_SHORT] * 2)  # the first one waits for imports
            alone = {steps: [_time_jobs(server, [steps])[0] for _ in range(_N_JOBS)] for steps in (_SHORT, _LONG)}
            job_cpu, running_cpu = _measure_server_cpu(server, n_slots)
            seconds = {steps: statistics.median(ends) for steps, ends in alone.items()}
            burst = [(_SHORT, _LONG)[i % 2] for i in range(_N_BURST)]
            ends = _time_jobs(server, burst)
            n_jobs = server.call("GET", "/training/jobs?limit=1000")["jobs"]
        # Closed, so that nothing is left in the database's log.
        n_bytes = (Path(name) / ".jobs.sqlite3").stat().st_size
    stays = simulate_queue([0.0] * _N_BURST, [seconds[steps] for steps in burst], n_slots)
    simulated = [stay.ended_at for stay in stays]
    checks = [
        Check(f"{_N_BURST} jobs on {n_slots} cores: until the last has ended, s", max(ends), max(simulated)),
        Check("the same: until one has ended, mean, s", statistics.mean(ends), statistics.mean(simulated)),
    ]
    return {
        "job_seconds": {str(steps): median for steps, median in seconds.items()},
        "job_server_ms": 1e3 * job_cpu,
        "running_server_ms": 1e3 * running_cpu,
        "job_bytes": n_bytes / len(n_jobs),
    }, checks


def _measure_server_cpu(server: Server, n_slots: int) -> tuple[float, float]:
    """Return the processor time of the server itself for a short job, and for a second of a running one."""
    cpu = server.measure_cpu()
    _start_jobs(server, [_SHORT] * _N_BURST)
    while server.call("GET", "/health")["active_jobs"]:
        time.sleep(_CALM_SECONDS)
    job_cpu = (server.measure_cpu() - cpu) / _N_BURST
    ids = _start_jobs(server, [_ENDLESS] * n_slots)
    time.sleep(_CALM_SECONDS * 4)  # until they train
    cpu = server.measure_cpu()
    time.sleep(_LOAD_SECONDS)
    running_cpu = (server.measure_cpu() - cpu) / _LOAD_SECONDS / n_slots
    for job_id in ids:
        server.call("POST", f"/training/{job_id}/stop")
    while server.call("GET", "/health")["active_jobs"]:
        time.sleep(_CALM_SECONDS)
    return job_cpu, running_cpu


def _start_jobs(server: Server, steps: Sequence[int]) -> list[str]:
    settings: Mapping[str, Any] = {"n_eval_episodes": 0, "seed": 0}
    return [
        server.call("POST", "/train", {**settings, "total_timesteps": n, "model_name": f"j{number}"})["job_id"]
        for number, n in enumerate(steps)
    ]


def _time_jobs(server: Server, steps: Sequence[int]) -> list[float]:
    """Start jobs at once, and return how long it takes until each has ended."""
    begun = time.perf_counter()
    ids = _start_jobs(server, steps)
    ends: dict[str, float] = {}
    while len(ends) < len(ids):
        time.sleep(_POLL_SECONDS)
        for job in server.call("GET", f"/training/jobs?sort=-created_at&limit={len(ids)}")["jobs"]:
            if job["status"] == "failed":
                raise RuntimeError(f"job {job['job_id']} failed")
            if job["status"] == "completed":
                ends.setdefault(job["job_id"], time.perf_counter() - begun)
    return [ends[job_id] for job_id in ids]


def _measure_answers() -> tuple[dict[str, Any], list[Check]]:
    """Time the answers of one replica, and predict how many two of them give beside the client."""
    n_cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        GRPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=64, group_size=2, horizon=32, seed=0).save(folder / "m.zip")
        client = LoadClient()
        rates: dict[int, list[float]] = {1: [], 2: []}
        costs: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        with serve_replicas(folder, 1) as one, serve_replicas(folder, 2) as two:
            n_bytes = _count_exchange(one.port)
            for _ in range(_N_ROUNDS + 1):
                for n_replicas, group in ((1, one), (2, two)):
                    before, own = group.measure_cpu(), _measure_client_cpu()
                    sample = client.measure(group.port, [_EXCHANGE], _N_CONNECTIONS, _LOAD_SECONDS)
                    n_answers = len(sample.latencies)
                    used = group.measure_cpu() - before, _measure_client_cpu() - own
                    costs[n_replicas].append((used[0] / n_answers, used[1] / n_answers))
                    rates[n_replicas].append(sample.requests_per_second)
        client.close()
    answer, own = (statistics.median(values) for values in zip(*costs[1][1:], strict=True))
    checks = []
    for n_replicas in (1, 2):
        load = simulate_load(_N_CONNECTIONS, n_replicas, own, answer, n_cores, 2.0)
        what = f"answers/s of {n_replicas} replica{'s' * (n_replicas > 1)} beside their client on {n_cores} cores"
        checks.append(Check(what, statistics.median(rates[n_replicas][1:]), load.per_second))
    return {"answer_us": 1e6 * answer, "client_us": 1e6 * own, "exchange_bytes": n_bytes}, checks


def _count_exchange(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(_EXCHANGE.request)
        return len(_EXCHANGE.request) + len(connection.recv(65_536))


def _measure_client_cpu() -> float:
    """Return the processor time of the process that sends the load, the youngest child of this one."""
    children = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    return sum(sum(child.cpu_times()[:2]) for child in children)
