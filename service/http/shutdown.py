"""Noticing a shutdown before the server waits for its connections to close."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def announce_shutdown(closing: threading.Event) -> Iterator[None]:
    """Set an event as soon as a signal ends the server, and at the latest when the context ends.

    Servers announce a shutdown to the application only after the last connection has closed, and an event stream never
    closes by itself. So this wraps the server's own signal handlers, which still run.
    """
    previous: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        previous = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

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
