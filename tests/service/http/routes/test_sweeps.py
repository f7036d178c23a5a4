"""Sweeps over HTTP: tiny trainings, from the first job to the best model."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import gymnasium as gym
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.errors import ConflictError
from service.jobs.records.database import FILE_NAME
from service.jobs.records.journal import JobJournal
from service.settings import Settings
from service.sweeps.registry import SweepRegistry
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.models import make_model
from tests.service.models.test_replacement import upload
from tests.support import PATIENCE_SECONDS, get_status, make_client, train_to_end, wait_for_end, wait_until

BASE: dict[str, Any] = {"total_timesteps": 64, "n_eval_episodes": 2}
SPACE = {"learning_rate": [0.001, 0.003]}


def start(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/sweeps", json={"base": BASE, "space": SPACE, **fields})
    assert response.status_code == 200, response.text
    started: dict[str, Any] = response.json()
    return started


def describe(client: TestClient, sweep_id: str = "latest") -> dict[str, Any]:
    sweep: dict[str, Any] = client.get(f"/sweeps/{sweep_id}").json()
    return sweep


def wait_for_sweep(client: TestClient) -> dict[str, Any]:
    wait_until(lambda: describe(client)["status"] not in ("running", "stopping"))
    return describe(client)


def wait_for_rest(sweeps: SweepRegistry) -> None:
    """Wait until the thread that looks after the sweeps has nothing left to do."""
    wait_until(lambda: bool(sweeps._table.changed._waiters))  # type: ignore[attr-defined]


def list_trials(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """List the jobs in the order of the sweep."""
    trials = [trial for row in sweep["settings"] for trial in row["trials"]]
    return sorted(trials, key=lambda trial: int(trial["number"]))


def list_models(client: TestClient) -> list[str]:
    return [model["name"] for model in client.get("/models").json()["models"]]


def test_a_grid_is_trained_with_every_seed_and_the_best_model_is_kept(client: TestClient) -> None:
    started = start(client, name="first", seeds=[0, 1])
    assert (started["n_settings"], started["n_jobs"], started["timesteps"]) == (2, 4, 256)
    sweep = wait_for_sweep(client)
    assert (sweep["status"], sweep["ended_by"], sweep["counts"]) == ("completed", "all", {"completed": 4})
    trials = list_trials(sweep)
    assert [(trial["setting"], trial["seed"]) for trial in trials] == list(itertools.product((1, 2), (0, 1)))
    for trial in trials:
        job = get_status(client, trial["job_id"])
        assert job["sweep_id"] == started["sweep_id"]
        assert job["config"]["model_name"] == f"first-{trial['number']:02}"
        assert job["config"]["learning_rate"] == SPACE["learning_rate"][trial["setting"] - 1]
        assert trial["mean_reward"] == job["final_evaluation"]["mean_reward"]
    for row in sweep["settings"]:
        assert row["mean_reward"] == pytest.approx(sum(trial["mean_reward"] for trial in row["trials"]) / 2)
    best = sweep["best"]
    assert best["mean_reward"] == max(row["mean_reward"] for row in sweep["settings"])
    wait_until(lambda: list_models(client) == [best["model_name"]])
    assert sweep["timesteps"] == sum(trial["current_timesteps"] for trial in trials)


@pytest.mark.parametrize("overrides", [{"max_running_jobs": 1, "max_queued_jobs": 0}], ids=["one slot"])
def test_a_sweep_that_would_wait_to_be_planned_is_refused(
    client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, may_go = threading.Semaphore(0), threading.Event()

    def plan(*_: Any) -> None:
        arrived.release()
        may_go.wait(PATIENCE_SECONDS)
        raise ConflictError("it has been planned")

    monkeypatch.setattr(app.state.service.sweeps, "create", plan)
    n_most = 3  # the slot, and two beyond
    with ThreadPoolExecutor(n_most) as pool:
        ask = partial(client.post, "/sweeps", json={"space": SPACE})
        planned = [pool.submit(ask) for _ in range(n_most)]
        try:
            assert all(arrived.acquire(timeout=PATIENCE_SECONDS) for _ in range(n_most))
            refused = ask()
        finally:
            may_go.set()
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:grpo:problem:queue-full")
    assert "3 jobs and sweeps are being planned" in refused.json()["detail"]
    assert [answer.result().status_code for answer in planned] == [409] * n_most


def test_all_models_are_kept_on_request(client: TestClient) -> None:
    start(client, name="kept", keep="all")
    wait_for_sweep(client)
    assert list_models(client) == ["kept-01", "kept-02"]


def test_a_model_that_somebody_else_put_there_is_never_deleted(client: TestClient, app: FastAPI) -> None:
    start(client, name="first", keep="all")
    sweep = wait_for_sweep(client)
    (worse,) = {"first-01", "first-02"} - {sweep["best"]["model_name"]}
    other = train_to_end(client, **BASE, seed=9, model_name=worse)
    service = app.state.service
    wait_for_rest(service.sweeps)
    record = service.sweeps._table.sweeps[sweep["sweep_id"]].record
    record.request["keep"] = "best"
    service.sweeps._models.remove_surplus(service.sweeps._table.sweeps[sweep["sweep_id"]])
    assert client.get(f"/models/{worse}").json()["sha256"] == other["sha256"]


def test_the_best_model_is_named_as_a_version_once_another_has_its_name(client: TestClient) -> None:
    start(client, name="first", space={"learning_rate": [0.001]})
    best = wait_for_sweep(client)["best"]["model_name"]
    sha256 = client.get(f"/models/{best}").json()["sha256"]
    upload(client, make_model("CartPole-v1", 5).to_bytes(env_name="CartPole-v1"), best, overwrite=True)
    named = describe(client)["best"]["model_name"]
    assert (named, client.get(f"/models/{named}").json()["sha256"]) == (f"{best}@1", sha256)


def test_a_model_that_somebody_has_promoted_is_never_deleted(client: TestClient, app: FastAPI) -> None:
    start(client, name="first", keep="all")
    sweep = wait_for_sweep(client)
    (worse,) = {"first-01", "first-02"} - {sweep["best"]["model_name"]}
    assert client.put(f"/models/{worse}/aliases/prod").status_code == 200
    service = app.state.service
    wait_for_rest(service.sweeps)
    service.sweeps._table.sweeps[sweep["sweep_id"]].record.request["keep"] = "best"
    service.sweeps._models.remove_surplus(service.sweeps._table.sweeps[sweep["sweep_id"]])
    assert client.get(f"/models/{worse}@prod").status_code == 200


def test_halving_gives_the_best_more_steps(client: TestClient) -> None:
    learning_rate = {"distribution": "loguniform", "low": 1e-4, "high": 1e-2}
    fields = {
        "method": "halving",
        "n_trials": 4,
        "reduction_factor": 2,
        "seed": 5,
        "base": {**BASE, "total_timesteps": 256},
    }
    started = start(client, space={"learning_rate": learning_rate}, **fields)
    # Four with 64 steps, two with 128, one with 256.
    assert (started["n_jobs"], started["timesteps"]) == (7, 4 * 64 + 2 * 128 + 256)
    sweep = wait_for_sweep(client)
    trials = list_trials(sweep)
    assert [(trial["rung"], trial["total_timesteps"]) for trial in trials] == [
        *[(0, 64)] * 4,
        *[(1, 128)] * 2,
        (2, 256),
    ]
    rewards = {trial["setting"]: trial["mean_reward"] for trial in trials[:4]}
    assert [trial["setting"] for trial in trials[4:6]] == sorted(rewards, key=lambda n: -rewards[n])[:2]
    assert sweep["best"]["setting"] == trials[6]["setting"]

    again = start(client, space={"learning_rate": learning_rate}, **fields)
    assert again["seed"] == 5
    settings = [
        sorted((row["number"], row["values"]["learning_rate"]) for row in one["settings"])
        for one in (sweep, describe(client))
    ]
    assert settings[0] == settings[1]
    client.post("/sweeps/latest/stop")


def test_a_budget_ends_it(client: TestClient) -> None:
    start(client, space={"learning_rate": [0.001, 0.002, 0.003]}, budget_timesteps=130)
    sweep = wait_for_sweep(client)
    assert (sweep["ended_by"], sweep["counts"]) == ("budget", {"completed": 2, "skipped": 1})


def test_a_budget_counts_whole_rollouts(client: TestClient) -> None:
    # A job of 65 steps in rollouts of 64 takes 128.
    base = {**BASE, "total_timesteps": 65, "n_steps": 64, "group_size": 8, "horizon": 8}
    response = client.post("/sweeps", json={"base": base, "space": SPACE, "budget_timesteps": 127})
    assert response.status_code == 400
    assert "less than the 128 steps of a single job" in response.json()["detail"]
    start(client, base=base, budget_timesteps=255)
    sweep = wait_for_sweep(client)
    assert (sweep["ended_by"], sweep["counts"]) == ("budget", {"completed": 1, "skipped": 1})
    assert sweep["timesteps"] == 128


@pytest.fixture
def held(client: TestClient, register_env: RegisterEnv, gate: Gate) -> dict[str, Any]:
    """What all jobs have in common that wait in their first step."""
    return {**BASE, "env_name": register_env(partial(LineEnv, on_step=gate.pass_through), max_episode_steps=20)}


def wait_for_counts(client: TestClient, **counts: int) -> None:
    """Wait until the sweep has noted how its jobs are."""
    wait_until(lambda: describe(client)["counts"] == counts)


def test_it_leaves_the_queue_to_others(client: TestClient, held: dict[str, Any], gate: Gate) -> None:
    rates = [0.001, 0.002, 0.003, 0.004, 0.005]
    first = start(client, base=held, space={"learning_rate": rates}, max_active=5)["sweep_id"]
    # Two slots, and one job that waits for the next.
    steady = {"running": 2, "queued": 1, "waiting": 2}
    wait_until(lambda: describe(client, first)["counts"] == steady)
    for _ in range(3):  # each stop is noticed only after all sweeps were looked at
        start(client)
        client.post("/sweeps/latest/stop")
        assert wait_for_sweep(client)["counts"] == {"waiting": 2}
    assert describe(client, first)["counts"] == steady
    assert client.get("/health").json()["active_jobs"] == 3
    gate.admit()
    wait_until(lambda: describe(client, first)["counts"] == {"completed": 5})


def test_a_model_that_a_waiting_job_begins_from_is_not_deleted(
    client: TestClient, app: FastAPI, held: dict[str, Any], gate: Gate
) -> None:
    start(client, name="first", keep="all")
    sweep = wait_for_sweep(client)
    (worse,) = {"first-01", "first-02"} - {sweep["best"]["model_name"]}
    for _ in range(2):  # so that it waits
        assert client.post("/train", json=held).status_code == 200
    job_id = client.post("/train", json={**BASE, "init_model": worse}).json()["job_id"]
    service = app.state.service
    wait_for_rest(service.sweeps)
    service.sweeps._table.sweeps[sweep["sweep_id"]].record.request["keep"] = "best"
    service.sweeps._models.remove_surplus(service.sweeps._table.sweeps[sweep["sweep_id"]])
    assert get_status(client, job_id)["status"] == "queued"
    gate.admit()
    assert wait_for_end(client, job_id)["status"] == "completed"


def test_no_more_jobs_run_than_it_asks_for(client: TestClient, held: dict[str, Any], gate: Gate) -> None:
    start(client, base=held, max_active=1)
    wait_for_counts(client, running=1, waiting=1)
    gate.admit()
    assert wait_for_sweep(client)["counts"] == {"completed": 2}


@pytest.mark.parametrize("overrides", [{"client_limits": "on", "client_active_jobs": 1}], ids=["limited"])
def test_a_clients_limits_hold_for_its_sweeps(client: TestClient, held: dict[str, Any], gate: Gate) -> None:
    start(client, base=held)
    wait_until(lambda: describe(client)["held_by"] is not None)
    assert "GRPO_CLIENT_ACTIVE_JOBS" in describe(client)["held_by"]
    wait_for_counts(client, running=1, waiting=1)
    assert client.post("/train", json=BASE).status_code == 429
    gate.admit()
    assert wait_for_sweep(client)["counts"] == {"completed": 2}


@pytest.mark.parametrize("overrides", [{"client_limits": "on", "client_job_timesteps": 100}], ids=["limited"])
def test_a_job_that_takes_too_long_for_a_client_is_refused_with_its_setting(client: TestClient) -> None:
    response = client.post("/sweeps", json={"base": {**BASE, "total_timesteps": 101}, "space": SPACE})
    assert response.status_code == 400
    assert "setting 1, learning_rate=0.001" in response.json()["detail"]
    assert "GRPO_CLIENT_JOB_TIMESTEPS" in response.json()["detail"]


def test_a_stopped_sweep_can_go_on(client: TestClient, held: dict[str, Any], gate: Gate) -> None:
    start(client, name="halted", base=held, max_active=1)
    wait_for_counts(client, running=1, waiting=1)
    assert client.delete("/sweeps/latest").status_code == 409
    assert client.post("/sweeps/latest/stop").json()["message"] == "Sweep stopping"
    gate.admit()
    sweep = wait_for_sweep(client)
    assert (sweep["status"], sweep["ended_by"]) == ("stopped", "stop")
    assert sweep["counts"] == {"interrupted": 1, "waiting": 1}
    assert client.post("/sweeps/latest/stop").status_code == 409
    (first, _) = list_trials(sweep)

    assert client.post("/sweeps/latest/resume").json()["message"] == "Sweep resumed"
    sweep = wait_for_sweep(client)
    assert (sweep["status"], sweep["counts"]) == ("completed", {"completed": 2})
    assert list_trials(sweep)[0]["job_id"] == first["job_id"], "the job itself goes on"
    assert get_status(client, first["job_id"])["n_restarts"] == 1
    assert client.post("/sweeps/latest/resume").status_code == 409


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_a_model_that_somebody_else_put_there_is_not_replaced_by_a_job_that_goes_on(
    client: TestClient, is_forgotten: bool
) -> None:
    base = {**BASE, "env_name": "CartPole-v1", "total_timesteps": 1_000_000}
    start(client, name="halted", base=base, space={"learning_rate": [0.001]})
    wait_until(lambda: describe(client)["timesteps"] > 0)
    client.post("/sweeps/latest/stop")
    (trial,) = list_trials(wait_for_sweep(client))
    assert trial["model_name"] == "halted-01"
    theirs = make_model("CartPole-v1", 5).to_bytes(env_name="CartPole-v1")
    assert upload(client, theirs, "halted-01", overwrite=True).status_code == 200
    if is_forgotten:
        client.delete(f"/training/{trial['job_id']}")
    client.post("/sweeps/latest/resume")
    wait_until(lambda: describe(client)["counts"] != {"waiting": 1})
    (trial,) = list_trials(describe(client))
    assert trial["status"] == "failed"
    assert trial["error_message"].startswith("a model 'halted-01' already exists; ")
    assert client.get("/models/halted-01/file").content == theirs


@pytest.mark.parametrize("status", ["interrupted", "stopped"])
def test_an_interrupted_sweep_is_stopped_as_long_as_jobs_of_it_go_on(
    client: TestClient,
    app: FastAPI,
    held: dict[str, Any],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
) -> None:
    sweep_id = start(client, base=held, max_active=1)["sweep_id"]
    wait_for_counts(client, running=1, waiting=1)
    service = app.state.service
    if status == "stopped":  # its server was killed before it reached the jobs
        monkeypatch.setattr(service.sweeps._conductor, "stop_job", lambda job_id: None)
        service.sweeps.stop(sweep_id)
    service.sweeps.close()
    # What the next server knows of it, if the job outlives this one.
    sweeps = SweepRegistry(service.registry.recorder.journal, service.registry, service.store, service.admission, 100)
    assert sweeps.describe(sweep_id).status == status
    assert sweeps.can_stop(sweep_id)
    assert sweeps.stop(sweep_id).status == "stopping"
    assert sweeps.describe(sweep_id).counts == {"running": 1, "waiting": 1}
    gate.admit()
    wait_until(lambda: sweeps.describe(sweep_id).status == "stopped")
    sweep = sweeps.describe(sweep_id)
    assert (sweep.ended_by, sweep.counts) == ("stop", {"interrupted": 1, "waiting": 1})
    assert client.get("/training/latest/status").json()["status"] == "stopped"
    assert not sweeps.can_stop(sweep_id)
    with pytest.raises(ConflictError, match="is stopped already"):
        sweeps.stop(sweep_id)
    sweeps.close()


def test_a_sweep_is_gone_before_anybody_may_write_it_again(client: TestClient, app: FastAPI) -> None:
    sweep_id = start(client)["sweep_id"]
    wait_for_sweep(client)
    sweeps = app.state.service.sweeps

    class Leaving(set[str]):
        def discard(self, leaving: object, /) -> None:
            assert sweeps._table.sweeps.keys() == set(), "whoever waits to write it would bring it back"
            super().discard(str(leaving))

    sweeps._table.leaving = Leaving()
    assert client.delete(f"/sweeps/{sweep_id}").status_code == 200
    assert sweeps._table.leaving == set()
    assert client.get("/sweeps").json()["n_total"] == 0


def test_a_sweep_waits_for_a_name_that_is_free_in_a_moment(client: TestClient, app: FastAPI) -> None:
    with app.state.service.registry.reserve_name("grid-01"):
        start(client, name="grid")
        wait_until(lambda: "being saved or deleted" in (describe(client)["held_by"] or ""))
    assert wait_for_sweep(client)["status"] == "completed"
    assert {trial["status"] for trial in list_trials(describe(client))} == {"completed"}


def test_a_job_that_is_deleted_as_it_ends_has_its_say(
    client: TestClient, app: FastAPI, held: dict[str, Any], gate: Gate
) -> None:
    service = app.state.service
    start(client, base=held, space={"learning_rate": [0.001]})
    wait_until(lambda: gate.n_arrived > 0)
    wait_for_counts(client, running=1)
    job_id = list_trials(describe(client))[0]["job_id"]
    with service.sweeps._table.changed:  # so that nobody looks at the job in between
        gate.admit()
        assert service.registry.get(job_id).finished.wait(PATIENCE_SECONDS)
        service.registry.delete(job_id)
    sweep = wait_for_sweep(client)
    assert sweep["counts"] == {"completed": 1}
    assert sweep["best"]["setting"] == 1


def test_a_job_that_was_stopped_by_hand_has_no_say(client: TestClient, held: dict[str, Any], gate: Gate) -> None:
    start(client, base=held, max_active=1, space={"learning_rate": [0.001]})
    wait_until(lambda: gate.n_arrived > 0)
    client.post("/training/latest/stop")
    gate.admit()
    sweep = wait_for_sweep(client)
    assert (sweep["counts"], sweep["best"], sweep["ended_by"]) == ({"stopped": 1}, None, "all")


def stop_first_by_hand(client: TestClient, gate: Gate) -> str:
    """Stop a sweep's first job while the next one waits for it; return its id once the sweep has noted that."""
    wait_until(lambda: gate.n_arrived > 0)
    job_id: str = list_trials(describe(client))[0]["job_id"]
    for _ in range(2):  # the second skips the evaluation
        client.post(f"/training/{job_id}/stop")

    def has_ended() -> bool:
        gate.admit(1)
        return bool(get_status(client, job_id)["status"] == "stopped")

    wait_until(has_ended)
    wait_for_counts(client, stopped=1, running=1)
    return job_id


def check_all_count(client: TestClient, sweep: dict[str, Any]) -> None:
    """Check that a sweep says of its jobs what they say of themselves, and keeps the best one's model alone."""
    jobs = [get_status(client, trial["job_id"]) for trial in list_trials(sweep)]
    assert (sweep["ended_by"], sweep["counts"]) == ("all", {"completed": len(jobs)})
    for trial, job in zip(list_trials(sweep), jobs, strict=True):
        assert (trial["status"], trial["current_timesteps"]) == (job["status"], job["current_timesteps"])
        assert trial["mean_reward"] == job["final_evaluation"]["mean_reward"]
    assert sweep["timesteps"] >= sum(job["current_timesteps"] for job in jobs)
    wait_until(lambda: list_models(client) == [sweep["best"]["model_name"]])


def test_a_job_that_was_resumed_by_hand_is_the_sweeps_again(
    client: TestClient, held: dict[str, Any], gate: Gate
) -> None:
    start(client, base=held, max_active=1)
    job_id = stop_first_by_hand(client, gate)
    assert client.post(f"/training/{job_id}/resume").status_code == 200
    wait_for_counts(client, running=2)
    gate.admit()
    check_all_count(client, wait_for_sweep(client))


def test_a_job_that_was_resumed_and_is_complete_before_anybody_looks_counts(
    client: TestClient, app: FastAPI, held: dict[str, Any], gate: Gate
) -> None:
    start(client, base=held, max_active=1)
    job_id = stop_first_by_hand(client, gate)
    with app.state.service.sweeps._table.changed:  # so that nobody looks at the job in between
        client.post(f"/training/{job_id}/resume")
        gate.admit()
        assert wait_for_end(client, job_id)["status"] == "completed"
    check_all_count(client, wait_for_sweep(client))


def test_a_job_that_was_resumed_by_hand_goes_on_with_its_sweep_after_the_servers_end(
    settings: Settings, register_env: RegisterEnv
) -> None:
    gate = Gate()
    env_name = register_env(partial(LineEnv, on_step=gate.pass_through), max_episode_steps=20)
    with make_client(settings.model_copy(update={"shutdown_grace_seconds": 0.1})) as client:
        start(client, base={**BASE, "env_name": env_name}, max_active=1)
        job_id = stop_first_by_hand(client, gate)
        client.post(f"/training/{job_id}/resume")
        wait_for_counts(client, running=2)
    gate.admit()
    with make_client(settings) as client:
        assert describe(client)["counts"] == {"interrupted": 2}
        client.post("/sweeps/latest/resume")
        check_all_count(client, wait_for_sweep(client))


def test_a_stop_finds_a_job_that_was_resumed_by_hand_just_now(
    client: TestClient, app: FastAPI, held: dict[str, Any], gate: Gate
) -> None:
    sweeps, sweep_id = app.state.service.sweeps, start(client, base=held, max_active=1)["sweep_id"]
    job_id = stop_first_by_hand(client, gate)
    with sweeps._table.changed:  # so that nobody looks at the job in between
        client.post(f"/training/{job_id}/resume")
        sweeps.stop(sweep_id)
    gate.admit()
    sweep = wait_for_sweep(client)
    assert (sweep["status"], sweep["ended_by"], sweep["counts"]) == ("stopped", "stop", {"interrupted": 2})
    assert get_status(client, job_id)["status"] == "stopped"
    assert sweeps._table.turns == []
    client.post("/sweeps/latest/resume")
    check_all_count(client, wait_for_sweep(client))


def test_a_setting_that_fits_no_job_is_refused_at_once(client: TestClient) -> None:
    response = client.post("/sweeps", json={"base": BASE, "space": {"n_steps": [32, 33]}})
    assert response.status_code == 400
    assert "setting 2, n_steps=33, does not fit" in response.json()["detail"]
    assert client.get("/sweeps").json() == {"sweeps": [], "n_total": 0}


def test_a_base_that_fits_no_job_is_named_where_only_seeds_vary(client: TestClient) -> None:
    response = client.post("/sweeps", json={"base": {**BASE, "n_steps": 33}, "seeds": [0, 1]})
    assert response.status_code == 400
    assert response.json()["detail"].startswith("'base' does not fit: n_steps")


def test_a_wrong_value_is_named_with_its_place(client: TestClient) -> None:
    response = client.post("/sweeps", json={"base": BASE, "space": {"gamma": [0.9, 2], "n_step": [32]}})
    assert response.status_code == 422
    assert [part["field"] for part in response.json()["errors"]] == ["space.n_step", "space.gamma.1"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget_timesteps": 63}, "less than the 64 steps of a single job"),
        ({"space": {"n_epochs": list(range(1, 65))}, "seeds": list(range(9))}, "576 jobs"),
        ({"method": "halving", "reduction_factor": 2, "budget_timesteps": 100}, "all rounds of halving"),
    ],
)
def test_a_sweep_that_is_too_large_is_refused(client: TestClient, fields: dict[str, Any], message: str) -> None:
    response = client.post("/sweeps", json={"base": BASE, "space": SPACE, **fields})
    assert response.status_code == 400
    assert message in response.json()["detail"]


def test_a_name_that_is_taken_is_refused(client: TestClient) -> None:
    train_to_end(client, **BASE, model_name="Mine-02")
    response = client.post("/sweeps", json={"name": "mine", "base": BASE, "space": SPACE})
    assert response.status_code == 409
    assert "'mine-02'" in response.json()["detail"]
    start(client, name="other")
    wait_for_sweep(client)
    response = client.post("/sweeps", json={"name": "OTHER", "base": BASE, "space": SPACE})
    assert response.status_code == 409


def test_the_list_comes_in_pages_newest_first(client: TestClient) -> None:
    for name in ("a1", "b1", "c1"):
        start(client, name=name, space={"gamma": [0.9]})
        wait_for_sweep(client)
    page = client.get("/sweeps?limit=2").json()
    assert ([sweep["name"] for sweep in page["sweeps"]], page["n_total"]) == (["c1", "b1"], 3)
    rest = client.get(f"/sweeps?after={page['sweeps'][-1]['sweep_id']}").json()
    assert [sweep["name"] for sweep in rest["sweeps"]] == ["a1"]
    assert client.get("/sweeps?after=unknown").status_code == 404
    assert client.delete("/sweeps/latest").json()["name"] == "c1"
    assert client.get("/sweeps").json()["n_total"] == 2
    assert "GET /sweeps" in client.get("/sweeps/unknown").json()["detail"]


def interrupt_by_restart(settings: Settings, register_env: RegisterEnv, **request: Any) -> tuple[str, dict[str, Any]]:
    """End a server while the first job of a sweep runs; return its environment, and the sweep as it was."""
    gate = Gate()
    env_name = register_env(partial(LineEnv, on_step=gate.pass_through), max_episode_steps=20)
    with make_client(settings.model_copy(update={"shutdown_grace_seconds": 0.1})) as client:
        start(client, name="long", base={**BASE, "env_name": env_name}, max_active=1, **request)
        wait_for_counts(client, running=1, waiting=1)
        wait_until(lambda: gate.n_arrived > 0)
        before = describe(client)
    gate.admit()
    return env_name, before


def test_a_sweep_survives_the_server(settings: Settings, register_env: RegisterEnv) -> None:
    _, before = interrupt_by_restart(settings, register_env, seeds=[3])
    with make_client(settings) as client:
        sweep = describe(client)
        assert (sweep["status"], sweep["ended_by"]) == ("interrupted", "restart")
        assert sweep["request"] == before["request"]
        assert sweep["counts"] == {"interrupted": 1, "waiting": 1}
        assert client.post("/sweeps/latest/resume").status_code == 200
        sweep = wait_for_sweep(client)
        assert (sweep["status"], sweep["counts"]) == ("completed", {"completed": 2})
        assert list_trials(sweep)[0]["job_id"] == list_trials(before)[0]["job_id"]


def test_a_server_that_lacks_what_it_needs_leaves_it_as_it_was(settings: Settings, register_env: RegisterEnv) -> None:
    env_name, _ = interrupt_by_restart(settings, register_env)
    with make_client(settings) as client:
        spec = gym.registry.pop(env_name)
        refusal = client.post("/sweeps/latest/resume")
        assert refusal.status_code == 409
        said = "sweep 'long' cannot go on with this server: setting 1, learning_rate=0.001, does not fit: env_name '"
        assert refusal.json()["detail"].startswith(said + env_name)
        assert refusal.json()["detail"].endswith("or the file of its init_model, and resume it then.")
        assert (describe(client)["status"], describe(client)["counts"]) == (
            "interrupted",
            {"interrupted": 1, "waiting": 1},
        )
        gym.registry[env_name] = spec
        assert client.post("/sweeps/latest/resume").status_code == 200
        assert wait_for_sweep(client)["counts"] == {"completed": 2}


def test_models_that_nothing_begins_from_any_more_may_be_gone(
    client: TestClient, settings: Settings, register_env: RegisterEnv, gate: Gate
) -> None:
    env_name = register_env(partial(LineEnv, on_step=gate.pass_through), max_episode_steps=20)
    for name in ("first", "second"):
        assert upload(client, make_model(env_name).to_bytes(env_name=env_name), name).status_code == 200
    base = {**BASE, "env_name": env_name, "total_timesteps": 1024, "n_steps": 64, "checkpoint_every": 64}
    start(client, name="long", base=base, space={"init_model": ["first", "second"]}, max_active=1)

    def is_amid_the_second() -> bool:
        if gate.n_arrived > gate._n_admitted:
            gate.admit(256)
        job_id = list_trials(describe(client))[1]["job_id"]
        return job_id is not None and get_status(client, job_id)["checkpoint"] is not None

    wait_until(is_amid_the_second)
    client.post("/sweeps/latest/stop")
    gate.admit()
    sweep = wait_for_sweep(client)
    assert sweep["counts"] == {"completed": 1, "interrupted": 1}
    for name in ("first", "second"):
        assert client.delete(f"/models/{name}").status_code == 200
    checkpoints = settings.models_dir / ".checkpoints"
    (checkpoint,) = checkpoints.glob("*.zip")
    away = checkpoint.rename(checkpoint.with_suffix(".away"))
    refusal = client.post("/sweeps/latest/resume")
    assert refusal.status_code == 409
    assert 'setting 2, init_model="second", does not fit: init_model' in refusal.json()["detail"]
    assert refusal.json()["detail"].endswith("or the file of its init_model, and resume it then.")
    away.rename(checkpoint)
    assert client.post("/sweeps/latest/resume").status_code == 200
    assert wait_for_sweep(client)["counts"] == {"completed": 2}


def test_a_job_that_was_started_last_is_found_again(settings: Settings, register_env: RegisterEnv) -> None:
    _, before = interrupt_by_restart(settings, register_env)
    # As if the server had been killed after the job was started, and before its sweep was written.
    journal = JobJournal(settings.models_dir / FILE_NAME)
    record = json.loads(journal.list_sweeps()[0])
    record["trials"][0] |= {"job_id": None, "status": "waiting"}
    journal.write_sweep(before["sweep_id"], json.dumps(record))
    journal.close()
    with make_client(settings) as client:
        assert describe(client)["counts"] == {"interrupted": 1, "waiting": 1}
        assert list_trials(describe(client))[0]["job_id"] == list_trials(before)[0]["job_id"]
        client.post("/sweeps/latest/resume")
        assert wait_for_sweep(client)["counts"] == {"completed": 2}
        assert len(client.get("/training/jobs").json()["jobs"]) == 2


def test_a_disk_that_hangs_holds_up_nobody_who_reads(
    client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end, write = threading.Event(), threading.Event(), JobJournal.write_sweep

    def write_slowly(journal: JobJournal, sweep_id: str, record: str) -> None:
        has_begun.set()
        may_end.wait()
        write(journal, sweep_id, record)

    sweeps = app.state.service.sweeps
    with ThreadPoolExecutor(2) as threads:
        try:
            monkeypatch.setattr(JobJournal, "write_sweep", write_slowly)
            created = threads.submit(start, client, name="slow")
            assert has_begun.wait(PATIENCE_SECONDS)
            assert threads.submit(sweeps.list_page, 10).result(PATIENCE_SECONDS).n_total == 1
            assert threads.submit(sweeps.describe, "latest").result(PATIENCE_SECONDS).name == "slow"
            assert not created.done()
        finally:
            may_end.set()
    assert wait_for_sweep(client)["counts"] == {"completed": 2}


def test_a_sweep_that_the_disk_does_not_forget_stays(client: TestClient, settings: Settings) -> None:
    start(client)
    wait_for_sweep(client)
    (settings.models_dir / FILE_NAME).unlink()
    response = client.delete("/sweeps/latest")
    assert response.status_code == 507
    assert "is not deleted" in response.json()["detail"]
    assert client.get("/sweeps").json()["n_total"] == 1


def test_a_sweep_that_is_written_while_it_is_deleted_does_not_come_back(settings: Settings) -> None:
    with make_client(settings) as client:
        sweep_id = start(client)["sweep_id"]
        wait_for_sweep(client)
        sweeps = client.app.state.service.sweeps  # type: ignore[attr-defined]
        forget = sweeps._recorder.forget

        def forget_and_write(sweep_id: str) -> None:
            forget(sweep_id)
            assert sweeps._recorder.write(sweep_id)

        sweeps._recorder.forget = forget_and_write
        assert client.delete(f"/sweeps/{sweep_id}").status_code == 200
    with make_client(settings) as client:
        assert client.get("/sweeps").json()["n_total"] == 0


def test_all_jobs_begin_from_the_file_that_was_there_when_it_was_accepted(
    client: TestClient, held: dict[str, Any], gate: Gate
) -> None:
    first = train_to_end(client, **BASE, model_name="base")
    for _ in range(2):  # which take both places
        client.post("/train", json=held)
    start(client, base={**BASE, "init_model": "base"}, space={"gamma": [0.9, 0.99]}, keep="all")
    wait_for_counts(client, queued=1, waiting=1)
    upload(client, make_model("CartPole-v1", 5).to_bytes(env_name="CartPole-v1"), "base", overwrite=True)
    gate.admit()
    sweep = wait_for_sweep(client)
    assert sweep["counts"] == {"completed": 2}, sweep
    cards = [client.get(f"/models/{trial['model_name']}").json() for trial in list_trials(sweep)]
    assert {card["lineage"]["sha256"] for card in cards} == {first["sha256"]}


def test_models_that_could_not_be_deleted_are_deleted_later(settings: Settings) -> None:
    with make_client(settings) as client:
        start(client, name="first", keep="all", space={"learning_rate": [0.001, 0.002, 0.003]})
        sweep = wait_for_sweep(client)
        best = sweep["best"]["model_name"]
        first, second = sorted({*list_models(client)} - {best})
        service = client.app.state.service  # type: ignore[attr-defined]
        wait_for_rest(service.sweeps)
        one = service.sweeps._table.sweeps[sweep["sweep_id"]]
        one.record.request["keep"] = "best"
        with service.registry.reserve_name(first), service.registry.reserve_name(second):
            service.sweeps._models.remove_surplus(one)
            assert list_models(client) == sorted([best, first, second])
        with service.registry.reserve_name(second):
            service.sweeps._models.retry()
            assert list_models(client) == sorted([best, second])
    with make_client(settings) as client:
        wait_until(lambda: list_models(client) == [best])


def test_a_job_that_was_started_by_itself_says_so(client: TestClient) -> None:
    assert train_to_end(client, **BASE)["sweep_id"] is None
