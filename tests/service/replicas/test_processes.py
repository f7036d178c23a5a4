"""Replicas are processes that share a port: one of them may end while the others answer, and nobody notices."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.lib.server import hold_port
from service.http.serving.shutdown import _LINGER_SECONDS
from tests.models import make_model
from tests.support import PATIENCE_SECONDS, wait_until

ROOT = Path(__file__).parent.parent.parent.parent
BODY = json.dumps({"model_name": "m", "observation": [0.1, 0.0, 0.05, 0.0]})
HEADERS = {"Content-Type": "application/json"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not spread connections")


def call(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def answers(port: int) -> bool:
    try:
        return call(port, "/health")[0] == 200
    except OSError:
        return False


class Load:
    """Asks without a pause, over connections that are kept and over new ones."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.outcomes: Counter[str] = Counter()
        self._is_ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(kept,)) for kept in (True, True, False, False)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, is_kept: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_SECONDS)
        asked = time.monotonic()
        while not self._is_ending.is_set():
            try:
                asked, asked_before = time.monotonic(), asked
                connection.request("POST", "/inference", BODY, HEADERS)
                answer = connection.getresponse()
                answer.read()
                self.outcomes[str(answer.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                # A busy machine may keep this thread from its connection for longer than a server that ends waits.
                if not is_kept or time.monotonic() - asked_before < _LINGER_SECONDS:
                    self.outcomes[repr(error)] += 1
                connection.close()
            if not is_kept:
                connection.close()
        connection.close()


@pytest.fixture
def port() -> Iterator[int]:
    """A shared port, followed by one for each of two replicas."""
    with hold_port(3) as port:
        yield port


@pytest.fixture
def supervisor(port: int, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Two replicas that share a port."""
    (tmp_path / "m.zip").write_bytes(make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPO_")}
    options = f"--role=serve --replicas=2 --port={port} --metrics-port={port + 1} --models-dir={tmp_path}".split()
    process = subprocess.Popen(
        [sys.executable, "run_api.py", *options], cwd=ROOT, env={**environment, "GRPO_LOG_LEVEL": "warning"}
    )
    yield process
    if process.poll() is None:
        for replica in psutil.Process(process.pid).children():
            replica.kill()
        process.kill()
        process.wait()


def test_one_of_two_replicas_ends_and_nobody_notices(supervisor: "subprocess.Popen[bytes]", port: int) -> None:
    own_ports = (port + 1, port + 2)
    wait_until(lambda: all(map(answers, (port, *own_ports))))
    shown = [call(own, "/metrics")[1].split(b"grpo_replica_info{", 1)[1].splitlines()[0] for own in own_ports]
    assert shown[0] != shown[1]
    replicas = psutil.Process(supervisor.pid).children()
    assert len(replicas) == 2
    with Load(port) as load:
        wait_until(lambda: load.outcomes["200"] > 200)
        ended = replicas[0]
        ended.terminate()
        ended.wait(PATIENCE_SECONDS)
        n_before = load.outcomes["200"]
        wait_until(lambda: load.outcomes["200"] > n_before + 200)
        wait_until(lambda: len(psutil.Process(supervisor.pid).children()) == 2)  # it starts again
        wait_until(lambda: all(map(answers, own_ports)))
    assert set(load.outcomes) == {"200"}, load.outcomes
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(PATIENCE_SECONDS) == 0


def test_a_replica_imports_nothing_that_trains_starts_no_process_and_writes_nothing_to_the_folder(
    tmp_path: Path,
) -> None:
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
    (tmp_path / ".versions" / "m").mkdir(parents=True)
    for name in ("m.zip", ".versions/m/1.zip", ".tmp-left", ".versions/m/.tmp-left", ".versions/gone.zip"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".versions" / "m" / "notes.json").write_text('{"aliases": ')  # damaged
    (tmp_path / "damaged.zip").write_bytes(content[:1000])
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    script = f"""
import os, sys
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NAMES = "remove rename mkdir rmdir link symlink truncate utime chmod"
CHANGES = ["os." + name for name in NAMES.split()]
written = []

def note(event, arguments):
    paths = [os.fspath(one) for one in arguments[:2] if isinstance(one, (str, os.PathLike))]
    if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
        written.extend((event, path) for path in paths if os.path.abspath(path).startswith({str(tmp_path)!r}))

sys.addaudithook(note)
from pathlib import Path
from fastapi.testclient import TestClient
from api import create_app
from service.settings import Settings

settings = Settings(models_dir=Path({str(tmp_path)!r}), role="serve", preload=True)
with TestClient(create_app(settings), base_url="http://localhost") as client:
    assert client.post("/inference", content={BODY!r}, headers={HEADERS!r}).status_code == 200
    for path in ("/models", "/models/m", "/models/m/versions", "/models/m/file", "/metrics", "/docs"):
        assert client.get(path).status_code == 200, path
    import psutil
    assert not psutil.Process().children()
    for path in ("/models/m/versions/1", "/models/damaged", "/models/damaged/file", "/health/ready"):
        client.get(path)
    for method, path in (("DELETE", "/models/m"), ("PUT", "/models/m/file"), ("PUT", "/models/m/aliases/a")):
        assert client.request(method, path, content=b"{{}}").status_code == 403, path
    assert not {{"torch", "stable_baselines3", "pandas", "matplotlib", "nicegui"}} & set(sys.modules)
assert written == []
open({str(tmp_path / "probe")!r}, "w").close()
os.remove({str(tmp_path / "probe")!r})
assert [event for event, _ in written] == ["open", "os.remove"], written
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
