"""Jobs go on after a stop, an error, or the death of their worker, and end as if nothing had happened."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.support import (
    FINAL_STATUSES,
    PATIENT,
    RAY,
    be_patient,
    get_status,
    make_client,
    train,
    train_to_end,
    wait_for_end,
    wait_until,
)

# Eight rollouts; a checkpoint after the second, the fourth and so on.
JOB = {"total_timesteps": 512, "n_steps": 64, "checkpoint_every": 128, "seed": 4, "n_eval_episodes": 2}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=["process", RAY])
def processes(models_dir: Path, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """A service that trains in processes, here or on a cluster."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    with make_client(Settings(models_dir=models_dir, executor=request.param, **PATIENT)) as client:
        yield client


def make_patient(make_env: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """Build an environment in a worker, where no evaluation is to be cut short because the machine is busy."""
    be_patient()
    return make_env()


def make_bare(env_name: str) -> gym.Env[Any, Any]:
    return gym.make(env_name).unwrapped


def is_called_by(name: str) -> bool:
    """Say whether a function of that name is among those that called the caller of this one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None


def count_training_steps(counter: Path) -> int:
    """Count another step, in a file that a killed process leaves behind; steps of evaluations do not count."""
    if not is_called_by("_step_branches"):
        return 0
    with counter.open("ab") as file:
        file.write(b".")
    return counter.stat().st_size


def fail_once(marker: Path, step: int, counter: Path, fail: Any) -> None:
    """Fail at one of the training's steps, once."""
    if count_training_steps(counter) == step and not marker.exists():
        marker.touch()
        fail()


def raise_error() -> None:
    raise RuntimeError("the cable is loose")


def make_failing(register_env: RegisterEnv, folder: Path, step: int, fail: Any) -> str:
    """Register a line whose step fails once."""
    on_step = partial(fail_once, folder / "failed", step, folder / "steps", fail)
    return register_env(partial(make_patient, partial(LineEnv, on_step=on_step)), "Failing-v0")


@pytest.fixture(scope="module")
def whole(processes: TestClient) -> Iterator[dict[str, Any]]:
    """A job that nothing interrupts."""
    gym.register("Whole-v0", entry_point=partial(make_patient, LineEnv))
    yield train_to_end(processes, **JOB, env_name="Whole-v0")
    del gym.registry["Whole-v0"]


class TestAWorkerThatDies:
    def test_its_job_goes_on_from_its_checkpoint_by_itself(
        self, register_env: RegisterEnv, processes: TestClient, tmp_path: Path, whole: dict[str, Any]
    ) -> None:
        kill = partial(signal.raise_signal, signal.SIGKILL)
        status = train_to_end(processes, **JOB, env_name=make_failing(register_env, tmp_path, 300, kill))
        assert (status["status"], status["n_restarts"]) == ("completed", 1)
        assert re.search(r"The job went on from step (1[3-9]|2\d)\d\.$", status["warnings"][0])
        assert "SIGKILL" in status["warnings"][0]
        assert status["final_evaluation"]["mean_reward"] == whole["final_evaluation"]["mean_reward"]
        # What was seen before the checkpoint is kept, and what came after it was seen once.
        rows = processes.get(f"/training/{status['job_id']}/metrics").json()["rows"]
        steps = [row["timesteps"] for row in rows]
        assert steps[:-1] == sorted(set(steps[:-1]))  # the last update's come without steps
        assert steps[0] < 128
        assert steps[-1] >= 512
        assert not os.listdir(Path(str(processes.app.state.service.settings.models_dir)) / ".checkpoints")  # type: ignore[attr-defined]

    def test_it_is_not_restarted_more_often_than_allowed_and_can_be_resumed(
        self, register_env: RegisterEnv, processes: TestClient, tmp_path: Path
    ) -> None:
        env_name = make_failing(register_env, tmp_path, 300, partial(os._exit, 3))
        status = train_to_end(processes, **JOB, env_name=env_name, max_restarts=0)
        assert (status["status"], status["n_restarts"]) == ("failed", 0)
        assert 128 <= (timesteps := status["checkpoint"]["timesteps"]) < 300
        # What fails is a function in an attribute, which no file holds beside what the environment captures itself.
        assert status["checkpoint"]["exact"] is None
        assert "what only its resets change is not kept" in status["checkpoint"]["note"]
        answer = processes.post(f"/training/{status['job_id']}/resume")
        assert answer.status_code == 200
        assert answer.json() | {"config": None} == {
            "message": "Training resumed",
            "job_id": status["job_id"],
            "timesteps": timesteps,
            "config": None,
        }
        ended = wait_for_end(processes, status["job_id"])
        assert (ended["status"], ended["error_message"], ended["n_restarts"]) == ("completed", None, 1)
        assert ended["current_timesteps"] >= 512

    def test_one_that_dies_again_and_again_is_replaced_after_a_pause_that_a_stop_ends(
        self, register_env: RegisterEnv, processes: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("service.restart_pause._FIRST_SECONDS", 3600.0)
        monkeypatch.setattr("service.restart_pause._LONGEST_SECONDS", 3600.0)
        env_name = register_env(partial(LineEnv, on_step=partial(die_at, tmp_path / "steps", tuple(range(1000)))))
        job_id = train(processes, **JOB, env_name=env_name, max_restarts=10)
        wait_until(lambda: get_status(processes, job_id)["n_restarts"] == 2)
        processes.post(f"/training/{job_id}/stop")
        assert wait_for_end(processes, job_id)["n_restarts"] == 2

    def test_after_the_training_only_the_evaluation_is_lost(
        self, register_env: RegisterEnv, processes: TestClient
    ) -> None:
        env_name = register_env(partial(LineEnv, on_reset=exit_in_evaluation))
        status = train_to_end(processes, **JOB, env_name=env_name)
        assert (status["status"], status["final_evaluation"]) == ("completed", None)
        assert "the policy was saved but not evaluated" in status["warnings"][-1]
        answer = processes.post("/inference", json={"model_name": status["model_name"], "observation": [0.0, 0.0]})
        assert answer.status_code == 200


def exit_in_evaluation() -> None:
    if is_called_by("evaluate_finally"):
        os._exit(7)


def test_a_failed_job_goes_on_where_its_environment_failed(
    register_env: RegisterEnv, processes: TestClient, tmp_path: Path
) -> None:
    failed = train_to_end(processes, **JOB, env_name=make_failing(register_env, tmp_path, 300, raise_error))
    assert failed["status"] == "failed"
    assert 128 <= failed["checkpoint"]["timesteps"] < 300
    assert "the cable is loose" in failed["error_message"]
    processes.post(f"/training/{failed['job_id']}/resume")
    assert wait_for_end(processes, failed["job_id"])["status"] == "completed"


MODES: list[tuple[str, dict[str, Any]]] = [
    ("CartPole-v1", {"normalize": True, "n_envs": 2, "baseline": "adaptive"}),
    ("CartPole-v1", {"group_mode": "episode", "horizon": None}),
    ("FrozenLake-v1", {"eval_freq": 300, "keep_best": True, "patience": 50}),
]


def stop_midway(client: TestClient, **request: Any) -> dict[str, Any]:
    """Stop a job that has a checkpoint, and return its final status; again if it was over by then."""
    ended: dict[str, Any] = {}

    def is_stopped() -> bool:
        nonlocal ended
        job_id = train(client, **request)

        def has_come_far_enough() -> bool:
            status = get_status(client, job_id)
            return status["checkpoint"] is not None or status["status"] in FINAL_STATUSES

        wait_until(has_come_far_enough)
        client.post(f"/training/{job_id}/stop")
        ended = wait_for_end(client, job_id)
        return bool(ended["status"] != "completed")

    wait_until(is_stopped)
    return ended


@pytest.mark.parametrize(("env_name", "request_"), MODES, ids=str)
def test_a_stopped_job_ends_with_the_same_file_as_one_that_nobody_stops(
    processes: TestClient, register_env: RegisterEnv, env_name: str, request_: dict[str, Any]
) -> None:
    limit = gym.spec(env_name).max_episode_steps
    patient = register_env(partial(make_patient, partial(make_bare, env_name)), f"Patient-{env_name}", limit)
    settings = {**JOB, "env_name": patient, "total_timesteps": 4_000, "checkpoint_every": 300, **request_}
    settings["model_name"] = f"resumed-{id(request_)}"
    stopped = stop_midway(processes, **settings)
    job_id = stopped["job_id"]
    assert stopped["status"] == "stopped"
    assert stopped["current_timesteps"] < 4_000
    answer = processes.post(f"/training/{job_id}/resume")
    assert answer.json()["timesteps"] == stopped["checkpoint"]["timesteps"] >= 300
    resumed = wait_for_end(processes, job_id)
    # Groups without a signal may be warned of after the stop, and evaluations that a busy machine left no time for.
    by_chance = ("no signal", "were left out")
    before, after = (
        [text for text in job["warnings"] if not any(part in text for part in by_chance)] for job in (stopped, resumed)
    )
    assert (resumed["status"], after) == ("completed", before)
    whole = train_to_end(processes, **settings)
    assert whole["n_restarts"] == 0
    assert resumed["sha256"] == whole["sha256"]
    assert resumed["final_evaluation"] | {"seconds": 0} == whole["final_evaluation"] | {"seconds": 0}


class TestRefusals:
    def test_a_completed_job_is_not_resumed(self, processes: TestClient, whole: dict[str, Any]) -> None:
        answer = processes.post(f"/training/{whole['job_id']}/resume")
        assert answer.status_code == 409
        assert answer.json()["detail"].endswith(
            "is completed; only stopped and failed jobs can be resumed; start a new job with init_model to train its "
            "model on."
        )

    def test_a_job_that_nobody_knows_is_not_resumed(self, processes: TestClient) -> None:
        assert processes.post("/training/nobody/resume").status_code == 404

    def test_a_job_whose_name_is_taken_is_not_resumed(
        self, register_env: RegisterEnv, processes: TestClient, tmp_path: Path
    ) -> None:
        env_name = make_failing(register_env, tmp_path, 200, raise_error)
        failed = train_to_end(processes, **JOB, env_name=env_name, model_name="wanted")
        other = train(processes, env_name="CartPole-v1", total_timesteps=1_000_000, model_name="wanted")
        answer = processes.post(f"/training/{failed['job_id']}/resume")
        processes.post(f"/training/{other}/stop")
        assert answer.status_code == 409
        assert get_status(processes, failed["job_id"])["status"] == "failed"
        wait_for_end(processes, other)


def test_a_checkpoint_that_the_disk_refuses_ends_in_one_warning(
    processes: TestClient, models_dir: Path, register_env: RegisterEnv
) -> None:
    folder = models_dir / ".checkpoints"
    folder.rename(models_dir / ".kept")
    folder.write_text("a file is in the way")
    try:
        status = train_to_end(processes, **JOB, env_name=register_env(LineEnv))
    finally:
        folder.unlink()
        (models_dir / ".kept").rename(folder)
    assert status["status"] == "completed"
    assert sum("no new checkpoint can be kept" in warning for warning in status["warnings"]) == 1


class TestAModelOfSomebodyElse:
    @pytest.fixture
    def stopped(self, register_env: RegisterEnv, processes: TestClient, tmp_path: Path) -> dict[str, Any]:
        """A job that failed, whose name another job's model has by now."""
        env_name = make_failing(register_env, tmp_path, 300, raise_error)
        return train_to_end(processes, **JOB, env_name=env_name, model_name="mine")

    def test_a_job_that_must_not_replace_it_is_not_resumed(
        self, register_env: RegisterEnv, processes: TestClient, tmp_path: Path, whole: dict[str, Any]
    ) -> None:
        env_name = make_failing(register_env, tmp_path, 300, raise_error)
        name = f"kept-{tmp_path.name}"
        failed = train_to_end(processes, **JOB, env_name=env_name, model_name=name, replace=False)
        other = train_to_end(processes, env_name="CartPole-v1", total_timesteps=64, model_name=name)
        answer = processes.post(f"/training/{failed['job_id']}/resume")
        assert answer.status_code == 409
        assert "already exists" in answer.json()["detail"]
        assert processes.get(f"/models/{name}").json()["sha256"] == other["sha256"]

    def test_one_that_may_says_so(self, stopped: dict[str, Any], processes: TestClient) -> None:
        train_to_end(processes, env_name="CartPole-v1", total_timesteps=64, model_name="mine")
        processes.post(f"/training/{stopped['job_id']}/resume")
        assert any("will take its place" in each for each in wait_for_end(processes, stopped["job_id"])["warnings"])

    def test_a_stopped_job_spares_it_although_the_name_was_its_own_before(self, processes: TestClient) -> None:
        settings = {**JOB, "total_timesteps": 10_000_000, "env_name": "CartPole-v1", "model_name": "shared"}
        job_id = train(processes, **settings)

        def stop() -> dict[str, Any]:
            begun = get_status(processes, job_id)["current_timesteps"]
            wait_until(lambda: get_status(processes, job_id)["current_timesteps"] > begun + 300)
            processes.post(f"/training/{job_id}/stop")
            return wait_for_end(processes, job_id)

        assert stop()["model_name"] == "shared"
        processes.post(f"/training/{job_id}/resume")
        assert stop()["model_name"] == "shared"  # its own
        processes.delete("/models/shared")
        other = train_to_end(processes, env_name="CartPole-v1", total_timesteps=64, model_name="shared")
        processes.post(f"/training/{job_id}/resume")
        assert stop()["model_name"] == f"shared-stopped-{job_id[:8]}"
        assert processes.get("/models/shared").json()["sha256"] == other["sha256"]


def die_at(counter: Path, steps: tuple[int, ...]) -> None:
    if count_training_steps(counter) in steps:
        os._exit(3)


def test_a_resume_allows_as_many_restarts_again(
    register_env: RegisterEnv, processes: TestClient, tmp_path: Path
) -> None:
    env_name = register_env(partial(LineEnv, on_step=partial(die_at, tmp_path / "steps", (150, 300, 450))))
    failed = train_to_end(processes, **JOB, env_name=env_name, max_restarts=1)
    assert (failed["status"], failed["n_restarts"]) == ("failed", 1)
    processes.post(f"/training/{failed['job_id']}/resume")
    ended = wait_for_end(processes, failed["job_id"])
    assert (ended["status"], ended["n_restarts"]) == ("completed", 3)


def test_a_checkpoint_that_cannot_be_used_lets_the_job_begin_again(
    register_env: RegisterEnv, processes: TestClient, models_dir: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    failed = train_to_end(processes, **JOB, env_name=make_failing(register_env, tmp_path, 300, raise_error))
    path = models_dir / ".checkpoints" / f"{failed['job_id']}.zip"
    content = path.read_bytes()
    path.write_bytes(content[:-200])
    assert processes.post(f"/training/{failed['job_id']}/resume").json()["timesteps"] == 0
    ended = wait_for_end(processes, failed["job_id"])
    assert (ended["status"], ended["current_timesteps"]) == ("completed", whole["current_timesteps"])
    assert any("began again" in warning for warning in ended["warnings"])


def test_a_checkpoint_that_has_made_room_is_promised_no_more(
    client: TestClient, app: FastAPI, register_env: RegisterEnv, tmp_path: Path
) -> None:
    failed = train_to_end(client, **JOB, env_name=make_failing(register_env, tmp_path, 300, raise_error))
    job_id, checkpoints = failed["job_id"], app.state.service.registry.checkpoints
    assert failed["checkpoint"]["timesteps"] > 0
    away = checkpoints._dir.parent.rename(tmp_path / "away")
    assert get_status(client, job_id)["checkpoint"] == failed["checkpoint"], "the whole folder is away"
    away.rename(checkpoints._dir.parent)
    checkpoints._max_bytes = int(1.5 * checkpoints._path(job_id).stat().st_size)  # room for one
    train_to_end(client, **JOB, env_name="CartPole-v1")
    status = get_status(client, job_id)
    assert status["checkpoint"] is None
    assert "its checkpoint is gone" in status["warnings"][-1]
    assert client.post(f"/training/{job_id}/resume").json()["timesteps"] == 0
    warnings = wait_for_end(client, job_id)["warnings"]
    assert any("began again" in warning for warning in warnings)
    assert status["warnings"][-1] not in warnings


def test_a_job_that_the_shutdown_stopped_promises_no_checkpoint_that_was_deleted(
    settings: Settings, register_env: RegisterEnv
) -> None:
    gate = Gate()
    gate.admit(300)

    def on_step() -> None:
        if is_called_by("_step_branches"):
            gate.pass_through()

    env_name = register_env(partial(LineEnv, on_step=on_step))
    with make_client(settings.model_copy(update={"shutdown_grace_seconds": 0.1})) as client:
        job_id = train(client, **JOB, env_name=env_name)
        wait_until(lambda: gate.n_arrived > 300 and get_status(client, job_id)["checkpoint"] is not None)
    gate.admit()
    with make_client(settings) as client:
        assert "goes on from step" in get_status(client, job_id)["error_message"]
        (settings.models_dir / ".checkpoints" / f"{job_id}.zip").unlink()
        status = get_status(client, job_id)
        assert status["checkpoint"] is None
        assert status["error_message"].endswith("/resume starts again from step 0: it has no checkpoint.")


def test_a_server_that_cannot_read_its_jobs_keeps_their_checkpoints_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / ".checkpoints"
    folder.mkdir()
    kept = folder / "8f1b1a86-0000-4000-8000-0123456789ab.zip"
    kept.write_bytes(b"a checkpoint")
    (tmp_path / ".jobs.sqlite3").mkdir()  # it cannot be opened
    with make_client(Settings(models_dir=tmp_path)):
        assert kept.exists()
    assert "does not have" not in caplog.text
    (tmp_path / ".jobs.sqlite3").rmdir()
    with make_client(Settings(models_dir=tmp_path)):  # a new one begins
        assert kept.exists()
    assert f"1 checkpoint is of a job that the jobs' file does not have ({kept.stem})" in caplog.text
    with make_client(Settings(models_dir=tmp_path)):
        assert not kept.exists()
