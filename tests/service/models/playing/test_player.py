"""Models are evaluated and filmed in the environments that their files name, and failures are reported."""

import errno
import io
import json
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from api import create_app
from grpo import GRPO
from grpo_core.options.rewards import REWARD_FUNCTIONS
from grpo_core.saving import model_file
from service.app import Service
from service.settings import Settings
from tests.environments import FloatArray, Gate, LineEnv
from tests.models import forge, make_model
from tests.support import PATIENCE_SECONDS, PATIENT, list_workers, make_client, serve, train_to_end, wait_until

RegisterEnv = Callable[..., str]
SaveModel = Callable[..., None]


class DrawnLineEnv(LineEnv):
    """A line rendered as an image whose brightness is ten times the number of steps taken."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  # as Gymnasium has it
    render_mode = "rgb_array"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.n_resets = self._n_steps = 0

    def reset(self, **arguments: Any) -> tuple[FloatArray, dict[str, Any]]:
        self._n_steps = 0
        return super().reset(**arguments)

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        self._n_steps += 1
        return super().step(action)

    def render(self) -> Any:
        return np.full((20, 30, 3), 10 * self._n_steps, np.uint8)


class EndlessEnv(LineEnv):
    """A line that never ends."""

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        observation, reward, *_, info = super().step(action)
        return observation, reward, False, False, info


def make_hanging(**arguments: Any) -> DrawnLineEnv:
    """Build a line that hangs when it is rendered; a worker imports this module for it."""

    class Hanging(DrawnLineEnv):
        def render(self) -> Any:
            time.sleep(1000)

    return Hanging()


def make_line_model(action: int) -> bytes:
    """Build a policy for a line that always goes one way."""
    model = GRPO("MlpPolicy", LineEnv(), n_steps=64, group_size=2, horizon=32, seed=0)
    weights = model.policy.state_dict()
    weights["action_net.bias"][action] = 100.0
    model.policy.load_state_dict(weights)
    return model.to_bytes(env_name="Line-v0")


@pytest.fixture(scope="module")
def to_the_right() -> bytes:
    return make_line_model(1)


@pytest.fixture(scope="module")
def to_the_left() -> bytes:
    return make_line_model(0)


@pytest.fixture
def save(settings: Settings) -> SaveModel:
    """Save a model in the folder."""

    def put(content: bytes, name: str = "m") -> None:
        settings.models_dir.mkdir(exist_ok=True)
        (settings.models_dir / f"{name}.zip").write_bytes(content)

    return put


def evaluate(client: TestClient, model_name: str = "m", **request: Any) -> dict[str, Any]:
    response = client.post(f"/models/{model_name}/evaluate", json=request)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = json.loads(response.text, parse_constant=lambda constant: pytest.fail(constant))
    return answer


def get_detail(response: Any, status_code: int) -> str:
    assert response.status_code == status_code, response.text
    detail: str = response.json()["detail"]
    return detail


def list_frames(content: bytes) -> list[int]:
    """Return the brightness of each frame of a GIF."""
    with Image.open(io.BytesIO(content)) as film:
        shades = []
        for i in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(i)
            shades.append(int(np.asarray(film.convert("RGB"))[0, 0, 0]))
    return shades


class TestEvaluating:
    def test_the_figures_agree_with_the_same_episodes_played_by_hand(
        self, client: TestClient, save: SaveModel, tmp_path: Path
    ) -> None:
        content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
        save(content)
        (tmp_path / "m.zip").write_bytes(content)
        model, env = GRPO.load(tmp_path / "m.zip"), gym.make("CartPole-v1")
        env.action_space.seed(7)
        rewards: dict[str, list[int]] = {"evaluation": [], "random": []}
        for name, episodes in rewards.items():
            for seed in (7, 8, 9):
                observation, _ = env.reset(seed=seed)
                n_steps, is_over = 0, False
                while not is_over:
                    action = (
                        env.action_space.sample()
                        if name == "random"
                        else model.predict(observation, deterministic=True)[0]
                    )
                    observation, _, terminated, truncated, _ = env.step(action)
                    n_steps, is_over = n_steps + 1, terminated or truncated
                episodes.append(n_steps)
        answer = evaluate(client, n_episodes=3, seed=7)
        for name, episodes in rewards.items():
            figures = answer[name]
            assert (figures["n_episodes"], figures["mean_length"]) == (3, pytest.approx(np.mean(episodes)))
            assert figures["mean_reward"] == pytest.approx(np.mean(episodes))
            assert figures["std_reward"] == pytest.approx(np.std(episodes))
            assert (figures["min_reward"], figures["max_reward"]) == (min(episodes), max(episodes))
            assert figures["success_rate"] is None  # balancing has no goal to reach
        assert (answer["model_name"], answer["env_name"], answer["seed"]) == ("m", "CartPole-v1", 7)
        assert answer["deterministic"] is True
        assert answer["seconds"] > 0

    def test_a_policy_that_always_wins_is_better_than_random_and_one_that_never_wins_is_not(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes, to_the_left: bytes
    ) -> None:
        register_env(LineEnv)
        save(to_the_right)
        winner = evaluate(client)
        # Five steps to the right, each with a reward of 1.
        assert winner["evaluation"]["mean_reward_ci95"] == [5.0, 5.0]
        assert winner["evaluation"]["mean_length"] == 5.0
        assert winner["evaluation"]["n_episodes"] == winner["random"]["n_episodes"] == 20
        assert winner["evaluation"]["success_rate"] is None
        assert winner["better_than_random"] is (winner["random"]["mean_reward_ci95"][1] < 5.0)
        save(to_the_left)
        loser = evaluate(client)
        assert (loser["evaluation"]["mean_reward"], loser["better_than_random"]) == (0.0, False)
        assert loser["random"] == winner["random"]

    def test_an_episode_without_an_end_is_cut_after_many_steps_and_the_answer_says_so(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_left: bytes
    ) -> None:
        register_env(EndlessEnv)
        save(to_the_left)
        answer = evaluate(client, n_episodes=1)
        assert (answer["evaluation"]["mean_length"], answer["random"]["mean_length"]) == (10_000, 10_000)
        assert [warning.split(" steps")[0] for warning in answer["warnings"]] == [
            "1 of 1 episodes of the policy lasted for 10,000",
            "1 of 1 episodes of random actions lasted for 10,000",
        ]
        assert "register the environment with max_episode_steps" in answer["warnings"][0]

    def test_one_episode_proves_nothing(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        register_env(LineEnv)
        save(to_the_right)
        answer = evaluate(client, n_episodes=1)
        assert (answer["evaluation"]["mean_reward_ci95"], answer["better_than_random"]) == (None, False)

    def test_the_seed_makes_drawn_actions_reproducible(self, client: TestClient, save: SaveModel) -> None:
        save(make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"))
        drawn = [evaluate(client, n_episodes=5, seed=seed, deterministic=False)["evaluation"] for seed in (1, 2)]
        save(make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"))  # a new file, so nothing is cached
        assert evaluate(client, n_episodes=5, seed=1, deterministic=False)["evaluation"] == drawn[0]
        assert drawn[0] != drawn[1]

    def test_the_card_shows_the_latest_evaluation_of_the_current_file(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes, to_the_left: bytes
    ) -> None:
        register_env(LineEnv)
        save(to_the_right)
        assert client.get("/models/m").json()["evaluation"] is None
        evaluate(client, n_episodes=3)
        evaluate(client, n_episodes=2)
        assert client.get("/models/m").json()["evaluation"]["n_episodes"] == 2
        evaluate(client, n_episodes=3)
        assert client.get("/models/m").json()["evaluation"]["n_episodes"] == 3
        save(to_the_left)
        assert client.get("/models/m").json()["evaluation"] is None

    def test_the_card_shows_none_of_sampled_actions(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        register_env(LineEnv)
        save(to_the_right)
        evaluate(client, n_episodes=3, deterministic=False)
        assert client.get("/models/m").json()["evaluation"] is None
        evaluate(client, n_episodes=2)
        evaluate(client, n_episodes=3, deterministic=False)
        assert client.get("/models/m").json()["evaluation"]["n_episodes"] == 2

    def test_an_evaluation_is_remembered_until_the_file_changes(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes, to_the_left: bytes
    ) -> None:
        n_resets: list[None] = []
        register_env(lambda: LineEnv(on_reset=lambda: n_resets.append(None)))
        save(to_the_right)
        assert evaluate(client, n_episodes=2) == evaluate(client, n_episodes=2)
        assert len(n_resets) == 4
        save(to_the_left)
        evaluate(client, n_episodes=2)
        assert len(n_resets) == 8

    def test_it_names_the_model_as_this_request_did(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        register_env(LineEnv)
        save(to_the_right)
        client.put("/models/m/aliases/prod")
        by_names = [evaluate(client, name, n_episodes=2) for name in ("m", "m@prod")]
        assert [answer.pop("model_name") for answer in by_names] == ["m", "m@prod"]
        assert by_names[0] == by_names[1]

    def test_rewards_that_are_not_finite_are_refused(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        class Unpayable(LineEnv):
            def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
                observation, _, *rest = super().step(action)
                return observation, float("nan"), *rest  # type: ignore[return-value]

        register_env(Unpayable)
        save(to_the_right)
        assert "not finite" in get_detail(client.post("/models/m/evaluate"), 400)

    @pytest.mark.parametrize(
        "request_body",
        [{"n_episodes": 0}, {"n_episodes": 1001}, {"seed": -1}, {"seed": 2**31}, {"n_episodes": "2"}, {"episodes": 2}],
        ids=str,
    )
    def test_fields_out_of_range_are_refused(self, client: TestClient, request_body: dict[str, Any]) -> None:
        get_detail(client.post("/models/m/evaluate", json=request_body), 422)


class TestFilming:
    def test_a_film_shows_the_episode_from_its_reset_to_its_end(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        register_env(DrawnLineEnv)
        save(to_the_right)
        response = client.get("/models/m/video")
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "image/gif"
        assert response.headers["x-episode-reward"] == "5.0"
        assert response.headers["x-episode-length"] == "5"
        assert list_frames(response.content) == [0, 10, 20, 30, 40, 50]

    def test_a_film_may_be_cut(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        register_env(DrawnLineEnv)
        save(to_the_right)
        response = client.get("/models/m/video", params={"max_steps": 2})
        assert response.headers["x-episode-length"] == "2"
        assert list_frames(response.content) == [0, 10, 20]

    def test_a_video_shows_the_same_frames(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes, tmp_path: Path
    ) -> None:
        register_env(DrawnLineEnv)
        save(to_the_right)
        response = client.get("/models/m/video", params={"format": "mp4"})
        assert response.headers["content-type"] == "video/mp4"
        (tmp_path / "film.mp4").write_bytes(response.content)
        # Six frames at five per second.
        assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "film.mp4")) == (6, pytest.approx(1.2, abs=0.05))

    def test_a_repeated_request_gets_the_same_film(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        n_resets: list[None] = []
        register_env(lambda: DrawnLineEnv(on_reset=lambda: n_resets.append(None)))
        save(to_the_right)
        questions: list[dict[str, Any]] = [
            {},
            {"seed": 1},
            {"deterministic": False},
            {"max_steps": 2},
            {"format": "mp4"},
        ]
        first = [client.get("/models/m/video", params=question).content for question in questions]
        assert len(n_resets) == 5
        assert [client.get("/models/m/video", params=question).content for question in questions] == first
        assert len(n_resets) == 5

    def test_a_jobs_film_comes_again_whatever_became_of_its_policy(self, client: TestClient) -> None:
        job = {"env_name": "CartPole-v1", "total_timesteps": 64, "n_steps": 64, "n_eval_episodes": 0}
        job_id = train_to_end(client, **job, model_name="m")["job_id"]
        first = client.get(f"/training/{job_id}/video?max_steps=2")
        digest = first.headers["etag"].strip('"')
        assert get_detail(client.get(f"/training/{job_id}/video?max_steps=2&of={'0' * 64}"), 404).startswith("the film")
        client.delete("/models/m")
        detail = get_detail(client.get(f"/training/{job_id}/video?max_steps=2"), 409)
        assert "train it again, or upload it" in detail, "no model is left whose versions could be listed"
        assert client.get(f"/training/{job_id}/video?max_steps=2&of={digest}").content == first.content

    def test_no_film_of_another_policy_or_format_is_a_jobs(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        job = {"env_name": "CartPole-v1", "total_timesteps": 64, "n_steps": 64, "n_eval_episodes": 0}
        path = f"/training/{train_to_end(client, **job, model_name='cp')['job_id']}/video?max_steps=2"
        register_env(DrawnLineEnv)
        save(to_the_right)
        foreign, own = (client.get(film).headers["etag"].strip('"') for film in ("/models/m/video", path))
        assert "no film of this job" in get_detail(client.get(f"{path}&of={foreign}"), 404)
        assert "no film of this job" in get_detail(client.get(f"{path}&format=mp4&of={own}"), 404)
        assert client.get(f"{path}&of={own}").status_code == 200
        other_seed = client.get("/training/latest/video?max_steps=2&seed=9").headers["etag"].strip('"')
        assert client.get(f"{path}&of={other_seed}").status_code == 200, "it is the same job"
        train_to_end(client, **job, model_name="later")
        latest = f"/training/latest/video?max_steps=2&of={other_seed}"
        assert "no film of this job" in get_detail(client.get(latest), 404)

    def test_a_job_is_filmed_although_a_later_one_has_replaced_its_model(self, client: TestClient) -> None:
        job = {"env_name": "CartPole-v1", "total_timesteps": 64, "n_steps": 64, "n_eval_episodes": 0, "model_name": "m"}
        first, second = (train_to_end(client, **job, seed=seed)["job_id"] for seed in (0, 1))
        films = [client.get(f"/training/{job_id}/video?max_steps=50").content for job_id in (first, second)]
        assert films == [client.get(f"/models/{name}/video?max_steps=50").content for name in ("m@1", "m")]
        client.delete("/models/m")
        assert "was deleted" in get_detail(client.get(f"/training/{first}/video?max_steps=50"), 409)

    def test_an_environment_that_cannot_be_rendered_is_refused_with_the_remedy(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        register_env(LineEnv)
        save(to_the_right)
        detail = get_detail(client.get("/models/m/video"), 400)
        assert "Line-v0" in detail
        assert "rgb_array" in detail
        assert "evaluate" in detail

    def test_a_rendered_frame_must_be_an_image(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        class Blank(DrawnLineEnv):
            def render(self) -> Any:
                return None

        register_env(Blank)
        save(to_the_right)
        assert "uint8" in get_detail(client.get("/models/m/video"), 400)

    @pytest.mark.parametrize("query", ["format=avi", "seed=-1", "seed=x", "max_steps=0", "max_steps=5001"])
    def test_parameters_out_of_range_are_refused(self, client: TestClient, query: str) -> None:
        get_detail(client.get(f"/models/m/video?{query}"), 422)


class TestModelsThatCannotBePlayed:
    @pytest.fixture(params=["evaluate", "video"])
    def play(self, client: TestClient, request: pytest.FixtureRequest) -> Callable[[], Any]:
        def send() -> Any:
            path = f"/models/m/{request.param}"
            return client.post(path) if request.param == "evaluate" else client.get(path)

        return send

    def test_a_missing_one(self, play: Callable[[], Any]) -> None:
        assert "GET /models" in get_detail(play(), 404)

    def test_a_damaged_file(self, play: Callable[[], Any], save: SaveModel, to_the_right: bytes) -> None:
        save(to_the_right[:-9])
        assert "cannot be used" in get_detail(play(), 409)

    def test_a_file_that_names_no_environment(self, play: Callable[[], Any], save: SaveModel) -> None:
        save(make_model("CartPole-v1").to_bytes())
        assert "names no environment" in get_detail(play(), 409)

    def test_a_file_whose_environment_is_not_registered(
        self, play: Callable[[], Any], save: SaveModel, to_the_right: bytes
    ) -> None:
        save(to_the_right)
        detail = get_detail(play(), 409)
        assert "Line-v0" in detail
        assert "--env-module" in detail

    @pytest.mark.parametrize(
        "env_name", ["imported_by_file:Env-v0", "imported_by_file:", "../imported_by_file", 7, None]
    )
    def test_a_forged_file_imports_nothing(
        self,
        play: Callable[[], Any],
        save: SaveModel,
        to_the_right: bytes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        env_name: Any,
    ) -> None:
        (tmp_path / "imported_by_file.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        save(forge(to_the_right, env_name=env_name))
        get_detail(play(), 409)
        assert "imported_by_file" not in sys.modules

    def test_a_policy_of_other_spaces(self, play: Callable[[], Any], save: SaveModel, to_the_right: bytes) -> None:
        save(forge(to_the_right, env_name="CartPole-v1"))
        detail = get_detail(play(), 409)
        assert "observations" in detail
        assert "CartPole-v1" in detail

    def test_an_environment_that_fails(
        self, play: Callable[[], Any], save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        def fail() -> None:
            raise OSError(2, "the track is closed", "/home/somebody/track")

        register_env(lambda: DrawnLineEnv(on_step=fail))
        save(to_the_right)
        detail = get_detail(play(), 400)
        assert "the track is closed" in detail
        assert "/home" not in detail

    @pytest.mark.parametrize("overrides", [{"task_seconds": 0.3}])
    def test_an_episode_without_an_end(
        self, client: TestClient, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        register_env(EndlessEnv, max_episode_steps=10**9)
        save(to_the_right)
        detail = get_detail(client.post("/models/m/evaluate"), 413)
        assert "0.3 s" in detail
        assert "fewer episodes" in detail


class TestManyClients:
    def test_clients_that_leave_make_room_for_others(
        self, app: FastAPI, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        gate = Gate()
        register_env(lambda: LineEnv(on_step=gate.pass_through))
        save(to_the_right)
        with serve(app) as port:
            for n_gone in range(4):
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    body = json.dumps({"n_episodes": 1, "seed": n_gone}).encode()
                    connection.sendall(
                        b"POST /models/m/evaluate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                    )
                    wait_until(lambda n_gone=n_gone: gate.n_arrived >= min(n_gone + 1, 2))  # type: ignore[misc]
            gate.admit()
            client = TestClient(app, base_url="http://localhost")
            assert evaluate(client, n_episodes=2, seed=9)["evaluation"]["n_episodes"] == 2

    def test_more_than_ten_at_once_are_told_to_try_again(
        self, app: FastAPI, save: SaveModel, register_env: RegisterEnv, to_the_right: bytes
    ) -> None:
        gate = Gate()
        register_env(lambda: LineEnv(on_step=gate.pass_through))
        save(to_the_right)
        with serve(app) as port:
            connections = [socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) for _ in range(11)]
            for connection in connections:
                connection.sendall(b"POST /models/m/evaluate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            (refused, *others), _, _ = select.select(connections, [], [], PATIENCE_SECONDS)
            assert others == []
            answer = refused.recv(4096)
            assert answer.startswith(b"HTTP/1.1 429")
            assert b"retry-after" in answer.lower()
            gate.admit()
            for connection in connections:
                if connection is not refused:
                    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
                connection.close()


@pytest.fixture
def process_client(tmp_path: Path) -> Iterator[TestClient]:
    with make_client(Settings(models_dir=tmp_path / "models", executor="process", **PATIENT)) as client:
        yield client


def test_a_worker_process_evaluates_and_films_without_a_screen(process_client: TestClient, save: SaveModel) -> None:
    save(make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"))
    assert evaluate(process_client, n_episodes=2)["evaluation"]["n_episodes"] == 2
    for video_format, start in (("gif", b"GIF89a"), ("mp4", b"\x00\x00\x00")):
        response = process_client.get("/models/m/video", params={"format": video_format, "max_steps": 20})
        assert response.status_code == 200, response.text
        assert response.content.startswith(start)
    with Image.open(io.BytesIO(process_client.get("/models/m/video?max_steps=20").content)) as film:
        assert film.size == (480, 320)
        shot = np.asarray(film.convert("RGB"))
    # The cart is black, on a white background.
    assert shot[250, 240].max() < 60
    assert shot[10, 10].min() > 240


def test_an_environment_that_hangs_is_killed_and_leaves_nothing_behind(
    tmp_path: Path, save: SaveModel, to_the_right: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gym.register("Line-v0", entry_point=make_hanging)
    try:
        save(to_the_right)
        app = create_app(Settings(models_dir=tmp_path / "models", executor="process", **PATIENT))
        with TestClient(app, base_url="http://localhost") as client:
            assert client.post("/models/m/evaluate").status_code == 200
            monkeypatch.setattr(app.state.service.short_tasks, "_limit_seconds", 5.0)
            detail = get_detail(client.get("/models/m/video"), 413)
            assert "max_steps" in detail
            wait_until(lambda: list_workers() == [])
        assert not list(tmp_path.glob("grpo-film-*"))
    finally:
        del gym.registry["Line-v0"]


@pytest.mark.parametrize("problem", [errno.ENOENT, errno.ENOSPC])
def test_a_temporary_folder_that_cannot_be_used_is_told(
    client: TestClient,
    save: SaveModel,
    register_env: RegisterEnv,
    to_the_right: bytes,
    monkeypatch: pytest.MonkeyPatch,
    problem: int,
) -> None:
    register_env(DrawnLineEnv)
    save(to_the_right)
    refuse = Mock(side_effect=OSError(problem, "No usable temporary directory found in ['/srv/private']"))
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    detail = get_detail(client.get("/models/m/video"), 507)
    assert f"temporary folder cannot be used ({os.strerror(problem)})" in detail
    assert "private" not in detail


def test_what_a_killed_server_left_of_a_film_goes_when_another_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("grpo-film-old", "grpo-film-new", "of-others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "frame").touch()
    for name in ("grpo-film-old", "of-others"):
        os.utime(tmp_path / name, (0, 0))
    Service(settings, REWARD_FUNCTIONS).close()
    assert {path.name for path in tmp_path.iterdir()} >= {"grpo-film-new", "of-others"}
    assert not (tmp_path / "grpo-film-old").exists()


def test_a_policy_without_finite_numbers_has_no_figures(client: TestClient, save: SaveModel) -> None:
    content = model_file.from_bytes(make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"))
    weights = {name: np.full_like(array, 3e38) for name, array in content.weights.items()}
    save(model_file.to_bytes(content.meta, weights, {}))
    for answer in (
        client.post("/models/m/evaluate", json={"n_episodes": 1}),
        client.get("/models/m/video?max_steps=2"),
    ):
        assert "makes no finite numbers" in get_detail(answer, 409)
    answer = client.post("/inference", json={"model_name": "m", "observation": [1, 1, 1, 1]})
    assert "or the model's weights, are too large" in get_detail(answer, 400)
