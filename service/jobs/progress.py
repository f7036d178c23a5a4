"""The progress of a job: what its worker reports, as latest figures and as a history of all."""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from service.jobs.clock import JobClock
from service.jobs.description import describe_progress
from service.jobs.judging.no_signal import NoSignalCounter
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.history import JobHistory
from service.jobs.records.record import JobState
from service.jobs.totals import JobTotals
from service.schemas.jobs import EndedBy, EvaluationRow, FinalEvaluation, JobCheckpoint
from service.schemas.training import TrainConfig
from service.workers.receipts import Receipts

_ZERO_STD_KEY = "rollout/zero_std_group_fraction"
# More frequent progress events would go unseen.
_PROGRESS_SECONDS = 0.1


class JobProgress:
    """The ``Progress`` of one attempt at a job: takes reports until the job has ended. Safe to use from any thread.

    Public methods take the lock, except those that end in ``_locked``: the job calls these while it holds it.

    :param lock: The job's, which guards changes of the state and the history.
    :param is_closed: Tells whether the job has ended, so that nothing more is taken.
    :param state: Has the latest figures.
    :param history: Has all of them.
    :param clock: Measures how long the job has run.
    :param receipts: Says how old the report is that is being taken.
    :param totals: Counts the simulator steps.
    :param checkpoints: Where checkpoints are kept; None keeps none.
    """

    def __init__(
        self,
        job_id: str,
        config: TrainConfig,
        *,
        lock: threading.Lock,
        is_closed: Callable[[], bool],
        state: JobState,
        history: JobHistory,
        clock: JobClock,
        receipts: Receipts,
        totals: JobTotals,
        checkpoints: CheckpointFolder | None,
    ) -> None:
        self._job_id, self._config = job_id, config
        self._lock, self._is_closed = lock, is_closed
        self._state, self._history, self._clock, self._receipts = state, history, clock, receipts
        self._totals, self._checkpoints = totals, checkpoints
        self._no_signal = NoSignalCounter(state.n_silent_rollouts, state.last_signal_timesteps)
        self._next_progress = 0.0
        self._stop: Callable[[], None] | None = None

    def attach_stop(self, stop: Callable[[], None]) -> None:
        """Take the function that stops the training, and call it as often as the job was stopped before."""
        with self._lock:
            self._stop = stop
            for _ in range(max(self._state.n_stops, int(self._is_closed()))):
                stop()

    def advance(self, current_timesteps: int) -> None:
        """Note the number of simulator steps taken so far."""
        with self._lock:
            if self._is_closed():  # an abandoned thread may continue
                return
            state = self._state
            self._clock.wake()
            state.elapsed_seconds = self._clock.elapsed_seconds
            if current_timesteps < state.current_timesteps:
                self.rewind_locked(0)  # the training could not go on from its checkpoint, and began again
            n_new = current_timesteps - state.current_timesteps
            state.current_timesteps = current_timesteps
            # After training, evaluations give signs of life without new steps.
            if n_new > 0 and time.monotonic() >= self._next_progress:
                self._next_progress = time.monotonic() + _PROGRESS_SECONDS
                self._history.replace_progress(describe_progress(self._config, state))
            self._totals.add_timesteps(n_new)

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Note the latest metrics."""
        with self._lock:
            if self._is_closed() or not metrics:
                return
            state = self._state
            state.metrics = {**state.metrics, **metrics}
            self._history.append_metrics(state.current_timesteps, self._measure_elapsed(), metrics)
            if _ZERO_STD_KEY in metrics:  # metrics of the last update come without a rollout
                self._count_rollout(metrics[_ZERO_STD_KEY])

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Note an evaluation of the policy."""
        with self._lock:
            if not self._is_closed():
                self._history.append_evaluation(EvaluationRow(**evaluation, elapsed_seconds=self._measure_elapsed()))
                self._choose_evaluations()

    def publish_final_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Record the evaluation of the policy that will be saved."""
        with self._lock:
            if not self._is_closed():
                self._state.final_evaluation = row = FinalEvaluation(**evaluation)
                self._history.append("job.final_evaluation", row.model_dump(mode="json"))

    def publish_checkpoint(self, described: Mapping[str, Any], content: bytes) -> None:
        """Keep a checkpoint, and note it once it is kept; a disk that refuses only ends in a warning."""
        if self._checkpoints is None or self._is_closed():
            return
        try:
            self._checkpoints.write(self._job_id, content)
        except OSError as error:
            self.publish_warning(
                f"no checkpoint can be kept, so an interruption loses what is learned ({error.strerror}); free some "
                "disk space or mend the models folder."
            )
            return
        fields = {name: described.get(name) for name in ("timesteps", "exact", "note")}
        with self._lock:
            if not self._is_closed():  # it may have ended while the disk was busy
                self._state.checkpoint = JobCheckpoint(**fields, created_at=datetime.now(UTC))

    def publish_warning(self, warning: str) -> None:
        """Note a warning for the client."""
        with self._lock:
            if not self._is_closed():
                self.warn_locked(warning)

    def publish_ended_by(self, ended_by: EndedBy) -> None:
        """Note the rule that ends the training early."""
        with self._lock:
            if not self._is_closed():
                self._state.ended_by = ended_by

    def stop_locked(self) -> None:
        """Stop the training, if it has begun."""
        if self._stop is not None:
            self._stop()

    def detach_stop_locked(self) -> None:
        """Forget what stops the training, which is over."""
        self._stop = None

    def warn_locked(self, warning: str) -> None:
        """Note a warning for the client, once: a job that is resumed would repeat them."""
        if warning in self._state.warnings:
            return
        self._state.warnings.append(warning)
        self._history.append("job.warning", {"warning": warning})

    def rewind_locked(self, timesteps: int) -> None:
        """Forget what came after a number of simulator steps, which will be taken again."""
        state = self._state
        state.repeated_timesteps += max(0, state.current_timesteps - timesteps)
        state.current_timesteps = timesteps
        self._history.rewind(timesteps)
        self._choose_evaluations()
        rows = self._history.list_rows()
        state.metrics = rows[-1].metrics if rows else {}
        state.final_evaluation = None
        state.n_silent_rollouts, state.last_signal_timesteps, self._no_signal = 0, 0, NoSignalCounter()

    def _measure_elapsed(self) -> float:
        """Return how long the job had run when the report was made."""
        return self._clock.elapsed_seconds - self._receipts.age_seconds

    def _count_rollout(self, zero_std_fraction: float) -> None:
        state, counter = self._state, self._no_signal
        warning = counter.count_rollout(zero_std_fraction, state.current_timesteps)
        state.n_silent_rollouts, state.last_signal_timesteps = counter.n_rollouts, counter.since_timesteps
        if warning is not None:
            self._history.append("job.warning", {"warning": warning})

    def _choose_evaluations(self) -> None:
        evaluations = self._history.list_evaluations()
        self._state.evaluation = evaluations[-1] if evaluations else None
        self._state.best_evaluation = max(evaluations, key=lambda row: row.mean_reward, default=None)
