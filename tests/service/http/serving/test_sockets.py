"""A WebSocket that is refused gets an ordinary answer, and nothing is wrong with the server."""

import logging
from pathlib import Path

import httpx
import pytest

from api import create_app
from service.settings import Settings
from tests.support import serve

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def test_a_refused_socket_is_answered_and_logs_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("uvicorn.error")
    with serve(create_app(Settings(models_dir=tmp_path))) as port, caplog.at_level(logging.ERROR, log.name):
        log.addHandler(caplog.handler)  # it hands nothing on
        answer = httpx.get(f"http://127.0.0.1:{port}/train", headers=HANDSHAKE)
    log.removeHandler(caplog.handler)
    assert (answer.status_code, answer.json()["title"]) == (404, "There is no such path")
    assert caplog.records == []
