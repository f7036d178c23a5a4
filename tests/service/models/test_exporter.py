"""A served model is exported: what comes out acts like ``/inference``, and is written but once."""

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from service.settings import Settings
from tests.models import forge, make_model
from tests.support import PATIENT, make_client

OBSERVATIONS = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)


def load(content: bytes, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(io.BytesIO(content), **arguments)  # type: ignore[no-untyped-call]


def run_torchscript(content: bytes) -> Any:
    return load(content)(torch.from_numpy(OBSERVATIONS)).tolist()


def run_onnx(content: bytes) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, see requirements-dev.txt")
    return onnxruntime.InferenceSession(content).run(["action"], {"observation": OBSERVATIONS})[0].tolist()


def make_normalised() -> bytes:
    """Build a policy of Pendulum whose actions reach both bounds."""
    env: Any = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_obs=1.0)
    env.obs_rms.mean, env.obs_rms.var = np.array([0.5, -0.5, 2.0]), np.array([0.3, 0.5, 4.0])
    model = GRPO("MlpPolicy", env, n_steps=64, group_size=2, horizon=32, seed=0)
    with torch.no_grad():
        dict(model.policy.named_parameters())["action_net.weight"].mul_(1000.0)
    return model.to_bytes(env_name="Pendulum-v1")


def save(settings: Settings, name: str, content: bytes) -> None:
    (settings.models_dir / f"{name}.zip").write_bytes(content)


@pytest.mark.parametrize(
    ("export_format", "run"), [("onnx", run_onnx), ("torchscript", run_torchscript)], ids=["onnx", "torchscript"]
)
def test_an_export_acts_like_inference(
    client: TestClient, settings: Settings, export_format: str, run: Callable[[bytes], Any]
) -> None:
    save(settings, "m", make_normalised())
    if export_format == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-dev.txt")
    body = {"model_name": "m", "observations": OBSERVATIONS.tolist()}
    expected = [item["action"] for item in client.post("/inference/batch", json=body).json()["answers"]]
    assert min(expected) == [-2.0] < [0.0] < max(expected) == [2.0]
    content = client.get("/models/m/export", params={"format": export_format}).content
    np.testing.assert_allclose(run(content), expected, rtol=1e-4, atol=1e-4)
    body = {"model_name": "m", "observation": OBSERVATIONS[0].tolist()}
    np.testing.assert_allclose(run(content)[0], client.post("/inference", json=body).json()["action"], 1e-4, 1e-4)


def test_it_comes_as_a_file_with_a_name_a_size_and_a_tag(client: TestClient, settings: Settings) -> None:
    save(settings, "m", make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"))
    answer = client.get("/models/m/export?format=torchscript")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="m.pt"'
    assert answer.headers["content-length"] == str(len(answer.content))
    tag = f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert answer.headers["etag"] == tag
    known = client.get("/models/m/export?format=torchscript", headers={"If-None-Match": tag})
    assert (known.status_code, known.content) == (304, b"")
    part = client.get("/models/m/export?format=torchscript", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, answer.content[2:6])
    masked = client.get("/models/m/export?format=torchscript&action_masks=true")
    assert masked.headers["etag"] != tag
    save(settings, "m", make_model("CartPole-v1", seed=1).to_bytes(env_name="CartPole-v1"))
    assert client.get("/models/m/export?format=torchscript", headers={"If-None-Match": tag}).status_code == 200


def test_it_holds_the_facts_of_the_card(client: TestClient, settings: Settings) -> None:
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
    save(settings, "m", content)
    extra = {"grpo.json": ""}
    assert client.get("/models/m/export?format=torchscript").status_code == 200
    (settings.models_dir / "m.zip").rename(settings.models_dir / "renamed.zip")
    load(client.get("/models/renamed/export?format=torchscript").content, _extra_files=extra)
    facts, card = json.loads(extra["grpo.json"]), client.get("/models/renamed").json()
    assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    for name in ("name", "env_name", "hyperparameters", "network", "n_parameters", "num_timesteps"):
        assert facts[name] == card[name], name
    assert facts["inputs"] == [{"name": "observation", "dtype": "float32", "shape": ["batch_size", 4]}]


@pytest.mark.parametrize(
    ("path", "status_code", "said"),
    [
        ("missing/export", 404, "there is no model 'missing'"),
        ("..%2fm/export", 404, ""),
        ("bad/export", 409, "model 'bad' cannot be used"),
        ("m/export?format=pickle", 422, "format"),
        ("m/export?mask=1", 422, "unknown parameter"),
        ("pendulum/export?format=torchscript&action_masks=1", 400, "only discrete choices can be masked"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    client: TestClient, settings: Settings, path: str, status_code: int, said: str
) -> None:
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
    save(settings, "m", content)
    save(settings, "bad", content[:-9])
    save(settings, "pendulum", make_model("Pendulum-v1").to_bytes(env_name="Pendulum-v1"))
    answer = client.get(f"/models/{path}")
    assert answer.status_code == status_code
    assert said in answer.json()["detail"]


def test_a_server_without_onnx_says_how_to_get_it(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save(settings, "m", make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"))
    monkeypatch.setattr("grpo_core.export.policy_file.find_spec", lambda name: None)
    answer = client.get("/models/m/export")
    assert answer.status_code == 501
    assert answer.json()["type"] == "urn:grpo:problem:not-installed"
    assert "pip install onnx" in answer.json()["detail"]


def test_a_file_that_claims_anything_is_still_exported(client: TestClient, settings: Settings) -> None:
    content = make_model("CartPole-v1").to_bytes(env_name="x" * 999)
    content = forge(content, lineage="\ud800", n_updates=b"NaN", versions=[1])
    save(settings, "m", content)
    assert client.get("/models/m/export?format=torchscript").status_code == 200


def test_a_worker_process_exports_models_of_no_environment_and_of_one_that_is_not_here(tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path / "models", executor="process", **PATIENT)
    model = make_model("CartPole-v1")
    with make_client(settings) as client:
        save(settings, "nameless", model.to_bytes())
        save(settings, "elsewhere", model.to_bytes(env_name="NotHere-v0"))
        for name in ("nameless", "elsewhere"):
            response = client.get(f"/models/{name}/export?format=torchscript")
            assert response.status_code == 200, response.text
