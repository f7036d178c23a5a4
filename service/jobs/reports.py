"""What the worker of a job has reported: the latest figures, and a history of all."""

import time
from collections.abc import Mapping
from typing import Any

from service.jobs.description import describe_progress
from service.jobs.judging.no_signal import NoSignalCounter
from service.jobs.records.history import JobHistory
from service.jobs.records.record import JobState
from service.schemas.jobs import EvaluationRow, FinalEvaluation
from service.schemas.training import TrainConfig

_ZERO_STD_KEY = "rollout/zero_std_group_fraction"
# Nobody sees progress events that come more often.
_PROGRESS_SECONDS = 0.1


class JobReports:
    """Takes what the worker of a job reports. Its job guards it.

    :param state: Has the latest figures.
    :param history: Has all of them.
    """

    def __init__(self, state: JobState, history: JobHistory) -> None:
        self._state, self._history = state, history
        self._no_signal = NoSignalCounter(state.n_silent_rollouts, state.last_signal_timesteps)
        self._next_progress = 0.0

    def add_steps(self, current_timesteps: int, config: TrainConfig) -> int:
        """Note the number of simulator steps taken so far; return how many are new."""
        if current_timesteps < self._state.current_timesteps:
            self.rewind(0)  # the training could not go on from its checkpoint, and began again
        n_new = current_timesteps - self._state.current_timesteps
        self._state.current_timesteps = current_timesteps
        # After training, evaluations give signs of life without new steps.
        if n_new > 0 and time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + _PROGRESS_SECONDS
            self._history.replace_progress(describe_progress(config, self._state))
        return n_new

    def add_metrics(self, metrics: Mapping[str, float], elapsed_seconds: float) -> None:
        """Note metrics.

        :param elapsed_seconds: How long the job had run by then; below as well.
        """
        state = self._state
        state.metrics = {**state.metrics, **metrics}
        self._history.append_metrics(state.current_timesteps, elapsed_seconds, metrics)
        if _ZERO_STD_KEY not in metrics:  # metrics of the last update come without a rollout
            return
        warning = self._no_signal.count_rollout(metrics[_ZERO_STD_KEY], state.current_timesteps)
        state.n_silent_rollouts, state.last_signal_timesteps = (
            self._no_signal.n_rollouts,
            self._no_signal.since_timesteps,
        )
        if warning is not None:
            self._history.append("job.warning", {"warning": warning})

    def add_evaluation(self, evaluation: Mapping[str, Any], elapsed_seconds: float) -> None:
        """Note an evaluation of the policy."""
        self._history.append_evaluation(EvaluationRow(**evaluation, elapsed_seconds=elapsed_seconds))
        self._choose_evaluations()

    def add_final_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Record the evaluation of the policy that will be saved."""
        self._state.final_evaluation = row = FinalEvaluation(**evaluation)
        self._history.append("job.final_evaluation", row.model_dump(mode="json"))

    def warn(self, warning: str) -> None:
        """Note a warning for the client, once: a job that is resumed has reason for the same ones again."""
        if warning in self._state.warnings:
            return
        self._state.warnings.append(warning)
        self._history.append("job.warning", {"warning": warning})

    def rewind(self, timesteps: int) -> None:
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

    def _choose_evaluations(self) -> None:
        evaluations = self._history.list_evaluations()
        self._state.evaluation = evaluations[-1] if evaluations else None
        self._state.best_evaluation = max(evaluations, key=lambda row: row.mean_reward, default=None)
