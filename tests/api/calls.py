"""Calls that the tests of the contract make."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.support import PROBLEM_FIELDS

BALANCED = [0.1, 0.0, 0.05, 0.0]
SHORT: dict[str, Any] = {"total_timesteps": 64, "seed": 0}
one_slot = pytest.mark.parametrize("overrides", [{"max_running_jobs": 1, "max_queued_jobs": 1}], ids=["one slot"])


def ask(client: TestClient, model_name: str, observation: Any = BALANCED, **request: Any) -> dict[str, Any]:
    response = client.post("/inference", json={"model_name": model_name, "observation": observation, **request})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refuse(client: TestClient, status_code: int, path: str, **request: Any) -> str:
    response = client.post(path, json=request)
    assert response.status_code == status_code, response.text
    body = response.json()
    assert body.keys() == (PROBLEM_FIELDS | {"errors"} if status_code == 422 else PROBLEM_FIELDS)
    assert isinstance(body["detail"], str)
    return str(body["detail"])


def stop(client: TestClient, job_id: str) -> int:
    return int(client.post(f"/training/{job_id}/stop").status_code)


def list_jobs(client: TestClient) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = client.get("/training/jobs").json()["jobs"]
    return jobs


def list_models(client: TestClient) -> dict[str, str]:
    return {model["name"]: model["status"] for model in client.get("/models").json()["models"]}


def parse_time(text: str) -> datetime:
    parsed = datetime.fromisoformat(text)
    assert parsed.utcoffset() == timedelta(0)
    return parsed
