"""Every event is one line, whatever its text holds, and names its request and job."""

import json
import logging
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.context import JOB_ID, REQUEST_ID
from service.logs import MAX_LINE_BYTES, LogFormat, LogStyle, configure_logs, make_formatter
from tests.conftest import RegisterEnv
from tests.environments import LineEnv
from tests.support import PATIENCE_SECONDS, train_to_end, wait_until

FORMATS: list[LogFormat] = ["console", "json"]
HOSTILE = [
    "two\nlines",
    "carriage\rreturn",
    "\x1b[31mred\x1b[0m",
    "%s %d %(name)s %",
    "{} {0} {event} {{",
    '"quoted", "level": "critical"',
    "back\\slash \\n",
    "\ud800 \u2028 \u202e \x00 \x7f \x85",
    "x" * 1_000_000,
    "\U0001f4a5" * 100_000,
    '"' * 100_000,
    "",
]


def make_record(message: str, *arguments: object, **fields: Any) -> logging.LogRecord:
    exc_info = fields.pop("exc_info", None)
    record = logging.LogRecord("grpo.service", logging.WARNING, __file__, 1, message, arguments, exc_info)
    record.__dict__.update(fields)
    return record


def raise_nested(text: str) -> Any:
    """Return the exc_info of an error with a long traceback."""
    try:
        try:
            raise KeyError(text)
        except KeyError as error:
            raise ValueError(text) from error
    except ValueError:
        return sys.exc_info()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Return the lines logged so far, parsed as JSON."""
    caplog.set_level(logging.INFO, "grpo")
    caplog.handler.setFormatter(make_formatter("json"))
    return lambda: [json.loads(line) for line in caplog.text.splitlines()]


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:16]))
def test_no_text_makes_a_second_line_or_a_long_one(log_format: LogFormat, text: str) -> None:
    formatter = make_formatter(log_format)
    for record in (
        make_record("the name is %s", text),
        make_record("request", route=text, method=text, status=404),
        make_record("it failed", exc_info=raise_nested(text)),
        make_record("%s", text, model_name=text, env_name=text, exc_info=raise_nested(text)),
    ):
        line = formatter.format(record)
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < MAX_LINE_BYTES
        if log_format == "json":
            assert json.loads(line)["level"] == "warning"
        else:
            assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z warning grpo\.service: ", line)


def test_a_line_of_json_holds_every_field_as_it_is() -> None:
    token = REQUEST_ID.set("r-1"), JOB_ID.set("j-1")
    try:
        line = make_formatter("json").format(make_record("took %d", 3, status=200, seconds=0.25, route="/models"))
    finally:
        REQUEST_ID.reset(token[0])
        JOB_ID.reset(token[1])
    fields = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", fields.pop("time"))
    assert fields == {
        "level": "warning",
        "logger": "grpo.service",
        "event": "took 3",
        "request_id": "r-1",
        "job_id": "j-1",
        "route": "/models",
        "status": 200,
        "seconds": 0.25,
    }


def test_a_line_in_words_quotes_what_holds_spaces() -> None:
    line = make_formatter("console").format(make_record("it is", model_name='a "b" c', env_name="E-v0", seconds=1 / 3))
    assert line.partition(" ")[2] == (
        r'warning grpo.service: it is seconds=0.333333 env_name=E-v0 model_name="a \"b\" c"'
    )


def test_of_a_long_traceback_the_end_is_kept() -> None:
    fields = json.loads(make_formatter("json").format(make_record("oops", exc_info=raise_nested("x" * 10_000))))
    assert fields["exception"].endswith("xxx")
    fields = json.loads(make_formatter("json").format(make_record("oops", exc_info=raise_nested("the end"))))
    assert fields["exception"].startswith("Traceback")
    assert fields["exception"].endswith("ValueError: the end")


@pytest.mark.usefixtures("untouched_loggers")
def test_all_loggers_write_alike_and_others_only_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogStyle("json", "info"))
    for name in ("grpo.service", "uvicorn.any", "asyncio"):
        logging.getLogger(name).debug("details of %s", name)
        logging.getLogger(name).info("news of %s", name, extra={"color_message": "\x1b[31m"})
        logging.getLogger(name).warning("trouble of %s", name)
    output, errors = capsys.readouterr()
    assert output == ""
    assert [(line["event"]) for line in map(json.loads, errors.splitlines())] == [
        "news of grpo.service",
        "trouble of grpo.service",
        "news of uvicorn.any",
        "trouble of uvicorn.any",
        "trouble of asyncio",
    ]
    configure_logs(LogStyle("console", "error"))
    logging.getLogger("grpo.service").warning("not that bad")
    logging.getLogger("grpo.service").error("bad")
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("untouched_loggers")
def test_the_dashboards_sockets_write_an_error_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogStyle("json", "info"))
    server = import_module("socketio").AsyncServer(async_mode="asgi")  # adds a handler to a logger that has no level
    for logger in (server.logger, server.eio.logger):
        logger.info("a client came")
        logger.error("a frame is malformed")
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["a frame is malformed"] * 2


class TestRequests:
    def test_each_has_a_line_with_its_route_and_not_its_path(
        self, client: TestClient, lines: Callable[[], list[dict[str, Any]]]
    ) -> None:
        for method, path in (("GET", "/models"), ("DELETE", "/models/secret-name"), ("GET", "/nowhere?a=1")):
            client.request(method, path, headers={"x-request-id": f"id-of-{method}"})
        logged = [
            (line["event"], line["method"], line["route"], line["status"], line["request_id"]) for line in lines()
        ]
        assert logged == [
            ("request", "GET", "/models", 200, "id-of-GET"),
            ("request", "DELETE", "/models/{model_name}", 404, "id-of-DELETE"),
            ("request", "GET", "unmatched", 404, "id-of-GET"),
        ]
        assert all(0 < line["seconds"] < PATIENCE_SECONDS for line in lines())
        assert "secret-name" not in str(lines())

    def test_refusals_have_one_too(self, client: TestClient, lines: Callable[[], list[dict[str, Any]]]) -> None:
        client.get("/health", headers={"host": "evil.example"})
        client.post("/inference", content=b"{")
        assert [(line["route"], line["status"]) for line in lines()] == [("unmatched", 400), ("unmatched", 415)]

    @pytest.mark.parametrize("overrides", [{}, {"access_log": True}], ids=str)
    def test_those_that_come_by_the_thousand_have_none_unless_it_is_asked_for(
        self, client: TestClient, lines: Callable[[], list[dict[str, Any]]], overrides: dict[str, bool]
    ) -> None:
        train_to_end(client, total_timesteps=64, model_name="m")
        n_lines = len(lines())
        for _ in range(2):
            body = {"model_name": "m", "observation": [0.0] * 4}
            assert client.post("/inference", json=body).status_code == 200
        client.get("/health")
        routes = [line["route"] for line in lines()[n_lines:]]
        assert routes == (["/inference", "/inference", "/health"] if overrides else [])
        client.post("/inference", json={"model_name": "none", "observation": 0})
        assert lines()[-1]["status"] == 404

    def test_a_bug_has_a_line_with_its_traceback_and_the_requests_id(
        self, client: TestClient, lines: Callable[[], list[dict[str, Any]]]
    ) -> None:
        client.app.add_api_route("/bug", lambda: 1 / 0)  # type: ignore[attr-defined]
        response = client.get("/bug")
        bug, request = lines()
        assert bug["exception"].endswith("ZeroDivisionError: division by zero")
        assert bug["request_id"] == request["request_id"] == response.json()["id"]
        assert (bug["level"], request["status"]) == ("error", 500)


class TestJobs:
    def test_a_job_has_a_line_for_each_step_with_its_id_and_its_requests(
        self, client: TestClient, lines: Callable[[], list[dict[str, Any]]]
    ) -> None:
        response = client.post("/train", json={"total_timesteps": 64, "model_name": "m"}, headers={"x-request-id": "q"})
        job_id = response.json()["job_id"]
        wait_until(lambda: any(line["event"] == "job completed" for line in lines()))
        of_job = [line for line in lines() if line.get("job_id") == job_id]
        assert [line["event"] for line in of_job] == ["job queued", "job started", "job completed"]
        assert {(line["request_id"], line["env_name"], line["model_name"]) for line in of_job} == {
            ("q", "CartPole-v1", "m")
        }
        assert 0 < of_job[-1]["seconds"] < PATIENCE_SECONDS

    def test_failures_and_stops_are_told_as_well(
        self, client: TestClient, register_env: RegisterEnv, lines: Callable[[], list[dict[str, Any]]]
    ) -> None:
        env_name = register_env(lambda: LineEnv(on_reset=iter([None] * 20).__next__), max_episode_steps=5)
        status = train_to_end(client, env_name=env_name, group_mode="episode", n_steps=64, total_timesteps=10_000)
        assert status["status"] == "failed"
        events = [line["event"] for line in lines() if line.get("job_id") == status["job_id"]]
        assert events[-1] == "job failed"
        assert {line["job_id"] for line in lines() if "exception" in line} == {status["job_id"]}
