"""A read-only replica answers from the folder that another server writes to, and leaves the rest to that server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.models import make_model
from tests.service.models.test_replacement import upload
from tests.support import make_client, wait_until

OBSERVATION = [0.1, 0.0, 0.05, 0.0]


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """Files of different policies."""
    return [make_model("CartPole-v1", seed).to_bytes(env_name="CartPole-v1") for seed in range(3)]


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[TestClient]:
    """The server that writes to the folder."""
    with make_client(Settings(models_dir=tmp_path / "models", executor="thread")) as client:
        yield client


@pytest.fixture
def replica(trainer: TestClient, tmp_path: Path) -> Iterator[TestClient]:
    """A replica over the same folder."""
    settings = Settings(models_dir=tmp_path / "models", role="serve", trainer_url="https://train.example")
    with make_client(settings) as client:
        yield client


def ask(client: TestClient, reference: str = "m") -> Any:
    answer = client.post("/inference", json={"model_name": reference, "observation": OBSERVATION})
    return answer.json() if answer.status_code == 200 else answer.status_code


@pytest.mark.parametrize(
    "request_line",
    [
        "POST /train",
        "GET /training/jobs",
        "GET /training/latest/status",
        "POST /training/latest/stop",
        "PATCH /training/latest",
        "DELETE /training/latest",
        "POST /sweeps",
        "GET /sweeps",
        "GET /environments",
        "GET /environments/CartPole-v1",
        "GET /reward-functions",
        "PUT /models/m/file",
        "DELETE /models/m",
        "POST /models/m/evaluate",
        "POST /models/m/rollback",
        "PUT /models/m/aliases/prod",
        "DELETE /models/m/aliases/prod",
        "GET /models/m/video",
        "GET /models/m/export",
        "GET /dashboard",
        "GET /dashboard/models/m",
    ],
)
def test_what_trains_writes_or_runs_an_environment_is_refused(
    trainer: TestClient, replica: TestClient, contents: list[bytes], request_line: str, tmp_path: Path
) -> None:
    upload(trainer, contents[0], "m")
    before = sorted(path.name for path in (tmp_path / "models").rglob("*"))
    method, path = request_line.split()
    answer = replica.request(method, path)
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:grpo:problem:read-only"
    assert f"'{request_line}' to the server that trains, https://train.example." in problem["detail"]
    assert sorted(path.name for path in (tmp_path / "models").rglob("*")) == before


@pytest.mark.parametrize(
    ("request_line", "status"), [("GET /nowhere", 404), ("POST /health", 405), ("GET /models/n", 404)]
)
def test_other_errors_are_the_trainers(
    trainer: TestClient, replica: TestClient, request_line: str, status: int
) -> None:
    method, path = request_line.split()
    answers = [client.request(method, path).json() for client in (trainer, replica)]
    assert [answer["status"] for answer in answers] == [status, status]
    assert answers[0]["detail"] == answers[1]["detail"]


def test_the_answers_are_the_trainers(trainer: TestClient, replica: TestClient, contents: list[bytes]) -> None:
    for content in contents:
        upload(trainer, content, "m", overwrite=True)
    trainer.put("/models/m/aliases/prod", json={"version": 2})
    for reference in ("m", "m@1", "m@prod", "m@latest"):
        assert ask(replica, reference) == ask(trainer, reference)
        body = {"model_name": reference, "observations": [OBSERVATION] * 2}
        answers = [client.post("/inference/batch", json=body) for client in (trainer, replica)]
        assert answers[0].content == answers[1].content
        for path in (f"/models/{reference}", f"/models/{reference}/file"):
            assert trainer.get(path).content == replica.get(path).content
    assert trainer.get("/models").json() == replica.get("/models").json()
    assert trainer.get("/models/m/versions").json() == replica.get("/models/m/versions").json()
    assert len(replica.get("/models/m/versions").json()["versions"]) == 3
    assert ask(replica, "m@4") == ask(trainer, "m@4") == 404


def test_it_says_what_it_is(trainer: TestClient, replica: TestClient) -> None:
    assert replica.get("/health").json()["role"] == "serve"
    assert "role" not in trainer.get("/health").json()
    assert "train" not in replica.get("/").json()["endpoints"]
    assert 'role="serve"' in replica.get("/metrics").text


def test_what_the_trainer_replaces_promotes_and_deletes_is_noticed(
    trainer: TestClient, replica: TestClient, contents: list[bytes]
) -> None:
    upload(trainer, contents[0], "m")
    trainer.put("/models/m/aliases/prod", json={})
    first = ask(replica)
    assert ask(replica, "m@prod") == first
    upload(trainer, contents[1], "m", overwrite=True)
    second = ask(trainer)
    assert second != first
    wait_until(lambda: bool(ask(replica) == second))
    assert ask(replica, "m@prod") == first
    trainer.put("/models/m/aliases/prod", json={"version": 2})
    wait_until(lambda: bool(ask(replica, "m@prod") == second))
    trainer.delete("/models/m")
    wait_until(lambda: bool(ask(replica) == 404))
    assert ask(replica, "m@prod") == 404


def test_a_version_stays_itself_when_it_is_the_newest_no_more(
    trainer: TestClient, replica: TestClient, contents: list[bytes]
) -> None:
    upload(trainer, contents[0], "m")
    first = ask(replica, "m@1")
    card = replica.get("/models/m@1").json()["sha256"]
    upload(trainer, contents[1], "m", overwrite=True)
    assert ask(replica, "m@1") == first
    assert replica.get("/models/m@1").json()["sha256"] == card
    assert ask(replica, "m@2") == ask(trainer, "m@2") != first


def test_it_waits_for_a_folder_that_is_not_there_yet(tmp_path: Path, contents: list[bytes]) -> None:
    folder = tmp_path / "later"
    with make_client(Settings(models_dir=folder, role="serve")) as replica:
        answer = replica.get("/health/ready")
        assert answer.status_code == 503
        assert "folder is missing" in answer.json()["detail"]
        assert not folder.exists()
        folder.mkdir()
        (folder / "m.zip").write_bytes(contents[0])
        wait_until(lambda: bool(replica.get("/health/ready").json() == {"status": "ready"}))
        assert ask(replica)["action"] in (0, 1)


def test_it_keeps_its_hands_off_what_a_crash_has_left(tmp_path: Path) -> None:
    leftovers = tmp_path / ".tmp-x", tmp_path / ".versions" / "gone" / "1.zip"
    leftovers[1].parent.mkdir(parents=True)
    for leftover in leftovers:
        leftover.write_bytes(b"")
    with make_client(Settings(models_dir=tmp_path, role="serve")) as replica:
        assert replica.get("/models").json() == {"models": []}
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".tmp-x", ".versions", "1.zip", "gone"]


def test_a_login_leads_to_a_page_that_is_there(tmp_path: Path) -> None:
    key = "a key of 22 characters"
    with make_client(Settings(models_dir=tmp_path, role="serve", api_key=key)) as replica:
        assert replica.get("/training/jobs").status_code == 401
        answer = replica.post("/login?next=/dashboard", data={"key": key}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
        assert json.loads(replica.get("/training/jobs", headers={"X-API-Key": key}).content)["status"] == 403
