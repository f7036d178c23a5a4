"""A model's card shows what its file says, but no false claims of a forged file."""

import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fastapi.testclient import TestClient
from gymnasium import spaces
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from service.models.card import make_card
from service.models.store import ModelStore
from service.schemas.jobs import EpisodeFigures
from service.schemas.models import ModelCard, ModelStatus
from service.settings import Settings
from tests.environments import SpaceEnv
from tests.models import forge, make_model
from tests.support import open_model_store, train_to_end

FIGURES: dict[str, Any] = {
    "n_episodes": 2,
    "mean_reward": 3.0,
    "std_reward": 1.0,
    "mean_reward_ci95": [2.0, 4.0],
    "min_reward": 2.0,
    "max_reward": 4.0,
    "mean_length": 3.0,
    "success_rate": None,
    "success_rate_ci95": None,
}
FINAL_FIGURES = {**FIGURES, "timesteps": 64, "complete": False}
NULL_WHERE_UNUSABLE = set(ModelCard.model_fields) - {"name", "status", "n_bytes", "sha256", "modified_at"}


@pytest.fixture(scope="module")
def content() -> bytes:
    return make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")


@pytest.fixture
def folder(settings: Settings) -> Path:
    settings.models_dir.mkdir(exist_ok=True)
    return settings.models_dir


@pytest.fixture
def store(folder: Path) -> ModelStore:
    return open_model_store(folder)


def get_card(client: TestClient, name: str = "m") -> dict[str, Any]:
    response = client.get(f"/models/{name}")
    assert response.status_code == 200, response.text
    card: dict[str, Any] = json.loads(response.text, parse_constant=lambda constant: pytest.fail(constant))
    return card


def test_the_card_of_a_trained_model_says_what_it_is(client: TestClient, settings: Settings) -> None:
    config = {"total_timesteps": 64, "seed": 3, "net_arch": [4]}
    status = train_to_end(client, model_name="m", **config)
    card = get_card(client)
    file = settings.models_dir / "m.zip"
    assert card["sha256"] == status["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card["n_bytes"] == file.stat().st_size
    assert datetime.fromisoformat(card["modified_at"]) == datetime.fromtimestamp(file.stat().st_mtime_ns / 1e9, UTC)
    assert (card["name"], card["status"], card["env_name"]) == ("m", "loaded", "CartPole-v1")
    assert card["reward_function"] == "optimized_cartpole"
    assert card["config"] == status["config"]
    assert card["num_timesteps"] == 64
    # 64 steps make two rollouts of 32, with ten epochs each.
    assert card["n_updates"] == 20
    # Policy: 4 inputs, 4 units, 2 actions. Value: the same with 1 output.
    assert card["n_parameters"] == (4 * 4 + 4) + (4 * 2 + 2) + (4 * 4 + 4) + (4 + 1)
    assert card["network"]["net_arch"] == {"pi": [4], "vf": [4]}
    assert card["hyperparameters"]["group_size"] == 2
    assert "tensorboard_log" not in card["hyperparameters"]
    assert set(card["versions"]) == {"grpo", "stable_baselines3", "torch"}
    assert card["normalization"] is None
    assert card["action_space"]["type"] == "Discrete"
    assert card["action_space"]["n"] == 2
    observed = card["observation_space"]
    assert (observed["type"], observed["shape"], observed["dtype"]) == ("Box", [4], "float32")
    # CartPole's velocities have no bounds.
    assert observed["high"] == [pytest.approx(4.8), None, pytest.approx(24 * math.pi / 180), None]


def test_a_model_that_was_saved_by_hand_has_a_card_too(client: TestClient, folder: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_obs=5.0)
    (folder / "m.zip").write_bytes(GRPO("MlpPolicy", env).to_bytes())
    card = get_card(client)
    assert (card["status"], card["env_name"], card["config"], card["evaluation"]) == ("saved", None, None, None)
    assert card["normalization"]["clip_obs"] == 5.0
    assert (card["action_space"]["low"], card["action_space"]["high"]) == ([-2.0], [2.0])


def test_spaces_with_keys_are_told_key_by_key(client: TestClient, folder: Path) -> None:
    keyed = spaces.Dict({"camera": spaces.Box(0, 255, (36, 36, 3), np.uint8), "choice": spaces.MultiDiscrete([2, 3])})
    model = GRPO("MultiInputPolicy", SpaceEnv(keyed, spaces.MultiBinary(3)))
    (folder / "m.zip").write_bytes(model.to_bytes())
    card = get_card(client)
    parts = card["observation_space"]["spaces"]
    assert (parts["camera"]["low"], parts["camera"]["high"]) == ([0], [255])
    assert parts["choice"]["nvec"] == [2, 3]
    assert (card["action_space"]["type"], card["action_space"]["n"]) == ("MultiBinary", 3)


@pytest.mark.parametrize(
    ("damage", "status"),
    [(lambda content: content[:-5], "corrupt"), (lambda c: c.replace(b"grpo_meta.json", b"hers_meta.json"), "unsafe")],
)
def test_a_file_that_cannot_be_used_has_a_card_that_says_so(
    client: TestClient, folder: Path, content: bytes, damage: Any, status: str
) -> None:
    damaged = damage(content)
    (folder / "m.zip").write_bytes(damaged)
    card = get_card(client)
    assert (card["status"], card["sha256"]) == (status, hashlib.sha256(damaged).hexdigest())
    assert {name for name, value in card.items() if value is None} == NULL_WHERE_UNUSABLE


@pytest.mark.parametrize("name", ["missing", "CON", ".hidden", "%2e%2e", "x" * 300])
def test_a_name_of_no_model_is_not_found(client: TestClient, name: str) -> None:
    response = client.get(f"/models/{name}")
    assert response.status_code == 404
    assert "GET /models" in response.json()["detail"]


def test_a_card_reads_a_file_without_keeping_it_in_memory(store: ModelStore, folder: Path, content: bytes) -> None:
    (folder / "m.zip").write_bytes(content)
    assert make_card("m", store.inspect_file("m")).status == ModelStatus.SAVED
    assert store.n_loaded == 0
    store.get("m")
    assert make_card("m", store.inspect_file("m")).status == ModelStatus.LOADED


def test_a_later_evaluation_goes_before_the_one_in_the_file(store: ModelStore, folder: Path, content: bytes) -> None:
    (folder / "m.zip").write_bytes(forge(content, evaluation=FIGURES))
    own = make_card("m", store.inspect_file("m")).evaluation
    assert own is not None
    assert (own.mean_reward, own.mean_reward_ci95) == (3.0, (2.0, 4.0))
    later = EpisodeFigures.model_validate({**FIGURES, "mean_reward": 5.0})
    signature = store.inspect_file("m").signature
    assert make_card("m", store.inspect_file("m"), {signature: later}.get).evaluation == later


@pytest.mark.parametrize(
    ("fact", "raw"),
    [
        ("num_timesteps", b"NaN"),
        ("num_timesteps", b"-1"),
        ("num_timesteps", b"true"),
        ("num_timesteps", b"1" + b"0" * 300),
        ("n_updates", b"1e999"),
        ("env_name", b'"os:system"'),
        ("env_name", b'"\\ud800"'),
        ("env_name", b'"CartPole-v1\\n"'),
        ("env_name", b'["CartPole-v1"]'),
        ("env_name", b'"' + b"x" * 129 + b'"'),
        ("reward_function", b'"\\ud800"'),
        ("reward_function", b'[["optimized_cartpole"]]'),
        ("reward_function", b'"' + b"x" * 500_000 + b'"'),
        ("hyperparameters", b"[1, 2]"),
        ("config", b"Infinity"),
        ("versions", b'"1.0.0"'),
        ("evaluation", b"{}"),
        ("evaluation", json.dumps({**FIGURES, "mean_reward": math.nan}).encode()),
        ("evaluation", json.dumps({**FIGURES, "n_episodes": 0}).encode()),
        ("evaluation", json.dumps({**FIGURES, "success_rate": 2.0}).encode()),
        ("evaluation", b"[" * 900 + b"]" * 900),
        ("final_evaluation", json.dumps(FIGURES).encode()),
        ("final_evaluation", json.dumps({**FINAL_FIGURES, "timesteps": -1}).encode()),
        ("final_evaluation", json.dumps({**FINAL_FIGURES, "mean_reward": 4.5}).encode()),
        ("evaluation", json.dumps({**FIGURES, "mean_reward": 1.5}).encode()),
        ("evaluation", json.dumps({**FIGURES, "mean_reward_ci95": [FIGURES["min_reward"], 1e6]}).encode()),
        ("final_evaluation", json.dumps({**FINAL_FIGURES, "mean_reward": math.inf}).encode()),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_fact_that_cannot_be_right_is_left_out(
    client: TestClient, folder: Path, content: bytes, fact: str, raw: bytes
) -> None:
    (folder / "m.zip").write_bytes(forge(content, **{fact: raw}))
    card = get_card(client)
    assert card[fact] is None
    # All others are present.
    assert card["status"] == "saved"
    assert card["n_parameters"] > 0


def test_the_evaluation_that_ended_the_job_is_that_of_the_file(
    client: TestClient, folder: Path, content: bytes
) -> None:
    chosen_by = json.dumps({**FIGURES, "mean_reward": 9.0}).encode()
    final_evaluation = json.dumps(FINAL_FIGURES).encode()
    (folder / "m.zip").write_bytes(forge(content, evaluation=chosen_by, final_evaluation=final_evaluation))
    card = get_card(client)
    assert card["final_evaluation"] == {**FINAL_FIGURES, "seconds": None}
    assert card["evaluation"] == FIGURES


def test_of_an_object_only_the_plain_entries_are_shown(client: TestClient, folder: Path, content: bytes) -> None:
    hyperparameters = (
        b'{"gamma": 0.9, "ent_coef": NaN, "seed": 1e999, "n_steps": 1' + b"0" * 400 + b', "\\ud800": 1, "deep": '
        b'[[[[[[1]]]]]], "tensorboard_log": "/home/somebody/runs", "long": "' + b"x" * 1000 + b'", "list": '
        b"[1, -Infinity]}"
    )
    (folder / "m.zip").write_bytes(forge(content, hyperparameters=hyperparameters, config=b'{"seed": 1, "evil": 2}'))
    card = get_card(client)
    assert card["hyperparameters"] == {"gamma": 0.9}
    assert card["config"] == {"seed": 1}


def test_metadata_nested_without_end_is_a_damaged_file(client: TestClient, folder: Path, content: bytes) -> None:
    (folder / "m.zip").write_bytes(forge(content, config=b"[" * 200_000 + b"]" * 200_000))
    assert get_card(client)["status"] == "corrupt"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(st.characters(exclude_categories=[])), parts),
    max_leaves=20,
)
FACTS = [
    *("env_name", "reward_function", "hyperparameters", "config", "num_timesteps", "n_updates", "normalization"),
    *("evaluation", "final_evaluation", "versions", "network", "spaces", "sha256"),
]


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    facts=st.dictionaries(
        st.sampled_from([*FACTS, "evaluation", "versions", "network", "spaces", "sha256"]), JSON_VALUES
    )
)
def test_whatever_the_metadata_claims_the_card_is_sound(
    client: TestClient, folder: Path, content: bytes, facts: dict[str, Any]
) -> None:
    (folder / "m.zip").write_bytes(forge(content, **facts))
    card = get_card(client)
    assert card["status"] in ("saved", "corrupt")
    ModelCard.model_validate(card)
