"""The contract over HTTP where jobs train in processes of their own."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from json import dumps
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import api
from tests.api.calls import SHORT, ask, list_jobs, refuse
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.support import (
    LIVE_METRICS,
    PATIENCE_SECONDS,
    get_status,
    list_workers,
    serve,
    train,
    train_to_end,
    wait_until,
)

in_processes = pytest.mark.parametrize("overrides", [{"executor": "process"}], ids=["processes"])


@in_processes
def test_jobs_train_stop_and_answer_as_ever(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.routes.training._STOP_WAIT_SECONDS", PATIENCE_SECONDS)
    endless = train(client, total_timesteps=10_000_000, model_name="endless")
    status = train_to_end(client, model_name="m", **SHORT)
    assert (status["status"], status["progress"], status["model_name"]) == ("completed", 1.0, "m")
    assert status["metrics"].keys() >= LIVE_METRICS
    assert ask(client, "m")["action"] in (0, 1)
    wait_until(lambda: get_status(client, endless)["current_timesteps"] > 0)
    assert client.post(f"/training/{endless}/stop").json()["message"] == "Training job stopped"
    assert get_status(client, endless)["status"] == "stopped"
    assert ask(client, "endless")["action"] in (0, 1)


@in_processes
def test_lambdas_and_what_is_defined_in_a_function_train_as_well(
    client: TestClient, register_env: RegisterEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(LineEnv):
        pass

    monkeypatch.setitem(api.REWARD_FUNCTIONS, "mine", lambda state, action, next_state: state[:, :1])
    status = train_to_end(client, env_name=register_env(Mine), reward_function_type="mine", **SHORT)
    assert (status["status"], status["warnings"]) == ("completed", [])


@in_processes
def test_what_cannot_be_sent_to_a_worker_is_refused_with_the_remedy(
    client: TestClient, register_env: RegisterEnv, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    detail = refuse(client, 400, "/train", env_name=env_name)
    assert "the registration of env_name 'Line-v0' cannot be sent to a worker process (cannot pickle" in detail
    assert "such as locks and open files" in detail
    monkeypatch.setitem(api.REWARD_FUNCTIONS, "mine", lambda state, action, next_state: gate)
    assert "a reward function cannot be sent" in refuse(client, 400, "/train", reward_function_type="mine")
    assert list_jobs(client) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (partial(os._exit, 3), "exited with status 3"),
        (partial(ctypes.string_at, 0), "signal SIGSEGV"),
        (partial(signal.raise_signal, signal.SIGKILL), "memory runs out"),
    ],
    ids=["exit", "segfault", "kill"],
)
@in_processes
def test_a_constructor_that_ends_its_process_costs_one_refusal(
    client: TestClient, register_env: RegisterEnv, fault: Callable[[], Any], said: str
) -> None:
    def build() -> LineEnv:
        fault()
        return LineEnv()

    detail = refuse(client, 400, "/train", env_name=(env_name := register_env(build)))
    assert said in detail
    assert ("lower n_envs, n_steps or net_arch" in detail) == ("memory" in said)
    described = client.get(f"/environments/{env_name}").json()["detail"]
    assert said in described
    assert "n_envs" not in described, "nothing that this request could change"
    assert train_to_end(client, **SHORT)["status"] == "completed"


@pytest.mark.parametrize("overrides", [{"executor": "process", "task_seconds": 1}], ids=["processes"])
def test_a_constructor_that_hangs_costs_one_refusal(client: TestClient, register_env: RegisterEnv) -> None:
    def build() -> LineEnv:
        time.sleep(1000)
        return LineEnv()

    assert "longer than 1 s, the limit that GRPO_TASK_SECONDS" in refuse(
        client, 400, "/train", env_name=register_env(build)
    )
    wait_until(lambda: list_workers() == [])


@pytest.mark.parametrize("overrides", [{"max_queued_jobs": 62}], ids=["64 places"])
def test_while_64_requests_are_planned_others_are_answered_and_none_is_refused(
    app: FastAPI, register_env: RegisterEnv
) -> None:
    gate = Gate()

    def build() -> LineEnv:
        gate.pass_through()
        return LineEnv()

    def call(method: str, path: str, body: dict[str, Any] | None = None) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        connection.request(method, path, None if body is None else dumps(body), {"Content-Type": "application/json"})
        status = connection.getresponse().status
        connection.close()
        return status

    # Proving that a simulator can be restored takes a tenth of a second, twice a job; episodes need no proof.
    request = {"env_name": register_env(build), "total_timesteps": 4, "n_steps": 4, "n_eval_episodes": 0}
    request |= {"group_mode": "episode", "horizon": 2}
    with serve(app) as port, ThreadPoolExecutor(64) as pool:
        statuses = [pool.submit(call, "POST", "/train", {**request, "n_epochs": 1 + i % 100}) for i in range(64)]
        wait_until(lambda: gate.n_arrived == 2)
        assert call("GET", "/models") == call("GET", "/training/jobs") == 200
        gate.admit()
        assert {status.result(PATIENCE_SECONDS) for status in statuses} == {200}
