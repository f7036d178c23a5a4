"""Fixtures of the client's tests."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from grpo_client.terminal.cli import main
from tests.grpo_client.blocking import open_client
from tests.support import PATIENCE_SECONDS, serve


@pytest.fixture
def server_url(app: FastAPI) -> Iterator[str]:
    """A real server on loopback."""
    with serve(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(params=["sync", "async"])
def grpo(request: pytest.FixtureRequest, server_url: str) -> Iterator[Any]:
    """A client of the server: one that blocks, then one that awaits."""
    with open_client(request.param, server_url, timeout_seconds=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture
def ask(server_url: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process, and return its exit status, its output and its errors."""

    def ask(*arguments: str) -> tuple[int, str, str]:
        exit_status = main([*arguments, "--url", server_url])
        return exit_status, *capsys.readouterr()

    return ask
