"""Compare the cost of one request for an action: our service, FastAPI itself, the naive way, LitServe and Ray Serve.

``python -m benchmarks.serving.compare_servers [--peer-python PATH]`` prints Markdown tables. All servers run
at the same time and are asked in turn, so that a busy machine slows all of them. The peers run in a Python that has
them beside requirements.txt, by default this one: ``pip install litserve==0.2.19 "ray[serve]==2.60.0"``.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.lib.http_load import Exchange, LoadClient, Sample, make_request

_ROOT = Path(__file__).parent.parent.parent
_BODY = b'{"model_name": "cartpole", "observation": [0.1, 0.0, 0.05, 0.0], "deterministic": true}'
_START_SECONDS = 60.0
_END_SECONDS = 15.0
_N_CONNECTIONS = (1, 16)
LABELS = {
    "echo": "bare ASGI echo",
    "noop": "FastAPI no-op (`async def`)",
    "ours": "our `/inference`",
    "naive_async": "SB3 `predict`, FastAPI `async def`",
    "naive_def": "SB3 `predict`, FastAPI `def`",
    "litserve": "LitServe",
    "ray": "Ray Serve",
}


@contextmanager
def start(command: list[str], **variables: str) -> "Iterator[subprocess.Popen[str]]":
    """Start a process in the repository; end it and its children afterwards."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers may outlive it
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def start_peers(stack: ExitStack, python: str, folder: Path) -> dict[str, int]:
    """Start the peers that are installed, and return their ports."""
    ports = {}
    for name, package in (("litserve", "litserve"), ("ray", "ray.serve")):
        if subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode != 0:
            continue
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        command = [python, "-m", f"benchmarks.serving.apps.{name}_app", str(folder), str(port)]
        process = stack.enter_context(start(command))
        if _answers(port, process):
            ports[name] = port
    return ports


def _answers(port: int, process: "subprocess.Popen[str]") -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 5.0) as connection:
                connection.sendall(make_request("POST", "/inference", _BODY))
                if connection.recv(12) == b"HTTP/1.1 200":
                    return True
        except OSError:
            pass  # not listening yet, or a proxy whose workers are not
        time.sleep(0.5)
    return False


def measure(ports: dict[str, int], n_connections: int, n_repetitions: int, seconds: float) -> dict[str, list[Sample]]:
    """Ask the servers in turn, from one process, and return their samples."""
    samples: dict[str, list[Sample]] = {name: [] for name in ports}
    client = LoadClient()
    expected = {"echo": _BODY, "noop": b"ok"}
    for repetition in range(n_repetitions + 1):
        for name, port in ports.items():
            exchange = Exchange(make_request("POST", "/inference", _BODY), expected.get(name, b'"action":'))
            sample = client.measure(port, [exchange], n_connections, seconds)
            if sample.n_wrong:
                raise RuntimeError(f"{name} gave {sample.n_wrong} wrong answers")
            if repetition > 0:  # the first warms up
                samples[name].append(sample)
    client.close()
    return samples


def format_table(samples: dict[str, list[Sample]]) -> str:
    """Format the medians over repetitions, and the throughput relative to the no-op."""
    lines = ["| server | requests/s | p50 ms | p99 ms | beside the no-op |", "|---|---|---|---|---|"]
    for name, label in LABELS.items():
        if name not in samples:
            lines.append(f"| {label} | not installed | | | |")
            continue
        pairs = zip(samples[name], samples["noop"], strict=True)
        ratio = statistics.median(sample.requests_per_second / noop.requests_per_second for sample, noop in pairs)
        rate, p50, p99 = (
            statistics.median(values)
            for values in zip(
                *((s.requests_per_second, s.get_latency(50), s.get_latency(99)) for s in samples[name]), strict=True
            )
        )
        lines.append(f"| {label} | {rate:,.0f} | {p50:.2f} | {p99:.2f} | {ratio:.2f} x |")
    return "\n".join(lines)


def main() -> None:
    """Print a table per number of connections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with litserve and ray[serve]")
    parser.add_argument("--n-repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        apps = stack.enter_context(start([sys.executable, "-m", "benchmarks.serving.apps.asgi_apps", name]))
        assert apps.stdout is not None
        ports = json.loads(apps.stdout.readline()) | start_peers(stack, arguments.peer_python, Path(name))
        for n_connections in _N_CONNECTIONS:
            samples = measure(ports, n_connections, arguments.n_repetitions, arguments.seconds)
            print(f"\nConnections: {n_connections}\n\n{format_table(samples)}")


if __name__ == "__main__":
    main()
