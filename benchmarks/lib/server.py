"""``python run_api.py`` on a free port, in a process of its own, and a client for it."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

ROOT = Path(__file__).parent.parent.parent
_POLL_SECONDS = 0.005
_PATIENCE_SECONDS = 300.0


class Client:
    """One connection to a server, for one thread.

    The server closes a connection that is idle for 5 s.

    :param port: Port on loopback.
    """

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request, and return the JSON of the answer.

        :raises RuntimeError: If its status is not 200.
        """
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path} answered {response.status}: {answer[:500]!r}")
        return json.loads(answer)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def time_call(self, method: str, path: str, body: dict[str, Any] | None = None) -> float:
        """Send a request, and return how long the answer took, in ms."""
        started = time.perf_counter()
        self.call(method, path, body)
        return 1e3 * (time.perf_counter() - started)


class Server:
    """A running server.

    :param process: Process of the server.
    :param port: Port on loopback.
    :param start_seconds: From the start of the process to the first answer of ``/health``.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, start_seconds: float) -> None:
        self.port = port
        self.start_seconds = start_seconds
        self._process = psutil.Process(process.pid)

    def connect(self) -> Client:
        """Open a connection."""
        return Client(self.port)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request over a connection of its own, and return the JSON of the answer.

        :raises RuntimeError: If its status is not 200.
        """
        with closing(self.connect()) as client:
            return client.call(method, path, body)

    def measure_cpu(self) -> float:
        """Return the processor time of the server's own process, its workers left out, in seconds."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def measure_memory(self) -> float:
        """Return the resident memory in MiB."""
        return float(self._process.memory_info().rss) / 2**20


@contextmanager
def hold_port(n_ports: int = 1) -> Iterator[int]:
    """Find a free port on loopback, or the first of some in a row, which nobody is given who asks for any port.

    A server that is told its number can listen there, as often as it likes.
    """
    held = None
    while held is None:
        held = _try_to_hold(n_ports)
    if sys.platform != "linux":  # elsewhere nobody else could listen there
        held.close()
    with held:
        yield held.first


class _Held(ExitStack):
    first = 0


def _try_to_hold(n_ports: int) -> _Held | None:
    held = _Held()
    try:
        held.first = _bind(held, 0)
        for port in range(held.first + 1, held.first + n_ports):
            _bind(held, port)
    except (OSError, OverflowError):  # the next one is taken, or the last there is
        held.close()
        return None
    return held


def _bind(held: ExitStack, port: int) -> int:
    """Take a port without listening there: on Linux whoever sets SO_REUSEADDR as well may then listen."""
    holder = held.enter_context(socket.socket())
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", port))
    return int(holder.getsockname()[1])


@contextmanager
def serve(models_dir: Path, **variables: str) -> Iterator[Server]:
    """Start a server, wait until ``/health`` answers, and end it afterwards.

    :param variables: Settings, such as ``GRPO_MAX_CACHED_MODELS="8"``.
    """
    with hold_port() as port:
        yield from _serve(models_dir, port, variables)


def _serve(models_dir: Path, port: int, variables: Mapping[str, str]) -> Iterator[Server]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPO_")} | dict(variables)
    command = [sys.executable, "run_api.py", "--port", str(port), "--models-dir", str(models_dir)]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                with closing(Client(port)) as client:
                    client.call("GET", "/health")
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() > started + _PATIENCE_SECONDS:
                    raise
                time.sleep(_POLL_SECONDS)
        yield Server(process, port, time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait(_PATIENCE_SECONDS)


def get_percentile(numbers: Sequence[float] | npt.NDArray[np.float64], percent: float) -> float:
    """Return a percentile, from 0 to 100, interpolated between the two numbers that are closest."""
    return float(np.percentile(numbers, percent))
