"""Environments and reward functions are listed and described."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gymnasium import spaces

from api import REWARD_FUNCTIONS
from tests.environments import ForgetfulEnv, LineEnv
from tests.support import train_to_end

RegisterEnv = Callable[..., str]


def get_environment(client: TestClient, env_name: str) -> dict[str, Any]:
    response = client.get(f"/environments/{env_name}")
    assert response.status_code == 200, response.text
    described: dict[str, Any] = response.json()
    return described


def list_names(client: TestClient, search: str = "") -> list[str]:
    response = client.get("/environments", params={"search": search})
    assert response.status_code == 200, response.text
    return [row["env_name"] for row in response.json()["environments"]]


def test_the_latest_versions_come_first_and_a_search_takes_any_case(client: TestClient) -> None:
    names = list_names(client, "cartPOLE")
    assert names.index("CartPole-v1") < names.index("CartPole-v0")
    assert all("cartpole" in name.casefold() for name in names)
    assert set(names) < set(list_names(client))


def test_a_line_of_the_list_says_what_the_registration_says(client: TestClient) -> None:
    rows = {row["env_name"]: row for row in client.get("/environments").json()["environments"]}
    assert rows["CartPole-v1"] == {
        "env_name": "CartPole-v1",
        "max_episode_steps": 500,
        "reward_threshold": 475.0,
        "has_preset": True,
        "is_latest": True,
    }
    assert not rows["CartPole-v0"]["is_latest"]
    assert not rows["CartPole-v0"]["has_preset"]


def test_a_list_builds_nothing_and_leaves_out_what_no_request_can_name(
    client: TestClient, register_env: RegisterEnv
) -> None:
    built: list[bool] = []

    def build() -> LineEnv:
        built.append(True)
        return LineEnv()

    register_env(build, "Counted-v3")
    register_env(build, "Mod:Name-v0")
    assert "Counted-v3" in list_names(client)
    assert "Mod:Name-v0" not in list_names(client)
    assert built == []


def test_an_environment_is_described_in_full(client: TestClient) -> None:
    described = get_environment(client, "CartPole-v1")
    assert described["observation_space"]["shape"] == [4]
    assert described["action_space"]["n"] == 2
    assert (described["restorable"], described["obstacle"], described["group_mode"]) == (True, None, "branch")
    assert (described["max_episode_steps"], described["reward_threshold"]) == (500, 475.0)
    assert described["preset"]["n_timesteps"] == 20_000
    assert described["default_reward_function"] == "optimized_cartpole"
    assert described["reward_functions"][0] == "environment"
    assert {"optimized_cartpole", "simple_cartpole"} <= set(described["reward_functions"])
    assert "rgb_array" in described["render_modes"]


@pytest.mark.parametrize("number", [math.inf, math.nan, 10**400, "high", [500], object()], ids=type)
def test_a_registration_whose_limits_are_no_numbers_is_listed_without_them(
    client: TestClient, register_env: RegisterEnv, number: Any
) -> None:
    register_env(LineEnv, "Odd-v0", max_episode_steps=number, reward_threshold=number)
    (row,) = client.get("/environments", params={"search": "Odd-v0"}).json()["environments"]
    assert (row["max_episode_steps"], row["reward_threshold"]) == (None, None)
    assert "CartPole-v1" in list_names(client)
    assert client.get("/dashboard/new").status_code == 200


@pytest.mark.parametrize("threshold", [math.inf, 10**400, "high"], ids=type)
def test_an_environment_whose_limits_are_no_numbers_is_described_and_trained_in(
    client: TestClient, register_env: RegisterEnv, threshold: Any
) -> None:
    name = register_env(LineEnv, "Odd-v0", max_episode_steps=10**400, reward_threshold=threshold)
    described = get_environment(client, name)
    assert (described["max_episode_steps"], described["reward_threshold"]) == (None, None)
    assert train_to_end(client, env_name=name, total_timesteps=64)["status"] == "completed"


def test_a_time_limit_that_gymnasium_does_not_take_is_refused_with_the_reason(
    client: TestClient, register_env: RegisterEnv
) -> None:
    name = register_env(LineEnv, "Odd-v0", max_episode_steps=math.inf)
    for response in (client.get(f"/environments/{name}"), client.post("/train", json={"env_name": name})):
        assert response.status_code == 400
        assert "Expect the `max_episode_steps` to be an integer" in response.json()["detail"]


def test_what_is_trained_on_and_how_depends_on_the_environment(client: TestClient, register_env: RegisterEnv) -> None:
    described = get_environment(client, register_env(ForgetfulEnv, "Forgetful-v0"))
    assert (described["restorable"], described["group_mode"]) == (False, "episode")
    assert "ForgetfulEnv" in described["obstacle"]
    assert (described["default_reward_function"], described["preset"]) == ("environment", None)
    assert "optimized_cartpole" not in described["reward_functions"]
    assert (described["max_episode_steps"], described["render_modes"]) == (None, [])


def test_an_environment_that_no_policy_can_observe_is_described_with_the_reason(client: TestClient) -> None:
    described = get_environment(client, "Blackjack-v1")
    assert (described["restorable"], described["group_mode"]) == (False, None)
    assert "Tuple" in described["obstacle"]
    assert described["observation_space"]["type"] == "Tuple"


def test_an_environment_is_built_once_until_it_is_registered_anew(
    client: TestClient, register_env: RegisterEnv
) -> None:
    built: list[int] = []

    def build(n_numbers: int) -> LineEnv:
        built.append(n_numbers)
        return LineEnv(observation_size=n_numbers)

    name = register_env(lambda: build(2))
    assert get_environment(client, name) == get_environment(client, name)
    assert built == [2]
    del gym.registry[name]
    gym.register(name, lambda **_: build(3))
    assert get_environment(client, name)["observation_space"]["shape"] == [3]
    assert built == [2, 3]


def test_an_environment_that_cannot_be_created_is_refused_with_the_reason(
    client: TestClient, register_env: RegisterEnv
) -> None:
    def build() -> LineEnv:
        raise OSError(2, "the simulator is not installed", "/home/someone/simulator.so")

    response = client.get(f"/environments/{register_env(build)}")
    assert response.status_code == 400
    assert "Line-v0" in response.json()["detail"]
    assert "the simulator is not installed" in response.json()["detail"]
    assert "/home" not in response.text


def test_an_environment_whose_steps_fail_is_refused_with_the_reason(
    client: TestClient, register_env: RegisterEnv
) -> None:
    class Failing(gym.Env[Any, Any]):
        observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            raise RuntimeError("no step today")

    response = client.get(f"/environments/{register_env(Failing)}")
    assert response.status_code == 400
    assert "no step today" in response.json()["detail"]


def test_an_unknown_environment_is_not_found_and_what_was_meant_is_suggested(client: TestClient) -> None:
    response = client.get("/environments/CartPole-v2")
    assert response.status_code == 404
    assert "CartPole-v1" in response.json()["detail"]
    assert client.get("/environments/nothing/like/it").status_code == 404


@pytest.mark.parametrize("form", ["{}:Env-v0", "{}%3AEnv-v0", "a/{}:Env-v0", "{}:", "%20{}:Env-v0", "{}:Env-v0%00"])
def test_a_name_never_imports_a_module(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    (tmp_path / "imported_by_name.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert client.get("/environments/" + form.format("imported_by_name")).status_code in (404, 422)
    assert "imported_by_name" not in sys.modules


def test_reward_functions_are_listed_with_what_they_say_of_themselves(
    client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def my_reward(state: Any, action: Any, next_state: Any) -> Any:
        """Reward
        ``nothing``.

        At length.
        """

    monkeypatch.setitem(REWARD_FUNCTIONS, "my_reward", my_reward)
    monkeypatch.setitem(REWARD_FUNCTIONS, "unspoken", lambda state, action, next_state: next_state)
    rows = {row["name"]: row for row in client.get("/reward-functions").json()["reward_functions"]}
    assert next(iter(rows)) == "environment"
    assert rows["my_reward"] == {"name": "my_reward", "description": "Reward `nothing`.", "environments": None}
    assert rows["unspoken"]["description"] is None
    assert rows["optimized_cartpole"]["environments"] == ["CartPole-v0", "CartPole-v1"]
    assert rows["optimized_cartpole"]["description"].startswith("Reward an upright pole")
