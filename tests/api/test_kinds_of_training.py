"""The contract over HTTP: every kind of observation, action and reward trains and answers."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd

from grpo import GRPO
from grpo_core.options.presets import get_preset
from tests.api.calls import SHORT, ask, refuse
from tests.conftest import RegisterEnv
from tests.environments import SpaceEnv
from tests.support import LIVE_METRICS, train_to_end, wait_for_end


def test_observations_with_keys(client: TestClient, register_env: RegisterEnv) -> None:
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


def test_forbidden_actions(client: TestClient, register_env: RegisterEnv) -> None:
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


def test_several_choices_and_switches_at_once(client: TestClient, register_env: RegisterEnv) -> None:
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


def test_images(client: TestClient, register_env: RegisterEnv) -> None:
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


def test_a_preset_in_a_few_steps(client: TestClient) -> None:
    started = client.post("/train", json={"env_name": "FrozenLake-v1", "total_timesteps": 1024, "seed": 0}).json()
    assert started["config"]["preset"] == "FrozenLake-v1"
    preset = get_preset("FrozenLake-v1")
    assert preset is not None
    assert started["config"]["n_steps"] == preset.arguments["n_steps"]
    status = wait_for_end(client, started["job_id"])
    assert status["status"] == "completed", status["error_message"]
    assert sum(ask(client, status["model_name"], 0)["action_probs"]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
def test_whole_episodes_of_a_simulator_that_cannot_be_restored(client: TestClient) -> None:
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


def test_the_statistics_of_normalisation_are_applied_to_what_is_asked(client: TestClient, models_dir: Path) -> None:
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


def test_several_rewards(client: TestClient) -> None:
    status = train_to_end(client, **SHORT, reward_functions={"environment": 1.0, "simple_cartpole": -1.0})
    metrics = status["metrics"]
    # CartPole pays 1 per step.
    assert metrics["rollout/reward_mean"] == pytest.approx(1.0 - metrics["rewards/simple_cartpole_mean"], abs=1e-5)
