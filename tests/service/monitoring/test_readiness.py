"""The server reports whether it can take work, and is ready again once it can."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import service.monitoring.readiness
from service.settings import Settings
from tests.models import make_model
from tests.support import PROBLEM_FIELDS, train_to_end

KEY = "a key of 22 characters"
MIB = 2**20

with_key = pytest.mark.parametrize("overrides", [{"api_key": KEY}], ids=["key"])


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` returns."""

    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def _no_look_is_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.monitoring.readiness, "_RECENT_SECONDS", 0.0)


@pytest.fixture
def leave_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the number of free bytes on the disk."""
    return lambda n_bytes: monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, n_bytes))


def get_obstacle(client: TestClient) -> str | None:
    """Return the reason why the server is not ready; None if it is."""
    response = client.get("/health/ready")
    if response.status_code == 200:
        assert response.json() == {"status": "ready"}
        return None
    problem = response.json()
    assert (response.status_code, problem["type"]) == (503, "urn:grpo:problem:not-ready")
    assert problem.keys() == PROBLEM_FIELDS
    assert response.headers["retry-after"] == "5"
    return str(problem["detail"])


def check_alive(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "alive"}
    assert client.get("/health").json()["status"] == "healthy"


def test_a_new_server_is_alive_and_ready(client: TestClient) -> None:
    check_alive(client)
    assert get_obstacle(client) is None
    assert "\ngrpo_ready 1.0\n" in client.get("/metrics").text


@pytest.mark.parametrize("overrides", [{"max_models": 1}, {"max_models_bytes": 60_000}], ids=["count", "bytes"])
def test_a_folder_that_has_its_fill_of_models_keeps_the_server_ready(client: TestClient, settings: Settings) -> None:
    for name in ("a", "b"):
        (settings.models_dir / f"{name}.zip").write_bytes(make_model("CartPole-v1").to_bytes())
    assert get_obstacle(client) is None
    assert "\ngrpo_ready 1.0\n" in client.get("/metrics").text
    refusal = client.post("/train", json={"total_timesteps": 64}).json()
    assert (refusal["type"], refusal["title"]) == (
        "urn:grpo:problem:storage-low",
        "The server has too little room for models",
    )
    assert "GRPO_MAX_MODELS" in refusal["detail"]


@pytest.mark.parametrize("overrides", [{"max_models": 1}], ids=["one model"])
def test_a_job_that_only_replaces_a_model_needs_no_room_for_another(client: TestClient) -> None:
    train_to_end(client, total_timesteps=64, model_name="a")
    assert train_to_end(client, total_timesteps=64, model_name="a")["status"] == "completed"
    assert client.post("/train", json={"total_timesteps": 64, "model_name": "b"}).status_code == 503


def test_a_full_disk_holds_up_jobs_until_there_is_space(client: TestClient, leave_free: Callable[[int], None]) -> None:
    leave_free(256 * MIB - 1)
    detail = get_obstacle(client)
    assert detail is not None
    assert "GRPO_MIN_FREE_BYTES" in detail
    assert detail.endswith("disk space.")
    refusal = client.post("/train", json={"total_timesteps": 64})
    assert (refusal.status_code, refusal.headers["retry-after"]) == (503, "60")
    assert refusal.json()["type"] == "urn:grpo:problem:storage-low"
    assert str(256 * MIB - 1) in refusal.json()["detail"]
    assert client.get("/training/jobs").json() == {"jobs": []}
    metrics = client.get("/metrics").text
    assert "\ngrpo_ready 0.0\n" in metrics
    assert "\ngrpo_storage_free_bytes 2.68435455e+08\n" in metrics
    check_alive(client)
    leave_free(256 * MIB)
    assert get_obstacle(client) is None
    assert client.post("/train", json={"total_timesteps": 64}).status_code == 200


@pytest.mark.parametrize("overrides", [{"min_free_bytes": 0}], ids=str)
def test_the_space_that_is_kept_can_be_chosen(client: TestClient, leave_free: Callable[[int], None]) -> None:
    leave_free(0)
    assert get_obstacle(client) is None


def test_without_its_folder_it_is_not_ready_until_it_is_back(client: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.rmtree(folder)
    assert "missing" in str(get_obstacle(client))
    assert "grpo_storage_free_bytes" not in client.get("/metrics").text
    folder.write_text("a file of that name")
    assert "not a folder" in str(get_obstacle(client))
    check_alive(client)
    folder.unlink()
    folder.mkdir()
    assert get_obstacle(client) is None


def test_a_folder_that_cannot_be_written_to_is_an_obstacle(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write to any folder, so a read-only one needs a mount.
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "not writable" in str(get_obstacle(client))
    monkeypatch.undo()
    assert get_obstacle(client) is None


def test_whoever_asks_soon_after_shares_a_look(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Mock(return_value="it is full")
    monkeypatch.setattr(service.monitoring.readiness, "_RECENT_SECONDS", 1000.0)
    monkeypatch.setattr(app.state.service.store.folder, "find_problem", look)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: get_obstacle(client), range(8))) == {"it is full."}
    assert look.call_count == 1
    app.state.service.closing.set()  # what takes no look counts at once
    assert "shutting down" in str(get_obstacle(client))


def test_a_server_that_shuts_down_gets_no_more_work(app: FastAPI, client: TestClient) -> None:
    app.state.service.closing.set()
    assert "shutting down" in str(get_obstacle(client))
    check_alive(client)


@with_key
@pytest.mark.parametrize(
    ("headers", "is_told"),
    [
        ({}, False),
        ({"authorization": f"Bearer {KEY}x"}, False),
        ({"authorization": f"Bearer {KEY}"}, True),
        ({"x-api-key": KEY}, True),
    ],
    ids=str,
)
def test_strangers_are_not_told_what_stands_in_the_way(
    client: TestClient, leave_free: Callable[[int], None], headers: dict[str, Any], is_told: bool
) -> None:
    leave_free(0)
    client.headers.update(headers)
    assert ("bytes are free" in str(get_obstacle(client))) is is_told
