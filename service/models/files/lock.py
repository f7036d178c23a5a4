"""One server per models folder: a second one would take the first one's unfinished files for leftovers of a crash."""

import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.models.files.paths import VERSIONS_FOLDER

if sys.platform != "win32":
    import fcntl

_LOCK_FILE = ".lock"
# Files begin with it until they are complete.
TEMPORARY_PREFIX = ".tmp-"
# Do not follow symbolic links, and do not block on a FIFO named like a file that is read.
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FolderInUseError(OSError):
    """Another server uses the models folder."""


class FolderLock:
    """Keeps other servers out of a folder until it is released, or the process ends.

    Without file locks, as on Windows and some network file systems, this has no effect.

    :param models_dir: The folder; created if absent. A hidden file in it holds the process id.
    :raises FolderInUseError: If another server uses it.
    :raises OSError: If the folder cannot be created or written to.
    """

    def __init__(self, models_dir: Path) -> None:
        try:
            models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(
                f"models_dir {models_dir} is a file or lies below one, and not a folder; choose a folder with "
                "--models-dir or GRPO_MODELS_DIR."
            ) from error
        except OSError as error:
            raise OSError(
                f"models_dir {models_dir} cannot be created ({error.strerror}); fix its permissions or its disk, or "
                "choose another folder with --models-dir or GRPO_MODELS_DIR."
            ) from error
        self._models_dir = models_dir
        # Two threads that renew at once would each open the file, and the first to close its own would unlock it.
        self._renewing = threading.Lock()
        self._descriptor, is_locked = _open_and_lock(models_dir)
        if is_locked:
            _sweep(models_dir)

    def renew(self) -> None:
        """Lock the folder again if it has been removed and created anew, or the file in it has.

        :raises FolderInUseError: If another server was quicker.
        :raises OSError: If the folder is missing or cannot be written to.
        """
        with self._renewing:
            if not self._is_lost():
                return
            before = self._descriptor
            self._descriptor, _ = _open_and_lock(self._models_dir)
            os.close(before)

    def _is_lost(self) -> bool:
        held = os.fstat(self._descriptor)
        try:
            found = os.lstat(self._models_dir / _LOCK_FILE)
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino)

    def release(self) -> None:
        """Let other servers use the folder."""
        os.close(self._descriptor)


@contextmanager
def lock_folder(models_dir: Path) -> Iterator[FolderLock]:
    """Keep other servers out of a folder until the context ends; raises what ``FolderLock`` does."""
    lock = FolderLock(models_dir)
    try:
        yield lock
    finally:
        lock.release()


def _open_and_lock(models_dir: Path) -> tuple[int, bool]:
    """Return the lock file's descriptor, and whether it is locked: not where there are no locks."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    path = models_dir / _LOCK_FILE
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if os.path.lexists(path):
            _check_kind(path, os.lstat(path).st_mode, error)
        raise
    try:
        _check_kind(path, os.fstat(descriptor).st_mode)
        is_locked = _lock(descriptor, models_dir)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, is_locked


def _check_kind(path: Path, mode: int, error: OSError | None = None) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is not a regular file; remove it, and the server makes its own.") from error


def _lock(descriptor: int, models_dir: Path) -> bool:
    if sys.platform == "win32":
        return False
    try:
        # Unlike flock's, these locks are not inherited, so a worker that outlives a killed server holds none.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # POSIX allows either
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        raise FolderInUseError(
            f"models_dir {models_dir} is in use by the server with process id {holder}; stop that server, or choose "
            "another folder with --models-dir or GRPO_MODELS_DIR, and another --port."
        ) from error
    except OSError:  # the file system has no locks
        return False
    return True


def _sweep(models_dir: Path) -> None:
    """Remove what a killed server had not finished writing; the lock proves that no other server writes."""
    remove_leftovers(models_dir)
    versions = models_dir / VERSIONS_FOLDER
    for folder in [] if versions.is_symlink() else versions.glob("*"):
        if not folder.is_symlink():
            remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of a folder that no server writes to."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):  # a folder, or not ours: not written by a server
            leftover.unlink()
