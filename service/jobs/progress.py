"""The progress of a job: what its worker reports, as latest figures and as a history of all."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from service.jobs.description import describe_progress
from service.jobs.guarded_state import GuardedState
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.totals import JobTotals
from service.schemas.jobs import EndedBy, EvaluationRow, FinalEvaluation, JobCheckpoint
from service.schemas.training import TrainConfig

_ZERO_STD_KEY = "rollout/zero_std_group_fraction"
# More frequent progress events would go unseen.
_PROGRESS_SECONDS = 0.1


class JobProgress:
    """The ``Progress`` of one attempt at a job: takes reports until the job has ended. Safe to use from any thread.

    :param guarded: The job's state and history.
    :param totals: Counts the simulator steps.
    :param checkpoints: Where checkpoints are kept; None keeps none.
    """

    def __init__(
        self,
        job_id: str,
        config: TrainConfig,
        guarded: GuardedState,
        totals: JobTotals,
        checkpoints: CheckpointFolder | None,
    ) -> None:
        self._job_id, self._config = job_id, config
        self._guarded, self._totals, self._checkpoints = guarded, totals, checkpoints
        self._lock, self._state, self._history = guarded.lock, guarded.state, guarded.history
        self._receipts = guarded.receipts  # this attempt's
        self._next_progress = 0.0
        self._stop: Callable[[], None] | None = None

    def attach_stop(self, stop: Callable[[], None]) -> None:
        """Take the function that stops the training, and call it as often as the job was stopped before."""
        with self._lock:
            self._stop = stop
            for _ in range(max(self._state.n_stops, int(self._is_closed))):
                stop()

    def advance(self, current_timesteps: int) -> None:
        """Note the number of simulator steps taken so far."""
        with self._lock:
            if self._is_closed:  # an abandoned thread may continue
                return
            state = self._state
            self._guarded.clock.wake()
            state.elapsed_seconds = self._guarded.clock.elapsed_seconds
            if current_timesteps > 0:
                self._guarded.take_end_back()
            if state.end_before is not None:
                return
            begins_again = current_timesteps < state.current_timesteps  # it could not go on from its checkpoint
            if begins_again:
                state.checkpoint = None
                self._guarded.rewind(0)
            n_new = current_timesteps - state.current_timesteps
            state.current_timesteps = current_timesteps
            # After training, evaluations give signs of life without new steps.
            if n_new > 0 and time.monotonic() >= self._next_progress:
                self._next_progress = time.monotonic() + _PROGRESS_SECONDS
                self._history.replace_progress(describe_progress(self._config, state))
            self._totals.add_timesteps(n_new)
        if begins_again and self._checkpoints is not None:
            with suppress(OSError):
                self._checkpoints.delete(self._job_id)

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Note the latest metrics."""
        with self._lock:
            if self._is_closed or not metrics:
                return
            self._guarded.take_end_back()
            state = self._state
            state.metrics = {**state.metrics, **metrics}
            self._history.append_metrics(state.current_timesteps, self._measure_elapsed(), metrics)
            if _ZERO_STD_KEY in metrics:  # metrics of the last update come without a rollout
                self._guarded.count_rollout(metrics[_ZERO_STD_KEY])

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Note an evaluation of the policy."""
        with self._lock:
            if not self._is_closed:
                self._guarded.take_end_back()
                self._history.append_evaluation(EvaluationRow(**evaluation, elapsed_seconds=self._measure_elapsed()))
                self._guarded.choose_evaluations()

    def publish_final_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Record the evaluation of the policy that will be saved."""
        with self._lock:
            if not self._is_closed:
                self._guarded.take_end_back()
                self._state.final_evaluation = row = FinalEvaluation(**evaluation)
                self._history.append("job.final_evaluation", row.model_dump(mode="json"))

    def publish_checkpoint(self, described: Mapping[str, Any], content: bytes) -> None:
        """Keep a checkpoint, and note it once it is kept; a disk that refuses only ends in a warning."""
        if self._checkpoints is None or self._is_closed:
            return
        try:
            self._checkpoints.write(self._job_id, content)
        except OSError as error:
            kept = self._state.checkpoint
            lost = "what is learned" if kept is None else f"what was learned after step {kept.timesteps:,}"
            self.publish_warning(
                f"no new checkpoint can be kept, so an interruption loses {lost} ({error.strerror}); free some space, "
                "raise GRPO_MAX_MODELS_BYTES or mend the models folder."
            )
            return
        fields = {name: described.get(name) for name in ("timesteps", "exact", "note")}
        created_at = described.get("created_at", datetime.now(UTC))
        with self._lock:
            if not self._is_closed:  # it may have ended while the disk was busy
                self._guarded.take_end_back()
                self._state.checkpoint = JobCheckpoint(**fields, created_at=created_at)

    def publish_warning(self, warning: str) -> None:
        """Note a warning for the client."""
        with self._lock:
            if not self._is_closed:
                self._guarded.warn(warning)

    def publish_ended_by(self, ended_by: EndedBy) -> None:
        """Note the rule that ends the training early."""
        with self._lock:
            if not self._is_closed:
                self._state.ended_by = ended_by

    def stop_training(self) -> None:
        """Stop the training, if it has begun; the job calls this while it holds the lock."""
        if self._stop is not None:
            self._stop()

    def forget_training(self) -> None:
        """Forget what stops the training, which is over; the job calls this while it holds the lock."""
        self._stop = None

    @property
    def _is_closed(self) -> bool:
        """Whether the job has ended, so that nothing more is taken."""
        return self._guarded.end is not None

    def _measure_elapsed(self) -> float:
        """Return how long the job had run when the report was made."""
        return self._guarded.clock.elapsed_seconds - self._receipts.age_seconds
