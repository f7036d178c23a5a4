"""Clients that hold connections without using them: silent ones, and ones that send a byte now and then."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.support import PATIENCE_SECONDS

_PAUSE_SECONDS = 0.2
_HEAD = b"GET /models HTTP/1.1\r\nHost: localhost\r\nX: "
_BODY = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"


class Crowd:
    """Holds connections open, and opens another one for each that the server closes.

    :param port: Port on loopback.
    :param n_idle: Connections that send nothing.
    :param n_dribbling: Connections that send a byte at a time, every other one of a head, the others of a body.
    """

    def __init__(self, port: int, n_idle: int, n_dribbling: int) -> None:
        self.n_closed = 0
        self._port = port
        self._beginnings = [b""] * n_idle + [_HEAD, _BODY] * (n_dribbling // 2)
        self._selector = selectors.DefaultSelector()
        for beginning in self._beginnings:
            self._open(beginning)

    def _open(self, beginning: bytes) -> None:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_SECONDS)
        connection.sendall(beginning)
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, beginning)

    def behave(self) -> None:
        """Send a byte on each connection that dribbles, and replace those that were closed."""
        for key, _ in self._selector.select(_PAUSE_SECONDS):
            self._replace(key)
        for key in list(self._selector.get_map().values()):
            if key.data:
                with suppress(OSError):
                    key.fileobj.send(b"a")  # type: ignore[union-attr]

    def _replace(self, key: selectors.SelectorKey) -> None:
        connection = key.fileobj
        assert isinstance(connection, socket.socket)
        with suppress(OSError):
            if connection.recv(65_536):
                return
        self._selector.unregister(connection)
        connection.close()
        self.n_closed += 1
        self._open(key.data)

    def leave(self) -> None:
        """Close all connections."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


@contextmanager
def crowd(port: int, n_idle: int, n_dribbling: int) -> Iterator[Crowd]:
    """Let a crowd behave in a thread until the context ends."""
    people, over = Crowd(port, n_idle, n_dribbling), threading.Event()

    def behave() -> None:
        while not over.is_set():
            people.behave()

    thread = threading.Thread(target=behave)
    thread.start()
    try:
        yield people
    finally:
        over.set()
        thread.join()
        people.leave()
