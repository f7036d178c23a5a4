"""Fixtures of the client's tests."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

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
