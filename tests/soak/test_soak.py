"""A server that works for long holds no more than at first."""

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from benchmarks.lib.http_load import Exchange, make_request, send_requests
from benchmarks.lib.server import hold_port
from tests.models import make_model
from tests.soak.gauge import Reading, find_growth, read
from tests.suites import IS_LONG, Report, choose
from tests.support import FINAL_STATUSES, PATIENCE_SECONDS, PATIENT_VARIABLES, wait_until

ROOT = Path(__file__).parent.parent.parent
# Two jobs a round: the long form has 2,000 of them and more than a million actions.
N_ROUNDS = choose(12, 1010)
INFERENCE_SECONDS = choose(0.15, 0.3)
# A short run still warms up, and its second half is a few seconds.
MAX_MIB, MAX_MORE = choose((8.0, 4), (5.0, 2))
_TYPE = {"Content-Type": "application/zip"}
_JOB = {"env_name": "CartPole-v1", "total_timesteps": 64, "n_eval_episodes": 0}


class Soaked:
    """A server and what it is asked.

    :param port: Its port.
    :param pid: Its process id.
    :param models_dir: Its models folder.
    :param temporary_dir: Its folder of temporary files.
    """

    def __init__(self, port: int, pid: int, models_dir: Path, temporary_dir: Path) -> None:
        self.readings: list[Reading] = []
        self.url, self._port, self._pid = f"http://127.0.0.1:{port}", port, pid
        self._models_dir, self._temporary_dir = models_dir, temporary_dir
        self._session = requests.Session()
        self._content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")

    def go_round(self, number: int, report: Report, with_jobs: bool) -> None:
        """Ask for everything once, and read what the server holds."""
        name = f"m{number}"
        path = f"{self.url}/models/{name}"
        self._must(self._session.put(f"{path}/file", self._content, headers=_TYPE, timeout=PATIENCE_SECONDS), report)
        body = json.dumps({"model_name": name, "observation": [0.1, 0.0, 0.05, 0.0]}).encode()
        exchange = Exchange(make_request("POST", "/inference", body), b'"action":')
        sample = send_requests(self._port, [exchange], 8, INFERENCE_SECONDS)
        assert sample.n_wrong == 0
        report.figures["inferences"] = report.figures.get("inferences", 0) + len(sample.latencies)
        for part in ("", "/file"):
            self._must(self._session.get(path + part, timeout=PATIENCE_SECONDS), report)
        if with_jobs and (IS_LONG or number % 4 == 0):
            self._train(number, report)
        self._must(self._session.delete(path, timeout=PATIENCE_SECONDS), report)
        assert self._session.get(path, timeout=PATIENCE_SECONDS).status_code == 404
        self.readings.append(read(self._pid, self._models_dir, self._temporary_dir))

    def _train(self, number: int, report: Report) -> None:
        """Let a job end, stop another, and leave its events before their end."""
        train = f"{self.url}/train"
        done = self._session.post(train, json={**_JOB, "model_name": "job"}, timeout=PATIENCE_SECONDS).json()["job_id"]
        long = {**_JOB, "total_timesteps": 1_000_000, "model_name": "stopped"}
        stopped = self._session.post(train, json=long, timeout=PATIENCE_SECONDS).json()["job_id"]
        with requests.get(f"{self.url}/training/{stopped}/events", stream=True, timeout=PATIENCE_SECONDS) as stream:
            assert next(stream.iter_content(1))
        self._must(self._session.post(f"{self.url}/training/{stopped}/stop", timeout=PATIENCE_SECONDS), report)
        for job_id in (done, stopped):
            wait_until(lambda: self._get_status(job_id) in FINAL_STATUSES)  # noqa: B023
        assert self._get_status(done) == "completed"
        report.figures["jobs"] = report.figures.get("jobs", 0) + 2

    def _get_status(self, job_id: str) -> str:
        status: str = self._session.get(f"{self.url}/training/{job_id}/status", timeout=PATIENCE_SECONDS).json()[
            "status"
        ]
        return status

    def _must(self, response: requests.Response, report: Report) -> None:
        report.count("other requests")
        assert response.status_code == 200, response.text

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


@contextmanager
def start(folder: Path, *program: str) -> Iterator[Soaked]:
    """Start a server, and end it afterwards."""
    with hold_port() as port:
        yield from _serve(folder, port, program)


def _serve(folder: Path, port: int, program: tuple[str, ...]) -> Iterator[Soaked]:
    settings = {"GRPO_MAX_KEPT_JOBS": "8", "GRPO_MAX_CACHED_MODELS": "4", "GRPO_PRELOAD": "1", "OMP_NUM_THREADS": "1"}
    settings |= {"GRPO_TENSORBOARD_DIR": str(folder / "runs"), "PATH": "/usr/bin:/bin"}
    settings |= PATIENT_VARIABLES
    # In a folder with a short name: sockets are made in it, whose names may have 100 characters.
    settings["TMPDIR"] = tempfile.mkdtemp()
    command = [sys.executable, *program, "--port", str(port), "--models-dir", str(folder / "models")]
    process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    soaked = Soaked(port, process.pid, folder / "models", Path(settings["TMPDIR"]))
    try:
        wait_until(lambda: process.poll() is not None or is_listening(port))
        yield soaked
    finally:
        soaked.close()
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
        shutil.rmtree(settings["TMPDIR"])


def is_listening(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def soak(soaked: Soaked, report: Report, seconds: float, n_rounds: int, with_jobs: bool) -> list[str]:
    """Go round until the time is over or the rounds are, and list what has grown."""
    end = time.monotonic() + seconds
    for number in range(n_rounds):
        soaked.go_round(number, report, with_jobs)
        if time.monotonic() > end and number >= 7:
            break
    report.figures["rounds"] = len(soaked.readings)
    report.figures["first"], report.figures["last"] = (
        {name: round(value, 1) for name, value in reading._asdict().items()}
        for reading in (soaked.readings[0], soaked.readings[-1])
    )
    grown = find_growth(soaked.readings, MAX_MIB, MAX_MORE)
    report.figures["grown"] = grown
    report.write()
    return grown


def test_a_server_that_works_for_long_holds_no_more(tmp_path: Path) -> None:
    report = Report("soak", "server")
    with start(tmp_path, "run_api.py") as soaked:
        assert soak(soaked, report, choose(math.inf, 5000.0), N_ROUNDS, with_jobs=True) == []


def test_the_gauge_finds_a_leak(tmp_path: Path) -> None:
    report = Report("soak", "negative control")
    with start(tmp_path, "-m", "tests.soak.leaking_server") as soaked:
        grown = soak(soaked, report, 8.0, 8, with_jobs=False)
    assert {text.split(":")[0] for text in grown} >= {"rss_mib", "n_descriptors", "n_threads"}, grown


@pytest.mark.parametrize(("last", "grown"), [(4.0, []), (6.0, ["rss_mib: 6.0 more"])])
def test_growth_is_what_the_last_quarter_has_more_than_the_one_before(last: float, grown: list[str]) -> None:
    readings = [Reading(100.0 + more, 10, 5, 1, 0, 0) for more in (0.0, 50.0, 50.0, 50.0 + last)]
    assert find_growth(readings, 5.0, 2) == grown
