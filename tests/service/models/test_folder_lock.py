"""A folder has one server at a time; ``tests/test_run_api.py`` tests two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.models.folder_lock import FolderInUseError, lock_folder

HOLDER = """
import sys
from pathlib import Path
from service.models.folder_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_the_folder_is_made_for_its_owner_alone_and_names_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    with lock_folder(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / ".lock").read_text() == f"{os.getpid()}\n"
        assert (folder / ".lock").stat().st_mode & 0o777 == 0o600


def test_another_process_keeps_the_folder_until_it_leaves(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(FolderInUseError, match=rf"process id {holder.pid}\b.*GRPO_MODELS_DIR"),
            lock_folder(tmp_path),
        ):
            pass
        # The refusal leaves the holder's id in the file.
        assert (tmp_path / ".lock").read_text() == f"{holder.pid}\n"
        holder.stdin.close()
        holder.wait(60)
    with lock_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_of_a_shorter_process_id_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("123456789012\n")
    with lock_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="lock"), lock_folder(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
