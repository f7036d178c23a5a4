"""A job changes status in one direction only, and reports everything that happens to it."""

import asyncio
import itertools
import threading
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConflictError
from service.jobs.job import Job, JobServices
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.interruption import fail
from service.jobs.records.record import CHECKPOINT_GONE, JobRecord, JobState, ServerEnd
from service.jobs.records.unsaved import UnsavedModel
from service.jobs.totals import JobTotals
from service.schemas.jobs import EndedBy, FinalEvaluation, JobStatus
from service.training.planning.plan import TrainingPlan
from tests.support import make_evaluation, make_final_evaluation, make_plan, wait_until

FINAL = [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.STOPPED]
SILENT, LOUD = {"rollout/zero_std_group_fraction": 1.0}, {"rollout/zero_std_group_fraction": 0.5}


def plan(**request: Any) -> TrainingPlan:
    return make_plan(**request)._replace(reward=None)


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

        job = Job(plan(total_timesteps=100), JobServices(JobTotals(), fail))
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

        slow = Job(
            plan(total_timesteps=100), JobServices(JobTotals(), checkpoints=SlowFolder(tmp_path, lambda job_id: False))
        )
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
        job.progress.advance(1)
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

    def test_a_stop_while_a_failure_is_written_down_does_not_speak_of_saving(self) -> None:
        refusals: list[str] = []

        def stop(record: JobRecord) -> None:
            with pytest.raises(ConflictError) as refused:
                failing.stop()
            refusals.append(refused.value.detail)

        failing = Job(plan(total_timesteps=100), JobServices(JobTotals(), stop))
        failing.start()
        failing.finish(JobStatus.FAILED, "the cable is loose")
        (refusal,) = refusals
        assert "has failed already" in refusal

    def test_a_stop_before_the_first_step_ends_it_at_once(self, job: Job) -> None:
        stopped: list[bool] = []
        job.start()
        job.progress.attach_stop(lambda: stopped.append(True))
        job.progress.advance(0)  # of an evaluation before the first step
        job.stop()
        assert (job.status, job.describe().error_message) == (JobStatus.STOPPED, None)
        assert stopped == [True]  # a thread cannot be killed

    def test_a_stop_of_one_that_goes_on_from_a_checkpoint_lets_it_save_that(self, tmp_path: Path) -> None:
        services = JobServices(JobTotals(), checkpoints=CheckpointFolder(tmp_path, lambda job_id: False))
        job = Job(plan(total_timesteps=100), services)
        job.start()
        job.progress.advance(64)
        job.progress.publish_checkpoint({"timesteps": 64}, b"a checkpoint")
        job.finish(JobStatus.FAILED, "RuntimeError: the cable is loose")
        job = job.resume(None, services, job.describe().checkpoint)
        job.start()
        job.stop()
        assert job.status is JobStatus.RUNNING

    def test_a_failure_after_a_stop_is_a_failure(self, job: Job) -> None:
        job.start()
        job.progress.advance(1)
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

    def test_a_checkpoint_that_is_gone_when_it_is_needed_is_warned_of(self, tmp_path: Path) -> None:
        folder = CheckpointFolder(tmp_path, lambda job_id: False)
        services = JobServices(JobTotals(), checkpoints=folder)
        job = Job(plan(total_timesteps=100), services)
        job.start()
        job.progress.advance(64)
        job.progress.publish_checkpoint({"timesteps": 64}, b"a checkpoint")
        job.finish(JobStatus.FAILED, "RuntimeError: the cable is loose")
        job = job.resume(None, services, job.describe().checkpoint)
        assert job.read_checkpoint() == b"a checkpoint"
        assert job.warnings == []
        folder.delete(job.job_id)
        assert job.read_checkpoint() is None
        job.settle_outcome()
        status = job.describe()
        assert (status.current_timesteps, status.checkpoint, job.state.repeated_timesteps) == (0, None, 64)
        assert [warning for warning in job.warnings if "training began again" in warning] == job.warnings
        assert job.warnings != []

    def test_a_job_that_is_complete_says_nothing_more_of_its_checkpoint(self, tmp_path: Path) -> None:
        services = JobServices(JobTotals(), checkpoints=CheckpointFolder(tmp_path, lambda job_id: False))
        job = Job(plan(total_timesteps=100), services)
        job.start()
        job.progress.publish_checkpoint({"timesteps": 64}, b"a checkpoint")
        job.finish(JobStatus.STOPPED)
        job.forget_checkpoint()
        assert job.warnings == [CHECKPOINT_GONE]
        job = job.resume(None, services, None, UnsavedModel(b"a model", None))
        job.start()
        job.finish(JobStatus.COMPLETED)  # it only had to be saved
        assert job.warnings == []

    def test_a_resume_forgets_the_figures_of_steps_that_will_be_taken_again(self, tmp_path: Path) -> None:
        services = JobServices(JobTotals(), checkpoints=CheckpointFolder(tmp_path, lambda job_id: False))
        job = Job(plan(total_timesteps=100), services)
        job.start()
        for timesteps in (32, 64, 96):
            job.progress.advance(timesteps)
            job.progress.publish_metrics({"rollout/ep_rew_mean": float(timesteps)})
        job.progress.publish_checkpoint({"timesteps": 64}, b"a checkpoint")
        job.finish(JobStatus.FAILED, "RuntimeError: the cable is loose")
        job = job.resume(None, services, job.describe().checkpoint)
        assert job.describe().start_time is None
        job.start()
        job.progress.advance(65)
        assert job.describe().metrics == {"rollout/ep_rew_mean": 64.0}
        job.finish(JobStatus.STOPPED)
        job = job.resume(None, services, None)
        job.start()
        job.settle_outcome()
        assert (job.describe().metrics, job.describe().current_timesteps) == ({}, 0)

    @pytest.mark.parametrize("has_started", [False, True])
    @pytest.mark.parametrize(
        ("status", "error", "server_end"),
        [
            (JobStatus.STOPPED, None, None),
            (JobStatus.FAILED, "RuntimeError: the cable is loose", None),
            (JobStatus.STOPPED, None, "shutdown"),
        ],
    )
    def test_a_resume_that_ends_before_its_worker_begins_takes_nothing_back(
        self, tmp_path: Path, status: JobStatus, error: str | None, server_end: ServerEnd | None, has_started: bool
    ) -> None:
        services = JobServices(JobTotals(), checkpoints=CheckpointFolder(tmp_path, lambda job_id: False))
        job = Job(plan(total_timesteps=100), services)
        job.start()
        job.progress.advance(32)
        job.progress.publish_checkpoint({"timesteps": 32}, b"a checkpoint")
        job.progress.advance(64)
        job.progress.publish_metrics({"rollout/ep_rew_mean": 64.0})
        job.progress.publish_final_evaluation(make_final_evaluation(500.0).model_dump())
        job.record_saved_model("m", "a" * 64)
        job.finish(status, error, server_end=server_end)
        before = job.describe()
        job = job.resume(None, services, before.checkpoint)
        assert job.state.begins_at == 32
        if has_started:
            job.start()
            job.progress.advance(0)  # a sign of life
        changed = {"n_restarts", "start_time", "end_time", "elapsed_seconds", "warnings"}
        if server_end is not None:  # which is no outcome that a stop could bring back
            changed |= {"ended_by", "error_message"}
        killed = fail(JobState.model_validate_json(job.make_record(0, 1).state.model_dump_json()), job.job_id, 0.0)
        assert (killed.model_name, killed.current_timesteps, killed.final_evaluation, killed.end_before) == (
            *(before.model_name, before.current_timesteps, before.final_evaluation),
            None,
        )
        revived = Job.revive(job.make_record(0, 1), JobServices(JobTotals()))
        assert revived.state.end_before is not None  # its worker may go on from the checkpoint, before these steps
        job.finish(JobStatus.STOPPED)
        assert job.describe().model_dump(exclude=changed) == before.model_dump(exclude=changed)
        assert [row.metrics for row in job.history.list_rows()] == [{"rollout/ep_rew_mean": 64.0}]
        assert not job.start()

    def test_its_history_remembers_how_it_ended_before_and_from_where_it_went_on(self, tmp_path: Path) -> None:
        services = JobServices(JobTotals(), checkpoints=CheckpointFolder(tmp_path, lambda job_id: False))
        job = Job(plan(total_timesteps=100_000), services)
        job.start()
        job.progress.publish_checkpoint({"timesteps": 6_400}, b"a checkpoint")
        checkpoint = job.describe().checkpoint
        ends: list[tuple[JobStatus, str | None, ServerEnd | None]] = [
            (JobStatus.FAILED, job.describe_interruption(), "restart"),
            (JobStatus.FAILED, "RuntimeError: the cable is loose", None),
            (JobStatus.STOPPED, None, None),
        ]
        for status, error, server_end in ends:
            job.progress.advance(9_600)
            job.finish(status, error, server_end=server_end)
            job = job.resume(None, services, checkpoint)
            job.start()
        told = [event.payload.get("warning", event.name) for event in job.history.list_kept_events()]
        assert told[2::3] == [
            "resumed from step 6,400, after it had been interrupted at step 9,600.",
            "resumed from step 6,400, after it had failed at step 9,600: RuntimeError: the cable is loose",
            "resumed from step 6,400, after it had been stopped at step 9,600.",
        ]
        assert job.warnings == []

    def test_a_resume_forgets_that_the_policy_before_it_was_not_evaluated(self, job: Job) -> None:
        job.start()
        for warning in ("mind the gap", "the policy was saved but not evaluated, since no episode ended within 2 s."):
            job.warn(warning)
        job.finish(JobStatus.STOPPED)
        job = job.resume(None, JobServices(JobTotals()), None)
        assert len(job.warnings) == 2, "its worker has not begun"
        job.start()
        job.progress.advance(1)
        assert job.warnings == ["mind the gap"]

    @pytest.mark.parametrize("is_unsaved", [False, True])
    def test_a_resume_that_is_stopped_before_its_worker_begins_warns_of_nothing_and_counts_no_end(
        self, tmp_path: Path, is_unsaved: bool
    ) -> None:
        folder, totals = CheckpointFolder(tmp_path, lambda job_id: False), JobTotals()
        services = JobServices(totals, checkpoints=folder)
        job = Job(plan(total_timesteps=100), services)
        job.start()
        job.progress.advance(64)
        job.progress.publish_checkpoint({"timesteps": 32}, b"a checkpoint")
        job.warn("the policy was saved but not evaluated, since no episode ended within 2 s.")
        job.finish(JobStatus.FAILED, "OSError: no space", is_unsaved=is_unsaved)
        before, n_ended = job.describe(), totals.n_ended
        job = job.resume(None, services, before.checkpoint)
        job.stop()
        changed = {"n_restarts", "start_time"}
        assert job.describe().model_dump(exclude=changed) == before.model_dump(exclude=changed)
        assert totals.n_ended == n_ended

    @pytest.mark.parametrize("timesteps", [32, 100])
    def test_a_finished_policy_that_is_lost_is_trained_again_unless_the_checkpoint_has_it(
        self, tmp_path: Path, timesteps: int
    ) -> None:
        services = JobServices(JobTotals(), checkpoints=CheckpointFolder(tmp_path, lambda job_id: False))
        job = Job(plan(total_timesteps=100), services)
        job.start()
        job.progress.advance(100)
        job.progress.publish_checkpoint({"timesteps": timesteps}, b"a checkpoint")
        job.finish(JobStatus.FAILED, "the disk is full.", is_unsaved=True)
        job = job.resume(None, services, job.describe().checkpoint)
        job.start()
        job.progress.advance(timesteps)
        assert ("trains again" in " ".join(job.warnings)) == (timesteps == 32)

    def test_its_earlier_end_is_gone_also_where_only_saving_was_left(self, job: Job) -> None:
        job.start()
        job.progress.advance(100)
        job.progress.publish_metrics(LOUD)
        job.progress.publish_final_evaluation(make_final_evaluation(500.0).model_dump())
        job.finish(JobStatus.FAILED, "the disk is full.", is_unsaved=True)
        job = job.resume(None, JobServices(JobTotals()), None, unsaved_model=UnsavedModel(b"a model", "patience"))
        job.start()
        assert job.take_unsaved_model() == b"a model"
        job.finish(JobStatus.COMPLETED)
        names = [event.name for event in job.history.list_events()]
        assert "job.failed" not in names  # a client would read no further
        assert {"job.metrics", "job.final_evaluation"} <= set(names)
        assert names[-1] == "job.completed"
        assert job.describe().final_evaluation == make_final_evaluation(500.0)
        assert job.describe().ended_by == "patience"

    def test_the_remaining_time_follows_from_the_pace_so_far(self, job: Job) -> None:
        job.start()
        assert job.describe().eta_seconds is None
        wait_until(lambda: job.describe().elapsed_seconds >= 0.05)
        job.progress.advance(80)
        status = job.describe()
        # The fourth rollout of 32 steps is completed.
        assert status.eta_seconds == pytest.approx(status.elapsed_seconds * 48 / 80)
        job.progress.advance(128)
        assert job.describe().eta_seconds is None, "its last evaluation may take as long as it likes"
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
        job.progress.advance(30)
        assert job.restart("Its worker died.")  # the limit begins again, as the training does
        job.progress.advance(10)
        status = job.describe()
        assert status.eta_seconds == pytest.approx(60.0 - status.elapsed_seconds * 10 / 40)

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

    @pytest.mark.parametrize("found", ["patience", None], ids=["training was over", "training goes on"])
    def test_after_the_workers_death_only_a_rule_that_its_checkpoint_names_counts(
        self, job: Job, found: EndedBy | None
    ) -> None:
        job.start()
        job.progress.publish_ended_by("patience")
        assert job.restart("Its worker died.")
        if found is not None:
            job.progress.publish_ended_by(found)
        job.finish(JobStatus.COMPLETED)
        assert job.describe().ended_by == (found or "total_timesteps")

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

    def test_what_was_stopped_in_the_queue_has_saved_nothing(self, job: Job) -> None:
        job.stop()
        assert job.describe().verdict.text == "The job was stopped at step 0, and no policy was saved at its end."

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
