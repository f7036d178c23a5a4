"""One training job, from queued to done: how it starts, stops, goes on and ends; ``progress`` takes what it reports."""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from grpo_core.options.rewards import Reward
from service.errors import ConflictError
from service.jobs.description import describe_job, name_tensorboard_run
from service.jobs.guarded_state import GuardedState
from service.jobs.progress import JobProgress
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.history import JobHistory
from service.jobs.records.record import (
    JobEnd,
    JobRecord,
    JobState,
    PlanRecord,
    ServerEnd,
    compute_recipe,
    summarize_job,
)
from service.jobs.records.unsaved import UnsavedModel
from service.jobs.totals import JobTotals
from service.jobs.transitions import JobEvent, find_next
from service.schemas.jobs import JobCheckpoint, JobLabels, JobStatus, JobSummary, TrainingStatus
from service.training.planning.plan import TrainingPlan
from service.workers.receipts import Receipts
from service.workers.task import N_STOPS

logger = logging.getLogger("grpo.service")

# How late an answer that waits for a job's end may be; looking costs next to nothing, and holds no thread.
_POLL_SECONDS = 0.02

_ENDS = {
    JobStatus.COMPLETED: JobEvent.COMPLETE,
    JobStatus.FAILED: JobEvent.FAIL,
    JobStatus.STOPPED: JobEvent.STOP,
}


class JobServices(NamedTuple):
    """The parts of the server that a job uses.

    :param totals: Counters to add it to.
    :param write_end: Called with the job as it ends, before its end can be seen.
    :param checkpoints: Where its checkpoints are kept; None keeps none.
    """

    totals: JobTotals
    write_end: Callable[[JobRecord], None] = lambda record: None
    checkpoints: CheckpointFolder | None = None


class Job:
    """One training job. Safe to read and to stop from any thread.

    :param plan: The job's settings.
    :param services: The server's; None counts the job nowhere and keeps nothing.
    :param record: Its record, to rebuild it (see ``restore`` and ``revive``); None for a new one.
    """

    def __init__(
        self, plan: TrainingPlan, services: JobServices | None = None, record: JobRecord | None = None
    ) -> None:
        self.plan = plan
        self._plan_record = PlanRecord.describe(plan)
        self.config = plan.config
        self._recipe = compute_recipe(self._plan_record.config)
        #: People's labels; the registry replaces them.
        self.labels = JobLabels() if record is None else record.labels
        self.finished = threading.Event()
        self._services = services or JobServices(JobTotals())
        if record is None:
            self.job_id, self.history = str(uuid.uuid4()), _begin_history(plan)
            state = JobState(status=JobStatus.QUEUED, created_at=datetime.now(UTC), warnings=list(plan.warnings))
        else:
            self.job_id, self.history, state = record.job_id, JobHistory.restore(record.history), record.state
        # Its lock guards changes of everything below too; single fields are read without it.
        self._guarded = GuardedState(state, self.history)
        # The final status, known before it is entered: a stop decides it while the training still runs.
        self._outcome: JobStatus | None = None
        # Whether another worker could go on.
        self._may_restart = True
        # What a resumed job only has to save.
        self._unsaved_model: UnsavedModel | None = None
        self._progress = self._make_progress()

    @classmethod
    def restore(cls, record: JobRecord) -> "Job":
        """Rebuild a job that has ended from its record.

        Its plan lacks the rewards, see ``PlanRecord.make_plan``.
        """
        job = cls(record.plan.make_plan(), record=record)
        job._outcome, job._guarded.end = job.status, record.state.get_end()
        if all(event.name != f"job.{job.status}" for event in record.history.events):  # as before the end was seen
            job._append_end()
        job.finished.set()
        return job

    @classmethod
    def revive(cls, record: JobRecord, services: JobServices) -> "Job":
        """Rebuild a job that goes on without its server from its record.

        Its plan lacks the rewards, as in ``restore``.
        """
        state = record.state
        away = datetime.now(UTC) - (record.written_at or datetime.now(UTC))
        state.elapsed_seconds += max(0.0, away.total_seconds())
        job = cls(record.plan.make_plan(), services, record)
        if services.checkpoints is not None:  # which may be newer than the record
            state.checkpoint = services.checkpoints.describe(job.job_id, job.config)
        job._guarded.clock.start()
        job._outcome = JobStatus.STOPPED if state.n_stops else None
        return job

    def _make_progress(self) -> JobProgress:
        totals, checkpoints = self._services.totals, self._services.checkpoints
        return JobProgress(self.job_id, self.config, self._guarded, totals, checkpoints)

    @property
    def progress(self) -> JobProgress:
        """The receiver of the worker's reports; each worker has its own."""
        return self._progress

    @property
    def receipts(self) -> Receipts:
        """The reports that were taken from its worker, where that may outlive the server."""
        return self._guarded.receipts

    @property
    def state(self) -> JobState:
        """All that changes, for others to read single fields of; ``describe`` returns fields that fit together."""
        return self._guarded.state

    @property
    def status(self) -> JobStatus:
        """The job's current status."""
        return self.state.status

    @property
    def warnings(self) -> list[str]:
        """Warnings for the client."""
        with self._guarded.lock:
            return list(self.state.warnings)

    @property
    def is_stopping(self) -> bool:
        """Whether the job was told to stop."""
        return self._outcome is JobStatus.STOPPED

    @property
    def tensorboard_run(self) -> str | None:
        """Name of the job's TensorBoard folder; None if none was requested."""
        return name_tensorboard_run(self.job_id, self.config)

    @property
    def has_stepped(self) -> bool:
        """Whether a simulator step was taken since it was queued; one that is resumed goes on where it was."""
        return self.state.current_timesteps > 0 and self.state.end_before is None

    @property
    def inactive_seconds(self) -> float:
        """Time since the job was started, was told to stop, or last took a step or an update."""
        return self._guarded.clock.inactive_seconds

    def summarize(self) -> JobSummary:
        """Return a short description for lists of jobs."""
        config = self._plan_record.config
        with self._guarded.lock:
            return summarize_job(self.job_id, config, self._recipe, self._guarded.refresh(), self.labels)

    def describe(self) -> TrainingStatus:
        """Return the full status."""
        with self._guarded.lock:
            return self._describe()

    def _describe(self) -> TrainingStatus:
        return describe_job(self.job_id, self.plan, self._guarded.refresh(), self.history, self.labels)

    def describe_interruption(self) -> str:
        """Say that the job, which was to go on without its server, has ended with it."""
        with self._guarded.lock:
            return self.state.describe_interruption(self.job_id, was_killed=True)

    def describe_resume(self) -> str:
        """Say from where a resume would go on if the job ended now."""
        with self._guarded.lock:
            return self.state.describe_resume(self.job_id)

    def make_record(self, after: int, stride: int) -> JobRecord:
        """Write down the job as it is, with the new part of its history.

        :param after: ``last_event_id`` of the history in the record before; 0 without one.
        :param stride: Its ``stride``.
        """
        with self.receipts.hold(), self._guarded.lock:
            return self._make_record(after, stride)

    def _make_record(self, after: int, stride: int) -> JobRecord:
        part = self.history.get_part(after, stride, self._guarded.end is not None)
        return JobRecord(self.job_id, self._plan_record, self._guarded.copy_state(), part, self.labels)

    def log(self, event: str, **fields: float) -> None:
        """Log an event of the job, with the names that identify it."""
        names = {"job_id": self.job_id, "env_name": self.config.env_name, "model_name": self.config.model_name}
        logger.info("job %s", event, extra={**names, **fields})

    def set_reward(self, reward: Reward | None) -> None:
        """Take the reward functions that the configuration names, as they are in this server."""
        self.plan = self.plan._replace(reward=reward)

    def warn(self, warning: str) -> None:
        """Note a warning for the client, unless the job has ended."""
        self._progress.publish_warning(warning)

    def start(self) -> bool:
        """Change from queued to running; return False if the job was stopped while it waited."""
        with self._guarded.lock:
            status = find_next(self.status, JobEvent.START)
            if status is None or self._outcome is not None:
                return False
            self.state.status, self.state.start_time = status, datetime.now(UTC)
            self.state.seconds_before_start = self._guarded.clock.elapsed_seconds
            self._guarded.clock.start()
            self.history.append("job.status", {"status": status})
            return True

    def wake(self) -> None:
        """Count as active again, after a pause that was not the training's."""
        with self._guarded.lock:
            self._guarded.clock.wake()

    def read_checkpoint(self) -> bytes | None:
        """Return the content of the latest checkpoint, to go on from; None if there is none.

        One that is gone, as it may have made room for others in the meantime, is forgotten with a warning.
        """
        if self._services.checkpoints is None or self.state.checkpoint is None:
            return None
        content = self._services.checkpoints.read(self.job_id)
        with self._guarded.lock:
            if content is None and self._guarded.end is None:
                self.state.checkpoint = None
                if self.state.end_before is None:
                    self._guarded.rewind(0)
                self._guarded.warn("training began again: the job's checkpoint is gone, or cannot be read.")
        return content

    def forget_checkpoint(self) -> None:
        """Note that the checkpoint of the job is gone, if it has ended: nothing says any more that a resume uses it."""
        with self._guarded.lock:
            if self.status.is_final:
                self.state.forget_checkpoint(self.job_id)

    def take_unsaved_model(self) -> bytes | None:
        """Return the model file that a resumed job only has to save, once; None if it has to train."""
        with self._guarded.lock:
            unsaved, self._unsaved_model = self._unsaved_model, None
        if unsaved is None:
            return None
        if unsaved.ended_by is not None:
            self._progress.publish_ended_by(unsaved.ended_by)
        return unsaved.content

    def read_finished_model(self) -> bytes | None:
        """Return the model of a job that failed after its training was over; None if it was not."""
        return None if self._services.checkpoints is None else self._services.checkpoints.read_finished(self.job_id)

    def stop(self, stopped_by: Literal["stop", "shutdown"] = "stop", skips_evaluation: bool = False) -> None:
        """Stop the job: at once if it has nothing to save, else at the next simulator step or minibatch.

        A second stop skips the evaluation of the policy so far.

        :param stopped_by: Whether a client stops it, or the server ends; only the first stop counts.
        :param skips_evaluation: Whether to count as both stops.
        :raises ConflictError: If it has already finished training.
        """
        with self._guarded.lock:
            if self._outcome in (JobStatus.COMPLETED, JobStatus.FAILED):
                is_known = self.status.is_final or self._outcome is JobStatus.FAILED
                past = f"has {self._outcome}" if is_known else "has finished training and is being saved"
                raise ConflictError(f"job {self.job_id} {past} already; only training jobs can be stopped.")
            if self._outcome is None:
                self._outcome, self.state.stopped_by = JobStatus.STOPPED, stopped_by
                self._guarded.clock.wake()
            has_begun = self.has_stepped or self.state.checkpoint is not None
            ends_at_once = self.status is JobStatus.QUEUED or (self.status is JobStatus.RUNNING and not has_begun)
            for _ in range(N_STOPS if skips_evaluation else 1):
                self.state.n_stops += 1
                self._progress.stop_training()
        if ends_at_once:
            self.finish(JobStatus.STOPPED)

    def restart(self, reason: str) -> bool:
        """Let a job whose worker has died go on from its checkpoint; return whether it may.

        :param reason: What happened to the worker, for people to read.
        """
        with self._guarded.lock:
            may = find_next(self.status, JobEvent.RESTART) is not None
            may = may and self._outcome is None and self._guarded.end is None
            if not may or not self._may_restart or self.state.n_lost_workers >= self.config.max_restarts:
                return False
            self.state.n_lost_workers += 1
            self.state.ended_by = None  # a checkpoint of a training that is over brings it back
            self._begin_again()
            if self.state.end_before is None:
                self._guarded.rewind_to_checkpoint()
            self._guarded.clock.start()
            self._guarded.warn(f"{reason} The job went on from step {self.state.begins_at:,}.")
            return True

    def forbid_restarts(self, reason: str) -> None:
        """Have the job end if its worker dies, as its reward functions are not there."""
        with self._guarded.lock:
            self._may_restart = False
        self.warn(f"if its worker dies, the job cannot go on: {reason}")

    def _begin_again(self) -> None:
        self._guarded.begin_again()
        self._progress = self._make_progress()

    def settle_outcome(self) -> JobStatus | None:
        """Decide after training whether the job completed or was stopped; later stops are refused.

        None if the job has ended in the meantime: nothing of it is to be saved.
        """
        with self._guarded.lock:
            if self._guarded.end is not None:
                return None
            self._guarded.take_end_back()
            self._outcome = self._outcome or JobStatus.COMPLETED
            return self._outcome

    def record_saved_model(self, model_name: str, sha256: str) -> None:
        """Note the name and the hash of the saved model."""
        with self._guarded.lock:
            if self._guarded.end is None:  # a shutdown may have given up on it in the meantime
                state = self.state
                state.model_name, state.sha256 = state.last_saved = model_name, sha256

    def give_up(self, status: JobStatus, error_message: str) -> None:
        """Enter a final status although the training hangs; if it ever continues, it stops at once."""
        with self._guarded.lock:
            self._progress.stop_training()
        self.finish(status, error_message)

    def finish(
        self,
        status: JobStatus,
        error_message: str | None = None,
        *,
        server_end: ServerEnd | None = None,
        is_unsaved: bool = False,
    ) -> None:
        """Enter a final status, unless the job already has one, once the end is written down.

        :param server_end: How its server ended, if that ends the job; a stop before it counts more.
        :param is_unsaved: Whether its finished policy is in memory, for a resume to save.
        :raises ValueError: If it cannot end so yet: a queued job cannot complete.
        """
        guarded, state = self._guarded, self.state
        with guarded.lock:
            if guarded.end is not None:
                return
            if find_next(state.status, _ENDS[status]) is None:
                raise ValueError(f"a job that is {state.status} does not become {status}")
            if server_end == "shutdown" and self._outcome is not JobStatus.STOPPED:
                state.stopped_by = "shutdown"
            if status is JobStatus.COMPLETED:
                guarded.take_end_back()
            ended_by = state.choose_ended_by(status, server_end)
            if ended_by == "shutdown" and error_message is None:
                error_message = state.describe_interruption(self.job_id, was_killed=False)
            age_seconds = guarded.receipts.end_age_seconds
            guarded.clock.end(age_seconds)
            end_time = datetime.now(UTC) - timedelta(seconds=age_seconds)
            end = JobEnd(status, error_message, end_time, ended_by, is_unsaved)
            if ended_by == "stop" and state.end_before is not None and not state.end_before.is_interruption:
                end = state.end_before  # a stop undoes a resume that has not begun
            guarded.end, self._outcome = end, end.status
        try:
            with guarded.lock:
                record = self._make_record(0, 1)
            # Both without the lock, since a disk may be slow.
            self._services.write_end(record)
            if end.status is JobStatus.COMPLETED and self._services.checkpoints is not None:
                self._services.checkpoints.delete(self.job_id)
        finally:  # whatever has failed, a job that has ended must not seem to go on
            with guarded.lock:
                self._enter(end)

    def _enter(self, end: JobEnd) -> None:
        if end is not self.state.end_before:  # which was counted then
            self._services.totals.add_end(end.status)
        self.state.enter(end)
        self._progress.forget_training()
        try:
            self._append_end()
        finally:
            self.finished.set()
        self.log(str(end.status), seconds=self._guarded.clock.elapsed_seconds)

    def _append_end(self) -> None:
        self.history.append(f"job.{self.status}", self._describe().model_dump(mode="json"), self.state.end_time)

    async def wait_finished(self, timeout_seconds: float) -> bool:
        """Wait until the job has ended, without occupying a thread; return whether it has."""
        deadline = time.monotonic() + timeout_seconds
        while not self.finished.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        return self.finished.is_set()

    def resume(
        self,
        reward: Reward | None,
        services: JobServices,
        checkpoint: JobCheckpoint | None,
        unsaved_model: UnsavedModel | None = None,
    ) -> "Job":
        """Return this job queued again, to go on from its checkpoint.

        This object stays as it ended: a thread may hold it that has not yet seen that it must not go on.

        :param reward: The reward functions that its configuration names.
        :param services: As for a new job.
        :param checkpoint: The one in its file now, perhaps newer than the record of a killed server; None if gone.
        :param unsaved_model: Its finished model, if only saving is left: then it goes on from its end.
        :raises ConflictError: If it has not ended, or has completed.
        """
        following = find_next(self.status, JobEvent.RESUME)
        if following is None:
            trained = "start a new job with init_model to train its model on"
            remedy = trained if self.status.is_final else "stop it first"
            raise ConflictError(
                f"job {self.job_id} is {self.status}; only stopped and failed jobs can be resumed; {remedy}."
            )
        resumed = Job(self.plan._replace(reward=reward), services, self.make_record(0, 1))
        resumed._reopen(following, checkpoint, unsaved_model)
        return resumed

    def _reopen(self, status: JobStatus, checkpoint: JobCheckpoint | None, unsaved_model: UnsavedModel | None) -> None:
        """Enter the queue again, see ``resume``; no other thread has the job yet."""
        state = self.state
        ended = state.describe_end()
        if checkpoint is None and unsaved_model is None:
            state.forget_checkpoint(self.job_id)
        else:
            state.checkpoint = checkpoint
        state.n_lost_workers = 0
        self._unsaved_model = unsaved_model
        self._begin_again()
        self.history.rewind(state.current_timesteps)  # only the end is taken back
        state.reopen(status)
        if unsaved_model is not None:  # no worker begins
            state.end_before = None
        warning = f"resumed from step {state.begins_at:,}, after it had {ended}"
        self.history.append("job.warning", {"warning": warning})
        self.history.append("job.status", {"status": status})


def _begin_history(plan: TrainingPlan) -> JobHistory:
    history = JobHistory()
    history.append("job.status", {"status": JobStatus.QUEUED})
    for warning in plan.warnings:
        history.append("job.warning", {"warning": warning})
    return history
