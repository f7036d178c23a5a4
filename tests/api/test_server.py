"""The contract over HTTP: the server itself, and how the application is built."""

from json import dumps
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

import api
from service.settings import Settings
from tests.api.calls import SHORT, parse_time
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.support import PROBLEM_FIELDS, make_client, train, train_to_end, wait_until


def test_the_root_says_what_there_is(client: TestClient) -> None:
    assert client.get("/").json() == {
        "message": "GRPO API Server",
        "version": "1.0.0",
        "endpoints": {
            "train": "POST /train",
            "inference": "POST /inference",
            "health": "GET /health",
            "models": "GET /models",
        },
        "dashboard": "/dashboard",
        "docs": "/docs",
    }


def test_health_counts_jobs_and_models(client: TestClient, register_env: RegisterEnv, gate: Gate) -> None:
    health = client.get("/health").json()
    assert health.keys() == {"status", "timestamp", "active_jobs", "loaded_models"}
    assert (health["status"], health["active_jobs"], health["loaded_models"]) == ("healthy", 0, 0)
    parse_time(health["timestamp"])
    train_to_end(client, **SHORT)
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    for _ in range(3):
        train(client, env_name=env_name, **SHORT)
    health = client.get("/health").json()
    assert (health["active_jobs"], health["loaded_models"]) == (3, 1)


def test_the_published_schema_documents_every_route_and_its_errors(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    documented = {(path, method) for path, methods in schema["paths"].items() for method in methods}
    assert documented >= {  # tests/docs/test_documents.py compares all of them with API.md
        ("/", "get"),
        ("/train", "post"),
        ("/training/{job_id}/status", "get"),
        ("/training/jobs", "get"),
        ("/training/{job_id}/stop", "post"),
        ("/inference", "post"),
        ("/models", "get"),
        ("/models/{model_name}", "delete"),
        ("/models/{model_name}/evaluate", "post"),
        ("/models/{model_name}/video", "get"),
        ("/models/{model_name}/file", "get"),
        ("/models/{model_name}/export", "get"),
        ("/models/{model_name}/file", "put"),
        ("/environments", "get"),
        ("/environments/{env_name}", "get"),
        ("/reward-functions", "get"),
        ("/health", "get"),
    }
    train_codes = schema["paths"]["/train"]["post"]["responses"].keys()
    assert train_codes == set("200 400 401 403 408 409 413 415 417 422 429 501 503".split())
    problem = schema["components"]["schemas"]["ProblemDetails"]
    assert problem["properties"].keys() == PROBLEM_FIELDS | {"errors", "id"}
    assert set(problem["required"]) == PROBLEM_FIELDS
    reference = {"$ref": "#/components/schemas/ProblemDetails"}
    for methods in schema["paths"].values():
        for operation in methods.values():
            for status_code, response in operation["responses"].items():
                if status_code >= "400":
                    content = response["content"]["application/problem+json"]
                    assert (content["schema"], content["example"]["status"]) == (reference, int(status_code))
    assert "HTTPValidationError" not in dumps(schema)  # FastAPI's own shape, which is never sent


def test_without_settings_they_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRPO_MODELS_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GRPO_API_KEY", "a key of 22 characters")
    with TestClient(api.create_app(), base_url="http://localhost") as client:
        assert client.get("/models").status_code == 401
    assert (tmp_path / "elsewhere").is_dir()


def test_routes_are_built_before_the_first_request(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI would build them while it waits: a validator per field, which takes longer than to load a model."""
    built = []

    def count(*arguments: Any, **options: Any) -> TypeAdapter[Any]:
        built.append(arguments)
        return TypeAdapter(*arguments, **options)

    monkeypatch.setattr("fastapi._compat.v2.TypeAdapter", count)
    assert client.post("/inference", json={"model_name": "none", "observation": [0.0]}).status_code == 404
    assert client.get("/no/such/path").status_code == 404
    assert not built


def test_the_store_is_kept_after_a_round_that_failed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = []

    def read_available_bytes() -> int:
        readings.append(0)
        if len(readings) == 1:
            raise RuntimeError("no such counter")
        return 2**40

    monkeypatch.setattr("service.app.get_available_bytes", read_available_bytes)
    monkeypatch.setattr(api, "_UPKEEP_SECONDS", 0.01)
    with make_client(settings):
        wait_until(lambda: len(readings) > 2, timeout_seconds=30.0)


def test_the_application_is_built_when_it_is_first_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_MODELS_DIR", str(tmp_path / "served"))
    assert "app" not in vars(api)
    try:
        assert isinstance(api.app, FastAPI)
        assert api.app is api.app
        assert (tmp_path / "served").is_dir()
    finally:
        vars(api).pop("app", None)
    with pytest.raises(AttributeError, match="no attribute 'application'"):
        api.application  # noqa: B018
