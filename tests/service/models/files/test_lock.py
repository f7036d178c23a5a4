"""A folder has one server at a time; ``tests/test_run_api.py`` tests two processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import StorageError
from service.models.files.folder import ModelFolder
from service.models.files.lock import FolderInUseError, FolderLock, lock_folder

HOLDER = """
import sys
from pathlib import Path
from service.models.files.lock import lock_folder
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
        holder.wait()
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


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_in_place_of_the_lock_is_named_with_the_remedy(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".lock"
    if kind == "link":
        path.symlink_to("elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match=rf"^{path} is not a regular file; remove it"), lock_folder(tmp_path):
        pass


def test_what_a_killed_server_left_is_swept_at_once(tmp_path: Path) -> None:
    for name in (".tmp-0123", "m.zip", ".gitkeep"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".tmp-folder").mkdir()  # nothing that a server makes, and no reason not to start
    with lock_folder(tmp_path) as lock:
        assert sorted(os.listdir(tmp_path)) == [".gitkeep", ".lock", ".tmp-folder", "m.zip"]
        (tmp_path / ".tmp-4567").write_bytes(b"")  # now it may be a save in progress
        (tmp_path / ".lock").unlink()
        lock.renew()
        assert (tmp_path / ".tmp-4567").exists()


def test_a_file_in_its_place_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    for path in (tmp_path / "models", tmp_path / "models" / "below"):
        with pytest.raises(NotADirectoryError, match=r"is a file or lies below one.*--models-dir"):
            FolderLock(path)


def test_a_folder_that_was_made_anew_is_locked_again(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    with lock_folder(folder) as lock:
        shutil.rmtree(folder)
        folder.mkdir()
        lock.renew()
        with pytest.raises(FolderInUseError, match=str(os.getpid())):
            _lock_elsewhere(folder)


def test_a_folder_that_another_server_was_quicker_to_take_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    with lock_folder(folder) as lock:
        shutil.rmtree(folder)
        command = [sys.executable, "-c", HOLDER, str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            store = ModelFolder(folder, lock=lock)
            with pytest.raises(FolderInUseError, match=rf"process id {holder.pid}\b"):
                store.write("m", b"")
            assert store.find_problem() == "the models folder cannot be locked: another server uses it"
            (folder / "m.zip").write_bytes(b"")
            with pytest.raises(StorageError, match="another server uses it"):
                store.delete("m")
            holder.communicate()


def _lock_elsewhere(folder: Path) -> None:
    """Try to lock a folder in another process, since a process does not lock itself out."""
    script = "import sys\nfrom pathlib import Path\nfrom service.models.files.lock import lock_folder\n"
    script += "with lock_folder(Path(sys.argv[1])):\n    pass\n"
    process = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    if process.returncode != 0:
        raise FolderInUseError(process.stderr)
