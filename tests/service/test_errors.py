"""Every error has one shape and tells the client what it may know."""

from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.errors import MAX_REPORTED_ERRORS, ConflictError, DrainingError, QueueFullError
from tests.support import serve

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def faulty_client(app: FastAPI) -> Iterator[TestClient]:
    """A client of a service with routes that fail."""

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
    assert response.json().keys() == {"detail"}
    assert isinstance(response.json()["detail"], str)


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
    assert (response.status_code, response.json()) == (status_code, {"detail": detail})
    assert response.headers.get("retry-after") == retry_after


def test_a_bug_is_answered_with_an_incident_number_and_nothing_of_itself(
    faulty_client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = faulty_client.get("/bug")
    assert response.status_code == 500
    body = response.json()
    assert body["detail"] == "internal error"
    assert body.keys() == {"detail", "id"}
    assert "secret" not in response.text
    assert body["id"] in caplog.text


def test_two_bugs_have_two_incident_numbers(faulty_client: TestClient) -> None:
    assert faulty_client.get("/bug").json()["id"] != faulty_client.get("/bug").json()["id"]


def test_a_bug_leaves_the_server_running(faulty_client: TestClient) -> None:
    faulty_client.get("/bug")
    assert faulty_client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "body", [b"{", b"", b"nonsense", b"{'a': 1}", b'{"a":1}}', b"\xff\xfe", b'{"env_name": "\xff"}']
)
def test_a_body_that_is_not_json_is_a_validation_error(client: TestClient, body: bytes) -> None:
    response = client.post("/inference", content=body, headers=JSON)
    assert response.status_code == 422
    assert response.json().keys() == {"detail", "errors"}
    assert isinstance(response.json()["detail"], str)


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
    assert body["errors"][0] == {"field": "unknown_0", "message": "Extra inputs are not permitted"}
    assert body["detail"].count("Extra inputs") == 3
    assert body["detail"].endswith("; ...")


@pytest.mark.parametrize("path", ["/train", "/inference"])
def test_a_body_of_thousands_of_fields_is_refused_in_one_sentence(client: TestClient, path: str) -> None:
    response = client.post(path, json={f"unknown_{i}": i for i in range(20_000)})
    assert response.status_code == 422
    assert response.json()["detail"] == "a request has at most 64 fields"


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
        assert response.getheader("content-type") == "application/json"
        assert response.read().startswith(b'{"detail":"the body is not valid JSON')
        connection.close()
