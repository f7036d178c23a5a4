"""What is saved takes the place of files only."""

import os
from pathlib import Path

import pytest

from grpo_client import FileProblem
from grpo_client.files import save_file


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.zip"
    for content in (b"first", b"second"):
        assert save_file(path, content) == path
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["a.zip"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, is_there: bool) -> None:
    target, link = tmp_path / "target.zip", tmp_path / "a.zip"
    if is_there:
        target.write_bytes(b"before")
    link.symlink_to(target.name)
    assert save_file(link, b"after") == link
    assert link.is_symlink()
    assert target.read_bytes() == b"after"


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "folder", "loop", "link"):
        with pytest.raises(FileProblem, match=rf"{name} is not a regular file; name another\.$"):
            save_file(tmp_path / name, b"")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "loop", "pipe"]
