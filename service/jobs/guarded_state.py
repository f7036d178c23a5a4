"""A job's state and history behind one lock, for its lifecycle and its worker's reports to change."""

import threading

from service.jobs.clock import JobClock
from service.jobs.judging.no_signal import describe_silence
from service.jobs.records.history import JobHistory
from service.jobs.records.record import CHECKPOINT_GONE, JobEnd, JobState
from service.training.order import UNEVALUATED
from service.workers.receipts import Receipts


class GuardedState:
    """All that changes about a job. Hold ``lock`` to call a method or to change a field; read single fields without it.

    :param state: The job's latest figures, new or from its record.
    :param history: All of its figures.
    """

    def __init__(self, state: JobState, history: JobHistory) -> None:
        self.lock = threading.Lock()
        self.state, self.history = state, history
        self.clock = JobClock(state.elapsed_seconds)
        #: The reports that were taken from its worker, where that may outlive the server.
        self.receipts = Receipts(state.n_restarts, state.n_reports)
        #: Once it is set, nothing changes but the status, which follows as soon as the end is written down.
        self.end: JobEnd | None = None

    def refresh(self) -> JobState:
        """Return the state, brought up to date."""
        self.state.elapsed_seconds, self.state.n_reports = self.clock.elapsed_seconds, self.receipts.n_taken
        return self.state

    def copy_state(self) -> JobState:
        """Return a copy of the state to write down, the end included as soon as it is known."""
        state = JobState(**dict(self.refresh()))
        if self.end is not None:
            state.enter(self.end)
        return state

    def warn(self, warning: str) -> None:
        """Note a warning for the client, once: a job that is resumed would repeat them."""
        if warning in self.state.warnings:
            return
        self.state.warnings.append(warning)
        self.history.append("job.warning", {"warning": warning})

    def begin_again(self) -> None:
        """Prepare for another worker."""
        self.state.n_restarts += 1
        self.receipts = Receipts(self.state.n_restarts)
        self.clock.reset()

    def take_end_back(self) -> None:
        """Forget the end of a resumed job, and what came after its checkpoint, as its worker begins."""
        state, end = self.state, self.state.end_before
        if end is None:
            return
        trains_again = end.is_unsaved and state.begins_at < state.current_timesteps
        is_checkpoint_gone = state.checkpoint is None and CHECKPOINT_GONE in state.warnings
        self.rewind_to_checkpoint()
        state.end_before = state.model_name = state.sha256 = None
        # The policy to come is another one.
        state.warnings = [each for each in state.warnings if not each.startswith((UNEVALUATED, CHECKPOINT_GONE))]
        if trains_again:
            self.warn("its finished policy is not in memory any more, so the job trains again.")
        if is_checkpoint_gone:
            self.warn("its checkpoint is gone or cannot be used here, so the job began again.")

    def rewind_to_checkpoint(self) -> None:
        """Go back to where the checkpoint was taken, or to the start."""
        checkpoint = self.state.checkpoint
        self.rewind(0 if checkpoint is None else checkpoint.timesteps)

    def rewind(self, timesteps: int) -> None:
        """Forget what came after a number of simulator steps, which will be taken again."""
        state = self.state
        state.repeated_timesteps += max(0, state.current_timesteps - timesteps)
        state.current_timesteps = timesteps
        self.history.rewind(timesteps)
        self.choose_evaluations()
        rows = self.history.list_rows()
        state.metrics = rows[-1].metrics if rows else {}
        state.final_evaluation = None
        state.note_signal(0)

    def choose_evaluations(self) -> None:
        """Note the latest and the best evaluation of the history."""
        evaluations = self.history.list_evaluations()
        self.state.evaluation = evaluations[-1] if evaluations else None
        self.state.best_evaluation = max(evaluations, key=lambda row: row.mean_reward, default=None)

    def count_rollout(self, zero_std_fraction: float) -> None:
        """Note whether a rollout had a signal, and warn if that has been missing for long.

        :param zero_std_fraction: Share of its groups without one, in [0, 1].
        """
        state = self.state
        if zero_std_fraction < 1.0:
            state.note_signal(state.current_timesteps)
            return
        state.n_silent_rollouts += 1
        warning = describe_silence(state.n_silent_rollouts, state.n_silent_timesteps)
        if warning is not None and not state.has_warned_of_silence:
            state.has_warned_of_silence = True
            self.history.append("job.warning", {"warning": warning})
