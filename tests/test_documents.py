"""What README.md and API.md say is run and compared with the code."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from api import REWARD_FUNCTIONS, create_app
from grpo_core.presets import list_presets
from service.configuration import resolve_request
from service.errors import ServiceError
from service.schemas import TrainRequest
from service.settings import Settings
from tests.support import wait_until

ROOT = Path(__file__).parent.parent
DOCUMENTED_URL = "http://localhost:8000"
HTTP_METHODS = {"get", "post", "put", "delete"}


def list_blocks() -> list[Any]:
    """List the examples of both pages in the order in which a reader runs them."""
    return [
        pytest.param(block[1], block[2], id=f"{name}-{i}-{block[1]}")
        for name in ("README.md", "API.md")
        for i, block in enumerate(re.finditer(r"```(bash|python)\n(.*?)```", (ROOT / name).read_text(), re.DOTALL))
    ]


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    app = create_app(Settings(models_dir=tmp_path_factory.mktemp("models")))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://localhost:{port}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(("language", "code"), list_blocks())
def test_examples_run_as_written(language: str, code: str, server_url: str, tmp_path: Path) -> None:
    code = code.replace(DOCUMENTED_URL, server_url)
    if language == "python":
        command = [sys.executable, "-c", code]
    elif shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    else:
        # curl then ends with an error where the server answers one.
        command = ["bash", "-ec", code.replace("curl ", "curl --silent --fail-with-body ")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    completed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def make_schema() -> dict[str, Any]:
    app: FastAPI = create_app(Settings())
    return app.openapi()


def split_api_page() -> dict[str, str]:
    """Map each endpoint's heading to what is written below it."""
    parts = re.split(r"^##+ (.*)$", (ROOT / "API.md").read_text(), flags=re.MULTILINE)[1:]
    return {heading.strip("`"): text for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def list_rows(text: str, kind: str) -> dict[str, list[str]]:
    """Read the table of request or response fields: field name to the other cells."""
    table = re.search(rf"^\| {kind} field .*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    if table is None:
        return {}
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table[1].splitlines()]
    return {row[0].strip("` "): row[1:] for row in rows}


def resolve(schema: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference, through the "or null" of an optional body."""
    for candidate in (described, *described.get("anyOf", [])):
        if "$ref" in candidate:
            found: dict[str, Any] = schema["components"]["schemas"][candidate["$ref"].rpartition("/")[2]]
            return found
    return described


def get_json_schema(schema: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a JSON body; empty where the body is of another type, such as an image."""
    json_body = described.get("content", {}).get("application/json", {"schema": {}})
    return resolve(schema, json_body["schema"])


def test_api_page_names_every_endpoint_and_field() -> None:
    schema, page = make_schema(), split_api_page()
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
        if method in HTTP_METHODS
    }
    assert operations.keys() == {heading for heading in page if re.match("[A-Z]+ /", heading)}
    for heading, operation in operations.items():
        answer = get_json_schema(schema, operation["responses"]["200"])
        assert list_rows(page[heading], "response").keys() == answer.get("properties", {}).keys(), heading
        if "requestBody" in operation:
            request = get_json_schema(schema, operation["requestBody"])
            rows = list_rows(page[heading], "request")
            assert rows.keys() == request.get("properties", {}).keys(), heading
            for name, field in request.get("properties", {}).items():
                written = rows[name][0].strip("`")
                if field.get("default") is not None:
                    assert json.loads(written) == field["default"], name


def test_api_page_states_the_default_of_every_setting_without_a_preset() -> None:
    request = TrainRequest(env_name="Acrobot-v1", preset="none")
    config = resolve_request(request, REWARD_FUNCTIONS).config.model_dump()
    config["group_mode"] = "auto"  # which it resolves
    checked = []
    for name, cells in list_rows(split_api_page()["POST /train"], "request").items():
        written = cells[0].strip("`")
        if re.fullmatch(r"-?[\d.]+|true|false", written):
            assert json.loads(written) == config[name], name
            checked.append(name)
        elif re.fullmatch("[a-z]+", written) and isinstance(config[name], str) and name not in ("model_name", "seed"):
            assert written == config[name], name
            checked.append(name)
        elif written in ("none", "never"):
            assert config[name] is None, name
            checked.append(name)
    assert len(checked) > 25


def test_api_page_states_the_range_of_every_field() -> None:
    properties = TrainRequest.model_json_schema()["properties"]
    for name, cells in list_rows(split_api_page()["POST /train"], "request").items():
        written = cells[1].replace(",", "") if re.search(r"\d", cells[1]) else cells[1]
        choice = next(iter(properties[name].get("anyOf", [properties[name]])))
        if found := re.fullmatch(r"(-?[\d.]+) to ([\d.]+)", written):
            assert (choice["minimum"], choice["maximum"]) == (float(found[1]), float(found[2])), name
        elif found := re.fullmatch(r"above 0 up to ([\d.]+)", written):
            assert (choice["exclusiveMinimum"], choice["maximum"]) == (0, float(found[1])), name
        elif "enum" in choice:
            assert set(re.findall("`([^`]+)`", written)) == set(choice["enum"]), name
        else:
            assert not {"minimum", "maximum", "exclusiveMinimum"} & choice.keys(), name


def test_api_page_names_every_preset() -> None:
    text = split_api_page()["Presets"]
    assert {name for name in list_presets() if name.partition("-")[0] not in text} == set()


def test_api_page_lists_every_status_code() -> None:
    documented = set(re.findall(r"\b[45]\d\d\b", split_api_page()["Errors"]))
    declared = {
        code
        for methods in make_schema()["paths"].values()
        for operation in methods.values()
        for code in operation["responses"]
        if code != "200"
    }
    assert declared <= documented


def test_api_page_names_every_kind_of_error() -> None:
    source = "".join(file.read_text() for file in (ROOT / "service").glob("*.py"))
    kinds = set(re.findall(r'Problem\("([a-z-]+)", ', source)) - {ServiceError.problem.slug}
    assert len(kinds) > 14
    assert {kind for kind in kinds if f"`{kind}`" not in split_api_page()["Errors"]} == set()


def test_api_page_lists_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `GRPO_(\w+)` \| (.*?) \|", (ROOT / "API.md").read_text(), flags=re.MULTILINE)
    assert {name.lower() for name, _ in rows} == Settings.model_fields.keys()
    for name, written in rows:
        default = Settings.model_fields[name.lower()].default
        if written.startswith("`"):
            listed = ",".join(default) if isinstance(default, tuple) else str(default)
            assert written.strip("`").casefold() == listed.casefold(), name


def test_no_page_holds_a_placeholder() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md")):
        assert not re.search(r"^[A-Z]{3,}$", page.read_text(), flags=re.MULTILINE), page.name
