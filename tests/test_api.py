"""The contract over HTTP: every endpoint, its fields, its defaults and its refusals."""

import ctypes
import hashlib
import os
import re
import shutil
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from http.client import HTTPConnection
from itertools import accumulate
from json import dumps, loads
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gymnasium import spaces
from pydantic import TypeAdapter
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd

import api
from grpo import GRPO
from grpo_core.options.presets import get_preset
from grpo_core.saving import model_file
from service.extensions import ExtensionError
from service.schemas.training import TrainRequest
from service.settings import Settings
from tests.conftest import RegisterEnv
from tests.grpo_core.values.test_fit import Line
from tests.support import (
    FINAL_STATUSES,
    PATIENCE_SECONDS,
    PATIENT,
    PROBLEM_FIELDS,
    ForgetfulEnv,
    Gate,
    LineEnv,
    SpaceEnv,
    get_status,
    list_workers,
    make_client,
    make_model,
    serve,
    train,
    train_to_end,
    wait_for_end,
    wait_until,
)

BALANCED = [0.1, 0.0, 0.05, 0.0]
CONTRACT_CONFIG = {
    "env_name": "CartPole-v1",
    "total_timesteps": 10_000,
    "learning_rate": 0.0003,
    "n_steps": 32,
    "batch_size": 64,
    "n_epochs": 10,
    "reward_function_type": "optimized_cartpole",
}
# What may be null in a configuration, because it then is switched off or has no limit.
NULLABLE_CONFIG = {
    "reward_functions",
    "horizon",
    "clip_range_high",
    "target_kl",
    "ref_sync_steps",
    "n_rollout_shards",
    "eval_freq",
    "checkpoint_every",
    "init_model",
    "stop_reward",
    "patience",
    "max_seconds",
}
LIVE_METRICS = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "rollout/zero_std_group_fraction",
    "time/fps",
    "train/entropy_loss",
    "train/clip_fraction",
}
SHORT: dict[str, Any] = {"total_timesteps": 64, "seed": 0}

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


def read_files(folder: Path) -> dict[Path, bytes]:
    """Read all files in a folder, but for the jobs' file, which the server writes at any time."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".jobs."))
    return {file: file.read_bytes() for file in files}


def list_jobs(client: TestClient) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = client.get("/training/jobs").json()["jobs"]
    return jobs


def list_models(client: TestClient) -> dict[str, str]:
    return {model["name"]: model["status"] for model in client.get("/models").json()["models"]}


def parse_time(text: str) -> datetime:
    parsed = datetime.fromisoformat(text)
    assert parsed.utcoffset() == timedelta(0)
    return parsed


@pytest.fixture
def models_dir(client: TestClient, tmp_path: Path) -> Path:
    return tmp_path / "models"


class TestServer:
    def test_the_root_says_what_there_is(self, client: TestClient) -> None:
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

    def test_health_counts_jobs_and_models(self, client: TestClient, register_env: RegisterEnv, gate: Gate) -> None:
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

    def test_the_published_schema_documents_every_route_and_its_errors(self, client: TestClient) -> None:
        schema = client.get("/openapi.json").json()
        documented = {(path, method) for path, methods in schema["paths"].items() for method in methods}
        assert documented >= {  # tests/test_documents.py compares all of them with API.md
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

    def test_without_settings_they_come_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("GRPO_MODELS_DIR", str(tmp_path / "elsewhere"))
        monkeypatch.setenv("GRPO_API_KEY", "a key of 22 characters")
        with TestClient(api.create_app(), base_url="http://localhost") as client:
            assert client.get("/models").status_code == 401
        assert (tmp_path / "elsewhere").is_dir()


class TestStartingTraining:
    @pytest.mark.parametrize("body", [None, b"", b"{}", b"null"])
    def test_every_field_is_optional_and_so_is_the_body(self, client: TestClient, body: bytes | None) -> None:
        headers = {"content-type": "application/json"} if body else {}
        response = client.post("/train", content=body, headers=headers)
        assert response.status_code == 200
        started = response.json()
        assert started.keys() == {"job_id", "message", "config", "config_origins", "warnings"}
        assert started["message"] == "Training started"
        config = started["config"]
        assert config.keys() == TrainRequest.model_fields.keys()
        assert {name: config[name] for name in CONTRACT_CONFIG} == CONTRACT_CONFIG
        assert {name for name, value in config.items() if value is None} <= NULLABLE_CONFIG
        assert (config["preset"], config["group_mode"], config["baseline"]) == ("none", "branch", "group")
        assert (config["n_envs"], config["group_size"], config["horizon"]) == (1, 2, 16)
        assert (config["gamma"], config["net_arch"]) == (0.99, [64, 64])
        assert config["device"] in ("cpu", "cuda")
        assert config["model_name"].startswith("CartPole-v1-")
        assert stop(client, started["job_id"]) == 200

    def test_all_fields_together_are_kept(self, client: TestClient) -> None:
        request = {
            "env_name": "CartPole-v1",
            "total_timesteps": 96,
            "learning_rate": 0.001,
            "n_steps": 48,
            "batch_size": 16,
            "n_epochs": 2,
            "reward_function_type": "simple_cartpole",
            "model_name": "my_model",
            "seed": 7,
            "n_envs": 2,
            "group_size": 4,
            "horizon": 6,
            "gamma": 0.9,
            "device": "cpu",
            "net_arch": [16],
        }
        response = client.post("/train", json=request)
        config = response.json()["config"]
        assert {name: config[name] for name in request} == request
        status = wait_for_end(client, response.json()["job_id"])
        assert status["config"] == config
        assert (status["status"], status["model_name"]) == ("completed", "my_model")

    @pytest.mark.parametrize(
        "request_",
        [
            {"env_name": "CartPole-v1"},
            {"env_name": "FrozenLake-v1", "n_steps": 256},
            {"env_name": "MountainCar-v0", "n_steps": 512, "horizon": 64},
            # The final evaluation is in the file and ends when its time is up, so its long episodes are few.
            {
                "env_name": "Acrobot-v1",
                "group_mode": "episode",
                "n_steps": 32,
                "horizon": 20,
                "normalize": True,
                "n_eval_episodes": 2,
            },
            {"eval_freq": 50, "stop_reward": 1000.0, "n_eval_episodes": 2},
            {"patience": 1, "n_eval_episodes": 2},
            {"reward_functions": {"environment": 0.3, "optimized_cartpole": 0.7, "simple_cartpole": 0.1}},
        ],
        ids=str,
    )
    def test_the_returned_configuration_repeats_the_job_exactly(
        self, client: TestClient, models_dir: Path, request_: dict[str, Any]
    ) -> None:
        first = client.post("/train", json={**request_, "total_timesteps": 128}).json()
        once = wait_for_end(client, first["job_id"])
        content = (models_dir / f"{once['model_name']}.zip").read_bytes()
        again = client.post("/train", json=first["config"]).json()
        assert again["config"] == first["config"]
        twice = wait_for_end(client, again["job_id"])
        assert twice["status"] == once["status"] == "completed"
        assert twice["sha256"] == once["sha256"] == hashlib.sha256(content).hexdigest()
        assert (models_dir / f"{twice['model_name']}.zip").read_bytes() == content

    @pytest.mark.parametrize(
        "request_",
        [
            {"total_timesteps": 0},
            {"total_timesteps": -1},
            {"total_timesteps": 10**18},
            {"total_timesteps": "3"},
            {"total_timesteps": True},
            {"total_timesteps": 3.5},
            {"learning_rate": float("nan")},
            {"learning_rate": float("inf")},
            {"learning_rate": 0},
            {"gamma": float("nan")},
            {"n_steps": 10**12},
            {"net_arch": [64] * 50},
            {"net_arch": [10**6]},
            {"batch_size": None},
            {"env_name": 5},
            {"env_name": "x" * 100_000},
            {"model_name": "../escaped"},
            {"model_name": "CON"},
            {"device": "tpu"},
            {"unknown_field": 1},
            {"group_mode": "tree"},
            {"normalize": {"clip_obs": 1}},
            {"reward_functions": {}},
            {"clip_range": 0},
            {"activation": "Tanh"},
        ],
        ids=lambda request: str(request)[:40],
    )
    def test_what_breaks_the_schema_is_refused_and_starts_nothing(
        self, client: TestClient, request_: dict[str, Any]
    ) -> None:
        # Sent as text, because the client refuses to write NaN.
        headers = {"content-type": "application/json"}
        response = client.post("/train", content=dumps(request_), headers=headers)
        assert response.status_code == 422
        body = response.json()
        assert isinstance(body["detail"], str)
        assert {error["field"].split(".")[0] for error in body["errors"]} == set(request_)
        assert list_jobs(client) == []

    @pytest.mark.parametrize(
        ("request_", "remedy"),
        [
            ({"env_name": "CartPole-v7"}, "did you mean 'CartPole-v"),
            ({"env_name": "NoSuchThing-v0"}, "NoSuchThing-v0"),
            ({"env_name": "GymV21Environment-v0"}, "cannot be created"),
            ({"env_name": "Blackjack-v1"}, "Discrete"),
            ({"reward_function_type": "nonsense"}, "'environment', 'optimized_cartpole', 'simple_cartpole'"),
            ({"env_name": "Acrobot-v1", "reward_function_type": "optimized_cartpole"}, "'environment'"),
            ({"env_name": "Forgetful-v0"}, "capture_state()"),
            ({"n_steps": 33}, "n_steps=32"),
            ({"n_steps": 32, "horizon": 5}, "n_steps=30"),
            ({"device": "cuda"}, "'cpu'"),
            ({"env_name": "Forgetful-v0", "group_mode": "branch"}, "capture_state()"),
            ({"env_name": "Forgetful-v0", "group_mode": "episode"}, "send horizon"),
            ({"preset": "Chess-v0"}, "'Pendulum-v1'"),
            ({"env_name": "Pendulum-v1", "n_steps": 1023}, "Preset 'Pendulum-v1' chose group_size"),
            ({"ref_sync_steps": 5}, "set kl_coef"),
            ({"baseline": "value", "bootstrap_value": False}, "use bootstrap_value=True"),
            ({"env_name": "Pendulum-v1", "group_mode": "action"}, "Discrete"),
            ({"reward_functions": {"simple_cartpole": 1.0}, "reward_function_type": "simple_cartpole"}, "one of them"),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_what_does_not_exist_or_fit_is_refused_with_the_remedy_and_starts_nothing(
        self,
        client: TestClient,
        register_env: RegisterEnv,
        monkeypatch: pytest.MonkeyPatch,
        request_: dict[str, Any],
        remedy: str,
    ) -> None:
        # What torch reports is replaced, so that the case is the same on a machine that has CUDA.
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        register_env(ForgetfulEnv, "Forgetful-v0")
        assert remedy in refuse(client, 400, "/train", **request_)
        assert list_jobs(client) == []

    def test_naming_a_module_imports_nothing(
        self, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "planted_module.py").write_text("raise SystemExit('imported')")
        monkeypatch.syspath_prepend(str(tmp_path))
        for env_name in ("planted_module:Env-v0", "planted_module", "planted_module/Env-v0", "./planted_module"):
            response = client.post("/train", json={"env_name": env_name})
            assert response.status_code == (422 if ":" in env_name else 400)
        assert "planted_module" not in sys.modules
        assert list_jobs(client) == []

    def test_a_constructor_that_exits_does_not_end_the_server(
        self, client: TestClient, register_env: RegisterEnv
    ) -> None:
        def exit_process() -> LineEnv:
            raise SystemExit(1)

        assert "SystemExit" in refuse(client, 400, "/train", env_name=register_env(exit_process))
        assert client.get("/health").status_code == 200

    def test_a_reward_function_added_to_the_table_is_trained_with_by_name(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []

        def go_right(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
            calls.append(len(action))
            return action.float()

        monkeypatch.setitem(api.REWARD_FUNCTIONS, "go_right", go_right)
        status = train_to_end(
            client,
            reward_function_type="go_right",
            total_timesteps=640,
            n_steps=64,
            learning_rate=0.01,
            gamma=0.0,
            seed=0,
            n_eval_episodes=0,  # values are fitted to the reward in further steps
        )
        assert status["status"] == "completed"
        # Once per rollout; what comes after that are the episodes that the values are checked on.
        assert status["current_timesteps"] in accumulate(calls)
        assert status["metrics"]["rollout/reward_mean"] > 0.8
        assert ask(client, status["model_name"])["action_probs"][1] > 0.8

    def test_a_reward_that_tells_nothing_apart_is_warned_about(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reward_nothing(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(state), 1)

        monkeypatch.setitem(api.REWARD_FUNCTIONS, "nothing", reward_nothing)
        status = train_to_end(client, reward_function_type="nothing", total_timesteps=3000, n_epochs=1, seed=0)
        assert status["status"] == "completed"
        (warning,) = status["warnings"]
        assert "no signal" in warning
        assert status["metrics"]["rollout/zero_std_group_fraction"] == 1.0

    def test_a_reward_that_tells_branches_apart_is_not(self, client: TestClient) -> None:
        assert train_to_end(client, total_timesteps=20 * 32, seed=0)["warnings"] == []


class TestEveryKindOfTraining:
    """Each of them over HTTP from the request to the action."""

    def test_observations_with_keys(self, client: TestClient, register_env: RegisterEnv) -> None:
        space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (36, 36, 3), np.uint8),
                "gear": spaces.Discrete(4),
                "speed": spaces.Box(-1.0, 1.0, (2,)),
            }
        )
        env_name = register_env(lambda: SpaceEnv(space, spaces.Discrete(3)))
        status = train_to_end(client, env_name=env_name, **SHORT, n_epochs=2, normalize=True)
        assert status["status"] == "completed", status["error_message"]
        observation = {"camera": np.zeros((36, 36, 3), int).tolist(), "gear": 3, "speed": [0.5, -0.5]}
        answer = ask(client, status["model_name"], observation)
        assert answer["action"] == int(np.argmax(answer["action_probs"]))
        # The networks' own order of axes is taken as well.
        turned = {**observation, "camera": np.zeros((3, 36, 36), int).tolist()}
        assert ask(client, status["model_name"], turned) == answer
        del observation["speed"]
        detail = refuse(client, 400, "/inference", model_name=status["model_name"], observation=observation)
        assert "['camera', 'gear', 'speed']" in detail

    def test_forbidden_actions(self, client: TestClient, register_env: RegisterEnv) -> None:
        env_name = register_env(lambda: SpaceEnv(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3), [1, 0, 0]))
        status = train_to_end(client, env_name=env_name, **SHORT)
        assert status["status"] == "completed", status["error_message"]
        for masks, allowed in (([1, 0, 0], {0}), ([False, True, True], {1, 2}), ([[0, 0, 1]], {2})):
            for deterministic in (True, False):
                answer = ask(client, status["model_name"], [0.1, 0.2], action_masks=masks, deterministic=deterministic)
                assert answer["action"] in allowed
                assert {i for i, p in enumerate(answer["action_probs"]) if p > 0} == allowed
        model = {"model_name": status["model_name"], "observation": [0.1, 0.2]}
        assert "3 flags in one list" in refuse(client, 400, "/inference", **model, action_masks=[1, 0])
        assert "at least one in every component" in refuse(client, 400, "/inference", **model, action_masks=[0, 0, 0])
        assert "action_masks" in refuse(client, 422, "/inference", **model, action_masks=[2, 0, 0])

    def test_several_choices_and_switches_at_once(self, client: TestClient, register_env: RegisterEnv) -> None:
        cases: list[tuple[spaces.Space[Any], tuple[int, ...]]] = [
            (spaces.MultiDiscrete([3, 2]), (3, 2)),
            (spaces.MultiBinary(3), ()),
        ]
        for i, (space, shape) in enumerate(cases):
            env_name = register_env(partial(SpaceEnv, spaces.MultiBinary(4), space), f"Choices-v{i}")
            status = train_to_end(client, env_name=env_name, **SHORT)
            assert status["status"] == "completed", status["error_message"]
            answer = ask(client, status["model_name"], [0, 1, 1, 0])
            assert space.contains(np.array(answer["action"], space.dtype))
            probs = answer["action_probs"]
            if shape:
                assert tuple(map(len, probs)) == shape
                assert [sum(part) for part in probs] == pytest.approx([1.0, 1.0], abs=1e-6)
            else:
                assert answer["action"] == [int(p > 0.5) for p in probs]

    def test_images(self, client: TestClient, register_env: RegisterEnv) -> None:
        space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
        env_name = register_env(lambda: SpaceEnv(space, spaces.Discrete(2)))
        status = train_to_end(client, env_name=env_name, total_timesteps=16, n_steps=16, n_epochs=1, seed=0)
        assert status["status"] == "completed", status["error_message"]
        space.seed(0)
        image = space.sample()
        answer = ask(client, status["model_name"], image.tolist())
        assert ask(client, status["model_name"], image.transpose(2, 0, 1).tolist()) == answer
        model = {"model_name": status["model_name"]}
        detail = refuse(client, 400, "/inference", **model, observation=(image / 255.0).tolist())
        assert "integers from 0 to 255" in detail
        assert "[4, 84, 84]" in refuse(client, 400, "/inference", **model, observation=image[:80].tolist())

    def test_a_preset_in_a_few_steps(self, client: TestClient) -> None:
        started = client.post("/train", json={"env_name": "FrozenLake-v1", "total_timesteps": 1024, "seed": 0}).json()
        assert started["config"]["preset"] == "FrozenLake-v1"
        preset = get_preset("FrozenLake-v1")
        assert preset is not None
        assert started["config"]["n_steps"] == preset.arguments["n_steps"]
        status = wait_for_end(client, started["job_id"])
        assert status["status"] == "completed", status["error_message"]
        assert sum(ask(client, status["model_name"], 0)["action_probs"]) == pytest.approx(1.0, abs=1e-6)

    @pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
    def test_whole_episodes_of_a_simulator_that_cannot_be_restored(self, client: TestClient) -> None:
        pytest.importorskip("Box2D")
        request = {"env_name": "LunarLander-v3", "total_timesteps": 256, "n_steps": 256, "seed": 0}
        status = train_to_end(client, **request, preset="none")
        assert status["status"] == "completed", status["error_message"]
        assert status["config"]["group_mode"] == "episode"
        assert status["config"]["horizon"] is None
        (warning,) = status["warnings"]
        assert "whole episodes" in warning
        assert status["metrics"].keys() >= LIVE_METRICS
        assert ask(client, status["model_name"], [0.0] * 8)["action"] in range(4)
        assert "LunarLander" in refuse(client, 400, "/train", **request, group_mode="branch")

    def test_the_statistics_of_normalisation_are_applied_to_what_is_asked(
        self, client: TestClient, models_dir: Path
    ) -> None:
        status = train_to_end(
            client, env_name="MountainCar-v0", total_timesteps=512, n_steps=512, n_epochs=1, normalize=True, seed=0
        )
        assert status["status"] == "completed", status["error_message"]
        env = make_vec_env("MountainCar-v0")
        model = GRPO.load(models_dir / status["model_name"], env=env, device="cpu")
        vec_normalize = model.get_vec_normalize_env()
        assert vec_normalize is not None
        assert isinstance(vec_normalize.obs_rms, RunningMeanStd)
        assert abs(vec_normalize.obs_rms.mean[0] + 0.5) < 0.1  # where the valley is
        actions = set()
        for observation in ([-0.5, 0.0], [0.4, 0.05], [-1.1, -0.03], [-0.6, 0.02]):
            answer = ask(client, status["model_name"], observation)
            normalized = vec_normalize.normalize_obs(np.array([observation], np.float32))
            assert isinstance(normalized, np.ndarray)
            action, _ = model.predict(normalized, deterministic=True)
            assert answer["action"] == action[0]
            # What is served; the answer shows values only where they mean something, which 512 steps do not teach.
            (value,) = model.make_numpy_actor().values(np.array([observation], np.float32))
            expected = model.policy.predict_values(torch.as_tensor(normalized)).item()
            assert value == pytest.approx(expected, abs=1e-4)
            actions.add(str(answer["action_probs"]))
        assert len(actions) == 4

    def test_several_rewards(self, client: TestClient) -> None:
        status = train_to_end(client, **SHORT, reward_functions={"environment": 1.0, "simple_cartpole": -1.0})
        metrics = status["metrics"]
        # CartPole pays 1 per step.
        assert metrics["rollout/reward_mean"] == pytest.approx(1.0 - metrics["rewards/simple_cartpole_mean"], abs=1e-5)


class TestFollowingTraining:
    def test_the_status_tells_where_the_job_is(self, client: TestClient) -> None:
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
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
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

    def test_metrics_appear_while_the_job_runs(self, client: TestClient, register_env: RegisterEnv, gate: Gate) -> None:
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
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
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
    def test_the_list_comes_in_pages_and_by_status(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
    ) -> None:
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
    def test_a_page_that_cannot_be_is_refused(self, client: TestClient, query: str, status_code: int) -> None:
        response = client.get(f"/training/jobs?{query}")
        assert response.status_code == status_code
        assert isinstance(response.json()["detail"], str)
        assert len(response.text) < 900

    def test_a_job_is_found_by_what_is_written_on_it(self, client: TestClient) -> None:
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
    def test_what_cannot_be_written_on_a_job_is_refused(self, client: TestClient, labels: dict[str, Any]) -> None:
        job_id = train_to_end(client, **SHORT)["job_id"]
        before = list_jobs(client)
        assert client.patch(f"/training/{job_id}", json=labels).status_code == 422
        assert list_jobs(client) == before

    def test_only_an_ended_job_is_deleted_and_its_model_stays(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
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
    def test_a_job_that_never_was_is_not_found(self, client: TestClient, job_id: str) -> None:
        for method, action in (("GET", "status"), ("GET", "metrics"), ("POST", "stop")):
            response = client.request(method, f"/training/{job_id}/{action}")
            assert response.status_code == 404
            assert response.json().keys() == PROBLEM_FIELDS
            assert len(response.text) < 700

    @pytest.mark.parametrize("overrides", [{"max_kept_jobs": 2}], ids=["two kept"])
    def test_the_oldest_finished_jobs_are_forgotten(self, client: TestClient) -> None:
        jobs = [train_to_end(client, **SHORT)["job_id"] for _ in range(4)]
        assert [job["job_id"] for job in list_jobs(client)] == jobs[1:]
        assert client.get(f"/training/{jobs[0]}/status").status_code == 404


@pytest.mark.parametrize("overrides", [{"executor": "process"}], ids=["processes"])
class TestWorkerProcesses:
    def test_jobs_train_stop_and_answer_as_ever(self, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.http.routes.training._STOP_WAIT_SECONDS", PATIENCE_SECONDS)
        endless = train(client, total_timesteps=10_000_000, model_name="endless")
        status = train_to_end(client, model_name="m", **SHORT)
        assert (status["status"], status["progress"], status["model_name"]) == ("completed", 1.0, "m")
        assert status["metrics"].keys() >= LIVE_METRICS
        assert ask(client, "m")["action"] in (0, 1)
        wait_until(lambda: get_status(client, endless)["current_timesteps"] > 0)
        assert client.post(f"/training/{endless}/stop").json()["message"] == "Training job stopped"
        assert get_status(client, endless)["status"] == "stopped"
        assert ask(client, "endless")["action"] in (0, 1)

    def test_lambdas_and_what_is_defined_in_a_function_train_as_well(
        self, client: TestClient, register_env: RegisterEnv, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Mine(LineEnv):
            pass

        monkeypatch.setitem(api.REWARD_FUNCTIONS, "mine", lambda state, action, next_state: state[:, :1])
        status = train_to_end(client, env_name=register_env(Mine), reward_function_type="mine", **SHORT)
        assert (status["status"], status["warnings"]) == ("completed", [])

    def test_what_cannot_be_sent_to_a_worker_is_refused_with_the_remedy(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        detail = refuse(client, 400, "/train", env_name=env_name)
        assert "the registration of env_name 'Line-v0' cannot be sent to a worker process (cannot pickle" in detail
        assert "such as locks and open files" in detail
        monkeypatch.setitem(api.REWARD_FUNCTIONS, "mine", lambda state, action, next_state: gate)
        assert "a reward function cannot be sent" in refuse(client, 400, "/train", reward_function_type="mine")
        assert list_jobs(client) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (partial(os._exit, 3), "exited with status 3"),
        (partial(ctypes.string_at, 0), "signal SIGSEGV"),
        (partial(signal.raise_signal, signal.SIGKILL), "memory runs out"),
    ],
    ids=["exit", "segfault", "kill"],
)
@pytest.mark.parametrize("overrides", [{"executor": "process"}], ids=["processes"])
def test_a_constructor_that_ends_its_process_costs_one_refusal(
    client: TestClient, register_env: RegisterEnv, fault: Callable[[], Any], said: str
) -> None:
    def build() -> LineEnv:
        fault()
        return LineEnv()

    assert said in refuse(client, 400, "/train", env_name=register_env(build))
    assert train_to_end(client, **SHORT)["status"] == "completed"


@pytest.mark.parametrize("overrides", [{"executor": "process", "task_seconds": 1}], ids=["processes"])
def test_a_constructor_that_hangs_costs_one_refusal(client: TestClient, register_env: RegisterEnv) -> None:
    def build() -> LineEnv:
        time.sleep(1000)
        return LineEnv()

    assert "longer than 1 s, the limit that GRPO_TASK_SECONDS" in refuse(
        client, 400, "/train", env_name=register_env(build)
    )
    wait_until(lambda: list_workers() == [])


@pytest.mark.parametrize("overrides", [{"max_queued_jobs": 62}], ids=["64 places"])
def test_while_64_requests_are_planned_others_are_answered_and_none_is_refused(
    app: FastAPI, register_env: RegisterEnv
) -> None:
    gate = Gate()

    def build() -> LineEnv:
        gate.pass_through()
        return LineEnv()

    def call(method: str, path: str, body: dict[str, Any] | None = None) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        connection.request(method, path, None if body is None else dumps(body), {"Content-Type": "application/json"})
        status = connection.getresponse().status
        connection.close()
        return status

    # Proving that a simulator can be restored takes a tenth of a second, twice a job; episodes need no proof.
    request = {"env_name": register_env(build), "total_timesteps": 4, "n_steps": 4, "n_eval_episodes": 0}
    request |= {"group_mode": "episode", "horizon": 2}
    with serve(app) as port, ThreadPoolExecutor(64) as pool:
        statuses = [pool.submit(call, "POST", "/train", {**request, "n_epochs": 1 + i % 100}) for i in range(64)]
        wait_until(lambda: gate.n_arrived == 2)
        assert call("GET", "/models") == call("GET", "/training/jobs") == 200
        gate.admit()
        assert {status.result(PATIENCE_SECONDS) for status in statuses} == {200}


class TestStopping:
    def test_during_a_rollout_it_ends_at_the_next_step_for_good(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate, models_dir: Path
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
        self, client: TestClient, register_env: RegisterEnv, models_dir: Path
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
        self, client: TestClient, register_env: RegisterEnv, gate: Gate, models_dir: Path
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
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
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
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
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


class TestNamesAndSlots:
    def test_a_model_is_replaced_when_its_retraining_completes_and_no_sooner(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate, models_dir: Path
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
        self, client: TestClient, register_env: RegisterEnv, gate: Gate, other_name: str
    ) -> None:
        job_id = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), model_name="m", **SHORT)
        assert job_id in refuse(client, 409, "/train", model_name=other_name, **SHORT)
        assert [job["job_id"] for job in list_jobs(client)] == [job_id]

    def test_a_name_that_differs_from_a_models_by_case_alone_is_taken(self, client: TestClient) -> None:
        train_to_end(client, model_name="Policy", **SHORT)
        assert "'Policy' only in case" in refuse(client, 409, "/train", model_name="policy", **SHORT)
        assert train_to_end(client, model_name="Policy", **SHORT)["status"] == "completed"

    @one_slot
    def test_with_slots_and_queue_full_more_jobs_are_told_to_come_back(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
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

    def test_a_server_that_shuts_down_takes_no_more_jobs(self, client: TestClient, app: FastAPI) -> None:
        app.state.service.registry.shutdown(1.0)
        response = client.post("/train", json=SHORT)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json().keys() == PROBLEM_FIELDS

    def test_shutting_down_stops_the_jobs_and_keeps_their_policies(
        self, app: FastAPI, register_env: RegisterEnv, tmp_path: Path
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
        self,
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

    def test_an_environment_that_observes_nan_fails_its_job(
        self, client: TestClient, register_env: RegisterEnv
    ) -> None:
        nan = np.full(2, np.nan, np.float32)
        status = train_to_end(client, env_name=register_env(lambda: LineEnv(lambda: nan)), **SHORT)
        assert status["status"] == "failed"
        assert "LineEnv.step() returned array([nan, nan], dtype=float32) (not finite" in status["error_message"]


class TestInference:
    @pytest.mark.parametrize(
        ("env_name", "observation", "n_actions"),
        [
            ("CartPole-v1", BALANCED, 2),
            ("Acrobot-v1", [1.0, 0.0, 1.0, 0.0, 0.0, 0.0], 3),
            ("FrozenLake-v1", 5, 4),
        ],
    )
    def test_a_choice_is_an_integer_with_the_probability_of_each(
        self, client: TestClient, env_name: str, observation: Any, n_actions: int
    ) -> None:
        status = train_to_end(client, env_name=env_name, total_timesteps=256, n_steps=64, seed=0)
        assert status["status"] == "completed", status["error_message"]
        answer = ask(client, status["model_name"], observation)
        assert answer.keys() == {"action", "action_probs", "value"}
        assert type(answer["action"]) is int
        assert answer["value"] is None or type(answer["value"]) is float
        probs = answer["action_probs"]
        assert len(probs) == n_actions
        assert sum(probs) == pytest.approx(1.0, abs=1e-6)
        assert answer["action"] == int(np.argmax(probs))
        assert ask(client, status["model_name"], observation, deterministic=True) == answer

    def test_a_value_foretells_what_follows(self, client: TestClient, register_env: RegisterEnv) -> None:
        request = {
            "total_timesteps": 256,
            "n_steps": 64,
            "group_mode": "episode",
            "horizon": 32,
            "gamma": 0.9,
            "seed": 0,
        }
        status = train_to_end(client, env_name=register_env(Line), **request)
        assert status["status"] == "completed", status["error_message"]
        name = status["model_name"]
        check = client.get(f"/models/{name}").json()["value_check"]
        assert check["is_meaningful"] is True
        assert check["gamma"] == 0.9
        # Each step costs the distance left after it, at a speed of 50: from 300 on 250, 200, 150, 100, 50, 0.
        near, far = (ask(client, name, [left, 50.0])["value"] for left in (300.0, 850.0))
        expected = [-sum(0.9**t * (left - 50 * (t + 1)) for t in range(left // 50)) for left in (300, 850)]
        assert [near, far] == pytest.approx(expected, rel=0.25)

    def test_a_continuous_action_is_a_list_within_its_bounds(self, client: TestClient) -> None:
        status = train_to_end(client, env_name="Pendulum-v1", total_timesteps=256, n_steps=64, seed=0)
        assert status["status"] == "completed", status["error_message"]
        for deterministic in (True, False):
            for observation in ([1.0, 0.0, 0.0], [-1.0, 0.0, 8.0], [0.0, 1.0, -8.0]):
                answer = ask(client, status["model_name"], observation, deterministic=deterministic)
                assert isinstance(answer["action"], list)
                (torque,) = answer["action"]
                assert -2.0 <= torque <= 2.0
                assert answer["action_probs"] is None
                assert answer["value"] is None or np.isfinite(answer["value"])

    @pytest.mark.parametrize(
        ("env_name", "observation", "expected"),
        [
            ("CartPole-v1", [0.1, 0.0, 0.05], "shape [4], but got [3]"),
            ("CartPole-v1", [], "shape [4], but got [0]"),
            ("CartPole-v1", [BALANCED], "shape [4], but got [1, 4]"),
            ("CartPole-v1", 1.0, "shape [4], but got []"),
            ("FrozenLake-v1", 16, "from 0 to 15"),
            ("FrozenLake-v1", -1, "from 0 to 15"),
            ("FrozenLake-v1", 1.0, "from 0 to 15"),
            ("FrozenLake-v1", [1], "from 0 to 15"),
        ],
    )
    def test_an_observation_that_does_not_fit_the_model_is_refused_with_what_would(
        self, client: TestClient, models_dir: Path, env_name: str, observation: Any, expected: str
    ) -> None:
        make_model(env_name).save(models_dir / "m.zip")
        assert expected in refuse(client, 400, "/inference", model_name="m", observation=observation)

    @pytest.mark.parametrize(
        "observation",
        [
            "NaN",
            "Infinity",
            "[NaN, 0, 0, 0]",
            "[-Infinity, 0, 0, 0]",
            "[1e999, 0, 0, 0]",
            "[1e39, 0, 0, 0]",
            "[true, 0, 0, 0]",
            '["0.1", 0, 0, 0]',
            '"[0, 0, 0, 0]"',
            "null",
            "{}",
            "[[0, 0], [0]]",
            "[[[[[0]]]]]",
            "[" * 900 + "0" + "]" * 900,
            "[" + "1" * 5000 + ", 0, 0, 0]",
            "[" + "1" * 400 + ", 0, 0, 0]",
            "[" + "0," * 65_536 + "0]",
        ],
        ids=lambda observation: observation[:24],
    )
    def test_an_observation_that_is_none_breaks_the_schema(
        self, client: TestClient, models_dir: Path, observation: str
    ) -> None:
        make_model("CartPole-v1").save(models_dir / "m.zip")
        body = '{"model_name": "m", "observation": ' + observation + "}"
        response = client.post("/inference", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 422
        assert isinstance(response.json()["detail"], str)
        assert len(response.text) < 2000
        assert "1111" not in response.text

    @pytest.mark.parametrize(
        "request_",
        [
            {},
            {"model_name": "m"},
            {"observation": BALANCED},
            {"model_name": "m", "observation": BALANCED, "deterministic": 1},
            {"model_name": "m", "observation": BALANCED, "deterministic": "true"},
            {"model_name": "m", "observation": BALANCED, "deterministic": None},
            {"model_name": "m", "observation": BALANCED, "extra": 1},
            {"model_name": "../m", "observation": BALANCED},
            {"model_name": 5, "observation": BALANCED},
        ],
        ids=str,
    )
    def test_a_request_that_breaks_the_schema_is_refused(self, client: TestClient, request_: dict[str, Any]) -> None:
        refuse(client, 422, "/inference", **request_)

    def test_a_model_that_never_was_is_not_found(self, client: TestClient) -> None:
        assert "no model 'none'" in refuse(client, 404, "/inference", model_name="none", observation=BALANCED)

    def test_a_model_still_in_training_is_not_found_and_the_answer_says_so(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
    ) -> None:
        job_id = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), model_name="m", **SHORT)
        wait_until(lambda: gate.n_arrived == 1)
        detail = refuse(client, 404, "/inference", model_name="m", observation=[0.0, 0.0])
        assert job_id in detail
        assert "running" in detail
        assert job_id not in refuse(client, 404, "/inference", model_name="M", observation=[0.0, 0.0])
        gate.admit()
        wait_for_end(client, job_id)
        ask(client, "m", [0.0, 0.0])

    def test_drawing_an_action_reaches_all_of_them_and_choosing_only_one(
        self, client: TestClient, models_dir: Path
    ) -> None:
        make_model("CartPole-v1").save(models_dir / "m.zip")
        drawn = {ask(client, "m", deterministic=False)["action"] for _ in range(60)}
        chosen = {ask(client, "m", deterministic=True)["action"] for _ in range(20)}
        assert (drawn, len(chosen)) == ({0, 1}, 1)

    @pytest.mark.parametrize("content", [b"", b"no zip file"])
    def test_a_damaged_file_is_a_conflict(self, client: TestClient, models_dir: Path, content: bytes) -> None:
        (models_dir / "m.zip").write_bytes(content)
        assert list_models(client) == {"m": "corrupt"}
        assert "damaged" in refuse(client, 409, "/inference", model_name="m", observation=BALANCED)

    def test_a_file_of_another_algorithm_is_a_conflict(self, client: TestClient, models_dir: Path) -> None:
        with zipfile.ZipFile(models_dir / "m.zip", "w") as archive:
            archive.writestr("data", "{}")
        assert list_models(client) == {"m": "unsafe"}
        assert "not saved by GRPO" in refuse(client, 409, "/inference", model_name="m", observation=BALANCED)

    @pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
    def test_what_is_no_regular_file_is_no_model(
        self, client: TestClient, models_dir: Path, make: Callable[[Path], None]
    ) -> None:
        make(models_dir / "m.zip")
        assert list_models(client) == {}
        assert "did you mean" not in refuse(client, 404, "/inference", model_name="m", observation=BALANCED)
        assert client.delete("/models/m").status_code == 404
        assert os.path.lexists(models_dir / "m.zip")

    def test_sixty_four_clients_are_each_given_the_one_right_answer_while_a_job_trains(
        self, app: FastAPI, tmp_path: Path
    ) -> None:
        rng = np.random.default_rng(0)
        observations = [rng.uniform(-1.0, 1.0, 4).round(3).tolist() for _ in range(64)]
        for seed in (0, 1):
            make_model("CartPole-v1", seed).save(tmp_path / "models" / f"m{seed}.zip")
        requests = [dumps({"model_name": f"m{i % 2}", "observation": o}) for i, o in enumerate(observations)]
        headers = {"Content-Type": "application/json"}

        def ask_for(connection: HTTPConnection, body: str) -> Any:
            connection.request("POST", "/inference", body, headers)
            response = connection.getresponse()
            return response.status, loads(response.read())

        def ask_many(first: int) -> list[tuple[int, Any]]:
            connection = HTTPConnection("127.0.0.1", port)
            places = [(first + i) % len(requests) for i in range(12)]
            start.wait()
            answers = [(place, ask_for(connection, requests[place])) for place in places]
            connection.close()
            return answers

        start = threading.Barrier(64)
        with serve(app) as port:
            connection = HTTPConnection("127.0.0.1", port)
            expected = [ask_for(connection, request) for request in requests]
            connection.request("POST", "/train", dumps({"total_timesteps": 10_000_000}), headers)
            job_id = loads(connection.getresponse().read())["job_id"]
            job = app.state.service.registry.get(job_id)
            wait_until(lambda: job.describe().current_timesteps > 0)
            with ThreadPoolExecutor(64) as pool:
                answers = [answer for answers in pool.map(ask_many, range(64)) for answer in answers]
            assert job.describe().status == "running"
            connection.close()
        assert len(answers) == 768
        assert {status for status, _ in expected} == {200}
        assert [(place, answer) for place, answer in answers if answer != expected[place]] == []
        # The answers differ from one another, so that a mix-up would show.
        assert len({str(answer) for answer in expected}) == 64


class TestModels:
    def test_models_are_listed_by_name_with_where_they_are(self, client: TestClient, models_dir: Path) -> None:
        assert client.get("/models").json() == {"models": []}
        train_to_end(client, model_name="my_model", **SHORT)
        make_model("CartPole-v1").save(models_dir / "a_model.zip")
        assert client.get("/models").json() == {
            "models": [{"name": "a_model", "status": "saved"}, {"name": "my_model", "status": "loaded"}]
        }
        ask(client, "a_model")
        assert list_models(client) == {"a_model": "loaded", "my_model": "loaded"}

    def test_a_restarted_server_has_the_models_and_the_same_answers(self, tmp_path: Path) -> None:
        settings = Settings(models_dir=tmp_path / "models", **PATIENT)
        with make_client(settings) as client:
            train_to_end(client, model_name="m", **SHORT)
            before = ask(client, "m")
            jobs = list_jobs(client)
        with make_client(settings) as client:
            assert list_models(client) == {"m": "saved"}
            assert ask(client, "m") == before
            assert list_jobs(client) == jobs != []

    def test_a_deleted_model_is_gone(self, client: TestClient, models_dir: Path) -> None:
        train_to_end(client, model_name="m", **SHORT)
        response = client.delete("/models/m")
        assert (response.status_code, response.json()) == (200, {"message": "Model deleted", "model_name": "m"})
        assert list(models_dir.glob("*.zip")) == []
        assert client.delete("/models/m").status_code == 404
        refuse(client, 404, "/inference", model_name="m", observation=BALANCED)
        assert list_models(client) == {}

    def test_a_model_is_not_deleted_while_a_job_will_replace_it(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
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

    def test_no_name_deletes_anything_else(self, app: FastAPI, tmp_path: Path) -> None:
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

    def test_a_folder_that_disappears_is_no_server_error(self, client: TestClient, models_dir: Path) -> None:
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


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("with space", "pow", "the name 'with space', which no request can give; choose up to 64 letters"),
        ("a" * 65, "pow", "choose up to 64 letters"),
        (5, "pow", "the name 5,"),
        ("environment", "pow", "the name 'environment', which stands for the environment's own reward; choose another"),
        ("five", "5", "'five', which is of type int and cannot be called; give REWARD_FUNCTIONS a function"),
    ],
)
def test_a_reward_function_that_no_request_can_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | int, function: str, message: str
) -> None:
    monkeypatch.setattr(api, "REWARD_FUNCTIONS", dict(api.REWARD_FUNCTIONS))
    (tmp_path / "my_odd_rewards.py").write_text(f"import api\napi.REWARD_FUNCTIONS[{name!r}] = {function}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_odd_rewards", raising=False)
    with pytest.raises(ExtensionError, match=f"the module 'my_odd_rewards' adds .*{re.escape(message)}"):
        api.create_app(Settings(models_dir=tmp_path, env_modules=("my_odd_rewards",)))
