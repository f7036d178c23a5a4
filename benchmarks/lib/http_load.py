"""A lean HTTP/1.1 client that keeps connections busy.

Plain sockets in one thread, because on a small machine the client takes its time from the server. ``LoadClient`` runs
it in a process of its own, apart from a server in this one.
"""

import multiprocessing
import select
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.lib.server import get_percentile

# A server on a busy machine may be slow; this finds one that does not answer.
_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Exchange:
    """A request and its right answer.

    :param request: Head and body, as sent.
    :param expected: Part of the right answer's body; empty accepts every body.
    """

    request: bytes
    expected: bytes = b""


@dataclass(frozen=True)
class Sample:
    """Measurements of some seconds of requests.

    :param n_wrong: Answers with another status than 200 or another body.
    :param seconds: Duration.
    :param latencies: Time of each answer, in seconds, ``(n_requests,)``.
    """

    n_wrong: int
    seconds: float
    latencies: npt.NDArray[np.float64]

    @property
    def requests_per_second(self) -> float:
        """Answers per second, over all connections."""
        return len(self.latencies) / self.seconds

    def get_latency(self, percentile: float) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        return get_percentile(self.latencies, percentile) * 1e3


def make_request(method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
    """Return head and body of a request, as sent."""
    entity = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{entity}\r\n".encode() + body


def send_requests(port: int, exchanges: Sequence[Exchange], n_connections: int, seconds: float) -> Sample:
    """Keep every connection waiting for one answer until the time is over.

    :param exchanges: Requests to send in turn, over all connections.
    :param seconds: When to stop sending.
    :raises ConnectionError: If the server ends a connection.
    """
    connections = {}
    poller = select.epoll()
    for _ in range(n_connections):
        connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections[connection.fileno()] = connection
        poller.register(connection, select.EPOLLIN)
    latencies: list[float] = []
    pending: dict[int, tuple[float, Exchange]] = {}
    n_sent = n_wrong = 0
    begin = time.perf_counter()
    for number, connection in connections.items():
        pending[number] = time.perf_counter(), exchanges[n_sent % len(exchanges)]
        connection.sendall(pending[number][1].request)
        n_sent += 1
    while pending:
        events = poller.poll(_TIMEOUT_SECONDS)
        if not events:
            raise TimeoutError(f"{len(pending)} answers did not come within {_TIMEOUT_SECONDS:.0f} s")
        for number, _ in events:
            connection = connections[number]
            head, body = _read_answer(connection)
            now = time.perf_counter()
            sent_at, exchange = pending.pop(number)
            latencies.append(now - sent_at)
            n_wrong += not (head.startswith(b"http/1.1 200 ") and exchange.expected in body)
            if now - begin < seconds:
                exchange = exchanges[n_sent % len(exchanges)]
                pending[number] = time.perf_counter(), exchange
                connection.sendall(exchange.request)
                n_sent += 1
    elapsed = time.perf_counter() - begin
    for connection in connections.values():
        connection.close()
    return Sample(n_wrong, elapsed, np.array(latencies))


def _read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    answer = connection.recv(65_536)
    while (end := answer.find(b"\r\n\r\n")) < 0:
        answer += _receive(connection)
    head, body = answer[:end].lower(), answer[end + 4 :]
    if b"transfer-encoding: chunked" in head:
        while not body.endswith(b"0\r\n\r\n"):
            body += _receive(connection)
        return head, body
    n_missing = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]) - len(body)
    chunks = [body]
    while n_missing > 0:
        chunks.append(_receive(connection))
        n_missing -= len(chunks[-1])
    return head, b"".join(chunks)


def _receive(connection: socket.socket) -> bytes:
    chunk = connection.recv(1_048_576)
    if not chunk:
        raise ConnectionError("the server ended a connection")
    return chunk


class LoadClient:
    """Sends requests from a process of its own."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def start(self, port: int, exchanges: Sequence[Exchange], n_connections: int, seconds: float) -> "Future[Sample]":
        """Begin sending; see ``send_requests``."""
        return self._pool.submit(send_requests, port, exchanges, n_connections, seconds)

    def measure(self, port: int, exchanges: Sequence[Exchange], n_connections: int, seconds: float) -> Sample:
        """Send until the time is over; see ``send_requests``."""
        return self.start(port, exchanges, n_connections, seconds).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()
