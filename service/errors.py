"""Domain errors and how HTTP answers them: always ``{"detail": "<one string>"}``."""

import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

logger = logging.getLogger("grpo.service")

# A request can break thousands of rules at once; naming ten of them is help enough.
MAX_REPORTED_ERRORS = 10
_MAX_ERROR_CHARS = 500
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][\w.@+~-]+){2,}")


class ServiceError(Exception):
    """A refusal that the client should hear about.

    :param detail: One sentence or two for the client: the value, the rule, the remedy.
    """

    status_code = 400
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequestError(ServiceError):
    """The request is well formed but names something that does not exist or does not fit."""


class NotFoundError(ServiceError):
    """There is no such job or model."""

    status_code = 404


class ConflictError(ServiceError):
    """The request contradicts the state of a job or a model file."""

    status_code = 409


class TooLargeError(ServiceError):
    """The request asks for more at once than the server gives."""

    status_code = 413


class QueueFullError(ServiceError):
    """All slots and the queue are taken."""

    status_code = 429
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


class DrainingError(ServiceError):
    """The server is shutting down and takes no new work."""

    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "10"}


class SlotsLostError(ServiceError):
    """Every slot is held by a job that hangs and cannot be killed."""

    status_code = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}


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


def error_response(
    status_code: int, detail: str, headers: Mapping[str, str] | None = None, **extra: Any
) -> JSONResponse:
    """Build the one shape every error has."""
    return JSONResponse({"detail": detail, **extra}, status_code, headers)


def report_bug(error: Exception, path: str) -> JSONResponse:
    """Log an error that nobody foresaw and answer with nothing but a number to find it by."""
    incident = uuid.uuid4().hex
    logger.error("incident %s on %s", incident, printable(path), exc_info=error)
    return error_response(500, "internal error", id=incident)


def _describe_violation(error: Mapping[str, Any]) -> dict[str, str]:
    if error["type"] == "json_invalid" and not error["loc"]:  # pydantic's own parser tells the place in words
        return {"field": "", "message": f"the body is not valid JSON: {error['ctx']['error']}"}
    if error["type"] == "json_invalid":
        return {"field": "", "message": f"the body is not valid JSON, see character {error['loc'][-1]}"}
    # "body" says nothing to a client; input and context are left out, since they echo what was sent.
    location = [str(part) for part in error["loc"] if part != "body"]
    message = str(error["msg"]).removeprefix("Value error, ")
    return {"field": printable(".".join(location)), "message": printable(message, 300)}


def summarize_violations(errors: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, str]]]:
    """Turn pydantic's violations into one sentence and a short list of field and message."""
    violations = [_describe_violation(error) for error in errors[:MAX_REPORTED_ERRORS]]
    detail = "; ".join(f"{v['field']}: {v['message']}" if v["field"] else v["message"] for v in violations[:3])
    return detail + ("; ..." if len(errors) > 3 else ""), violations


def _unreadable_body(detail: str) -> JSONResponse:
    return error_response(422, detail, errors=[{"field": "", "message": detail}])


def install_error_handlers(app: FastAPI) -> None:
    """Answer domain errors, validation errors and HTTP errors in one shape."""

    @app.exception_handler(ServiceError)
    async def on_service_error(request: Request, error: ServiceError) -> JSONResponse:
        return error_response(error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        detail, violations = summarize_violations(error.errors())
        return error_response(422, detail, errors=violations)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        # FastAPI answers 400 to JSON that Python cannot hold: numbers of thousands of digits, endless nesting.
        if isinstance(error.__cause__, UnicodeDecodeError):
            return _unreadable_body("the body is not valid JSON: it is not UTF-8 text")
        if isinstance(error.__cause__, ValueError | RecursionError):
            return _unreadable_body("the body holds a number that is too long or lists that are nested too deep")
        return error_response(error.status_code, str(error.detail), error.headers)
