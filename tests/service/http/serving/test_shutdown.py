"""A signal is announced at once, and its original handler still runs."""

import signal
import threading
from collections.abc import Iterator

import pytest

from service.http.serving.shutdown import announce_shutdown

Received = list[int]


@pytest.fixture
def received() -> Iterator[Received]:
    """The signals that reach the original handler, which here only records them."""
    numbers: Received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_a_signal_sets_the_event_and_reaches_whoever_waited_for_it(received: Received) -> None:
    closing = threading.Event()
    with announce_shutdown(closing):
        assert not closing.is_set()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert closing.is_set()
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM] * 3


def test_without_a_signal_the_end_sets_it(received: Received) -> None:
    closing = threading.Event()
    handler = signal.getsignal(signal.SIGTERM)
    with announce_shutdown(closing):
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert closing.is_set()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_nobody_waits_for_stays_as_it_is() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with announce_shutdown(threading.Event()):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, before)


def test_in_another_thread_signals_are_left_alone(received: Received) -> None:
    closing = threading.Event()
    handler = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter() -> None:
        with announce_shutdown(closing):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [handler]
    assert closing.is_set()
