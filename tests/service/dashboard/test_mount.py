"""The dashboard opens for the first visitor, closes with its service, and is guarded like everything else."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from service.http.sessions import COOKIE_NAME, Sessions
from service.logs import LogStyle
from service.settings import Settings
from service.workers.processes import ProcessExecutor
from service.workers.task import IgnoredProgress, Progress, Task
from tests.support import PATIENCE_SECONDS, make_client, serve

ROOT = Path(__file__).parents[3]
KEY = "a key of 22 characters"
SOCKET = "ws://localhost/dashboard/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
HANDSHAKE = {"connection": "Upgrade", "upgrade": "websocket"}

with_key = pytest.mark.parametrize("overrides", [{"api_key": KEY}], ids=["key"])


def list_modules(progress: Progress) -> bytes:
    """Return the modules that a worker process has imported."""
    return " ".join(sys.modules).encode()


def connect(client: TestClient, **headers: str) -> str:
    """Open the dashboard's socket and return the first message."""
    with client.websocket_connect(SOCKET, headers=HANDSHAKE | headers) as connection:
        return str(connection.receive_text())


def refuse(client: TestClient, url: str = SOCKET, **headers: str) -> int:
    """Try to open a socket; return the status that it is refused with."""
    with (
        pytest.raises(WebSocketDenialResponse) as caught,
        client.websocket_connect(url, headers=HANDSHAKE | headers),
    ):
        pass
    assert caught.value.json().keys() >= {"detail"}
    return int(caught.value.status_code)


def send(port: int, method: str, path: str) -> int:
    connection = HTTPConnection("127.0.0.1", port)
    connection.request(method, path)
    status = connection.getresponse().status
    connection.close()
    return status


class TestOpening:
    def test_nicegui_is_imported_at_the_first_visit_and_writes_no_files(self, tmp_path: Path) -> None:
        script = f"""
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from api import create_app
from service.settings import Settings
app = create_app(Settings(models_dir=Path({str(tmp_path / "models")!r})))
with TestClient(app, base_url="http://localhost") as client:
    assert client.get("/health").status_code == 200
    assert "nicegui" not in sys.modules
    assert client.get("/dashboard").status_code == 200
    assert "nicegui" in sys.modules
    assert "torch" not in sys.modules
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (process.returncode, process.stdout) == (0, ""), process.stderr
        assert os.listdir(tmp_path) == ["models"]

    def test_many_first_visitors_may_come_at_once(self, app: FastAPI) -> None:
        with serve(app) as port, ThreadPoolExecutor(8) as pool:
            assert [*pool.map(lambda _: send(port, "GET", "/dashboard/"), range(8))] == [200] * 8

    def test_services_can_show_it_one_after_the_other(self, tmp_path: Path) -> None:
        for number in range(3):
            with make_client(Settings(models_dir=tmp_path / str(number))) as client:
                assert client.get("/dashboard").status_code == 200
                assert connect(client).startswith('0{"sid":')

    def test_a_second_service_of_the_process_is_refused(self, client: TestClient, tmp_path: Path) -> None:
        assert client.get("/dashboard").status_code == 200
        with make_client(Settings(models_dir=tmp_path / "other")) as other:
            response = other.get("/dashboard")
            assert response.status_code == 503
            assert "another service" in response.json()["detail"]

    def test_worker_processes_do_not_import_it(self, client: TestClient) -> None:
        assert client.get("/dashboard").status_code == 200
        executor = ProcessExecutor(LogStyle())
        try:
            run = executor.start(Task(f"{__name__}:list_modules", (), "CartPole-v1"), IgnoredProgress())
            assert run.wait(PATIENCE_SECONDS)
            modules = run.get_content().decode().split()
        finally:
            executor.close()
        assert "torch" in modules
        assert "nicegui" not in modules

    def test_all_links_of_a_page_stay_below_it(self, client: TestClient) -> None:
        page = client.get("/dashboard").text
        assert '"/_nicegui' not in page
        assert "/dashboard/_nicegui/" in page
        assert "transports: ['websocket']" in page
        assert "https://" not in page


class TestHeaders:
    def test_pages_load_nothing_from_elsewhere_and_are_not_framed(self, client: TestClient) -> None:
        response = client.get("/dashboard")
        policy = dict(part.split(maxsplit=1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert not [source for sources in policy.values() for source in sources.split() if "." in source]
        assert set(response.headers.get_list("cache-control")) == {"no-store"}

    def test_browsers_cache_what_never_changes(self, client: TestClient) -> None:
        client.get("/dashboard")
        response = client.get("/dashboard/_nicegui/3.18.0/static/nicegui.js")
        assert response.status_code == 200
        assert response.headers.get_list("cache-control") == ["private, max-age=86400"]


class TestSockets:
    @pytest.mark.parametrize("origin", [None, "http://localhost", "http://127.0.0.1:8888"])
    def test_pages_of_this_server_may_open_one(self, client: TestClient, origin: str | None) -> None:
        headers = {} if origin is None else {"origin": origin}
        assert connect(client, **headers).startswith('0{"sid":')

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", ""])
    def test_pages_of_other_sites_may_not(self, client: TestClient, origin: str) -> None:
        assert refuse(client, origin=origin) == 403

    def test_a_browser_that_names_a_foreign_site_may_not(self, client: TestClient) -> None:
        assert refuse(client, **{"sec-fetch-site": "cross-site"}) == 403

    def test_a_name_that_is_not_this_servers_is_refused(self, client: TestClient) -> None:
        assert refuse(client, SOCKET.replace("localhost", "evil.example")) == 400

    def test_polling_is_not_answered(self, client: TestClient) -> None:
        client.get("/dashboard")
        path = SOCKET.removeprefix("ws://localhost").replace("websocket", "polling")
        response = client.get(path, headers={"origin": "https://evil.example"})
        assert response.status_code == 400
        assert "access-control-allow-origin" not in response.headers

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_a_request_that_has_not_upgraded_opens_none(self, client: TestClient, method: str) -> None:
        path = SOCKET.removeprefix("ws://localhost")
        assert client.request(method, path, headers={"upgrade": "websocket"}).status_code == 400

    @with_key
    def test_one_needs_the_key_or_a_session(self, client: TestClient) -> None:
        assert refuse(client) == 401
        assert connect(client, **{"x-api-key": KEY}).startswith('0{"sid":')
        session = {"cookie": f"{COOKIE_NAME}={Sessions(KEY.encode()).make_token()}"}
        assert connect(client, origin="http://localhost", **session).startswith('0{"sid":')

    @with_key
    @pytest.mark.parametrize("origin", [{}, {"origin": "http://localhost:3000"}])
    def test_a_session_serves_only_the_servers_own_pages(self, client: TestClient, origin: dict[str, str]) -> None:
        session = {"cookie": f"{COOKIE_NAME}={Sessions(KEY.encode()).make_token()}"}
        assert refuse(client, **session, **origin) == 403

    def test_an_address_without_one_says_so(self, client: TestClient) -> None:
        for path in ("/health", "/dashboard/_nicegui_ws/socket.io/?EIO=4&transport=polling"):
            assert refuse(client, f"ws://localhost{path}") == 404

    def test_it_is_closed_if_the_server_cannot_send_a_denial(self, app: FastAPI) -> None:
        messages: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send_message(message: Any) -> None:
            messages.append(message)

        headers = [(b"host", b"localhost"), (b"origin", b"https://evil.example")]
        scope = {"type": "websocket", "path": "/dashboard/_nicegui_ws/socket.io/", "headers": headers}
        anyio.run(app, scope, receive, send_message)
        assert [(message["type"], message["code"]) for message in messages] == [("websocket.close", 1008)]


@pytest.fixture(autouse=True)
def _quiet_sockets(caplog: pytest.LogCaptureFixture) -> None:
    """Keep engine.io's warnings about refused requests out of the output."""
    caplog.set_level("CRITICAL", "engineio.server")
