"""What several test modules use."""

import time
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

FINAL_STATUSES = {"completed", "failed", "stopped"}


def wait_until(condition: Callable[[], bool], timeout_seconds: float = 60.0) -> None:
    """Poll a condition until it holds.

    :raises TimeoutError: If it does not hold in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not so after {timeout_seconds} s")
        time.sleep(0.02)


def train(client: TestClient, **request: Any) -> str:
    """Start a job and return its id."""
    response = client.post("/train", json=request)
    assert response.status_code == 200, response.text
    job_id: str = response.json()["job_id"]
    return job_id


def get_status(client: TestClient, job_id: str) -> dict[str, Any]:
    """Ask for a job's status."""
    response = client.get(f"/training/{job_id}/status")
    assert response.status_code == 200, response.text
    status: dict[str, Any] = response.json()
    return status


def train_to_end(client: TestClient, **request: Any) -> dict[str, Any]:
    """Run a job to its end and return its final status."""
    job_id = train(client, **request)
    wait_until(lambda: get_status(client, job_id)["status"] in FINAL_STATUSES)
    return get_status(client, job_id)
