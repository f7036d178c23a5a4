"""The contract over HTTP: starting a training, and what is refused."""

import hashlib
import re
import sys
from itertools import accumulate
from json import dumps
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

import api
from service.extensions import ExtensionError
from service.schemas.training import TrainRequest
from service.settings import Settings
from tests.api.calls import ask, list_jobs, refuse, stop
from tests.conftest import RegisterEnv
from tests.environments import ForgetfulEnv, LineEnv
from tests.support import train_to_end, wait_for_end

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


@pytest.mark.parametrize("body", [None, b"", b"{}", b"null"])
def test_every_field_is_optional_and_so_is_the_body(client: TestClient, body: bytes | None) -> None:
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


def test_all_fields_together_are_kept(client: TestClient) -> None:
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
    client: TestClient, models_dir: Path, request_: dict[str, Any]
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
def test_what_breaks_the_schema_is_refused_and_starts_nothing(client: TestClient, request_: dict[str, Any]) -> None:
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


def test_naming_a_module_imports_nothing(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for env_name in ("planted_module:Env-v0", "planted_module", "planted_module/Env-v0", "./planted_module"):
        response = client.post("/train", json={"env_name": env_name})
        assert response.status_code == (422 if ":" in env_name else 400)
    assert "planted_module" not in sys.modules
    assert list_jobs(client) == []


def test_a_constructor_that_exits_does_not_end_the_server(client: TestClient, register_env: RegisterEnv) -> None:
    def exit_process() -> LineEnv:
        raise SystemExit(1)

    assert "SystemExit" in refuse(client, 400, "/train", env_name=register_env(exit_process))
    assert client.get("/health").status_code == 200


def test_a_reward_function_added_to_the_table_is_trained_with_by_name(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
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


def test_a_reward_that_tells_nothing_apart_is_warned_about(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def reward_nothing(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(state), 1)

    monkeypatch.setitem(api.REWARD_FUNCTIONS, "nothing", reward_nothing)
    status = train_to_end(client, reward_function_type="nothing", total_timesteps=3000, n_epochs=1, seed=0)
    assert status["status"] == "completed"
    (warning,) = status["warnings"]
    assert "no signal" in warning
    assert status["metrics"]["rollout/zero_std_group_fraction"] == 1.0


def test_a_reward_that_tells_branches_apart_is_not(client: TestClient) -> None:
    assert train_to_end(client, total_timesteps=20 * 32, seed=0)["warnings"] == []


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
