"""The published schema gives errors their media type, and describes every answer."""

import re
from pathlib import Path
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
                    assert response["content"].keys() == {"application/problem+json"}
                    content = response["content"]["application/problem+json"]
                    assert content["schema"] == reference
                    assert content["example"]["status"] == int(status_code)
                elif "content" in response:
                    assert "application/problem+json" not in response["content"]
    assert n_errors > 50


def test_the_example_of_an_error_is_one_that_the_status_has(schema: dict[str, Any]) -> None:
    page = (Path(__file__).parents[3] / "API.md").read_text().split("## Errors")[1]
    rows = re.findall(r"^\| ([\d, ]+) \| (.*?) \|", page, flags=re.MULTILINE)
    kinds = {code: names for codes, names in rows for code in codes.split(", ")}
    examples = {
        code: response["content"]["application/problem+json"]["example"]
        for methods in schema["paths"].values()
        for operation in methods.values()
        for code, response in operation["responses"].items()
        if code >= "400"
    }
    assert len({example["detail"] for example in examples.values()}) == len(examples) > 10
    for code, example in examples.items():
        assert f"`{example['type'].rpartition(':')[2]}`" in kinds[code], code


def test_an_example_of_an_error_is_what_is_answered(client: TestClient, schema: dict[str, Any]) -> None:
    answers = (
        ("/train", client.post("/train", json={"env_name": "CartPol-v1"})),
        ("/train", client.post("/train", json={"n_step": 64})),
        ("/train", client.post("/train", content=b"{}", headers={"content-type": "text/plain"})),
        ("/train", client.post("/train", content=b" " * (2**20 + 1), headers={"content-type": "application/json"})),
    )
    for path, answer in answers:
        described = schema["paths"][path]["post"]["responses"][str(answer.status_code)]
        example = described["content"]["application/problem+json"]["example"]
        same = ("type", "title", "status") if answer.status_code == 400 else ("type", "title", "status", "detail")
        assert {name: answer.json()[name] for name in same} == {name: example[name] for name in same}


def test_where_a_body_is_taken_its_headers_may_be_refused(schema: dict[str, Any]) -> None:
    operations = [operation for methods in schema["paths"].values() for operation in methods.values()]
    with_body = [operation["responses"].keys() for operation in operations if "requestBody" in operation]
    assert len(with_body) > 5
    assert all({"408", "413", "415", "417", "501"} <= codes for codes in with_body)


def test_it_is_made_once(app: FastAPI) -> None:
    assert app.openapi() is app.openapi()


@pytest.mark.parametrize("path", SERVER_ROUTES)
def test_an_answer_of_the_server_is_shown_with_every_field(schema: dict[str, Any], path: str) -> None:
    content = schema["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    fields = schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]["properties"]
    assert all("examples" in field or "const" in field for field in fields.values())


def test_metrics_are_shown_as_text(schema: dict[str, Any]) -> None:
    (content,) = schema["paths"]["/metrics"]["get"]["responses"]["200"]["content"].items()
    assert content[0] == "text/plain"
    assert 'grpo_jobs{status="queued"}' in content[1]["example"]
