"""Model files are listed, loaded, replaced and deleted without running or touching anything else."""

import base64
import errno
import hashlib
import io
import json
import os
import pickle
import resource
import socket
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO

from grpo_core.saving import atomic_write, model_file
from service.errors import ConflictError, InvalidRequestError, NotFoundError, NotReadyError, StorageError
from service.models.files.folder import ModelFolder
from service.models.served import ServedModel
from service.models.store import ModelStore
from service.schemas.fields import is_model_name
from tests.models import make_model
from tests.support import open_model_store, wait_until

OBSERVATIONS = np.array([[0.1, 0.0, 0.05, 0.0], [-1.0, 0.5, -0.1, 1.0]], np.float32)
# A 64x64 network for CartPole: 4*64+64 + 64*64+64 twice, and heads of 64*2+2 and 64+1, of 4 bytes each.
MODEL_BYTES = 4 * (2 * (4 * 64 + 64 + 64 * 64 + 64) + (64 * 2 + 2) + (64 + 1))
HOSTILE_NAMES = ["", ".", "..", "../escaped", "a/b", "a\\b", "/etc/passwd", "a\x00", "a\n", ".tmp-x", "CON", "x" * 300]


class Probe:
    """Reports as much free memory as the test wants."""

    def __init__(self) -> None:
        self.available_bytes = 2**40
        self.first_readings: list[int] = []

    def __call__(self) -> int:
        return self.first_readings.pop(0) if self.first_readings else self.available_bytes


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """Model files of three different policies."""
    return [make_model("CartPole-v1", seed).to_bytes() for seed in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def open_store(folder: Path, probe: Probe) -> Callable[..., ModelStore]:
    def build(max_cached_models: int = 64, max_cached_bytes: int = 2**29, total_bytes: int = 2**34) -> ModelStore:
        return ModelStore(
            ModelFolder(folder),
            max_cached_models=max_cached_models,
            max_cached_bytes=max_cached_bytes,
            available_bytes=probe,
            total_bytes=total_bytes,
        )

    return build


@pytest.fixture
def store(open_store: Callable[..., ModelStore]) -> ModelStore:
    return open_store()


@pytest.fixture
def foreign_folder() -> Iterator[Path]:
    """A folder of somebody who is not root, as whom the test runs: root may do everything."""
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        if user == 0:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)


def answer(store: ModelStore, name: str) -> list[list[float]]:
    probs = store.get(name).actor.action_probs(OBSERVATIONS)
    assert probs is not None
    return [[float(p) for p in row] for row in probs]


def answer_of(content: bytes) -> list[list[float]]:
    probs = model_file.from_bytes(content).make_actor().action_probs(OBSERVATIONS)
    assert probs is not None
    return [[float(p) for p in row] for row in probs]


def flip(content: bytes) -> bytes:
    """Change one byte in the middle of the weights."""
    place = content.index(b"weights/mlp_extractor.policy_net.2.weight.npy") + 1000
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def list_statuses(store: ModelStore) -> dict[str, str]:
    return {entry.name: str(entry.status) for entry in store.list_models()}


class TestSavingAndServing:
    def test_a_published_model_is_on_disk_and_served(
        self, store: ModelStore, folder: Path, contents: list[bytes]
    ) -> None:
        digest = store.publish("m", contents[0])
        assert (folder / "m.zip").read_bytes() == contents[0]
        assert digest == hashlib.sha256(contents[0]).hexdigest()
        assert list_statuses(store) == {"m": "loaded"}
        assert answer(store, "m") == answer_of(contents[0])

    def test_publishing_again_replaces_it(self, store: ModelStore, contents: list[bytes]) -> None:
        store.publish("m", contents[0])
        store.publish("m", contents[1])
        assert answer(store, "m") == answer_of(contents[1]) != answer_of(contents[0])
        assert store.n_loaded == 1

    def test_content_that_cannot_be_read_back_never_replaces_a_model(
        self, store: ModelStore, folder: Path, contents: list[bytes]
    ) -> None:
        store.publish("m", contents[0])
        with pytest.raises(model_file.ModelFileError):
            store.publish("m", contents[1][:-100])
        assert (folder / "m.zip").read_bytes() == contents[0]

    def test_a_disk_that_refuses_leaves_the_old_model_and_nothing_beside_it(
        self, store: ModelStore, folder: Path, contents: list[bytes]
    ) -> None:
        store.publish("m", contents[0])
        # A limit on file sizes stands in for a full disk: writing fails half-way.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(StorageError, match="File too large"):
                store.publish("m", contents[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("m.zip", contents[0])]
        assert answer(store, "m") == answer_of(contents[0])

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_no_name_leads_out_of_the_folder(
        self, store: ModelStore, folder: Path, contents: list[bytes], name: str
    ) -> None:
        assert not is_model_name(name)
        with pytest.raises(InvalidRequestError):
            store.publish(name, contents[0])
        for refuse in (store.get, store.delete):
            with pytest.raises(NotFoundError) as refusal:
                refuse(name)
            assert len(refusal.value.detail) < 600
        assert not store.exists(name)
        assert list(folder.parent.rglob("*")) == [folder]

    def test_a_file_replaced_on_disk_is_picked_up(self, store: ModelStore, folder: Path, contents: list[bytes]) -> None:
        store.publish("m", contents[0])
        atomic_write.write_atomic(folder / "m.zip", contents[1])
        assert answer(store, "m") == answer_of(contents[1])

    def test_a_file_removed_from_disk_is_gone(self, store: ModelStore, folder: Path, contents: list[bytes]) -> None:
        store.publish("m", contents[0])
        (folder / "m.zip").unlink()
        with pytest.raises(NotFoundError):
            store.get("m")
        assert list_statuses(store) == {}
        assert store.n_loaded == 0

    def test_a_file_put_into_the_folder_is_served(self, store: ModelStore, folder: Path, contents: list[bytes]) -> None:
        (folder / "mine.v2.zip").write_bytes(contents[0])
        assert list_statuses(store) == {"mine.v2": "saved"}
        assert answer(store, "mine.v2") == answer_of(contents[0])
        assert list_statuses(store) == {"mine.v2": "loaded"}

    def test_readers_see_the_old_or_the_new_model_while_it_is_overwritten(
        self, store: ModelStore, folder: Path, contents: list[bytes]
    ) -> None:
        store.publish("m", contents[0])
        valid = [answer_of(contents[0]), answer_of(contents[1])]
        seen: list[list[list[float]]] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                seen.append(answer(store, "m"))

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for i in range(40):
            store.publish("m", contents[i % 2])
        wait_until(lambda: len(seen) > 100)
        done.set()
        for reader in readers:
            reader.join()
        assert all(answered in valid for answered in seen)


class TestDeleting:
    def test_a_deleted_model_is_gone_from_memory_and_disk(
        self, store: ModelStore, folder: Path, contents: list[bytes]
    ) -> None:
        store.publish("m", contents[0])
        store.delete("m")
        assert list(folder.iterdir()) == []
        assert store.n_loaded == 0
        with pytest.raises(NotFoundError):
            store.get("m")

    def test_it_can_be_deleted_once(self, store: ModelStore, contents: list[bytes]) -> None:
        store.publish("m", contents[0])
        outcomes: list[str] = []
        start = threading.Barrier(8)

        def delete() -> None:
            start.wait()
            try:
                store.delete("m")
                outcomes.append("deleted")
            except NotFoundError:
                outcomes.append("not found")

        threads = [threading.Thread(target=delete) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["deleted"] + ["not found"] * 7

    @pytest.mark.parametrize("content", [b"", b"no zip"])
    def test_an_unusable_file_can_be_deleted(self, store: ModelStore, folder: Path, content: bytes) -> None:
        (folder / "m.zip").write_bytes(content)
        store.delete("m")
        assert list(folder.iterdir()) == []


class TestForeignAndDamagedFiles:
    @pytest.fixture
    def canary(self, tmp_path: Path) -> Path:
        return tmp_path / "the-code-ran"

    @pytest.fixture
    def foreign(self, canary: Path) -> bytes:
        """A real model of another algorithm, one of whose pickles writes the canary when it is loaded."""
        saved = io.BytesIO()
        PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(saved)

        class Canary:
            def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
                return os.mkdir, (str(canary),)

        changed = io.BytesIO()
        with zipfile.ZipFile(saved) as source, zipfile.ZipFile(changed, "w") as target:
            for member in source.namelist():
                content = source.read(member)
                if member == "data":
                    described = json.loads(content)
                    pickled = base64.b64encode(pickle.dumps(Canary())).decode()
                    described["lr_schedule"][":serialized:"] = pickled
                    content = json.dumps(described).encode()
                target.writestr(member, content)
        return changed.getvalue()

    # SB3 warns about the unexpected object in the control below.
    @pytest.mark.filterwarnings("ignore")
    def test_a_file_of_another_algorithm_is_never_opened(
        self, store: ModelStore, folder: Path, foreign: bytes, canary: Path
    ) -> None:
        (folder / "foreign.zip").write_bytes(foreign)
        assert list_statuses(store) == {"foreign": "unsafe"}
        with pytest.raises(ConflictError, match="not saved by GRPO"):
            store.get("foreign")
        assert list_statuses(store) == {"foreign": "unsafe"}
        assert store.n_loaded == 0
        assert not canary.exists()
        # Control: the same file does run its code where pickles are loaded.
        PPO.load(folder / "foreign.zip", device="cpu")
        assert canary.exists()

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: b"not a zip file",
            lambda content: content[: len(content) // 2],
            lambda content: content[:5000] + b"\xff" + content[5001:],
            lambda content: content.replace(b"grpo-model/1", b"grpo-model/9"),
        ],
        ids=["empty", "text", "half", "one byte", "another format"],
    )
    def test_a_damaged_file_is_listed_as_corrupt_and_not_served(
        self, store: ModelStore, folder: Path, contents: list[bytes], damage: Callable[[bytes], bytes]
    ) -> None:
        (folder / "m.zip").write_bytes(damage(contents[0]))
        for _ in range(2):
            assert list_statuses(store) == {"m": "corrupt"}
            with pytest.raises(ConflictError, match="model 'm' cannot be used") as refusal:
                store.get("m")
            assert str(folder) not in refusal.value.detail

    def test_a_repaired_file_is_served_again(self, store: ModelStore, folder: Path, contents: list[bytes]) -> None:
        (folder / "m.zip").write_bytes(contents[0][:-1])
        assert list_statuses(store) == {"m": "corrupt"}
        atomic_write.write_atomic(folder / "m.zip", contents[0])
        assert list_statuses(store) == {"m": "saved"}
        assert answer(store, "m") == answer_of(contents[0])

    def test_a_model_damaged_on_disk_is_no_longer_served_from_memory(
        self, store: ModelStore, folder: Path, contents: list[bytes]
    ) -> None:
        store.publish("m", contents[0])
        (folder / "m.zip").write_bytes(contents[0][:-1])
        with pytest.raises(ConflictError):
            store.get("m")

    @pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "fifo", "folder", "socket"])
    def test_only_regular_files_are_models(
        self,
        store: ModelStore,
        folder: Path,
        tmp_path: Path,
        contents: list[bytes],
        kind: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        outside, path = tmp_path / "outside.zip", folder / "x.zip"
        outside.write_bytes(contents[0])
        if kind == "symlink":
            path.symlink_to(outside)
        elif kind == "dangling symlink":
            path.symlink_to(tmp_path / "nothing")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            monkeypatch.chdir(folder)  # the address of a socket must be short
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path.name)
        assert store.list_models() == []
        assert not store.exists("x")
        for refuse in (store.get, store.delete):
            with pytest.raises(NotFoundError):
                refuse("x")
        assert os.path.lexists(path)
        assert outside.read_bytes() == contents[0]

    def test_only_files_with_model_names_are_listed(
        self, store: ModelStore, folder: Path, contents: list[bytes]
    ) -> None:
        for name in (".hidden.zip", "m.txt", "m", "a b.zip", "CON.zip", ".zip", "é.zip", "b.zip", "a.zip"):
            (folder / name).write_bytes(contents[0])
        (folder / os.fsdecode(b"\xff.zip")).write_bytes(contents[0])
        assert [entry.name for entry in store.list_models()] == ["a", "b"]


class TestLargeFolders:
    """More files than one listing verifies; it goes by name, so "z" comes last."""

    @pytest.fixture
    def crowded(self, folder: Path, contents: list[bytes]) -> Path:
        folder.mkdir()
        for i in range(2**19 // len(contents[0]) + 1):
            (folder / f"m{i}.zip").write_bytes(contents[0])
        return folder

    def test_a_damaged_file_is_found_once_all_are_verified(
        self, crowded: Path, open_store: Callable[..., ModelStore], contents: list[bytes]
    ) -> None:
        (crowded / "z.zip").write_bytes(flip(contents[0]))
        store = open_store()
        assert set(list_statuses(store).values()) == {"saved"}
        while store.verify_next():
            pass
        assert {name for name, status in list_statuses(store).items() if status == "corrupt"} == {"z"}

    def test_a_file_that_appears_later_is_verified_too(
        self, crowded: Path, open_store: Callable[..., ModelStore], contents: list[bytes]
    ) -> None:
        store = open_store()
        (crowded / "z.zip").write_bytes(flip(contents[0]))
        while store.verify_next():
            pass
        # All others are known by now, so the listing verifies this one.
        assert list_statuses(store)["z"] == "corrupt"
        for path in crowded.glob("m*.zip"):
            path.write_bytes(contents[1])
        (crowded / "z.zip").write_bytes(flip(contents[1]))
        assert list_statuses(store)["z"] == "saved"
        while store.verify_next():
            pass
        assert list_statuses(store)["z"] == "corrupt"

    @pytest.mark.parametrize(
        ("cut", "status"),
        [
            (lambda content: b"", "corrupt"),
            (lambda content: b"not a zip file", "corrupt"),
            (lambda content: content[: len(content) // 2], "corrupt"),
            (lambda content: content[:-1], "corrupt"),
            (lambda content: content[1:], "corrupt"),
            (lambda content: content.replace(b"grpo_meta.json", b"hers_meta.json"), "unsafe"),
        ],
        ids=["empty", "text", "half", "without its end", "without its start", "foreign"],
    )
    def test_what_is_cut_or_foreign_is_found_at_once(
        self,
        crowded: Path,
        open_store: Callable[..., ModelStore],
        contents: list[bytes],
        cut: Callable[[bytes], bytes],
        status: str,
    ) -> None:
        (crowded / "z.zip").write_bytes(cut(contents[0]))
        assert list_statuses(open_store())["z"] == status

    def test_a_file_that_was_only_looked_at_is_verified_before_it_is_served(
        self, crowded: Path, open_store: Callable[..., ModelStore], contents: list[bytes]
    ) -> None:
        (crowded / "z.zip").write_bytes(flip(contents[0]))
        store = open_store()
        assert list_statuses(store)["z"] == "saved"
        with pytest.raises(ConflictError):
            store.get("z")
        assert list_statuses(store)["z"] == "corrupt"

    def test_a_file_that_the_disk_does_not_give_is_corrupt_as_long_as_that_lasts(
        self, crowded: Path, open_store: Callable[..., ModelStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        store = open_store()
        with monkeypatch.context() as broken:
            broken.setattr(os, "pread", fail)  # a listing reads the ends of the last file with it
            assert "corrupt" in list_statuses(store).values()
        assert set(list_statuses(store).values()) == {"saved"}

    def test_files_that_vanish_are_no_trouble(self, crowded: Path, open_store: Callable[..., ModelStore]) -> None:
        store = open_store()
        for path in crowded.iterdir():
            path.unlink()
        while store.verify_next():
            pass
        assert list_statuses(store) == {}


class TestMemory:
    def test_threads_that_ask_for_more_models_than_fit_get_the_right_ones(
        self, open_store: Callable[..., ModelStore], folder: Path, contents: list[bytes]
    ) -> None:
        folder.mkdir()
        expected = [answer_of(content) for content in contents]
        for i in range(12):
            (folder / f"m{i}.zip").write_bytes(contents[i % 3])
        store = open_store(max_cached_bytes=4 * MODEL_BYTES)
        right: list[bool] = []

        def ask(first: int) -> None:
            for i in range(first, first + 60):
                right.append(answer(store, f"m{7 * i % 12}") == expected[7 * i % 12 % 3])

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * 360
        assert store.n_loaded == 4

    def test_threads_that_ask_for_the_same_model_share_what_one_of_them_loads(
        self, store: ModelStore, folder: Path, contents: list[bytes]
    ) -> None:
        (folder / "m.zip").write_bytes(contents[0])
        start = threading.Barrier(8)
        loaded: list[ServedModel] = []

        def load() -> None:
            start.wait()
            loaded.append(store.get("m"))

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(loaded) == 8
        assert len(set(map(id, loaded))) == 1

    def test_the_least_recently_used_model_makes_room(
        self, open_store: Callable[..., ModelStore], contents: list[bytes]
    ) -> None:
        store = open_store(max_cached_models=2)
        store.publish("a", contents[0])
        store.publish("b", contents[1])
        store.get("a")
        store.publish("c", contents[2])
        assert list_statuses(store) == {"a": "loaded", "b": "saved", "c": "loaded"}
        assert answer(store, "b") == answer_of(contents[1])
        assert list_statuses(store) == {"a": "saved", "b": "loaded", "c": "loaded"}

    def test_models_take_no_more_memory_than_allowed(
        self, open_store: Callable[..., ModelStore], contents: list[bytes]
    ) -> None:
        store = open_store(max_cached_bytes=2 * MODEL_BYTES)
        for name, content in zip("abc", contents, strict=True):
            store.publish(name, content)
        assert list_statuses(store) == {"a": "saved", "b": "loaded", "c": "loaded"}

    def test_a_model_larger_than_all_of_it_is_served_without_being_kept(
        self, open_store: Callable[..., ModelStore], contents: list[bytes]
    ) -> None:
        store = open_store(max_cached_bytes=MODEL_BYTES - 1)
        store.publish("m", contents[0])
        assert store.n_loaded == 0
        assert answer(store, "m") == answer_of(contents[0])

    def test_models_are_unloaded_while_memory_is_low_and_answer_the_same_afterwards(
        self, store: ModelStore, probe: Probe, contents: list[bytes]
    ) -> None:
        for name, content in zip("abc", contents, strict=True):
            store.publish(name, content)
        before = {name: answer(store, name) for name in "abc"}
        assert store.unload_under_pressure() == 0
        probe.available_bytes = 2**20
        assert store.unload_under_pressure() == 3
        assert store.n_loaded == 0
        assert list_statuses(store) == {"a": "saved", "b": "saved", "c": "saved"}
        assert {name: answer(store, name) for name in "abc"} == before
        assert store.n_loaded == 0  # memory is still low
        probe.available_bytes = 2**40
        assert {name: answer(store, name) for name in "abc"} == before
        assert store.n_loaded == 3

    def test_no_more_is_unloaded_than_it_takes(
        self, open_store: Callable[..., ModelStore], probe: Probe, contents: list[bytes]
    ) -> None:
        store = open_store()
        for name, content in zip("abc", contents, strict=True):
            store.publish(name, content)
        probe.first_readings = [2**20, 2**20]
        assert store.unload_under_pressure() == 2
        assert list_statuses(store) == {"a": "saved", "b": "saved", "c": "loaded"}

    @pytest.mark.parametrize(
        ("total_bytes", "available_bytes", "n_unloaded"),
        [
            # A tenth of all memory, but at most 512 MiB, must stay free.
            (2**30, 2**30 // 10 - 1, 1),
            (2**30, 2**30 // 10 + 1, 0),
            (2**40, 512 * 2**20 - 1, 1),
            (2**40, 512 * 2**20, 0),
        ],
    )
    def test_memory_is_low_below_a_tenth_or_half_a_gibibyte(
        self,
        open_store: Callable[..., ModelStore],
        probe: Probe,
        contents: list[bytes],
        total_bytes: int,
        available_bytes: int,
        n_unloaded: int,
    ) -> None:
        store = open_store(total_bytes=total_bytes)
        store.publish("m", contents[0])
        probe.available_bytes = available_bytes
        assert store.unload_under_pressure() == n_unloaded


class TestTheFolder:
    def test_it_is_created_for_its_owner_alone(self, store: ModelStore, folder: Path) -> None:
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_what_a_crash_left_is_swept_and_models_stay(
        self, open_store: Callable[..., ModelStore], folder: Path, contents: list[bytes]
    ) -> None:
        folder.mkdir()
        for name in (".tmp-0123", ".tmp-4567", "m.zip", "notes.txt", ".gitkeep"):
            (folder / name).write_bytes(contents[0])
        for name in (".tmp-0123", "m.zip", "notes.txt"):
            os.utime(folder / name, (0, 0))
        open_store()
        # A fresh file may be another server's save in progress.
        assert sorted(file.name for file in folder.iterdir()) == [".gitkeep", ".tmp-4567", "m.zip", "notes.txt"]

    def test_a_listing_is_no_use_of_a_model(
        self, open_store: Callable[..., ModelStore], folder: Path, contents: list[bytes]
    ) -> None:
        store = open_store(max_cached_models=2)
        for name in ("b", "a"):
            store.publish(name, contents[0])
        store.get("b")
        store.get("a")
        store.list_models()
        store.publish("c", contents[0])
        assert {name for name, status in store.list_models() if status == "loaded"} == {"a", "c"}

    def test_a_memory_reading_that_fails_fails_nobody(self, folder: Path, contents: list[bytes]) -> None:
        def fail() -> int:
            raise OSError(24, "Too many open files")

        store = ModelStore(
            ModelFolder(folder), max_cached_models=2, max_cached_bytes=2**20, available_bytes=fail, total_bytes=2**30
        )
        store.publish("m", contents[0])
        assert store.get("m").name == "m"
        assert store.unload_under_pressure() == 0

    def test_a_file_in_its_place_is_an_error(self, open_store: Callable[..., ModelStore], folder: Path) -> None:
        folder.write_text("not a folder")
        with pytest.raises(OSError, match="models"):
            open_store()

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a file system without room for folders")
    def test_a_folder_that_cannot_be_created_is_an_error(self) -> None:
        with pytest.raises(OSError, match="models"):
            ModelFolder(Path("/proc/models"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written_to_is_an_error(
        self, open_store: Callable[..., ModelStore], folder: Path
    ) -> None:
        folder.mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="not writable"):
            open_store()

    def test_what_the_disk_refuses_is_told_in_words(self, foreign_folder: Path, contents: list[bytes]) -> None:
        """A file that cannot be read is one row of the listing, and one that cannot be deleted stays."""
        folder = foreign_folder
        store = open_model_store(folder)
        store.publish("good", contents[0])
        store.publish("bad", contents[0])
        (folder / "bad.zip").chmod(0)
        os.utime(folder / "bad.zip", (0, 0))
        assert {entry.name: entry.status for entry in store.list_models()} == {"bad": "corrupt", "good": "loaded"}
        for ask in (store.get, store.inspect_file):
            with pytest.raises(ConflictError, match="cannot be read \\(Permission denied\\)"):
                ask("bad")
        folder.chmod(0o500)
        with pytest.raises(StorageError, match="cannot be deleted \\(Permission denied\\); fix the models folder"):
            store.delete("good")
        assert store.get("good").name == "good"
        folder.chmod(0)
        with pytest.raises(NotReadyError, match="cannot be read \\(Permission denied\\)"):
            store.list_models()
        folder.chmod(0o700)
        store.delete("bad")
        assert [entry.name for entry in store.list_models()] == ["good"]

    def test_names_that_differ_only_in_case_are_refused(self, store: ModelStore, contents: list[bytes]) -> None:
        store.publish("m", contents[0])
        store.folder.check_name("m")
        store.folder.check_name("other")
        with pytest.raises(ConflictError, match="differs from the existing model 'm' only in case"):
            store.folder.check_name("M")
