"""Unknown paths: a page for people, problem details for programs and below the paths of the API."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.http.problems import API_ROOTS, PROBLEM_TYPE

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("path", ["/nothing", "/nothing/at/all", "/trainings/x"])
def test_a_browser_is_shown_a_page_with_a_way_home(client: TestClient, path: str) -> None:
    answer = client.get(path, headers=BROWSER)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert '<a href="/dashboard">' in answer.text
    # Its own styles are allowed, scripts are not.
    policy = answer.headers["content-security-policy"]
    assert "style-src 'unsafe-inline'" in policy
    assert "script-src" not in policy


PROGRAMS = [("/nothing", {"accept": "*/*"}), ("/nothing", {})]


@pytest.mark.parametrize(
    ("path", "headers"), [*PROGRAMS, *((f"/{root}/nothing/at/all", BROWSER) for root in sorted(API_ROOTS))]
)
def test_programs_and_paths_of_the_api_get_problem_details(
    client: TestClient, path: str, headers: dict[str, str]
) -> None:
    answer = client.get(path, headers=headers)
    assert answer.headers["content-type"] == PROBLEM_TYPE
    assert answer.json()["status"] == answer.status_code


def test_a_form_that_is_sent_nowhere_gets_problem_details(client: TestClient) -> None:
    assert client.post("/nothing", headers=BROWSER).headers["content-type"] == PROBLEM_TYPE


def test_the_roots_are_those_of_the_described_paths(app: FastAPI) -> None:
    assert {path.split("/")[1] for path in app.openapi()["paths"]} == {*API_ROOTS, ""}
