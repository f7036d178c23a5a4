"""The request and the job that the running code works for."""

from collections.abc import Callable
from contextvars import ContextVar

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
JOB_ID: ContextVar[str | None] = ContextVar("job_id", default=None)
# Returns whether the request's client has left; False where that is not watched.
HAS_LEFT: ContextVar[Callable[[], bool]] = ContextVar("has_left", default=lambda: False)
