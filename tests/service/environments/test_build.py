"""Environments are built in one way for every purpose."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fastapi.testclient import TestClient
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

from service.environments.build import build_env, build_vec_env
from service.errors import InvalidRequestError
from tests.conftest import RegisterEnv
from tests.support import LineEnv, SpaceEnv, train_to_end

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
    env = build_vec_env(drawn_env, 3)
    assert [type(each) for each in env.envs] == [Monitor] * 3
    assert len({id(each.unwrapped) for each in env.envs}) == 3
    env.close()


def test_an_environment_that_cannot_be_built_is_refused_with_the_reason(register_env: RegisterEnv) -> None:
    def fail() -> LineEnv:
        raise OSError(2, "no track", "/home/someone/track")

    env_name = register_env(fail)
    for build in (lambda: build_env(env_name), lambda: build_vec_env(env_name, 2)):
        with pytest.raises(InvalidRequestError, match=r"on this server \(FileNotFoundError: no track"):
            build()


def test_an_environment_with_unsupported_spaces_is_refused_and_closed(register_env: RegisterEnv) -> None:
    closed = []

    class Graphs(SpaceEnv):
        def close(self) -> None:
            closed.append(True)

    env_name = register_env(lambda: Graphs(spaces.Graph(spaces.Discrete(2), None), spaces.Discrete(2)))
    with pytest.raises(InvalidRequestError, match="'Line-v0' cannot be trained: "):
        build_vec_env(env_name, 1)
    assert closed == [True]
