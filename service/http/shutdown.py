"""Knowing that the server begins to shut down, before it waits for its connections to close."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def announce_shutdown(closing: threading.Event) -> Iterator[None]:
    """Set an event as soon as a signal ends the server, and in any case at the end.

    Servers tell an application that they end after their last connection has closed, which a stream never does by
    itself. So this goes between a signal and the server's own function for it, which is called as ever.
    """
    previous: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # signals come to no other
        previous = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

    def on_signal(number: int, frame: FrameType | None) -> None:
        previous[number](number, frame)
        if not closing.is_set():  # a second signal may interrupt the first one's call
            closing.set()

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        closing.set()
        for number, handler in previous.items():
            signal.signal(number, handler)
