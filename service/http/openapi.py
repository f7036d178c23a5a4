"""The published schema of the service."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from service.errors import (
    ConflictError,
    InvalidFieldsError,
    InvalidRequestError,
    NotFoundError,
    NotInstalledError,
    PreconditionFailedError,
    Problem,
    QueueFullError,
    StorageError,
    StorageLowError,
)
from service.http.file_headers import NOT_SATISFIABLE
from service.http.limits.bodies import WRONG_MEDIA_TYPE, too_large, too_slow
from service.http.problems import PROBLEM_TYPE, describe_problem
from service.http.request_guard import CROSS_SITE, NO_KEY
from service.http.serving.connections import EXPECTATION, TRANSFER_CODING

# One of the refusals with each status, as it is worded where it is made.
_REFUSALS = (NO_KEY, CROSS_SITE, too_slow(), too_large(2**20))
_EXAMPLES: Mapping[int, tuple[Problem, str]] = {
    **{refusal.status_code: (refusal.problem, refusal.detail) for refusal in _REFUSALS},
    400: (
        InvalidRequestError.problem,
        "env_name 'CartPol-v1' is not a registered Gymnasium environment; did you mean 'CartPole-v1'?",
    ),
    404: (NotFoundError.problem, "there is no model 'balanse'; did you mean 'balance'?"),
    409: (
        ConflictError.problem,
        "job 0f8fad5b-d9cb-469f-a165-70867728950e is running and will save as 'balance'; pick another name, or stop "
        "it with POST /training/0f8fad5b-d9cb-469f-a165-70867728950e/stop.",
    ),
    412: (
        PreconditionFailedError.problem,
        "If-Match does not list the file that is there: there is none; look at it first.",
    ),
    415: (WRONG_MEDIA_TYPE, "the body must be JSON; send the header 'Content-Type: application/json'."),
    416: (NOT_SATISFIABLE, "the file has 64 bytes; ask for some of these."),
    417: (EXPECTATION, "the only Expect header supported is '100-continue'; leave it out."),
    422: (InvalidFieldsError.problem, "n_step: unknown field; did you mean n_steps?"),
    429: (QueueFullError.problem, "100 jobs are running or queued already; try again later."),
    501: (TRANSFER_CODING, "the only Transfer-Encoding supported is 'chunked'; send the body without another."),
    503: (
        StorageLowError.problem,
        "12000000 bytes are free on the models' disk, and fewer than GRPO_MIN_FREE_BYTES (67108864) would be left; "
        "delete models or free some disk space.",
    ),
    507: (
        StorageError.problem,
        "model 'balance' cannot be saved (No space left on device); free some space or fix the models folder.",
    ),
}
# Where no body is sent, 501 says something else.
_NOT_INSTALLED = (
    NotInstalledError.problem,
    "format 'onnx' needs the package onnx, which is not installed: pip install onnx. Install it on the server, or ask "
    "for another format.",
)
_FIELD_ERRORS = [{"field": "n_step", "message": "unknown field; did you mean n_steps?"}]
_INSTANCE = "urn:uuid:0f8fad5b-d9cb-469f-a165-70867728950e"


def install_schema(app: FastAPI) -> None:
    """Give the errors in the application's schema their media type, problem details, and an example of each status.

    FastAPI says plain JSON, and shows the same example for all.
    """
    describe = app.openapi

    def describe_with_problems() -> dict[str, Any]:
        if app.openapi_schema is None:
            for path in describe()["paths"].values():
                for operation in path.values():
                    _rename_problems(operation["responses"])
        return describe()

    app.openapi = describe_with_problems  # type: ignore[method-assign]


def _rename_problems(responses: dict[str, Any]) -> None:
    examples = _EXAMPLES if "415" in responses else {**_EXAMPLES, NotInstalledError.status_code: _NOT_INSTALLED}
    for status_code, response in responses.items():
        if status_code >= "400":
            (described,) = response["content"].values()
            example = _make_example(int(status_code), *examples[int(status_code)])
            response["content"] = {PROBLEM_TYPE: {**described, "example": example}}


def _make_example(status_code: int, problem: Problem, detail: str) -> dict[str, Any]:
    errors = {"errors": _FIELD_ERRORS} if status_code == InvalidFieldsError.status_code else {}
    return describe_problem(problem, status_code, detail, _INSTANCE) | errors
