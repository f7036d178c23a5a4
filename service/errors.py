"""What the service refuses, and why. Nothing here knows about HTTP frameworks: ``http.problems`` answers with these."""

import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

_MAX_ERROR_CHARS = 500
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][\w.@+~-]+){2,}")


class Problem(NamedTuple):
    """A kind of error, which programs may tell apart.

    :param slug: Its name, in ``urn:grpo:problem:<slug>``; never changes.
    :param title: The same in words.
    """

    slug: str
    title: str


class ServiceError(Exception):
    """A refusal that the client should hear about.

    :param detail: One sentence or two for the client: the value, the rule, the remedy.
    """

    problem = Problem("refused", "The request is refused")
    status_code = 400
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequestError(ServiceError):
    """The request is well formed but names something that does not exist or does not fit."""

    problem = Problem("invalid-request", "The request does not fit")


class NotFoundError(ServiceError):
    """There is no such job, model or environment."""

    problem = Problem("not-found", "There is no such job, model or environment")
    status_code = 404


class ConflictError(ServiceError):
    """The request contradicts the state of a job or a model file."""

    problem = Problem("conflict", "The request contradicts the state of a job or model")
    status_code = 409


class TooLargeError(ServiceError):
    """The request asks for more at once than the server gives."""

    problem = Problem("too-large", "The request is too large")
    status_code = 413


class QueueFullError(ServiceError):
    """All slots and the queue are taken."""

    problem = Problem("queue-full", "The queue is full")
    status_code = 429
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


class DrainingError(ServiceError):
    """The server is shutting down and takes no new work."""

    problem = Problem("draining", "The server is shutting down")
    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "10"}


class TooManyStreamsError(ServiceError):
    """As many clients listen to events as the server has places for."""

    problem = Problem("too-many-streams", "Too many event streams are open")
    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "10"}


class StorageError(ServiceError):
    """The disk does not take a file."""

    problem = Problem("storage", "The disk does not take the file")
    status_code = 507


class StorageLowError(ServiceError):
    """There is too little space to save what would be made."""

    problem = Problem("storage-low", "The server's disk is nearly full")
    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}


class NotReadyError(ServiceError):
    """The server cannot do all that it is there for."""

    problem = Problem("not-ready", "The server is not ready")
    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


def printable(text: str, max_chars: int = 100) -> str:
    """Shorten what a client or foreign code sent, and spell out what is not ASCII, so that answers and logs keep it."""
    return text[:max_chars].encode("ascii", "backslashreplace").decode()


def describe_error(error: BaseException) -> str:
    """Name an error of foreign code for a client, without the server's paths."""
    try:
        # An OSError's text ends in the path; what went wrong is its strerror.
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    except BaseException:  # foreign code as well
        text = "(it cannot describe itself)"
    return printable(f"{type(error).__name__}: {_PATH.sub('<path>', text)}", _MAX_ERROR_CHARS)
