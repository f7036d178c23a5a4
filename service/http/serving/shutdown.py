"""The end of the server: noticed at once, without losing a request or what a job has learned."""

import asyncio
import ctypes
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn

from service.workers.end_signals import END_SIGNALS, list_end_signals

# How long connections that wait for their client's next request stay open, so that it is not lost on its way.
_LINGER_SECONDS = 0.5
_POLL_SECONDS = 0.02
# By then all waiting connections have been accepted.
_ACCEPT_SECONDS = 0.1
# From Linux' asm-generic/socket.h and bpf_common.h.
_SO_ATTACH_FILTER = 26
_BPF_RETURN, _BPF_LOAD_BYTE, _BPF_JUMP_IF_SET = 0x06, 0x30, 0x45
# Where a TCP header has its flags, and the flag that asks for a connection.
_TCP_FLAGS, _TCP_SYN = 13, 0x02
_BPF_INSTRUCTIONS = (
    (_BPF_LOAD_BYTE, 0, 0, _TCP_FLAGS),
    (_BPF_JUMP_IF_SET, 0, 1, _TCP_SYN),
    (_BPF_RETURN, 0, 0, 0),
    (_BPF_RETURN, 0, 0, 0xFFFFFFFF),
)


class Server(uvicorn.Server):
    """Answers what is on its way before it ends, and ends at once on a second signal.

    :param begin_end: Called, in a thread, as soon as the server is to end.
    """

    def __init__(self, config: uvicorn.Config, begin_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._begin_end = begin_end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end the server; a second signal ends the process, whatever is still running."""
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle every signal that ends a server, except those it was started to ignore.

        Uvicorn raises the signal that ended it again when it is done; by default that would turn a clean end into a
        kill. So what comes before or after it only says that the server is to end.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()  # only there may handlers be set
        handled = list_end_signals() if in_main_thread else []
        _handle(handled, self._note_early)
        with super().capture_signals():
            _handle(handled, self.handle_exit)
            try:
                yield
            finally:
                _handle(handled, self._note_early)

    def _note_early(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the requests that are on their way, and close the connections.

        A client that sends its next request just now would be answered by a reset: connections first say with every
        answer that they close, and those that stay silent are closed a moment later.
        """
        ending = asyncio.get_running_loop().run_in_executor(None, self._begin_end)
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        for connection in list(self.server_state.connections):
            if _is_answering(connection):
                connection.shutdown()  # once it has answered
        for server in self.servers:
            for listener in server.sockets:
                _stop_connecting(listener)
        await asyncio.sleep(_ACCEPT_SECONDS)
        for server in self.servers:
            server.close()
        deadline = asyncio.get_running_loop().time() + _LINGER_SECONDS
        await asyncio.sleep(_POLL_SECONDS)
        while self.server_state.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        await ending
        await super().shutdown(sockets)


def _is_answering(connection: object) -> bool:
    cycle = getattr(connection, "cycle", None)  # WebSockets have none
    return cycle is not None and not cycle.response_complete


def _stop_connecting(listener: socket.socket) -> None:
    """Take no new connections, but keep those that wait to be accepted: closing would reset them.

    On Linux a filter drops requests for a connection that arrive at the listening socket, and lets those that have been
    granted be completed. A client that is not answered tries again a second later, and finds another server that
    listens there, or none.
    """
    if sys.platform == "linux":
        code = b"".join(struct.pack("HBBI", *instruction) for instruction in _BPF_INSTRUCTIONS)
        instructions = ctypes.create_string_buffer(code)
        program = struct.pack("HP", len(_BPF_INSTRUCTIONS), ctypes.addressof(instructions))
        with suppress(OSError):  # as in a sandbox: then a client that connects at this very moment is reset
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _handle(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> None:
    for number in numbers:
        signal.signal(number, handler)


@contextmanager
def announce_shutdown(closing: threading.Event) -> Iterator[None]:
    """Set an event as soon as a signal ends the server, and at the latest when the context ends.

    Servers announce a shutdown to the application only after the last connection has closed, and an event stream never
    closes by itself. So this wraps the server's own signal handlers, which still run.
    """
    previous: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        previous = {number: handler for number in END_SIGNALS if callable(handler := signal.getsignal(number))}

    def on_signal(number: int, frame: FrameType | None) -> None:
        previous[number](number, frame)
        if not closing.is_set():  # a second signal may interrupt the first one's set()
            closing.set()

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        closing.set()
        for number, handler in previous.items():
            signal.signal(number, handler)
