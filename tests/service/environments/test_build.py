"""Environments are built in one way for every purpose."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fastapi.testclient import TestClient
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

from grpo_core.environments.making import EnvSetup
from service.environments.build import build_env, build_vec_env, try_methods
from service.errors import InvalidRequestError
from tests.conftest import RegisterEnv
from tests.environments import LineEnv, SpaceEnv
from tests.models import forge, make_model
from tests.support import train_to_end

ZIP = {"Content-Type": "application/zip"}
RENDER_MODES: list[str | None] = []


class DrawnEnv(LineEnv):
    """A line that records its render mode."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        RENDER_MODES.append(render_mode)
        self.metadata = {"render_modes": ["human", "rgb_array"]}
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.zeros((16, 16, 3), np.uint8)


@pytest.fixture
def drawn_env() -> Iterator[str]:
    RENDER_MODES.clear()
    gym.register("Drawn-v0", entry_point=lambda **arguments: DrawnEnv(**arguments), max_episode_steps=9)
    yield "Drawn-v0"
    del gym.registry["Drawn-v0"]


def test_only_a_film_asks_for_a_render_mode(client: TestClient, drawn_env: str) -> None:
    assert client.get(f"/environments/{drawn_env}").json()["restorable"]
    request = {"env_name": drawn_env, "total_timesteps": 64, "n_envs": 2, "eval_freq": 64, "n_eval_episodes": 1}
    assert train_to_end(client, **request, model_name="m")["status"] == "completed"
    assert client.post("/models/m/evaluate", json={"n_episodes": 1}).status_code == 200
    assert set(RENDER_MODES) == {None}
    assert client.get("/models/m/video?max_steps=2").status_code == 200
    assert set(RENDER_MODES) == {None, "rgb_array"}


def test_every_training_environment_records_its_episodes(drawn_env: str) -> None:
    env = build_vec_env(EnvSetup(drawn_env), 3)
    assert [type(each) for each in env.envs] == [Monitor] * 3
    assert len({id(each.unwrapped) for each in env.envs}) == 3
    env.close()


def test_a_name_that_a_constructor_does_not_know_is_refused_with_those_it_knows() -> None:
    with pytest.raises(InvalidRequestError, match="it does not know '9x9', only 4x4, 8x8"):
        build_env(EnvSetup("FrozenLake-v1", {"map_name": "9x9"}))


@pytest.mark.parametrize("desc", [[], ["S"]])
def test_arguments_that_a_constructor_fails_with_are_its_likely_cause(desc: list[str]) -> None:
    said = r"created as asked \(ValueError: .*\), probably because of its env_kwargs \(desc, is_slippery\); send other"
    with pytest.raises(InvalidRequestError, match=said):
        build_env(EnvSetup("FrozenLake-v1", {"desc": desc, "is_slippery": False}))


def test_an_environment_that_cannot_be_built_is_refused_with_the_reason(register_env: RegisterEnv) -> None:
    def fail() -> LineEnv:
        raise OSError(2, "no track", "/home/someone/track")

    env_name = register_env(fail)
    for build in (lambda: build_env(EnvSetup(env_name)), lambda: build_vec_env(EnvSetup(env_name), 2)):
        with pytest.raises(InvalidRequestError, match=r"on this server \(FileNotFoundError: no track"):
            build()


def test_an_environment_with_unsupported_spaces_is_refused_and_closed(register_env: RegisterEnv) -> None:
    closed = []

    class Graphs(SpaceEnv):
        def close(self) -> None:
            closed.append(True)

    env_name = register_env(lambda: Graphs(spaces.Graph(spaces.Discrete(2), None), spaces.Discrete(2)))
    with pytest.raises(InvalidRequestError, match="'Line-v0' cannot be trained: "):
        build_vec_env(EnvSetup(env_name), 1)
    assert closed == [True]


def test_arguments_and_wrappers_are_the_same_in_training_evaluation_and_film(client: TestClient) -> None:
    setup = {"env_kwargs": {"map_name": "8x8", "is_slippery": False}, "wrappers": ["flatten", {"name": "frame_stack"}]}
    status = train_to_end(client, env_name="FrozenLake-v1", total_timesteps=64, eval_freq=64, model_name="m", **setup)
    assert status["status"] == "completed", status["error_message"]
    card = client.get("/models/m").json()
    wrappers = [{"name": "flatten"}, {"name": "frame_stack", "n": 4}]
    assert (card["env_kwargs"], card["wrappers"]) == (setup["env_kwargs"], wrappers)
    assert (card["config"]["env_kwargs"], card["config"]["wrappers"]) == (setup["env_kwargs"], wrappers)
    assert card["observation_space"]["shape"] == [4 * 64]
    assert client.post("/models/m/evaluate", json={"n_episodes": 1}).status_code == 200
    assert client.get("/models/m/video?max_steps=2").status_code == 200
    observation = [1] + [0] * 255
    assert client.post("/inference", json={"model_name": "m", "observation": observation}).status_code == 200
    repeated = client.post("/train", json={**card["config"], "model_name": "again"})
    assert repeated.json()["config"] == {**card["config"], "model_name": "again"}


@pytest.mark.parametrize(
    "claimed", [{"env_kwargs": {"xml_file": "x"}}, {"env_kwargs": 1}, {"wrappers": ["os"]}, {"wrappers": 1}], ids=str
)
def test_a_file_that_asks_for_more_than_a_request_may_is_not_played(
    client: TestClient, claimed: dict[str, Any]
) -> None:
    content = forge(make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"), **claimed)
    assert client.put("/models/m/file", content=content, headers=ZIP).status_code == 200
    response = client.post("/models/m/evaluate", json={"n_episodes": 1})
    assert response.status_code == 409
    assert "env_kwargs or wrappers that a request could not give" in response.json()["detail"]
    assert client.get("/models/m").json()["env_kwargs"] is None


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"env_kwargs": {"map_nam": "8x8"}}, 400, "did you mean 'map_name'? It takes: desc, is_slippery, map_name"),
        ({"env_kwargs": {"map_name": "9x9"}}, 400, "cannot be created as asked: it does not know"),
        ({"env_kwargs": {"map_path": "a"}}, 422, "may name a file"),
        ({"wrappers": ["rescale_action"]}, 400, "wrapper 'rescale_action' does not fit"),
        ({"wrappers": ["flaten"]}, 422, "did you mean 'flatten'"),
        ({"wrappers": ["normalize"], "normalize": True}, 400, "send one of them"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_the_remedy(
    client: TestClient, request_: dict[str, Any], status: int, said: str
) -> None:
    response = client.post("/train", json={"env_name": "FrozenLake-v1", **request_})
    assert response.status_code == status
    assert said in response.text.replace('\\"', '"')


def test_the_wrapper_normalize_is_the_setting_of_that_name(client: TestClient) -> None:
    wrappers = [{"name": "normalize", "norm_reward": False}]
    response = client.post("/train", json={"total_timesteps": 32, "wrappers": wrappers})
    config = response.json()["config"]
    assert (config["wrappers"], config["normalize"]) == ([], {"norm_obs": True, "norm_reward": False})


def test_what_is_not_installed_is_named_with_the_command_wherever_it_is_asked_for(
    client: TestClient, register_env: RegisterEnv
) -> None:
    def fail() -> LineEnv:
        raise gym.error.DependencyNotInstalled("no MuJoCo") from ModuleNotFoundError(name="mujoco")

    env_name = register_env(fail)
    lacking = 'mujoco is not installed: pip install "gymnasium[mujoco]"'
    detail = f"env_name '{env_name}' cannot be created on this server: {lacking}"
    assert client.get(f"/environments/{env_name}").json()["detail"] == detail
    assert client.post("/train", json={"env_name": env_name}).json()["detail"] == detail
    for response in (
        client.get("/environments/MiniGrid-Maze-v0"),
        client.post("/train", json={"env_name": "MiniGrid-Maze-v0"}),
    ):
        assert response.json()["detail"].endswith("--env-module minigrid, after: pip install minigrid")


def test_an_environment_names_the_wrappers_that_make_it_fit(client: TestClient) -> None:
    described = client.get("/environments/Blackjack-v1").json()
    assert (described["group_mode"], described["preset_name"]) == (None, None)
    assert described["obstacle"].endswith('Over HTTP: "wrappers": ["flatten"].')
    request = {"env_name": "Blackjack-v1", "total_timesteps": 32, "wrappers": described["wrappers"]}
    assert client.post("/train", json=request).json()["config"]["preset"] == "general-discrete"
    described = client.get("/environments/CliffWalking-v1").json()
    assert (described["preset_name"], described["preset"]) == ("general-discrete", None)
    assert described["env_kwargs"] == {"is_slippery": False}


def test_a_value_of_env_kwargs_that_fails_only_in_a_step_is_named_before_the_environment() -> None:
    class Slow(LineEnv):
        def step(self, action: Any) -> Any:
            raise TypeError("'str' object cannot be interpreted as an integer")

    with pytest.raises(InvalidRequestError, match=r"\(delay\): send other values, or fix it"):
        try_methods("Slow-v0", Slow(), {"delay": "0"})
    with pytest.raises(InvalidRequestError, match=r"\. Fix it, and start the server anew"):
        try_methods("Slow-v0", Slow(), {})
