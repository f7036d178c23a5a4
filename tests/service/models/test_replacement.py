"""Downloaded model files can be uploaded unchanged, and no unusable file ever replaces a good one."""

import errno
import hashlib
import io
import os
import select
import socket
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import FlattenExtractor

from grpo import GRPO
from grpo_core.saving import model_file
from service.models.served import InspectedFile
from service.models.store import ModelStore
from service.settings import Settings
from tests.environments import Gate, LineEnv
from tests.models import forge, make_model
from tests.support import PATIENCE_SECONDS, get_status, serve, train, wait_until

RegisterEnv = Callable[..., str]
ZIP = {"Content-Type": "application/zip"}


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """Files of two different policies."""
    return [make_model("CartPole-v1", seed).to_bytes(env_name="CartPole-v1") for seed in range(2)]


def upload(client: TestClient, content: bytes, name: str = "m", **query: Any) -> Any:
    return client.put(f"/models/{name}/file", content=content, headers=ZIP, params=query)


def get_detail(response: Any, status_code: int) -> str:
    assert response.status_code == status_code, response.text
    detail: str = response.json()["detail"]
    return detail


def get_sha256(client: TestClient, name: str = "m") -> str:
    sha256: str = client.get(f"/models/{name}").json()["sha256"]
    return sha256


class TestDownloading:
    def test_a_file_comes_back_as_it_was_saved_and_is_loaded_by_the_library(
        self, client: TestClient, contents: list[bytes], settings: Settings, tmp_path: Path
    ) -> None:
        (settings.models_dir / "m.zip").write_bytes(contents[0])
        response = client.get("/models/m/file")
        assert response.content == contents[0]
        assert response.headers["content-type"] == "application/zip"
        assert response.headers["content-length"] == str(len(contents[0]))
        assert response.headers["content-disposition"] == 'attachment; filename="m.zip"'
        assert response.headers["etag"] == f'"{hashlib.sha256(contents[0]).hexdigest()}"'
        (tmp_path / "taken.zip").write_bytes(response.content)
        assert GRPO.load(tmp_path / "taken.zip").num_timesteps == 0

    def test_a_file_that_is_known_is_not_sent_again(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        (settings.models_dir / "m.zip").write_bytes(contents[0])
        etag = client.get("/models/m/file").headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            response = client.get("/models/m/file", headers={"If-None-Match": known})
            assert (response.status_code, response.content) == (304, b""), known
            assert response.headers["etag"] == etag
        (settings.models_dir / "m.zip").write_bytes(contents[1])
        assert client.get("/models/m/file", headers={"If-None-Match": etag}).content == contents[1]

    def test_another_file_than_the_one_that_is_meant_is_not_sent(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        (settings.models_dir / "m.zip").write_bytes(contents[0])
        etag = client.get("/models/m/file").headers["etag"]
        for meant in (etag, f'"other", {etag}', "*"):
            part = client.get("/models/m/file", headers={"If-Match": meant, "Range": "bytes=0-3"})
            assert (part.status_code, part.content) == (206, contents[0][:4]), meant
        for meant in ('"other"', f"W/{etag}", ""):
            refused = client.get("/models/m/file", headers={"If-Match": meant, "If-None-Match": etag})
            assert etag in get_detail(refused, 412), meant
            assert refused.json()["type"] == "urn:grpo:problem:precondition-failed"

    def test_a_file_that_is_too_large_to_be_read_is_there_and_has_no_etag(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        path = settings.models_dir / "m.zip"
        path.write_bytes(contents[0])
        os.truncate(path, model_file.SERVICE_LIMITS.file_bytes + 1)
        url, replace = "/models/m", "/models/m/file?overwrite=true"
        for meant in ('""', ""):
            refused = client.delete(url, headers={"If-Match": meant})
            assert "too large to have an ETag" in get_detail(refused, 412), meant
        refused = client.put(replace, content=contents[1], headers={"If-None-Match": "*", **ZIP})
        assert "too large to have an ETag" in get_detail(refused, 412)
        assert client.delete(url, headers={"If-Match": "*"}).status_code == 200

    @pytest.mark.parametrize("damage", [lambda c: c[:-5], lambda c: c.replace(b"grpo_meta.json", b"hers_meta.json")])
    def test_a_file_that_cannot_be_used_is_not_sent(
        self, client: TestClient, contents: list[bytes], settings: Settings, damage: Callable[[bytes], bytes]
    ) -> None:
        (settings.models_dir / "m.zip").write_bytes(damage(contents[0]))
        assert "m" in get_detail(client.get("/models/m/file"), 409)

    @pytest.mark.parametrize("name", ["missing", "CON", "..", "%2e%2e", ".lock"])
    def test_nothing_else_is_sent(self, client: TestClient, name: str) -> None:
        assert client.get(f"/models/{name}/file").status_code == 404

    def test_a_link_is_not_followed(self, client: TestClient, contents: list[bytes], settings: Settings) -> None:
        outside = settings.models_dir.parent / "outside.zip"
        outside.write_bytes(contents[0])
        (settings.models_dir / "m.zip").symlink_to(outside)
        assert client.get("/models/m/file").status_code == 404

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_a_client_that_goes_away_leaves_no_open_file(self, app: FastAPI, settings: Settings) -> None:
        (settings.models_dir / "m.zip").write_bytes(make_large_file())

        def count_open() -> int:
            links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
            return sum(os.path.lexists(link) and os.path.realpath(link).endswith("m.zip") for link in links)

        with serve(app) as port:
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    connection.sendall(b"GET /models/m/file HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    assert connection.recv(100).startswith(b"HTTP/1.1 200")
            wait_until(lambda: count_open() == 0)


def test_only_the_file_that_a_client_means_is_replaced_or_deleted(client: TestClient, contents: list[bytes]) -> None:
    def change(method: str, **headers: str) -> int:
        content: dict[str, Any] = {"content": contents[1], "params": {"overwrite": True}} if method == "PUT" else {}
        path = {"PUT": "/models/m/file", "POST": "/models/m/rollback"}.get(method, "/models/m")
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if method == "PUT":
            sent |= ZIP
        response = client.request(method, path, headers=sent, **content)
        return int(response.status_code)

    for none in ('"other"', "*"):  # nothing is there yet
        assert change("PUT", If_Match=none) == 412
    assert change("PUT", If_None_Match="*") == 200
    first = f'"{get_sha256(client)}"'
    upload(client, contents[0], overwrite=True)  # somebody else was quicker
    for method in ("PUT", "POST", "DELETE"):
        assert change(method, If_Match=first) == 412
        assert change(method, If_None_Match="*") == 412
        assert get_sha256(client) == hashlib.sha256(contents[0]).hexdigest()
    assert change("POST", If_Match=f'"{get_sha256(client)}"') == 200
    upload(client, contents[0], overwrite=True)
    assert change("PUT", If_Match=f'"{get_sha256(client)}"') == 200
    assert change("DELETE", If_Match=first) == 200
    assert change("DELETE", If_Match=first) == 412


class TestUploading:
    def test_a_file_is_served_at_once_and_answered_with_its_card(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        response = upload(client, contents[0])
        assert response.status_code == 200, response.text
        assert response.json() == client.get("/models/m").json()
        assert response.json()["sha256"] == hashlib.sha256(contents[0]).hexdigest()
        assert (settings.models_dir / "m.zip").read_bytes() == contents[0]
        answer = client.post("/inference", json={"model_name": "m", "observation": [0.1, 0.0, 0.05, 0.0]})
        assert answer.status_code == 200

    def test_a_policy_with_layers_of_its_authors_own_is_refused(self, client: TestClient) -> None:
        extractor = type("Features", (FlattenExtractor,), {})
        model = make_model("CartPole-v1", policy_kwargs={"features_extractor_class": extractor})
        detail = get_detail(upload(client, model.to_bytes()), 400)
        assert "features_extractor_class=Features" in detail
        assert "Load it in Python, with GRPO.load(path, ...)" in detail

    @pytest.mark.parametrize("content_type", ["application/zip", "application/octet-stream", "Application/ZIP; x=1"])
    def test_either_type_is_taken(self, client: TestClient, contents: list[bytes], content_type: str) -> None:
        response = client.put("/models/m/file", content=contents[0], headers={"Content-Type": content_type})
        assert response.status_code == 200

    def test_another_type_is_refused(self, client: TestClient, contents: list[bytes]) -> None:
        response = client.put("/models/m/file", content=contents[0], headers={"Content-Type": "application/json"})
        assert "application/zip" in get_detail(response, 415)

    def test_a_model_is_replaced_only_if_the_client_says_so(self, client: TestClient, contents: list[bytes]) -> None:
        upload(client, contents[0])
        before = get_sha256(client)
        assert "overwrite=true" in get_detail(upload(client, contents[1]), 409)
        assert get_sha256(client) == before
        assert upload(client, contents[1], overwrite=True).status_code == 200
        assert get_sha256(client) == hashlib.sha256(contents[1]).hexdigest()

    def test_a_name_that_differs_by_case_alone_is_refused(self, client: TestClient, contents: list[bytes]) -> None:
        upload(client, contents[0])
        assert "case" in get_detail(upload(client, contents[1], "M"), 409)

    @pytest.mark.parametrize("name", ["CON", ".hidden", "a b", "x" * 101, "dot."])
    def test_a_name_that_no_model_may_have_is_refused(
        self, client: TestClient, contents: list[bytes], settings: Settings, name: str
    ) -> None:
        get_detail(upload(client, contents[0], name), 422)
        assert list(settings.models_dir.glob("[!.]*")) == []

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_name_that_a_job_will_save_under_is_refused(
        self, client: TestClient, contents: list[bytes], register_env: RegisterEnv, gate: Gate, overwrite: bool
    ) -> None:
        job_id = train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), model_name="M")
        assert job_id in get_detail(upload(client, contents[0], "m", overwrite=overwrite), 409)

    def test_a_job_may_not_take_a_name_while_a_file_is_uploaded_under_it(
        self, app: FastAPI, client: TestClient, contents: list[bytes]
    ) -> None:
        with app.state.service.registry.reserve_name("m"):
            response = client.post("/train", json={"model_name": "M", "total_timesteps": 32})
            assert "being saved" in get_detail(response, 409)
            get_detail(client.delete("/models/m"), 409)
            get_detail(upload(client, contents[0]), 409)
        assert upload(client, contents[0]).status_code == 200
        job_id = train(client, model_name="m", total_timesteps=32)
        wait_until(lambda: get_status(client, job_id)["status"] == "completed")

    def test_nobody_deletes_it_before_its_card_is_made(
        self, client: TestClient, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deleted: list[int] = []

        def delete_first(store: ModelStore, name: str) -> InspectedFile:
            monkeypatch.undo()
            deleted.append(client.delete(f"/models/{name}").status_code)
            return store.inspect_file(name)

        monkeypatch.setattr(ModelStore, "inspect_file", delete_first)
        answer = upload(client, contents[0])
        assert (answer.status_code, deleted) == (200, [409])
        assert answer.json()["sha256"] == get_sha256(client)

    def test_of_many_who_upload_under_one_name_one_succeeds(self, client: TestClient, contents: list[bytes]) -> None:
        barrier = threading.Barrier(4)

        def send(i: int) -> int:
            barrier.wait()
            status_code: int = upload(client, contents[i % 2]).status_code
            return status_code

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(send, range(4))) == [200, 409, 409, 409]

    @pytest.mark.parametrize("overrides", [{"max_upload_bytes": 1024}])
    def test_a_file_that_is_too_large_is_refused(self, client: TestClient, contents: list[bytes]) -> None:
        assert "1024 bytes" in get_detail(upload(client, contents[0]), 413)

    def test_a_large_file_is_taken_where_other_bodies_would_be_too_large(
        self, client: TestClient, contents: list[bytes]
    ) -> None:
        content = make_large_file()
        assert len(content) > 2 * 2**20
        assert upload(client, content).status_code == 200

    def test_a_disk_that_is_full_is_told_and_the_old_file_stays(
        self, client: TestClient, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload(client, contents[0])

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", refuse)
        assert "No space left" in get_detail(upload(client, contents[1], overwrite=True), 507)
        assert get_sha256(client) == hashlib.sha256(contents[0]).hexdigest()

    @pytest.mark.parametrize("overrides", [{"api_key": "a key of 22 characters"}], ids=["key"])
    def test_more_than_four_at_once_are_told_to_come_again_unless_they_lack_the_key(self, app: FastAPI) -> None:
        head = (
            b"PUT /models/m/file HTTP/1.1\r\nHost: localhost\r\nX-API-Key: a key of 22 characters\r\n"
            b"Content-Type: application/zip\r\nContent-Length: 9\r\n\r\n"
        )
        with serve(app) as port:
            connections = [socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) for _ in range(5)]
            for connection in connections:
                connection.sendall(head)
            (refused, *others), _, _ = select.select(connections, [], [], PATIENCE_SECONDS)
            assert others == []
            refusal = refused.recv(4096)
            assert refusal.startswith(b"HTTP/1.1 429")
            assert b"retry-after" in refusal.lower()
            client = TestClient(app, base_url="http://localhost")
            assert upload(client, b"none").status_code == 401
            for connection in connections:
                connection.close()
            # Disconnected clients free their places.
            client.headers["X-API-Key"] = "a key of 22 characters"
            wait_until(lambda: bool(upload(client, b"none").status_code == 400))


class TestUnusableFiles:
    @pytest.mark.parametrize(
        "make",
        [
            lambda content, tmp_path: b"",
            lambda content, tmp_path: b"none",
            lambda content, tmp_path: content[:-9],
            lambda content, tmp_path: content.replace(b"grpo_meta.json", b"hers_meta.json"),
            lambda content, tmp_path: forge(content, network={}),
            lambda content, tmp_path: forge(content, sha256={}),
            lambda content, tmp_path: make_bomb(),
            lambda content, tmp_path: save_ppo(tmp_path),
        ],
        ids=["empty", "text", "cut", "foreign", "network", "checksums", "bomb", "pickles"],
    )
    def test_they_are_refused_and_the_good_file_stays(
        self,
        client: TestClient,
        contents: list[bytes],
        settings: Settings,
        tmp_path: Path,
        make: Callable[[bytes, Path], bytes],
    ) -> None:
        upload(client, contents[0])
        for name in ("m", "other"):
            get_detail(upload(client, make(contents[1], tmp_path), name, overwrite=True), 400)
        assert get_sha256(client) == hashlib.sha256(contents[0]).hexdigest()
        assert [file.name for file in settings.models_dir.glob("[!.]*")] == ["m.zip"]

    @hypothesis_settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150
    )
    @given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 8)), min_size=1, max_size=4))
    def test_whatever_is_done_to_a_file_it_is_served_in_full_or_refused(
        self, client: TestClient, contents: list[bytes], edits: list[tuple[float, bytes, int]]
    ) -> None:
        upload(client, contents[0], overwrite=True)
        mutated = bytearray(contents[1])
        for place, inserted, n_removed in edits:
            # Half of the places lie where a zip describes its content: metadata first, directory last.
            start = int(place * 2 * 6000) if place < 0.5 else len(mutated) - int((1 - place) * 2 * 3000)
            mutated[start : start + n_removed] = inserted
        response = upload(client, bytes(mutated), overwrite=True)
        assert response.status_code in (200, 400), response.text
        if response.status_code == 400:
            assert get_sha256(client) == hashlib.sha256(contents[0]).hexdigest()
        answer = client.post("/inference", json={"model_name": "m", "observation": [0.1, 0.0, 0.05, 0.0]})
        assert answer.status_code in (200, 400)
        assert client.get("/models/m/file").status_code == 200

    @hypothesis_settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=100
    )
    @given(
        spaces=st.fixed_dictionaries(
            {
                "observation": st.fixed_dictionaries(
                    {
                        "type": st.sampled_from(["Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple"]),
                        "shape": st.lists(st.integers(-2, 2**40), max_size=4) | st.just([4]),
                        "low": st.just("-0x1p+0") | st.lists(st.floats() | st.text(max_size=3), max_size=4),
                        "high": st.just("nan") | st.lists(st.integers(), max_size=4),
                        "n": st.integers() | st.lists(st.integers(), max_size=3),
                        "nvec": st.lists(st.integers(), max_size=3),
                        "dtype": st.sampled_from(["float32", "uint8", "O", "U9", "complex64", "datetime64", "x"]),
                        "spaces": st.lists(st.tuples(st.text(max_size=3), st.just({"type": "Discrete", "n": 2}))),
                    }
                ),
                "action": st.fixed_dictionaries({"type": st.just("Discrete"), "n": st.integers() | st.floats()}),
            }
        )
    )
    def test_whatever_spaces_a_file_claims_it_is_served_or_refused(
        self, client: TestClient, contents: list[bytes], spaces: dict[str, Any]
    ) -> None:
        response = upload(client, forge(contents[0], spaces=spaces), overwrite=True)
        assert response.status_code in (200, 400), response.text


def make_large_file() -> bytes:
    """Save a model of some megabytes."""
    return make_model("CartPole-v1", policy_kwargs={"net_arch": [512, 512]}).to_bytes()


def make_bomb() -> bytes:
    """Pack a lot of zeros into few bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(model_file.META_MEMBER, b" " * 2**24)
    return file.getvalue()


def save_ppo(tmp_path: Path) -> bytes:
    """Save another model of Stable-Baselines3, whose zip holds pickles."""
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "ppo.zip")
    return (tmp_path / "ppo.zip").read_bytes()
