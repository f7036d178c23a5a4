"""Time as the limits of evaluations count it: a busy machine does not make them shorter."""

import time
from pathlib import Path
from typing import NamedTuple

from grpo_core.process import read_delay

# Environments may wait, for a robot or another process, and then the processor's time stands still.
_LEAST_SHARE = 0.2
# Seconds between two looks at how much work has gone by: one takes some 30 microseconds.
_LEAST_PAUSE = 0.001
# How long this thread has run, and has waited for a processor.
_SCHEDULER_FILE = Path("/proc/thread-self/schedstat")


class WorkTime(NamedTuple):
    """A reading of the clocks, in seconds.

    :param processor: By this thread's processor time.
    :param clock: By the clock.
    :param delays: How long others have kept this thread from the processor, read before the clock and after it: system
        calls are where they take it, those included.
    """

    processor: float
    clock: float
    delays: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def now(cls, works_elsewhere: bool = False) -> "WorkTime":
        """Read the clocks.

        :param works_elsewhere: Whether this thread only waits for others; then the clock counts alone.
        """
        if works_elsewhere:
            return cls(clock := time.monotonic(), clock)
        before, clock = read_delay(_SCHEDULER_FILE), time.monotonic()
        return cls(time.thread_time(), clock, (before, read_delay(_SCHEDULER_FILE)))

    def since(self, earlier: "WorkTime") -> float:
        """Return how many seconds of work have gone by since an earlier reading.

        That is at least a fifth of the clock's, but for those in which others had the processor.
        """
        own = self.clock - earlier.clock - (self.delays[1] - earlier.delays[0])
        return max(self.processor - earlier.processor, _LEAST_SHARE * own)


class TimeBudget(NamedTuple):
    """How long something after a training may take: a share of the training's time, within bounds.

    :param share: Of the training's time, in [0, 1].
    :param least_seconds: What it may take after the shortest training.
    :param most_seconds: What it may take after the longest one.
    """

    share: float
    least_seconds: float
    most_seconds: float

    def compute_seconds(self, training_seconds: float) -> float:
        """Compute how many seconds it may take."""
        return min(self.most_seconds, max(self.least_seconds, self.share * training_seconds))


class Stopwatch:
    """Tells how much work has gone by; cheap, for it is asked at every step.

    :param begun: When it was started.
    :param works_elsewhere: As in ``WorkTime.now``.
    """

    def __init__(self, begun: WorkTime, works_elsewhere: bool = False) -> None:
        self._begun, self._works_elsewhere = begun, works_elsewhere
        self._latest, self._work = begun, 0.0

    def is_past(self, seconds: float) -> bool:
        """Return whether this many seconds of work have gone by."""
        passed = time.monotonic() - self._latest.clock
        if self._work + passed < seconds:  # no more work is done in a second than a second's
            return False
        if passed >= _LEAST_PAUSE:
            self._latest = WorkTime.now(self._works_elsewhere)
            self._work = self._latest.since(self._begun)
        return self._work >= seconds
