"""A folder is kept in step with an object store, and no bad file replaces a good one."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

import service.replicas.mirror
from service.models.files.versions import VersionFolder
from service.replicas.mirror import Mirror, MirrorError
from service.settings import Settings
from tests.models import make_model
from tests.service.models.test_replacement import upload
from tests.support import PATIENCE_SECONDS, make_client, wait_until


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """Files of different policies, of the same size."""
    return [make_model("CartPole-v1", seed).to_bytes(env_name="CartPole-v1") for seed in range(2)]


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder in a store."""
    if request.param == "file":
        (tmp_path / "store").mkdir()
        yield f"file://{tmp_path}/store"
        return
    store = fsspec.filesystem("memory")
    store.mkdir("/models")
    yield "memory://models"
    store.rm("/models", recursive=True)


@pytest.fixture
def open_mirror(tmp_path: Path) -> Iterator[Callable[[str], Mirror]]:
    """Open mirrors of stores in one folder, and close them afterwards."""
    opened: list[Mirror] = []

    def open_one(url: str) -> Mirror:
        opened.append(Mirror(url, tmp_path / "models"))
        return opened[-1]

    yield open_one
    for mirror in opened:
        mirror.close()


def put(url: str, path: str, content: bytes) -> None:
    store, root = fsspec.core.url_to_fs(url)
    store.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
    store.pipe_file(f"{root}/{path}", content)


def remove(url: str, path: str) -> None:
    store, root = fsspec.core.url_to_fs(url)
    store.rm(f"{root}/{path}")


def list_copies(mirror: Mirror) -> list[str]:
    files = (path.relative_to(mirror.folder).as_posix() for path in mirror.folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path not in (".state.json", ".lock"))


def test_models_are_copied_replaced_and_removed(
    url: str, contents: list[bytes], open_mirror: Callable[[str], Mirror]
) -> None:
    mirror = open_mirror(url)
    for name in ("a.zip", "b.zip", ".versions/a/1.zip", ".versions/a/notes.json"):
        put(url, name, contents[0] if name.endswith("zip") else b"{}")
    put(url, "README.md", b"not a model")
    put(url, ".checkpoints/x.zip", b"not a model")
    mirror.look()
    assert (mirror.problem, mirror.is_complete) == (None, True)
    assert list_copies(mirror) == [".versions/a/1.zip", ".versions/a/notes.json", "a.zip", "b.zip"]
    unchanged = os.lstat(mirror.folder / "b.zip")
    put(url, "a.zip", contents[1])
    mirror.look()
    assert (mirror.folder / "a.zip").read_bytes() == contents[1]
    assert os.lstat(mirror.folder / "b.zip") == unchanged
    for name in ("a.zip", ".versions/a/1.zip", ".versions/a/notes.json"):
        remove(url, name)
    mirror.look()
    assert list_copies(mirror) == ["b.zip"]


def test_a_file_that_cannot_be_used_replaces_nothing(
    url: str, contents: list[bytes], open_mirror: Callable[[str], Mirror]
) -> None:
    mirror = open_mirror(url)
    put(url, "m.zip", contents[0])
    mirror.look()
    damaged = bytearray(contents[1])
    damaged[damaged.rindex(b"\x93NUMPY") + 130] ^= 1  # among the weights of the last array
    put(url, "m.zip", bytes(damaged))
    put(url, ".versions/m/1.zip", contents[0])
    mirror.look()
    assert mirror.problem is not None
    assert "m.zip is not copied" in mirror.problem
    assert (mirror.folder / "m.zip").read_bytes() == contents[0]
    assert list_copies(mirror) == ["m.zip"]
    put(url, "m.zip", contents[1])
    mirror.look()
    assert mirror.problem is None
    assert (mirror.folder / "m.zip").read_bytes() == contents[1]
    assert list_copies(mirror) == [".versions/m/1.zip", "m.zip"]


def test_an_alias_stays_where_it_was_while_the_file_of_its_new_version_cannot_be_used(
    url: str, contents: list[bytes], open_mirror: Callable[[str], Mirror]
) -> None:
    def put_notes(version: int) -> None:
        notes = {"aliases": {"prod": version}, "jobs": {}, "digests": {}, "newest": 1}
        put(url, ".versions/m/notes.json", json.dumps(notes).encode())

    mirror = open_mirror(url)
    put(url, "m.zip", contents[0])
    put_notes(1)
    mirror.look()
    put(url, ".versions/m/1.zip", contents[0])
    put(url, "m.zip", b"damaged")
    put_notes(2)
    versions = VersionFolder(mirror.folder, max_versions=5, max_bytes=2**30, is_read_only=True)
    for _ in range(3):
        mirror.look()
        assert mirror.problem is not None
        assert versions.resolve("m@prod") is not None
    assert versions.resolve("m@1") == ("m", None)  # still the newest
    assert (mirror.folder / "m.zip").read_bytes() == contents[0]
    put(url, "m.zip", contents[1])
    mirror.look()
    assert versions.resolve("m@1") == ("m", 1)
    assert (mirror.problem, versions.resolve("m@prod")) == (None, ("m", None))
    assert (mirror.folder / "m.zip").read_bytes() == contents[1]


def test_what_was_copied_before_is_not_copied_again(
    url: str, contents: list[bytes], open_mirror: Callable[[str], Mirror]
) -> None:
    put(url, "m.zip", contents[0])
    first = open_mirror(url)
    first.look()
    copied = os.lstat(first.folder / "m.zip")
    first.close()
    second = open_mirror(url)
    second.look()
    assert second.is_complete
    assert os.lstat(second.folder / "m.zip") == copied


@pytest.mark.parametrize("lost", ["a file", "a part of a file", "the folder"])
def test_a_copy_that_is_lost_is_made_again(
    url: str, contents: list[bytes], open_mirror: Callable[[str], Mirror], lost: str
) -> None:
    put(url, "a.zip", contents[0])
    put(url, "m.zip", contents[1])
    mirror = open_mirror(url)
    mirror.look()
    kept = os.lstat(mirror.folder / "a.zip")
    if lost == "the folder":
        shutil.rmtree(mirror.folder)
    elif lost == "a file":
        (mirror.folder / "m.zip").unlink()
    else:
        (mirror.folder / "m.zip").write_bytes(contents[1][:1000])
    mirror.look()
    assert (mirror.problem, (mirror.folder / "m.zip").read_bytes()) == (None, contents[1])
    assert (mirror.folder / "a.zip").read_bytes() == contents[0]
    assert lost == "the folder" or os.lstat(mirror.folder / "a.zip") == kept
    assert (mirror.folder / ".lock").exists()


def test_what_a_crash_has_left_is_removed(
    url: str, contents: list[bytes], open_mirror: Callable[[str], Mirror]
) -> None:
    mirror = open_mirror(url)
    for path in ("m.zip", ".versions/m/1.zip"):
        put(url, path, contents[0])
        (mirror.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (mirror.folder / path).with_name(".tmp-cut-short").write_bytes(b"PK")
    mirror.look()
    assert list_copies(mirror) == [".versions/m/1.zip", "m.zip"]


@pytest.mark.parametrize("state", [None, b"[]", b'{"url": "u", "copied": {}}', b'{"copied": [], "sizes": {}}'])
def test_a_copy_that_was_cut_short_is_copied_again(
    state: bytes | None, url: str, contents: list[bytes], open_mirror: Callable[[str], Mirror]
) -> None:
    put(url, "m.zip", contents[0])
    first = open_mirror(url)
    first.look()
    first.close()
    (first.folder / "m.zip").write_bytes(contents[0][:1000])
    if state is not None:  # of another version, or damaged
        (first.folder / ".state.json").write_bytes(state)
    second = open_mirror(url)
    second.look()
    assert (second.problem, (second.folder / "m.zip").read_bytes()) == (None, contents[0])


def test_versions_that_come_before_the_newest_give_no_number_to_another_model(
    url: str, contents: list[bytes], open_mirror: Callable[[str], Mirror]
) -> None:
    mirror = open_mirror(url)
    put(url, "m.zip", contents[0])
    mirror.look()
    versions = VersionFolder(mirror.folder, max_versions=5, max_bytes=2**30, is_read_only=True)
    put(url, ".versions/m/1.zip", contents[0])
    mirror.look()
    assert (versions.find_newest("m"), versions.resolve("m@2")) == (1, None)
    put(url, "m.zip", contents[1])
    mirror.look()
    assert (versions.find_newest("m"), versions.resolve("m@1")) == (2, ("m", 1))


def test_a_store_that_is_gone_takes_no_model_along(
    tmp_path: Path, contents: list[bytes], open_mirror: Callable[[str], Mirror]
) -> None:
    url = f"file://{tmp_path}/store"
    put(url, "m.zip", contents[0])
    mirror = open_mirror(url)
    mirror.look()
    shutil.rmtree(tmp_path / "store")
    mirror.look()
    assert mirror.problem is not None
    assert list_copies(mirror) == ["m.zip"]
    (tmp_path / "store").mkdir()  # as the folder of a disk that is not mounted
    mirror.look()
    assert "there is no model any more" in mirror.problem
    assert list_copies(mirror) == ["m.zip"]


def test_what_cannot_be_read_keeps_no_other_model_away(
    tmp_path: Path, contents: list[bytes], open_mirror: Callable[[str], Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/store"
    put(url, "a.zip", contents[0])
    put(url, "b.zip", contents[1])
    put(url, ".versions/b/notes.json", b'{"aliases": ')
    mirror = open_mirror(url)
    read = mirror._files.cat_file

    def refuse_one(path: str) -> bytes:
        if path.endswith("a.zip"):
            raise PermissionError("this one is locked")
        content: bytes = read(path)
        return content

    monkeypatch.setattr(mirror._files, "cat_file", refuse_one)
    mirror.look()
    assert mirror.problem is not None
    assert "model 'a' cannot be copied" in mirror.problem
    assert "notes.json is not copied: it is not JSON" in mirror.problem
    assert not mirror.is_complete
    monkeypatch.undo()
    put(url, ".versions/b/notes.json", b"{}")
    mirror.look()
    assert mirror.problem is None
    assert mirror.is_complete
    assert {"a.zip", "b.zip"} <= set(list_copies(mirror))


def test_models_that_lie_in_the_folder_are_left_alone(
    url: str, contents: list[bytes], tmp_path: Path, open_mirror: Callable[[str], Mirror]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "own.zip").write_bytes(contents[0])
    open_mirror(url).look()
    assert (tmp_path / "models" / "own.zip").read_bytes() == contents[0]


def test_replicas_of_one_folder_take_turns(
    url: str, contents: list[bytes], tmp_path: Path, open_mirror: Callable[[str], Mirror]
) -> None:
    put(url, "m.zip", contents[0])
    mirror = open_mirror(url)
    hold = f"import fcntl, sys; f = open({str(mirror.folder / '.lock')!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
    hold += "; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        mirror.look()
        assert (list_copies(mirror), mirror.is_complete) == ([], False)
        state = {"url": url, "copied": {}, "sizes": {}}
        for said in ({}, {"is_complete": True}, {"is_complete": False}):  # by the one that copies
            (mirror.folder / ".state.json").write_text(json.dumps({**state, **said}))
            mirror.look()
            assert mirror.is_complete is said.get("is_complete", False)
        holder.communicate(b"")
    mirror.look()
    assert (list_copies(mirror), mirror.is_complete) == (["m.zip"], True)


def test_a_replica_that_still_copies_lets_no_other_one_copy(
    tmp_path: Path, contents: list[bytes], open_mirror: Callable[[str], Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/store"
    put(url, "m.zip", contents[0])
    mirror = open_mirror(url)
    read, has_come, may_go = mirror._files.cat_file, threading.Event(), threading.Event()

    def read_late(path: str) -> bytes:
        has_come.set()
        may_go.wait(PATIENCE_SECONDS)
        content: bytes = read(path)
        return content

    monkeypatch.setattr(mirror._files, "cat_file", read_late)
    monkeypatch.setattr(service.replicas.mirror, "_CLOSE_SECONDS", 0.0)
    mirror.start()
    has_come.wait(PATIENCE_SECONDS)
    mirror.close()
    assert mirror._lock is not None
    may_go.set()
    wait_until(lambda: mirror._lock is None)
    assert list_copies(mirror) == ["m.zip"]


@pytest.mark.parametrize("url", ["nosuchstore://models", "http+nosuch://x"])
def test_an_unknown_store_is_refused_at_the_start(url: str, tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match="models_url cannot be opened"):
        Mirror(url, tmp_path)


def test_a_replica_serves_what_the_store_holds(tmp_path: Path, contents: list[bytes]) -> None:
    url = f"file://{tmp_path}/trained"
    settings = Settings(models_dir=tmp_path / "copies", role="serve", models_url=url)
    with make_client(settings) as replica:
        assert replica.get("/health/ready").status_code == 503
        with make_client(Settings(models_dir=tmp_path / "trained", executor="thread")) as trainer:
            for content in contents:
                assert upload(trainer, content, "m", overwrite=True).status_code == 200
            trainer.put("/models/m/aliases/prod", json={"version": 1})
            assert upload(trainer, contents[0], "stays").status_code == 200
            wait_until(lambda: replica.get("/models/m/file").content == contents[1])
            wait_until(lambda: replica.get("/models/m@prod/file").content == contents[0])
            wait_until(lambda: replica.get("/models/stays").status_code == 200)
            wait_until(lambda: bool(replica.get("/health/ready").json() == {"status": "ready"}))
            body = {"model_name": "m@prod", "observation": [0.1, 0.0, 0.05, 0.0]}
            assert replica.post("/inference", json=body).json() == trainer.post("/inference", json=body).json()
            trainer.delete("/models/m")
            wait_until(lambda: replica.get("/models/m").status_code == 404)
            assert replica.get("/models/stays").status_code == 200
