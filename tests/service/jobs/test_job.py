"""A job changes status in one direction only, and reports everything that happens to it."""

import asyncio
import itertools
import threading
import time
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
import torch

from service.errors import ConflictError
from service.jobs.job import Job, JobHome
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.history import JobHistory
from service.jobs.records.record import JobRecord
from service.jobs.totals import JobTotals
from service.schemas.jobs import FinalEvaluation, JobStatus
from service.training.order import TrainingOrder
from service.training.planning.plan import TrainingPlan
from service.training.train import train_policy
from tests.support import make_evaluation, make_final_evaluation, make_plan, wait_until

FINAL = [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.STOPPED]
SILENT, LOUD = {"rollout/zero_std_group_fraction": 1.0}, {"rollout/zero_std_group_fraction": 0.5}


def plan(**request: Any) -> TrainingPlan:
    return make_plan(**request)._replace(reward=None)


def reward_nothing(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(state), 1)


@pytest.fixture
def job() -> Job:
    return Job(plan(total_timesteps=100))


class TestOneJob:
    def test_it_is_queued_at_first(self, job: Job) -> None:
        status = job.describe()
        assert status.status is JobStatus.QUEUED
        assert (status.progress, status.current_timesteps, status.total_timesteps) == (0.0, 0, 100)
        assert status.created_at.tzinfo is UTC
        assert (status.start_time, status.end_time, status.error_message, status.model_name) == (None,) * 4
        assert (status.metrics, status.warnings) == ({}, [])
        assert status.config == job.config
        assert (status.elapsed_seconds, status.eta_seconds, status.ended_by) == (0.0, None, None)
        assert (status.verdict.state, status.evaluation, status.best_evaluation) == ("waiting", None, None)

    def test_its_times_are_in_order(self, job: Job) -> None:
        assert job.start()
        started = job.describe()
        assert started.status is JobStatus.RUNNING
        assert started.end_time is None
        job.finish(JobStatus.COMPLETED)
        ended = job.describe()
        assert ended.start_time is not None
        assert ended.end_time is not None
        assert ended.created_at <= ended.start_time <= ended.end_time
        assert ended.end_time.tzinfo is UTC

    @pytest.mark.parametrize(("first", "second"), list(itertools.permutations(FINAL, 2)))
    def test_the_first_final_status_is_kept(self, job: Job, first: JobStatus, second: JobStatus) -> None:
        job.start()
        job.finish(first, "first")
        before = job.describe()
        job.finish(second, "second")
        assert not job.start()
        assert job.describe() == before
        assert job.finished.is_set()

    def test_it_ends_though_its_end_cannot_be_written(self) -> None:
        def fail(record: JobRecord) -> None:
            raise RuntimeError("a bug")

        job = Job(plan(total_timesteps=100), JobHome(JobTotals(), fail))
        job.start()
        with pytest.raises(RuntimeError):
            job.finish(JobStatus.COMPLETED)
        assert job.status is JobStatus.COMPLETED
        assert job.finished.is_set()

    def test_it_can_be_read_while_a_slow_disk_deletes_its_checkpoint(self, tmp_path: Path) -> None:
        seen: list[JobStatus] = []

        class SlowFolder(CheckpointFolder):
            def delete(self, job_id: str) -> None:
                reader = threading.Thread(target=lambda: seen.append(slow.describe().status))
                reader.start()
                reader.join(10.0)

        slow = Job(plan(total_timesteps=100), JobHome(JobTotals(), checkpoints=SlowFolder(tmp_path)))
        slow.start()
        slow.finish(JobStatus.COMPLETED)
        assert seen == [JobStatus.RUNNING]

    def test_a_job_stopped_in_the_queue_never_starts(self, job: Job) -> None:
        job.stop()
        assert job.status is JobStatus.STOPPED
        assert job.finished.is_set()
        assert not job.start()
        job.stop()
        assert job.describe().start_time is None

    def test_stopping_ends_the_training(self, job: Job) -> None:
        stopped: list[bool] = []
        job.start()
        job.progress.attach_stop(lambda: stopped.append(True))
        assert stopped == []
        job.stop()
        assert stopped == [True]
        assert job.status is JobStatus.RUNNING  # until the training has noticed
        assert job.settle_outcome() is JobStatus.STOPPED

    def test_a_stop_before_training_starts_is_not_lost(self, job: Job) -> None:
        stopped: list[bool] = []
        job.start()
        job.stop()
        job.progress.attach_stop(lambda: stopped.append(True))
        assert stopped == [True]

    def test_a_stop_once_training_is_over_is_refused(self, job: Job) -> None:
        job.start()
        assert job.settle_outcome() is JobStatus.COMPLETED
        with pytest.raises(ConflictError, match="has finished training and is being saved"):
            job.stop()

    @pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED])
    def test_a_stop_after_the_end_is_refused(self, job: Job, status: JobStatus) -> None:
        job.start()
        job.finish(status)
        with pytest.raises(ConflictError, match=status):
            job.stop()
        assert job.status is status

    def test_a_failure_after_a_stop_is_a_failure(self, job: Job) -> None:
        job.start()
        job.stop()
        job.finish(JobStatus.FAILED, "OSError: no space")
        assert job.describe().status is JobStatus.FAILED
        assert job.describe().error_message == "OSError: no space"

    def test_progress_is_the_share_of_steps_and_reaches_one_only_on_completion(self, job: Job) -> None:
        job.start()
        job.progress.advance(25)
        assert job.describe().progress == job.summarize().progress == 0.25
        job.progress.advance(120)
        assert job.describe().progress == 1.0
        assert job.describe().current_timesteps == 120
        job.progress.advance(40)
        job.finish(JobStatus.COMPLETED)
        assert job.describe().progress == 1.0

    def test_a_training_that_begins_again_takes_its_steps_again(self) -> None:
        totals = JobTotals()
        job = Job(plan(total_timesteps=100), JobHome(totals))
        job.start()
        for timesteps in (32, 64):
            job.progress.advance(timesteps)
            job.progress.publish_metrics(LOUD)
        job.progress.advance(32)  # without a word of a restart: its checkpoint is of no use
        assert (job.describe().current_timesteps, job.state.repeated_timesteps, totals.n_timesteps) == (32, 64, 96)
        assert job.history.list_rows() == []

    def test_an_evaluation_that_is_made_again_replaces_the_earlier(self, job: Job) -> None:
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

    def test_it_notes_no_checkpoint_if_it_ends_while_that_is_written(self, tmp_path: Path) -> None:
        class SlowFolder(CheckpointFolder):
            def write(self, job_id: str, content: bytes) -> None:
                super().write(job_id, content)
                hung.give_up(JobStatus.FAILED, "It hung.")

        hung = Job(plan(total_timesteps=100), JobHome(JobTotals(), checkpoints=SlowFolder(tmp_path)))
        assert hung.start()
        hung.progress.publish_checkpoint({"timesteps": 64}, b"a checkpoint")
        assert (hung.status, hung.describe().checkpoint) == (JobStatus.FAILED, None)
        assert hung.history.list_events()[-1].payload == hung.describe().model_dump(mode="json")

    def test_a_checkpoint_that_is_gone_when_it_is_needed_is_warned_of(self, tmp_path: Path) -> None:
        folder = CheckpointFolder(tmp_path)
        home = JobHome(JobTotals(), checkpoints=folder)
        job = Job(plan(total_timesteps=100), home)
        job.start()
        job.progress.advance(64)
        job.progress.publish_checkpoint({"timesteps": 64}, b"a checkpoint")
        job.finish(JobStatus.FAILED, "RuntimeError: the cable is loose")
        job.resume(None, home, job.describe().checkpoint)
        assert job.read_checkpoint() == b"a checkpoint"
        assert job.warnings == []
        folder.delete(job.job_id)
        assert job.read_checkpoint() is None
        status = job.describe()
        assert (status.current_timesteps, status.checkpoint, job.state.repeated_timesteps) == (0, None, 64)
        assert [warning for warning in job.warnings if "training began again" in warning] == job.warnings
        assert job.warnings != []

    def test_a_resume_forgets_the_figures_of_steps_that_will_be_taken_again(self, tmp_path: Path) -> None:
        home = JobHome(JobTotals(), checkpoints=CheckpointFolder(tmp_path))
        job = Job(plan(total_timesteps=100), home)
        job.start()
        for timesteps in (32, 64, 96):
            job.progress.advance(timesteps)
            job.progress.publish_metrics({"rollout/ep_rew_mean": float(timesteps)})
        job.progress.publish_checkpoint({"timesteps": 64}, b"a checkpoint")
        job.finish(JobStatus.FAILED, "RuntimeError: the cable is loose")
        job.resume(None, home, job.describe().checkpoint)
        assert job.describe().metrics == {"rollout/ep_rew_mean": 64.0}
        job.finish(JobStatus.STOPPED)
        job.resume(None, home, None)
        assert (job.describe().metrics, job.describe().current_timesteps) == ({}, 0)

    def test_its_history_remembers_how_it_ended_before_and_from_where_it_went_on(self, tmp_path: Path) -> None:
        home = JobHome(JobTotals(), checkpoints=CheckpointFolder(tmp_path))
        job = Job(plan(total_timesteps=100_000), home)
        job.start()
        job.progress.publish_checkpoint({"timesteps": 6_400}, b"a checkpoint")
        checkpoint = job.describe().checkpoint
        for status, error in (
            (JobStatus.FAILED, job.describe_interruption()),
            (JobStatus.FAILED, "RuntimeError: the cable is loose"),
            (JobStatus.STOPPED, None),
        ):
            job.progress.advance(9_600)
            job.finish(status, error)
            job.resume(None, home, checkpoint)
            job.start()
        told = [event.payload.get("warning", event.name) for event in job.history.list_kept_events()]
        assert told[2::3] == [
            "resumed from step 6,400, after it had been interrupted at step 9,600.",
            "resumed from step 6,400, after it had failed at step 9,600: RuntimeError: the cable is loose",
            "resumed from step 6,400, after it had been stopped at step 9,600.",
        ]
        assert job.warnings == []

    def test_an_abandoned_job_stops_at_its_next_step_and_no_longer_changes(self, job: Job) -> None:
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

    def test_a_step_counts_as_activity(self, job: Job) -> None:
        started = time.monotonic()
        wait_until(lambda: job.inactive_seconds >= 0.1)
        job.progress.advance(1)
        assert job.inactive_seconds < time.monotonic() - started

    def test_the_remaining_time_follows_from_the_pace_so_far(self, job: Job) -> None:
        job.start()
        assert job.describe().eta_seconds is None
        wait_until(lambda: job.describe().elapsed_seconds >= 0.05)
        job.progress.advance(80)
        status = job.describe()
        # The fourth rollout of 32 steps is completed.
        assert status.eta_seconds == pytest.approx(status.elapsed_seconds * 48 / 80)
        job.progress.advance(128)
        assert job.describe().eta_seconds == 0.0
        job.finish(JobStatus.COMPLETED)
        ended = job.describe()
        assert ended.eta_seconds is None
        assert job.describe().elapsed_seconds == ended.elapsed_seconds >= status.elapsed_seconds

    def test_the_remaining_time_is_no_longer_than_before_where_steps_are_taken_again(self, job: Job) -> None:
        job.start()
        wait_until(lambda: job.describe().elapsed_seconds >= 0.05)
        job.progress.advance(48)
        assert job.restart("Its worker died.")
        job.progress.advance(2)
        status = job.describe()
        # 50 steps were taken in all, and 126 of the 128 of four rollouts are left.
        assert status.eta_seconds == pytest.approx(status.elapsed_seconds * 126 / 50)

    @pytest.mark.parametrize(
        ("final", "ended_by"),
        [(JobStatus.COMPLETED, "total_timesteps"), (JobStatus.STOPPED, "stop"), (JobStatus.FAILED, None)],
    )
    def test_it_says_why_it_ended(self, job: Job, final: JobStatus, ended_by: str | None) -> None:
        job.start()
        job.finish(final)
        assert job.describe().ended_by == ended_by

    def test_a_time_limit_shortens_the_remaining_time(self) -> None:
        job = Job(plan(total_timesteps=1_000_000, max_seconds=60.0))
        job.start()
        wait_until(lambda: job.describe().elapsed_seconds >= 0.05)
        job.progress.advance(1)
        status = job.describe()
        assert status.eta_seconds == 60.0 - status.elapsed_seconds

    @pytest.mark.parametrize(
        ("final", "ended_by"),
        [(JobStatus.COMPLETED, "patience"), (JobStatus.STOPPED, "stop"), (JobStatus.FAILED, None)],
    )
    def test_a_completed_job_names_the_rule_that_ended_it(
        self, job: Job, final: JobStatus, ended_by: str | None
    ) -> None:
        job.start()
        job.progress.publish_ended_by("patience")
        assert job.describe().ended_by is None  # it has not ended yet
        job.finish(final)
        job.progress.publish_ended_by("max_seconds")
        assert job.describe().ended_by == ended_by

    def test_it_shows_the_latest_evaluation_and_the_first_of_the_best(self, job: Job) -> None:
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

    def test_it_ends_with_what_its_saved_policy_earns(self, job: Job) -> None:
        job.start()
        final = make_final_evaluation(500.0)
        job.progress.publish_final_evaluation(final.model_dump())
        assert job.describe().final_evaluation == final
        (event,) = [event for event in job.history.list_events() if event.name == "job.final_evaluation"]
        assert FinalEvaluation(**event.payload) == final
        job.finish(JobStatus.COMPLETED)
        job.progress.publish_final_evaluation(make_final_evaluation(1.0).model_dump())
        assert job.describe().final_evaluation == final

    def test_its_worker_may_warn(self) -> None:
        job = Job(plan()._replace(warnings=("mind the gap",)))
        job.start()
        job.warn("not evaluated")
        assert job.describe().warnings == ["mind the gap", "not evaluated"]
        warnings = [event.payload for event in job.history.list_events() if event.name == "job.warning"]
        assert warnings == [{"warning": "mind the gap"}, {"warning": "not evaluated"}]
        job.finish(JobStatus.COMPLETED)
        job.warn("too late")
        assert job.describe().warnings == ["mind the gap", "not evaluated"]

    def test_a_warning_that_it_has_already_is_not_repeated(self) -> None:
        job = Job(plan()._replace(warnings=("mind the gap",)))
        job.warn("not evaluated")
        job.finish(JobStatus.STOPPED)
        job.resume(None, JobHome(JobTotals()), None)
        for warning in ("not evaluated", "mind the gap"):
            job.warn(warning)
        assert job.warnings == ["mind the gap", "not evaluated"]
        told = [event.payload.get("warning") for event in job.history.list_kept_events()]
        assert (told.count("not evaluated"), told.count("mind the gap")) == (1, 1)

    def test_a_second_stop_is_passed_on_even_if_both_came_before_it_could_be(self, job: Job) -> None:
        stops: list[int] = []
        job.start()
        job.stop()
        job.stop()
        job.progress.attach_stop(lambda: stops.append(1))
        assert len(stops) == 2

    def test_a_wait_for_it_ends_when_it_does(self, job: Job) -> None:
        assert not asyncio.run(job.wait_finished(0.05))
        threading.Timer(0.05, job.stop).start()
        assert asyncio.run(job.wait_finished(60))


class TestItsVerdict:
    def test_it_follows_from_the_jobs_reports(self) -> None:
        job = Job(plan(total_timesteps=100_000))  # CartPole is solved from 475 on
        assert job.describe().verdict.state == "waiting"
        job.start()
        assert job.describe().verdict.text.startswith("Starting the worker")
        job.progress.advance(1000)
        assert job.describe().verdict.state == "starting"
        for i in range(30):
            job.progress.publish_metrics({"rollout/ep_rew_mean": 20.0 + i})
            job.progress.publish_metrics({"train/approx_kl": 0.01})
        assert job.describe().verdict.state == "learning"
        job.progress.publish_metrics({"rollout/ep_rew_mean": 480.0})
        assert job.describe().verdict.state == "solved"
        job.progress.publish_evaluation(make_evaluation(10, 400.0).model_dump(exclude={"elapsed_seconds"}))
        assert job.describe().verdict.state != "solved"
        job.finish(JobStatus.FAILED)
        assert job.history.list_events()[-1].payload["verdict"]["state"] == "failed"

    def test_a_missing_signal_is_one(self, job: Job) -> None:
        job.start()
        for rollout in range(1, 13):
            job.progress.advance(rollout * 1000)
            job.progress.publish_metrics({**SILENT, "rollout/ep_rew_mean": -200.0})
        assert job.describe().verdict.state == "no_signal"


class TestItsHistory:
    def test_it_has_every_change_of_status_and_ends_with_the_full_status(self) -> None:
        job = Job(plan(total_timesteps=100)._replace(warnings=("mind the gap",)))
        job.start()
        job.progress.advance(25)
        job.progress.publish_metrics({"rollout/ep_rew_mean": 9.0})
        job.progress.publish_metrics({})
        job.record_saved_model("m", "abc")
        job.finish(JobStatus.COMPLETED)
        job.progress.advance(50)
        job.progress.publish_metrics(LOUD)
        events = job.history.list_events()
        assert [event.name for event in events] == [
            "job.status",
            "job.warning",
            "job.status",
            "job.progress",
            "job.metrics",
            "job.completed",
        ]
        assert [events[0].payload, events[1].payload] == [{"status": "queued"}, {"warning": "mind the gap"}]
        assert events[2].payload == {"status": "running"}
        progress = {"progress": 0.25, "current_timesteps": 25, "total_timesteps": 100}
        assert progress.items() <= events[3].payload.items()
        assert events[3].payload.keys() - progress.keys() == {"elapsed_seconds", "eta_seconds"}
        assert events[4].payload["metrics"] == {"rollout/ep_rew_mean": 9.0}
        assert events[5].payload == job.describe().model_dump(mode="json")
        assert events[5].payload["model_name"] == "m"

    def test_a_job_stopped_in_the_queue_has_two_events(self, job: Job) -> None:
        job.stop()
        assert [event.name for event in job.history.list_events()] == ["job.status", "job.stopped"]

    def test_progress_is_reported_at_most_ten_times_a_second(self, job: Job) -> None:
        job.start()
        begun = time.monotonic()
        before = job.history.last_event_id
        for timesteps in range(20_000):
            job.progress.advance(timesteps)
        assert 1 <= job.history.last_event_id - before <= 2 + 10 * (time.monotonic() - begun)

    def test_a_missing_signal_causes_one_warning_each_time(self, job: Job) -> None:
        for rollout in range(1, 40):
            job.progress.advance(rollout * 1000)
            job.progress.publish_metrics(LOUD if rollout == 20 else SILENT)
        warnings = [event.payload["warning"] for event in job.history.list_events() if event.name == "job.warning"]
        assert [warning.partition(":")[0] for warning in warnings] == [
            "no signal in the last 10 rollouts (10000 steps)"
        ] * 2


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
        # With one step per branch and equal rewards, there is nothing to learn.
        job = Job(plan(total_timesteps=11 * 256, n_steps=256, horizon=1, gamma=0.0, seed=0))
        train_policy(TrainingOrder(job.config, reward_nothing), job.progress)
        assert any("the last 11 rollouts" in warning for warning in job.describe().warnings)
