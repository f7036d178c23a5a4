"""The contract over HTTP: listing and deleting models."""

import shutil
from http.client import HTTPConnection
from json import loads
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.api.calls import BALANCED, SHORT, ask, list_jobs, list_models, refuse
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.models import make_model
from tests.support import PATIENT, PROBLEM_FIELDS, make_client, serve, train, train_to_end, wait_for_end

# What a client may write behind /models/, none of it the name of a model that is there.
HOSTILE_PATHS = [
    "none",
    "%2e%2e",
    "..",
    ".",
    "%2e",
    "..%2Fcanary",
    "%2e%2e%2fcanary",
    "..%5Ccanary",
    "%00",
    "canary%00",
    "canary%0a",
    "%ff",
    "%F0%9F%98%80",
    "%",
    "%zz",
    "x" * 4000,
    ".gitkeep",
    "C%3Acanary",
    "CON",
    "*",
    "%2Ftmp%2Fcanary",
]


def read_files(folder: Path) -> dict[Path, bytes]:
    """Read all files in a folder, but for the jobs' file, which the server writes at any time."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".jobs."))
    return {file: file.read_bytes() for file in files}


def test_models_are_listed_by_name_with_where_they_are(client: TestClient, models_dir: Path) -> None:
    assert client.get("/models").json() == {"models": []}
    train_to_end(client, model_name="my_model", **SHORT)
    make_model("CartPole-v1").save(models_dir / "a_model.zip")
    assert client.get("/models").json() == {
        "models": [{"name": "a_model", "status": "saved"}, {"name": "my_model", "status": "loaded"}]
    }
    ask(client, "a_model")
    assert list_models(client) == {"a_model": "loaded", "my_model": "loaded"}


def test_a_restarted_server_has_the_models_and_the_same_answers(tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path / "models", **PATIENT)
    with make_client(settings) as client:
        train_to_end(client, model_name="m", **SHORT)
        before = ask(client, "m")
        jobs = list_jobs(client)
    with make_client(settings) as client:
        assert list_models(client) == {"m": "saved"}
        assert ask(client, "m") == before
        assert list_jobs(client) == jobs != []


def test_a_deleted_model_is_gone(client: TestClient, models_dir: Path) -> None:
    train_to_end(client, model_name="m", **SHORT)
    response = client.delete("/models/m")
    assert (response.status_code, response.json()) == (200, {"message": "Model deleted", "model_name": "m"})
    assert list(models_dir.glob("*.zip")) == []
    assert client.delete("/models/m").status_code == 404
    refuse(client, 404, "/inference", model_name="m", observation=BALANCED)
    assert list_models(client) == {}


def test_a_model_is_not_deleted_while_a_job_will_replace_it(
    client: TestClient, register_env: RegisterEnv, gate: Gate
) -> None:
    train_to_end(client, model_name="m", **SHORT)
    job_id = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), model_name="m", **SHORT)
    response = client.delete("/models/m")
    assert response.status_code == 409
    assert job_id in response.json()["detail"]
    ask(client, "m")
    gate.admit()
    wait_for_end(client, job_id)
    assert client.delete("/models/m").status_code == 200


def test_no_name_deletes_anything_else(app: FastAPI, tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    make_model("CartPole-v1").save(models_dir / "kept.zip")
    for file in (tmp_path / "canary", tmp_path / "canary.zip", models_dir / ".zip", tmp_path / "..zip"):
        file.write_text("canary")
    before = read_files(tmp_path)
    # Over a real connection, where no client tidies the path up.
    with serve(app) as port:
        for raw_name in HOSTILE_PATHS:
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("DELETE", f"/models/{raw_name}")
            response = connection.getresponse()
            body = response.read()
            connection.close()
            assert response.status in (404, 405), raw_name
            assert loads(body).keys() == PROBLEM_FIELDS
            assert len(body) < 700
    assert read_files(tmp_path) == before


def test_a_folder_that_disappears_is_no_server_error(client: TestClient, models_dir: Path) -> None:
    train_to_end(client, model_name="m", **SHORT)
    shutil.rmtree(models_dir)
    assert list_models(client) == {}
    refuse(client, 404, "/inference", model_name="m", observation=BALANCED)
    assert client.delete("/models/m").status_code == 404
    assert client.get("/health").status_code == 200
    for answer in (
        client.post("/train", json={"model_name": "m", **SHORT}),
        client.post("/sweeps", json={"base": SHORT, "space": {"gamma": [0.9, 0.99]}}),
        client.put("/models/n/file", content=b"PK", headers={"Content-Type": "application/zip"}),
    ):
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:grpo:problem:not-ready")
        assert str(models_dir) not in answer.json()["detail"]
    assert not models_dir.exists()
