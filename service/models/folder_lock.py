"""One server per models folder: a second one would take the first one's unfinished files for leftovers of a crash."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LOCK_FILE = ".lock"


class FolderInUseError(OSError):
    """Another server uses the models folder."""


@contextmanager
def lock_folder(models_dir: Path) -> Iterator[None]:
    """Keep other servers out of a folder until the context, or the process, ends.

    Without file locks, as on Windows and some network file systems, this has no effect.

    :param models_dir: The folder; created if absent. A hidden file in it holds the process id.
    :raises FolderInUseError: If another server uses it.
    :raises OSError: If the folder cannot be created or written to.
    """
    models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(models_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, models_dir)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, models_dir: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        # Unlike flock's, these locks are not inherited, so a worker that outlives a killed server holds none.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # POSIX allows either
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        raise FolderInUseError(
            f"models_dir {models_dir} is in use by the server with process id {holder}; stop that server, or choose "
            "another folder with --models-dir or GRPO_MODELS_DIR."
        ) from error
    except OSError:  # the file system has no locks
        return
