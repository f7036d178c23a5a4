"""Time as the limits of evaluations count it: a busy machine does not make them shorter."""

import time
from typing import NamedTuple

# Environments may wait, for a robot or another process, and then the processor's time stands still.
_LEAST_SHARE = 0.2


class Moment(NamedTuple):
    """A point in time, by this thread's processor time and by the clock, in seconds."""

    processor: float
    clock: float

    @classmethod
    def now(cls, works_elsewhere: bool = False) -> "Moment":
        """Return this moment.

        :param works_elsewhere: Whether this thread only waits for others; then the clock counts alone.
        """
        clock = time.monotonic()
        return cls(clock if works_elsewhere else time.thread_time(), clock)

    def since(self, earlier: "Moment") -> float:
        """Return how many seconds of work have gone by since an earlier moment, at least a fifth of the clock's."""
        return max(self.processor - earlier.processor, _LEAST_SHARE * (self.clock - earlier.clock))
