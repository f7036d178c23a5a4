"""A models folder keeps its name, and no two have the same."""

import errno
import re
from pathlib import Path

import pytest

from service.models.files.identity import read_folder_id


def test_it_is_drawn_once_and_kept(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    names = [read_folder_id(folder) or "" for folder in folders]
    assert names[0] != names[1]
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in names)
    assert [read_folder_id(folder) for folder in folders] == names


@pytest.mark.parametrize("content", [b"", b"../../etc", b"\xff" * 32])
def test_what_is_no_name_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".folder-id").write_bytes(content)
    name = read_folder_id(tmp_path)
    assert read_folder_id(tmp_path) == name != content.decode(errors="replace")


def test_a_folder_that_takes_no_file_has_none(tmp_path: Path) -> None:
    (tmp_path / ".folder-id").mkdir()
    assert read_folder_id(tmp_path) is None
    assert read_folder_id(tmp_path / "absent") is None


def test_a_disk_that_refuses_once_does_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = read_folder_id(tmp_path)

    def refuse(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_bytes", refuse)
        assert read_folder_id(tmp_path) is None
    assert read_folder_id(tmp_path) == name
