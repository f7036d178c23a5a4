"""The registry runs jobs, and whatever happens to one leaves the others alone."""

import os
import re
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.errors import ConflictError, DrainingError, NotFoundError, QueueFullError, StorageError
from service.jobs import table
from service.jobs.job import Job, JobServices
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.database import FILE_NAME, JournalError
from service.jobs.records.history import HistoryEvent
from service.jobs.records.journal import JobJournal
from service.jobs.records.record import JobRecord, PastJob
from service.jobs.records.recorder import JobRecorder, Recorded
from service.jobs.registry import JobRegistry
from service.models.store import ModelStore
from service.schemas.jobs import JobCheckpoint, JobStatus
from service.schemas.training import TrainConfig
from service.settings import Settings
from service.training.planning.plan import TrainingPlan
from service.workers.task import TaskDrainedError
from service.workers.threads import ThreadExecutor
from tests.conftest import RegisterEnv
from tests.environments import FloatArray, Gate, LineEnv
from tests.support import (
    PATIENCE_SECONDS,
    let_requests_go_first,
    make_client,
    make_plan,
    make_registry,
    open_model_store,
    train_to_end,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("ample_time")


def plan(**request: Any) -> TrainingPlan:
    return make_plan(**request)._replace(reward=None)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return open_model_store(tmp_path / "models")


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.admit()


@pytest.fixture
def open_registry(store: ModelStore, gate: Gate) -> Iterator[Callable[..., JobRegistry]]:
    """Build registries, and end their jobs when the test is over."""
    registries = []

    def build(
        max_running: int = 2,
        max_queued: int = 8,
        max_kept: int = 100,
        stall_seconds: float = PATIENCE_SECONDS,
        recorder: JobRecorder | None = None,
    ) -> JobRegistry:
        registries.append(
            make_registry(
                store,
                ThreadExecutor(),
                recorder,
                max_running=max_running,
                max_queued=max_queued,
                max_kept=max_kept,
                stall_seconds=stall_seconds,
            )
        )
        return registries[-1]

    yield build
    gate.admit()
    for registry in registries:
        registry.shutdown(grace_seconds=10)
    assert all(registry.count_active() == 0 for registry in registries)


def submit(registry: JobRegistry, **request: Any) -> Job:
    # Most jobs here are to end, whatever their policy is worth.
    return registry.submit(plan(**({"total_timesteps": 32, "seed": 0, "n_eval_episodes": 1} | request)))


def raise_error() -> None:
    raise RuntimeError("the cable is loose")


def run(registry: JobRegistry, **request: Any) -> Job:
    job = submit(registry, **request)
    assert job.finished.wait(PATIENCE_SECONDS)
    return job


def run_one(open_registry: Callable[..., JobRegistry]) -> tuple[JobRegistry, Job]:
    """Run a job to its end; return it with its registry, which has noticed the end."""
    registry = open_registry()
    job = run(registry)
    registry.count_active()
    return registry, job


class TestTheRegistry:
    def test_a_completed_job_has_published_its_policy(
        self, open_registry: Callable[..., JobRegistry], store: ModelStore
    ) -> None:
        job = run(open_registry(), model_name="m")
        status = job.describe()
        assert status.status is JobStatus.COMPLETED
        assert status.model_name == "m"
        assert status.progress == 1.0
        assert status.sha256 is not None
        assert store.get("m").meta["config"] == job.config.model_dump()

    def test_latest_is_the_newest_job(self, open_registry: Callable[..., JobRegistry]) -> None:
        registry = open_registry()
        with pytest.raises(NotFoundError, match="no training job yet; POST /train"):
            registry.get("latest")
        for _ in range(2):
            job = submit(registry)
            assert registry.get("latest") is job

    def test_jobs_that_ended_long_ago_are_read_from_the_disk(
        self, open_registry: Callable[..., JobRegistry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table, "_MAX_IN_MEMORY", 1)
        registry = open_registry()
        first, second = (run(registry) for _ in range(2))
        registry.count_active()
        assert registry.list_jobs() == [PastJob(first.summarize()), second]
        assert registry.get(second.job_id) is second
        assert registry.find_in_memory(first.job_id) is None
        loaded = registry.get(first.job_id)
        assert loaded is not first
        assert loaded.describe() == first.describe()
        assert loaded.history.list_rows() == first.history.list_rows() != []
        assert loaded.history.list_events() == first.history.list_events()
        assert registry.find_in_memory(first.job_id) is loaded

    def test_a_record_that_makes_no_job_is_not_found(
        self, open_registry: Callable[..., JobRegistry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table, "_MAX_IN_MEMORY", 0)
        registry, job = run_one(open_registry)
        record = registry.recorder.journal.load(job.job_id)
        assert record is not None
        evaluation = HistoryEvent(99, "job.evaluation", {"timesteps": "damaged"})
        damaged = record._replace(history=record.history._replace(events=[evaluation]))
        monkeypatch.setattr(registry.recorder.journal, "load", lambda job_id: damaged)
        with pytest.raises(NotFoundError, match="damaged"):
            registry.get(job.job_id)

    def test_a_job_that_is_deleted_meanwhile_is_not_resumed(self, open_registry: Callable[..., JobRegistry]) -> None:
        registry = open_registry()
        job = run(registry, env_name="CartPole-v1", max_seconds=1e-9, n_eval_episodes=0)
        registry.delete(job.job_id)
        with pytest.raises(NotFoundError):
            registry.resume(job, None)
        assert registry.list_jobs() == []
        assert registry.count_active() == 0

    def test_a_job_that_is_deleted_while_it_is_written_down_again_stays_deleted(
        self, open_registry: Callable[..., JobRegistry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = open_registry()
        job = submit(registry, env_name="CartPole-v1", total_timesteps=10**6)
        job.stop()
        assert job.finished.wait(PATIENCE_SECONDS)
        begin, deletions = registry.recorder.begin, []

        with ThreadPoolExecutor(1) as others:

            def delete_meanwhile(resumed: Recorded) -> None:
                registry.get(job.job_id).stop()
                deletions.append(others.submit(registry.delete, job.job_id))
                begin(resumed)

            monkeypatch.setattr(registry.recorder, "begin", delete_meanwhile)
            registry.resume(job, None)
            deletions[0].result(PATIENCE_SECONDS)
        assert registry.list_jobs() == []
        assert registry.recorder.journal.load(job.job_id) is None

    def test_a_deletion_that_the_disk_refuses_leaves_the_job(
        self, open_registry: Callable[..., JobRegistry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = open_registry()
        job = run(registry)

        def refuse(job_ids: list[str]) -> None:
            raise JournalError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(registry.recorder.journal, "forget", refuse)
            with pytest.raises(StorageError, match=f"job {job.job_id} is not deleted: the disk is full"):
                registry.delete(job.job_id)
        assert registry.list_jobs() == [job]
        registry.delete(job.job_id)
        assert registry.recorder.journal.load(job.job_id) is None

    def test_a_job_that_is_labelled_while_it_is_read_has_its_labels(
        self, open_registry: Callable[..., JobRegistry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table, "_MAX_IN_MEMORY", 0)
        registry, job = run_one(open_registry)
        load = registry.recorder.journal.load

        def label_meanwhile(job_id: str) -> JobRecord | None:
            record = load(job_id)
            monkeypatch.setattr(registry.recorder.journal, "load", load)
            registry.label(job_id, {"note": "Why not?"})
            return record

        monkeypatch.setattr(registry.recorder.journal, "load", label_meanwhile)
        assert registry.get(job.job_id).labels.note == "Why not?"

    def test_a_slow_disk_keeps_nobody_from_the_jobs(
        self, open_registry: Callable[..., JobRegistry], store: ModelStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry, seen = open_registry(), []
        with ThreadPoolExecutor(1) as others:

            def look_meanwhile(name: str) -> None:
                seen.append(others.submit(registry.count_active).result(PATIENCE_SECONDS))

            monkeypatch.setattr(store.folder, "check_name", look_meanwhile)
            run(registry, model_name="m")
            with registry.reserve_name("n"):
                pass
        assert seen == [0, 0]

    def test_a_checkpoint_that_is_long_to_read_keeps_no_new_job_waiting(
        self, open_registry: Callable[..., JobRegistry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry, admitted = open_registry(), list[Job]()

        class LongFolder(CheckpointFolder):
            def describe(self, job_id: str, config: TrainConfig) -> None:
                other = threading.Thread(target=lambda: admitted.append(submit(registry)))
                other.start()
                other.join(10.0)
                assert admitted

        monkeypatch.setattr(registry, "checkpoints", LongFolder(tmp_path, registry.is_active))
        job = submit(registry, env_name="CartPole-v1", total_timesteps=10**6)
        job.stop()
        assert job.finished.wait(PATIENCE_SECONDS)
        registry.resume(job, None).stop()

    def test_a_model_that_was_saved_as_the_server_died_is_its_jobs_own(
        self, open_registry: Callable[..., JobRegistry], store: ModelStore, register_env: RegisterEnv
    ) -> None:
        content = store.folder.read(run(open_registry(), model_name="other").config.model_name)[1]
        registry = open_registry()
        env_name = register_env(lambda: LineEnv(raise_error))
        job = submit(registry, model_name="m", env_name=env_name, replace=False)
        assert job.finished.wait(PATIENCE_SECONDS)
        store.publish("m", content)
        with pytest.raises(ConflictError, match=r"a model 'm' already exists; download it and DELETE /models/m, or"):
            registry.resume(job, None)
        store.delete("m")
        store.publish("m", content, job.job_id)  # and no word of it reached the jobs' file
        registry.resume(job, None)

    @pytest.mark.parametrize("job_id", ["", "none", "x" * 10_000, "\ud800", "../..", "\x00"])
    def test_an_unknown_id_is_not_found(self, open_registry: Callable[..., JobRegistry], job_id: str) -> None:
        with pytest.raises(NotFoundError) as refusal:
            open_registry().get(job_id)
        assert len(refusal.value.detail) < 700
        assert refusal.value.detail.isascii()

    def test_the_name_of_a_model_is_no_id_but_says_which_job_is_meant(
        self, open_registry: Callable[..., JobRegistry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(table, "_MAX_IN_MEMORY", 1)
        registry = open_registry()
        jobs = [run(registry, model_name=name) for name in ("q1", "q2", "q2")]
        registry.count_active()
        for name, job in (("q1", jobs[0]), ("q2", jobs[2])):  # the first is on the disk by now
            with pytest.raises(NotFoundError, match=f"name of a model, which job {job.job_id} was the latest to train"):
                registry.get(name)

    def test_only_so_many_jobs_run_and_the_others_wait(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate
    ) -> None:
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        registry = open_registry(max_running=2, max_queued=2)
        jobs = [submit(registry, env_name=env_name) for _ in range(4)]
        wait_until(lambda: gate.n_arrived == 2)
        assert [job.status for job in jobs] == [JobStatus.RUNNING] * 2 + [JobStatus.QUEUED] * 2
        assert registry.count_active() == 4
        assert jobs[3].describe().start_time is None
        with pytest.raises(QueueFullError, match="4 jobs"):
            submit(registry)
        with pytest.raises(QueueFullError, match="4 jobs"):
            registry.check_can_submit()
        gate.admit()
        assert all(job.finished.wait(PATIENCE_SECONDS) for job in jobs)
        registry.check_can_submit()
        assert registry.count_active() == 0
        assert {job.status for job in jobs} == {JobStatus.COMPLETED}

    def test_a_refused_job_is_not_remembered(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate
    ) -> None:
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        registry = open_registry(max_running=1, max_queued=0)
        job = submit(registry, env_name=env_name)
        for _ in range(3):
            with pytest.raises(QueueFullError):
                submit(registry)
        assert registry.list_jobs() == [job]

    @pytest.mark.parametrize("other_name", ["m", "M"])
    def test_two_active_jobs_cannot_save_under_one_name(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate, other_name: str
    ) -> None:
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        registry = open_registry()
        job = submit(registry, env_name=env_name, model_name="m")
        with pytest.raises(ConflictError, match=job.job_id):
            submit(registry, model_name=other_name)
        assert registry.find_active(other_name) is job
        gate.admit()
        assert job.finished.wait(PATIENCE_SECONDS)
        assert registry.find_active("m") is None
        assert run(registry, model_name="m").status is JobStatus.COMPLETED

    def test_only_one_of_many_simultaneous_submissions_of_a_name_succeeds(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate
    ) -> None:
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        registry = open_registry(max_queued=100)
        planned = plan(env_name=env_name, total_timesteps=32, model_name="m")
        accepted: list[Job] = []
        refused: list[ConflictError] = []
        start = threading.Barrier(16)

        def race() -> None:
            start.wait()
            try:
                accepted.append(registry.submit(planned))
            except ConflictError as error:
                refused.append(error)

        threads = [threading.Thread(target=race) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(accepted), len(refused)) == (1, 15)
        assert all(accepted[0].job_id in error.detail for error in refused)

    def test_a_name_whose_place_a_folder_takes_is_refused_before_training(
        self, open_registry: Callable[..., JobRegistry], tmp_path: Path
    ) -> None:
        registry = open_registry()
        (tmp_path / "models" / "policy.zip").mkdir()
        with pytest.raises(ConflictError, match=r"policy\.zip in the models folder is a folder; move that"):
            submit(registry, model_name="policy")
        with pytest.raises(ConflictError, match="is a folder"), registry.reserve_name("policy"):
            pass
        assert registry.list_jobs() == []

    def test_the_oldest_ended_jobs_are_forgotten_but_never_active_ones(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate
    ) -> None:
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        registry = open_registry(max_kept=2)
        active = submit(registry, env_name=env_name)
        finished = [run(registry) for _ in range(4)]
        last = submit(registry, env_name=env_name)
        assert registry.list_jobs() == [active, *finished[2:], last]
        with pytest.raises(NotFoundError):
            registry.get(finished[0].job_id)

    def test_an_old_job_is_not_forgotten_once_it_was_resumed_even_if_the_disk_does_not_know_it(
        self,
        open_registry: Callable[..., JobRegistry],
        register_env: RegisterEnv,
        gate: Gate,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refuse(records: list[JobRecord]) -> None:
            raise JournalError("the disk is full")

        journal = JobJournal(tmp_path / "jobs.sqlite3")
        registry = open_registry(max_running=1, recorder=JobRecorder(journal))
        submit(registry, env_name=register_env(lambda: LineEnv(gate.pass_through)))
        resumed, ended = (submit(registry) for _ in range(2))
        for job in (resumed, ended):
            job.stop()
            assert job.finished.wait(PATIENCE_SECONDS)
        with monkeypatch.context() as patched:
            patched.setattr(journal, "write", refuse)
            resumed = registry.resume(resumed, None)
            patched.setattr(registry, "_max_kept_days", -1.0)
            patched.setattr(registry, "_next_look", 0.0)
            submit(registry)
        assert registry.get(resumed.job_id) is resumed
        with pytest.raises(NotFoundError):
            registry.get(ended.job_id)

    def test_the_jobs_of_a_status_are_listed(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate
    ) -> None:
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        registry = open_registry(max_running=1)
        first = run(registry)
        running, *queued = (submit(registry, env_name=env_name) for _ in range(4))
        queued[1].stop()
        wait_until(lambda: running.status is JobStatus.RUNNING)
        assert registry.list_jobs(JobStatus.QUEUED) == [queued[0], queued[2]]
        assert registry.list_jobs() == [first, running, *queued]

    def test_ended_jobs_are_not_looked_at_again(
        self,
        open_registry: Callable[..., JobRegistry],
        register_env: RegisterEnv,
        gate: Gate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        registry = open_registry(max_running=1, max_queued=1, max_kept=1000)
        submit(registry, env_name=register_env(lambda: LineEnv(gate.pass_through)), model_name="running")
        planned = plan(model_name="queued")
        for _ in range(500):
            registry.submit(planned).stop()
        n_looks = 0

        def count(job: Job) -> JobStatus:
            nonlocal n_looks
            n_looks += 1
            return job.state.status

        monkeypatch.setattr(Job, "status", property(count))
        for look in (lambda: registry.submit(planned), registry.count_active, registry.check_can_submit):
            n_looks = 0
            with suppress(QueueFullError):
                look()
            assert n_looks <= 4
        assert len(registry.list_jobs()) == 502


class TestStopping:
    def test_a_stopped_job_saves_its_policy_under_its_name_if_that_is_free(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate, store: ModelStore
    ) -> None:
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        job = submit(open_registry(), env_name=env_name, model_name="m", total_timesteps=10_000, n_eval_episodes=0)
        gate.admit(70)
        wait_until(lambda: gate.n_arrived == 71)
        job.stop()
        gate.admit(1)
        assert job.finished.wait(PATIENCE_SECONDS)
        status = job.describe()
        assert (status.status, status.model_name, status.current_timesteps) == (JobStatus.STOPPED, "m", 71)
        assert store.get("m").meta["num_timesteps"] == 71
        assert gate.n_arrived == 71

    def test_a_stopped_job_leaves_an_older_model_alone(
        self,
        open_registry: Callable[..., JobRegistry],
        register_env: RegisterEnv,
        gate: Gate,
        store: ModelStore,
        tmp_path: Path,
    ) -> None:
        registry = open_registry()
        run(registry, model_name="m")
        before = (tmp_path / "models" / "m.zip").read_bytes()
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        job = submit(registry, env_name=env_name, model_name="m", total_timesteps=10_000_000, n_eval_episodes=0)
        gate.admit(40)
        wait_until(lambda: job.has_stepped and gate.n_arrived == 41)
        job.stop()
        gate.admit()
        assert job.finished.wait(PATIENCE_SECONDS)
        kept = job.describe().model_name
        assert kept is not None
        assert kept.startswith("m-stopped-")
        assert store.get(kept).meta["env_name"] == env_name
        assert (tmp_path / "models" / "m.zip").read_bytes() == before

    def test_a_stopped_job_with_the_longest_name_gets_a_valid_name(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate, store: ModelStore
    ) -> None:
        registry = open_registry()
        name = "m" * 79 + "." + "m" * 20
        run(registry, model_name=name)
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        job = submit(registry, env_name=env_name, model_name=name, total_timesteps=10_000_000, n_eval_episodes=0)
        gate.admit(40)
        wait_until(lambda: job.has_stepped and gate.n_arrived == 41)
        job.stop()
        gate.admit()
        assert job.finished.wait(PATIENCE_SECONDS)
        assert job.status is JobStatus.STOPPED
        kept = job.describe().model_name
        assert kept is not None
        assert store.exists(kept)

    def test_a_job_stopped_in_the_queue_takes_no_step_and_saves_nothing(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate, store: ModelStore
    ) -> None:
        registry = open_registry(max_running=1)
        running = submit(registry, env_name=register_env(lambda: LineEnv(gate.pass_through)))
        n_resets = 0

        def count_reset() -> None:
            nonlocal n_resets
            n_resets += 1

        queued = submit(registry, env_name=register_env(lambda: LineEnv(on_reset=count_reset), "Counting-v0"))
        following = submit(registry)
        n_resets = 0
        queued.stop()
        assert queued.status is JobStatus.STOPPED
        gate.admit()
        assert all(job.finished.wait(PATIENCE_SECONDS) for job in (running, following))
        assert (queued.status, n_resets) == (JobStatus.STOPPED, 0)
        assert queued.describe().model_name is None
        assert not store.exists(queued.config.model_name)

    def test_a_stopped_job_frees_its_place_in_the_queue_at_once(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate
    ) -> None:
        registry = open_registry(max_running=1, max_queued=1)
        submit(registry, env_name=register_env(lambda: LineEnv(gate.pass_through)))
        queued = submit(registry)
        queued.stop()
        submit(registry)

    def test_shutdown_stops_running_jobs_and_refuses_new_ones(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate, store: ModelStore
    ) -> None:
        registry = open_registry(max_running=1)
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        running = submit(registry, env_name=env_name, model_name="m", total_timesteps=10_000_000)
        queued = submit(registry)
        gate.admit()
        wait_until(lambda: running.has_stepped)  # or there is nothing to save
        registry.shutdown(grace_seconds=PATIENCE_SECONDS)
        assert {running.status, queued.status} == {JobStatus.STOPPED}
        assert store.exists("m")
        with pytest.raises(DrainingError):
            submit(registry)
        with pytest.raises(DrainingError):
            registry.check_can_submit()

    def test_jobs_that_a_shutdown_ends_say_so_and_can_be_resumed(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate
    ) -> None:
        registry = open_registry(max_running=1)
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        running = submit(registry, env_name=env_name, total_timesteps=10_000_000)
        queued, stopped = submit(registry), submit(registry)
        wait_until(lambda: gate.n_arrived == 1)
        stopped.stop()
        gate.admit()
        registry.shutdown(grace_seconds=PATIENCE_SECONDS)
        assert [job.describe().ended_by for job in (running, queued, stopped)] == ["shutdown", "shutdown", "stop"]
        for job, was in ((running, "running"), (queued, "queued")):
            said = f"the server was shut down while the job was {was}; POST /training/{job.job_id}/resume "
            assert (job.describe().error_message or "").startswith(said)
        assert stopped.describe().error_message is None

        resumed = Job.restore(queued.make_record(0, 1))
        resumed = resumed.resume(queued.plan.reward, JobServices(registry.totals), None)
        assert (resumed.status, resumed.describe().error_message) == (JobStatus.QUEUED, None)
        events = resumed.history.list_events()
        assert [event.payload["warning"] for event in events if event.name == "job.warning"] == [
            "resumed from step 0, after it had been interrupted at step 0."
        ]
        resumed.stop()
        assert resumed.describe().ended_by == "stop", "whoever ended it before"

    def test_shutdown_does_not_wait_forever(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate
    ) -> None:
        registry = open_registry()
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        job = submit(registry, env_name=env_name, total_timesteps=10_000_000, n_eval_episodes=0)
        gate.admit(40)
        wait_until(lambda: job.has_stepped and gate.n_arrived == 41)
        registry.shutdown(grace_seconds=0.05)
        assert job.status is JobStatus.STOPPED
        late = "within 0.05 s of the server's shutdown; POST /training/{}/resume "
        assert late.format(job.job_id) in (job.describe().error_message or "")
        assert job.describe().ended_by == "shutdown"

    def test_one_that_is_being_saved_when_the_shutdown_gives_it_up_was_not_stopped_by_hand(
        self, open_registry: Callable[..., JobRegistry], store: ModelStore, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "publish", lambda *_: gate.pass_through())
        registry = open_registry()
        job = submit(registry)
        wait_until(lambda: gate.n_arrived == 1)
        registry.shutdown(grace_seconds=0.05)
        assert job.describe().ended_by == "shutdown"
        gate.admit()


def test_a_job_that_the_shutdown_finds_without_a_worker_says_from_where_a_resume_goes_on(
    open_registry: Callable[..., JobRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TaskDrainedError("the server ended before a worker process was ready.")

    monkeypatch.setattr("service.jobs.runner.JobRunner._start", refuse)
    job = run(open_registry())
    assert (job.status, job.describe().ended_by) == (JobStatus.STOPPED, "shutdown")
    assert job.describe().error_message == (
        f"the server ended before a worker process was ready. POST /training/{job.job_id}/resume lets it begin."
    )


def test_a_clock_that_is_far_ahead_for_one_start_forgets_no_job(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def list_ids(client: TestClient) -> list[str]:
        return [job["job_id"] for job in client.get("/training/jobs").json()["jobs"]]

    with make_client(settings) as client:
        job_ids = [train_to_end(client, total_timesteps=64, n_eval_episodes=0)["job_id"] for _ in range(2)]
    tell_time = time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: tell_time() + 91 * 86_400)
        with make_client(settings) as client:
            assert list_ids(client) == job_ids
    with closing(sqlite3.connect(settings.models_dir / FILE_NAME)) as connection, connection:
        old = "UPDATE jobs SET written_at = written_at - 91 * 86400 WHERE job_id = ?"
        connection.execute(old, (job_ids[0],))
    assert "forgotten" not in caplog.text
    with caplog.at_level("INFO", "grpo.service"), make_client(settings) as client:
        assert list_ids(client) == job_ids[1:]
    assert "1 job(s) forgotten, more than 90 days older than the newest one" in caplog.text


class UnspeakableError(Exception):
    """An error that cannot even be described."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class TestFailing:
    FAULTS: tuple[tuple[BaseException, str], ...] = (
        (ValueError("the wheel came off"), "ValueError: the wheel came off"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (MemoryError(), "MemoryError: "),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (GeneratorExit(), "GeneratorExit: "),
        (OSError(2, "No such file", "/home/someone/secret/map.txt"), "FileNotFoundError: "),
        (OSError(2, "No such file", "/home/someone else/secret plans/map.txt"), "FileNotFoundError: "),
        (AssertionError("x" * 5000), "AssertionError: xxxxx"),
        (ValueError("\ud800 \u202e \x00"), "ValueError: "),
    )

    @pytest.mark.parametrize("at", ["reset", "step"])
    @pytest.mark.parametrize(
        ("fault", "message"), FAULTS, ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else ""
    )
    def test_whatever_an_environment_raises_ends_only_its_own_job(
        self,
        open_registry: Callable[..., JobRegistry],
        register_env: RegisterEnv,
        store: ModelStore,
        fault: BaseException,
        message: str,
        at: str,
    ) -> None:
        def fail() -> None:
            raise fault

        env_name = register_env(lambda: LineEnv(on_step=fail) if at == "step" else LineEnv(on_reset=fail))
        registry = open_registry(max_running=1)
        job = run(registry, env_name=env_name, model_name="m")
        status = job.describe()
        assert status.status is JobStatus.FAILED
        assert status.error_message is not None
        assert status.error_message.startswith(message)
        assert not {"someone", "else", "plans", "map.txt"} & set(re.split(r"[\s/']+", status.error_message))
        assert len(status.error_message) <= 500
        assert status.error_message.isascii()
        assert (status.model_name, status.sha256) == (None, None)
        assert not store.exists("m")
        # The slot is free again.
        assert run(registry).status is JobStatus.COMPLETED

    def test_an_error_that_cannot_be_described_still_ends_its_job(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv
    ) -> None:
        def fail() -> None:
            raise UnspeakableError

        registry = open_registry(max_running=1)
        job = submit(registry, env_name=register_env(lambda: LineEnv(on_step=fail)))
        assert run(registry).status is JobStatus.COMPLETED  # so the previous one has ended
        assert job.status is JobStatus.FAILED
        assert (job.describe().error_message or "").startswith("UnspeakableError")

    @pytest.mark.parametrize(
        ("observed", "message"),
        [
            (np.array([np.nan, 0.0], np.float32), "not finite in float32"),
            (np.array([np.inf, 0.0], np.float32), "not finite in float32"),
            (np.zeros(7, np.float32), "of shape (7,) instead of (2,)"),
        ],
    )
    def test_nonsensical_observations_fail_the_job(
        self,
        open_registry: Callable[..., JobRegistry],
        register_env: RegisterEnv,
        observed: FloatArray,
        message: str,
    ) -> None:
        job = run(open_registry(), env_name=register_env(lambda: LineEnv(lambda: observed)))
        assert job.status is JobStatus.FAILED
        assert message in (job.describe().error_message or "")

    def test_a_first_observation_that_is_not_finite_fails_the_job(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv
    ) -> None:
        nan = np.array([np.nan, 0.0], np.float32)
        job = run(open_registry(), env_name=register_env(lambda: LineEnv(on_reset=lambda: nan)))
        assert job.status is JobStatus.FAILED

    def test_other_jobs_continue(self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv) -> None:
        def fail() -> None:
            raise SystemExit

        registry = open_registry(max_running=2)
        failing = register_env(lambda: LineEnv(on_step=fail))
        jobs = [submit(registry, **({"env_name": failing} if i % 2 else {})) for i in range(6)]
        assert all(job.finished.wait(PATIENCE_SECONDS) for job in jobs)
        assert [job.status for job in jobs] == [JobStatus.COMPLETED, JobStatus.FAILED] * 3

    def test_a_policy_that_cannot_be_saved_fails_the_job_without_its_path(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate, tmp_path: Path
    ) -> None:
        registry = open_registry()
        job = submit(registry, env_name=register_env(lambda: LineEnv(gate.pass_through)))
        wait_until(lambda: gate.n_arrived == 1)
        shutil.rmtree(tmp_path / "models")
        (tmp_path / "models").write_text("a file in the folder's place")
        gate.admit()
        assert job.finished.wait(PATIENCE_SECONDS)
        status = job.describe()
        assert status.status is JobStatus.FAILED
        assert status.error_message is not None
        assert "cannot be saved (" in status.error_message
        assert tmp_path.name not in status.error_message
        assert status.model_name is None
        assert f"POST /training/{job.job_id}/resume saves it without training again" in status.error_message
        (tmp_path / "models").unlink()
        (tmp_path / "models").mkdir()
        assert run(registry).status is JobStatus.COMPLETED

    def test_a_policy_that_could_not_be_saved_is_saved_by_a_resume(
        self, open_registry: Callable[..., JobRegistry], store: ModelStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = open_registry()
        with monkeypatch.context() as full:
            full.setattr(store, "publish", publish := Mock(side_effect=StorageError("the disk is full.")))
            job = run(registry, model_name="m", total_timesteps=512, eval_freq=32, stop_reward=0.0)
            for n_tries in (2, 3):  # it is still full
                job = registry.resume(job, job.plan.reward)
                assert job.finished.wait(PATIENCE_SECONDS)
                assert (job.status, publish.call_count) == (JobStatus.FAILED, n_tries)
            # A stop that comes just before the save.
            full.setattr(Job, "settle_outcome", lambda job: JobStatus.STOPPED)
            job = registry.resume(job, job.plan.reward)
            assert job.finished.wait(PATIENCE_SECONDS)
        failed = job.describe()
        job = registry.resume(job, None)  # nothing is trained, so that nothing is needed for that
        assert job.finished.wait(PATIENCE_SECONDS)
        status = job.describe()
        assert (status.status, status.model_name, status.ended_by) == (JobStatus.COMPLETED, "m", "stop_reward")
        assert store.inspect_file("m").sha256 == status.sha256
        assert (status.final_evaluation, status.metrics) == (failed.final_evaluation, failed.metrics)
        assert status.current_timesteps == failed.current_timesteps > 0
        with pytest.raises(ConflictError, match="completed"):
            registry.resume(job, None)

    def test_the_oldest_policy_that_could_not_be_saved_makes_room(
        self,
        open_registry: Callable[..., JobRegistry],
        store: ModelStore,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        run(open_registry(), model_name="m")
        n_bytes = (tmp_path / "models" / "m.zip").stat().st_size
        monkeypatch.setattr("service.jobs.records.unsaved._MAX_BYTES", n_bytes * 3 // 2)
        registry = open_registry()
        with monkeypatch.context() as full:
            full.setattr(store, "publish", Mock(side_effect=StorageError("the disk is full.")))
            first, second = run(registry), run(registry)
        assert [registry._runner.unsaved.get(job.job_id) is None for job in (first, second)] == [True, False]
        second.state.checkpoint = JobCheckpoint(timesteps=32, created_at=datetime.now(UTC), exact=True, note=None)
        registry.check_checkpoint(second)
        assert second.warnings == [], "its resume saves what is in memory, and needs no checkpoint"
        first = registry.resume(first, first.plan.reward)
        assert first.finished.wait(PATIENCE_SECONDS)
        assert (first.status, first.describe().n_restarts) == (JobStatus.COMPLETED, 1)
        assert first.warnings == [], "its checkpoint has the finished policy, so that nothing is trained again"
        registry.delete(second.job_id)
        assert registry._runner.unsaved.get(second.job_id) is None

    def test_one_that_the_disk_does_not_take_says_so(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, gate: Gate, tmp_path: Path
    ) -> None:
        journal = JobJournal(tmp_path / "jobs.sqlite3")
        (n_pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
        journal._connection.execute(f"PRAGMA max_page_count = {n_pages}")
        registry = open_registry(recorder=JobRecorder(journal))
        env_name = register_env(lambda: LineEnv(gate.pass_through))
        *_, job = [submit(registry, env_name=env_name) for _ in range(8)]  # the pages there are take some of them
        assert any("may be lost" in warning and "full" in warning for warning in job.warnings)
        gate.admit()

    def test_a_failed_retraining_keeps_the_old_model(
        self, open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, tmp_path: Path
    ) -> None:
        def fail() -> None:
            raise ValueError

        registry = open_registry()
        run(registry, model_name="m")
        before = (tmp_path / "models" / "m.zip").read_bytes()
        job = run(registry, model_name="m", env_name=register_env(lambda: LineEnv(on_step=fail)))
        assert job.status is JobStatus.FAILED
        assert (tmp_path / "models" / "m.zip").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the whole process's")
def test_training_threads_have_a_lower_priority_than_requests(
    open_registry: Callable[..., JobRegistry], register_env: RegisterEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.workers.threads._let_requests_go_first", let_requests_go_first)
    niceness = []

    def note_niceness() -> None:
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    job = submit(open_registry(), env_name=register_env(lambda: LineEnv(note_niceness)))
    assert job.finished.wait(PATIENCE_SECONDS)
    assert niceness[-1] > before
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
