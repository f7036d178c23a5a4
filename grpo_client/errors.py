"""What can go wrong with a call or a job."""

from http import HTTPStatus
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from grpo_client.answers import TrainingStatus

_MAX_DETAIL_CHARS = 500


class GRPOError(Exception):
    """Every error of this package."""


class ServerUnreachable(GRPOError):
    """No answer came, or none of a GRPO server."""


class ApiError(GRPOError):
    """The server refused a request.

    :param status: HTTP status.
    :param detail: What is wrong and, where there is one, the remedy.
    :param problem_type: The kind of error, such as ``urn:grpo:problem:not-found``; None if the server does not say.
    :param request_id: What to look for in the server's log; None if the server does not say.
    """

    def __init__(
        self, status: int, detail: str, problem_type: str | None = None, request_id: str | None = None
    ) -> None:
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
    """The request names what does not exist, or does not fit."""


class Busy(ApiError):
    """The server has no room for more now, and was asked as often as ``max_retries`` allows."""


class JobFailed(GRPOError):
    """A job that was waited for has failed.

    :param status: Its final status.
    """

    def __init__(self, status: "TrainingStatus") -> None:
        super().__init__(f"job {status.job_id} failed: {status.error_message}")
        self.status = status


class JobTimeout(GRPOError):
    """A job was not over when the time to wait for it was; it goes on.

    :param job_id: The job.
    """

    def __init__(self, job_id: str, timeout_seconds: float) -> None:
        super().__init__(
            f"job {job_id} is not over after {timeout_seconds:g} s; it goes on, and can be waited for again."
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


def make_api_error(response: httpx2.Response) -> ApiError:
    """Turn a refusal into an exception, also one that does not come from the application, such as a proxy's."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": response.text.strip()[:_MAX_DETAIL_CHARS] or response.reason_phrase}
    return _KINDS.get(response.status_code, ApiError)(
        response.status_code,
        str(problem.get("detail")),
        problem.get("type"),
        response.headers.get("X-Request-ID"),
    )
