"""Every request has an id, which its answer repeats and the log can be searched for."""

import random
import uuid

import pytest
from fastapi.testclient import TestClient

from service.http.request_ids import RequestIds, make_urn


@pytest.mark.parametrize("offered", [b"a", b"Job-7.retry_2", b"0" * 64])
def test_a_short_and_plain_id_of_the_client_is_taken(offered: bytes) -> None:
    assert RequestIds().choose(offered) == offered.decode()


@pytest.mark.parametrize(
    "offered", [None, b"", b"0" * 65, b"a b", b"a\n", b"a\x1b[31m", b"\xff", b"{a}", b"%s", b"a/b", b"<a>"]
)
def test_any_other_is_replaced_by_a_uuid(offered: bytes | None) -> None:
    drawn = RequestIds().choose(offered)
    parsed = uuid.UUID(drawn)
    assert (parsed.version, parsed.variant, str(parsed)) == (4, uuid.RFC_4122, drawn)


def test_ids_differ_within_a_server_and_between_servers_even_if_somebody_seeds_python() -> None:
    ids, made = RequestIds(), []
    for _ in range(1000):
        random.seed(0)
        made.append(ids.choose(None))
        made.append(RequestIds().choose(None))
    assert len(set(made)) == 2000


def test_a_count_that_runs_over_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID("0f8fad5b-d9cb-469f-a165-ffffffffffff"))
    ids = RequestIds()
    assert [ids.choose(None)[24:] for _ in range(2)] == ["ffffffffffff", "000000000000"]


def test_a_uuid_and_any_other_id_become_a_urn_each() -> None:
    uuid_ = "0f8fad5b-d9cb-469f-a165-70867728950e"
    assert make_urn(uuid_) == f"urn:uuid:{uuid_}"
    assert make_urn("Job-7") == "urn:grpo:request:Job-7"


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/health", {}),
        ("GET", "/nowhere", {}),
        ("GET", "/health", {"host": "evil.example"}),
        ("DELETE", "/models/x", {"origin": "https://evil.example"}),
        ("POST", "/train", {"content-type": "text/plain", "content-length": "2"}),
        ("OPTIONS", "/train", {"origin": "http://localhost", "access-control-request-method": "POST"}),
    ],
    ids=str,
)
def test_every_answer_tells_the_requests_id(
    client: TestClient, method: str, path: str, headers: dict[str, str]
) -> None:
    first, second = (client.request(method, path, headers=headers).headers["x-request-id"] for _ in range(2))
    assert uuid.UUID(first).version == 4
    assert first != second
    chosen = client.request(method, path, headers={**headers, "x-request-id": "chosen-1"})
    assert chosen.headers.get_list("x-request-id") == ["chosen-1"]
