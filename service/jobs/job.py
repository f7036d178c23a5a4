"""One training job: where it is, what it has told, and how it is stopped."""

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
from service.jobs.history import JobHistory
from service.jobs.totals import JobTotals
from service.jobs.verdict import Evidence, judge
from service.schemas.jobs import EndedBy, EvaluationRow, JobStatus, JobSummary, TrainingStatus, Verdict
from service.training.planner import TrainingPlan

logger = logging.getLogger("grpo.service")

_ZERO_STD_KEY = "rollout/zero_std_group_fraction"
_REWARD_KEY = "rollout/ep_rew_mean"
# Of a curve, evenly: more would not change the verdict.
_MAX_JUDGED_POINTS = 200
# Less than this without a signal happens by chance, and on the way to a rare reward.
_SILENT_ROLLOUTS_TO_WARN = 10
_SILENT_STEPS_TO_WARN = 2000
_POLL_SECONDS = 0.02
# Between two events that tell of progress: as often as anybody can see.
_PROGRESS_SECONDS = 0.1


class Job:
    """One training job. Safe to read and to stop from any thread; only its worker reports progress.

    :param plan: What it trains with.
    :param totals: Counts what it does; None counts for nobody.
    """

    def __init__(self, plan: TrainingPlan, totals: JobTotals | None = None) -> None:
        self.job_id = str(uuid.uuid4())
        self._totals = totals or JobTotals()
        self.plan = plan
        self.config = plan.config
        self.history = JobHistory()
        self.finished = threading.Event()
        # Guards everything below.
        self._lock = threading.Lock()
        self._status = JobStatus.QUEUED
        # How it will end, once that is settled: a stop settles it before the training has ended.
        self._outcome: JobStatus | None = None
        self._ended_by: EndedBy | None = None
        self._stop_training: Callable[[], None] | None = None
        self._last_sign = time.monotonic()
        self._next_progress = 0.0
        self._current_timesteps = 0
        self._metrics: dict[str, float] = {}
        self._silence = _Silence()
        self._evaluation: EvaluationRow | None = None
        self._best_evaluation: EvaluationRow | None = None
        self._error_message: str | None = None
        self._model_name: str | None = None
        self._sha256: str | None = None
        self._created_at = datetime.now(UTC)
        self._start_time: datetime | None = None
        self._end_time: datetime | None = None
        # The same times, on the clock that nobody sets.
        self._started: float | None = None
        self._ended: float | None = None
        self.history.append("job.status", {"status": self._status})
        for warning in plan.warnings:
            self.history.append("job.warning", {"warning": warning})

    @property
    def status(self) -> JobStatus:
        """Where it is."""
        return self._status

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._outcome is JobStatus.STOPPED

    @property
    def tensorboard_run(self) -> str | None:
        """Name of the folder that TensorBoard reads, if one was asked for; names of models are safe in paths."""
        return f"{self.config.model_name}-{self.job_id[:8]}" if self.config.tensorboard_log else None

    @property
    def silent_seconds(self) -> float:
        """Time since it was started, told to stop, or last took a step or an update."""
        return time.monotonic() - self._last_sign

    def summarize(self) -> JobSummary:
        """Describe it in a line."""
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
        """Describe it in full."""
        with self._lock:
            return self._describe()

    def _describe(self) -> TrainingStatus:
        silence = self._silence.describe(self._current_timesteps)
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
            warnings=[*self.plan.warnings, *([] if silence is None else [silence])],
            model_name=self._model_name,
            sha256=self._sha256,
            elapsed_seconds=elapsed_seconds,
            eta_seconds=self._compute_eta(elapsed_seconds),
            verdict=self._judge(silence),
            evaluation=self._evaluation,
            best_evaluation=self._best_evaluation,
            ended_by=self._ended_by if self._status.is_final else None,
            tensorboard_run=self.tensorboard_run,
            config=self.config,
        )

    def _judge(self, silence: str | None) -> Verdict:
        return judge(
            Evidence(
                self._status,
                self.config,
                self.history.list_values(_REWARD_KEY, _MAX_JUDGED_POINTS),
                [row.mean_reward for row in self.history.list_evaluations()],
                self.plan.reward_threshold,
                silence,
                self._metrics,
            )
        )

    def start(self) -> bool:
        """Turn from queued to running; False if it was stopped before its turn came."""
        with self._lock:
            if self._status is not JobStatus.QUEUED:
                return False
            self._status, self._start_time = JobStatus.RUNNING, datetime.now(UTC)
            self._started = self._last_sign = time.monotonic()
            self.history.append("job.status", {"status": self._status})
            return True

    def stop(self) -> None:
        """End it: at once if it is queued, at the next simulator step or minibatch if it runs.

        :raises ConflictError: If it has finished training already.
        """
        with self._lock:
            if self._outcome in (JobStatus.COMPLETED, JobStatus.FAILED):
                past = f"has {self._outcome}" if self._status.is_final else "has finished training and is being saved"
                raise ConflictError(f"job {self.job_id} {past} already; only training jobs can be stopped.")
            if self._outcome is None:
                self._outcome, self._last_sign = JobStatus.STOPPED, time.monotonic()
            if self._status is JobStatus.QUEUED:
                self._enter(JobStatus.STOPPED)
            elif self._stop_training is not None:
                self._stop_training()

    def end_training(self) -> JobStatus:
        """Decide, once training is over, whether it completed or was stopped; later stops are refused."""
        with self._lock:
            self._outcome = self._outcome or JobStatus.COMPLETED
            return self._outcome

    def finish(self, status: JobStatus, error_message: str | None = None) -> None:
        """Enter a final status; the first one stays."""
        with self._lock:
            if not self._status.is_final:
                self._outcome, self._error_message = status, error_message
                self._enter(status)

    def give_up(self, status: JobStatus, error_message: str) -> None:
        """Enter a final status while the training hangs; should it ever go on, it ends at once."""
        with self._lock:
            if self._stop_training is not None:
                self._stop_training()
        self.finish(status, error_message)

    def _enter(self, final_status: JobStatus) -> None:
        self._status, self._end_time, self._ended = final_status, datetime.now(UTC), time.monotonic()
        self._stop_training = None
        self._ended_by = _find_end(final_status, self._ended_by)
        self._totals.add_end(final_status)
        self.history.append(f"job.{final_status}", self._describe().model_dump(mode="json"))
        self.log(str(final_status), seconds=self._elapsed_seconds)
        self.finished.set()

    def log(self, event: str, **fields: float) -> None:
        """Write what has become of it to the log."""
        names = {"job_id": self.job_id, "env_name": self.config.env_name, "model_name": self.config.model_name}
        logger.info("job %s", event, extra={**names, **fields})

    async def wait_finished(self, timeout_seconds: float) -> bool:
        """Wait, without a thread of its own, until it has ended; return whether it has."""
        deadline = time.monotonic() + timeout_seconds
        while not self.finished.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        return self.finished.is_set()

    def keep_policy(self, model_name: str, sha256: str) -> None:
        """Note where the policy was saved."""
        with self._lock:
            self._model_name, self._sha256 = model_name, sha256

    def attach(self, stop: Callable[[], None]) -> None:
        """Take the function that ends the training; see ``Progress``."""
        with self._lock:
            self._stop_training = stop
            if self._outcome is not None:
                stop()

    def advance(self, current_timesteps: int) -> None:
        """Note the simulator steps taken; see ``Progress``."""
        with self._lock:
            if self._status.is_final:  # a thread that was given up on may go on
                return
            self._totals.add_timesteps(current_timesteps - self._current_timesteps)
            self._current_timesteps, self._last_sign = current_timesteps, time.monotonic()
            if self._last_sign >= self._next_progress:
                self._next_progress = self._last_sign + _PROGRESS_SECONDS
                self.history.replace_progress(self._describe_progress())

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Note the latest metrics; see ``Progress``."""
        with self._lock:
            if self._status.is_final or not metrics:
                return
            self._metrics = {**self._metrics, **metrics}
            self.history.append_metrics(self._current_timesteps, self._elapsed_seconds, metrics)
            if _ZERO_STD_KEY not in metrics:  # these are the last update's, not another rollout's
                return
            warning = self._silence.hear(metrics[_ZERO_STD_KEY], self._current_timesteps)
            if warning is not None:
                self.history.append("job.warning", {"warning": warning})

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Note how the policy does; see ``Progress``."""
        with self._lock:
            if self._status.is_final:
                return
            row = EvaluationRow(**evaluation, elapsed_seconds=self._elapsed_seconds)
            self._evaluation = row
            if self._best_evaluation is None or row.mean_reward > self._best_evaluation.mean_reward:
                self._best_evaluation = row
            self.history.append_evaluation(row)

    def conclude(self, ended_by: EndedBy) -> None:
        """Note why the training ends early; see ``Progress``."""
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
            return 0.0
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    def _compute_eta(self, elapsed_seconds: float) -> float | None:
        if self._status is not JobStatus.RUNNING or self._current_timesteps == 0:
            return None
        n_left = max(0, self.config.total_timesteps - self._current_timesteps)
        most = math.inf if self.config.max_seconds is None else max(0.0, self.config.max_seconds - elapsed_seconds)
        return min(most, elapsed_seconds * n_left / self._current_timesteps)


class _Silence:
    """Counts the rollouts in a row in which nothing told the branches of a group apart."""

    def __init__(self) -> None:
        self._n_rollouts = 0
        self._since_timesteps = 0
        self._was_told = False

    def hear(self, zero_std_fraction: float, timesteps: int) -> str | None:
        """Note a rollout; return what to warn of, once per silence.

        :param zero_std_fraction: Share of its groups without a signal.
        :param timesteps: Simulator steps taken by then.
        """
        if zero_std_fraction < 1.0:
            self._n_rollouts, self._since_timesteps, self._was_told = 0, timesteps, False
            return None
        self._n_rollouts += 1
        warning = None if self._was_told else self.describe(timesteps)
        self._was_told = self._was_told or warning is not None
        return warning

    def describe(self, timesteps: int) -> str | None:
        """Say what to warn of, if there is anything."""
        n_steps = timesteps - self._since_timesteps
        if self._n_rollouts < _SILENT_ROLLOUTS_TO_WARN or n_steps < _SILENT_STEPS_TO_WARN:
            return None
        return (
            f"no signal in the last {self._n_rollouts} rollouts ({n_steps} steps): within every group all "
            "branches earned the same. A rare reward may still be found; else let the reward tell branches apart, "
            "lengthen horizon, or raise group_size."
        )


def _find_end(status: JobStatus, concluded: EndedBy | None) -> EndedBy | None:
    if status is JobStatus.FAILED:
        return None
    return "stop" if status is JobStatus.STOPPED else concluded or "total_timesteps"
