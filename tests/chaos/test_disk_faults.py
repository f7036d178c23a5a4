"""A disk that refuses at each step of a save: the old model or the new one is there, and the answer says which."""

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from grpo_core.saving import atomic_write
from service.settings import Settings
from tests.models import make_model
from tests.support import train_to_end

REFUSALS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
# Every call that a save makes of the system, and the file that is there after it has failed.
STEPS = {
    "create": "old",
    "write": "old",
    "sync the file": "old",
    "replace": "old",
    "open the folder": "new",
    "sync the folder": "new",
}
ZIP = {"Content-Type": "application/zip"}


class _FullFile(io.FileIO):
    number = 0

    def write(self, content: Any, /) -> int:
        super().write(bytes(content)[: len(content) // 2])
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def break_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Let one step of every save fail."""

    def break_disk(step: str, number: int) -> None:
        def refuse(*_: Any) -> Any:
            raise OSError(number, os.strerror(number))

        def sync(descriptor: int, sync: Callable[[int], None] = os.fsync) -> None:
            is_folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
            if is_folder == (step == "sync the folder"):
                refuse()
            sync(descriptor)

        def open_folder(path: Any, flags: int, *arguments: Any, open: Callable[..., int] = os.open) -> int:
            return refuse() if Path(path).is_dir() else open(path, flags, *arguments)

        _FullFile.number = number
        name, replacement = {
            "create": ("open", refuse),
            "write": ("open", lambda path, _: _FullFile(path, "xb")),
            "sync the file": ("fsync", sync),
            "replace": ("replace", refuse),
            "open the folder": ("open", open_folder),
            "sync the folder": ("fsync", sync),
        }[step]
        if step in ("create", "write"):
            monkeypatch.setattr(atomic_write, name, replacement, raising=False)
        else:
            monkeypatch.setattr(os, name, replacement)

    return break_disk


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """Files of two different policies."""
    return [make_model("CartPole-v1", seed).to_bytes(env_name="CartPole-v1") for seed in range(2)]


@pytest.fixture
def folder(settings: Settings) -> Iterator[Path]:
    """The models folder, in which nothing is left over afterwards."""
    yield settings.models_dir
    assert list(settings.models_dir.glob(".tmp-*")) == []


def find_file(folder: Path, contents: list[bytes], name: str = "m") -> str:
    sha256 = hashlib.sha256((folder / f"{name}.zip").read_bytes()).hexdigest()
    return {hashlib.sha256(content).hexdigest(): age for content, age in zip(contents, ("old", "new"), strict=True)}[
        sha256
    ]


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", STEPS)
def test_an_upload_leaves_the_old_model_or_the_new_one_and_says_which(
    client: TestClient,
    folder: Path,
    contents: list[bytes],
    break_disk: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    number: int,
) -> None:
    def put(content: bytes) -> Any:
        return client.put("/models/m/file", content=content, headers=ZIP, params={"overwrite": True})

    assert put(contents[0]).status_code == 200
    break_disk(step, number)
    answer = put(contents[1])
    monkeypatch.undo()
    assert answer.status_code == 507
    assert os.strerror(number) in answer.json()["detail"]
    assert ("is in its place" in answer.json()["detail"]) == (STEPS[step] == "new")
    assert find_file(folder, contents) == STEPS[step]
    card = client.get("/models/m").json()
    assert card["sha256"] == hashlib.sha256(contents[STEPS[step] == "new"]).hexdigest()
    assert client.post("/inference", json={"model_name": "m", "observation": [0.0] * 4}).status_code == 200
    assert put(contents[1]).status_code == 200


@pytest.mark.parametrize("step", STEPS)
def test_a_job_keeps_what_was_there_or_its_policy_and_says_which(
    client: TestClient,
    folder: Path,
    contents: list[bytes],
    break_disk: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "m.zip").write_bytes(contents[0])
    break_disk(step, errno.EIO)
    status = train_to_end(client, total_timesteps=64, model_name="m", n_eval_episodes=0)
    monkeypatch.undo()
    assert status["status"] == "failed"
    assert ("is in its place" in status["error_message"]) == (STEPS[step] == "new")
    assert ((folder / "m.zip").read_bytes() == contents[0]) == (STEPS[step] == "old")
    assert client.get("/models/m").status_code == 200
