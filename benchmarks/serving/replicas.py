"""Measure what replicas cost: N processes on one port against one, and the same application on Ray Serve.

``python -m benchmarks.serving.replicas [--peer-python PATH]`` prints Markdown tables. The clients take cores of the
same machine, so requests per second say little of what N replicas do on N cores. What does is the processor time of an
answer: processes that share nothing but a port do N times the work on N cores if each takes as long for an answer as
one alone takes. What a group takes while nobody asks is measured before each round and taken off.

First replicas alone are asked in turn, then one replica and one on Ray Serve, which runs in a Python that has it beside
requirements.txt, by default this one. All give the same bytes for the same request of the same client. It ends within
four minutes, with fewer rounds if the machine is slow.
"""

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import psutil

from benchmarks.lib.http_load import Exchange, LoadClient, make_request
from benchmarks.lib.server import Client
from benchmarks.serving.compare_servers import start
from grpo import GRPO

_BODY = json.dumps({"model_name": "m", "observation": [0.1, 0.0, 0.05, 0.0]}).encode()
_EXCHANGE = Exchange(make_request("POST", "/inference", _BODY), b'"action":')
_N_CONNECTIONS = 64
_START_SECONDS = 90.0
_POLL_SECONDS = 0.05
# What Ray Serve is made of that takes part in an answer.
_RAY_PROCESSES = ("ProxyActor", "ServeReplica", "ServeController", "raylet", "gcs_server")
_RAY = "1 replica on Ray Serve"
_IDLE_SECONDS = 0.5
# No more rounds of replicas, and of these beside Ray Serve, begin after this long.
_MAX_SECONDS = (80.0, 60.0)


class Group(NamedTuple):
    """Processes that answer together.

    :param port: Where they do.
    :param processes: All of them.
    """

    port: int
    processes: list[psutil.Process]

    def measure_cpu(self) -> float:
        """Return the processor time that they have taken, in seconds."""
        times = [process.cpu_times() for process in self.processes]
        return float(sum(time.user + time.system for time in times))

    def measure_memory(self) -> float:
        """Return the resident memory in MiB."""
        return float(sum(process.memory_info().rss for process in self.processes)) / 2**20


class Cost(NamedTuple):
    """What answers took.

    :param microseconds: Processor time of each, over all processes, without what they take anyhow.
    :param requests_per_second: Answers per second, clients beside.
    :param p99_ms: 99th percentile of their latencies.
    :param idle_ms: Processor time in a second in which nobody asks.
    """

    microseconds: float
    requests_per_second: float
    p99_ms: float
    idle_ms: float


@contextmanager
def serve_replicas(folder: Path, n_replicas: int) -> Iterator[Group]:
    """Start replicas on one port."""
    port = _find_ports(n_replicas + 1)
    options = ["--role=serve", f"--replicas={n_replicas}", f"--port={port}", f"--models-dir={folder}"]
    command = [sys.executable, "run_api.py", *options, f"--metrics-port={port + 1}"]
    with start(command) as process:
        for own in range(port + 1, port + 1 + n_replicas):
            _wait(own, process.pid)
        parent = psutil.Process(process.pid)
        yield Group(port, parent.children() if n_replicas > 1 else [parent])


@contextmanager
def serve_on_ray(folder: Path, python: str) -> Iterator[Group]:
    """Start one replica on Ray Serve."""
    port = _find_ports(1)
    with start([python, "-m", "benchmarks.serving.apps.ray_replica_app", str(folder), str(port)]) as process:
        _wait(port, process.pid)
        children = psutil.Process(process.pid).children(recursive=True)
        yield Group(port, [child for child in children if any(name in _name(child) for name in _RAY_PROCESSES)])


def measure(groups: dict[str, Group], n_rounds: int, seconds: float, max_seconds: float) -> dict[str, list[Cost]]:
    """Ask the groups in turn, from one process, and expect the first one's answer of each.

    :param seconds: How long to ask a group in a round.
    :param max_seconds: After this long no more rounds begin, but for one that counts.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in groups}
    exchange = Exchange(_EXCHANGE.request, _read_answer(next(iter(groups.values())).port))
    with closing(LoadClient()) as client:
        deadline = time.monotonic() + max_seconds
        for number in range(n_rounds + 1):
            if number > 1 and time.monotonic() > deadline:
                break
            idle = _measure_idle(groups)
            for name, group in groups.items():
                before, began = group.measure_cpu(), time.monotonic()
                sample = client.measure(group.port, [exchange], _N_CONNECTIONS, seconds)
                used = group.measure_cpu() - before - idle[name] * (time.monotonic() - began)
                if sample.n_wrong:
                    raise RuntimeError(f"{name} gave {sample.n_wrong} answers unlike the first group's")
                if number > 0:  # the first warms up
                    microseconds = 1e6 * used / len(sample.latencies)
                    p99, idle_ms = sample.get_latency(99), 1e3 * idle[name]
                    costs[name].append(Cost(microseconds, sample.requests_per_second, p99, idle_ms))
    return costs


def _read_answer(port: int) -> bytes:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)) as connection:
        connection.request("POST", "/inference", _BODY, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"/inference answered {answer.status}: {body[:500]!r}")
    return body


def _measure_idle(groups: dict[str, Group]) -> dict[str, float]:
    """Return the share of a core that each group takes while nobody asks."""
    began = time.monotonic()
    before = {name: group.measure_cpu() for name, group in groups.items()}
    time.sleep(_IDLE_SECONDS)
    return {name: (group.measure_cpu() - before[name]) / (time.monotonic() - began) for name, group in groups.items()}


def format_table(costs: dict[str, list[Cost]], memory: dict[str, float]) -> str:
    """Format medians over the rounds, and the median of each round's ratio to one replica."""
    alone = next(iter(costs.values()))
    lines = [
        "| | CPU per answer, µs | answers per CPU second | requests/s, clients beside | p99 ms | "
        "idle CPU, ms/s | MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rounds in costs.items():
        ratio = statistics.median(one.microseconds / cost.microseconds for one, cost in zip(alone, rounds, strict=True))
        cpu, rate, p99, idle = (statistics.median(values) for values in zip(*rounds, strict=True))
        columns = [f"{cpu:.0f}", f"{ratio:.2f} x", f"{rate:,.0f}", f"{p99:.1f}", f"{idle:.0f}", f"{memory[name]:.0f}"]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _find_ports(n_ports: int) -> int:
    """Return the first of some free ports in a row."""
    while True:
        with ExitStack() as stack, suppress(OSError, OverflowError):
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port: int = first.getsockname()[1]
            for other in range(port + 1, port + n_ports):
                stack.enter_context(socket.create_server(("127.0.0.1", other)))
            return port


def _wait(port: int, pid: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with closing(Client(port)) as caller:
                caller.call("GET", "/health")
            return
        except (OSError, RuntimeError):
            if time.monotonic() > deadline or not psutil.pid_exists(pid):
                raise
            time.sleep(_POLL_SECONDS)


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"{process.name()} {' '.join(process.cmdline())}"
    return ""


def _compare(groups: dict[str, Group], n_rounds: int, seconds: float, max_seconds: float) -> str:
    costs = measure(groups, n_rounds, seconds, max_seconds)
    return format_table(costs, {name: group.measure_memory() for name, group in groups.items()})


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with ray[serve]")
    parser.add_argument("--n-replicas", type=int, nargs="+", default=[2, 4], help="sizes of the groups beside one")
    parser.add_argument("--n-rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        GRPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=64, group_size=2, horizon=32, seed=0).save(folder / "m.zip")
        one = {"1 replica": stack.enter_context(serve_replicas(folder, 1))}
        with ExitStack() as others:
            several = {f"{n} replicas": others.enter_context(serve_replicas(folder, n)) for n in arguments.n_replicas}
            print(_compare(one | several, arguments.n_rounds, arguments.seconds, _MAX_SECONDS[0]), flush=True)
        if subprocess.run([arguments.peer_python, "-c", "import ray.serve"], capture_output=True).returncode == 0:
            ray = stack.enter_context(serve_on_ray(folder, arguments.peer_python))
            print("\n" + _compare({**one, _RAY: ray}, arguments.n_rounds, arguments.seconds, _MAX_SECONDS[1]))


if __name__ == "__main__":
    main()
