"""The published schema of the service."""

from typing import Any

from fastapi import FastAPI

from service.http.problems import PROBLEM_TYPE


def install_schema(app: FastAPI) -> None:
    """Give the errors in the application's schema their media type, problem details; FastAPI says plain JSON."""
    describe = app.openapi

    def describe_with_problems() -> dict[str, Any]:
        if app.openapi_schema is None:
            for path in describe()["paths"].values():
                for operation in path.values():
                    _rename_problems(operation["responses"])
        return describe()

    app.openapi = describe_with_problems  # type: ignore[method-assign]


def _rename_problems(responses: dict[str, Any]) -> None:
    for status_code, response in responses.items():
        if status_code >= "400":
            (described,) = response["content"].values()
            response["content"] = {PROBLEM_TYPE: described}
