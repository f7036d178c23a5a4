"""One training job: its status, what it has reported, and how it is stopped."""

import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from service.errors import ConflictError
from service.jobs.checkpoints import CheckpointFolder
from service.jobs.history import JobHistory
from service.jobs.totals import JobTotals
from service.jobs.verdict import Evidence, judge
from service.schemas.jobs import (
    EndedBy,
    EvaluationRow,
    FinalEvaluation,
    JobCheckpoint,
    JobStatus,
    JobSummary,
    TrainingStatus,
)
from service.training.plan import TrainingPlan

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


class Job:
    """One training job, and the ``Progress`` that its worker reports to.

    Safe to read and to stop from any thread.

    :param plan: The job's settings.
    :param totals: Counters to add this job to; None counts it nowhere.
    :param checkpoints: Where its checkpoints are kept; None keeps none.
    """

    def __init__(
        self, plan: TrainingPlan, totals: JobTotals | None = None, checkpoints: CheckpointFolder | None = None
    ) -> None:
        self.job_id = str(uuid.uuid4())
        self._checkpoints = checkpoints
        self._totals = totals or JobTotals()
        self.plan = plan
        self.config = plan.config
        self.history = JobHistory()
        self.finished = threading.Event()
        # Guards everything below.
        self._lock = threading.Lock()
        self._status = JobStatus.QUEUED
        # The final status, known before it is entered: a stop decides it while the training still runs.
        self._outcome: JobStatus | None = None
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
        self._warnings = list(plan.warnings)
        self._error_message: str | None = None
        self._model_name: str | None = None
        self._sha256: str | None = None
        #: Where the job has saved before, if it was stopped and went on.
        self.last_saved_name: str | None = None
        self._created_at = datetime.now(UTC)
        self._start_time: datetime | None = None
        self._end_time: datetime | None = None
        # The same times on the monotonic clock, for durations.
        self._started: float | None = None
        self._ended: float | None = None
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
    def tensorboard_run(self) -> str | None:
        """Name of the job's TensorBoard folder; None if none was requested."""
        # Model names are checked and so safe in paths.
        return f"{self.config.model_name}-{self.job_id[:8]}" if self.config.tensorboard_log else None

    @property
    def inactive_seconds(self) -> float:
        """Time since the job was started, was told to stop, or last took a step or an update."""
        return time.monotonic() - self._last_active

    def summarize(self) -> JobSummary:
        """Return a short description for lists of jobs."""
        with self._lock:
            return JobSummary(
                job_id=self.job_id,
                status=self._status,
                progress=self._progress,
                env_name=self.config.env_name,
                model_name=self.config.model_name,
                current_timesteps=self._current_timesteps,
                total_timesteps=self.config.total_timesteps,
                created_at=self._created_at,
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
            config=self.config,
            config_origins=self.plan.config_origins,
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
            if self._status is not JobStatus.QUEUED:
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
            if self._status is JobStatus.QUEUED:
                self._enter(JobStatus.STOPPED)
            elif self._stop_training is not None:
                self._stop_training()

    def restart(self, reason: str) -> bool:
        """Let a job whose worker has died go on from its checkpoint; return whether it may.

        :param reason: What happened to the worker, for people to read.
        """
        with self._lock:
            may = self._status is JobStatus.RUNNING and self._outcome is None
            if not may or self._n_restarts >= self.config.max_restarts:
                return False
            self._rewind()
            self._stop_training, self._last_active = None, time.monotonic()
            self._warn(f"{reason} The job went on from step {self._current_timesteps:,}.")
            return True

    def requeue(self) -> None:
        """Queue an ended job again, to go on from its checkpoint.

        :raises ConflictError: If it has not ended, or has completed.
        """
        with self._lock:
            if self._status not in (JobStatus.FAILED, JobStatus.STOPPED):
                remedy = "its model can be trained on by a new job" if self._status.is_final else "stop it first"
                raise ConflictError(
                    f"job {self.job_id} is {self._status}; only stopped and failed jobs can be resumed, {remedy}."
                )
            self._rewind()
            self._status, self._outcome, self._n_stops, self._ended_by = JobStatus.QUEUED, None, 0, None
            self._error_message = self._end_time = self._ended = self._started = None
            self.last_saved_name = self._model_name or self.last_saved_name
            self._model_name = self._sha256 = None
            self.history.append("job.status", {"status": self._status})
            self.finished.clear()

    def _rewind(self) -> None:
        """Go back to where the checkpoint was taken, or to the start."""
        self._n_restarts += 1
        timesteps = 0 if self._checkpoint is None else self._checkpoint.timesteps
        self._current_timesteps = min(self._current_timesteps, timesteps)
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
        """Enter a final status, unless the job already has one."""
        with self._lock:
            if not self._status.is_final:
                self._outcome, self._error_message = status, error_message
                self._enter(status)

    def give_up(self, status: JobStatus, error_message: str) -> None:
        """Enter a final status although the training hangs; if it ever continues, it stops at once."""
        with self._lock:
            if self._stop_training is not None:
                self._stop_training()
        self.finish(status, error_message)

    def _enter(self, final_status: JobStatus) -> None:
        self._status, self._end_time, self._ended = final_status, datetime.now(UTC), time.monotonic()
        self._stop_training = None
        self._ended_by = _choose_ended_by(final_status, self._ended_by)
        self._totals.add_end(final_status)
        if final_status is JobStatus.COMPLETED and self._checkpoints is not None:
            self._checkpoints.delete(self.job_id)
            self._checkpoint = None
        self.history.append(f"job.{final_status}", self._describe().model_dump(mode="json"))
        self.log(str(final_status), seconds=self._elapsed_seconds)
        self.finished.set()

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
            if not self._status.is_final:  # a shutdown may have given up on it in the meantime
                self._model_name, self._sha256 = model_name, sha256

    def attach_stop(self, stop: Callable[[], None]) -> None:
        """Take the function that stops the training."""
        with self._lock:
            self._stop_training = stop
            for _ in range(max(self._n_stops, int(self._outcome is not None))):
                stop()

    def advance(self, current_timesteps: int) -> None:
        """Note the number of simulator steps taken so far."""
        with self._lock:
            if self._status.is_final:  # an abandoned thread may continue
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
            if self._status.is_final or not metrics:
                return
            self._metrics = {**self._metrics, **metrics}
            self.history.append_metrics(self._current_timesteps, self._elapsed_seconds, metrics)
            if _ZERO_STD_KEY not in metrics:  # metrics of the last update come without a rollout
                return
            warning = self._no_signal.count_rollout(metrics[_ZERO_STD_KEY], self._current_timesteps)
            if warning is not None:
                self.history.append("job.warning", {"warning": warning})

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Note an evaluation of the policy."""
        with self._lock:
            if self._status.is_final:
                return
            row = EvaluationRow(**evaluation, elapsed_seconds=self._elapsed_seconds)
            self._evaluation = row
            if self._best_evaluation is None or row.mean_reward > self._best_evaluation.mean_reward:
                self._best_evaluation = row
            self.history.append_evaluation(row)

    def publish_final_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Note what the policy earns that will be saved."""
        with self._lock:
            if not self._status.is_final:
                self._final_evaluation = FinalEvaluation(**evaluation)
                self.history.append("job.final_evaluation", self._final_evaluation.model_dump(mode="json"))

    def publish_checkpoint(self, described: Mapping[str, Any], content: bytes) -> None:
        """Keep a checkpoint, and note it once it is kept; a disk that refuses only ends in a warning."""
        if self._checkpoints is None or self._status.is_final:
            return
        try:
            self._checkpoints.write(self.job_id, content)
        except OSError as error:
            if self._could_keep_checkpoints:
                self.publish_warning(
                    f"no checkpoint can be kept, so an interruption loses what is learnt ({error.strerror}); free some "
                    "disk space."
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
            if not self._status.is_final:
                self._warn(warning)

    def _warn(self, warning: str) -> None:
        self._warnings.append(warning)
        self.history.append("job.warning", {"warning": warning})

    def publish_ended_by(self, ended_by: EndedBy) -> None:
        """Note the rule that ends the training early."""
        with self._lock:
            if not self._status.is_final:
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
        return self._seconds_before + (time.monotonic() if self._ended is None else self._ended) - self._started

    def _compute_eta(self, elapsed_seconds: float) -> float | None:
        if self._status is not JobStatus.RUNNING or self._current_timesteps == 0:
            return None
        n_left = max(0, self.config.total_timesteps - self._current_timesteps)
        most = math.inf if self.config.max_seconds is None else max(0.0, self.config.max_seconds - elapsed_seconds)
        return min(most, elapsed_seconds * n_left / self._current_timesteps)


class _NoSignalCounter:
    """Counts consecutive rollouts in which the branches of every group earned the same."""

    def __init__(self) -> None:
        self._n_rollouts = 0
        #: Simulator steps at the end of the last rollout with a signal; 0 if there was none.
        self.since_timesteps = 0
        self._has_warned = False

    def count_rollout(self, zero_std_fraction: float, timesteps: int) -> str | None:
        """Count a rollout; return a warning once the signal has been missing for long, and only once each time.

        :param zero_std_fraction: Share of the rollout's groups without a signal, in [0, 1].
        :param timesteps: Simulator steps taken so far.
        """
        if zero_std_fraction < 1.0:
            self._n_rollouts, self.since_timesteps, self._has_warned = 0, timesteps, False
            return None
        self._n_rollouts += 1
        warning = None if self._has_warned else self.make_warning(timesteps)
        self._has_warned = self._has_warned or warning is not None
        return warning

    def make_warning(self, timesteps: int) -> str | None:
        """Return the warning that is due; None if the signal has not been missing for long.

        :param timesteps: Simulator steps taken so far.
        """
        n_steps = timesteps - self.since_timesteps
        if self._n_rollouts < _MIN_ROLLOUTS_TO_WARN or n_steps < _MIN_STEPS_TO_WARN:
            return None
        return (
            f"no signal in the last {self._n_rollouts} rollouts ({n_steps} steps): in every group, all branches "
            "earned the same. A rare reward may still be found; otherwise use a reward that differs between branches, "
            "a longer horizon or a larger group_size."
        )


def _choose_ended_by(status: JobStatus, reported: EndedBy | None) -> EndedBy | None:
    if status is JobStatus.FAILED:
        return None
    return "stop" if status is JobStatus.STOPPED else reported or "total_timesteps"
