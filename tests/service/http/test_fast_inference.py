"""The shortcut answers byte for byte as the route would, and leaves unusual requests to it."""

import asyncio
import threading
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import service.http.fast_inference
import service.models.store
from service.errors import NotFoundError
from service.http.routes import inference
from service.inference.infer import infer
from service.settings import Settings
from tests.models import make_model
from tests.support import PROBLEM_FIELDS, make_client

OBSERVATION = [0.1, 0.0, 0.05, 0.0]
JSON = {"content-type": "application/json"}


class RouteCounter:
    """Counts the route's answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_calls = 0
        monkeypatch.setattr(inference, "infer", self._infer)

    def _infer(self, *arguments: Any) -> Any:
        self.n_calls += 1
        return infer(*arguments)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> RouteCounter:
    """A counter of the route's answers."""
    return RouteCounter(monkeypatch)


@pytest.fixture
def served(client: TestClient, settings: Settings) -> TestClient:
    """A client of a service with two policies, which are not in memory yet."""
    make_model("CartPole-v1").save(settings.models_dir / "m.zip")
    make_model("Pendulum-v1").save(settings.models_dir / "p.zip")
    client.headers["x-request-id"] = "the-same-for-all"  # answers repeat it
    return client


@pytest.mark.parametrize(
    "fields",
    [
        {"model_name": "m", "observation": OBSERVATION},
        {"model_name": "m", "observation": [0, 0, 0, 0], "action_masks": [0, 1]},
        {"model_name": "m", "observation": [1e-30, -0.0, 3.4e38, 0.1], "deterministic": True, "action_masks": None},
        {"model_name": "p", "observation": [0.6, 0.8, -1.0]},
        {"model_name": "m@1", "observation": OBSERVATION},
        {"model_name": "p@latest", "observation": [0.6, 0.8, -1.0]},
    ],
    ids=str,
)
def test_the_route_answers_once_and_the_shortcut_the_same_from_then_on(
    served: TestClient, counter: RouteCounter, fields: dict[str, Any]
) -> None:
    answers = [served.post("/inference", json=fields) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert counter.n_calls == 1  # to load the model
    assert len({answer.content for answer in answers}) == 1
    assert len({tuple(sorted(answer.headers.items())) for answer in answers}) == 1


def test_the_shortcut_draws_actions_if_asked_to_and_masks_those_ruled_out(
    served: TestClient, counter: RouteCounter
) -> None:
    drawn: dict[str, Any] = {"model_name": "m", "observation": OBSERVATION, "deterministic": False}
    served.post("/inference", json=drawn)  # answered by the route, which loads the model
    # An untrained policy is nearly undecided: forty draws agree about once in 10^11 times.
    assert {served.post("/inference", json=drawn).json()["action"] for _ in range(40)} == {0, 1}
    for action, masks in ((0, [1, 0]), (1, [0, 1])):
        answer = served.post("/inference", json={**drawn, "deterministic": True, "action_masks": masks}).json()
        assert (answer["action"], answer["action_probs"][action]) == (action, 1.0)
    assert counter.n_calls == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"model_name": "m"}',
        b'{"model_name": "m", "observation": [0.1]}',
        b'{"model_name": "m", "observation": [NaN, 0, 0, 0]}',
        b'{"model_name": "m", "observation": [1e999, 0, 0, 0]}',
        b'{"model_name": "m", "observation": [0, 0, 0, 0], "deterministic": 1}',
        b'{"model_name": "m", "observation": [0, 0, 0, 0], "more": 1}',
        b'{"model_name": "m", "observation": [0, 0, 0, 0], "action_masks": [0, 0]}',
        b'{"model_name": "\\ud800", "observation": [0, 0, 0, 0]}',
        b'{"model_name": "m", "observation": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model_name": "none", "observation": [0, 0, 0, 0]}',
    ],
    ids=lambda body: body.decode()[:60],
)
def test_refusals_are_the_routes(served: TestClient, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    served.post("/inference", json={"model_name": "m", "observation": OBSERVATION})
    answer = served.post("/inference", content=body, headers=JSON)
    monkeypatch.setattr(service.http.fast_inference.FastInference, "_answer", lambda *_: None)
    route = served.post("/inference", content=body, headers=JSON)
    assert answer.status_code in (400, 404, 422)
    assert (answer.status_code, answer.content, answer.headers) == (route.status_code, route.content, route.headers)


@pytest.mark.parametrize("name", ["mm", "mm@prod", "m@prod", "m@7"])
def test_a_name_that_may_have_been_meant_is_looked_for_once_and_holds_nobody_up(
    app: FastAPI, served: TestClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, threads = app.state.service.store.folder, []
    make_not_found = folder.make_not_found

    def note_thread(name: str) -> NotFoundError:
        is_loop = asyncio._get_running_loop() is not None
        threads.append("the event loop" if is_loop else threading.current_thread().name)
        error: NotFoundError = make_not_found(name)
        return error

    monkeypatch.setattr(folder, "make_not_found", note_thread)
    answer = served.post("/inference", json={"model_name": name, "observation": OBSERVATION})
    assert (answer.status_code, len(threads)) == (404, 1)
    assert not threads[0].startswith(("the event loop", "grpo-load"))
    assert ("did you mean 'm'?" if name.startswith("mm") else "has no version or alias") in answer.json()["detail"]


def test_a_large_model_is_left_to_the_route(
    served: TestClient, counter: RouteCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.http.fast_inference, "LARGE_MODEL_BYTES", 1000)
    for _ in range(3):
        assert served.post("/inference", json={"model_name": "m", "observation": OBSERVATION}).status_code == 200
    assert counter.n_calls == 3


def test_a_bug_is_answered_once_with_an_incident_number(served: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"model_name": "m", "observation": OBSERVATION}
    served.post("/inference", json=request)
    monkeypatch.setattr(service.http.fast_inference, "infer", lambda *_: 1 / 0)
    response = served.post("/inference", json=request)
    assert response.status_code == 500
    assert response.json().keys() == PROBLEM_FIELDS | {"id"}


def test_it_stands_behind_the_guard(settings: Settings) -> None:
    make_model("CartPole-v1").save(settings.models_dir / "m.zip")
    request = {"model_name": "m", "observation": OBSERVATION}
    with make_client(settings.model_copy(update={"allowed_hosts": ("localhost",)})) as client:
        for headers, status_code in (
            ({}, 200),
            ({"host": "evil.example"}, 400),
            ({"origin": "https://a.example"}, 403),
        ):
            for _ in range(2):
                assert client.post("/inference", json=request, headers=headers).status_code == status_code
        assert client.get("/inference").status_code == 405
        assert client.post("/inference/", json=request, follow_redirects=False).status_code == 307


def test_models_that_take_turns_are_not_mixed_up(served: TestClient, counter: RouteCounter) -> None:
    requests = [
        {"model_name": "m", "observation": OBSERVATION},
        {"model_name": "p", "observation": [0.6, 0.8, -1.0]},
    ]
    first = [served.post("/inference", json=request).json() for request in requests]
    assert first[0].keys() == first[1].keys()
    for _ in range(3):
        assert [served.post("/inference", json=request).json() for request in requests] == first
    assert counter.n_calls == 2


def test_an_alias_that_is_moved_counts_at_once(served: TestClient, counter: RouteCounter) -> None:
    content = make_model("CartPole-v1", seed=1).to_bytes()
    served.put("/models/m/file?overwrite=true", content=content, headers={"content-type": "application/zip"})
    fields = {"model_name": "m@prod", "observation": OBSERVATION}
    for version in (1, 2):
        served.put("/models/m/aliases/prod", json={"version": version})
        expected = served.post("/inference", json={**fields, "model_name": f"m@{version}"}).content
        counter.n_calls = 0
        for _ in range(3):
            assert served.post("/inference", json=fields).content == expected
        assert counter.n_calls == 0
    served.delete("/models/m/aliases/prod")
    assert served.post("/inference", json=fields).status_code == 404


def test_what_the_service_itself_deletes_is_gone_at_once(served: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.models.store, "_RECENT_SECONDS", 1000.0)
    request = {"model_name": "m", "observation": OBSERVATION}
    assert [served.post("/inference", json=request).status_code for _ in range(2)] == [200, 200]
    assert served.delete("/models/m").status_code in (200, 204)
    assert served.post("/inference", json=request).status_code == 404


def test_what_another_program_does_to_the_file_counts_after_the_window(
    served: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.models.store, "_RECENT_SECONDS", 0.0)
    request = {"model_name": "m", "observation": OBSERVATION}
    before = [served.post("/inference", json=request).json() for _ in range(2)]
    make_model("CartPole-v1", seed=1).save(settings.models_dir / "m.zip")
    after = served.post("/inference", json=request).json()
    assert before[0] == before[1]
    assert after["action_probs"] != before[0]["action_probs"]
    (settings.models_dir / "m.zip").unlink()
    assert served.post("/inference", json=request).status_code == 404
