"""Versions of models are kept and found again, aliases point at them, and the newest is where it always was."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import Mock

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from grpo_core.saving.model_file import ModelFileError
from service.errors import InvalidRequestError, NotFoundError, StorageError
from service.models.files.folder import ModelFolder
from service.models.files.lock import lock_folder
from service.models.files.versions import MAX_ALIASES
from service.models.promotion import ModelPromotion
from service.settings import Settings
from tests.models import make_model
from tests.service.models.test_replacement import upload
from tests.support import open_model_store, train_to_end

N_VERSIONS = 4


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """Files of different policies."""
    return [make_model("CartPole-v1", seed).to_bytes(env_name="CartPole-v1") for seed in range(N_VERSIONS)]


def publish(client: TestClient, contents: list[bytes], name: str = "m") -> None:
    for content in contents:
        assert upload(client, content, name, overwrite=True).status_code == 200


def list_versions(client: TestClient, name: str = "m") -> list[int]:
    return [version["version"] for version in client.get(f"/models/{name}/versions").json()["versions"]]


def get_file(client: TestClient, reference: str) -> bytes:
    answer = client.get(f"/models/{reference}/file")
    assert answer.status_code == 200, answer.text
    return answer.content


class TestLinks:
    @pytest.mark.parametrize("place", [".versions", ".versions/m"])
    def test_one_that_leads_out_of_the_folder_is_not_followed(
        self, client: TestClient, settings: Settings, contents: list[bytes], tmp_path: Path, place: str
    ) -> None:
        target = tmp_path / "target"
        folder = target if place == ".versions/m" else target / "m"
        folder.mkdir(parents=True)
        before = {"1.zip": contents[2], "2.zip": contents[3], ".tmp-x": b""}
        for name, content in before.items():
            (folder / name).write_bytes(content)
        link = settings.models_dir / place
        link.parent.mkdir(exist_ok=True)
        publish(client, contents[:1])
        link.symlink_to(target)
        answer = upload(client, contents[1], "m", overwrite=True)
        assert answer.status_code == (503 if place == ".versions" else 507)
        assert "is not a folder" in answer.json()["detail"]
        assert client.get("/health/ready").status_code == (503 if place == ".versions" else 200)
        assert client.put("/models/m/aliases/prod", json={"version": 1}).status_code == 507
        assert list_versions(client) == [1]
        assert get_file(client, "m") == get_file(client, "m@1") == contents[0]
        ModelFolder(settings.models_dir)  # the next server
        with lock_folder(settings.models_dir):
            pass
        assert client.delete("/models/m").status_code == 200
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class TestKeeping:
    def test_what_is_replaced_becomes_a_version(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents)
        assert list_versions(client) == [4, 3, 2, 1]
        for number, content in enumerate(contents, start=1):
            assert get_file(client, f"m@{number}") == content
        assert get_file(client, "m") == get_file(client, "m@latest") == contents[-1]
        assert client.get("/models").json() == {"models": [{"name": "m", "status": "loaded"}]}

    def test_the_same_bytes_are_no_new_version(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, [contents[0], contents[0], contents[1], contents[1]])
        assert list_versions(client) == [2, 1]

    @pytest.mark.parametrize("in_place", [False, True])
    def test_a_version_names_no_job_for_a_file_that_somebody_else_put_there(
        self, client: TestClient, contents: list[bytes], settings: Settings, in_place: bool
    ) -> None:
        request = {"total_timesteps": 64, "n_steps": 64, "n_eval_episodes": 0, "model_name": "m"}
        job_id = train_to_end(client, **request)["job_id"]
        (version,) = client.get("/models/m/versions").json()["versions"]
        assert version["job_id"] == job_id
        path = settings.models_dir / "m.zip"
        if not in_place:
            path.unlink()
        path.write_bytes(contents[0])
        (version,) = client.get("/models/m/versions").json()["versions"]
        assert version["job_id"] is None
        publish(client, contents[1:2])
        assert client.post("/models/m/rollback").status_code == 200
        assert client.get("/models/m/versions").json()["versions"][0]["job_id"] is None

    def test_a_version_that_the_disk_refuses_is_listed_as_corrupt(
        self, client: TestClient, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(client, contents[:2])
        read = ModelFolder.read

        def refuse(folder: ModelFolder, name: str) -> Any:
            if name == "m@1":
                raise ModelFileError("the file cannot be read (Permission denied).")
            return read(folder, name)

        with monkeypatch.context() as patch:
            patch.setattr(ModelFolder, "read", refuse)
            newest, refused = client.get("/models/m/versions").json()["versions"]
        assert (newest["status"], refused["status"]) == ("loaded", "corrupt")
        assert (refused["version"], refused["n_bytes"], refused["sha256"]) == (1, len(contents[0]), None)
        assert client.get("/models/m/versions").json()["versions"][1]["status"] == "saved"

    def test_a_version_is_listed_as_loaded_while_it_is_in_memory(
        self, client: TestClient, contents: list[bytes]
    ) -> None:
        def list_statuses() -> list[str]:
            listed = [version["status"] for version in client.get("/models/m/versions").json()["versions"]]
            assert listed == [client.get(f"/models/m@{number}").json()["status"] for number in (2, 1)]
            return listed

        publish(client, contents[:2])
        assert list_statuses() == ["loaded", "saved"]
        body = {"model_name": "m@1", "observation": [0.0] * 4}
        assert client.post("/inference", json=body).status_code == 200
        assert list_statuses() == ["loaded", "loaded"]

    def test_a_version_says_who_made_it_from_what(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:1], "seed")
        request = {"total_timesteps": 64, "n_steps": 64, "n_eval_episodes": 0, "model_name": "m"}
        first = train_to_end(client, **request)
        publish(client, contents[:1])
        second = train_to_end(client, **request, init_model="seed@latest")
        third, uploaded, oldest = client.get("/models/m/versions").json()["versions"]
        assert (third["job_id"], uploaded["job_id"], oldest["job_id"]) == (second["job_id"], None, first["job_id"])
        assert third["lineage"]["sha256"] == client.get("/models/seed").json()["sha256"]
        assert (oldest["lineage"], oldest["env_name"]) == (None, "CartPole-v1")
        assert min(third["num_timesteps"], oldest["num_timesteps"]) >= 64
        assert third["sha256"] == client.get("/models/m").json()["sha256"]
        assert third["created_at"] >= uploaded["created_at"] >= oldest["created_at"]
        assert [version["is_newest"] for version in (third, uploaded, oldest)] == [True, False, False]

    @pytest.mark.parametrize("overrides", [{"max_model_versions": 2}], ids=["two"])
    def test_the_oldest_make_room_and_those_with_an_alias_stay(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:1])
        assert client.put("/models/m/aliases/first").json()["version"] == 1
        publish(client, contents[1:])
        assert list_versions(client) == [4, 3, 1]
        assert get_file(client, "m@first") == contents[0]
        assert client.get("/models/m@2/file").status_code == 404
        client.delete("/models/m/aliases/first")
        publish(client, contents[:1])
        assert list_versions(client) == [5, 4]

    @pytest.mark.parametrize("overrides", [{"max_model_versions": 1}], ids=["one"])
    def test_numbers_are_not_given_twice(self, client: TestClient, contents: list[bytes], settings: Settings) -> None:
        publish(client, contents[:3])
        assert list_versions(client) == [3]
        client.put("/models/m/aliases/prod")
        publish(client, contents[3:])
        assert list_versions(client) == [4, 3]
        client.delete("/models/m/aliases/prod")
        publish(client, contents[:1])
        assert list_versions(client) == [5]

    def test_a_full_folder_gives_up_old_versions_of_any_model(self, tmp_path: Path, contents: list[bytes]) -> None:
        n_bytes = len(contents[0])
        folder = ModelFolder(tmp_path, max_models_bytes=4 * n_bytes + 2000, max_versions=9)
        for name in ("a", "b"):
            for content in contents[:2]:
                folder.write(name, content)
        assert [folder.versions.list_all(name) for name in ("a", "b")] == [[1, 2], [1, 2]]
        folder.versions.set_alias("b", "kept", 1)
        folder.write("b", contents[2])
        assert [folder.versions.list_all(name) for name in ("a", "b")] == [[2], [1, 2, 3]]

    def test_deleting_a_model_deletes_its_versions_and_aliases(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        publish(client, contents[:2])
        client.put("/models/m/aliases/prod", json={"version": 1})
        assert client.get("/models/m@prod").status_code == 200  # in memory from now on
        assert client.delete("/models/m@prod").status_code == 409
        assert client.delete("/models/m").status_code == 200
        assert client.get("/models/m@prod").status_code == client.get("/models/m@1").status_code == 404
        assert not list(settings.models_dir.glob(".versions/*"))
        publish(client, contents[2:3])
        assert client.get("/models/m/versions").json()["aliases"] == {}
        assert list_versions(client) == [1]

    def test_an_alias_does_not_outlive_a_model_that_is_deleted_meanwhile(
        self, tmp_path: Path, contents: list[bytes]
    ) -> None:
        folder = ModelFolder(tmp_path, max_versions=2)
        folder.write("m", contents[0])
        folder.delete("m")  # after a request has found it
        with pytest.raises(NotFoundError):
            folder.versions.set_alias("m", "prod", 1)
        assert not list(tmp_path.glob(".versions/*"))

    @pytest.mark.parametrize("pinned", [1, 2])
    def test_what_an_alias_keeps_stays_when_the_model_is_deleted_by_hand(
        self, client: TestClient, contents: list[bytes], settings: Settings, pinned: int
    ) -> None:
        publish(client, contents[:2])
        client.put("/models/m/aliases/prod", json={"version": pinned})
        (settings.models_dir / "m.zip").unlink()
        publish(client, contents[2:3])
        assert get_file(client, "m@prod") == get_file(client, f"m@{pinned}") == contents[pinned - 1]
        assert get_file(client, "m") == get_file(client, "m@3") == contents[2], "2 was the number of the one deleted"

    def test_whoever_asks_for_a_model_that_was_deleted_by_hand_is_told_what_aliases_keep(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        publish(client, contents[:2])
        client.put("/models/m/aliases/prod", json={"version": 1})
        (settings.models_dir / "m.zip").unlink()
        for method, path in (
            ("GET", "/models/m"),
            ("GET", "/models/m@prod"),
            ("GET", "/models/m/versions"),
            ("DELETE", "/models/m"),
            ("DELETE", "/models/m/aliases/prod"),
            ("POST", "/models/m/rollback"),
        ):
            answer = client.request(method, path)
            assert answer.status_code == 404
            assert "its aliases (prod) keep versions; upload a file as 'm'" in answer.json()["detail"]
        job = {"total_timesteps": 64, "n_steps": 64, "init_model": "m@prod", "model_name": "onward"}
        assert "cannot be trained on: there is no model 'm'" in client.post("/train", json=job).json()["detail"]
        publish(client, contents[2:3])
        assert get_file(client, "m@prod") == contents[0]

    def test_a_model_that_is_deleted_by_hand_leaves_nothing_to_the_next_one(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        request = {"total_timesteps": 64, "n_steps": 64, "n_eval_episodes": 0, "model_name": "m"}
        train_to_end(client, **request)
        publish(client, contents[:2])
        (settings.models_dir / "m.zip").unlink()
        publish(client, contents[2:3])
        answer = client.get("/models/m/versions").json()
        assert answer["aliases"] == {}
        assert [(version["version"], version["job_id"]) for version in answer["versions"]] == [(1, None)]
        assert get_file(client, "m@1") == contents[2]


class TestAliases:
    def test_every_way_to_name_a_model_takes_them(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:2])
        assert client.put("/models/m/aliases/prod", json={"version": 1}).json() == {
            "model_name": "m",
            "alias": "prod",
            "version": 1,
            "previous_version": None,
        }
        observation = [0.5, -1.0, 0.1, 2.0]
        publish(client, contents[:1], "first")
        expected = client.post("/inference", json={"model_name": "first", "observation": observation}).json()
        newest = client.post("/inference", json={"model_name": "m", "observation": observation}).json()
        assert newest != expected
        for reference in ("m@prod", "m@1"):
            body = {"model_name": reference, "observation": observation}
            assert client.post("/inference", json=body).json() == expected
            batch = {"model_name": reference, "observations": [observation]}
            (answer,) = client.post("/inference/batch", json=batch).json()["answers"]
            assert answer["action_probs"] == pytest.approx(expected["action_probs"], rel=1e-5)
            assert client.get(f"/models/{reference}").json()["sha256"] == client.get("/models/first").json()["sha256"]
            played = client.post(f"/models/{reference}/evaluate", json={"n_episodes": 1}).json()
            assert (
                played["evaluation"]
                == client.post("/models/first/evaluate", json={"n_episodes": 1}).json()["evaluation"]
            )
            assert client.get(f"/models/{reference}/export?format=torchscript").status_code == 200
        assert client.get("/models/m/versions").json()["versions"][1]["evaluation"]["n_episodes"] == 1

    def test_one_stays_where_it_is_when_somebody_replaces_the_newest_file(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        publish(client, contents[:2])
        client.put("/models/m/aliases/prod")
        body = {"model_name": "m@prod", "observation": [0.5, -1.0, 0.1, 2.0]}
        before = client.post("/inference", json=body).json()
        foreign = settings.models_dir / "foreign"
        foreign.write_bytes(contents[2])
        foreign.replace(settings.models_dir / "m.zip")
        assert get_file(client, "m@prod") == get_file(client, "m@2") == contents[1]
        assert client.post("/inference", json=body).json() == before
        assert get_file(client, "m") == contents[2]
        assert list_versions(client) == [3, 2, 1]
        publish(client, contents[3:])
        assert [get_file(client, f"m@{n}") for n in (1, 2, 3, 4)] == contents

    def test_one_stays_where_it_is_when_somebody_writes_into_the_newest_file(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        publish(client, contents[:1])
        client.put("/models/m/aliases/prod")
        (settings.models_dir / "m.zip").write_bytes(contents[1])
        assert get_file(client, "m@prod") == get_file(client, "m@1") == contents[0]
        assert get_file(client, "m@2") == contents[1]
        (settings.models_dir / "m.zip").write_bytes(contents[1][:1000])
        assert get_file(client, "m@prod") == contents[0]

    def test_the_newest_gets_one_before_another_takes_its_place(
        self, tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_model_store(tmp_path)
        versions = store.folder.versions
        store.publish("m", contents[0])
        find_newest = versions.find_newest

        def replace_if_free(name: str) -> None:
            if versions.lock(name).acquire(blocking=False):
                store.publish(name, contents[1])
                versions.lock(name).release()

        def find_and_let_others_in(name: str) -> int:
            monkeypatch.undo()
            number = find_newest(name)
            with ThreadPoolExecutor() as others:
                others.submit(replace_if_free, name).result()
            return number

        monkeypatch.setattr(versions, "find_newest", find_and_let_others_in)
        assert ModelPromotion(store, Mock()).set_alias("m", "prod", None).version == 1

    def test_one_is_downloaded_while_the_newest_which_it_points_at_is_replaced(
        self, client: TestClient, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(client, contents[:1])
        client.put("/models/m/aliases/prod")
        open_file = ModelFolder.open_file

        def replace_and_open(*arguments: Any) -> BinaryIO:
            monkeypatch.undo()
            publish(client, contents[1:2])
            return open_file(*arguments)

        monkeypatch.setattr(ModelFolder, "open_file", replace_and_open)
        assert get_file(client, "m@prod") == contents[0]

    def test_one_whose_file_was_deleted_by_hand_points_at_nothing(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        publish(client, contents[:2])
        client.put("/models/m/aliases/prod")
        publish(client, contents[2:3])
        (settings.models_dir / ".versions" / "m" / "2.zip").unlink()
        for reference, said in (
            ("m@prod", "alias 'prod' of model 'm' points at version 2, whose file is gone; its versions are 1, 3: "),
            ("m@2", "model 'm' has no version or alias '2'; its versions are 1, 3, its aliases prod."),
        ):
            answer = client.get(f"/models/{reference}/file")
            assert (answer.status_code, answer.json()["detail"].startswith(said)) == (404, True), answer.json()
        assert list_versions(client) == [3, 1]
        assert get_file(client, "m@3") == contents[2]

    def test_the_same_bytes_are_no_new_version_with_one_either(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:2])
        client.put("/models/m/aliases/prod")
        publish(client, contents[1:2])
        assert list_versions(client) == [2, 1]

    def test_a_model_is_no_longer_in_use_without_one(self, tmp_path: Path, contents: list[bytes]) -> None:
        folder = ModelFolder(tmp_path, max_versions=3)
        folder.write("m", contents[0])
        folder.versions.set_alias("m", "prod", 1)
        assert folder.versions.is_in_use("m", None)
        folder.versions.set_alias("m", "prod", None)
        assert not folder.versions.is_in_use("m", None)

    def test_earlier_versions_of_its_own_job_are_no_use_of_a_model(self, tmp_path: Path, contents: list[bytes]) -> None:
        folder = ModelFolder(tmp_path, max_versions=3)
        for content in contents[:2]:  # what a stop saves, and the end of the resumed job
            folder.write("m", content, job_id="own")
        assert not folder.versions.is_in_use("m", "own")
        assert folder.versions.is_in_use("m", "other")
        assert folder.versions.is_in_use("m", None)
        first, last = (hashlib.sha256(content).hexdigest() for content in contents[:2])
        assert folder.versions.is_in_use("m", "own", lambda sha256: sha256 == first)
        assert not folder.versions.is_in_use("m", "own", lambda sha256: sha256 == last)  # whose user has asked for that
        (tmp_path / ".versions" / "m" / "1.zip").write_bytes(contents[2])
        assert folder.versions.is_in_use("m", "own")

    @pytest.mark.parametrize("refused", ["service.models.files.notes.write_atomic", "shutil.copy2"])
    def test_one_that_the_disk_refuses_leaves_nothing(
        self, tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch, refused: str
    ) -> None:
        def write_a_part(*arguments: Any, **options: Any) -> None:
            if refused == "shutil.copy2":
                arguments[1].write_bytes(contents[0][:1000])
            raise OSError("no space left")

        folder = ModelFolder(tmp_path, max_versions=3)
        folder.write("m", contents[0])
        monkeypatch.setattr(refused, write_a_part)
        with pytest.raises(OSError, match="no space"):
            folder.versions.set_alias("m", "prod", 1)
        assert list(tmp_path.rglob("*")) == [tmp_path / "m.zip"]

    def test_one_that_is_moved_counts_at_once(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:2])
        body = {"model_name": "m@prod", "observation": [0.5, -1.0, 0.1, 2.0]}
        answers = []
        for version in (1, 2, 1):
            assert client.put("/models/m/aliases/prod", json={"version": version}).status_code == 200
            answers.append(client.post("/inference", json=body).json())
        assert answers[0] == answers[2] != answers[1]
        assert client.delete("/models/m/aliases/prod").json()["previous_version"] == 1
        assert client.post("/inference", json=body).status_code == 404

    def test_it_stays_at_its_version_when_a_newer_one_comes(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:1])
        assert client.put("/models/m/aliases/best").json()["version"] == 1
        body = {"model_name": "m@best", "observation": [0.5, -1.0, 0.1, 2.0]}
        before = client.post("/inference", json=body).json()
        publish(client, contents[1:3])
        assert client.post("/inference", json=body).json() == before
        assert client.get("/models/m/versions").json()["versions"][2]["aliases"] == ["best"]

    def test_its_version_keeps_its_evaluation_when_a_newer_one_comes(
        self, client: TestClient, contents: list[bytes]
    ) -> None:
        publish(client, contents[:1])
        client.put("/models/m/aliases/prod")
        evaluated = client.post("/models/m@prod/evaluate", json={"n_episodes": 1}).json()["evaluation"]
        publish(client, contents[1:2])
        assert client.get("/models/m@prod").json()["evaluation"] == evaluated
        assert client.get("/models/m/versions").json()["versions"][1]["evaluation"] == evaluated

    @pytest.mark.parametrize("since", ["its alias", "a save of the same bytes", "the start", "the start of a replica"])
    def test_no_request_compares_whole_files(
        self, tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch, since: str
    ) -> None:
        folder = ModelFolder(tmp_path)
        folder.write("m", contents[0])
        folder.versions.set_alias("m", "prod", 1)
        if since == "a save of the same bytes":
            folder.write("m", contents[0])
        elif since != "its alias":
            folder = ModelFolder(tmp_path, is_read_only="replica" in since)
        assert not (tmp_path / "m.zip").samefile(tmp_path / ".versions" / "m" / "1.zip")
        compare = Mock()
        monkeypatch.setattr("service.models.files.kept.has_content", compare)
        assert folder.canonicalize("m@prod") == "m"
        compare.assert_not_called()

    def test_it_never_answers_for_another_version(
        self, client: TestClient, settings: Settings, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.models.store._RECENT_SECONDS", 3600.0)
        publish(client, contents[:1])
        client.put("/models/m/aliases/prod")
        body = {"model_name": "m@prod", "observation": [0.5, -1.0, 0.1, 2.0]}
        before = client.post("/inference", json=body).json()
        # As another program does, of which the server hears nothing.
        ModelFolder(settings.models_dir, max_versions=5).write("m", contents[1])
        newest = {"model_name": "m", "observations": [body["observation"]]}
        assert client.post("/inference/batch", json=newest).status_code == 200  # it is in memory from now on
        assert client.post("/inference", json=body).json() == before
        ModelFolder(settings.models_dir, max_versions=5).write("m", contents[2])
        assert client.get("/models/m@2").json()["sha256"] == hashlib.sha256(contents[1]).hexdigest()
        assert client.get("/models/m@prod").json()["sha256"] == hashlib.sha256(contents[0]).hexdigest()

    def test_a_file_that_cannot_be_used_gets_none_and_is_not_copied(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        publish(client, contents[:1])
        (settings.models_dir / "m.zip").write_bytes(contents[0][:-9])
        answer = client.put("/models/m/aliases/prod")
        assert answer.status_code == 409
        assert "model 'm@1' cannot be used" in answer.json()["detail"]
        assert list(settings.models_dir.glob(".versions/m/*.zip")) == []
        assert client.get("/models/m/versions").json()["aliases"] == {}

    @pytest.mark.parametrize("alias", ["3", "latest", "Latest", "-x", "a.b", "a@b", "x" * 33, "%2e%2e", "a b", "é"])
    def test_a_name_that_is_none_is_refused(self, client: TestClient, contents: list[bytes], alias: str) -> None:
        publish(client, contents[:1])
        assert client.put(f"/models/m/aliases/{alias}").status_code in (400, 422)
        assert client.get("/models/m/versions").json()["aliases"] == {}

    @pytest.mark.parametrize(
        ("method", "path", "said"),
        [
            ("put", "/models/gone/aliases/prod", "no model 'gone'"),
            ("delete", "/models/gone/aliases/prod", "no model 'gone'"),
            ("delete", "/models/m/aliases/prod", "its versions are 1, its aliases none"),
            ("get", "/models/m@7", "no version or alias '7'"),
            ("get", "/models/m@prod/file", "no version or alias 'prod'"),
            ("get", "/models/gone@1", "no model 'gone'"),
            ("get", "/models/m@", "no version or alias ''"),
            ("get", "/models/m@1@1", "no version or alias '1@1'"),
            ("get", "/models/m@01", "no version or alias '01'"),
            ("get", "/models/m@..", "no version or alias '..'"),
            ("get", "/models/..@1", "no model"),
            ("get", "/models/gone/versions", "no model 'gone'"),
            ("get", "/models/m@1/versions", "'m@1' names one version"),
            ("put", "/models/m@1/aliases/prod", "names one version"),
            ("post", "/models/gone/rollback", "no model 'gone'"),
        ],
    )
    def test_what_is_not_there_is_said(
        self, client: TestClient, contents: list[bytes], method: str, path: str, said: str
    ) -> None:
        publish(client, contents[:1])
        answer = client.request(method, path)
        assert answer.status_code == 404
        assert said in answer.json()["detail"]

    def test_there_is_an_end_to_them(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:1])
        for i in range(MAX_ALIASES):
            assert client.put(f"/models/m/aliases/a{i}").status_code == 200
        assert client.put("/models/m/aliases/more").status_code == 409
        assert client.put("/models/m/aliases/a0").status_code == 200

    @pytest.mark.parametrize("reference", ["m@", "m@@1", "m@0", "m@1.0", "../m@1", "m@../m", "con@1", "@1"])
    def test_inference_refuses_what_is_no_reference(self, client: TestClient, reference: str) -> None:
        body = {"model_name": reference, "observation": [0.0] * 4}
        assert client.post("/inference", json=body).status_code == 422

    def test_memory_holds_a_version_once_however_it_is_named(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:2])
        client.put("/models/m/aliases/old", json={"version": 1})
        client.put("/models/m/aliases/new", json={"version": 2})
        for reference in ("m", "m@2", "m@new", "m@latest", "m@1", "m@old"):
            body = {"model_name": reference, "observation": [0.0] * 4}
            assert client.post("/inference", json=body).status_code == 200
        assert client.get("/health").json()["loaded_models"] == 2


class TestRollingBack:
    def test_the_version_before_is_the_newest_again(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:3])
        assert client.post("/models/m/rollback").json() == {
            "message": "Version 2 is the newest again",
            "model_name": "m",
            "version": 4,
            "restored_version": 2,
        }
        assert get_file(client, "m") == contents[1]
        assert client.post("/models/m/rollback", json={"version": 1}).json()["version"] == 5
        assert get_file(client, "m") == contents[0]
        assert [get_file(client, f"m@{n}") for n in (1, 2, 3, 4, 5)] == [contents[i] for i in (0, 1, 2, 1, 0)]

    def test_without_another_version_it_is_refused(self, client: TestClient, contents: list[bytes]) -> None:
        publish(client, contents[:1])
        assert client.post("/models/m/rollback").status_code == 409
        assert client.post("/models/m/rollback", json={"version": 1}).status_code == 409
        assert client.post("/models/m/rollback", json={"version": 2}).status_code == 404
        assert client.post("/models/m/rollback", json={"version": 0}).status_code == 422

    def test_a_damaged_version_does_not_come_back(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        publish(client, contents[:2])
        kept = settings.models_dir / ".versions" / "m" / "1.zip"
        kept.write_bytes(kept.read_bytes()[:-9])
        assert client.post("/models/m/rollback").status_code == 409
        assert client.get("/models/m/versions").json()["versions"][1]["status"] == "corrupt"
        assert get_file(client, "m") == contents[1]

    def test_nor_does_one_that_was_damaged_while_it_was_in_memory(
        self, client: TestClient, contents: list[bytes], settings: Settings
    ) -> None:
        publish(client, contents[:2])
        assert client.post("/inference", json={"model_name": "m@1", "observation": [0.0] * 4}).status_code == 200
        kept = settings.models_dir / ".versions" / "m" / "1.zip"
        times, damaged = os.stat(kept), bytearray(kept.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        with kept.open("r+b") as file:
            file.write(damaged)
        os.utime(kept, ns=(times.st_atime_ns, times.st_mtime_ns))
        response = client.post("/models/m/rollback")
        assert response.status_code == 409, response.text
        assert get_file(client, "m") == contents[1]


class _Killed(BaseException):
    """Ends a write as a kill would: nothing that comes after it is done."""


# What a crash can come between: the steps at which something on the disk changes.
_STEPS: list[tuple[Any, str]] = [(os, "link"), (os, "replace"), (os, "unlink"), (os, "fsync")]


@pytest.mark.parametrize("step", range(9))
def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new(
    tmp_path: Path, contents: list[bytes], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_folder() -> ModelFolder:
        return ModelFolder(tmp_path, max_versions=2)

    def read(folder: ModelFolder) -> dict[int, bytes]:
        return {n: folder.read(f"m@{n}")[1] for n in folder.versions.list_all("m")}

    folder = make_folder()
    folder.write("m", contents[0], "a")
    folder.write("m", contents[1], "b")
    folder.versions.set_alias("m", "prod", 2)
    n_calls = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal n_calls
            n_calls += 1
            if n_calls > step:
                raise _Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for module, name in _STEPS:
            patch.setattr(module, name, wrap(getattr(module, name)))
        try:
            folder.write("m", contents[2], "c")
        except _Killed:
            pass
    folder = make_folder()
    assert read(folder) in (
        {1: contents[0], 2: contents[1]},
        {1: contents[0], 2: contents[1], 3: contents[2]},  # two, and the one with an alias
    )
    assert folder.read("m@prod")[1] == contents[1]
    # And it goes on as if nothing had been.
    newest = folder.versions.find_newest("m")
    folder.write("m", contents[3], "d")
    assert folder.versions.find_newest("m") == newest + 1
    assert folder.versions.read_notes("m").jobs[newest + 1] == "d"
    assert folder.read(f"m@{newest + 1}")[1] == contents[3]


def test_what_a_crash_left_of_a_deleted_model_is_removed(tmp_path: Path, contents: list[bytes]) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    for content in contents[:2]:
        folder.write("m", content)
        folder.write("other", content)
    (tmp_path / "m.zip").unlink()  # the first step of a deletion
    (tmp_path / ".versions" / "other" / ".tmp-1").write_bytes(b"")
    folder = ModelFolder(tmp_path, max_versions=3)
    assert sorted(path.name for path in (tmp_path / ".versions").rglob("*")) == ["1.zip", "notes.json", "other"]
    assert not folder.exists("m@1")
    with pytest.raises(NotFoundError):
        folder.read("m@1")


@pytest.mark.parametrize("is_file_gone", [False, True])
def test_a_kill_during_a_deletion_leaves_the_whole_model_or_nothing(
    tmp_path: Path, contents: list[bytes], is_file_gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    for content in contents[:2]:
        folder.write("m", content, "a")
    folder.versions.set_alias("m", "prod", 1)
    unlink = os.unlink

    def unlink_and_die(path: str, **options: Any) -> None:
        if is_file_gone:
            unlink(path, **options)
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_and_die)
        with pytest.raises(_Killed):
            folder.delete("m")
    folder = ModelFolder(tmp_path, max_versions=3)
    if is_file_gone:
        assert not folder.exists("m")
        assert not list((tmp_path / ".versions").iterdir())
    else:
        assert folder.read("m@prod")[1] == contents[0]
        assert folder.read("m")[1] == contents[1]
        assert folder.versions.read_notes("m").jobs == {1: "a", 2: "a"}
    folder.write("m", contents[2])  # and it goes on as if nothing had been
    assert folder.versions.list_all("m") == ([1] if is_file_gone else [1, 2, 3])


@pytest.mark.parametrize("refused", ["rename", "unlink"])
def test_a_deletion_that_the_disk_refuses_leaves_aliases_and_versions(
    tmp_path: Path, contents: list[bytes], refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    for content in contents[:2]:
        folder.write("m", content)
    folder.versions.set_alias("m", "prod", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, refused, Mock(side_effect=PermissionError(13, "Permission denied")))
        with pytest.raises(StorageError, match="cannot be deleted"):
            folder.delete("m")
    assert folder.read("m@prod")[1] == contents[0]
    assert folder.read("m")[1] == contents[1]
    folder.delete("m")
    assert not list((tmp_path / ".versions").iterdir())


@pytest.mark.parametrize("name", ["../m", "m@1", "m@prod", ".versions", "a/b", ""])
def test_only_a_plain_name_is_written(tmp_path: Path, contents: list[bytes], name: str) -> None:
    folder = ModelFolder(tmp_path / "models", max_versions=3)
    with pytest.raises(InvalidRequestError):
        folder.write(name, contents[0], "a job")
    assert list(tmp_path.rglob("*")) == [tmp_path / "models"]


def test_versions_with_aliases_outlast_a_start_without_their_models_file(
    tmp_path: Path, contents: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    for content in contents[:2]:
        folder.write("m", content)
    folder.versions.set_alias("m", "prod", 1)
    away = (tmp_path / "m.zip").rename(tmp_path / "away")
    ModelFolder(tmp_path, max_versions=3)
    assert "put m.zip back" in caplog.text
    away.rename(tmp_path / "m.zip")
    folder = ModelFolder(tmp_path, max_versions=3)
    assert folder.read("m@prod")[1] == folder.read("m@1")[1] == contents[0]


def test_notes_that_the_disk_does_not_give_hold_up_no_start(tmp_path: Path, contents: list[bytes]) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    for content in contents[:2]:
        folder.write("m", content)
    (tmp_path / "m.zip").unlink()
    notes = tmp_path / ".versions" / "m" / "notes.json"
    notes.unlink()
    notes.mkdir()
    assert ModelFolder(tmp_path, max_versions=3).versions.list_kept("m") == [1]


def test_what_damaged_notes_may_have_kept_stays(tmp_path: Path, contents: list[bytes]) -> None:
    folder = ModelFolder(tmp_path, max_versions=2)
    for content in contents[:2]:
        folder.write("m", content)
    folder.versions.set_alias("m", "prod", 1)
    notes = tmp_path / ".versions" / "m" / "notes.json"
    notes.write_bytes(notes.read_bytes()[:20])
    for content in (*contents[2:4], *contents[:2]):
        folder.write("m", content, "job")
    assert folder.versions.list_kept("m") == [1, 2, 3, 4, 5]
    for aside in notes.parent.glob("notes.json.damaged-*"):
        aside.unlink()
    folder.write("m", contents[2])
    assert folder.versions.list_all("m") == [6, 7]


@pytest.mark.parametrize("newest", [0, -1, 999_999_999, "x"])
def test_numbers_that_no_version_has_are_damage(tmp_path: Path, contents: list[bytes], newest: Any) -> None:
    folder = ModelFolder(tmp_path, max_versions=2)
    for content in contents[:2]:
        folder.write("m", content)
    notes = {"aliases": {}, "jobs": {}, "digests": {}, "newest": newest}
    (tmp_path / ".versions" / "m" / "notes.json").write_text(json.dumps(notes))
    folder.write("m", contents[2])
    assert folder.versions.list_all("m") == [1, 2, 3]


def test_what_is_no_file_is_no_version(tmp_path: Path, contents: list[bytes]) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    for content in contents[:2]:
        folder.write("m", content)
    (tmp_path / ".versions" / "m" / "7.zip").mkdir()
    assert folder.versions.list_all("m") == [1, 2]


def test_a_version_that_was_not_replaced_after_all_leaves_nothing(
    tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    folder.write("m", contents[0])

    def refuse(path: Path, content: bytes) -> None:
        raise OSError("no space left")

    def write_in_vain(content: bytes, job_id: str | None = None) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("grpo_core.saving.atomic_write.write_atomic", refuse)
            with pytest.raises(OSError, match="no space"):
                folder.write("m", content, job_id)

    write_in_vain(contents[1], "a job")
    assert list(tmp_path.rglob("*")) == [tmp_path / "m.zip"]
    folder.write("m", contents[1])
    write_in_vain(contents[2], "a job")
    write_in_vain(contents[2])
    assert folder.versions.list_all("m") == [1, 2], "no number is used up"
    folder.versions.set_alias("m", "prod", 2)
    write_in_vain(contents[2])
    assert folder.versions.list_all("m") == [1, 2]
    assert folder.read("m@prod")[1] == contents[1]


def test_without_links_a_version_is_copied(
    tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = ModelFolder(tmp_path, max_versions=3)
    for content in contents[:3]:
        folder.write("m", content)
    assert [folder.read(f"m@{n}")[1] for n in (1, 2, 3)] == contents[:3]


def test_versions_are_told_apart_that_a_coarse_clock_gives_one_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [b"a", b"b", b"c", b"d"]
    folder = ModelFolder(tmp_path, max_versions=4)
    for number, content in enumerate(contents):
        if number == 2:
            monkeypatch.setattr(os, "link", Mock(side_effect=OSError("no links here")))
        folder.write("m", content)
        os.utime(tmp_path / "m.zip", (1, 1))
    assert [folder.read(f"m@{number}")[1] for number in folder.versions.list_all("m")] == contents


def test_the_notes_of_a_model_are_read_once_to_count_what_its_aliases_keep(
    tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = (folder := ModelFolder(tmp_path, max_versions=4)).versions
    for content in contents:
        folder.write("m", content)
    versions.set_alias("m", "prod", 2)
    counted = Mock(wraps=versions.read_notes)
    monkeypatch.setattr(versions, "read_notes", counted)
    assert (versions.count_pinned_bytes(), counted.call_count) == (len(contents[1]), 1)


_ENDLESS = b'{"aliases": {}, "jobs": {}, "digests": {}, "newest": 1e999}'


@pytest.mark.parametrize(
    "notes",
    [
        *(b"", b"[]", b'{"aliases": 1}', b'{"aliases": {"../x": 1, "ok": "1"}, "jobs": {}}'),
        *(b"[" * 200_000, _ENDLESS, b" " * 2_000_000),
    ],
    ids=["empty", "list", "number", "names", "deep", "endless", "large"],
)
def test_notes_that_cannot_be_read_are_left_out(tmp_path: Path, contents: list[bytes], notes: bytes) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    for content in contents[:2]:
        folder.write("m", content)
    path = tmp_path / ".versions" / "m" / "notes.json"
    path.write_bytes(notes)
    assert folder.versions.read_notes("m").aliases == {}
    assert path.read_bytes() == notes
    for alias in ("prod", "next"):
        folder.versions.set_alias("m", alias, 1)
    assert folder.canonicalize("m@prod") == "m@1"
    (aside,) = path.parent.glob("notes.json.damaged-*")
    assert aside.read_bytes() == notes


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_notes_that_are_no_file_hold_nobody_up(make: Any, tmp_path: Path, contents: list[bytes]) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    folder.write("m", contents[0])
    folder.versions.set_alias("m", "prod", 1)
    notes = tmp_path / ".versions" / "m" / "notes.json"
    notes.unlink()
    make(notes)
    assert folder.versions.read_notes("m").aliases == {}
    assert ModelFolder(tmp_path, max_versions=3).canonicalize("m") == "m"  # the next server starts


def test_a_version_is_found_that_stops_being_the_newest_while_it_is_looked_for(
    tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(tmp_path, max_versions=2)
    folder.write("m", contents[0])
    find_newest = folder.versions.find_newest

    def find_newest_later(name: str) -> int:
        monkeypatch.setattr(folder.versions, "find_newest", find_newest)
        folder.write("m", contents[1])
        return find_newest(name)

    monkeypatch.setattr(folder.versions, "find_newest", find_newest_later)
    assert folder.versions.resolve("m@1") == ("m", 1)
    assert folder.read("m@1")[1] == contents[0]


def test_a_version_that_is_replaced_before_its_file_is_opened_is_read_from_where_it_is_kept(
    tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    folder.write("m", contents[0])
    find_path = folder._path

    def find_path_and_replace(name: str) -> str:
        path = find_path(name)
        monkeypatch.setattr(folder, "_path", find_path)
        folder.write("m", contents[1])
        return path

    monkeypatch.setattr(folder, "_path", find_path_and_replace)
    assert folder.read("m@1")[1] == contents[0]


def test_readers_meet_whole_versions_while_newer_ones_come(tmp_path: Path, contents: list[bytes]) -> None:
    folder = ModelFolder(tmp_path, max_versions=2)
    folder.write("m", contents[0])
    folder.versions.set_alias("m", "prod", 1)
    is_over, faults = threading.Event(), []

    def read() -> None:
        while not is_over.is_set():
            if folder.read("m@prod")[1] != contents[0]:
                faults.append("prod")
            if folder.read("m")[1] not in contents:
                faults.append("newest")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(60):
        folder.write("m", contents[i % 3])
    is_over.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert folder.versions.list_all("m") == [1, 59, 60]


def test_nothing_is_saved_or_deleted_between_the_looks_of_a_list(
    client: TestClient, app: FastAPI, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(client, contents[:2])
    folder: ModelFolder = app.state.service.store.folder
    list_all, read, could_be = folder.versions.list_all, folder.read, []

    def try_to_save() -> bool:
        lock = folder.versions.lock("m")
        is_free = lock.acquire(blocking=False)
        if is_free:
            lock.release()
        return is_free

    def note_whether_it_could_be(look: Callable[[str], Any], name: str) -> Any:
        with ThreadPoolExecutor(1) as others:
            could_be.append(others.submit(try_to_save).result())
        return look(name)

    monkeypatch.setattr(folder.versions, "list_all", partial(note_whether_it_could_be, list_all))
    monkeypatch.setattr(folder, "read", partial(note_whether_it_could_be, read))
    answer = client.get("/models/m/versions").json()
    assert [(each["version"], each["is_newest"]) for each in answer["versions"]] == [(2, True), (1, False)]
    # Files that are new to the list are read while others may save; the list itself is made while none may.
    assert could_be == [True, True, True, False]


def test_a_list_of_which_nothing_is_left_is_not_found(
    client: TestClient, app: FastAPI, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(client, contents[:1])
    list_all = app.state.service.store.folder.versions.list_all

    def lose(name: str) -> list[int]:
        numbers: list[int] = list_all(name)
        app.state.service.store.folder.path.joinpath("m.zip").unlink()
        return numbers

    monkeypatch.setattr(app.state.service.store.folder.versions, "list_all", lose)
    assert client.get("/models/m/versions").status_code == 404


def test_aliases_that_the_disk_hides_are_not_lost(
    client: TestClient, contents: list[bytes], settings: Settings
) -> None:
    publish(client, contents[:2])
    client.put("/models/m/aliases/prod", json={"version": 1})
    notes = next((settings.models_dir / ".versions" / "m").glob("*.json"))
    aside = notes.rename(notes.with_name("aside"))
    notes.mkdir()  # which cannot be read
    answer = upload(client, contents[2], "m", overwrite=True)
    assert answer.status_code == 507, answer.text
    notes.rmdir()
    aside.rename(notes)
    publish(client, contents[2:])
    assert get_file(client, "m@prod") == contents[0]


def test_a_file_is_the_one_that_was_looked_for_even_if_it_is_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(tmp_path, max_versions=3)
    folder.write("m", b"old")
    read = folder.read
    sha256 = hashlib.sha256(b"old").hexdigest()

    def replace_after(name: str) -> tuple[tuple[int, int, int], bytes]:
        found = read(name)
        if found[1] == b"old":
            folder.write("m", b"new")
        return found

    def replace_before(name: str) -> tuple[tuple[int, int, int], bytes]:
        if name == "m":
            folder.write("m", b"new")
        return read(name)

    for disturbed in (replace_before, replace_after):
        monkeypatch.setattr(folder, "read", disturbed)
        assert folder.find_content("m", sha256) == b"old"
        folder.write("m", b"old")
