"""A models folder keeps its name, and no two have the same."""

import re
from pathlib import Path

import pytest

from service.models.folder_id import read_folder_id


def test_it_is_drawn_once_and_kept(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    names = [read_folder_id(folder) for folder in folders]
    assert names[0] != names[1]
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in names)
    assert [read_folder_id(folder) for folder in folders] == names


@pytest.mark.parametrize("content", [b"", b"../../etc", b"\xff" * 32])
def test_what_is_no_name_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".folder-id").write_bytes(content)
    name = read_folder_id(tmp_path)
    assert read_folder_id(tmp_path) == name != content.decode(errors="replace")


def test_a_folder_that_takes_no_file_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / ".folder-id").mkdir()
    assert read_folder_id(tmp_path) != read_folder_id(tmp_path)
