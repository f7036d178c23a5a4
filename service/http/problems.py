"""Error answers: problem details (RFC 9457) whose ``detail`` is one string."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.context import REQUEST_ID
from service.errors import InvalidFieldsError, Problem, ServiceError, printable
from service.http.request_ids import RequestIds, make_urn
from service.schemas.violations import summarize_violations

logger = logging.getLogger("grpo.service")

PROBLEM_TYPE = "application/problem+json"
INTERNAL_ERROR = Problem("internal-error", "The server has a bug")
NO_SUCH_PATH = Problem("no-such-path", "There is no such path")
#: What the paths of the API begin with.
API_ROOTS = frozenset(
    {"train", "training", "sweeps", "inference", "models", "environments", "reward-functions", "health", "metrics"}
)
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_NOT_FOUND_PAGE = Path(__file__).with_name("not_found.html").read_text(encoding="utf-8")
# Starlette's refusals, by status.
_HTTP_PROBLEMS = {
    404: NO_SUCH_PATH,
    405: Problem("method-not-allowed", "The path does not accept this method"),
}


class Refusal(NamedTuple):
    """The arguments of an ``error_response`` given in place of the route's answer."""

    problem: Problem
    status_code: int
    detail: str
    headers: dict[str, str] | None = None


def error_response(
    problem: Problem, status_code: int, detail: str, headers: Mapping[str, str] | None = None, **extra: Any
) -> JSONResponse:
    """Build an error answer; all have the same shape."""
    content = describe_problem(problem, status_code, detail, make_urn(_get_request_id()))
    return JSONResponse({**content, **extra}, status_code, headers, PROBLEM_TYPE)


def describe_problem(problem: Problem, status_code: int, detail: str, instance: str) -> dict[str, Any]:
    """Return the fields that all problem details have.

    :param instance: The request's id as a URN.
    """
    return {
        "type": f"urn:grpo:problem:{problem.slug}",
        "title": problem.title,
        "status": status_code,
        "detail": detail,
        "instance": instance,
    }


def report_bug(error: Exception, path: str) -> JSONResponse:
    """Log an unexpected error; the answer reveals only the request's id, to find it in the log."""
    request_id = _get_request_id()
    logger.error("incident %s on %s", request_id, printable(path), exc_info=error)
    return error_response(INTERNAL_ERROR, 500, "internal error", id=request_id)


def _get_request_id() -> str:
    return REQUEST_ID.get() or RequestIds().choose(None)


NOT_UTF8 = "the body is not valid JSON: it is not UTF-8 text"


def unreadable_body(detail: str) -> JSONResponse:
    """Build the answer to a body that cannot be parsed."""
    return _answer_violations(detail, [{"field": "", "message": detail}])


def _answer_violations(detail: str, errors: list[dict[str, str]]) -> JSONResponse:
    return error_response(InvalidFieldsError.problem, InvalidFieldsError.status_code, detail, errors=errors)


def install_error_handlers(app: FastAPI) -> None:
    """Answer domain errors, validation errors and HTTP errors in the same shape."""

    @app.exception_handler(ServiceError)
    async def on_service_error(request: Request, error: ServiceError) -> JSONResponse:
        return error_response(error.problem, error.status_code, error.detail, error.headers)

    @app.exception_handler(InvalidFieldsError)
    async def on_invalid_fields(request: Request, error: InvalidFieldsError) -> JSONResponse:
        return _answer_violations(*summarize_violations(error.violations))

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer_violations(*summarize_violations(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404 and _is_for_people(request):
            return HTMLResponse(_NOT_FOUND_PAGE, 404)
        if isinstance(error.__cause__, InvalidFieldsError):  # raised while the body was read
            return _answer_violations(*summarize_violations(error.__cause__.violations))
        # FastAPI answers 400 to JSON that Python cannot hold: numbers of thousands of digits, endless nesting.
        if isinstance(error.__cause__, UnicodeDecodeError):
            return unreadable_body(NOT_UTF8)
        if isinstance(error.__cause__, ValueError | RecursionError):
            return unreadable_body("the body contains a number that is too long or lists nested too deep")
        other = Problem(f"http-{error.status_code}", HTTPStatus(error.status_code).phrase)
        problem = _HTTP_PROBLEMS.get(error.status_code, other)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_list_methods(request))
        return error_response(problem, error.status_code, _describe_http_error(error, headers), headers)


def _is_for_people(request: Request) -> bool:
    """Return whether a browser asks for a page, and not for a path of the API, whose answers are all JSON."""
    if request.method not in ("GET", "HEAD") or "text/html" not in request.headers.get("accept", ""):
        return False
    return request.url.path.split("/")[1] not in API_ROOTS


def _list_methods(request: Request) -> list[str]:
    """List the methods of a path; the error itself names those of its first route alone."""
    return [
        method
        for method in _METHODS
        # HEAD is answered wherever GET is.
        if any(
            route.matches({**request.scope, "method": "GET" if method == "HEAD" else method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def _describe_http_error(error: HTTPException, headers: Mapping[str, str]) -> str:
    if error.status_code == 404:
        return "there is no such path; GET / lists the main ones, and /docs shows them all."
    if error.status_code == 405:
        allowed = headers.get("Allow", "")
        return f"this path does not accept the request's method; use {allowed}."
    return str(error.detail)
