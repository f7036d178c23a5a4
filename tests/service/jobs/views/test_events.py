"""Streams send all events of a job in order, and block neither the server nor other clients."""

import http.client
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.jobs.views.events import EventStreams
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.support import PATIENCE_SECONDS, get_status, serve, train, train_to_end, wait_for_end, wait_until

SHORT: dict[str, Any] = {"total_timesteps": 128, "seed": 0}


class Event(NamedTuple):
    event_id: int
    name: str
    payload: dict[str, Any]


def parse(block: str) -> Event:
    fields = dict(line.split(": ", 1) for line in block.splitlines())
    return Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))


def listen(client: TestClient, job_id: str, query: str = "", **headers: str) -> list[Event]:
    """Return the remaining events of a job that ends by itself."""
    response = client.get(f"/training/{job_id}/events{query}", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return [parse(block) for block in response.text.split("\n\n") if block]


class Listener:
    """An open stream over a real socket."""

    def __init__(self, port: int, job_id: str) -> None:
        self._connection = http.client.HTTPConnection("localhost", port, timeout=PATIENCE_SECONDS)
        self._connection.request("GET", f"/training/{job_id}/events")
        self.response = self._connection.getresponse()

    def hear(self) -> Event | None:
        """Return the next event; None at the end of the stream."""
        lines: list[str] = []
        for line in self.response:
            if line.strip() and not line.startswith(b":"):
                lines.append(line.decode())
            elif lines:
                return parse("".join(lines))
        return None

    def hear_until(self, name: str) -> Event:
        return next(event for event in iter(self.hear, None) if event.name == name)

    def close(self) -> None:
        self.response.close()
        self._connection.close()


OpenListener = Callable[[int, str], AbstractContextManager[Listener]]


@contextmanager
def open_listener(port: int, job_id: str) -> Iterator[Listener]:
    listener = Listener(port, job_id)
    try:
        yield listener
    finally:
        listener.close()


class TestTheEventsOfAJobThatHasEnded:
    def test_they_tell_it_from_the_queue_to_its_final_status(self, client: TestClient) -> None:
        status = train_to_end(client, **SHORT)
        events = listen(client, status["job_id"])
        names = [event.name for event in events]
        assert names[:2] == ["job.status"] * 2
        assert [event.payload["status"] for event in events[:2]] == ["queued", "running"]
        assert names[-1] == "job.completed"
        # Progress is also reported while the values of the saved policy are fitted again.
        others = [event for event in events if event.name != "job.progress"]
        assert others[-2].name == "job.final_evaluation"
        assert others[-2].payload == status["final_evaluation"]
        # Whether time allows an evaluation on the way depends on the machine.
        assert {event.name for event in others[2:-2]} - {"job.evaluation"} == {"job.metrics"}
        assert "job.progress" in names
        ids = [event.event_id for event in events]
        assert ids == sorted(set(ids))
        assert events[-1].payload == get_status(client, status["job_id"])
        rows = client.get(f"/training/{status['job_id']}/metrics").json()["rows"]
        assert [event.payload for event in events if event.name == "job.metrics"] == rows

    def test_what_was_heard_before_is_not_sent_again(self, client: TestClient) -> None:
        job_id = train_to_end(client, **SHORT)["job_id"]
        events = listen(client, job_id)
        third = events[2].event_id
        assert listen(client, job_id, f"?after={third}") == events[3:]
        assert listen(client, job_id, **{"Last-Event-ID": str(third)}) == events[3:]
        # A reconnecting browser repeats the original address and sends the last event's id in the header.
        assert listen(client, job_id, "?after=1", **{"Last-Event-ID": str(third)}) == events[3:]
        assert listen(client, job_id, f"?after={events[-1].event_id}") == []

    def test_an_id_that_was_never_sent_counts_for_none(self, client: TestClient) -> None:
        job_id = train_to_end(client, **SHORT)["job_id"]
        assert listen(client, job_id, "?after=1000000") == listen(client, job_id)

    def test_one_stopped_in_the_queue_ends_with_that(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
    ) -> None:
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        queued = [train(client, env_name=env_name, **SHORT) for _ in range(3)][-1]
        client.post(f"/training/{queued}/stop")
        assert [event.name for event in listen(client, "latest")] == ["job.status", "job.stopped"]


class TestALiveStream:
    def test_it_tells_what_happens_when_it_happens_and_closes_when_the_job_ends(
        self, app: FastAPI, register_env: RegisterEnv
    ) -> None:
        gate = Gate()
        client = TestClient(app, base_url="http://localhost")
        with serve(app) as port:
            env_name = register_env(lambda: LineEnv(gate.pass_through))
            job_id = train(client, env_name=env_name, **SHORT, n_eval_episodes=0)
            with open_listener(port, job_id) as listener:
                assert listener.hear_until("job.status").payload == {"status": "queued"}
                assert listener.hear_until("job.status").payload == {"status": "running"}
                gate.admit(100)
                told = listener.hear_until("job.metrics")
                assert 0 < told.payload["timesteps"] <= 32
                assert 0.0 <= told.payload["metrics"]["rollout/reward_mean"] <= 1.0
                assert get_status(client, job_id)["status"] == "running"
                gate.admit()
                assert listener.hear_until("job.completed").payload == wait_for_end(client, job_id)
                assert listener.hear() is None

    def test_the_end_of_the_server_ends_it_and_refuses_new_ones(self, app: FastAPI, register_env: RegisterEnv) -> None:
        gate = Gate()
        client = TestClient(app, base_url="http://localhost")
        with serve(app) as port:
            env_name = register_env(lambda: LineEnv(gate.pass_through))
            job_id = train(client, env_name=env_name, **SHORT, n_eval_episodes=0)
            with open_listener(port, job_id) as listener:
                assert listener.hear_until("job.status").payload == {"status": "queued"}
                app.state.service.closing.set()
                assert list(iter(listener.hear, None))[-1:] in ([], [Event(2, "job.status", {"status": "running"})])
            refused = client.get(f"/training/{job_id}/events")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
            assert "shutting down" in refused.json()["detail"]
            gate.admit()

    def test_there_are_so_many_places_and_who_leaves_frees_one(self, app: FastAPI, register_env: RegisterEnv) -> None:
        gate = Gate()
        app.state.service.streams = EventStreams(app.state.service.closing, max_open=2)
        client = TestClient(app, base_url="http://localhost")
        with serve(app) as port:
            job_id = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), **SHORT)
            with open_listener(port, job_id) as stays, open_listener(port, job_id) as leaves:
                assert stays.response.status == leaves.response.status == 200
                refused = client.get(f"/training/{job_id}/events")
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
                assert "2 event streams are open" in refused.json()["detail"]
                assert get_status(client, job_id)["status"] == "running"
                leaves.close()

                def is_let_in() -> bool:
                    with open_listener(port, job_id) as third:
                        return third.response.status == 200

                wait_until(is_let_in)
                gate.admit()
                assert stays.hear_until("job.completed").payload == wait_for_end(client, job_id)

    def test_a_hundred_listeners_all_hear_the_same(self, app: FastAPI) -> None:
        app.state.service.streams = EventStreams(app.state.service.closing, max_open=100)
        client = TestClient(app, base_url="http://localhost")
        with serve(app) as port:
            job_id = train(client, **SHORT)
            listeners = [Listener(port, job_id) for _ in range(100)]
            heard = [list(iter(listener.hear, None)) for listener in listeners]
            for listener in listeners:
                listener.close()
            assert all(events[-1] == heard[0][-1] for events in heard)
            assert heard[0][-1].name == "job.completed"
            for events in heard:
                assert all(one.event_id < other.event_id for one, other in itertools.pairwise(events))
                assert [event for event in events if event.name == "job.metrics"] == [
                    event for event in heard[0] if event.name == "job.metrics"
                ]


@pytest.mark.parametrize(
    ("path", "headers", "status_code"),
    [
        ("/training/none/events", {}, 404),
        ("/training/latest/events", {}, 404),
        ("/training/latest/events?after=-1", {}, 422),
        ("/training/latest/events?after=x", {}, 422),
        ("/training/latest/events", {"Last-Event-ID": "x"}, 422),
        ("/training/latest/events", {"Last-Event-ID": "1_0"}, 422),
        ("/training/latest/events", {"Last-Event-ID": "+3"}, 422),
        ("/training/latest/events", {"Last-Event-ID": "3.0"}, 422),
        ("/training/latest/events", {"Last-Event-ID": "-1"}, 422),
        ("/training/latest/events", {"Last-Event-ID": "9" * 5000}, 422),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_anything_is_sent(
    client: TestClient, path: str, headers: dict[str, str], status_code: int
) -> None:
    if status_code == 422:
        train_to_end(client, **SHORT)
    response = client.get(path, headers=headers)
    assert response.status_code == status_code
    assert isinstance(response.json()["detail"], str)
    assert client.get("/health").status_code == 200
