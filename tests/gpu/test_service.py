"""Jobs on a GPU, in worker processes, and what the server makes of their models without one."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from gymnasium import spaces

from grpo import GRPO
from service.settings import Settings
from tests.conftest import RegisterEnv
from tests.environments import SpaceEnv
from tests.support import PATIENT, get_status, list_workers, make_client, train, train_to_end, wait_for_end, wait_until

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: make test-gpu is for machines with one")

JOB = {"total_timesteps": 512, "n_steps": 64, "checkpoint_every": 128, "seed": 4, "n_eval_episodes": 2}
UPRIGHT = [0.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def gpu(models_dir: Path) -> Iterator[TestClient]:
    """A service with worker processes, two jobs at a time."""
    settings = Settings(models_dir=models_dir, executor="process", max_running_jobs=2, **PATIENT)
    with make_client(settings) as client:
        yield client


def check(status: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    """Expect a job to have ended well on a device."""
    assert status["status"] == "completed", status["error_message"]
    assert status["config"]["device"] == device
    return status


def ask(client: TestClient, name: str, observation: Any) -> dict[str, Any]:
    response = client.post("/inference", json={"model_name": name, "observation": observation})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def start_endless(client: TestClient, **request: Any) -> str:
    """Start a job that is far from its end, and wait until it has trained for a while."""
    job_id = train(client, **JOB | {"total_timesteps": 10_000_000, "device": "cuda"} | request)
    wait_until(lambda: get_status(client, job_id)["current_timesteps"] >= 256)
    return job_id


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_job_trains_on_the_gpu_and_its_model_is_served(gpu: TestClient, device: str) -> None:
    status = check(train_to_end(gpu, **JOB, device=device))
    answer = ask(gpu, status["model_name"], UPRIGHT)
    assert sum(answer["action_probs"]) == pytest.approx(1.0, abs=1e-6)


def test_a_job_asks_for_the_cpu_and_gets_it(gpu: TestClient) -> None:
    check(train_to_end(gpu, **JOB, device="cpu"), "cpu")


def test_two_jobs_share_the_gpu_and_end_as_one_alone_does(gpu: TestClient) -> None:
    alone = check(train_to_end(gpu, **JOB, device="cuda"))
    both = [train(gpu, **JOB, device="cuda") for _ in range(2)]
    expected = ask(gpu, alone["model_name"], UPRIGHT)["action_probs"]
    for job_id in both:
        status = check(wait_for_end(gpu, job_id))
        assert ask(gpu, status["model_name"], UPRIGHT)["action_probs"] == expected


def test_a_stopped_job_goes_on_where_it_was(gpu: TestClient) -> None:
    job_id = start_endless(gpu)
    assert gpu.post(f"/training/{job_id}/stop").status_code == 200
    stopped = wait_for_end(gpu, job_id)
    assert stopped["status"] == "stopped", stopped["error_message"]
    answer = gpu.post(f"/training/{job_id}/resume", json={})
    assert answer.status_code == 200, answer.text
    resumed = answer.json()["job_id"]
    wait_until(lambda: get_status(gpu, resumed)["current_timesteps"] > stopped["current_timesteps"])
    assert get_status(gpu, resumed)["config"]["device"] == "cuda"
    gpu.post(f"/training/{resumed}/stop")
    wait_for_end(gpu, resumed)


def test_a_job_goes_on_after_its_worker_was_killed(gpu: TestClient) -> None:
    job_id = start_endless(gpu)
    for worker in list_workers():
        os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: get_status(gpu, job_id)["n_restarts"] == 1)
    at = get_status(gpu, job_id)["current_timesteps"]
    wait_until(lambda: get_status(gpu, job_id)["current_timesteps"] > at + 256)
    gpu.post(f"/training/{job_id}/stop")
    status = wait_for_end(gpu, job_id)
    assert status["status"] == "stopped", status["error_message"]


def test_images_are_learned_from(gpu: TestClient, register_env: RegisterEnv) -> None:
    space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    env_name = register_env(partial(SpaceEnv, space, spaces.Discrete(2)))
    status = check(train_to_end(gpu, env_name=env_name, total_timesteps=128, n_steps=64, n_epochs=1, seed=0))
    assert status["config"]["preset"].startswith("general-image")
    space.seed(0)
    assert sum(ask(gpu, status["model_name"], space.sample().tolist())["action_probs"]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_job_begins_with_a_model_of_the_other_device(gpu: TestClient, first: str, then: str) -> None:
    begun = check(train_to_end(gpu, **JOB, device=first), first)
    check(train_to_end(gpu, **JOB, device=then, init_model=begun["model_name"]), then)


def test_a_model_of_the_gpu_is_evaluated_and_loaded_by_the_library(gpu: TestClient, models_dir: Path) -> None:
    name = check(train_to_end(gpu, **JOB, device="cuda"))["model_name"]
    answer = gpu.post(f"/models/{name}/evaluate", json={"n_episodes": 2})
    assert answer.status_code == 200, answer.text
    for device in ("cpu", "cuda"):
        model = GRPO.load(models_dir / f"{name}.zip", device=device)
        action = model.predict(np.array(UPRIGHT, np.float32), deterministic=True)[0]
        assert action == ask(gpu, name, UPRIGHT)["action"]


def test_the_defaults_solve_cartpole_on_the_gpu_too(gpu: TestClient) -> None:
    status = check(train_to_end(gpu, seed=0, device="cuda"))
    assert status["final_evaluation"]["mean_reward"] > 400
