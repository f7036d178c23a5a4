"""How many of something came of late: by a clock that nobody sets."""

import time
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from service.http.limits.windows import MovingWindow
from tests.support import wait_until


@pytest.mark.parametrize("overrides", [{"client_limits": "on", "client_requests_per_second": 5}], ids=["limited"])
@pytest.mark.parametrize("moved_seconds", [-3600.0, 3600.0])
def test_a_clock_that_is_set_keeps_no_client_waiting(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, moved_seconds: float
) -> None:
    read_clock = time.time
    wait_until(lambda: client.get("/models").status_code == 429)
    monkeypatch.setattr(time, "time", lambda: read_clock() + moved_seconds)
    wait_until(lambda: client.get("/models").status_code == 200, timeout_seconds=30)
    answers = [client.get("/models") for _ in range(200)]
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 429} <= {"1"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that shows ``now``."""
    shown = SimpleNamespace(now=100.0)
    monkeypatch.setattr("service.http.limits.windows.time", SimpleNamespace(monotonic=lambda: shown.now))
    return shown


def test_room_comes_back_as_what_was_sent_grows_old(clock: SimpleNamespace) -> None:
    window = MovingWindow(5, 60.0)
    assert window.hit("a", 3) is None
    clock.now += 20.0
    assert window.hit("a", 2) is None
    assert (window.hit("a", 1), window.hit("a", 3)) == (40, 40)
    assert window.hit("a", 4) == 60, "which takes the room of both"
    assert window.hit("a", 6) == 60, "which never fits"
    assert window.hit("b", 5) is None, "each client has a window of its own"
    clock.now += 40.0
    assert window.hit("a", 3) is None, "what was refused took nothing"
    assert window.hit("a") == 20
    clock.now += 1000.0
    assert window.hit("a", 5) is None


def test_however_often_a_client_sends_little_of_it_is_kept(clock: SimpleNamespace) -> None:
    window = MovingWindow(10**9, 60.0)
    for _ in range(20_000):
        assert window.hit("a") is None
        clock.now += 2**-9  # exact in binary
    assert len(window._sent["a"].hits) <= 1000
    assert window.hit("a", 10**9 - 19_999) == 21, "until the first of them are a minute old"
