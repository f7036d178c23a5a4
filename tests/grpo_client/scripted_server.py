"""A server on loopback that gives the answers of a script."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


def make_status(**changes: Any) -> dict[str, Any]:
    """Return the JSON of a running job's status."""
    status = {
        "job_id": "j",
        "status": "running",
        "progress": 0.5,
        "current_timesteps": 4,
        "total_timesteps": 9,
        "created_at": "2026-11-25T10:00:00Z",
        "start_time": "2026-11-25T10:00:01Z",
        "end_time": None,
        "error_message": None,
        "metrics": {},
        "warnings": [],
        "model_name": None,
        "sha256": None,
        "elapsed_seconds": 1.0,
        "eta_seconds": None,
        "verdict": {"state": "learning", "text": "It learns."},
        "evaluation": None,
        "best_evaluation": None,
        "ended_by": None,
        "final_evaluation": None,
        "tensorboard_run": None,
        "config_origins": {},
        "config": {},
    }
    return {**status, **changes}


class Answer(NamedTuple):
    """One answer.

    :param status: HTTP status.
    :param body: Text of the body.
    :param headers: Headers to add to those of every answer.
    :param n_missing_bytes: Bytes that ``Content-Length`` announces and that never come.
    :param hold: Keeps the connection open and silent until it is set.
    """

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    n_missing_bytes: int = 0
    hold: threading.Event | None = None


class Received(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]


class ScriptedServer(ThreadingHTTPServer):
    """Gives one answer per request, and repeats the last one.

    :param script: The answers in order.
    """

    daemon_threads = True

    def __init__(self, script: list[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.received: list[Received] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, request: Received) -> Answer:
        with self.lock:
            self.received.append(request)
            return self.script[min(len(self.received), len(self.script)) - 1]


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.take(Received(self.command, self.path, headers))
        body = answer.body.encode()
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + answer.n_missing_bytes))
        self.end_headers()
        self.wfile.write(body)
        if answer.hold is not None:
            answer.hold.wait()

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serve_script(*script: Answer) -> Iterator[ScriptedServer]:
    """Serve answers until the block ends."""
    with ScriptedServer(list(script)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
