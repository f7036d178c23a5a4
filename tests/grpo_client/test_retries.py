"""When the client sends a request again, and where it resumes a stream of events."""

import json
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import httpx2
import pytest

from grpo_client import ApiError, Busy, InvalidArgument, JobTimeout, NotFound, ServerUnreachable
from grpo_client.retries import Retries
from tests.grpo_client.blocking import open_client
from tests.grpo_client.scripted_server import Answer, make_status, serve_script

FULL = Answer(429, '{"detail": "the queue is full"}', (("Retry-After", "0"),))
DRAINING = Answer(503, "busy", (("Retry-After", "0"),))
LOST = Answer(200, "{", n_missing_bytes=10)
MODELS = Answer(200, '{"models": []}')
ACCEPTED = Answer(200, '{"job_id": "j", "message": "Training started", "config": {}, "config_origins": {}}')
EVENT_STREAM = (("Content-Type", "text/event-stream"),)
SWEEP: dict[str, Any] = {
    "sweep_id": "s", "name": "rates", "status": "completed", "method": "grid", "env_name": "CartPole-v1",
    "created_at": "2026-01-01T00:00:00Z", "end_time": None, "n_settings": 0, "counts": {}, "timesteps": 0,
    "best_mean_reward": None, "request": {}, "ended_by": "all", "held_by": None, "settings": [], "best": None,
}  # fmt: skip
FINAL = make_status(status="completed", progress=1.0, current_timesteps=9)

with_either_client = pytest.mark.parametrize("kind", ["sync", "async"])
without_pauses = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the test the pauses of a client that asks again."""
    monkeypatch.setattr("grpo_client.retries._FIRST_PAUSE_SECONDS", 0.001)


def make_event(event_id: int, name: str, **payload: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(payload)}\nid: {event_id}\n\n"


FIRST, SECOND, LAST = (
    make_event(1, "job.status", status="running"),
    make_event(2, "job.warning", warning="no signal"),
    make_event(7, "job.completed", **FINAL),
)


@with_either_client
@pytest.mark.parametrize("refusal", [FULL, DRAINING], ids=["429", "503"])
def test_a_busy_server_is_asked_again_by_any_method(kind: str, refusal: Answer) -> None:
    with serve_script(refusal, refusal, ACCEPTED) as server, open_client(kind, server.url) as client:
        assert client.train(total_timesteps=1).job_id == "j"
    assert [(request.method, request.path) for request in server.received] == [("POST", "/train")] * 3


@without_pauses
@with_either_client
def test_a_server_that_stays_busy_is_asked_as_often_as_allowed(kind: str) -> None:
    with serve_script(FULL) as server, open_client(kind, server.url, max_retries=1) as client:
        with pytest.raises(Busy, match="the queue is full") as raised:
            client.models()
    assert raised.value.status == 429
    assert len(server.received) == 2


@without_pauses
@with_either_client
def test_only_a_get_is_sent_again_when_its_answer_was_lost(kind: str) -> None:
    with serve_script(LOST, MODELS) as server, open_client(kind, server.url) as client:
        assert client.models() == []
    assert len(server.received) == 2
    with serve_script(LOST, ACCEPTED) as server, open_client(kind, server.url) as client:
        with pytest.raises(ServerUnreachable):
            client.train()
    assert len(server.received) == 1


@without_pauses
@with_either_client
def test_other_refusals_are_not_asked_again(kind: str) -> None:
    refusal = Answer(500, '{"detail": "internal error"}', (("X-Request-ID", "r1"),))
    with serve_script(refusal) as server, open_client(kind, server.url) as client:
        with pytest.raises(ApiError, match=r"internal error \(HTTP 500\)") as raised:
            client.models()
    assert raised.value.request_id == "r1"
    assert len(server.received) == 1


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", '["models"]', '{"models": 5}', '{"models": [{"status": "saved"}]}']
)
def test_another_kind_of_server_is_recognised(body: str) -> None:
    with serve_script(Answer(200, body)) as server, open_client("sync", server.url) as client:
        with pytest.raises(ServerUnreachable, match="check the URL"):
            client.models()


@with_either_client
def test_a_page_is_no_stream_of_events(kind: str) -> None:
    page = Answer(200, "<html>hello</html>", (("Content-Type", "text/html"),))
    with serve_script(page) as server, open_client(kind, server.url) as client:
        with pytest.raises(ServerUnreachable, match=r"is of type text/html and not text/event-stream.*check the URL"):
            client.wait("j")
    assert len(server.received) == 1


@with_either_client
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "target"),
    [("https://grpo.example/models?token=secret#x", "https://grpo.example/models"), ("/login", "{url}/login")],
    ids=["elsewhere", "here"],
)
def test_a_redirect_says_where_it_leads(kind: str, status: int, location: str, target: str) -> None:
    with serve_script(Answer(status, "{}", (("Location", location),))) as server:
        with open_client(kind, server.url) as client:
            for ask in (client.models, partial(client.wait, "j"), client.train):
                with pytest.raises(ApiError) as raised:
                    ask()
                assert f"sent on to {target.format(url=server.url)}, which" in str(raised.value)
                assert "set base_url to it" in raised.value.detail
                assert raised.value.status == status


@without_pauses
@with_either_client
@pytest.mark.parametrize("n_missing_bytes", [0, 9], ids=["ended", "broken"])
def test_a_dropped_stream_goes_on_after_the_last_event(kind: str, n_missing_bytes: int) -> None:
    script = (
        Answer(200, FIRST + SECOND + "event: job.wa", EVENT_STREAM, n_missing_bytes),
        DRAINING,
        Answer(200, LAST, EVENT_STREAM),
    )
    with serve_script(*script) as server, open_client(kind, server.url) as client:
        assert [event.event_id for event in client.events("j")] == [1, 2, 7]
    assert [request.headers["last-event-id"] for request in server.received] == ["0", "2", "2"]


@without_pauses
@with_either_client
def test_a_job_that_was_followed_is_held_on_to_for_a_time_however_often_that_fails(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        Answer(200, FIRST, EVENT_STREAM),
        *[DRAINING, Answer(200, "", EVENT_STREAM, 9)] * 4,
        Answer(200, LAST, EVENT_STREAM),
    )
    with serve_script(*script) as server, open_client(kind, server.url, max_retries=2) as client:
        assert [event.event_id for event in client.events("j")] == [1, 7]
    monkeypatch.setattr("grpo_client.retries._HOLD_SECONDS", 0.0)
    with serve_script(*script) as server, open_client(kind, server.url, max_retries=2) as client:
        with pytest.raises((Busy, ServerUnreachable)):
            client.wait("j")
    assert len(server.received) == 3


@without_pauses
@with_either_client
def test_a_server_that_was_never_reached_is_asked_as_often_as_allowed(kind: str) -> None:
    lost = Answer(200, "", EVENT_STREAM, 9)
    with serve_script(lost) as server, open_client(kind, server.url, max_retries=2) as client:
        with pytest.raises(ServerUnreachable):
            client.wait("j")
    assert len(server.received) == 3


@without_pauses
@with_either_client
def test_a_stream_that_stays_empty_is_given_up(kind: str) -> None:
    with serve_script(Answer(200, "", EVENT_STREAM)) as server, open_client(kind, server.url, max_retries=1) as client:
        with pytest.raises(ServerUnreachable, match="ended early, again and again"):
            client.wait("j")
    assert len(server.received) == 2


@with_either_client
def test_nothing_comes_after_the_last_event(kind: str) -> None:
    script = Answer(200, "", EVENT_STREAM), Answer(200, json.dumps(FINAL)), Answer(200, "", EVENT_STREAM)
    with serve_script(*script) as server, open_client(kind, server.url, max_retries=0) as client:
        assert list(client.events("j", after=7)) == []
    assert len(server.received) == 3


@with_either_client
def test_the_last_event_comes_although_the_stream_closed_just_before_it(kind: str) -> None:
    script = Answer(200, "", EVENT_STREAM), Answer(200, json.dumps(FINAL)), Answer(200, LAST, EVENT_STREAM)
    with serve_script(*script) as server, open_client(kind, server.url, max_retries=0) as client:
        assert [event.event_id for event in client.events("j", after=2)] == [7]


@with_either_client
def test_a_listener_that_nobody_awaits_is_refused(kind: str) -> None:
    async def listen(event: Any) -> None:
        raise AssertionError

    with serve_script(Answer(200, LAST, EVENT_STREAM)) as server, open_client(kind, server.url) as client:
        with pytest.raises(InvalidArgument, match="on_event is an async function"):
            client.wait("j", on_event=listen)
    with serve_script(Answer(200, json.dumps(SWEEP))) as server, open_client(kind, server.url) as client:
        with pytest.raises(InvalidArgument, match="on_look is an async function"):
            client.wait_for_sweep("s", on_look=listen)


@without_pauses
@with_either_client
def test_the_last_job_stays_the_same_when_the_stream_is_opened_again(kind: str) -> None:
    script = (
        Answer(200, json.dumps(make_status())),
        Answer(200, FIRST, EVENT_STREAM),
        Answer(200, LAST, EVENT_STREAM),
    )
    with serve_script(*script) as server, open_client(kind, server.url) as client:
        assert client.wait("latest").status == "completed"
    assert [request.path for request in server.received] == [
        "/training/latest/status",
        "/training/j/events",
        "/training/j/events",
    ]


@without_pauses
@with_either_client
@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "broken"])
def test_waiting_times_out_while_streams_are_silent_or_break(kind: str, is_silent: bool) -> None:
    released = threading.Event()
    stream = Answer(200, FIRST, EVENT_STREAM, n_missing_bytes=9, hold=released if is_silent else None)
    with serve_script(stream) as server, open_client(kind, server.url) as client:
        with pytest.raises(JobTimeout, match=r"not over after 0\.3 s"):
            client.wait("j", timeout_seconds=0.3)
        released.set()


@with_either_client
@pytest.mark.parametrize("status", ["completed", "stopped", "failed"])
def test_a_job_that_is_over_at_the_deadline_has_not_timed_out(kind: str, status: str) -> None:
    released = threading.Event()
    stream = Answer(200, FIRST, EVENT_STREAM, n_missing_bytes=9, hold=released)
    final = Answer(200, json.dumps(make_status(status=status)))
    with serve_script(stream, final) as server, open_client(kind, server.url) as client:
        events = list(client.events("j", timeout_seconds=0.5))
        released.set()
    assert [(event.event_id, event.name) for event in events] == [(1, "job.status"), (2, f"job.{status}")]
    assert events[-1].final_status.status == status
    assert [request.path for request in server.received] == ["/training/j/events", "/training/j/status"]


@with_either_client
@pytest.mark.parametrize("answer", [Answer(200, json.dumps(make_status())), DRAINING, Answer(200, "<html>")])
def test_a_job_times_out_if_it_goes_on_or_cannot_be_asked(kind: str, answer: Answer) -> None:
    released = threading.Event()
    stream = Answer(200, FIRST, EVENT_STREAM, n_missing_bytes=9, hold=released)
    with serve_script(stream, answer) as server, open_client(kind, server.url) as client:
        with pytest.raises(JobTimeout, match=r"job j is not over after 0\.5 s"):
            client.wait("j", timeout_seconds=0.5)
        released.set()
    assert len(server.received) == 2


@without_pauses
@with_either_client
def test_a_job_that_does_not_exist_is_not_waited_for(kind: str) -> None:
    with serve_script(Answer(404, '{"detail": "no such job"}')) as server, open_client(kind, server.url) as client:
        with pytest.raises(NotFound, match="no such job"):
            client.wait("j")
    assert len(server.received) == 1


def busy(retry_after: str | None) -> httpx2.Response:
    return httpx2.Response(503, headers={} if retry_after is None else {"Retry-After": retry_after})


@pytest.mark.parametrize(
    ("retry_after", "n_failed", "shortest", "longest"),
    [
        (None, 0, 0.25, 0.5),
        (None, 1, 0.5, 1.0),
        (None, 3, 2.0, 4.0),
        (None, 40, 15.0, 30.0),
        (None, 1_100, 15.0, 30.0),
        ("0", 0, 0.25, 0.5),
        ("7", 0, 7.0, 7.0),
        ("soon", 0, 0.25, 0.5),
        ("-5", 0, 0.25, 0.5),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0.25, 0.5),
    ],
)
def test_a_pause_doubles_and_is_as_long_as_the_server_asks(
    retry_after: str | None, n_failed: int, shortest: float, longest: float
) -> None:
    pauses = [Retries(2_000).find_pause_seconds("POST", busy(retry_after), n_failed) for _ in range(100)]
    assert all(pause is not None and shortest <= pause <= longest for pause in pauses)
    assert shortest == longest or len(set(pauses)) > 50


def test_a_server_may_name_a_time_of_day() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    pause_seconds = Retries(1).find_pause_seconds("GET", busy(at), 0)
    assert pause_seconds is not None
    assert 0 < pause_seconds <= 100


def test_a_server_that_asks_for_minutes_is_not_asked_again() -> None:
    assert Retries(5).find_pause_seconds("GET", busy("121"), 0) is None


@pytest.mark.parametrize(
    ("method", "outcome", "helps"),
    [
        ("GET", httpx2.ConnectError("refused"), True),
        ("POST", httpx2.ConnectError("refused"), False),
        ("PUT", httpx2.ReadTimeout("late"), False),
        ("GET", httpx2.Response(500), False),
        ("GET", httpx2.Response(200), False),
        ("DELETE", httpx2.Response(429), True),
    ],
)
def test_which_requests_are_sent_again(method: str, outcome: Any, helps: bool) -> None:
    assert (Retries(5).find_pause_seconds(method, outcome, 0) is not None) == helps
    assert Retries(5).find_pause_seconds(method, outcome, 5) is None
