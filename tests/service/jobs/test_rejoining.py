"""Jobs that went on without their server are followed again by the next one."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from grpo_core.options.rewards import Reward
from service.errors import NotFoundError
from service.jobs.job import Job, JobServices
from service.jobs.records.database import FILE_NAME
from service.jobs.records.journal import JobJournal, open_journal
from service.jobs.records.recorder import JobRecorder
from service.jobs.registry import JobRegistry
from service.jobs.totals import JobTotals
from service.models.files.folder import ModelFolder
from service.schemas.jobs import JobStatus
from service.workers.receipts import Receipts
from service.workers.task import (
    ClusterLostError,
    LastingRun,
    NodeLostError,
    Progress,
    Task,
    TaskDrainedError,
    TaskFailedError,
)
from service.workers.threads import ThreadExecutor
from tests.models import make_model
from tests.support import make_plan, make_registry, open_model_store, wait_until

# Seconds that a report has waited for a server.
AGE_SECONDS = 1000.0


class KeptRun:
    """A task elsewhere that has reported twice since its first server was killed, and then ended.

    :param n_earlier_stops: How often that server has asked it to stop.
    """

    delay_seconds = 0.0

    def __init__(
        self, job: Job, progress: Progress, receipts: Receipts, outcome: bytes | Exception, n_earlier_stops: int
    ) -> None:
        self._job, self._progress, self._receipts, self._outcome = job, progress, receipts, outcome
        self.n_earlier_stops = n_earlier_stops
        self.n_stops = 0
        self.was_written_at_release: bool | None = None
        self.was_left = False
        progress.attach_stop(self.stop)

    def stop(self) -> None:
        self.n_stops += 1

    def wait(self, timeout_seconds: float) -> bool:
        for number, age_seconds in ((8, AGE_SECONDS), (9, 0.0)):
            with self._receipts.take(number, age_seconds):
                self._progress.advance(10 * (number - 2))
                self._progress.publish_metrics({"rollout/ep_rew_mean": float(number)})
        self._receipts.end_age_seconds = AGE_SECONDS
        return True

    def get_content(self) -> bytes:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def kill(self) -> None:
        pass

    def leave(self) -> None:
        self.was_left = True

    def release(self) -> None:
        self.was_written_at_release = self._job.status.is_final


class Elsewhere(ThreadExecutor):
    """Threads, but for what an earlier server has left.

    :param outcome: What has become of that; None if nobody knows it, an error if it cannot be asked for.
    """

    def __init__(self, outcome: bytes | Exception | None, n_earlier_stops: int = 0) -> None:
        super().__init__()
        self._outcome, self._n_earlier_stops = outcome, n_earlier_stops
        self.asked: list[tuple[str, int, int]] = []
        self.run: KeptRun | None = None
        self.n_started = self.n_endings = 0
        #: Finds a job by its id.
        self.get_job: Callable[[str], Job]
        #: Called when a task is asked for, with its job.
        self.while_searching: Callable[[Job], None] = lambda job: None

    def start_lasting(self, task: Task, progress: Progress, receipts: Receipts) -> LastingRun:
        self.n_started += 1
        assert self.run is None or self.run.was_written_at_release is False, "it would have no room"
        raise TaskFailedError("no more of this")

    def adopt(self, job_id: str, progress: Progress, receipts: Receipts) -> LastingRun | None:
        self.asked.append((job_id, receipts.attempt, receipts.n_taken))
        job = self.get_job(job_id)
        self.while_searching(job)
        if isinstance(self._outcome, TaskDrainedError | ClusterLostError | ZeroDivisionError):
            raise self._outcome
        if self._outcome is None:
            return None
        self.run = KeptRun(job, progress, receipts, self._outcome, self._n_earlier_stops)
        return self.run

    def end_left(self) -> None:
        self.n_endings += 1


Reopen = Callable[..., AbstractContextManager[JobRegistry]]


@pytest.fixture
def reopen(tmp_path: Path) -> Reopen:
    """Open a registry as a server does that starts again, and close it."""
    store = open_model_store(tmp_path / "models")

    @contextmanager
    def open_again(
        keeper: Elsewhere, find_rewards: Callable[[object], Reward | None] = lambda config: None
    ) -> Iterator[JobRegistry]:
        journal, obstacle = open_journal(tmp_path, keeps_running=True)
        recorder = JobRecorder(journal, obstacle)
        registry = make_registry(store, keeper, recorder, keeper=keeper)
        keeper.get_job = registry.get
        registry.rejoin(find_rewards)
        yield registry
        registry.shutdown(grace_seconds=10)

    return open_again


@pytest.fixture
def killed(tmp_path: Path) -> Job:
    """A job that ran when its server was killed, and one that waited. The first had taken seven reports."""
    journal = JobJournal(tmp_path / FILE_NAME)
    plan = make_plan(env_name="CartPole-v1", total_timesteps=100, model_name="m")._replace(reward=None)
    job, waiting = Job(plan), Job(plan)
    assert job.start()
    for i in range(1, 6):
        job.progress.advance(10 * i)
        job.progress.publish_metrics({"rollout/ep_rew_mean": float(i)})
    with job.receipts.take(7, 0.0):
        pass
    journal.write([job.make_record(0, 1), waiting.make_record(0, 1)])
    journal.close()
    return job


@pytest.fixture(scope="module")
def model() -> bytes:
    return make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")


def test_it_ends_under_its_id_with_its_model_and_without_a_gap(reopen: Reopen, killed: Job, model: bytes) -> None:
    keeper = Elsewhere(model)
    with reopen(keeper) as registry:
        first, waiting = registry.list_jobs()
        assert first.job_id == killed.job_id
        assert isinstance(first, Job)
        assert first.finished.wait(60)
        status = first.describe()
        assert (status.status, status.model_name, status.n_restarts) == (JobStatus.COMPLETED, "m", 0)
        rows = first.history.list_rows()
        assert [row.timesteps for row in rows] == [10, 20, 30, 40, 50, 60, 70]
        assert [row.metrics["rollout/ep_rew_mean"] for row in rows] == [1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 9.0]
        # Each at the time at which it was made.
        assert rows[-1].elapsed_seconds - rows[-2].elapsed_seconds == pytest.approx(AGE_SECONDS, abs=60.0)
        assert status.end_time is not None
        seconds_since_end = (datetime.now(UTC) - status.end_time).total_seconds()
        assert seconds_since_end == pytest.approx(AGE_SECONDS, abs=60.0), "it ended before anybody looked"
        assert keeper.asked == [(killed.job_id, 0, 7)]
        assert waiting.status is JobStatus.FAILED
        assert keeper.n_endings == 1, "what no job of this server is"
        wait_until(lambda: keeper.run is not None and keeper.run.was_written_at_release is not None)
        assert keeper.run is not None
        assert keeper.run.was_written_at_release, "the next server could not have asked for it any more"
    keeper = Elsewhere(None)
    with reopen(keeper) as registry:
        assert [job.status for job in registry.list_jobs()] == [JobStatus.COMPLETED, JobStatus.FAILED]
    assert keeper.n_endings == 1


def test_one_whose_worker_dies_after_that_begins_again_with_reports_of_its_own(reopen: Reopen, killed: Job) -> None:
    keeper = Elsewhere(NodeLostError("the node is gone."))
    with reopen(keeper) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
    assert (job.receipts.attempt, job.receipts.n_taken) == (1, 0)
    assert keeper.n_started == 1
    assert job.describe().error_message == "no more of this"


def test_reports_count_as_written_once_they_are_on_the_disk(killed: Job, tmp_path: Path) -> None:
    recorder = JobRecorder(JobJournal(tmp_path / "other"))
    assert killed.receipts.n_written == 0
    recorder.begin(killed)
    assert killed.receipts.n_written == 7
    with killed.receipts.take(8, 0.0):
        killed.progress.publish_metrics({"rollout/ep_rew_mean": 6.0})
    wait_until(lambda: killed.receipts.n_written == 8)
    recorder.close()
    journal = JobJournal(tmp_path / "other")
    record = journal.load(killed.job_id)
    journal.close()
    assert record is not None
    assert record.state.n_reports == 8
    assert record.state.metrics == {"rollout/ep_rew_mean": 6.0}


def test_one_that_is_gone_was_interrupted_and_can_be_resumed(reopen: Reopen, killed: Job) -> None:
    with reopen(Elsewhere(None)) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        message = job.describe().error_message
        assert job.status is JobStatus.FAILED
        assert message is not None
        assert message.startswith("interrupted by restart: the server ended while the job was running;")
        assert job.describe().ended_by == "restart"
        assert registry.resume(job, None).describe().n_restarts == 1


def test_a_stop_that_the_killed_server_had_passed_on_is_known(reopen: Reopen, killed: Job, model: bytes) -> None:
    keeper = Elsewhere(model, n_earlier_stops=1)
    with reopen(keeper) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        assert job.status is JobStatus.STOPPED
    assert keeper.run is not None
    assert keeper.run.n_stops == 1


def test_one_that_was_not_found_before_the_server_ends_is_left_to_the_next_one(
    reopen: Reopen, killed: Job, model: bytes
) -> None:
    keeper = Elsewhere(TaskDrainedError("the server ended."))
    with reopen(keeper) as registry:
        wait_until(lambda: bool(keeper.asked))
        assert registry.get(killed.job_id).status is JobStatus.RUNNING
    with reopen(Elsewhere(model)) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        assert job.status is JobStatus.COMPLETED


def test_one_that_is_found_while_the_server_ends_is_left_to_the_next_one(
    reopen: Reopen, killed: Job, model: bytes
) -> None:
    keeper, is_ending = Elsewhere(model), threading.Event()
    keeper.while_searching = lambda job: wait_until(is_ending.is_set)
    with reopen(keeper) as registry:
        wait_until(lambda: bool(keeper.asked))
        registry.stop_all()
        is_ending.set()
        wait_until(lambda: keeper.run is not None and keeper.run.was_left)
        assert registry.get(killed.job_id).status is JobStatus.RUNNING
    assert keeper.run is not None
    assert (keeper.run.n_stops, keeper.run.was_written_at_release) == (0, None)
    with reopen(Elsewhere(model)) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        assert job.status is JobStatus.COMPLETED


def test_a_search_that_fails_ends_the_job(reopen: Reopen, killed: Job) -> None:
    with reopen(Elsewhere(ZeroDivisionError("a fault"))) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        status = job.describe()
    assert status.status is JobStatus.FAILED
    assert status.error_message is not None
    assert status.error_message.startswith("interrupted by restart: ")
    assert status.ended_by == "restart"
    assert "a fault" in status.error_message


def test_a_stop_during_the_search_is_passed_on_once_it_is_found(reopen: Reopen, killed: Job, model: bytes) -> None:
    keeper = Elsewhere(model)
    keeper.while_searching = lambda job: job.stop()
    with reopen(keeper) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        status = job.describe()
    assert (status.status, status.model_name) == (JobStatus.STOPPED, "m")
    assert keeper.run is not None
    assert keeper.run.n_stops == 1


@pytest.mark.parametrize("n_earlier_stops", [0, 1])
def test_a_stop_is_on_the_disk_when_it_is_answered_and_is_passed_on_by_whichever_server_finds_the_job(
    n_earlier_stops: int, reopen: Reopen, killed: Job, model: bytes
) -> None:
    with reopen(Elsewhere(TaskDrainedError("the server ended."))) as registry:
        job = registry.get(killed.job_id)
        registry.stop(job)
        record = registry.recorder.journal.load(job.job_id)
        assert record is not None
        assert (record.state.status, record.state.n_stops) == (JobStatus.RUNNING, 1)
    keeper = Elsewhere(model, n_earlier_stops)
    with reopen(keeper) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        assert job.status is JobStatus.STOPPED
    assert keeper.run is not None
    assert keeper.run.n_stops == 1, "if its slot had been told, it was the same stop: a second one skips the evaluation"


def test_one_that_was_stopped_and_is_gone_has_stopped(reopen: Reopen, killed: Job) -> None:
    keeper = Elsewhere(None)
    keeper.while_searching = lambda job: job.stop()
    with reopen(keeper) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        status = job.describe()
    assert (status.status, status.ended_by) == (JobStatus.STOPPED, "stop")
    assert (status.error_message or "").startswith("interrupted by restart: ")


def test_one_that_was_stopped_and_may_go_on_has_failed(reopen: Reopen, killed: Job) -> None:
    keeper = Elsewhere(ClusterLostError("the job may go on."))
    keeper.while_searching = lambda job: job.stop()
    with reopen(keeper) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        assert job.status is JobStatus.FAILED


def test_all_are_looked_for_at_once_even_if_they_are_more_than_may_run(
    reopen: Reopen, killed: Job, tmp_path: Path
) -> None:
    journal = JobJournal(tmp_path / FILE_NAME)
    others = [Job(killed.plan) for _ in range(3)]
    for job in others:
        job.start()
    journal.write([job.make_record(0, 1) for job in others])
    journal.close()
    keeper = Elsewhere(None)
    keeper.while_searching = lambda job: wait_until(lambda: len(keeper.asked) == 4)
    with reopen(keeper) as registry:
        for job_id in (killed.job_id, *(job.job_id for job in others)):
            job = registry.get(job_id)
            assert job.finished.wait(60)
            assert (job.describe().error_message or "").startswith("interrupted by restart: the server ended")


def test_what_a_killed_server_had_published_of_a_stopped_job_is_the_jobs_own(
    reopen: Reopen, killed: Job, model: bytes, tmp_path: Path
) -> None:
    folder = ModelFolder(tmp_path / "models")
    folder.write("m", model)
    with reopen(Elsewhere(model, n_earlier_stops=1)) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        assert (job.status, job.describe().model_name) == (JobStatus.STOPPED, "m")
    assert folder.list_names() == ["m"]


def test_one_that_cannot_be_read_has_failed_for_good(reopen: Reopen, killed: Job, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE jobs SET plan = '[' WHERE job_id = ?", (killed.job_id,))
    with reopen(Elsewhere(None)) as registry:
        assert registry.list_jobs()[0].status is JobStatus.FAILED
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        query = "SELECT status, json_extract(state, '$.status') FROM jobs WHERE job_id = ?"
        assert connection.execute(query, (killed.job_id,)).fetchone() == ("failed", "failed")


def test_a_restart_of_the_server_gives_no_more_workers_than_it_may_have(killed: Job, tmp_path: Path) -> None:
    n_restarts = killed.config.max_restarts
    job = killed
    for i in range(n_restarts):
        assert job.restart("it died."), i
        job.forbid_restarts("its rewards are gone")
        job = Job.revive(job.make_record(0, 1), JobServices(JobTotals()))
    assert not job.restart("it died.")
    assert len([warning for warning in job.warnings if "its rewards are gone" in warning]) == 1


def test_without_its_rewards_it_goes_on_but_not_again(reopen: Reopen, killed: Job) -> None:
    def find_nothing(config: object) -> Reward | None:
        raise NotFoundError("there is no reward function 'mine'.")

    keeper = Elsewhere(NodeLostError("the node is gone."))
    with reopen(keeper, find_nothing) as registry:
        job = registry.get(killed.job_id)
        assert job.finished.wait(60)
        status = job.describe()
    assert (status.status, status.error_message, keeper.n_started) == (JobStatus.FAILED, "the node is gone.", 0)
    assert "there is no reward function 'mine'" in status.warnings[0]


def test_nothing_is_written_down_between_a_report_and_its_number(killed: Job) -> None:
    written = threading.Event()

    def write() -> None:
        killed.make_record(0, 1)
        written.set()

    with killed.receipts.take(8, 0.0):
        thread = threading.Thread(target=write)
        thread.start()
        killed.progress.advance(60)
        assert not written.is_set()
    thread.join(60)
    record = killed.make_record(0, 1)
    assert (record.state.n_reports, record.state.current_timesteps) == (8, 60)
