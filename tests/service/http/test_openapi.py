"""The published schema gives errors their media type, and describes every answer."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

SERVER_ROUTES = ["/", "/health", "/health/live", "/health/ready"]


@pytest.fixture
def schema(client: TestClient) -> dict[str, Any]:
    described: dict[str, Any] = client.get("/openapi.json").json()
    return described


def test_every_error_is_described_as_problem_details(schema: dict[str, Any]) -> None:
    n_errors = 0
    for methods in schema["paths"].values():
        for operation in methods.values():
            for status_code, response in operation["responses"].items():
                if status_code >= "400":
                    n_errors += 1
                    reference = {"$ref": "#/components/schemas/ProblemDetails"}
                    assert response["content"] == {"application/problem+json": {"schema": reference}}
                elif "content" in response:
                    assert "application/problem+json" not in response["content"]
    assert n_errors > 50


def test_it_is_made_once(app: FastAPI) -> None:
    assert app.openapi() is app.openapi()


@pytest.mark.parametrize("path", SERVER_ROUTES)
def test_an_answer_of_the_server_is_shown_with_every_field(schema: dict[str, Any], path: str) -> None:
    content = schema["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    fields = schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]["properties"]
    assert all("examples" in field or "const" in field for field in fields.values())


def test_metrics_are_shown_as_text(schema: dict[str, Any]) -> None:
    (content,) = schema["paths"]["/metrics"]["get"]["responses"]["200"]["content"].items()
    assert content[0].startswith("text/plain")
    assert 'grpo_jobs{status="queued"}' in content[1]["example"]
