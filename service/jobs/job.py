"""One training job: its status, what it has reported, and how it is stopped."""

import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from grpo_core.options.rewards import Reward
from service.errors import ConflictError
from service.jobs.checkpoints import CheckpointFolder
from service.jobs.history import JobHistory
from service.jobs.record import JobRecord, JobState, PlanRecord, choose_evaluation, compute_recipe
from service.jobs.totals import JobTotals
from service.jobs.verdict import Evidence, judge
from service.schemas.jobs import (
    EndedBy,
    EvaluationRow,
    FinalEvaluation,
    JobCheckpoint,
    JobLabels,
    JobStatus,
    JobSummary,
    TrainingStatus,
)
from service.training.planning.plan import TrainingPlan
from service.workers.receipts import Receipts

logger = logging.getLogger("grpo.service")

_ZERO_STD_KEY = "rollout/zero_std_group_fraction"
_REWARD_KEY = "rollout/ep_rew_mean"
_KL_KEY = "train/approx_kl"
# More points of the reward curve would not change the verdict.
_MAX_JUDGED_POINTS = 200
# Shorter runs without a signal happen by chance, or before a rare reward is first found.
_MIN_ROLLOUTS_TO_WARN = 10
_MIN_STEPS_TO_WARN = 2000
_POLL_SECONDS = 0.02
# Nobody sees progress events that come more often.
_PROGRESS_SECONDS = 0.1


class _End(NamedTuple):
    """How and when a job ends.

    :param ended: The time on the monotonic clock.
    """

    status: JobStatus
    error_message: str | None
    end_time: datetime
    ended: float
    ended_by: EndedBy | None


class Job:
    """One training job, and the ``Progress`` that its worker reports to.

    Safe to read and to stop from any thread.

    :param plan: The job's settings.
    :param totals: Counters to add this job to; None counts it nowhere.
    :param write_end: Called with the job as it ends, before anybody can see that it has ended.
    :param checkpoints: Where its checkpoints are kept; None keeps none.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        totals: JobTotals | None = None,
        write_end: Callable[[JobRecord], None] = lambda record: None,
        checkpoints: CheckpointFolder | None = None,
    ) -> None:
        self.job_id = str(uuid.uuid4())
        self._checkpoints = checkpoints
        self._totals = totals or JobTotals()
        self._write_end = write_end
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
        # Guards everything below.
        self._lock = threading.Lock()
        self._status = JobStatus.QUEUED
        # The final status, known before it is entered: a stop decides it while the training still runs.
        self._outcome: JobStatus | None = None
        # Once it is set, nothing changes but the status, which follows as soon as the end is written down.
        self._end: _End | None = None
        self._n_stops = 0
        self._ended_by: EndedBy | None = None
        self._stop_training: Callable[[], None] | None = None
        self._last_active = time.monotonic()
        self._next_progress = 0.0
        self._current_timesteps = 0
        self._metrics: dict[str, float] = {}
        self._no_signal = _NoSignalCounter()
        self._evaluation: EvaluationRow | None = None
        self._best_evaluation: EvaluationRow | None = None
        self._final_evaluation: FinalEvaluation | None = None
        self._checkpoint: JobCheckpoint | None = None
        self._could_keep_checkpoints = True
        self._n_restarts = 0
        #: Simulator steps that were lost with a worker or the server, and were or will be taken again.
        self.repeated_timesteps = 0
        # Workers that died since the job was queued or last resumed.
        self._n_lost_workers = 0
        # Whether all is there that another worker would need.
        self._may_restart = True
        self._warnings = list(plan.warnings)
        self._error_message: str | None = None
        self._model_name: str | None = None
        self._sha256: str | None = None
        #: Name and SHA-256 of the model that the job has saved last, perhaps when it was stopped and before it went on.
        self.last_saved: tuple[str, str] | None = None
        self._created_at = datetime.now(UTC)
        self._start_time: datetime | None = None
        self._end_time: datetime | None = None
        # The same on the monotonic clock, for durations.
        self._started: float | None = None
        # What it took before it was last interrupted.
        self._seconds_before = 0.0
        self.history.append("job.status", {"status": self._status})
        for warning in self._warnings:
            self.history.append("job.warning", {"warning": warning})

    @property
    def status(self) -> JobStatus:
        """The job's current status."""
        return self._status

    @property
    def warnings(self) -> list[str]:
        """What the client should know."""
        with self._lock:
            return list(self._warnings)

    @property
    def is_stopping(self) -> bool:
        """Whether the job was told to stop."""
        return self._outcome is JobStatus.STOPPED

    @property
    def n_stops(self) -> int:
        """How often the job was told to stop, earlier servers included."""
        return self._n_stops

    @property
    def tensorboard_run(self) -> str | None:
        """Name of the job's TensorBoard folder; None if none was requested."""
        # Model names are checked and so safe in paths.
        return f"{self.config.model_name}-{self.job_id[:8]}" if self.config.tensorboard_log else None

    @property
    def inactive_seconds(self) -> float:
        """Time since the job was started, was told to stop, or last took a step or an update."""
        return time.monotonic() - self._last_active

    @property
    def start_time(self) -> datetime | None:
        """When it was started; None while it is queued."""
        return self._start_time

    @property
    def final_evaluation(self) -> FinalEvaluation | None:
        """What the saved policy earns; None until that is known."""
        return self._final_evaluation

    def summarize(self) -> JobSummary:
        """Return a short description for lists of jobs."""
        with self._lock:
            mean_reward, interval = choose_evaluation(self._final_evaluation, self._evaluation)
            return JobSummary(
                job_id=self.job_id,
                status=self._status,
                progress=self._progress,
                env_name=self.config.env_name,
                model_name=self.config.model_name,
                current_timesteps=self._current_timesteps,
                total_timesteps=self.config.total_timesteps,
                created_at=self._created_at,
                elapsed_seconds=self._elapsed_seconds,
                seed=self.config.seed,
                mean_reward=mean_reward,
                mean_reward_ci95=interval,
                recipe=self._recipe,
                **dict(self.labels),
            )

    def describe(self) -> TrainingStatus:
        """Return the full status."""
        with self._lock:
            return self._describe()

    def _describe(self) -> TrainingStatus:
        no_signal_warning = self._no_signal.make_warning(self._current_timesteps)
        elapsed_seconds = self._elapsed_seconds
        return TrainingStatus(
            job_id=self.job_id,
            status=self._status,
            progress=self._progress,
            current_timesteps=self._current_timesteps,
            total_timesteps=self.config.total_timesteps,
            created_at=self._created_at,
            start_time=self._start_time,
            end_time=self._end_time,
            error_message=self._error_message,
            metrics=self._metrics,
            warnings=[*self._warnings, *([] if no_signal_warning is None else [no_signal_warning])],
            model_name=self._model_name,
            sha256=self._sha256,
            elapsed_seconds=elapsed_seconds,
            eta_seconds=self._compute_eta(elapsed_seconds),
            verdict=judge(self.gather_evidence()),
            evaluation=self._evaluation,
            best_evaluation=self._best_evaluation,
            final_evaluation=self._final_evaluation,
            ended_by=self._ended_by if self._status.is_final else None,
            checkpoint=self._checkpoint,
            n_restarts=self._n_restarts,
            tensorboard_run=self.tensorboard_run,
            sweep_id=self.plan.sweep_id,
            config=self.config,
            config_origins=self.plan.config_origins,
            **dict(self.labels),
        )

    def gather_evidence(self) -> Evidence:
        """Return what the job's verdict is based on."""
        return Evidence(
            status=self._status,
            config=self.config,
            n_timesteps=self._current_timesteps,
            ended_by=self._ended_by,
            rollout_rewards=self.history.list_values(_REWARD_KEY, _MAX_JUDGED_POINTS),
            evaluations=self.history.list_evaluations(),
            final_evaluation=self._final_evaluation,
            reward_threshold=self.plan.reward_threshold,
            no_signal_warning=self._no_signal.make_warning(self._current_timesteps),
            had_signal=self._no_signal.since_timesteps > 0,
            kls=self.history.list_values(_KL_KEY, _MAX_JUDGED_POINTS),
            metrics=self._metrics,
        )

    def start(self) -> bool:
        """Change from queued to running; return False if the job was stopped while it waited."""
        with self._lock:
            if self._status is not JobStatus.QUEUED or self._outcome is not None:
                return False
            self._status, self._start_time = JobStatus.RUNNING, datetime.now(UTC)
            self._started = self._last_active = time.monotonic()
            self.history.append("job.status", {"status": self._status})
            return True

    def stop(self) -> None:
        """Stop the job: at once if it is queued, at the next simulator step or minibatch if it is running.

        A second stop skips the evaluation of the policy so far.

        :raises ConflictError: If it has already finished training.
        """
        with self._lock:
            if self._outcome in (JobStatus.COMPLETED, JobStatus.FAILED):
                past = f"has {self._outcome}" if self._status.is_final else "has finished training and is being saved"
                raise ConflictError(f"job {self.job_id} {past} already; only training jobs can be stopped.")
            if self._outcome is None:
                self._outcome, self._last_active = JobStatus.STOPPED, time.monotonic()
            self._n_stops += 1
            is_waiting = self._status is JobStatus.QUEUED
            if not is_waiting and self._stop_training is not None:
                self._stop_training()
        if is_waiting:
            self.finish(JobStatus.STOPPED)

    def restart(self, reason: str) -> bool:
        """Let a job whose worker has died go on from its checkpoint; return whether it may.

        :param reason: What happened to the worker, for people to read.
        """
        with self._lock:
            may = self._status is JobStatus.RUNNING and self._outcome is None and self._end is None
            if not may or not self._may_restart or self._n_lost_workers >= self.config.max_restarts:
                return False
            self._n_lost_workers += 1
            self._rewind()
            self._stop_training, self._last_active = None, time.monotonic()
            self._warn(f"{reason} The job went on from step {self._current_timesteps:,}.")
            return True

    def wake(self) -> None:
        """Count as active again, after a pause that was not the training's."""
        with self._lock:
            self._last_active = time.monotonic()

    def requeue(
        self,
        reward: Reward,
        totals: JobTotals,
        write_end: Callable[[JobRecord], None],
        checkpoints: CheckpointFolder | None,
        checkpoint: JobCheckpoint | None,
    ) -> None:
        """Queue an ended job again, perhaps one of an earlier server, to go on from its checkpoint.

        :param reward: The reward functions that its configuration names.
        :param totals: As for a new job, and so are the next two.
        :param checkpoint: What is in its file now: that may be newer than what was written of the job before its server
            was killed, or be gone.
        :raises ConflictError: If it has not ended, or has completed.
        """
        with self._lock:
            if self._status not in (JobStatus.FAILED, JobStatus.STOPPED):
                remedy = "its model can be trained on by a new job" if self._status.is_final else "stop it first"
                raise ConflictError(
                    f"job {self.job_id} is {self._status}; only stopped and failed jobs can be resumed, {remedy}."
                )
            self.set_reward(reward)
            self._totals, self._write_end, self._checkpoints = totals, write_end, checkpoints
            if checkpoint is None and self._checkpoint is not None:
                self._warn("its checkpoint is gone or cannot be used here, so the job began again.")
            self._checkpoint, self._n_lost_workers, self._may_restart = checkpoint, 0, True
            self._rewind()
            self._status, self._outcome, self._n_stops, self._ended_by = JobStatus.QUEUED, None, 0, None
            self._error_message = self._end_time = self._end = self._started = None
            self._model_name = self._sha256 = None
            self.history.append("job.status", {"status": self._status})
            self.finished.clear()

    def _rewind(self) -> None:
        """Go back to where the checkpoint was taken, or to the start."""
        self._n_restarts += 1
        self.receipts = Receipts(self._n_restarts)
        timesteps = 0 if self._checkpoint is None else self._checkpoint.timesteps
        self.repeated_timesteps += max(0, self._current_timesteps - timesteps)
        self._current_timesteps = timesteps
        self.history.rewind(timesteps)
        self._seconds_before = self._elapsed_seconds
        self._started = None if self._started is None else time.monotonic()
        evaluations = self.history.list_evaluations()
        self._evaluation = evaluations[-1] if evaluations else None
        self._best_evaluation = max(evaluations, key=lambda row: row.mean_reward, default=None)
        self._final_evaluation, self._no_signal = None, _NoSignalCounter()

    def settle_outcome(self) -> JobStatus:
        """Decide after training whether the job completed or was stopped; later stops are refused."""
        with self._lock:
            self._outcome = self._outcome or JobStatus.COMPLETED
            return self._outcome

    def finish(self, status: JobStatus, error_message: str | None = None) -> None:
        """Enter a final status, unless the job already has one, once the end is written down."""
        with self._lock:
            if self._end is not None:
                return
            self._outcome = status
            ended_by = _choose_ended_by(status, self._ended_by)
            age_seconds = self.receipts.end_age_seconds
            end_time, ended = datetime.now(UTC) - timedelta(seconds=age_seconds), time.monotonic() - age_seconds
            self._end = end = _End(status, error_message, end_time, ended, ended_by)
            record = self._make_record(0, 1)
        self._write_end(record)  # without the lock, since a disk may be slow
        with self._lock:
            self._enter(end)

    def give_up(self, status: JobStatus, error_message: str) -> None:
        """Enter a final status although the training hangs; if it ever continues, it stops at once."""
        with self._lock:
            if self._stop_training is not None:
                self._stop_training()
        self.finish(status, error_message)

    def _enter(self, end: _End) -> None:
        self._status, self._error_message, self._end_time, _, self._ended_by = end
        self._stop_training = None
        self._totals.add_end(end.status)
        if end.status is JobStatus.COMPLETED and self._checkpoints is not None:
            self._checkpoints.delete(self.job_id)
            self._checkpoint = None
        self._append_end()
        self.log(str(end.status), seconds=self._elapsed_seconds)
        self.finished.set()

    def _append_end(self) -> None:
        self.history.append(f"job.{self._status}", self._describe().model_dump(mode="json"), self._end_time)

    def make_record(self, after: int, stride: int) -> JobRecord:
        """Write down the job as it is, and what of its history is new.

        :param after: ``last_event_id`` of the history in the record before; 0 without one.
        :param stride: Its ``stride``.
        """
        with self.receipts.hold(), self._lock:
            return self._make_record(after, stride)

    def _make_record(self, after: int, stride: int) -> JobRecord:
        end = self._end
        state = JobState(
            status=self._status if end is None else end.status,
            created_at=self._created_at,
            start_time=self._start_time,
            end_time=None if end is None else end.end_time,
            elapsed_seconds=self._elapsed_seconds,
            current_timesteps=self._current_timesteps,
            metrics=self._metrics,
            warnings=self._warnings,
            error_message=None if end is None else end.error_message,
            model_name=self._model_name,
            sha256=self._sha256,
            ended_by=self._ended_by if end is None else end.ended_by,
            evaluation=self._evaluation,
            best_evaluation=self._best_evaluation,
            final_evaluation=self._final_evaluation,
            # Once the job has completed, nothing is left to go on from.
            checkpoint=None if end is not None and end.status is JobStatus.COMPLETED else self._checkpoint,
            n_restarts=self._n_restarts,
            n_lost_workers=self._n_lost_workers,
            repeated_timesteps=self.repeated_timesteps,
            n_reports=self.receipts.n_taken,
            n_stops=self._n_stops,
            last_saved=self.last_saved,
            n_silent_rollouts=self._no_signal.n_rollouts,
            last_signal_timesteps=self._no_signal.since_timesteps,
        )
        part = self.history.get_part(after, stride, end is not None)
        return JobRecord(self.job_id, self._plan_record, state, part, self.labels)

    @classmethod
    def restore(cls, record: JobRecord) -> "Job":
        """Build a job that has ended again from its record.

        Its plan lacks the rewards, see ``PlanRecord.make_plan``.
        """
        state, job = record.state, cls(record.plan.make_plan())
        job._restore(record)
        job._end_time, job._outcome = state.end_time, state.status
        end_time = state.end_time or state.created_at
        job._end = _End(state.status, state.error_message, end_time, state.elapsed_seconds, state.ended_by)
        job._started = None if state.start_time is None else 0.0
        if all(event.name != f"job.{state.status}" for event in record.history.events):  # as before the end was seen
            job._append_end()
        job.finished.set()
        return job

    @classmethod
    def revive(
        cls,
        record: JobRecord,
        totals: JobTotals,
        write_end: Callable[[JobRecord], None],
        checkpoints: CheckpointFolder | None,
    ) -> "Job":
        """Build a job again from its record that goes on without its server; the rest is as for a new job.

        Its plan lacks the rewards, as in ``restore``.
        """
        job = cls(record.plan.make_plan(), totals, write_end, checkpoints)
        job._restore(record)
        if checkpoints is not None:  # which may be newer than the record
            job._checkpoint = checkpoints.describe(job.job_id, job.config)
        away = datetime.now(UTC) - (record.written_at or datetime.now(UTC))
        job._seconds_before = record.state.elapsed_seconds + max(0.0, away.total_seconds())
        job._started = job._last_active = time.monotonic()
        job.receipts = Receipts(record.state.n_restarts, record.state.n_reports)
        job._n_stops = record.state.n_stops
        job._outcome = JobStatus.STOPPED if job._n_stops else None
        return job

    def set_reward(self, reward: Reward) -> None:
        """Take the reward functions that the configuration names, as they are in this server."""
        self.plan = self.plan._replace(reward=reward)

    def forbid_restarts(self, reason: str) -> None:
        """Have the job end if its worker dies: what it was trained with is not there."""
        self._may_restart = False
        warning = f"if its worker dies, the job cannot go on: {reason}"
        if warning not in self.warnings:  # an earlier server may have said so
            self.publish_warning(warning)

    def _restore(self, record: JobRecord) -> None:
        """Take all that a record says but for the end."""
        state = record.state
        self.job_id, self.labels, self.history = record.job_id, record.labels, JobHistory.restore(record.history)
        self._status = state.status
        self._created_at, self._start_time = state.created_at, state.start_time
        self._current_timesteps, self._metrics, self._warnings = state.current_timesteps, state.metrics, state.warnings
        self._error_message, self._ended_by = state.error_message, state.ended_by
        self._model_name, self._sha256 = state.model_name, state.sha256
        self._evaluation, self._best_evaluation = state.evaluation, state.best_evaluation
        self._final_evaluation, self._checkpoint = state.final_evaluation, state.checkpoint
        self._n_restarts, self._n_lost_workers = state.n_restarts, state.n_lost_workers
        self.last_saved = state.last_saved
        self.repeated_timesteps = state.repeated_timesteps
        self._no_signal = _NoSignalCounter(state.n_silent_rollouts, state.last_signal_timesteps)

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
                self._model_name, self._sha256 = self.last_saved = model_name, sha256

    def attach_stop(self, stop: Callable[[], None]) -> None:
        """Take the function that stops the training."""
        with self._lock:
            self._stop_training = stop
            for _ in range(max(self._n_stops, int(self._outcome is not None))):
                stop()

    def advance(self, current_timesteps: int) -> None:
        """Note the number of simulator steps taken so far."""
        with self._lock:
            if self._end is not None:  # an abandoned thread may continue
                return
            n_new = current_timesteps - self._current_timesteps
            self._totals.add_timesteps(n_new)
            self._current_timesteps, self._last_active = current_timesteps, time.monotonic()
            # After training, evaluations give signs of life without new steps.
            if n_new > 0 and self._last_active >= self._next_progress:
                self._next_progress = self._last_active + _PROGRESS_SECONDS
                self.history.replace_progress(self._describe_progress())

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Note the latest metrics."""
        with self._lock:
            if self._end is not None or not metrics:
                return
            self._metrics = {**self._metrics, **metrics}
            elapsed_seconds = self._elapsed_seconds - self.receipts.age_seconds
            self.history.append_metrics(self._current_timesteps, elapsed_seconds, metrics)
            if _ZERO_STD_KEY not in metrics:  # metrics of the last update come without a rollout
                return
            warning = self._no_signal.count_rollout(metrics[_ZERO_STD_KEY], self._current_timesteps)
            if warning is not None:
                self.history.append("job.warning", {"warning": warning})

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Note an evaluation of the policy."""
        with self._lock:
            if self._end is not None:
                return
            elapsed_seconds = self._elapsed_seconds - self.receipts.age_seconds
            row = EvaluationRow(**evaluation, elapsed_seconds=elapsed_seconds)
            self._evaluation = row
            if self._best_evaluation is None or row.mean_reward > self._best_evaluation.mean_reward:
                self._best_evaluation = row
            self.history.append_evaluation(row)

    def publish_final_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Note what the policy earns that will be saved."""
        with self._lock:
            if self._end is None:
                self._final_evaluation = FinalEvaluation(**evaluation)
                self.history.append("job.final_evaluation", self._final_evaluation.model_dump(mode="json"))

    def publish_checkpoint(self, described: Mapping[str, Any], content: bytes) -> None:
        """Keep a checkpoint, and note it once it is kept; a disk that refuses only ends in a warning."""
        if self._checkpoints is None or self._end is not None:
            return
        try:
            self._checkpoints.write(self.job_id, content)
        except OSError as error:
            if self._could_keep_checkpoints:
                self.publish_warning(
                    f"no checkpoint can be kept, so an interruption loses what is learnt ({error.strerror}); free some "
                    "disk space or mend the models folder."
                )
            self._could_keep_checkpoints = False
            return
        fields = {name: described.get(name) for name in ("timesteps", "exact", "note")}
        with self._lock:
            self._checkpoint = JobCheckpoint(**fields, created_at=datetime.now(UTC))
            self._could_keep_checkpoints = True

    def read_checkpoint(self) -> bytes | None:
        """Return the content of the latest checkpoint; None if there is none."""
        if self._checkpoints is None or self._checkpoint is None:
            return None
        return self._checkpoints.read(self.job_id)

    def read_finished_model(self) -> bytes | None:
        """Return the model of a job that failed after its training was over; None if it was not."""
        return None if self._checkpoints is None else self._checkpoints.read_finished(self.job_id)

    def publish_warning(self, warning: str) -> None:
        """Note a warning for the client."""
        with self._lock:
            if self._end is None:
                self._warn(warning)

    def _warn(self, warning: str) -> None:
        self._warnings.append(warning)
        self.history.append("job.warning", {"warning": warning})

    def publish_ended_by(self, ended_by: EndedBy) -> None:
        """Note the rule that ends the training early."""
        with self._lock:
            if self._end is None:
                self._ended_by = ended_by

    def _describe_progress(self) -> dict[str, Any]:
        elapsed_seconds = self._elapsed_seconds
        return {
            "progress": self._progress,
            "current_timesteps": self._current_timesteps,
            "total_timesteps": self.config.total_timesteps,
            "elapsed_seconds": elapsed_seconds,
            "eta_seconds": self._compute_eta(elapsed_seconds),
        }

    @property
    def _progress(self) -> float:
        if self._status is JobStatus.COMPLETED:
            return 1.0
        return min(1.0, self._current_timesteps / self.config.total_timesteps)

    @property
    def _elapsed_seconds(self) -> float:
        if self._started is None:
            return self._seconds_before
        ended = time.monotonic() if self._end is None else self._end.ended
        return max(0.0, self._seconds_before + ended - self._started)

    def _compute_eta(self, elapsed_seconds: float) -> float | None:
        if self._status is not JobStatus.RUNNING or self._current_timesteps == 0:
            return None
        n_left = max(0, self.config.total_timesteps - self._current_timesteps)
        most = math.inf if self.config.max_seconds is None else max(0.0, self.config.max_seconds - elapsed_seconds)
        return min(most, elapsed_seconds * n_left / self._current_timesteps)


class _NoSignalCounter:
    """Counts consecutive rollouts in which the branches of every group earned the same."""

    def __init__(self, n_rollouts: int = 0, since_timesteps: int = 0) -> None:
        #: Rollouts without a signal since the last one that had any.
        self.n_rollouts = n_rollouts
        #: Simulator steps at the end of the last rollout with a signal; 0 if there was none.
        self.since_timesteps = since_timesteps
        self._has_warned = False

    def count_rollout(self, zero_std_fraction: float, timesteps: int) -> str | None:
        """Count a rollout; return a warning once the signal has been missing for long, and only once each time.

        :param zero_std_fraction: Share of the rollout's groups without a signal, in [0, 1].
        :param timesteps: Simulator steps taken so far.
        """
        if zero_std_fraction < 1.0:
            self.n_rollouts, self.since_timesteps, self._has_warned = 0, timesteps, False
            return None
        self.n_rollouts += 1
        warning = None if self._has_warned else self.make_warning(timesteps)
        self._has_warned = self._has_warned or warning is not None
        return warning

    def make_warning(self, timesteps: int) -> str | None:
        """Return the warning that is due; None if the signal has not been missing for long.

        :param timesteps: Simulator steps taken so far.
        """
        n_steps = timesteps - self.since_timesteps
        if self.n_rollouts < _MIN_ROLLOUTS_TO_WARN or n_steps < _MIN_STEPS_TO_WARN:
            return None
        return (
            f"no signal in the last {self.n_rollouts} rollouts ({n_steps} steps): in every group, all branches "
            "earned the same. A rare reward may still be found; otherwise use a reward that differs between branches, "
            "a longer horizon or a larger group_size."
        )


def _choose_ended_by(status: JobStatus, reported: EndedBy | None) -> EndedBy | None:
    if status is JobStatus.FAILED:
        return None
    return "stop" if status is JobStatus.STOPPED else reported or "total_timesteps"
