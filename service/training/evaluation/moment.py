"""Time as the limits of evaluations count it: a busy machine does not make them shorter."""

import time
from pathlib import Path
from typing import NamedTuple

# Environments may wait, for a robot or another process, and then the processor's time stands still.
_LEAST_SHARE = 0.2
# Linux: nanoseconds that this thread has run, and that it has waited for a processor, and how often it has run.
_SCHEDULER_FILE = Path("/proc/thread-self/schedstat")


class Moment(NamedTuple):
    """A point in time, in seconds.

    :param processor: By this thread's processor time.
    :param clock: By the clock.
    :param delays: How long others have kept this thread from the processor, read before the clock and after it: system
        calls are where they take it, those included.
    """

    processor: float
    clock: float
    delays: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def now(cls, works_elsewhere: bool = False) -> "Moment":
        """Return this moment.

        :param works_elsewhere: Whether this thread only waits for others; then the clock counts alone.
        """
        if works_elsewhere:
            return cls(clock := time.monotonic(), clock)
        before, clock = _read_delay(), time.monotonic()
        return cls(time.thread_time(), clock, (before, _read_delay()))

    def since(self, earlier: "Moment") -> float:
        """Return how many seconds of work have gone by since an earlier moment.

        That is at least a fifth of the clock's, but for those in which others had the processor.
        """
        own = self.clock - earlier.clock - (self.delays[1] - earlier.delays[0])
        return max(self.processor - earlier.processor, _LEAST_SHARE * own)

    def is_past(self, seconds: float, works_elsewhere: bool = False) -> bool:
        """Return whether so much work has gone by by now; cheap, for it is asked at every step.

        :param works_elsewhere: As in ``now``.
        """
        if time.monotonic() - self.clock < seconds:  # and no more work than that
            return False
        return Moment.now(works_elsewhere).since(self) >= seconds


def _read_delay() -> float:
    try:
        return int(_SCHEDULER_FILE.read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):  # the system does not say
        return 0.0
