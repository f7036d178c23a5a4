"""What a worker reports of a job is noted until the job has ended."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from service.jobs.job import Job, JobServices
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.history import JobHistory
from service.jobs.totals import JobTotals
from service.schemas.jobs import JobStatus
from service.training.order import TrainingOrder
from service.training.planning.plan import TrainingPlan
from service.training.train import train_policy
from tests.support import make_evaluation, make_plan, wait_until

SILENT, LOUD = {"rollout/zero_std_group_fraction": 1.0}, {"rollout/zero_std_group_fraction": 0.5}


def plan(**request: Any) -> TrainingPlan:
    return make_plan(**request)._replace(reward=None)


def reward_nothing(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(state), 1)


@pytest.fixture
def job() -> Job:
    return Job(plan(total_timesteps=100))


def test_a_training_that_begins_again_takes_its_steps_again(tmp_path: Path) -> None:
    totals = JobTotals()
    checkpoints = CheckpointFolder(tmp_path, lambda job_id: False)
    job = Job(plan(total_timesteps=100), JobServices(totals, checkpoints=checkpoints))
    job.start()
    for timesteps in (32, 64):
        job.progress.advance(timesteps)
        job.progress.publish_metrics(LOUD)
    job.progress.publish_checkpoint({"timesteps": 64}, b"of no use")
    job.progress.advance(32)  # without a word of a restart: its checkpoint is of no use
    assert (job.describe().current_timesteps, job.state.repeated_timesteps, totals.n_timesteps) == (32, 64, 96)
    assert (job.history.list_rows(), job.describe().checkpoint) == ([], None)
    assert checkpoints.read(job.job_id) is None  # no resume goes on from it


def test_an_evaluation_that_is_made_again_replaces_the_earlier(job: Job) -> None:
    job.start()
    for reward in (3.0, 2.0):
        job.progress.publish_evaluation(make_evaluation(0, reward).model_dump(exclude={"elapsed_seconds"}))
    status = job.describe()
    assert status.evaluation == status.best_evaluation
    assert [row.mean_reward for row in job.history.list_evaluations()] == [2.0]
    names = [event.name for event in job.history.list_kept_events()]
    assert names.count("job.evaluation") == 1
    assert job.summarize().mean_reward is None  # of a policy without training
    job.progress.publish_evaluation(make_evaluation(64, 1.0).model_dump(exclude={"elapsed_seconds"}))
    assert job.summarize().mean_reward == 1.0
    restored = JobHistory.restore(job.history.get_part(0, 1, is_last=True))
    assert [row.mean_reward for row in restored.list_evaluations()] == [2.0, 1.0]


def test_it_notes_no_checkpoint_if_it_ends_while_that_is_written(tmp_path: Path) -> None:
    class SlowFolder(CheckpointFolder):
        def write(self, job_id: str, content: bytes) -> None:
            super().write(job_id, content)
            hung.give_up(JobStatus.FAILED, "It hung.")

    hung = Job(
        plan(total_timesteps=100), JobServices(JobTotals(), checkpoints=SlowFolder(tmp_path, lambda job_id: False))
    )
    assert hung.start()
    hung.progress.publish_checkpoint({"timesteps": 64}, b"a checkpoint")
    assert (hung.status, hung.describe().checkpoint) == (JobStatus.FAILED, None)
    assert hung.history.list_events()[-1].payload == hung.describe().model_dump(mode="json")


def test_a_checkpoint_that_cannot_be_kept_costs_what_came_after_the_last_one(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, lambda job_id: True)
    job = Job(plan(total_timesteps=100), JobServices(JobTotals(), checkpoints=checkpoints))
    job.start()
    job.progress.advance(64)
    job.progress.publish_checkpoint({"timesteps": 64}, b"content")
    checkpoints.write = refuse  # type: ignore[method-assign]
    job.progress.publish_checkpoint({"timesteps": 96}, b"content")
    assert "loses what was learned after step 64 (No space left on device)" in job.describe().warnings[-1]


def refuse(job_id: str, content: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_abandoned_job_stops_at_its_next_step_and_no_longer_changes(job: Job) -> None:
    stopped: list[bool] = []
    job.start()
    job.progress.attach_stop(lambda: stopped.append(True))
    job.progress.advance(3)
    job.give_up(JobStatus.FAILED, "stalled")
    assert stopped == [True]
    given_up = job.describe()
    job.progress.advance(4)
    job.progress.publish_metrics(LOUD)
    job.progress.attach_stop(lambda: stopped.append(True))
    assert stopped == [True, True]
    assert job.describe() == given_up
    assert (given_up.status, given_up.error_message) == (JobStatus.FAILED, "stalled")


def test_a_step_counts_as_activity(job: Job) -> None:
    started = time.monotonic()
    wait_until(lambda: job.inactive_seconds >= 0.1)
    job.progress.advance(1)
    assert job.inactive_seconds < time.monotonic() - started


def test_it_shows_the_latest_evaluation_and_the_first_of_the_best(job: Job) -> None:
    job.start()
    for timesteps, mean_reward in ((10, 1.0), (20, 3.0), (30, 3.0), (40, 2.0)):
        row = make_evaluation(timesteps, mean_reward).model_dump(exclude={"elapsed_seconds"})
        job.progress.publish_evaluation(row)
    status = job.describe()
    assert status.evaluation is not None
    assert status.best_evaluation is not None
    assert (status.evaluation.timesteps, status.best_evaluation.timesteps) == (40, 20)
    assert 0.0 < status.evaluation.elapsed_seconds <= status.elapsed_seconds
    assert [row.timesteps for row in job.history.list_evaluations()] == [10, 20, 30, 40]
    job.finish(JobStatus.COMPLETED)
    job.progress.publish_evaluation(row)
    assert len(job.history.list_evaluations()) == 4


def test_its_worker_may_warn() -> None:
    job = Job(plan()._replace(warnings=("mind the gap",)))
    job.start()
    job.warn("not evaluated")
    assert job.describe().warnings == ["mind the gap", "not evaluated"]
    warnings = [event.payload for event in job.history.list_events() if event.name == "job.warning"]
    assert warnings == [{"warning": "mind the gap"}, {"warning": "not evaluated"}]
    job.finish(JobStatus.COMPLETED)
    job.warn("too late")
    assert job.describe().warnings == ["mind the gap", "not evaluated"]


def test_a_warning_that_it_has_already_is_not_repeated() -> None:
    job = Job(plan()._replace(warnings=("mind the gap",)))
    job.warn("not evaluated")
    job.finish(JobStatus.STOPPED)
    job = job.resume(None, JobServices(JobTotals()), None)
    for warning in ("not evaluated", "mind the gap"):
        job.warn(warning)
    assert job.warnings == ["mind the gap", "not evaluated"]
    told = [event.payload.get("warning") for event in job.history.list_kept_events()]
    assert (told.count("not evaluated"), told.count("mind the gap")) == (1, 1)


def test_a_second_stop_is_passed_on_even_if_both_came_before_it_could_be(job: Job) -> None:
    stops: list[int] = []
    job.start()
    job.stop()
    job.stop()
    job.progress.attach_stop(lambda: stops.append(1))
    assert len(stops) == 2


def test_one_stop_that_skips_the_evaluation_counts_as_both(job: Job) -> None:
    stops: list[int] = []
    job.start()
    job.progress.attach_stop(lambda: stops.append(1))
    job.stop("shutdown", skips_evaluation=True)
    assert (len(stops), job.state.n_stops) == (2, 2)


def test_progress_is_reported_at_most_ten_times_a_second(job: Job) -> None:
    job.start()
    begun = time.monotonic()
    before = job.history.last_event_id
    for timesteps in range(20_000):
        job.progress.advance(timesteps)
    assert 1 <= job.history.last_event_id - before <= 2 + 10 * (time.monotonic() - begun)


def test_a_missing_signal_causes_one_warning_each_time(job: Job) -> None:
    for rollout in range(1, 40):
        job.progress.advance(rollout * 1000)
        job.progress.publish_metrics(LOUD if rollout == 20 else SILENT)
    warnings = [event.payload["warning"] for event in job.history.list_events() if event.name == "job.warning"]
    assert [warning.partition(":")[0] for warning in warnings] == [
        "no signal in the last 10 rollouts (10000 steps)"
    ] * 2


def test_the_next_server_does_not_warn_of_the_same_silence_again() -> None:
    job = Job(plan(total_timesteps=100_000))
    job.start()
    for server in range(2):
        for rollout in range(1, 16):
            job.progress.advance((15 * server + rollout) * 1000)
            job.progress.publish_metrics(SILENT)
        job = Job.revive(job.make_record(0, 1), JobServices(JobTotals()))
    assert [event.name for event in job.history.list_events()].count("job.warning") == 1
    assert "the last 30 rollouts (30000 steps)" in job.describe().warnings[0]


class TestTheNoSignalWarning:
    @pytest.mark.parametrize(("n_rollouts", "steps_each"), [(10, 200), (63, 32), (10, 2048)])
    def test_it_comes_after_ten_rollouts_and_two_thousand_steps_without_a_signal(
        self, job: Job, n_rollouts: int, steps_each: int
    ) -> None:
        for rollout in range(1, n_rollouts + 1):
            assert job.describe().warnings == []
            job.progress.advance(rollout * steps_each)
            job.progress.publish_metrics(SILENT)
        (warning,) = job.describe().warnings
        assert f"no signal in the last {n_rollouts} rollouts ({n_rollouts * steps_each} steps)" in warning
        assert "may still be found" in warning
        job.finish(JobStatus.STOPPED)
        (warning,) = job.describe().warnings
        assert "earned the same. Use a reward that differs between branches" in warning

    def test_one_rollout_with_a_signal_ends_it_and_restarts_the_count(self, job: Job) -> None:
        for rollout in range(1, 13):
            job.progress.advance(rollout * 1000)
            job.progress.publish_metrics(SILENT)
        job.progress.publish_metrics(LOUD)
        assert job.describe().warnings == []
        job.progress.advance(13_900)
        for _ in range(10):
            job.progress.publish_metrics(SILENT)
        assert job.describe().warnings == []
        job.progress.advance(14_000)
        assert "(2000 steps)" in job.describe().warnings[0]

    def test_warnings_of_the_plan_come_first_and_stay(self) -> None:
        job = Job(plan(total_timesteps=100_000)._replace(warnings=("mind the gap",)))
        assert job.describe().warnings == ["mind the gap"]
        job.progress.advance(2000)
        for _ in range(10):
            job.progress.publish_metrics(SILENT)
        assert job.describe().warnings[0] == "mind the gap"
        assert "no signal" in job.describe().warnings[1]

    def test_each_rollout_is_counted_once(self) -> None:
        # One step per branch and equal rewards leave nothing to learn.
        job = Job(plan(total_timesteps=11 * 256, n_steps=256, horizon=1, gamma=0.0, seed=0))
        train_policy(TrainingOrder(job.config, reward_nothing), job.progress)
        assert any("the last 11 rollouts" in warning for warning in job.describe().warnings)
