"""Many clients, two jobs, models that come and go, and a crowd that only holds connections: no answer is wrong."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.lib.http_load import Exchange, LoadClient, Sample, make_request
from benchmarks.lib.server import Server, serve
from grpo_core.saving import model_file
from tests.load.churn import churn
from tests.load.hostile import crowd
from tests.models import make_model
from tests.suites import IS_LONG, SEED, Report, choose
from tests.support import PATIENT_VARIABLES, wait_until

N_CLIENTS = 64
SECONDS = choose(1.0, 60.0)
N_IDLE, N_DRIBBLING = choose((100, 20), (500, 100))
# The aim of the long form, in which figures mean something: others' latency with the crowd, beside without it.
MAX_RATIO = 2.0
JOB = {"env_name": "CartPole-v1", "total_timesteps": 10_000_000}


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    return [make_model("CartPole-v1", seed).to_bytes(env_name="CartPole-v1") for seed in range(3)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "steady.zip").write_bytes(contents[0])
    with serve(folder, **PATIENT_VARIABLES, GRPO_TENSORBOARD_DIR=str(tmp_path_factory.mktemp("runs"))) as server:
        yield server


@pytest.fixture(scope="module")
def clients() -> Iterator[LoadClient]:
    client = LoadClient()
    yield client
    client.close()


def make_exchanges(content: bytes, name: str = "steady") -> list[Exchange]:
    """Make requests, and the answers that the policy alone gives, one at a time and in one thread."""
    actor = model_file.from_bytes(content).make_actor()
    exchanges = []
    for observation in np.random.default_rng(SEED).uniform(-1.0, 1.0, (64, 4)):
        body = {"model_name": name, "observation": observation.tolist()}
        exchanges.append(Exchange(make_request("POST", "/inference", json.dumps(body).encode()), expect(actor, body)))
    return exchanges


def expect(actor: Any, body: dict[str, Any]) -> bytes:
    rows = np.array([body["observation"]], np.float32)
    return b'{"action":%d,' % actor.best_actions(rows)[0]


def start_jobs(server: Server) -> list[str]:
    ids = [server.call("POST", "/train", {**JOB, "seed": seed})["job_id"] for seed in range(2)]
    for job_id in ids:
        wait_until(lambda: server.call("GET", f"/training/{job_id}/status")["current_timesteps"] > 0)  # noqa: B023
    return ids


def note(report: Report, name: str, sample: Sample) -> None:
    report.figures[name] = {
        "answers": len(sample.latencies),
        "wrong": sample.n_wrong,
        "p50_ms": round(sample.get_latency(50), 2),
        "p99_ms": round(sample.get_latency(99), 2),
    }


def test_no_answer_is_wrong_and_nobody_waits_for_those_who_only_hold_connections(
    server: Server, clients: LoadClient, contents: list[bytes]
) -> None:
    report, exchanges = Report("load", "64 clients"), make_exchanges(contents[0])
    observation = [0.1, 0.0, 0.05, 0.0]
    files = {
        content: expect(model_file.from_bytes(content).make_actor(), {"observation": observation}).decode()
        for content in contents[1:]
    }
    url = f"http://127.0.0.1:{server.port}"
    job_ids = start_jobs(server)
    with churn(url, files, observation) as changing:
        alone = clients.measure(server.port, exchanges, N_CLIENTS, SECONDS)
        with crowd(server.port, N_IDLE, N_DRIBBLING) as people:
            beside = clients.measure(server.port, exchanges, N_CLIENTS, SECONDS)
            health = clients.measure(
                server.port, [Exchange(make_request("GET", "/health"), b"healthy")], 1, SECONDS / 2
            )
    for job_id in job_ids:
        server.call("POST", f"/training/{job_id}/stop")
    note(report, "without the crowd", alone)
    note(report, "with the crowd", beside)
    note(report, "health", health)
    ratio = beside.get_latency(99) / alone.get_latency(99)
    report.figures |= {
        "changes": changing.n_answers,
        "wrong changes": len(changing.wrong),
        "closed of the crowd": people.n_closed,
        "ratio of p99": round(ratio, 2),
    }
    report.write()
    assert changing.wrong == []
    assert changing.n_answers > 0
    assert (alone.n_wrong, beside.n_wrong, health.n_wrong) == (0, 0, 0)
    if IS_LONG:
        assert ratio <= MAX_RATIO
        assert people.n_closed >= N_IDLE


def test_the_check_finds_a_wrong_answer(server: Server, clients: LoadClient, contents: list[bytes]) -> None:
    """Asked for the answers of another policy, it has to complain."""
    right, other = make_exchanges(contents[0]), make_exchanges(contents[1])
    mixed = [Exchange(mine.request, theirs.expected) for mine, theirs in zip(right, other, strict=True)]
    n_different = sum(mine.expected != theirs.expected for mine, theirs in zip(right, other, strict=True))
    assert n_different > 0
    sample = clients.measure(server.port, mixed, 1, 0.5)
    assert sample.n_wrong > 0
