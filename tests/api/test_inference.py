"""The contract over HTTP: asking a model for an action."""

import os
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from json import dumps, loads
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.api.calls import BALANCED, SHORT, ask, list_models, refuse
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.grpo_core.values.test_fit import Line
from tests.models import make_model
from tests.support import serve, train, train_to_end, wait_for_end, wait_until


@pytest.mark.parametrize(
    ("env_name", "observation", "n_actions"),
    [
        ("CartPole-v1", BALANCED, 2),
        ("Acrobot-v1", [1.0, 0.0, 1.0, 0.0, 0.0, 0.0], 3),
        ("FrozenLake-v1", 5, 4),
    ],
)
def test_a_choice_is_an_integer_with_the_probability_of_each(
    client: TestClient, env_name: str, observation: Any, n_actions: int
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


def test_a_value_foretells_what_follows(client: TestClient, register_env: RegisterEnv) -> None:
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


def test_a_continuous_action_is_a_list_within_its_bounds(client: TestClient) -> None:
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
    client: TestClient, models_dir: Path, env_name: str, observation: Any, expected: str
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
def test_an_observation_that_is_none_breaks_the_schema(client: TestClient, models_dir: Path, observation: str) -> None:
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
def test_a_request_that_breaks_the_schema_is_refused(client: TestClient, request_: dict[str, Any]) -> None:
    refuse(client, 422, "/inference", **request_)


def test_a_model_that_never_was_is_not_found(client: TestClient) -> None:
    assert "no model 'none'" in refuse(client, 404, "/inference", model_name="none", observation=BALANCED)


def test_a_model_still_in_training_is_not_found_and_the_answer_says_so(
    client: TestClient, register_env: RegisterEnv, gate: Gate
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


def test_drawing_an_action_reaches_all_of_them_and_choosing_only_one(client: TestClient, models_dir: Path) -> None:
    make_model("CartPole-v1").save(models_dir / "m.zip")
    drawn = {ask(client, "m", deterministic=False)["action"] for _ in range(60)}
    chosen = {ask(client, "m", deterministic=True)["action"] for _ in range(20)}
    assert (drawn, len(chosen)) == ({0, 1}, 1)


@pytest.mark.parametrize("content", [b"", b"no zip file"])
def test_a_damaged_file_is_a_conflict(client: TestClient, models_dir: Path, content: bytes) -> None:
    (models_dir / "m.zip").write_bytes(content)
    assert list_models(client) == {"m": "corrupt"}
    assert "damaged" in refuse(client, 409, "/inference", model_name="m", observation=BALANCED)


def test_a_file_of_another_algorithm_is_a_conflict(client: TestClient, models_dir: Path) -> None:
    with zipfile.ZipFile(models_dir / "m.zip", "w") as archive:
        archive.writestr("data", "{}")
    assert list_models(client) == {"m": "unsafe"}
    assert "not saved by GRPO" in refuse(client, 409, "/inference", model_name="m", observation=BALANCED)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_what_is_no_regular_file_is_no_model(
    client: TestClient, models_dir: Path, make: Callable[[Path], None]
) -> None:
    make(models_dir / "m.zip")
    assert list_models(client) == {}
    assert "did you mean" not in refuse(client, 404, "/inference", model_name="m", observation=BALANCED)
    assert client.delete("/models/m").status_code == 404
    assert os.path.lexists(models_dir / "m.zip")


def test_sixty_four_clients_are_each_given_the_one_right_answer_while_a_job_trains(
    app: FastAPI, tmp_path: Path
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
