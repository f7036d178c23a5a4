"""Prometheus can read the metrics, they follow what happens, and no client can inflate their number."""

import platform
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from grpo_core import __version__
from service.http.routes import inference
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.models import make_model
from tests.support import PATIENCE_SECONDS, make_client, serve, train, train_to_end, wait_until

OBSERVATION = [0.1, 0.0, 0.05, 0.0]
Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]


def scrape(client: TestClient) -> Samples:
    """Read all samples but the creation times."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def get(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def served(client: TestClient, tmp_path: Path) -> TestClient:
    """A client of a service with two policies, which are not in memory yet."""
    for name in ("m", "n"):
        make_model("CartPole-v1").save(tmp_path / "models" / f"{name}.zip")
    return client


def ask(client: TestClient, **fields: Any) -> int:
    body = {"model_name": "m", "observation": OBSERVATION, **fields}
    return int(client.post("/inference", json=body).status_code)


def test_every_family_is_there_from_the_start(client: TestClient) -> None:
    samples = scrape(client)
    names = {name for name, _ in samples}
    assert names >= {
        "grpo_jobs",
        "grpo_jobs_total",
        "grpo_job_queue_depth",
        "grpo_job_slots",
        "grpo_train_timesteps_total",
        "grpo_inference_duration_seconds_bucket",
        "grpo_inference_duration_seconds_count",
        "grpo_inference_batch_size_sum",
        "grpo_models_loaded",
        "grpo_model_evictions_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_cpu_seconds_total",
    }
    assert get(samples, "grpo_build_info", version=__version__, python=platform.python_version()) == 1
    assert get(samples, "grpo_job_slots") == 2
    assert get(samples, "process_resident_memory_bytes") > 2**20


def test_requests_are_counted_by_route_and_status(served: TestClient) -> None:
    for _ in range(3):
        served.get("/training/x/status")
    served.get("/health", headers={"host": "evil.example"})
    for _ in range(2):
        assert ask(served) == 200  # the route, and then the shortcut
    samples = scrape(served)

    def count(method: str, route: str, status: str) -> float:
        return get(samples, "grpo_http_requests_total", method=method, route=route, status=status)

    assert count("GET", "/training/{job_id}/status", "404") == 3
    assert count("GET", "unmatched", "400") == 1
    assert count("POST", "/inference", "200") == 2
    name = "grpo_http_request_duration_seconds"
    assert get(samples, f"{name}_count", method="POST", route="/inference") == 2
    assert get(samples, f"{name}_bucket", method="POST", route="/inference", le="+Inf") == 2
    assert 0 < get(samples, f"{name}_sum", method="POST", route="/inference") < PATIENCE_SECONDS
    served.get("/metrics")
    assert get(scrape(served), "grpo_http_requests_total", method="GET", route="/metrics", status="200") == 2


def test_inference_is_timed_by_route_shortcut_and_batch_and_only_where_it_answers(served: TestClient) -> None:
    assert [ask(served), ask(served), ask(served, model_name="none"), ask(served, observation=[1])] == [
        200,
        200,
        404,
        400,
    ]
    assert get(scrape(served), "grpo_inference_duration_seconds_count") == 2
    batch = {"model_name": "m", "observations": [OBSERVATION] * 5 + [[1.0]]}
    assert served.post("/inference/batch", json=batch).status_code == 200
    assert served.post("/inference/batch", json={**batch, "observations": []}).status_code == 422
    samples = scrape(served)
    assert get(samples, "grpo_inference_duration_seconds_count") == 3
    assert get(samples, "grpo_inference_batch_size_count") == 1
    assert get(samples, "grpo_inference_batch_size_sum") == 6
    assert get(samples, "grpo_inference_batch_size_bucket", le="1.0") == 0
    assert get(samples, "grpo_inference_batch_size_bucket", le="8.0") == 1


def test_an_array_counts_its_rows(served: TestClient) -> None:
    head = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (7, 4), }"
    body = head.ljust(127) + b"\n" + np.zeros((7, 4), np.float32).tobytes()
    headers = {"content-type": "application/octet-stream"}
    assert served.post("/inference/batch?model_name=m", content=body, headers=headers).status_code == 200
    assert get(scrape(served), "grpo_inference_batch_size_sum") == 7


def test_a_large_policy_is_timed_in_its_thread(served: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "LARGE_MODEL_BYTES", 0)
    assert ask(served) == 200
    assert get(scrape(served), "grpo_inference_duration_seconds_count") == 1


@pytest.mark.parametrize("overrides", [{"max_cached_models": 1}], ids=str)
def test_models_come_and_go(served: TestClient) -> None:
    for name in ("m", "n", "m"):
        assert ask(served, model_name=name) == 200
    samples = scrape(served)
    assert (get(samples, "grpo_models_loaded"), get(samples, "grpo_model_evictions_total")) == (1, 2)


@pytest.mark.parametrize("overrides", [{"max_cached_bytes": 50_000}], ids=str)
def test_models_that_are_too_large_together_are_evictions_too(served: TestClient) -> None:
    # Two layers of 64 units for policy and value: about 9,000 numbers of 4 bytes each.
    for name in ("m", "n"):
        assert ask(served, model_name=name) == 200
    samples = scrape(served)
    assert (get(samples, "grpo_models_loaded"), get(samples, "grpo_model_evictions_total")) == (1, 1)


def test_jobs_are_counted_where_they_are_and_how_they_end(
    client: TestClient, register_env: RegisterEnv, gate: Gate
) -> None:
    done = train_to_end(client, total_timesteps=64)
    failing = register_env(lambda: LineEnv(on_step=lambda: 1 / 0), "Failing-v0")  # type: ignore[arg-type, return-value]
    train_to_end(client, env_name=failing, group_mode="episode", horizon=16, total_timesteps=64)
    waiting = register_env(lambda: LineEnv(gate.pass_through))
    jobs = [train(client, env_name=waiting, group_mode="branch", total_timesteps=64) for _ in range(4)]
    wait_until(lambda: get(scrape(client), "grpo_jobs", status="running") == 2)
    samples = scrape(client)
    assert get(samples, "grpo_jobs", status="queued") == get(samples, "grpo_job_queue_depth") == 2
    assert get(samples, "grpo_jobs", status="completed") == get(samples, "grpo_jobs_total", outcome="completed") == 1
    assert get(samples, "grpo_jobs_total", outcome="failed") == 1
    assert get(samples, "grpo_train_timesteps_total") >= done["current_timesteps"]
    assert client.post(f"/training/{jobs[-1]}/stop").status_code == 200
    samples = scrape(client)
    assert (get(samples, "grpo_job_queue_depth"), get(samples, "grpo_jobs_total", outcome="stopped")) == (1, 1)


@pytest.mark.parametrize("overrides", [{"max_kept_jobs": 1}], ids=str)
def test_what_forgotten_jobs_have_done_still_counts(client: TestClient) -> None:
    n_timesteps = sum(train_to_end(client, total_timesteps=64)["current_timesteps"] for _ in range(3))
    samples = scrape(client)
    assert get(samples, "grpo_jobs_total", outcome="completed") == 3
    assert get(samples, "grpo_train_timesteps_total") == n_timesteps >= 192
    assert get(samples, "grpo_jobs", status="completed") < 3


def test_two_services_of_one_process_count_for_themselves(client: TestClient, tmp_path: Path) -> None:
    settings = client.app.state.service.settings  # type: ignore[attr-defined]
    with make_client(settings.model_copy(update={"models_dir": tmp_path / "others"})) as other:
        other.get("/models")
        route = {"method": "GET", "route": "/models", "status": "200"}
        assert get(scrape(other), "grpo_http_requests_total", **route) == 1
        assert get(scrape(client), "grpo_http_requests_total", **route) == 0


@pytest.fixture
def strange_requests(app: FastAPI) -> Iterator[Callable[[str], None]]:
    """Send requests with made-up paths and methods."""
    with serve(app) as port:

        def send(suffix: str) -> None:
            for method, path in (
                ("GET", f"/{suffix}"),
                ("DELETE", f"/models/{suffix}"),
                ("GET", f"/models/{suffix}/file"),
                ("GET", f"/training/{suffix}/status"),
                ("POST", f"/training/{suffix}/stop"),
                ("GET", f"/static-offline-docs/{suffix}"),
                ("GET", f"/docs/{suffix}"),
                ("GET", f"/environments/{suffix}"),
                ("GET", f"/health?{suffix}"),
                ("GET", f"//{suffix}//"),
                ("PROPFIND", f"/{suffix}"),
                ("MKCALENDAR", f"/models/{suffix}"),
            ):
                connection = HTTPConnection("127.0.0.1", port)
                connection.request(method, path)
                connection.getresponse().read()
                connection.close()

        yield send


def test_no_path_or_method_that_a_client_makes_up_adds_a_series(
    app: FastAPI, strange_requests: Callable[[str], None]
) -> None:
    strange_requests("first")
    before = app.state.service.metrics.render().decode()
    for number in range(25):
        strange_requests(f"made-up-{number}")
    after = app.state.service.metrics.render().decode()
    assert after.count("\n") == before.count("\n")
    assert "made-up" not in after
    assert 'method="other"' in after
    assert 'route="/static-offline-docs/*"' in after
    assert 'route="/training/{job_id}/status"' in after


@pytest.mark.parametrize("overrides", [{"api_key": "a key of 22 characters"}], ids=["key"])
def test_it_needs_the_key(client: TestClient) -> None:
    assert client.get("/metrics").status_code == 401
    client.headers["authorization"] = "Bearer a key of 22 characters"
    assert get(scrape(client), "grpo_http_requests_total", method="GET", route="unmatched", status="401") == 1
