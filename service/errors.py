"""Errors that clients see. They know no HTTP framework; ``http.problems`` turns them into answers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

# Limit on the text of an environment's exception: a few lines are read, and some hold a whole observation.
_MAX_ERROR_CHARS = 500
_MAX_NOTE_CHARS = 200
# Two names or more behind slashes, but not the address of a page.
_PATH = re.compile(r"(?<![\w./])(?!(?<=:)//\w)(?:[A-Za-z]:)?(?:[/\\]+[\w.@+~-]+){2,}")


class Problem(NamedTuple):
    """A kind of error, for programs to tell apart.

    :param slug: Its name in ``urn:grpo:problem:<slug>``; never changes.
    :param title: The same in words.
    """

    slug: str
    title: str


class ServiceError(Exception):
    """A refusal that is explained to the client.

    :param detail: One or two sentences: the value, the rule, the remedy.
    """

    problem = Problem("refused", "The request is refused")
    status_code = 400
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidFieldsError(ServiceError):
    """The request has invalid fields.

    :param violations: What is wrong, in the form of pydantic's errors.
    """

    problem = Problem("invalid-fields", "The request has invalid fields")
    status_code = 422

    def __init__(self, violations: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(self.problem.title)
        self.violations = violations


class InvalidRequestError(ServiceError):
    """The request is well formed but names something that does not exist or does not fit."""

    problem = Problem("invalid-request", "The request does not fit")


class NotFoundError(ServiceError):
    """There is no such job, model or environment."""

    problem = Problem("not-found", "There is no such job, model or environment")
    status_code = 404


class ConflictError(ServiceError):
    """The request contradicts the state of a job or a model file.

    :param is_passing: Whether the same request may succeed in a moment, for example once a name is free.
    """

    problem = Problem("conflict", "The request contradicts the state of a job or model")
    status_code = 409

    def __init__(self, detail: str, is_passing: bool = False) -> None:
        super().__init__(detail)
        self.is_passing = is_passing


class PreconditionFailedError(ServiceError):
    """The request is meant for another version of a file than the one that is there."""

    problem = Problem("precondition-failed", "The file is not the one that the request is meant for")
    status_code = 412


class TooLargeError(ServiceError):
    """The request asks for more than the server gives at once."""

    problem = Problem("too-large", "The request is too large")
    status_code = 413


class ReadOnlyError(ServiceError):
    """The server only serves, and the request would train, write or run an environment."""

    problem = Problem("read-only", "This server is a read-only replica")
    status_code = 403


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
    """The maximum number of event streams is open."""

    problem = Problem("too-many-streams", "Too many event streams are open")
    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "10"}


class NotInstalledError(ServiceError):
    """The server lacks an optional package."""

    problem = Problem("not-installed", "The server lacks an optional package")
    status_code = 501


class StorageError(ServiceError):
    """The disk refuses to store a file."""

    problem = Problem("storage", "The file cannot be stored on the disk")
    status_code = 507


class StorageLowError(ServiceError):
    """There is too little room, on the disk or in the models folder, to start something that will be saved."""

    problem = Problem("storage-low", "The server has too little room for models")
    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}


class ClusterUnavailableError(ServiceError):
    """The machines that run tasks cannot be reached, or one was lost under a task."""

    problem = Problem("cluster-unavailable", "The cluster cannot be reached")
    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "10"}


class NotReadyError(ServiceError):
    """The server cannot save models or run jobs."""

    problem = Problem("not-ready", "The server is not ready")
    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


def printable(text: str, max_chars: int = 100) -> str:
    """Shorten text of a client or of foreign code, and escape what is not ASCII, for answers and logs."""
    return text[:max_chars].encode("ascii", "backslashreplace").decode()


def describe_error(error: BaseException) -> str:
    """Describe an error of foreign code to a client, with its notes and without the server's paths."""
    try:
        # An OSError's text ends with the path; strerror holds the reason alone.
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    except BaseException:  # __str__ is foreign code too
        text = "(it cannot describe itself)"
    notes = " ".join(note for note in getattr(error, "__notes__", []) if isinstance(note, str))
    described = f"{type(error).__name__}: {hide_paths(text)}"
    if not notes:
        return printable(described, _MAX_ERROR_CHARS)
    note = hide_paths(notes)[:_MAX_NOTE_CHARS].rstrip(".")
    # Both are shortened before they are escaped, which makes them longer.
    return printable(f"{described[: _MAX_ERROR_CHARS - len(note) - 2].rstrip('.')}. {note}", _MAX_ERROR_CHARS)


def hide_paths(text: str) -> str:
    """Replace the server's paths in a text."""
    return _PATH.sub("<path>", text)
