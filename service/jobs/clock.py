"""How long a job has run, and when it last moved."""

import time


class JobClock:
    """Measures a job's running time without interruptions. The job's lock guards it.

    :param seconds_before: How long it ran before.
    """

    def __init__(self, seconds_before: float = 0.0) -> None:
        self._seconds_before = seconds_before
        # On the monotonic clock, as the one below: when it was started last, and when it ended.
        self._started_seconds: float | None = None
        self._ended_seconds: float | None = None
        self._last_active_seconds = time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        """How long the job has run."""
        if self._started_seconds is None:
            return self._seconds_before
        ended = time.monotonic() if self._ended_seconds is None else self._ended_seconds
        return max(0.0, self._seconds_before + ended - self._started_seconds)

    @property
    def inactive_seconds(self) -> float:
        """Time since the job was started, was told to stop, or last took a step or an update."""
        return time.monotonic() - self._last_active_seconds

    def start(self) -> None:
        """Measure from now on."""
        self._started_seconds, self._ended_seconds = time.monotonic(), None
        self.wake()

    def wake(self) -> None:
        """Note that the job has moved."""
        self._last_active_seconds = time.monotonic()

    def end(self, age_seconds: float = 0.0) -> None:
        """Stop measuring.

        :param age_seconds: How long ago the job ended.
        """
        self._ended_seconds = time.monotonic() - age_seconds

    def reset(self) -> None:
        """Wait for another start, and keep what was measured."""
        self._seconds_before, self._started_seconds = self.elapsed_seconds, None
