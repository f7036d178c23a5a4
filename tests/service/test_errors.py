"""All errors have the same shape, and reveal only what clients may know."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.errors import (
    ConflictError,
    DrainingError,
    QueueFullError,
    ServiceError,
    describe_error,
    hide_paths,
)
from service.schemas.violations import MAX_REPORTED_ERRORS
from service.settings import Settings
from tests.support import PROBLEM_FIELDS, serve

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def faulty_client(app: FastAPI) -> Iterator[TestClient]:
    """A client of a service whose routes fail."""

    def raise_bug() -> None:
        raise RuntimeError("the secret is in /srv/secret/file.txt")

    def raise_conflict() -> None:
        raise ConflictError("they disagree.")

    def raise_full() -> None:
        raise QueueFullError("no room.")

    def raise_draining() -> None:
        raise DrainingError("no more.")

    for path, route in (
        ("/bug", raise_bug),
        ("/conflict", raise_conflict),
        ("/full", raise_full),
        ("/draining", raise_draining),
    ):
        app.add_api_route(path, route)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status_code"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/training/none/status", 404),
        ("POST", "/training/none/stop", 404),
        ("DELETE", "/models/none", 404),
        ("GET", "/train", 405),
        ("PUT", "/models", 405),
        ("DELETE", "/models", 405),
        ("POST", "/health", 405),
    ],
)
def test_what_is_not_there_is_answered_with_one_sentence(
    client: TestClient, method: str, path: str, status_code: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status_code
    assert response.json().keys() == PROBLEM_FIELDS
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/training/latest", "DELETE, PATCH"),
        ("PUT", "/models/m", "DELETE, GET, HEAD"),
        ("DELETE", "/models/m/file", "GET, HEAD, PUT"),
        ("PATCH", "/sweeps", "GET, HEAD, POST"),
        ("PUT", "/inference", "POST"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_answered_with_all_that_it_takes(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["Allow"]) == (405, allowed)
    assert response.json()["detail"].endswith(f"use {allowed}.")


@pytest.mark.parametrize(
    ("path", "status_code", "detail", "retry_after"),
    [
        ("/conflict", 409, "they disagree.", None),
        ("/full", 429, "no room.", "5"),
        ("/draining", 503, "no more.", "10"),
    ],
)
def test_a_refusal_keeps_its_sentence_and_says_when_to_come_back(
    faulty_client: TestClient, path: str, status_code: int, detail: str, retry_after: str | None
) -> None:
    response = faulty_client.get(path)
    assert (response.status_code, response.json()["detail"]) == (status_code, detail)
    assert response.headers.get("retry-after") == retry_after


def test_a_bug_is_answered_with_an_incident_number_and_nothing_of_itself(
    faulty_client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = faulty_client.get("/bug")
    assert response.status_code == 500
    body = response.json()
    assert body["detail"] == "internal error"
    assert body.keys() == PROBLEM_FIELDS | {"id"}
    assert "secret" not in response.text
    assert body["id"] in caplog.text


def test_two_bugs_have_two_incident_numbers(faulty_client: TestClient) -> None:
    assert faulty_client.get("/bug").json()["id"] != faulty_client.get("/bug").json()["id"]


def test_a_bug_leaves_the_server_running(faulty_client: TestClient) -> None:
    faulty_client.get("/bug")
    assert faulty_client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status_code", "slug"),
    [
        ("GET", "/nowhere", {}, 404, "no-such-path"),
        ("PUT", "/health", {}, 405, "method-not-allowed"),
        ("GET", "/training/none/status", {}, 404, "not-found"),
        ("GET", "/conflict", {}, 409, "conflict"),
        ("GET", "/full", {}, 429, "queue-full"),
        ("GET", "/draining", {}, 503, "draining"),
        ("GET", "/bug", {}, 500, "internal-error"),
        ("POST", "/inference", {}, 422, "invalid-fields"),
        ("GET", "/health", {"host": "elsewhere"}, 400, "unknown-host"),
        ("POST", "/train", {"origin": "https://a.example"}, 403, "cross-site"),
        ("POST", "/train", {"content-type": "text/plain", "content-length": "2"}, 415, "wrong-media-type"),
        ("POST", "/train", {"content-type": "application/json", "content-length": "9999999"}, 413, "too-large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_error_is_a_problem_of_a_kind_that_programs_can_tell(
    faulty_client: TestClient, method: str, path: str, headers: dict[str, str], status_code: int, slug: str
) -> None:
    request_id = "0f8fad5b-d9cb-469f-a165-70867728950e"
    response = faulty_client.request(method, path, headers={**headers, "x-request-id": request_id})
    assert response.status_code == status_code
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["type"], problem["status"]) == (f"urn:grpo:problem:{slug}", status_code)
    assert problem["instance"] == f"urn:uuid:{request_id}"
    assert 0 < len(problem["title"]) < 60
    assert isinstance(problem["detail"], str)


def test_every_kind_of_error_has_a_name_of_its_own() -> None:
    kinds, open_kinds = [], [ServiceError]
    while open_kinds:
        kind = open_kinds.pop()
        kinds.append(kind)
        open_kinds += kind.__subclasses__()
    assert len({kind.problem.slug for kind in kinds}) == len(kinds) >= 8


@pytest.mark.parametrize(
    ("method", "path", "body", "hint"),
    [
        ("POST", "/train", {"n_step": 64}, "n_step: unknown field; did you mean n_steps?"),
        ("POST", "/inference", {"model_nam": "m"}, "model_nam: unknown field; did you mean model_name?"),
        ("POST", "/inference/batch", {"observation": []}, "observation: unknown field; did you mean observations?"),
        ("POST", "/sweeps", {"total_timesteps": 64}, "unknown field; it is one of a training, so put it into base"),
        ("POST", "/sweeps", {"min_timestep": 64}, "min_timestep: unknown field; did you mean min_timesteps?"),
        ("POST", "/train", {"device": "CPU"}, "did you mean 'cpu'?"),
        ("POST", "/train", {"group_mode": "episodes"}, "did you mean 'episode'?"),
        ("GET", "/training/jobs?status=runing", None, "did you mean 'running'?"),
        ("POST", "/train", {"env_name": "cartpole-v1"}, "did you mean 'CartPole-v1'"),
        ("POST", "/train", {"preset": "pendulum"}, "did you mean 'Pendulum-v1'?"),
        ("POST", "/train", {"reward_function_type": "simple-cartpole"}, "did you mean 'simple_cartpole'"),
        ("POST", "/train", {"reward_functions": {"enviroment": 1}}, "did you mean 'environment'?"),
        ("POST", "/inference", {"model_name": "ballancer", "observation": 1}, "did you mean 'balancer'?"),
        ("DELETE", "/models/Balance", None, "did you mean 'balancer'?"),
    ],
    ids=str,
)
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(
    client: TestClient, settings: Settings, method: str, path: str, body: Any, hint: str
) -> None:
    (settings.models_dir / "balancer.zip").write_bytes(b"whatever it holds")
    response = client.request(method, path, json=body)
    assert response.status_code in (400, 404, 422)
    assert hint in response.json()["detail"]


def test_a_name_like_no_other_and_one_that_is_too_long_are_answered_without_a_hint(client: TestClient) -> None:
    for body in ({"xyzzy": 1}, {"n_steps" * 20: 1}, {"device": "cpu" * 50}, {"preset": "q"}):
        response = client.post("/train", json=body)
        assert "did you mean" not in response.text


@pytest.mark.parametrize(
    "body", [b"{", b"", b"nonsense", b"{'a': 1}", b'{"a":1}}', b"\xff\xfe", b'{"env_name": "\xff"}']
)
def test_a_body_that_is_not_json_is_a_validation_error(client: TestClient, body: bytes) -> None:
    response = client.post("/inference", content=body, headers=JSON)
    assert response.status_code == 422
    assert response.json().keys() == PROBLEM_FIELDS | {"errors"}
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize("path", ["/sweeps", "/inference", "/inference/batch"])
def test_an_empty_body_is_called_missing(client: TestClient, path: str) -> None:
    detail = client.post(path, content=b"", headers=JSON).json()["detail"]
    assert detail.startswith("the body is missing; send an object in JSON")


def test_a_number_out_of_range_is_named_in_a_query_too(client: TestClient) -> None:
    answer = client.get("/training/jobs?limit=0")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "query.limit: must be at least 1, not 0"


@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b'{"env_name": "\xff"}'])
def test_a_body_that_is_not_unicode_is_called_so(client: TestClient, body: bytes) -> None:
    detail = client.post("/train", content=body, headers=JSON).json()["detail"]
    assert "JSON" in detail or "UTF-8" in detail
    assert "too long" not in detail


@pytest.mark.parametrize(
    "body",
    [
        b'{"total_timesteps": ' + b"1" * 5000 + b"}",
        b'{"total_timesteps": ' + b"[" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"model_name": "m", "observation": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
    ids=["5000 digits", "nested value", "nested body", "nested observation"],
)
@pytest.mark.parametrize("path", ["/train", "/inference"])
def test_json_that_python_cannot_hold_is_a_validation_error(client: TestClient, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers=JSON)
    assert response.status_code == 422
    assert len(response.text) < 2000


def test_at_most_ten_violations_are_listed_and_three_spelled_out(client: TestClient) -> None:
    request = {f"unknown_{i}": i for i in range(60)}
    body = client.post("/train", json=request).json()
    assert len(body["errors"]) == MAX_REPORTED_ERRORS == 10
    assert body["errors"][0] == {"field": "unknown_0", "message": "unknown field"}
    assert body["detail"].count("unknown field") == 3
    assert body["detail"].endswith("; ...")


@pytest.mark.parametrize("path", ["/train", "/inference"])
def test_a_body_of_thousands_of_fields_is_refused_in_one_sentence(client: TestClient, path: str) -> None:
    response = client.post(path, json={f"unknown_{i}": i for i in range(20_000)})
    assert response.status_code == 422
    assert response.json()["detail"] == "a request may have at most 64 fields"


@pytest.mark.parametrize(
    "request_",
    [
        {"env_name": "SENTINEL:Env"},
        {"model_name": "../SENTINEL"},
        {"device": "SENTINEL"},
        {"reward_function_type": "SENTINEL!"},
        {"total_timesteps": "SENTINEL"},
        {"learning_rate": ["SENTINEL"]},
        {"net_arch": {"SENTINEL": "SENTINEL"}},
    ],
)
def test_what_was_sent_is_not_echoed(client: TestClient, request_: dict[str, Any]) -> None:
    response = client.post("/train", json=request_)
    assert response.status_code == 422
    assert "SENTINEL" not in response.text


def test_a_megabyte_of_nonsense_gets_a_short_answer(client: TestClient) -> None:
    for request in ({"model_name": "x" * 1_000_000}, {"x" * 1_000_000: 1}, {"env_name": "x" * 1_000_000}):
        response = client.post("/train", json=request)
        assert response.status_code == 422
        assert len(response.text) < 2000


@pytest.mark.parametrize("body", [b'{"\\ud800": 1}', b'{"env_name": "\\ud800"}', b'{"a\\u0000\\u202e": 1}', b"[1, 2]"])
def test_strange_characters_come_back_as_plain_ascii(client: TestClient, body: bytes) -> None:
    response = client.post("/train", content=body, headers=JSON)
    assert response.status_code == 422
    assert response.content.isascii()


def test_errors_reach_a_real_connection_as_json(app: FastAPI) -> None:
    with serve(app) as port:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/train", b"{", JSON)
        response = connection.getresponse()
        assert response.status == 422
        assert response.getheader("content-type") == "application/problem+json"
        assert json.loads(response.read())["detail"].startswith("the body is not valid JSON")
        connection.close()


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("cannot open '/srv/secret/x'", "cannot open '<path>'"),
        ("file:///srv/secret x", "file:<path> x"),
        ("//srv/secret", "<path>"),
        (r"C:\\srv\\secret", "<path>"),
        ("see https://gymnasium.farama.org/api/env/", "see https://gymnasium.farama.org/api/env/"),
        ("half/a/path and 1/2/3", "half/a/path and 1/2/3"),
    ],
)
def test_paths_are_hidden_and_addresses_are_not(text: str, hidden: str) -> None:
    assert hide_paths(text) == hidden


def test_the_notes_of_a_foreign_error_are_told_without_paths() -> None:
    error = KeyError("w")
    error.add_note("The lookup in /srv/secret/table.txt raised it.")
    assert describe_error(error) == "KeyError: 'w'. The lookup in <path> raised it"
    error.__notes__ = ["\u4e2d" * 300]
    assert describe_error(error) == "KeyError: 'w'. " + r"\u4e2d" * 200
    error.__notes__ = [3]  # type: ignore[list-item]
    assert describe_error(error) == "KeyError: 'w'"
