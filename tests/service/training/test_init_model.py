"""Training goes on from a model that was trained before."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from grpo_core.saving import model_file
from grpo_core.saving.model_file import ModelContent
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.models import make_model
from tests.service.models.test_replacement import upload
from tests.service.training.jobs import assert_trained_alike
from tests.support import get_status, train, train_to_end, wait_until

BASE = {"env_name": "CartPole-v1", "total_timesteps": 256, "n_steps": 64, "n_eval_episodes": 0, "seed": 1}


@pytest.fixture
def base(client: TestClient) -> dict[str, Any]:
    return train_to_end(client, **BASE, net_arch=[16], activation="relu", normalize=True, model_name="base")


def read(app: FastAPI, name: str) -> ModelContent:
    path = Path(app.state.service.settings.models_dir) / f"{name}.zip"
    return model_file.from_bytes(path.read_bytes(), with_optimizer=True)


def train_on(client: TestClient, **request: Any) -> dict[str, Any]:
    return train_to_end(client, **{**BASE, "init_model": "base", "model_name": "onward", **request})


def test_weights_optimizer_and_statistics_are_where_training_begins(
    client: TestClient, app: FastAPI, base: dict[str, Any]
) -> None:
    status = train_on(client, learning_rate=1e-30, n_epochs=1)
    assert status["status"] == "completed"
    before, after = read(app, "base"), read(app, "onward")
    assert before.weights.keys() == after.weights.keys()
    for name, weights in before.weights.items():
        np.testing.assert_allclose(after.weights[name], weights, atol=1e-20)
    assert after.optimizer["0/step"] > before.optimizer["0/step"] > 0
    assert after.normalization["obs/count"] > before.normalization["obs/count"] > 200
    config = status["config"]
    assert (config["net_arch"], config["activation"]) == ([16], "relu")
    assert config["normalize"] == {"norm_obs": True, "norm_reward": True}


def test_a_job_trains_on_statistics_that_were_frozen(client: TestClient, app: FastAPI, base: dict[str, Any]) -> None:
    content = read(app, "base")
    settings = {**content.meta["normalization"], "training": False}
    meta = {**content.meta, "normalization": settings}
    frozen = model_file.to_bytes(meta, content.weights, content.optimizer, content.normalization)
    assert upload(client, frozen, "frozen").status_code == 200
    train_on(client, init_model="frozen")
    assert read(app, "onward").normalization["obs/count"] > content.normalization["obs/count"]


def test_the_card_tells_what_it_comes_from_and_all_steps(client: TestClient, base: dict[str, Any]) -> None:
    train_on(client)
    first, card = client.get("/models/base").json(), client.get("/models/onward").json()
    assert card["lineage"] == {
        "model_name": "base",
        "sha256": base["sha256"],
        "num_timesteps": first["num_timesteps"],
    }
    assert first["lineage"] is None
    assert card["num_timesteps"] >= first["num_timesteps"] + 256
    train_on(client, init_model="onward", model_name="third", keep_best=True, eval_freq=64, n_eval_episodes=1)
    third = client.get("/models/third").json()
    assert third["lineage"]["num_timesteps"] == card["num_timesteps"]
    assert third["num_timesteps"] > card["num_timesteps"]


@pytest.fixture
def gate(client: TestClient, register_env: RegisterEnv) -> Gate:
    """What two jobs wait for, which run; further ones are queued."""
    gate = Gate()
    env_name = register_env(partial(LineEnv, on_step=gate.pass_through), max_episode_steps=20)
    for name in ("a1", "a2"):
        train(client, env_name=env_name, model_name=name, total_timesteps=64, n_eval_episodes=0)
    wait_until(lambda: gate.n_arrived == 2)
    return gate


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_it_begins_from_the_model_that_it_was_accepted_with(
    client: TestClient, base: dict[str, Any], gate: Gate, change: str
) -> None:
    job_id = train(client, **{**BASE, "init_model": "base@latest", "model_name": "onward"})
    if change == "deleted":
        client.delete("/models/base")
    other = make_model("CartPole-v1", 3).to_bytes(env_name="CartPole-v1")
    assert upload(client, other, "base", overwrite=True).status_code == 200
    gate.admit()
    wait_until(lambda: get_status(client, job_id)["status"] in ("completed", "failed"))
    if change == "replaced":
        assert client.get("/models/onward").json()["lineage"]["sha256"] == base["sha256"]
    else:
        message = get_status(client, job_id)["error_message"]
        assert message.startswith("init_model 'base@latest' was deleted or replaced since the job was accepted")


def test_it_goes_on_from_a_checkpoint_with_its_lineage(client: TestClient, app: FastAPI, base: dict[str, Any]) -> None:
    train_on(client)
    whole = read(app, "onward")
    client.post("/train", json={**BASE, "init_model": "base", "model_name": "again", "checkpoint_every": 64})
    while client.get("/training/latest/status").json()["status"] in ("queued", "running"):
        client.post("/training/latest/stop")
    if client.get("/training/latest/status").json()["status"] == "stopped":
        assert client.post("/training/latest/resume").status_code == 200
        client.get("/training/latest/events").read()  # until it ends
    assert_trained_alike(read(app, "again"), whole)
    assert read(app, "again").meta["lineage"] == whole.meta["lineage"]


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        ({"env_name": "Acrobot-v1"}, "init_model 'base' was trained on other observations"),
        ({"net_arch": [32]}, r"net_arch is not that of init_model 'base', [16]; leave net_arch out"),
        ({"activation": "tanh"}, "activation is not that of init_model 'base', relu"),
        ({"normalize": False}, "normalize is not that of init_model 'base'"),
        ({"init_model": "bass"}, "init_model 'bass' cannot be trained on: there is no model 'bass'"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(
    client: TestClient, base: dict[str, Any], request_: dict[str, Any], detail: str
) -> None:
    answer = client.post("/train", json={**BASE, "init_model": "base", **request_})
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]


def test_a_model_that_no_training_bears_is_named_as_the_cause(
    client: TestClient, app: FastAPI, base: dict[str, Any]
) -> None:
    content = read(app, "base")
    moments = {**content.optimizer, "0/exp_avg": np.full_like(content.optimizer["0/exp_avg"], 3e38)}
    forged = model_file.to_bytes(content.meta, content.weights, moments, content.normalization)
    assert upload(client, forged, "forged").status_code == 200
    message = train_on(client, init_model="forged")["error_message"]
    assert message.startswith(("ValueError: the loss is not finite", "ValueError: the update left NaN")), message
    assert "(init_model, or the file that was loaded) may be the cause: begin from another one" in message


def test_a_job_trains_with_its_own_settings_and_says_which_moments_are_lost(
    client: TestClient, app: FastAPI, base: dict[str, Any]
) -> None:
    content = read(app, "base")
    optimizer = content.meta["optimizer"]
    groups = [[["weight_decay", 0.5], ["betas", {"list": [0.0, 0.0]}]]]
    for name, change in (("decaying", {"groups": groups}), ("lacking", {"parameters": optimizer["parameters"][:-1]})):
        meta = {**content.meta, "optimizer": optimizer | change}
        forged = model_file.to_bytes(meta, content.weights, content.optimizer, content.normalization)
        assert upload(client, forged, name).status_code == 200
    assert train_on(client, init_model="decaying", model_name="theirs")["warnings"] == []
    train_on(client, model_name="ours")
    assert_trained_alike(read(app, "theirs"), read(app, "ours"))
    meta = {**content.meta, "optimizer": optimizer | {"lost": "the state of Shampoo is not kept"}}
    assert (
        upload(client, model_file.to_bytes(meta, content.weights, {}, content.normalization), "own").status_code == 200
    )
    (warning,) = train_on(client, init_model="own", model_name="anew")["warnings"]
    assert "the state of Shampoo is not kept; what is missing begins anew." in warning
    (warning,) = train_on(client, init_model="lacking")["warnings"]
    assert warning.startswith("not all of init_model 'lacking' could be used: moments in the file are of other weights")


def test_moments_that_no_optimizer_has_are_refused_at_once(
    client: TestClient, app: FastAPI, base: dict[str, Any]
) -> None:
    content = read(app, "base")
    moments = {**content.optimizer, "0/step": np.array(-1.0, np.float32)}
    forged = model_file.to_bytes(content.meta, content.weights, moments, content.normalization)
    assert "holds negative numbers" in upload(client, forged, "forged").json()["detail"]
    (Path(app.state.service.settings.models_dir) / "forged.zip").write_bytes(forged)
    answer = client.post("/train", json={**BASE, "init_model": "forged"})
    assert answer.status_code == 400
    assert "init_model 'forged' cannot be trained on: optimizer/0/step.npy holds negative" in answer.json()["detail"]


@pytest.mark.parametrize("claimed", [-5, 10**400, "1024", True])
def test_steps_that_nobody_can_have_taken_are_not_counted(
    client: TestClient, app: FastAPI, base: dict[str, Any], claimed: Any
) -> None:
    content = read(app, "base")
    forged = model_file.to_bytes(
        {**content.meta, "num_timesteps": claimed}, content.weights, content.optimizer, content.normalization
    )
    assert upload(client, forged, "forged").status_code == 200
    train_on(client, init_model="forged")
    card = client.get("/models/onward").json()
    assert (card["lineage"]["model_name"], card["lineage"]["num_timesteps"]) == ("forged", 0)
    assert 256 <= card["num_timesteps"] < 400


def test_a_name_that_is_taken_is_said_and_can_be_refused(client: TestClient, base: dict[str, Any]) -> None:
    refused = client.post("/train", json={**BASE, "model_name": "base", "replace": False})
    assert refused.status_code == 409
    assert "a model 'base' already exists" in refused.json()["detail"]
    accepted = client.post("/train", json={**BASE, "model_name": "base"}).json()
    assert accepted["warnings"] == ["there is a model 'base' already; this job's policy will take its place."]
    fresh = client.post("/train", json={**BASE, "model_name": "new", "replace": False})
    assert (fresh.status_code, fresh.json()["warnings"]) == (200, [])
