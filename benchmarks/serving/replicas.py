"""Measure what replicas cost: N processes on one port against one, and the same application on Ray Serve.

``python -m benchmarks.serving.replicas [--peer-python PATH]`` prints a Markdown table. The clients take cores of the
same machine, so requests per second say little of what N replicas do on N cores. What does is the processor time of an
answer: processes that share nothing but a port do N times the work on N cores if each takes as long for an answer as
one alone takes. All groups run at once and are asked in turn. Ray Serve runs in a Python that has it beside
requirements.txt, by default this one.
"""

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import psutil

from benchmarks.lib.http_load import Client, Exchange, make_request
from benchmarks.lib.server import Client as Caller
from benchmarks.serving.compare_servers import start
from grpo import GRPO

_BODY = json.dumps({"model_name": "m", "observation": [0.1, 0.0, 0.05, 0.0]}).encode()
_EXCHANGE = Exchange(make_request("POST", "/inference", _BODY), b'"action":')
_N_CONNECTIONS = 64
_START_SECONDS = 90.0
_POLL_SECONDS = 0.05
# What Ray Serve is made of that takes part in an answer.
_RAY_PROCESSES = ("ProxyActor", "ServeReplica", "raylet", "gcs_server")


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

    :param microseconds: Processor time of each, over all processes.
    :param requests_per_second: Answers per second, clients beside.
    :param p99_ms: 99th percentile of their latencies.
    """

    microseconds: float
    requests_per_second: float
    p99_ms: float


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


def measure(groups: dict[str, Group], n_rounds: int, seconds: float) -> dict[str, list[Cost]]:
    """Ask the groups in turn, from one process."""
    costs: dict[str, list[Cost]] = {name: [] for name in groups}
    client = Client()
    for number in range(n_rounds + 1):
        for name, group in groups.items():
            before = group.measure_cpu()
            sample = client.measure(group.port, [_EXCHANGE], _N_CONNECTIONS, seconds)
            used = group.measure_cpu() - before
            if sample.n_wrong:
                raise RuntimeError(f"{name} gave {sample.n_wrong} wrong answers")
            if number > 0:  # the first warms up
                n_answers = len(sample.latencies)
                costs[name].append(Cost(1e6 * used / n_answers, sample.requests_per_second, sample.get_latency(99)))
    client.close()
    return costs


def format_table(costs: dict[str, list[Cost]], memory: dict[str, float]) -> str:
    """Format medians over the rounds, and the median of each round's ratio to one replica."""
    alone = next(iter(costs.values()))
    lines = [
        "| | CPU per answer, µs | answers per CPU second | requests/s, clients beside | p99 ms | MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, rounds in costs.items():
        ratio = statistics.median(one.microseconds / cost.microseconds for one, cost in zip(alone, rounds, strict=True))
        cpu, rate, p99 = (statistics.median(values) for values in zip(*rounds, strict=True))
        lines.append(f"| {name} | {cpu:.0f} | {ratio:.2f} x | {rate:,.0f} | {p99:.1f} | {memory[name]:.0f} |")
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
            with closing(Caller(port)) as caller:
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with ray[serve]")
    parser.add_argument("--n-replicas", type=int, nargs="+", default=[2, 4], help="sizes of the groups beside one")
    parser.add_argument("--n-rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        GRPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=64, group_size=2, horizon=32, seed=0).save(folder / "m.zip")
        groups = {
            f"{n} replica{'s' * (n > 1)}": stack.enter_context(serve_replicas(folder, n))
            for n in (1, *arguments.n_replicas)
        }
        with suppress(OSError):  # Ray is not installed
            groups["1 replica on Ray Serve"] = stack.enter_context(serve_on_ray(folder, arguments.peer_python))
        costs = measure(groups, arguments.n_rounds, arguments.seconds)
        memory = {name: group.measure_memory() for name, group in groups.items()}
        print(format_table(costs, memory))


if __name__ == "__main__":
    main()
