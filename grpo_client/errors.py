"""The exceptions of this package."""

from http import HTTPStatus
from typing import TYPE_CHECKING

import httpx2

from grpo_client.proxies import describe_proxy

if TYPE_CHECKING:
    from grpo_client.answers.jobs import TrainingStatus

_MAX_DETAIL_CHARS = 500


class GRPOError(Exception):
    """Every error of this package."""


class InvalidArgument(GRPOError, ValueError):
    """An argument cannot be used; nothing was sent."""


class MissingPackage(GRPOError, ImportError):
    """Something optional needs a package that is not installed."""


class FileProblem(GRPOError, OSError):
    """A file on this machine cannot be read or written."""


class ServerUnreachable(GRPOError):
    """No answer came, or one that a GRPO server would not send."""


class ApiError(GRPOError):
    """The server refused a request.

    :param status: HTTP status.
    :param detail: What is wrong and, where there is one, the remedy.
    :param problem_type: The kind of error, such as ``urn:grpo:problem:not-found``; None if a proxy refused.
    :param request_id: The id to look for in the server's log; None if a proxy refused.
    """

    def __init__(self, status: int, detail: str, problem_type: str | None, request_id: str | None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.problem_type = problem_type
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.detail} (HTTP {self.status})"


class NotFound(ApiError):
    """There is no such job, model or environment."""


class Conflict(ApiError):
    """The request contradicts the state of a job or a model."""


class InvalidRequest(ApiError):
    """A field of the request is unknown, or its value does not fit."""


class Busy(ApiError):
    """The server was still busy after ``max_retries``."""


class JobFailed(GRPOError):
    """The job failed, or the server's shutdown stopped it.

    :param status: Its final status.
    """

    def __init__(self, status: "TrainingStatus") -> None:
        super().__init__(f"job {status.job_id} {status.status}: {status.error_message}")
        self.status = status


class JobTimeout(GRPOError):
    """The job, or the sweep, was not over in time; it goes on.

    :param job_id: Its id.
    :param timeout_seconds: How long it was waited for.
    :param kind: What it is, for the message.
    """

    def __init__(self, job_id: str, timeout_seconds: float, kind: str = "job") -> None:
        super().__init__(
            f"{kind} {job_id} is not over after {timeout_seconds:g} s; it goes on, and can be waited for again."
        )
        self.job_id = job_id


_KINDS: dict[int, type[ApiError]] = {
    HTTPStatus.BAD_REQUEST: InvalidRequest,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: InvalidRequest,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: InvalidRequest,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidRequest,
    HTTPStatus.TOO_MANY_REQUESTS: Busy,
    HTTPStatus.SERVICE_UNAVAILABLE: Busy,
}


def check_response(outcome: object) -> httpx2.Response:
    """Return a response that is a success.

    :param outcome: The response, or the transport's error.
    :raises ServerUnreachable: If no answer came.
    :raises ApiError: If the server refused.
    """
    if isinstance(outcome, httpx2.Response) and outcome.is_success:
        return outcome
    raise make_error(outcome)


def make_error(outcome: object) -> GRPOError:
    """Make the exception for a refusal, a transport's error or a stream that ended early.

    :param outcome: The response, the error, or None for the stream.
    """
    if isinstance(outcome, httpx2.Response):
        return _make_api_error(outcome)
    if isinstance(outcome, httpx2.RequestError):
        return ServerUnreachable(
            f"no answer{_name_server(outcome)} ({type(outcome).__name__}: {outcome}); is the server running "
            f"there?{describe_proxy(outcome)}"
        )
    return ServerUnreachable("the stream of events ended early, again and again; is the server shutting down?")


def _name_server(error: httpx2.RequestError) -> str:
    """Name the server that was asked, without a password in its address; empty if none was asked yet."""
    try:
        url = error.request.url
    except RuntimeError:  # it was never sent
        return ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f" from {url.scheme}://{host}" + ("" if url.port is None else f":{url.port}")


def _make_api_error(response: httpx2.Response) -> ApiError:
    try:
        problem = response.json()
    except (ValueError, RecursionError):  # a proxy's page, for example
        problem = None
    if response.next_request is not None:
        problem = {"detail": _describe_redirect(response.next_request.url)}
    elif not isinstance(problem, dict):
        problem = {"detail": response.text.strip()[:_MAX_DETAIL_CHARS] or response.reason_phrase}
    return _KINDS.get(response.status_code, ApiError)(
        response.status_code,
        str(problem.get("detail")),
        problem.get("type"),
        response.headers.get("X-Request-ID"),
    )


def _describe_redirect(url: httpx2.URL) -> str:
    """Say where a redirect leads to, without a password, and without a query, which may hold a token."""
    target = url.copy_with(userinfo=b"", query=None, fragment=None)
    return f"the request is sent on to {target}, which is not followed; if the GRPO server is there, set base_url to it"
