"""The contract over HTTP: following a training."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.calls import SHORT, list_jobs, one_slot, parse_time
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.support import (
    FINAL_STATUSES,
    LIVE_METRICS,
    PROBLEM_FIELDS,
    get_status,
    train,
    train_to_end,
    wait_for_end,
    wait_until,
)


def test_the_status_tells_where_the_job_is(client: TestClient) -> None:
    started = client.post("/train", json={**SHORT, "model_name": "m"}).json()
    status = wait_for_end(client, started["job_id"])
    assert status.keys() == {
        "job_id",
        "status",
        "progress",
        "current_timesteps",
        "total_timesteps",
        "created_at",
        "start_time",
        "end_time",
        "error_message",
        "metrics",
        "warnings",
        "model_name",
        "sha256",
        "elapsed_seconds",
        "eta_seconds",
        "verdict",
        "evaluation",
        "best_evaluation",
        "final_evaluation",
        "ended_by",
        "checkpoint",
        "n_restarts",
        "tensorboard_run",
        "sweep_id",
        "config",
        "config_origins",
        "display_name",
        "tags",
        "note",
        "hidden",
    }
    assert status["job_id"] == started["job_id"]
    assert (status["status"], status["progress"]) == ("completed", 1.0)
    assert 64 <= status["current_timesteps"] < 64 + 32
    assert status["total_timesteps"] == 64
    times = [parse_time(status[name]) for name in ("created_at", "start_time", "end_time")]
    assert times == sorted(times)
    assert status["error_message"] is None
    assert status["model_name"] == "m"
    assert status["config"] == started["config"]


@one_slot
def test_a_job_is_queued_then_running_then_completed_and_its_progress_never_falls(
    client: TestClient, register_env: RegisterEnv, gate: Gate
) -> None:
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    first = train(client, env_name=env_name, **SHORT, n_eval_episodes=0)
    second = train(client, env_name=env_name, total_timesteps=640, seed=0, n_eval_episodes=0)
    wait_until(lambda: gate.n_arrived == 1)
    queued = get_status(client, second)
    assert (queued["status"], queued["start_time"], queued["progress"]) == ("queued", None, 0.0)
    assert get_status(client, first)["status"] == "running"
    seen: list[tuple[str, float, int]] = []

    def note() -> bool:
        gate.admit(16)
        status = get_status(client, second)
        assert (status["start_time"] is None) == (status["status"] == "queued")
        assert (status["end_time"] is None) == (status["status"] not in FINAL_STATUSES)
        seen.append((status["status"], status["progress"], status["current_timesteps"]))
        return bool(status["status"] in FINAL_STATUSES)

    wait_until(note)
    order = ["queued", "running", "completed"]
    assert [order.index(status) for status, _, _ in seen] == sorted(order.index(status) for status, _, _ in seen)
    assert {status for status, _, _ in seen} == set(order)
    for values in ([progress for _, progress, _ in seen], [n_steps for _, _, n_steps in seen]):
        assert values == sorted(values)
    assert any(0.0 < progress < 1.0 for _, progress, _ in seen)
    assert all(0.0 <= progress <= 1.0 for _, progress, _ in seen)


def test_metrics_appear_while_the_job_runs(client: TestClient, register_env: RegisterEnv, gate: Gate) -> None:
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    job_id = train(client, env_name=env_name, total_timesteps=10_000, n_steps=32, n_eval_episodes=0, seed=0)
    assert get_status(client, job_id)["metrics"] == {}
    gate.admit(500)
    wait_until(lambda: gate.n_arrived == 501)
    status = get_status(client, job_id)
    assert status["status"] == "running"
    assert status["metrics"].keys() >= LIVE_METRICS
    assert all(isinstance(value, float) for value in status["metrics"].values())
    assert status["current_timesteps"] == 500


def test_jobs_are_listed_oldest_first_with_their_progress(
    client: TestClient, register_env: RegisterEnv, gate: Gate
) -> None:
    assert client.get("/training/jobs").json() == {"jobs": []}
    done = train_to_end(client, **SHORT, model_name="m")["job_id"]
    waiting = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), **SHORT, model_name="n")
    wait_until(lambda: gate.n_arrived == 1)
    first, second = list_jobs(client)
    assert 64 <= first.pop("current_timesteps") < 64 + 32
    assert parse_time(first.pop("created_at")) <= parse_time(second.pop("created_at"))
    assert first.pop("elapsed_seconds") > 0
    assert second.pop("elapsed_seconds") >= 0
    low, high = first.pop("mean_reward_ci95")
    assert low < first.pop("mean_reward") < high
    assert (second.pop("mean_reward"), second.pop("mean_reward_ci95")) == (None, None)
    assert (first.pop("success_rate"), second.pop("success_rate")) == (None, None)
    assert first.pop("recipe") != second.pop("recipe")
    unlabelled: dict[str, Any] = {"display_name": None, "tags": [], "note": "", "hidden": False}
    assert first == unlabelled | {
        "seed": 0,
        "job_id": done,
        "status": "completed",
        "progress": 1.0,
        "total_timesteps": 64,
        "env_name": "CartPole-v1",
        "model_name": "m",
    }
    assert second == unlabelled | {
        "seed": 0,
        "job_id": waiting,
        "status": "running",
        "progress": 0.0,
        "current_timesteps": 0,
        "total_timesteps": 64,
        "env_name": "Line-v0",
        "model_name": "n",
    }


@one_slot
def test_the_list_comes_in_pages_and_by_status(client: TestClient, register_env: RegisterEnv, gate: Gate) -> None:
    done = [train_to_end(client, **SHORT)["job_id"] for _ in range(3)]
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    active = [train(client, env_name=env_name, **SHORT) for _ in range(2)]
    wait_until(lambda: gate.n_arrived == 1)

    def ask_page(**query: Any) -> list[str]:
        response = client.get("/training/jobs", params=query)
        assert response.status_code == 200, response.text
        return [job["job_id"] for job in response.json()["jobs"]]

    assert ask_page() == [*done, *active]
    assert ask_page(limit=1000, status="completed") == done
    assert ask_page(status="queued") == active[1:]
    assert ask_page(limit=2) == done[:2]
    assert ask_page(limit=2, after=done[1]) == [done[2], active[0]]
    assert ask_page(after=active[1]) == []


@pytest.mark.parametrize(
    ("query", "status_code"),
    [
        ("limit=0", 422),
        ("limit=1001", 422),
        ("limit=ten", 422),
        ("status=done", 422),
        ("sort=reward", 422),
        ("hidden=perhaps", 422),
        (f"search={'x' * 201}", 422),
        ("after=none", 404),
        ("after=%00", 404),
        (f"after={'x' * 5000}", 404),
    ],
)
def test_a_page_that_cannot_be_is_refused(client: TestClient, query: str, status_code: int) -> None:
    response = client.get(f"/training/jobs?{query}")
    assert response.status_code == status_code
    assert isinstance(response.json()["detail"], str)
    assert len(response.text) < 900


def test_a_job_is_found_by_what_is_written_on_it(client: TestClient) -> None:
    first, second = (train_to_end(client, **SHORT)["job_id"] for _ in range(2))

    def write(**labels: Any) -> Any:
        return client.patch(f"/training/{first}", json=labels)

    def find(**query: Any) -> list[str]:
        response = client.get("/training/jobs", params=query)
        assert int(response.headers["X-Total-Count"]) == len(response.json()["jobs"])
        return [job["job_id"] for job in response.json()["jobs"]]

    assert write(tags=["paper", " paper ", "b"], note="why\nnot").json()["tags"] == ["paper", "b"]
    line = write(display_name=" The first ").json()
    assert (line["display_name"], line["note"], line["hidden"]) == ("The first", "why\nnot", False)
    assert find(tag="b") == find(search="first WHY") == [first]
    status = get_status(client, first)
    assert [status[name] for name in ("display_name", "tags", "note")] == ["The first", ["paper", "b"], "why\nnot"]
    assert write(hidden=True).json()["hidden"] is True
    assert (find(hidden=True), find(hidden=False)) == ([first], [second])
    assert find(sort="-created_at") == [second, first]
    cleared = write(display_name=None, tags=None, note=None, hidden=None).json()
    assert (cleared["display_name"], cleared["tags"], cleared["note"], cleared["hidden"]) == (None, [], "", False)
    assert write().json() == cleared


@pytest.mark.parametrize(
    "labels",
    [
        {"display_name": ""},
        {"display_name": "a\nb"},
        {"display_name": "x" * 101},
        {"tags": ["a,b"]},
        {"tags": [" "]},
        {"tags": [str(i) for i in range(17)]},
        {"tags": "paper"},
        {"note": "\x00"},
        {"note": "x" * 4001},
        {"hidden": 2},
        {"hiden": True},
    ],
)
def test_what_cannot_be_written_on_a_job_is_refused(client: TestClient, labels: dict[str, Any]) -> None:
    job_id = train_to_end(client, **SHORT)["job_id"]
    before = list_jobs(client)
    assert client.patch(f"/training/{job_id}", json=labels).status_code == 422
    assert list_jobs(client) == before


def test_only_an_ended_job_is_deleted_and_its_model_stays(
    client: TestClient, register_env: RegisterEnv, gate: Gate
) -> None:
    done = train_to_end(client, **SHORT, model_name="m")["job_id"]
    active = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), **SHORT)
    refused = client.delete(f"/training/{active}")
    assert refused.status_code == 409
    assert f"POST /training/{active}/stop" in refused.json()["detail"]
    assert client.delete(f"/training/{done}").json() == {"message": "Training job deleted", "job_id": done}
    assert client.delete(f"/training/{done}").status_code == 404
    assert client.patch(f"/training/{done}", json={}).status_code == 404
    assert [job["job_id"] for job in list_jobs(client)] == [active]
    assert client.get("/models/m").status_code == 200


@pytest.mark.parametrize("job_id", ["none", "00000000-0000-0000-0000-000000000000", "%00", "%2e%2e", "x" * 5000])
def test_a_job_that_never_was_is_not_found(client: TestClient, job_id: str) -> None:
    for method, action in (("GET", "status"), ("GET", "metrics"), ("POST", "stop")):
        response = client.request(method, f"/training/{job_id}/{action}")
        assert response.status_code == 404
        assert response.json().keys() == PROBLEM_FIELDS
        assert len(response.text) < 700


@pytest.mark.parametrize("overrides", [{"max_kept_jobs": 2}], ids=["two kept"])
def test_the_oldest_finished_jobs_are_forgotten(client: TestClient) -> None:
    jobs = [train_to_end(client, **SHORT)["job_id"] for _ in range(4)]
    assert [job["job_id"] for job in list_jobs(client)] == jobs[1:]
    assert client.get(f"/training/{jobs[0]}/status").status_code == 404
