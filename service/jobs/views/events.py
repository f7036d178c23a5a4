"""Streams of job events, sent as they happen."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from service.errors import DrainingError, TooManyStreamsError
from service.jobs.job import Job
from service.jobs.records.history import HistoryEvent

# Most of the server's 256 request slots are kept for short requests.
MAX_OPEN_STREAMS = 100
# Polling a job without news costs a microsecond.
_POLL_SECONDS = 0.1


class EventStreams:
    """The open streams, on one event loop. They need no threads; each reads its job's history at its own pace.

    :param closing: Set when the server begins to shut down; then streams end.
    :param max_open: Maximum number of streams at the same time.
    """

    def __init__(self, closing: threading.Event, max_open: int = MAX_OPEN_STREAMS) -> None:
        self._closing = closing
        self._max_open = max_open
        self._n_open = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Count one more open stream while the context lasts.

        :raises DrainingError: If the server is shutting down.
        :raises TooManyStreamsError: If too many streams are open.
        """
        if self._closing.is_set():
            raise DrainingError("the server is shutting down; reconnect when it is back.")
        if self._n_open >= self._max_open:
            raise TooManyStreamsError(
                f"{self._n_open} event streams are open already; close one, or poll GET /training/{{job_id}}/status "
                "instead."
            )
        self._n_open += 1
        try:
            yield
        finally:
            self._n_open -= 1

    async def follow(self, job: Job, after: int) -> AsyncIterator[HistoryEvent]:
        """Yield a job's events until it has ended, or until the server begins to shut down.

        :param after: Id of the last event received; 0, or an id beyond the latest event, starts from the first event.
        """
        last_id = after if after <= job.history.last_event_id else 0
        while not self._closing.is_set():
            # Read first, so that the events up to the end are still sent below.
            has_ended = job.finished.is_set()
            if job.history.last_event_id > last_id:
                for event in job.history.list_events(last_id):
                    yield event
                    last_id = event.event_id
            if has_ended:
                return
            await asyncio.sleep(_POLL_SECONDS)
