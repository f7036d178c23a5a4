"""Note which reports of a task have been taken, so that another server can go on with it without a gap."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class Receipts:
    """Counts the reports of a task that outlives the server. Safe to use from any thread.

    What a report says and its number are written down together: a server that goes on with the task asks for the
    reports after the last one that was written down, and sees each of them once.

    :param attempt: Counts how often the task was begun again; another attempt's reports do not count for this one.
    :param n_taken: Reports that an earlier server has taken and written down.
    """

    def __init__(self, attempt: int = 0, n_taken: int = 0) -> None:
        self.attempt = attempt
        self._n_taken = self._n_written = n_taken
        #: Age of the report that is being taken, in seconds; 0 between reports.
        self.age_seconds = 0.0
        #: How long ago the task had ended when the server learned of it, in seconds.
        self.end_age_seconds = 0.0
        # Held while a report is taken, and while a record is made of the reports.
        self._lock = threading.Lock()

    @property
    def n_taken(self) -> int:
        """Number of the last report that was taken."""
        return self._n_taken

    @property
    def n_written(self) -> int:
        """Number of the last report that is on the disk, with all before it."""
        return self._n_written

    @contextmanager
    def take(self, number: int, age_seconds: float) -> Iterator[None]:
        """Take a report: what it says is noted before the context ends.

        :param number: Its number.
        :param age_seconds: How long ago it was made.
        """
        with self._lock:
            self.age_seconds = age_seconds
            try:
                yield
            finally:
                self._n_taken, self.age_seconds = number, 0.0

    def hold(self) -> AbstractContextManager[object]:
        """Take no report until the context ends."""
        return self._lock

    def note_written(self, number: int) -> None:
        """Note that everything is on the disk up to a report."""
        self._n_written = number
