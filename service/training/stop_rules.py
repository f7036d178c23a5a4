"""What ends a training before it has taken all of its steps."""

import math
import time

from grpo import GRPO
from service.schemas.jobs import EndedBy
from service.workers.task import Progress


class StopRules:
    """Ends a training when it is told to stop, when a rule says so or when its time is up, and knows which it was.

    :param progress: Told about the training as it goes.
    :param max_seconds: Longest time from the training's start; None for no limit.
    """

    def __init__(self, progress: Progress, max_seconds: float | None) -> None:
        self._progress = progress
        self._max_seconds = math.inf if max_seconds is None else max_seconds
        self._deadline = math.inf
        self._model: GRPO | None = None
        #: What ended the training; None as long as nothing has.
        self.ended_by: EndedBy | None = None

    def begin(self, model: GRPO) -> None:
        """Start the clock, and hand out the stop; once ``learn`` has begun, which forgets stops from before."""
        self._model = model
        self._deadline = time.monotonic() + self._max_seconds
        self._progress.attach(self._stop)

    def pulse(self) -> None:
        """Tell that the training lives, and end it if its time is up."""
        assert self._model is not None, "it has begun"
        self._progress.advance(self._model.num_timesteps)
        if time.monotonic() >= self._deadline:
            self.conclude("max_seconds")

    def conclude(self, ended_by: EndedBy) -> None:
        """End the training at its next step or minibatch, because a rule says so."""
        if self.ended_by is None:
            self._progress.conclude(ended_by)
            self._end(ended_by)

    def _stop(self) -> None:
        self._end("stop")

    def _end(self, ended_by: EndedBy) -> None:
        assert self._model is not None, "it has begun"
        self.ended_by = self.ended_by or ended_by
        self._model.stop()
