"""The contract over HTTP: stopping a training."""

import hashlib
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from grpo_core.saving import model_file
from tests.api.calls import SHORT, ask, list_models, one_slot, stop
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.support import get_status, train, train_to_end, wait_for_end, wait_until


def test_during_a_rollout_it_ends_at_the_next_step_for_good(
    client: TestClient, register_env: RegisterEnv, gate: Gate, models_dir: Path
) -> None:
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    job_id = train(client, env_name=env_name, total_timesteps=400, model_name="m", seed=0, n_eval_episodes=0)
    gate.admit(40)
    wait_until(lambda: gate.n_arrived == 41)
    response = client.post(f"/training/{job_id}/stop")
    assert response.json() == {"message": "Training job stopping", "job_id": job_id}
    assert get_status(client, job_id)["status"] == "running"
    gate.admit()
    wait_until(lambda: get_status(client, job_id)["status"] == "stopped")
    status = get_status(client, job_id)
    assert gate.n_arrived == 41
    assert status["current_timesteps"] == 41
    assert status["progress"] == pytest.approx(41 / 400)
    assert status["end_time"] is not None
    assert status["model_name"] == "m"
    content = (models_dir / "m.zip").read_bytes()
    assert status["sha256"] == hashlib.sha256(content).hexdigest()
    assert ask(client, "m", [0.0, 0.0])["action"] in (0, 1)
    # Nothing comes after it: another job completes, and this one is as it was.
    train_to_end(client, **SHORT)
    assert get_status(client, job_id) == status
    assert (models_dir / "m.zip").read_bytes() == content


def test_during_an_update_it_ends_at_the_next_minibatch(
    client: TestClient, register_env: RegisterEnv, models_dir: Path
) -> None:
    n_steps = 0

    def count_step() -> None:
        nonlocal n_steps
        n_steps += 1

    request = {"n_steps": 8192, "n_epochs": 100, "batch_size": 64, "horizon": 4, "total_timesteps": 1_000_000}
    request["n_eval_episodes"] = 0
    job_id = train(client, env_name=register_env(lambda: LineEnv(count_step)), model_name="m", **request)
    # The rollout's metrics are published when it is over and the update begins: 12800 minibatches.
    wait_until(lambda: "time/fps" in get_status(client, job_id)["metrics"])
    n_steps_before = n_steps
    response = client.post(f"/training/{job_id}/stop")
    wait_until(lambda: get_status(client, job_id)["status"] == "stopped")
    assert response.json()["job_id"] == job_id
    assert n_steps <= n_steps_before + 1
    assert get_status(client, job_id)["model_name"] == "m"
    meta = model_file.from_bytes((models_dir / "m.zip").read_bytes()).meta
    assert meta["n_updates"] < 100


def test_the_model_of_that_name_is_left_alone_and_the_policy_kept_beside_it(
    client: TestClient, register_env: RegisterEnv, gate: Gate, models_dir: Path
) -> None:
    train_to_end(client, model_name="m", **SHORT)
    before = (models_dir / "m.zip").read_bytes()
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    job_id = train(client, env_name=env_name, model_name="m", total_timesteps=10_000_000, n_eval_episodes=0)
    gate.admit(100)
    wait_until(lambda: gate.n_arrived == 101)
    threading.Timer(0.1, gate.admit).start()
    assert stop(client, job_id) == 200
    status = wait_for_end(client, job_id)
    kept = status["model_name"]
    assert status["status"] == "stopped"
    assert kept == f"m-stopped-{job_id[:8]}"
    assert list_models(client) == {"m": "loaded", kept: "loaded"}
    assert ask(client, kept, [0.0, 0.0])["action"] in (0, 1)
    assert (models_dir / "m.zip").read_bytes() == before
    assert hashlib.sha256((models_dir / f"{kept}.zip").read_bytes()).hexdigest() == status["sha256"]


@one_slot
def test_a_queued_job_is_stopped_at_once_and_never_runs(
    client: TestClient, register_env: RegisterEnv, gate: Gate
) -> None:
    running = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), **SHORT)
    queued = train(client, model_name="m", **SHORT)
    response = client.post(f"/training/{queued}/stop")
    assert response.json() == {"message": "Training job stopped", "job_id": queued}
    status = get_status(client, queued)
    assert (status["status"], status["start_time"], status["model_name"]) == ("stopped", None, None)
    assert status["end_time"] is not None
    gate.admit()
    wait_for_end(client, running)
    train_to_end(client, **SHORT)
    assert get_status(client, queued) == status
    assert "m" not in list_models(client)


@one_slot
def test_stopping_twice_is_fine_and_stopping_what_has_ended_is_a_conflict(
    client: TestClient, register_env: RegisterEnv, gate: Gate
) -> None:
    def fail() -> None:
        raise ValueError("broken")

    completed = train_to_end(client, **SHORT)
    failed = train_to_end(client, env_name=register_env(lambda: LineEnv(fail), "Broken-v0"), **SHORT)
    running = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), **SHORT)
    wait_until(lambda: gate.n_arrived == 1)
    stopped = train(client, **SHORT)
    assert (completed["status"], failed["status"]) == ("completed", "failed")
    assert [stop(client, stopped), stop(client, stopped)] == [200, 200]
    for job in (completed, failed):
        response = client.post(f"/training/{job['job_id']}/stop")
        assert response.status_code == 409
        assert job["status"] in response.json()["detail"]
        assert get_status(client, job["job_id"]) == job
    gate.admit()
    wait_for_end(client, running)
