"""What a call or a wait takes, step by step, without any input or output of its own.

A generator yields what is to be done next and is sent what came of it, so that the synchronous and the asynchronous
client share every decision: when to ask again, for how long to pause, where to go on in a stream of events.
"""

import math
import random
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import count
from typing import Any, NamedTuple, TypeVar

import httpx2

from grpo_client import calls
from grpo_client.answers import JobEvent, TrainingStatus
from grpo_client.calls import Call
from grpo_client.errors import GRPOError, JobFailed, JobTimeout, ServerUnreachable, make_api_error

T = TypeVar("T")

LATEST = "latest"
# With these the server has not begun to do what it was asked.
_BUSY_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
# Who is told to come back later than this had better hear that.
_MAX_RETRY_AFTER_SECONDS = 120.0
# The server sends a comment every 15 s; a stream that is silent for three times as long is dead.
_SILENCE_SECONDS = 45.0
# How long a stream may be silent before the time to wait is looked at.
_DEADLINE_CHECK_SECONDS = 2.0
_POLL_SECONDS = 1.0


class Send(NamedTuple):
    """Send a request; a response or the error of the transport comes of it."""

    call: Call[Any]


class Pause(NamedTuple):
    """Do nothing for a while."""

    seconds: float


class Listen(NamedTuple):
    """Open a stream of events, in the place of one that is open; a response or an error comes of it."""

    call: Call[httpx2.Response]


class Receive(NamedTuple):
    """Wait for the next event of the open stream; None comes at its end, or an error."""


Step = Send | Pause | Listen | Receive | JobEvent
Steps = Generator[Step, Any, T]


@dataclass(frozen=True)
class Retries:
    """When to ask again.

    :param n_max: How often at most.
    """

    n_max: int = 5

    def __post_init__(self) -> None:
        if self.n_max < 0:
            raise ValueError(f"max_retries={self.n_max} is not allowed: it must be at least 0, which asks once.")

    def find_pause_seconds(self, method: str, outcome: object, n_failed: int) -> float | None:
        """Say how long to wait before asking again; None if it would not help.

        :param outcome: The response, or the transport's error.
        :param n_failed: How often it was in vain already.
        """
        if n_failed >= self.n_max:
            return None
        if isinstance(outcome, httpx2.Response):
            if outcome.status_code not in _BUSY_STATUSES:
                return None
            asked_seconds = _read_retry_after(outcome)
            return (
                None if asked_seconds > _MAX_RETRY_AFTER_SECONDS else max(asked_seconds, make_pause_seconds(n_failed))
            )
        # A request that was lost on the way may have been acted upon; reading twice does no harm.
        return make_pause_seconds(n_failed) if method == "GET" else None


def make_pause_seconds(n_failed: int) -> float:
    """Draw a pause that doubles with every failure, so that clients who failed together do not return together."""
    return min(_MAX_PAUSE_SECONDS, math.ldexp(_FIRST_PAUSE_SECONDS, n_failed)) * random.uniform(0.5, 1.0)


def _read_retry_after(response: httpx2.Response) -> float:
    """Return the seconds that the header asks for, in either of its forms; 0 without one that can be read."""
    text: str = response.headers.get("Retry-After", "")
    try:
        if text.isdecimal():
            return float(text)
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # a date without a time zone cannot be compared
        return 0.0


def attempt(call: Call[T], retries: Retries) -> Steps[T]:
    """Make a call, and again where that may help.

    :raises ServerUnreachable: If no answer came.
    :raises ApiError: If the server refused.
    """
    for n_failed in count():
        outcome = yield Send(call)
        pause_seconds = retries.find_pause_seconds(call.method, outcome, n_failed)
        if pause_seconds is None:
            return call.parse(_accept(outcome))
        yield Pause(pause_seconds)
    raise AssertionError("count() does not end")


def _accept(outcome: object) -> httpx2.Response:
    """Return an answer that grants what was asked for, and raise whatever else came of a request."""
    if isinstance(outcome, httpx2.Response) and outcome.is_success:
        return outcome
    raise _explain(outcome)


def _explain(outcome: object) -> GRPOError:
    """Turn what came of a request in vain, or of a stream, into an exception."""
    if isinstance(outcome, httpx2.Response):
        return make_api_error(outcome)
    if isinstance(outcome, Exception):
        return ServerUnreachable(f"no answer ({type(outcome).__name__}: {outcome}); is the server running?")
    return ServerUnreachable("the stream of events ended early, again and again; is the server shutting down?")


class Deadline:
    """When waiting for a job ends.

    :param timeout_seconds: From now; None never.
    """

    def __init__(self, timeout_seconds: float | None) -> None:
        self._timeout_seconds = timeout_seconds
        self._end = None if timeout_seconds is None else time.monotonic() + timeout_seconds

    def check(self, job_id: str) -> None:
        """Raise ``JobTimeout`` once it has passed."""
        if self._end is not None and time.monotonic() >= self._end:
            assert self._timeout_seconds is not None
            raise JobTimeout(job_id, self._timeout_seconds)

    def limit(self, seconds: float) -> float:
        """Return as many of these seconds as are left, and a moment at least."""
        return seconds if self._end is None else max(0.01, min(seconds, self._end - time.monotonic()))

    @property
    def is_set(self) -> bool:
        """Whether it ever passes."""
        return self._end is not None


def follow(job_id: str, after: int, timeout_seconds: float | None, retries: Retries) -> Steps[None]:
    """Tell the events of a job until its last one, through dropped connections.

    :param after: Id of an event; only later ones are told.
    :param timeout_seconds: How long to follow it; None to its end.
    :raises JobTimeout: If it is not over then.
    :raises ApiError: If there is no such job, or the server refuses.
    :raises ServerUnreachable: If ``retries`` in a row brought nothing.
    """
    deadline = Deadline(timeout_seconds)
    if job_id == LATEST:  # which may be another job when the stream is opened again
        job_id = (yield from attempt(calls.get_status(job_id), retries)).job_id
    n_failed = 0
    silence_seconds = _DEADLINE_CHECK_SECONDS if deadline.is_set else _SILENCE_SECONDS
    while True:
        outcome = yield Listen(calls.listen(job_id, after, deadline.limit(silence_seconds)))
        if isinstance(outcome, httpx2.Response) and outcome.status_code == HTTPStatus.NOT_FOUND:
            yield from _poll(job_id, deadline, retries)  # a server without events, if it knows the job
            return
        while isinstance(outcome, httpx2.Response) and outcome.is_success:
            received = yield Receive()
            if not isinstance(received, httpx2.ServerSentEvent):
                outcome = received
                break
            event = _read_event(received)
            after, n_failed = event.event_id, 0
            yield event
            if event.is_terminal:
                return
            deadline.check(job_id)
        deadline.check(job_id)
        if isinstance(outcome, httpx2.ReadTimeout) and deadline.is_set:
            continue
        pause_seconds = retries.find_pause_seconds("GET", outcome, n_failed)
        if pause_seconds is None:
            raise _explain(outcome)
        n_failed += 1
        yield Pause(deadline.limit(pause_seconds))


def _read_event(received: httpx2.ServerSentEvent) -> JobEvent:
    try:
        payload = received.json()
        event_id = int(received.id)
    except ValueError as error:
        raise GRPOError(f"the event {received.event!r} with the id {received.id!r} cannot be read.") from error
    return JobEvent(event_id, received.event, payload if isinstance(payload, dict) else {})


def _poll(job_id: str, deadline: Deadline, retries: Retries) -> Steps[None]:
    """Make up the events of a job from its status, asked now and then."""
    event_ids = count(1)
    before: TrainingStatus | None = None
    while True:
        status = yield from attempt(calls.get_status(job_id), retries)
        for name, payload in _compare(before, status):
            yield JobEvent(next(event_ids), name, payload)
        if status.is_final:
            return
        deadline.check(job_id)
        before = status
        yield Pause(deadline.limit(_POLL_SECONDS))


def _compare(before: TrainingStatus | None, now: TrainingStatus) -> Iterator[tuple[str, dict[str, Any]]]:
    """List what happened between two looks at a job, as the server's events would tell it."""
    if now.is_final:
        yield f"job.{now.status}", now.to_json()
        return
    if before is None or before.status != now.status:
        yield "job.status", {"status": now.status}
    for warning in now.warnings[0 if before is None else len(before.warnings) :]:
        yield "job.warning", {"warning": warning}
    if before is None or before.current_timesteps != now.current_timesteps:
        names = ("progress", "current_timesteps", "total_timesteps", "elapsed_seconds", "eta_seconds")
        yield "job.progress", {name: getattr(now, name) for name in names}
    if now.metrics and (before is None or before.metrics != now.metrics):
        yield (
            "job.metrics",
            {"timesteps": now.current_timesteps, "elapsed_seconds": now.elapsed_seconds, "metrics": now.metrics},
        )


def conclude(status: TrainingStatus) -> TrainingStatus:
    """Return the final status of a job that did not fail.

    :raises JobFailed: If it did.
    """
    if status.status == "failed":
        raise JobFailed(status)
    return status
