"""What README.md and API.md say is run and compared with the code."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import gymnasium as gym
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger

from api import create_app
from benchmarks.lib.pages import list_blocks
from grpo import GRPO
from grpo_core.options.presets import list_presets
from grpo_core.options.rewards import optimized_cartpole
from service.errors import ServiceError
from service.models.files.folder import ModelFolder
from service.schemas.jobs import VerdictState
from service.schemas.training import TrainRequest
from service.settings import Settings
from tests.docs.tutorial import DOCUMENTED_PORT, make_strict, train_less
from tests.support import PATIENCE_SECONDS, make_plan, wait_until

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted(ROOT.glob("docs/*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *TUTORIALS, *sorted(ROOT.glob("benchmarks/*.md"))]
# What a reader's checkout holds and a tutorial has no use for, or makes anew.
NOT_LINKED = {"models", "tests"}
DOCUMENTED_URL = "http://localhost:8000"
# Says that an answer is described elsewhere: there as the whole answer, or as an item of a list in it.
CITED_ANSWER = re.compile(r"^The answer is the \w+ (?:of|as) \[`(GET /\S+)`\]", flags=re.MULTILINE)
HTTP_METHODS = {"get", "post", "put", "patch", "delete"}
# Examples in the language "py" need what is optional.
NEEDS_ONNX = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxruntime"))),
    reason="onnx and onnxruntime are not installed: pip install -r requirements-dev.txt",
)


def list_examples() -> list[Any]:
    """List the examples of both pages in the order in which a reader runs them."""
    return [
        pytest.param(
            block.language,
            block.code,
            id=f"{name}-{block.line}-{block.language}",
            marks=NEEDS_ONNX if block.language == "py" else (),
        )
        for name in ("README.md", "API.md")
        for block in list_blocks((ROOT / name).read_text())
        if block.language in ("bash", "python", "py")
    ]


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # In threads: worker processes go behind all else, so that on a busy machine their jobs would take minutes.
    folder = tmp_path_factory.mktemp("models")
    app = create_app(Settings(models_dir=folder, executor="thread", task_seconds=PATIENCE_SECONDS))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://localhost:{port}"
    server.should_exit = True
    thread.join()


def run(command: list[str], folder: Path, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    # A group of its own, so that no server of a page outlives a page that takes too long.
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        printed, complaints = process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, printed + complaints
    return printed


@pytest.mark.parametrize(("language", "code"), list_examples())
def test_examples_run_as_written(language: str, code: str, server_url: str, python: str, tmp_path: Path) -> None:
    code = train_less(code.replace(DOCUMENTED_URL, server_url))
    if language == "bash" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = [python, "-c", code] if language in ("python", "py") else make_strict(code)
    run(command, tmp_path, GRPO_URL=server_url, GRPO_EXECUTOR="thread")


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_a_tutorial_runs_as_written_from_top_to_bottom(page: Path, python: str, tmp_path: Path) -> None:
    if "curl " in page.read_text() and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for entry in ROOT.iterdir():
        if entry.name not in NOT_LINKED and not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    # A script's folder is where Python looks first, and through a link that is the real one.
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    programs = os.pathsep.join([str(Path(python).parent), os.environ["PATH"]])
    command = [python, "-m", "tests.docs.tutorial", str(page), port]
    server = {"GRPO_URL": f"http://localhost:{port}", "GRPO_EXECUTOR": "thread"}
    server["GRPO_TASK_SECONDS"] = str(PATIENCE_SECONDS)
    run(command, tmp_path, PYTHONPATH=path, PATH=programs, MPLBACKEND="Agg", **server)


def test_the_documented_backup_brings_back_what_versions_and_aliases_mean(tmp_path: Path) -> None:
    (backup,) = [
        block.code
        for block in list_blocks((ROOT / "docs" / "deploying.md").read_text())
        if block.language == "bash" and block.code.startswith("tar ")
    ]
    models = tmp_path / "models"
    folder = ModelFolder(models, max_versions=3)
    for content in (b"first", b"second", b"third"):
        folder.write("m", content)
    folder.versions.set_alias("m", "prod", 1)
    for leftover in (".tmp-m", ".versions/m/.tmp-1", ".lock", ".folder-id", ".jobs.sqlite3", ".jobs.sqlite3-wal"):
        (models / leftover).touch()
    (models / ".checkpoints").mkdir()

    run(make_strict(backup), tmp_path)
    models.rename(tmp_path / "aside")
    run(["tar", "-xzf", "models-backup.tar.gz"], tmp_path)

    assert {path.name for path in models.rglob("*")} == {"m.zip", ".versions", "m", "1.zip", "2.zip", "notes.json"}
    restored = ModelFolder(models, max_versions=3)
    expected = {"m": b"third", "m@prod": b"first", "m@1": b"first", "m@2": b"second", "m@3": b"third"}
    assert {reference: restored.find_content(reference, None) for reference in expected} == expected


def test_the_server_of_a_tutorial_does_not_meet_the_one_that_readme_has_started() -> None:
    servers = [block.code for page in TUTORIALS for block in list_blocks(page.read_text()) if block.is_server]
    assert servers
    for command in servers:
        assert f"--port {DOCUMENTED_PORT} --models-dir models/guide" in command
    for page in TUTORIALS:
        if any(block.is_server for block in list_blocks(page.read_text())):
            code = "".join(block.code for block in list_blocks(page.read_text()) if block.language != "console")
            assert DOCUMENTED_URL not in code, page.name


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1_250


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_every_file_that_a_tutorial_saves_is_used_below(page: Path) -> None:
    blocks = list_blocks(page.read_text())
    for i, block in enumerate(blocks):
        if block.title is not None:
            module = block.title.removesuffix(".py")
            assert any(re.search(rf"\b{module}\b", later.code) for later in blocks[i + 1 :]), block.title


def test_the_notebook_runs_from_top_to_bottom_and_shows_an_episode(python: str, tmp_path: Path) -> None:
    command = [python, "-m", "tests.docs.notebook", str(ROOT / "docs" / "notebook.ipynb")]
    shown = run(command, tmp_path, MPLBACKEND="Agg")
    (film,) = re.findall('src="data:image/gif;base64,([^"]+)"', shown)
    with Image.open(io.BytesIO(base64.b64decode(film))) as image:
        assert getattr(image, "n_frames", 1) > 50
    # The arm needs some 60 steps and more however it is driven, and 500 are the limit.
    assert float(re.findall(r"GRPO +mean reward +(-[\d.]+)", shown)[0]) > -200
    assert shown.rstrip().endswith("True")  # what was saved acts like what was trained


def test_the_notebook_is_stored_without_what_it_once_printed() -> None:
    for cell in json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_metrics_page_explains_every_verdict() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text().split("## The verdict")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)) == set(get_args(VerdictState))


class KeyCollector(KVWriter):
    """Remembers the keys that are logged."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.keys |= key_values.keys()

    def close(self) -> None:
        """Nothing is open."""


class Verdict(gym.Wrapper[Any, Any, Any, Any]):
    """Says of every episode that it succeeded."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, info | {"is_success": True}


@pytest.fixture(scope="module")
def logged_keys() -> set[str]:
    """Every key that some training logs."""
    collector = KeyCollector()
    for env_name, arguments in (
        ("CartPole-v1", {"reward_function": [None, optimized_cartpole], "kl_coef": 0.1, "anchor_selection": "archive"}),
        ("Pendulum-v1", {"baseline": "adaptive"}),
    ):
        env = make_vec_env(env_name, wrapper_class=Verdict)
        model = GRPO("MlpPolicy", env, n_steps=64, n_epochs=1, seed=0, device="cpu", **arguments)
        model.set_logger(Logger(None, [collector]))
        model.learn(192)
    return collector.keys


def test_the_metrics_page_explains_every_key_that_is_logged_and_no_other(logged_keys: set[str]) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    explained = set(re.findall(r"^\| `(\w+/[\w<>]+)` \|", text.split("## Every key")[1], flags=re.MULTILINE))
    generic = {re.sub("^rewards/.*_mean$", "rewards/<name>_mean", key) for key in logged_keys}
    assert generic == explained


def test_the_metrics_page_has_the_titles_of_the_dashboard() -> None:
    script = (ROOT / "service" / "dashboard" / "static" / "curves.js").read_text()
    titles = dict(re.findall(r'^    "(\w+/\w+)": \["([^"]+)"', script, flags=re.MULTILINE))
    text = (ROOT / "docs" / "metrics.md").read_text().split("## Every key")[1]
    assert {"rollout/ep_rew_mean", "rollout/zero_std_group_fraction"} <= titles.keys()
    for key, title in titles.items():
        (row,) = re.findall(rf"^\| `{key}` \|.*$", text, flags=re.MULTILINE)
        assert f"*{title}*" in row


def make_schema() -> dict[str, Any]:
    app: FastAPI = create_app(Settings())
    return app.openapi()


def split_api_page() -> dict[str, str]:
    """Map each endpoint's heading to what is written below it."""
    parts = re.split(r"^##+ (.*)$", (ROOT / "API.md").read_text(), flags=re.MULTILINE)[1:]
    return {heading.strip("`"): text for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def list_rows(text: str, kind: str) -> dict[str, list[str]]:
    """Read the tables of request or response fields: field name to the other cells."""
    tables = re.findall(rf"^\| {kind} field .*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in "".join(tables).splitlines()]
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
        described = set(list_rows(page[heading], "response"))
        if cited := CITED_ANSWER.search(page[heading]):
            rows = list_rows(page[cited[1]], "response")
            whole = get_json_schema(schema, operations[cited[1]]["responses"]["200"])
            items = {name: resolve(schema, field.get("items", {})) for name, field in whole["properties"].items()}
            names = [name for name, item in items.items() if item == answer]
            described = set(rows) if whole == answer else set(re.findall(r"`(\w+)`", rows[names[0]][1]))
        assert described == answer.get("properties", {}).keys(), heading
        if "requestBody" in operation:
            request = get_json_schema(schema, operation["requestBody"])
            rows = list_rows(page[heading], "request")
            assert rows.keys() == request.get("properties", {}).keys(), heading
            for name, field in request.get("properties", {}).items():
                written = rows[name][0].strip("`")
                if field.get("default") is not None:
                    assert json.loads(written) == field["default"], name


def test_api_page_states_the_default_of_every_setting_without_a_preset() -> None:
    config = make_plan(env_name="Acrobot-v1", preset="none").config.model_dump()
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
        if code >= "400"
    }
    assert declared <= documented


def test_api_page_names_every_metric() -> None:
    app = create_app(Settings())
    text = app.state.service.metrics.render().decode()
    families = set(re.findall(r"^# TYPE (grpo_\w+)", text, flags=re.MULTILINE))
    named = set(
        re.findall(r"^\| `(grpo_\w+)` \| (?:counter|gauge|histogram) ", split_api_page()["GET /metrics"], re.MULTILINE)
    )
    assert named == {name for name in families if not name.endswith("_created")}


def test_api_page_names_every_kind_of_error() -> None:
    source = "".join(file.read_text() for file in (ROOT / "service").glob("**/*.py"))
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


def list_anchors(text: str) -> set[str]:
    """List what the headings of a page are called in links, as GitHub makes it up."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if urlsplit(target).scheme:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in list_anchors(linked.read_text()), target


def test_no_page_holds_a_placeholder() -> None:
    for page in PAGES:
        assert not re.search(r"^[A-Z]{3,}$", page.read_text(), flags=re.MULTILINE), page.name
