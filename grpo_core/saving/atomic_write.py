"""Write files so that a crash leaves the old content or the new."""

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path


class UnconfirmedWriteError(OSError):
    """A file is in its place, but may be gone after a power cut."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that readers, and a crash at any instant, see the old content or the new, never a mixture.

    :raises UnconfirmedWriteError: If the new content is in place, but the disk does not confirm that it stays there.
    :raises OSError: If the disk refuses otherwise; the old file is untouched and nothing is left beside it.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # what a broken disk does not delete either, the next start of a server does
            temporary.unlink(missing_ok=True)
        raise
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise UnconfirmedWriteError(error.errno, error.strerror) from error


def sync_folder(folder: Path) -> None:
    """Wait until a power cut would not undo what was created, renamed or removed in a folder.

    :raises OSError: If the disk does not confirm it.
    """
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that sync no folders
            raise
    finally:
        os.close(directory)
