"""Decide when to send a request again, and when to stop waiting for a job."""

import math
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from numbers import Integral, Real

import httpx2

from grpo_client.errors import InvalidArgument, JobTimeout

# With these, the server has not begun to do what it was asked.
_BUSY_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
# Beyond this, the caller had better learn that the server is busy.
_MAX_RETRY_AFTER_SECONDS = 120.0
# How long the connection to a job that was followed may be lost: a server that is started again needs less.
_HOLD_SECONDS = 60.0
# httpx2 takes no timeout of 0.
_MIN_TIMEOUT_SECONDS = 0.01


@dataclass(frozen=True)
class Retries:
    """Decides whether to send a request again, and after which pause.

    :param n_max: The most repetitions, at least 0.
    :raises InvalidArgument: If it is below 0, or no whole number.
    """

    n_max: int

    def __post_init__(self) -> None:
        if not isinstance(self.n_max, Integral) or self.n_max < 0:
            raise InvalidArgument(
                f"max_retries={self.n_max!r} is not allowed: it must be a whole number, at least 0, which asks once."
            )

    def find_pause_seconds(self, method: str, outcome: object, n_failed: int, is_patient: bool = False) -> float | None:
        """Return how long to pause before the next attempt; None to make no other.

        :param outcome: The response, or the transport's error.
        :param n_failed: Attempts that failed before this one.
        :param is_patient: Whether to make another however many have failed, unless none is to be made.
        """
        if is_patient:
            n_failed = min(n_failed, self.n_max - 1)
        if n_failed >= self.n_max:
            return None
        if isinstance(outcome, httpx2.Response):
            if outcome.status_code not in _BUSY_STATUSES:
                return None
            asked_seconds = _read_retry_after(outcome)
            return (
                None if asked_seconds > _MAX_RETRY_AFTER_SECONDS else max(asked_seconds, make_pause_seconds(n_failed))
            )
        # The server may have acted on a request whose answer was lost; to read twice does no harm.
        return make_pause_seconds(n_failed) if method == "GET" else None


def make_pause_seconds(n_failed: int) -> float:
    """Draw a pause that doubles with every failure, so that clients that failed together do not return together."""
    n_doublings = min(n_failed, 16)  # after a thousand, the pause would be too large for a float
    return min(_MAX_PAUSE_SECONDS, math.ldexp(_FIRST_PAUSE_SECONDS, n_doublings)) * random.uniform(0.5, 1.0)


def _read_retry_after(response: httpx2.Response) -> float:
    """Return the seconds that the header asks for, in either of its forms; 0 if it is missing or cannot be read."""
    text: str = response.headers.get("Retry-After", "")
    try:
        if text.isdecimal():
            return float(text)
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # a date without a time zone cannot be compared
        return 0.0


class Deadline:
    """The time at which to stop waiting for a job.

    :param timeout_seconds: From now; None for never.
    :raises InvalidArgument: If it is no number.
    """

    def __init__(self, timeout_seconds: float | None) -> None:
        if timeout_seconds is not None and (not isinstance(timeout_seconds, Real) or math.isnan(timeout_seconds)):
            raise InvalidArgument(
                f"timeout_seconds={timeout_seconds!r} is not allowed: it must be a number, or None to wait to the end."
            )
        self._timeout_seconds = math.inf if timeout_seconds is None else timeout_seconds
        self._end = time.monotonic() + self._timeout_seconds

    @property
    def is_set(self) -> bool:
        """Whether it ever passes."""
        return math.isfinite(self._end)

    @property
    def has_passed(self) -> bool:
        """Whether it is time to stop."""
        return time.monotonic() >= self._end

    def make_error(self, job_id: str, kind: str = "job") -> JobTimeout:
        """Make the exception for what was not over in time."""
        return JobTimeout(job_id, self._timeout_seconds, kind)

    def limit(self, seconds: float) -> float:
        """Cut a time to what is left until then, in seconds, above 0."""
        return max(_MIN_TIMEOUT_SECONDS, min(seconds, self._end - time.monotonic()))


class Attempts:
    """The attempts to open a stream of events since the last event: few, or many in a time once there was one.

    :param retries: Says how many.
    """

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._n_failed, self._has_followed, self._patience = 0, False, Deadline(0.0)

    def note_success(self) -> None:
        """Note an event."""
        self._n_failed, self._has_followed = 0, True

    def find_pause_seconds(self, outcome: object) -> float | None:
        """Count a failed attempt, and return how long to pause before the next one; None to make no other.

        :param outcome: The response, the transport's error, or None for a stream that ended early.
        """
        if self._n_failed == 0 and self._has_followed:
            self._patience = Deadline(_HOLD_SECONDS)
        is_patient = not self._patience.has_passed
        pause_seconds = self._retries.find_pause_seconds("GET", outcome, self._n_failed, is_patient)
        self._n_failed += 1
        return pause_seconds
