"""Totals over all jobs since the server started, including those it has forgotten."""

import threading
from collections import Counter

from service.schemas.jobs import JobStatus


class JobTotals:
    """Counters that only grow. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_timesteps = 0
        self._n_ended = Counter(dict.fromkeys((status for status in JobStatus if status.is_final), 0))

    @property
    def n_timesteps(self) -> int:
        """Simulator steps taken by all jobs."""
        return self._n_timesteps

    @property
    def n_ended(self) -> dict[JobStatus, int]:
        """Number of ended jobs, by final status."""
        with self._lock:
            return dict(self._n_ended)

    def add_timesteps(self, n_timesteps: int) -> None:
        """Count simulator steps."""
        with self._lock:
            self._n_timesteps += n_timesteps

    def add_end(self, final_status: JobStatus) -> None:
        """Count an ended job."""
        with self._lock:
            self._n_ended[final_status] += 1
