"""End a training before it has taken all of its steps."""

import math
import threading
import time

from grpo import GRPO
from service.schemas.jobs import EndedBy
from service.workers.task import Progress


class StopRules:
    """Ends a training on request, by a rule or when its time is up, and notes the reason.

    :param progress: Receives reports of the training.
    :param max_seconds: Longest time from the start of training; None sets no limit.
    """

    def __init__(self, progress: Progress, max_seconds: float | None) -> None:
        self._progress = progress
        self._max_seconds = math.inf if max_seconds is None else max_seconds
        self._deadline = math.inf
        self._begun = time.monotonic()
        #: Time that the training took before it was interrupted; it counts.
        self.spent_seconds_before = 0.0
        self._model: GRPO | None = None
        # Guards the reason: rules end a training in its own thread, stops come from another.
        self._lock = threading.Lock()
        #: Why the training ends early; None if it does not.
        self.ended_by: EndedBy | None = None
        #: How often the job was told to stop.
        self.n_stops = 0

    def begin(self, model: GRPO) -> None:
        """Start the clock and offer the stop. Call it inside ``learn``, which forgets earlier stops."""
        self._model = model
        self._begun = time.monotonic() - self.spent_seconds_before
        self._deadline = self._begun + self._max_seconds
        self._progress.attach_stop(self._stop)

    @property
    def spent_seconds(self) -> float:
        """Time that the training has taken so far."""
        return time.monotonic() - self._begun

    def report(self) -> None:
        """Report the steps so far."""
        assert self._model is not None, "it has begun"
        self._progress.advance(self._model.num_timesteps)

    def tick(self) -> None:
        """Report the steps so far, and end the training if its time is up."""
        self.report()
        if time.monotonic() >= self._deadline:
            self.end_training("max_seconds")

    def end_training(self, ended_by: EndedBy) -> None:
        """End the training at its next step or minibatch.

        :param ended_by: The rule that ends it; only the first one counts.
        """
        if self._end(ended_by):
            self._progress.publish_ended_by(ended_by)

    def _stop(self) -> None:
        self.n_stops += 1
        self._end("stop")

    def _end(self, ended_by: EndedBy) -> bool:
        """End the training; return whether this is the first reason to."""
        assert self._model is not None, "it has begun"
        with self._lock:
            is_first = self.ended_by is None
            self.ended_by = self.ended_by or ended_by
        self._model.stop()
        return is_first
