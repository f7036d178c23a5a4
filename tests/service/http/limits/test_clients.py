"""What one client may take, and that nobody else pays for it."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.http.limits.clients import find_client, find_peer
from service.settings import Settings
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.models import make_model
from tests.support import get_status, train, train_to_end, wait_until

KEY = "a key of 22 characters"
RIGHT = {"x-api-key": KEY}

with_key = pytest.mark.parametrize("overrides", [{"api_key": KEY}], ids=["key"])


def limit(**settings: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("overrides", [{"client_limits": "on", **settings}], ids=["limited"])


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all requests of a test come at one moment, however long they take."""
    now = time.monotonic()
    monkeypatch.setattr("service.http.limits.windows.time", SimpleNamespace(monotonic=lambda: now))


@pytest.fixture
def other(app: FastAPI, client: TestClient) -> TestClient:
    """A client with another address, of the service that ``client`` runs."""
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False, client=("198.51.100.7", 1))


@with_key
class TestWrongKeys:
    def test_they_are_counted_wherever_they_are_sent(self, client: TestClient, other: TestClient) -> None:
        for _ in range(5):
            assert client.post("/login", data={"key": "wrong"}).status_code == 403
        for _ in range(15):
            assert client.get("/models", headers={"x-api-key": "wrong"}).status_code == 401
        for headers in ({"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}):
            response = client.get("/models", headers=headers)
            assert response.status_code == 429
            assert 0 < int(response.headers["retry-after"]) <= 60
        assert client.post("/login", data={"key": "wrong"}).status_code == 429
        assert other.get("/models", headers={"x-api-key": "wrong"}).status_code == 401

    def test_the_right_one_is_never_locked_out(self, client: TestClient) -> None:
        for _ in range(40):
            client.get("/models", headers={"x-api-key": "wrong"})
        assert client.get("/models", headers=RIGHT).status_code == 200
        assert client.post("/login", data={"key": KEY}, follow_redirects=False).status_code == 303

    def test_no_key_is_no_guess(self, client: TestClient) -> None:
        assert {client.get("/models").status_code for _ in range(60)} == {401}

    def test_the_shortcut_for_answers_counts_each_once(self, client: TestClient) -> None:
        body = {"model_name": "m", "observation": [0.0]}
        statuses = [client.post("/inference", json=body, headers={"x-api-key": "wrong"}).status_code for _ in range(31)]
        assert statuses == [401] * 30 + [429]

    def test_no_header_moves_the_limit(self, client: TestClient) -> None:
        statuses = [
            client.get("/models", headers={"x-api-key": "wrong", "x-forwarded-for": f"203.0.113.{i}"}).status_code
            for i in range(31)
        ]
        assert statuses == [401] * 30 + [429]


def test_the_peer_is_who_is_connected_and_the_client_whom_a_proxy_names() -> None:
    scope = {"client": ("203.0.113.9", 0), "state": {"peer": "127.0.0.1"}}
    assert (find_peer(scope), find_client(scope)) == ("127.0.0.1", "203.0.113.9")
    assert find_peer({"client": ("203.0.113.9", 0)}) == "203.0.113.9"


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("testclient", "testclient"),
    ],
)
def test_who_may_choose_between_addresses_is_one_client(address: str, client: str) -> None:
    assert find_client({"client": (address, 0)}) == client


@limit(client_requests_per_second=5)
def test_a_client_that_asks_too_often_is_told_when_to_come_again(client: TestClient, other: TestClient) -> None:
    answers = [client.get("/models") for _ in range(20)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 15
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["type"] == "urn:grpo:problem:too-many-requests"
    assert other.get("/models").status_code == 200
    assert {client.get("/health/live").status_code for _ in range(20)} == {200}


@limit(client_requests_per_second=5)
def test_the_shortcut_for_answers_counts_each_request_once(client: TestClient, settings: Settings) -> None:
    (settings.models_dir / "m.zip").write_bytes(make_model("CartPole-v1").to_bytes())
    body = {"model_name": "m", "observation": [0.0] * 4}
    statuses = [client.post("/inference", json=body).status_code for _ in range(20)]
    assert statuses == [200] * 5 + [429] * 15


@limit(client_jobs_per_minute=2)
@pytest.mark.parametrize("path", ["/training/nobody/resume", "/sweeps/nobody/resume"])
def test_resumes_count_as_jobs(client: TestClient, path: str) -> None:
    statuses = [client.post(path).status_code for _ in range(4)]
    assert statuses == [404, 404, 429, 429]


@limit(client_upload_bytes_per_hour=100_000)
def test_uploads_that_do_not_say_how_large_they_are_count_as_what_was_read(client: TestClient) -> None:
    def send(n_bytes: int) -> int:
        pieces = iter([b"x" * 20_000, b"x" * (n_bytes - 20_000)])
        headers = {"Content-Type": "application/zip"}
        return client.put("/models/m/file", content=pieces, headers=headers).status_code

    assert [send(40_000) for _ in range(4)] == [400, 400, 429, 429]
    assert send(20_000) == 400, "what was refused takes nothing of the rest"


@limit(client_upload_bytes_per_hour=100_000)
def test_an_upload_beyond_a_whole_hours_share_is_not_called_back_at_once(client: TestClient) -> None:
    headers = {"Content-Type": "application/zip"}
    response = client.put("/models/m/file", content=b"x" * 100_001, headers=headers)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3600")


@limit(client_upload_bytes_per_hour=100_000)
def test_an_upload_that_finds_no_place_takes_nothing_of_the_share(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send() -> Any:
        headers = {"Content-Type": "application/zip"}
        return client.put("/models/m/file", content=b"x" * 60_000, headers=headers)

    with monkeypatch.context() as full:
        full.setattr("service.http.request_guard._MAX_UPLOADS", 0)
        assert [send().json()["type"].rpartition(":")[2] for _ in range(2)] == ["uploads-full"] * 2
    assert [send().status_code for _ in range(2)] == [400, 429]


def test_nobody_is_limited_on_this_machine(client: TestClient) -> None:
    assert Settings(host="0.0.0.0").limits_clients
    assert not Settings(host="::1").limits_clients
    assert {client.get("/models").status_code for _ in range(700)} == {200}


@limit(client_jobs_per_minute=2, client_job_timesteps=1000)
def test_jobs_are_counted_and_bounded(client: TestClient, other: TestClient) -> None:
    assert client.post("/train", json={"total_timesteps": 1001}).status_code == 400
    status = train_to_end(client, total_timesteps=64)
    assert status["config"]["max_seconds"] == 3600
    assert status["config_origins"]["max_seconds"] == "default"
    assert status["config_origins"]["total_timesteps"] == "request"
    assert client.post("/train", json={"total_timesteps": 64}).status_code == 429
    assert other.post("/train", json={"max_seconds": 3601}).status_code == 400


@limit(client_job_timesteps=1000)
def test_no_rollout_is_longer_than_a_job_may_be(client: TestClient) -> None:
    response = client.post("/train", json={"total_timesteps": 64, "n_steps": 1024})
    assert response.status_code == 400
    assert "n_steps 1024" in response.json()["detail"]
    assert "GRPO_CLIENT_JOB_TIMESTEPS" in response.json()["detail"]
    sweep = {"base": {"total_timesteps": 64, "n_steps": 1024}, "space": {"learning_rate": [0.001, 0.01]}}
    assert "n_steps 1024" in client.post("/sweeps", json=sweep).json()["detail"]


@limit(client_active_jobs=1)
def test_a_client_has_so_many_jobs_at_a_time(
    client: TestClient, other: TestClient, register_env: RegisterEnv, gate: Gate
) -> None:
    env_name = register_env(lambda: LineEnv(gate.pass_through))
    body = {"env_name": env_name, "reward_function_type": "environment", "total_timesteps": 64}
    first = train(client, **body)
    refused = client.post("/train", json=body)
    assert refused.status_code == 429
    assert "GRPO_CLIENT_ACTIVE_JOBS" in refused.json()["detail"]
    second = train(other, **body)
    gate.admit()
    wait_until(lambda: all(get_status(client, job)["status"] == "completed" for job in (first, second)))
    assert client.post("/train", json={"total_timesteps": 64}).status_code == 200


@pytest.mark.parametrize("n_zeros", [0, 12])
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"client_limits": "on", "client_upload_bytes_per_hour": 60_000}, "60000 bytes of uploads per hour"),
        ({"max_models": 1}, "GRPO_MAX_MODELS"),
        ({"max_models_bytes": 60_000}, "GRPO_MAX_MODELS_BYTES"),
        ({"min_free_bytes": 2**60}, "GRPO_MIN_FREE_BYTES"),
    ],
)
def test_uploads_are_bounded(client: TestClient, said: str, n_zeros: int) -> None:
    content = make_model("CartPole-v1").to_bytes()  # of 43 kB
    headers = {"content-type": "application/zip", "content-length": f"{'0' * n_zeros}{len(content)}"}
    answers = [client.put(f"/models/{name}/file", content=content, headers=headers) for name in ("a", "b")]
    assert answers[-1].status_code in (429, 503)
    assert "retry-after" in answers[-1].headers
    assert said in answers[-1].json()["detail"]
    if "MODELS" in said:  # to replace what is there takes no more room
        path = "/models/a/file?overwrite=true"
        assert client.put(path, content=content, headers=headers).status_code == 200
