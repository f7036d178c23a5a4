"""The published schema holds: what it promises is what is answered, and its examples work as they stand."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from benchmarks.lib.server import Server, serve
from grpo import GRPO
from service.http import examples
from tests.support import FINAL_STATUSES, PATIENT_VARIABLES, wait_until

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Methods whose requests have a body.
WITH_BODY = ("post", "put")
# It takes hardly any processor time: a job of it holds up the others, which hundreds of requests start.
SLOW_ENV = """
import time

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class SlowCartPole(CartPoleEnv):
    def step(self, action):
        time.sleep(0.02)
        return super().step(action)


gym.register("SlowCartPole-v0", SlowCartPole, max_episode_steps=20)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in a process of its own, with a model of the name that the examples have, and one to delete."""
    folder = tmp_path_factory.mktemp("models")
    # Untrained: its episodes are short, so that even a thousand of them are soon played.
    model = GRPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu").to_bytes(env_name="CartPole-v1")
    for name in (examples.MODEL_NAME, "gone"):
        (folder / f"{name}.zip").write_bytes(model)
    runs, modules = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("modules")
    (modules / "slow_envs.py").write_text(SLOW_ENV)
    settings = {
        **PATIENT_VARIABLES,
        "GRPO_MAX_RUNNING_JOBS": "1",
        "GRPO_MAX_QUEUED_JOBS": "1000",
        "GRPO_TENSORBOARD_DIR": str(runs),
        "GRPO_ENV_MODULES": "slow_envs",
        "PYTHONPATH": str(modules),
    }
    with serve(folder, GRPO_EXECUTOR="thread", **settings) as server:
        yield server


@pytest.fixture(scope="module")
def ended_job(server: Server) -> str:
    """The id of a job whose stream of events ends at once."""
    job_id: str = server.call("POST", "/train", {"total_timesteps": 32, "model_name": "ended"})["job_id"]
    wait_until(lambda: server.call("GET", f"/training/{job_id}/status")["status"] == "completed")
    return job_id


def run_schemathesis(server: Server, ended_job: str, folder: Path, *options: str) -> str:
    """Run Schemathesis against a server and return what it printed; it has to be content."""
    program, config = Path(sys.executable).with_name("st"), Path(__file__).with_name("schemathesis.toml")
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    command = [str(program), "--config-file", str(config), "run", url, "--checks", CHECKS]
    finished = subprocess.run(
        [*command, "--generation-deterministic", "--no-color", *options],
        cwd=folder,
        env=os.environ | {"ENDED_JOB": ended_job},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_every_example_is_answered_as_the_schema_says(server: Server, ended_job: str, tmp_path: Path) -> None:
    printed = run_schemathesis(server, ended_job, tmp_path, "--phases", "examples")
    assert "Examples" in printed


def test_odd_requests_are_answered_as_the_schema_says(server: Server, ended_job: str, tmp_path: Path) -> None:
    server.call("POST", "/train", {"env_name": "SlowCartPole-v0", "total_timesteps": 10**7, "model_name": "slow"})
    # A hundred. Those at every bound of the schema are several hundred more, and asked for in tests/fuzz/test_api.py.
    run_schemathesis(server, ended_job, tmp_path, "--phases", "fuzzing", "--max-examples", "3")


def list_operations(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, each) for path, methods in schema["paths"].items() for method, each in methods.items()]


def test_every_parameter_of_a_path_and_every_body_has_an_example(client: TestClient) -> None:
    for method, path, operation in list_operations(client.get("/openapi.json").json()):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                assert "examples" in parameter, f"{parameter['name']} of {method} {path}"
        if method in WITH_BODY and "requestBody" in operation:
            body = operation["requestBody"]["content"].get("application/json", {})
            assert not body or {"example", "examples"} & body.keys(), f"{method} {path}"


def get_first_body(schema: dict[str, Any], path: str) -> Any:
    """Return the body that Swagger UI fills in for a POST."""
    described = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return next(iter(described["examples"].values()))["value"]


def test_the_first_examples_lead_from_a_training_to_an_action(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    (job_id,) = schema["paths"]["/training/{job_id}/status"]["get"]["parameters"]
    status_path = f"/training/{next(iter(job_id['examples'].values()))['value']}/status"

    assert client.post("/train", json=get_first_body(schema, "/train")).status_code == 200
    wait_until(lambda: client.get(status_path).json()["status"] in FINAL_STATUSES)
    assert client.get(status_path).json()["status"] == "completed"

    answer = client.post("/inference", json=get_first_body(schema, "/inference")).json()
    assert answer["action"] in (0, 1)
    assert sum(answer["action_probs"]) == pytest.approx(1.0)
