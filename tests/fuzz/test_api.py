"""Requests that nobody would think of, made from the published schema, with the key and without it.

``tests/service/http/test_schema.py`` is the short form of the first.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.lib.server import serve
from service.http import examples
from tests.models import make_model
from tests.suites import IS_LONG, SEED, Report, choose
from tests.support import PATIENT_VARIABLES

KEY = "a key of 22 characters"
CONFIG = Path(__file__).parent.parent / "service" / "http" / "schemathesis.toml"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
N_EXAMPLES = choose(1, 20)


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a key and two models."""
    folder = tmp_path_factory.mktemp("models")
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
    for name in (examples.MODEL_NAME, "gone"):
        (folder / f"{name}.zip").write_bytes(content)
    settings = {
        **PATIENT_VARIABLES,
        "GRPO_TENSORBOARD_DIR": str(tmp_path_factory.mktemp("runs")),
        "GRPO_MAX_RUNNING_JOBS": "1",
    }
    with serve(folder, GRPO_API_KEY=KEY, GRPO_MAX_QUEUED_JOBS="1000", GRPO_EXECUTOR="thread", **settings) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize("has_key", [False, pytest.param(True, marks=pytest.mark.skipif(not IS_LONG, reason="long"))])
def test_odd_requests_are_answered_as_the_schema_says(server_url: str, tmp_path: Path, has_key: bool) -> None:
    report = Report("fuzz", "API with the key" if has_key else "API without a key")
    schema = tmp_path / "openapi.json"
    fetch = [sys.executable, "-c", FETCH, f"{server_url}/openapi.json", KEY, str(schema)]
    subprocess.run(fetch, check=True)
    phases = "examples,coverage,fuzzing,stateful" if IS_LONG else "examples"
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(CONFIG), "run", str(schema)]
    command += ["--url", server_url, "--checks", CHECKS, "--phases", phases, "--max-examples", str(N_EXAMPLES)]
    command += ["--seed", str(SEED), "--no-color", *(["--header", f"X-API-Key: {KEY}"] if has_key else [])]
    # Whose stream of events is asked for; the examples start few jobs, and so the latest soon ends.
    finished = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"ENDED_JOB": "latest"}
    )
    report.figures["summary"] = finished.stdout.splitlines()[-25:]
    report.write()
    assert finished.returncode == 0, finished.stdout[-8000:] + finished.stderr


FETCH = """
import pathlib, sys, urllib.request
url, key, target = sys.argv[1:]
request = urllib.request.Request(url, headers={"X-API-Key": key})
pathlib.Path(target).write_bytes(urllib.request.urlopen(request).read())
"""


def test_the_check_finds_an_answer_that_is_not_in_the_schema(server_url: str, tmp_path: Path) -> None:
    """Without a key every answer is 401, which this schema does not have."""
    schema = tmp_path / "openapi.json"
    schema.write_text(
        '{"openapi":"3.1.0","info":{"title":"x","version":"1"},'
        '"paths":{"/models":{"get":{"responses":{"200":{"description":""}}}}}}'
    )
    command = [str(Path(sys.executable).with_name("st")), "run", str(schema), "--url", server_url, "--checks", CHECKS]
    finished = subprocess.run(
        [*command, "--max-examples", "1", "--no-color"], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 1, finished.stdout
