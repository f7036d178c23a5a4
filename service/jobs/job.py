"""One training job: its status, how it is stopped, resumed and remembered; ``progress`` takes what it reports."""

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
from service.jobs.clock import JobClock
from service.jobs.description import describe_job, name_tensorboard_run
from service.jobs.progress import JobProgress
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.history import JobHistory
from service.jobs.records.record import EndedHow, JobRecord, JobState, PlanRecord, compute_recipe, summarize_job
from service.jobs.totals import JobTotals
from service.jobs.transitions import JobEvent, find_next
from service.schemas.jobs import (
    EndedBy,
    JobCheckpoint,
    JobLabels,
    JobStatus,
    JobSummary,
    TrainingStatus,
)
from service.training.planning.plan import TrainingPlan
from service.workers.receipts import Receipts

logger = logging.getLogger("grpo.service")

# How late an answer that waits for a job's end may be; looking costs next to nothing, and holds no thread.
_POLL_SECONDS = 0.02

_ENDS = {
    JobStatus.COMPLETED: JobEvent.COMPLETE,
    JobStatus.FAILED: JobEvent.FAIL,
    JobStatus.STOPPED: JobEvent.STOP,
}


class _End(NamedTuple):
    """How and when a job ends: fields of its state."""

    status: JobStatus
    error_message: str | None
    end_time: datetime
    ended_by: EndedBy | None
    ended_how: EndedHow | None

    def write_into(self, state: JobState) -> None:
        """Note the end in a job's state."""
        state.status, state.error_message, state.end_time, state.ended_by, state.ended_how = self
        if self.status is JobStatus.COMPLETED:  # nothing is left to go on from
            state.checkpoint = None


class JobServices(NamedTuple):
    """What a job uses of its server.

    :param totals: Counters to add it to.
    :param write_end: Called with the job as it ends, before anybody can see that it has ended.
    :param checkpoints: Where its checkpoints are kept; None keeps none.
    """

    totals: JobTotals
    write_end: Callable[[JobRecord], None] = lambda record: None
    checkpoints: CheckpointFolder | None = None


class Job:
    """One training job. Safe to read and to stop from any thread.

    :param plan: The job's settings.
    :param services: What its server has for it; None counts it nowhere and keeps nothing.
    """

    def __init__(self, plan: TrainingPlan, services: JobServices | None = None) -> None:
        self.job_id = str(uuid.uuid4())
        self._services = services or JobServices(JobTotals())
        self.plan = plan
        self._plan_record = PlanRecord.describe(plan)
        self.config = plan.config
        self._recipe = compute_recipe(self._plan_record.config)
        #: What people have written on it; the registry replaces it.
        self.labels = JobLabels()
        self.history = JobHistory()
        self.finished = threading.Event()
        #: Which reports of its worker are taken, where that may outlive the server.
        self.receipts = Receipts()
        # Guards changes of everything below; single fields are read without it.
        self._lock = threading.Lock()
        self._state = JobState(status=JobStatus.QUEUED, created_at=datetime.now(UTC), warnings=list(plan.warnings))
        self._clock = JobClock()
        # The final status, known before it is entered: a stop decides it while the training still runs.
        self._outcome: JobStatus | None = None
        # Once it is set, nothing changes but the status, which follows as soon as the end is written down.
        self._end: _End | None = None
        #: The model file of a training that is over, which could not be saved then.
        self.unsaved_model: bytes | None = None
        # Whether another worker could go on.
        self._may_restart = True
        self._progress = self._make_progress()
        self.history.append("job.status", {"status": JobStatus.QUEUED})
        for warning in plan.warnings:
            self.history.append("job.warning", {"warning": warning})

    def _make_progress(self) -> JobProgress:
        return JobProgress(
            self.job_id,
            self.config,
            lock=self._lock,
            is_closed=lambda: self._end is not None,
            state=self._state,
            history=self.history,
            clock=self._clock,
            receipts=self.receipts,
            totals=self._services.totals,
            checkpoints=self._services.checkpoints,
        )

    @property
    def progress(self) -> JobProgress:
        """What the worker reports to; another worker has another one."""
        return self._progress

    @property
    def state(self) -> JobState:
        """All that changes, for others to read single fields of; ``describe`` returns fields that fit together."""
        return self._state

    @property
    def status(self) -> JobStatus:
        """The job's current status."""
        return self._state.status

    @property
    def warnings(self) -> list[str]:
        """What the client should know."""
        with self._lock:
            return list(self._state.warnings)

    @property
    def is_stopping(self) -> bool:
        """Whether the job was told to stop."""
        return self._outcome is JobStatus.STOPPED

    @property
    def tensorboard_run(self) -> str | None:
        """Name of the job's TensorBoard folder; None if none was requested."""
        return name_tensorboard_run(self.job_id, self.config)

    @property
    def inactive_seconds(self) -> float:
        """Time since the job was started, was told to stop, or last took a step or an update."""
        return self._clock.inactive_seconds

    def summarize(self) -> JobSummary:
        """Return a short description for lists of jobs."""
        with self._lock:
            return summarize_job(self.job_id, self._plan_record.config, self._recipe, self._refresh(), self.labels)

    def describe(self) -> TrainingStatus:
        """Return the full status."""
        with self._lock:
            return self._describe()

    def _describe(self) -> TrainingStatus:
        return describe_job(self.job_id, self.plan, self._refresh(), self.history, self.labels)

    def _refresh(self) -> JobState:
        """Return the job's state, brought up to date."""
        self._state.elapsed_seconds, self._state.n_reports = self._clock.elapsed_seconds, self.receipts.n_taken
        return self._state

    def start(self) -> bool:
        """Change from queued to running; return False if the job was stopped while it waited."""
        with self._lock:
            status = find_next(self._state.status, JobEvent.START)
            if status is None or self._outcome is not None:
                return False
            self._state.status, self._state.start_time = status, datetime.now(UTC)
            self._clock.start()
            self.history.append("job.status", {"status": status})
            return True

    def stop(self, stopped_by: Literal["stop", "shutdown"] = "stop") -> None:
        """Stop the job: at once if it is queued, at the next simulator step or minibatch if it is running.

        A second stop skips the evaluation of the policy so far.

        :param stopped_by: Whether somebody stops it, or the server ends; only the first stop counts.
        :raises ConflictError: If it has already finished training.
        """
        with self._lock:
            if self._outcome in (JobStatus.COMPLETED, JobStatus.FAILED):
                past = f"has {self._outcome}" if self.status.is_final else "has finished training and is being saved"
                raise ConflictError(f"job {self.job_id} {past} already; only training jobs can be stopped.")
            if self._outcome is None:
                self._outcome, self._state.stopped_by = JobStatus.STOPPED, stopped_by
                self._clock.wake()
            self._state.n_stops += 1
            is_waiting = self._state.status is JobStatus.QUEUED
            if not is_waiting:
                self._progress.stop_locked()
        if is_waiting:
            self.finish(JobStatus.STOPPED)

    def describe_interruption(self) -> str:
        """Say that the job, which was to go on without its server, has ended with it."""
        with self._lock:
            return self._state.describe_interruption(self.job_id, was_killed=True)

    def describe_resume(self) -> str:
        """Say from where a resume would go on if the job ended now."""
        with self._lock:
            return self._state.describe_resume(self.job_id)

    def restart(self, reason: str) -> bool:
        """Let a job whose worker has died go on from its checkpoint; return whether it may.

        :param reason: What happened to the worker, for people to read.
        """
        with self._lock:
            may = find_next(self._state.status, JobEvent.RESTART) is not None
            may = may and self._outcome is None and self._end is None
            if not may or not self._may_restart or self._state.n_lost_workers >= self.config.max_restarts:
                return False
            self._state.n_lost_workers += 1
            self._begin_again()
            self._rewind()
            self._clock.start()
            self._progress.warn_locked(f"{reason} The job went on from step {self._state.current_timesteps:,}.")
            return True

    def wake(self) -> None:
        """Count as active again, after a pause that was not the training's."""
        with self._lock:
            self._clock.wake()

    def resume(
        self,
        reward: Reward | None,
        services: JobServices,
        checkpoint: JobCheckpoint | None,
        unsaved_model: bytes | None = None,
    ) -> None:
        """Queue an ended job again, perhaps one of an earlier server, to go on from its checkpoint.

        :param reward: The reward functions that its configuration names.
        :param services: As for a new job.
        :param checkpoint: What is in its file now: that may be newer than what was written of the job before its server
            was killed, or be gone.
        :param unsaved_model: What it has learned if it only has to be saved: then it goes on from its end.
        :raises ConflictError: If it has not ended, or has completed.
        """
        with self._lock:
            status, following = self._state.status, find_next(self._state.status, JobEvent.RESUME)
            if following is None:
                trained = "start a new job with init_model to train its model on"
                remedy = trained if status.is_final else "stop it first"
                raise ConflictError(
                    f"job {self.job_id} is {status}; only stopped and failed jobs can be resumed; {remedy}."
                )
            self.set_reward(reward)
            self._services, state = services, self._state
            ended = _describe_end(state)
            if unsaved_model is None and state.ended_how == "unsaved":
                self._progress.warn_locked("its finished policy is not in memory any more, so the job trains again.")
            if checkpoint is None and state.checkpoint is not None and unsaved_model is None:
                self._progress.warn_locked("its checkpoint is gone or cannot be used here, so the job began again.")
            state.checkpoint, state.n_lost_workers, self._may_restart = checkpoint, 0, True
            self.unsaved_model = unsaved_model
            self._begin_again()
            if unsaved_model is None:
                self._rewind()
            state.status, self._outcome, state.n_stops, self._end = following, None, 0, None
            state.stopped_by = "stop"
            state.ended_by = state.ended_how = state.error_message = state.end_time = None
            state.model_name = state.sha256 = None
            warning = f"resumed from step {state.current_timesteps:,}, after it had {ended}"
            self.history.append("job.warning", {"warning": warning})
            self.history.append("job.status", {"status": following})
            self.finished.clear()

    def _begin_again(self) -> None:
        self._state.n_restarts += 1
        self.receipts = Receipts(self._state.n_restarts)
        self._clock.reset()
        self._progress = self._make_progress()

    def _rewind(self) -> None:
        """Go back to where the checkpoint was taken, or to the start."""
        checkpoint = self._state.checkpoint
        self._progress.rewind_locked(0 if checkpoint is None else checkpoint.timesteps)

    def settle_outcome(self) -> JobStatus:
        """Decide after training whether the job completed or was stopped; later stops are refused."""
        with self._lock:
            self._outcome = self._outcome or JobStatus.COMPLETED
            return self._outcome

    def finish(
        self,
        status: JobStatus,
        error_message: str | None = None,
        was_shut_down: bool = False,
        ended_how: EndedHow | None = None,
    ) -> None:
        """Enter a final status, unless the job already has one, once the end is written down.

        :param was_shut_down: Whether the server ends it; that counts where the job was not told to stop before.
        :param ended_how: What a resume needs to know of the end; None for nothing.
        :raises ValueError: If it cannot end so yet: a queued job cannot complete.
        """
        with self._lock:
            if self._end is not None:
                return
            if find_next(self._state.status, _ENDS[status]) is None:
                raise ValueError(f"a job that is {self._state.status} does not become {status}")
            if was_shut_down and self._outcome is not JobStatus.STOPPED:
                self._state.stopped_by = "shutdown"
            self._outcome = status
            ended_by = _choose_ended_by(status, self._state)
            if ended_by == "shutdown" and error_message is None:
                error_message = self._state.describe_interruption(self.job_id, was_killed=False)
            age_seconds = self.receipts.end_age_seconds
            self._clock.end(age_seconds)
            end_time = datetime.now(UTC) - timedelta(seconds=age_seconds)
            self._end = end = _End(status, error_message, end_time, ended_by, ended_how)
        try:
            with self._lock:
                record = self._make_record(0, 1)
            # Both without the lock, since a disk may be slow.
            self._services.write_end(record)
            if status is JobStatus.COMPLETED and self._services.checkpoints is not None:
                self._services.checkpoints.delete(self.job_id)
        finally:  # whatever has failed, a job that has ended must not seem to go on
            with self._lock:
                self._enter(end)

    def give_up(self, status: JobStatus, error_message: str) -> None:
        """Enter a final status although the training hangs; if it ever continues, it stops at once."""
        with self._lock:
            self._progress.stop_locked()
        self.finish(status, error_message)

    def _enter(self, end: _End) -> None:
        end.write_into(self._state)
        self._progress.detach_stop_locked()
        self._services.totals.add_end(end.status)
        try:
            self._append_end()
        finally:
            self.finished.set()
        self.log(str(end.status), seconds=self._clock.elapsed_seconds)

    def _append_end(self) -> None:
        state = self._state
        self.history.append(f"job.{state.status}", self._describe().model_dump(mode="json"), state.end_time)

    def make_record(self, after: int, stride: int) -> JobRecord:
        """Write down the job as it is, and what of its history is new.

        :param after: ``last_event_id`` of the history in the record before; 0 without one.
        :param stride: Its ``stride``.
        """
        with self.receipts.hold(), self._lock:
            return self._make_record(after, stride)

    def _make_record(self, after: int, stride: int) -> JobRecord:
        state = JobState(**dict(self._refresh()))  # a copy, with lists of its own
        if self._end is not None:
            self._end.write_into(state)
        part = self.history.get_part(after, stride, self._end is not None)
        return JobRecord(self.job_id, self._plan_record, state, part, self.labels)

    @classmethod
    def restore(cls, record: JobRecord) -> "Job":
        """Build a job that has ended again from its record.

        Its plan lacks the rewards, see ``PlanRecord.make_plan``.
        """
        state, job = record.state, cls(record.plan.make_plan())
        job._restore(record)
        job._outcome = state.status
        end_time = state.end_time or state.created_at
        job._end = _End(state.status, state.error_message, end_time, state.ended_by, state.ended_how)
        if all(event.name != f"job.{state.status}" for event in record.history.events):  # as before the end was seen
            job._append_end()
        job.finished.set()
        return job

    @classmethod
    def revive(cls, record: JobRecord, services: JobServices) -> "Job":
        """Build a job again from its record that goes on without its server.

        Its plan lacks the rewards, as in ``restore``.
        """
        job = cls(record.plan.make_plan(), services)
        job._restore(record)
        if services.checkpoints is not None:  # which may be newer than the record
            job._state.checkpoint = services.checkpoints.describe(job.job_id, job.config)
        away = datetime.now(UTC) - (record.written_at or datetime.now(UTC))
        job._clock = JobClock(record.state.elapsed_seconds + max(0.0, away.total_seconds()))
        job._clock.start()
        job.receipts = Receipts(record.state.n_restarts, record.state.n_reports)
        job._progress = job._make_progress()
        job._outcome = JobStatus.STOPPED if job._state.n_stops else None
        return job

    def set_reward(self, reward: Reward | None) -> None:
        """Take the reward functions that the configuration names, as they are in this server."""
        self.plan = self.plan._replace(reward=reward)

    def forbid_restarts(self, reason: str) -> None:
        """Have the job end if its worker dies: what it was trained with is not there."""
        self._may_restart = False
        warning = f"if its worker dies, the job cannot go on: {reason}"
        if warning not in self.warnings:  # an earlier server may have said so
            self.warn(warning)

    def warn(self, warning: str) -> None:
        """Note a warning for the client, unless the job has ended."""
        self._progress.publish_warning(warning)

    def _restore(self, record: JobRecord) -> None:
        """Take all that a record says but for the end."""
        self.job_id, self.labels, self.history = record.job_id, record.labels, JobHistory.restore(record.history)
        self._state, self._clock = record.state, JobClock(record.state.elapsed_seconds)
        self._progress = self._make_progress()

    def log(self, event: str, **fields: float) -> None:
        """Log an event of the job, with the names that identify it."""
        names = {"job_id": self.job_id, "env_name": self.config.env_name, "model_name": self.config.model_name}
        logger.info("job %s", event, extra={**names, **fields})

    async def wait_finished(self, timeout_seconds: float) -> bool:
        """Wait until the job has ended, without occupying a thread; return whether it has."""
        deadline = time.monotonic() + timeout_seconds
        while not self.finished.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        return self.finished.is_set()

    def record_saved_model(self, model_name: str, sha256: str) -> None:
        """Note the name and the hash of the saved model."""
        with self._lock:
            if self._end is None:  # a shutdown may have given up on it in the meantime
                state = self._state
                state.model_name, state.sha256 = state.last_saved = model_name, sha256

    def read_checkpoint(self) -> bytes | None:
        """Return the content of the latest checkpoint, to go on from; None if there is none.

        One that is gone, as it may have made room for others in the meantime, is forgotten with a warning.
        """
        if self._services.checkpoints is None or self._state.checkpoint is None:
            return None
        content = self._services.checkpoints.read(self.job_id)
        with self._lock:
            if content is None and self._end is None:
                self._state.checkpoint = None
                self._progress.rewind_locked(0)
                self._progress.warn_locked("training began again: the job's checkpoint is gone, or cannot be read.")
        return content

    def read_finished_model(self) -> bytes | None:
        """Return the model of a job that failed after its training was over; None if it was not."""
        return None if self._services.checkpoints is None else self._services.checkpoints.read_finished(self.job_id)


def _describe_end(state: JobState) -> str:
    """Say how and where a job has ended, for its history to keep: a resume takes the end out of it."""
    step = f"step {state.current_timesteps:,}"
    if state.ended_how == "interrupted" or state.ended_by == "shutdown":
        return f"been interrupted at {step}."
    if state.status is JobStatus.STOPPED:
        return f"been stopped at {step}."
    return f"failed at {step}: {state.error_message or ''}"


def _choose_ended_by(status: JobStatus, state: JobState) -> EndedBy | None:
    if status is JobStatus.FAILED:
        return None
    return state.stopped_by if status is JobStatus.STOPPED else state.ended_by or "total_timesteps"
