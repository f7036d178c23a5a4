"""The contract over HTTP: names that are taken, slots that are full, and jobs that fail."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from grpo import GRPO
from tests.api.calls import SHORT, ask, list_jobs, list_models, one_slot, refuse
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.support import PROBLEM_FIELDS, get_status, train, train_to_end, wait_for_end, wait_until


def test_a_model_is_replaced_when_its_retraining_completes_and_no_sooner(
    client: TestClient, register_env: RegisterEnv, gate: Gate, models_dir: Path
) -> None:
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    gate.admit(64)
    request: dict[str, Any] = {"env_name": env_name, "model_name": "m", "n_steps": 64, "horizon": 4}
    request["n_eval_episodes"] = 0
    first = train_to_end(client, **request, total_timesteps=64)
    before = (models_dir / "m.zip").read_bytes()
    reference = ask(client, "m", [0.0, 0.0])
    # Five steps lead from a reset to an end, so the first rollout, of branches of four, took all of its steps.
    gate_before = gate.n_arrived
    assert gate_before == 64
    job_id = train(client, **request, total_timesteps=640, learning_rate=0.01)
    gate.admit(400)
    wait_until(lambda: gate.n_arrived == gate_before + 401)
    assert get_status(client, job_id)["status"] == "running"
    assert (models_dir / "m.zip").read_bytes() == before
    assert ask(client, "m", [0.0, 0.0]) == reference
    gate.admit()
    second = wait_for_end(client, job_id)
    assert second["status"] == "completed"
    assert second["model_name"] == first["model_name"] == "m"
    assert hashlib.sha256((models_dir / "m.zip").read_bytes()).hexdigest() == second["sha256"] != first["sha256"]
    assert ask(client, "m", [0.0, 0.0]) != reference


@pytest.mark.parametrize("other_name", ["m", "M"])
def test_a_name_that_an_active_job_will_use_is_taken(
    client: TestClient, register_env: RegisterEnv, gate: Gate, other_name: str
) -> None:
    job_id = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), model_name="m", **SHORT)
    assert job_id in refuse(client, 409, "/train", model_name=other_name, **SHORT)
    assert [job["job_id"] for job in list_jobs(client)] == [job_id]


def test_a_name_that_differs_from_a_models_by_case_alone_is_taken(client: TestClient) -> None:
    train_to_end(client, model_name="Policy", **SHORT)
    assert "'Policy' only in case" in refuse(client, 409, "/train", model_name="policy", **SHORT)
    assert train_to_end(client, model_name="Policy", **SHORT)["status"] == "completed"


@one_slot
def test_with_slots_and_queue_full_more_jobs_are_told_to_come_back(
    client: TestClient, register_env: RegisterEnv, gate: Gate
) -> None:
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    accepted = [train(client, env_name=env_name, **SHORT) for _ in range(2)]
    for _ in range(3):
        response = client.post("/train", json=SHORT)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json().keys() == PROBLEM_FIELDS
    assert [job["job_id"] for job in list_jobs(client)] == accepted
    gate.admit()
    for job_id in accepted:
        assert wait_for_end(client, job_id)["status"] == "completed"
    assert train_to_end(client, **SHORT)["status"] == "completed"


def test_a_server_that_shuts_down_takes_no_more_jobs(client: TestClient, app: FastAPI) -> None:
    app.state.service.registry.shutdown(1.0)
    response = client.post("/train", json=SHORT)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json().keys() == PROBLEM_FIELDS


def test_shutting_down_stops_the_jobs_and_keeps_their_policies(
    app: FastAPI, register_env: RegisterEnv, tmp_path: Path
) -> None:
    stepped = threading.Event()
    with TestClient(app, base_url="http://localhost") as client:
        env_name = register_env(lambda: LineEnv(stepped.set))
        job_id = train(client, env_name=env_name, model_name="m", total_timesteps=10_000_000, n_eval_episodes=0)
        wait_until(stepped.is_set)
    assert app.state.service.registry.get(job_id).describe().status == "stopped"
    assert GRPO.load(tmp_path / "models" / "m.zip").num_timesteps > 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (ValueError("the map at /srv/maps/secret.txt is torn"), "ValueError: the map at <path> is torn"),
        (SystemExit(3), "SystemExit: 3"),
        (MemoryError("no room"), "MemoryError: no room"),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("at", ["reset", "step"])
def test_a_failing_environment_fails_its_job_and_nothing_else(
    client: TestClient,
    register_env: RegisterEnv,
    gate: Gate,
    fault: BaseException,
    message: str,
    at: str,
) -> None:
    def fail() -> None:
        raise fault

    other = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), **SHORT)
    broken = register_env(lambda: LineEnv(on_step=fail) if at == "step" else LineEnv(on_reset=fail), "Broken-v0")
    status = train_to_end(client, env_name=broken, model_name="broken", **SHORT)
    assert status["status"] == "failed"
    assert status["error_message"].partition(". ")[0] == message  # a note may say which call it was
    assert (status["model_name"], status["sha256"]) == (None, None)
    assert status["end_time"] is not None
    assert list_models(client) == {}
    gate.admit()
    assert wait_for_end(client, other)["status"] == "completed"
    assert client.get("/health").json()["active_jobs"] == 0


def test_an_environment_that_observes_nan_fails_its_job(client: TestClient, register_env: RegisterEnv) -> None:
    nan = np.full(2, np.nan, np.float32)
    status = train_to_end(client, env_name=register_env(lambda: LineEnv(lambda: nan)), **SHORT)
    assert status["status"] == "failed"
    assert "LineEnv.step() returned array([nan, nan], dtype=float32) (not finite" in status["error_message"]
