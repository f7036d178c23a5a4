"""The folder of model files: reading, writing and free space; ``versions`` says where each of them lies."""

import errno
import hashlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from grpo_core.saving import atomic_write, model_file
from grpo_core.suggestions import suggest
from service.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    NotReadyError,
    StorageError,
    StorageLowError,
    printable,
)
from service.models.files.lock import OPEN_FLAGS, TEMPORARY_PREFIX, FolderInUseError, FolderLock
from service.models.files.paths import SUFFIX, get_newest_path, get_version_path
from service.models.files.versions import VersionFolder
from service.schemas.fields import is_model_name

# A save takes seconds, so a crash left anything older.
_LEFTOVER_SECONDS = 3600.0
# Inode, modification time in ns and size in bytes: they change with the content.
FileSignature = tuple[int, int, int]


class ModelFolder:
    """Reads and writes the model files of one folder. Safe to use from any thread.

    :param path: The folder; created if absent. Unfinished files from an earlier crash are removed.
    :param min_free_bytes: Disk space below which nothing new should be started.
    :param lock: Keeps other servers out; None if nothing does.
    :param max_models: Largest number of models.
    :param max_models_bytes: Largest size of all of them.
    :param max_versions: Versions kept of each model, the newest included.
    :param is_read_only: Whether another server writes to the folder. Then nothing is created or removed, and the folder
        may be missing for a while.
    :raises OSError: If the folder cannot be created or written to.
    """

    def __init__(
        self,
        path: Path,
        *,
        min_free_bytes: int = 0,
        lock: FolderLock | None = None,
        max_models: int = sys.maxsize,
        max_models_bytes: int = sys.maxsize,
        max_versions: int = 1,
        is_read_only: bool = False,
    ) -> None:
        if not is_read_only:
            _prepare(path)
        #: The folder.
        self.path = path
        self._is_read_only = is_read_only
        self._min_free_bytes = min_free_bytes
        self._lock = lock
        self._max_models, self._max_models_bytes = max_models, max_models_bytes
        #: Earlier versions, and aliases.
        self.versions = VersionFolder(path, max_versions, max_models_bytes, is_read_only)

    @property
    def n_free_bytes(self) -> int | None:
        """Free space on the folder's disk; None if it cannot be read."""
        try:
            return shutil.disk_usage(self.path).free
        except OSError:
            return None

    def check_can_save(self, n_bytes: int = 0, name: str = "") -> None:
        """Refuse to start something that could not be saved, for lack of space or of the folder itself.

        :param n_bytes: Size of the file to save, if it is known.
        :param name: The model that it may replace.
        :raises NotReadyError: If the folder is missing or not writable.
        :raises StorageLowError: If less than ``min_free_bytes`` would be free, or the folder has its fill of models.
        """
        if (problem := self._find_folder_problem()) is not None:
            raise NotReadyError(f"{problem}; put it right, or restart the server with another folder.")
        self._check_disk(n_bytes)
        sizes = {other: signature[2] for other in self.list_names() if (signature := self.get_signature(other))}
        sizes.pop(name, None)
        for n, most, unit, setting in (
            (len(sizes) + 1, self._max_models, "models", "GRPO_MAX_MODELS"),
            (
                sum(sizes.values()) + self.versions.count_pinned_bytes() + n_bytes,
                self._max_models_bytes,
                "bytes",
                "GRPO_MAX_MODELS_BYTES",
            ),
        ):
            if n > most:
                limit = f"the models folder may hold {most} {unit} ({setting})"
                raise StorageLowError(f"{limit}; delete models, or replace one of them.")

    def _check_disk(self, n_bytes: int = 0) -> None:
        n_free_bytes = self.n_free_bytes
        if n_free_bytes is not None and n_free_bytes - n_bytes < self._min_free_bytes:
            raise StorageLowError(
                f"{n_free_bytes} bytes are free on the models' disk, and fewer than GRPO_MIN_FREE_BYTES "
                f"({self._min_free_bytes}) would be left; delete models or free some disk space."
            )

    def find_problem(self) -> str | None:
        """Return why the folder is of no use now; None if it is.

        One that has its fill of models is: they are served, replaced and deleted.
        """
        if self._is_read_only:
            if self.path.is_dir() and not os.access(self.path, os.R_OK | os.X_OK):
                return "the models folder is not readable"
            return self._find_folder_problem()
        if (problem := self._find_folder_problem()) is not None:
            return problem
        try:
            self._renew_lock()
            self._check_disk()
        except StorageLowError as error:
            return error.detail.removesuffix(".")  # callers join what stands in the way
        except OSError as error:
            return f"the models folder cannot be locked: {describe_refusal(error)}"
        return None

    def _find_folder_problem(self) -> str | None:
        if not self.path.is_dir():
            return "the models folder is missing or is not a folder"
        if self._is_read_only:
            return None
        if not os.access(self.path, os.W_OK | os.X_OK):
            return "the models folder is not writable"
        return self.versions.find_problem()

    def _renew_lock(self) -> None:
        if self._lock is not None:
            self._lock.renew()

    def list_names(self) -> list[str]:
        """List the models by name, usable or not."""
        return sorted(filter(is_model_name, self._list_zips()))

    def exists(self, name: str) -> bool:
        """Return whether there is a file of that name, usable or not."""
        return is_model_name(name) and self.get_signature(name) is not None

    def get_signature(self, name: str) -> FileSignature | None:
        """Return a file's signature; None if there is no such file.

        :raises InvalidRequestError: If it is not a model name.
        """
        try:
            status = os.lstat(self._path(name))
        except (OSError, NotFoundError):
            return None
        return _sign(status) if stat.S_ISREG(status.st_mode) else None

    def check_name(self, name: str) -> None:
        """Refuse a name whose place a folder takes, or that differs from an existing one only in case.

        On some disks the latter are one file.

        :raises ConflictError: If it is such a name.
        """
        path = Path(self._path(name))
        if path.is_dir() and not path.is_symlink():  # which a save would replace
            raise ConflictError(
                f"model_name '{name}' cannot be saved under: {path.name} in the models folder is a folder; move that, "
                "or pick another name."
            )
        for other in self._list_zips():
            if other != name and other.casefold() == name.casefold():
                raise ConflictError(
                    f"model_name '{name}' differs from the existing model '{other}' only in case; pick another name."
                )

    def make_not_found(self, name: str) -> NotFoundError:
        """Build the error for a missing model, with similar names as suggestions; call it in a thread."""
        name, sign, _ = (reference := name).partition("@")
        if sign and self.exists(name):
            return self.versions.make_not_found(reference)
        is_removed = is_model_name(name) and not self.exists(name) and bool(self.versions.list_kept(name))
        if is_removed and (aliases := self.versions.read_notes(name).aliases):
            return NotFoundError(
                f"there is no model '{name}': its file was removed, but its aliases ({', '.join(sorted(aliases))}) "
                f"keep versions; upload a file as '{name}', or put {name}{SUFFIX} back into the models folder, and "
                "they are there again."
            )
        hint = ""
        with suppress(NotReadyError):
            # The name itself is listed if it is a folder's or a link's, or was saved just now.
            hint = suggest(name, [other for other in self.list_names() if other != name])
        hint = hint or "GET /models lists them."
        return NotFoundError(f"there is no model '{printable(name)}'; {hint}")

    def read(self, name: str) -> tuple[FileSignature, bytes]:
        """Read a file, up to one byte past the size limit: enough for the parser to refuse it.

        :raises NotFoundError: If there is no such model.
        :raises ModelFileError: If the disk refuses.
        """
        with self._open(name) as (descriptor, status), open(descriptor, "rb", closefd=False) as file:
            return _sign(status), file.read(model_file.SERVICE_LIMITS.file_bytes + 1)

    def find_content(self, reference: str, sha256: str | None) -> bytes | None:
        """Return a model's file, which may have become an earlier version of it since; None if there is none.

        :param reference: What named it.
        :param sha256: What its SHA-256 is; None takes any.
        """
        found = self._find(reference, sha256)
        return None if found is None else found[1]

    def find_reference(self, reference: str, sha256: str | None) -> str | None:
        """Return what names a model's file now, which may have become an earlier version of it; None if it is gone.

        :param reference: What named it.
        :param sha256: What its SHA-256 is; None takes any.
        """
        found = self._find(reference, sha256)
        return None if found is None else found[0]

    def _find(self, reference: str, sha256: str | None) -> tuple[str, bytes] | None:
        """Find a model's file: a reference, which may name another file a moment later, and its content."""
        for candidate in [reference] if sha256 is None else self._list_candidates(reference):
            with suppress(NotFoundError, model_file.ModelFileError):
                content = self.read(candidate)[1]
                if sha256 in (None, hashlib.sha256(content).hexdigest()):
                    return candidate, content
        return None

    def _list_candidates(self, reference: str) -> Iterator[str]:
        """List what may name a file now that a reference has named, the likeliest first."""
        yield reference
        name = reference.partition("@")[0]
        if name != reference:
            yield name
        # Listed last: if it is replaced meanwhile, it is among them.
        yield from (f"{name}@{version}" for version in reversed(self.versions.list_kept(name)))

    def check_ends(self, name: str) -> tuple[FileSignature, bool]:
        """Return whether a file begins and ends like one that GRPO wrote, without reading the rest.

        :raises NotFoundError: If there is no such model.
        :raises ModelFileError: If the disk refuses.
        """
        with self._open(name) as (descriptor, status):
            head = os.pread(descriptor, model_file.N_HEAD_BYTES, 0)
            tail = os.pread(descriptor, model_file.N_TAIL_BYTES, max(0, status.st_size - model_file.N_TAIL_BYTES))
        return _sign(status), model_file.has_intact_ends(head, tail, status.st_size)

    def open_file(self, name: str, signature: FileSignature) -> BinaryIO:
        """Open a file, which the caller reads and closes, if its signature is still the same.

        :raises NotFoundError: If there is no such model.
        :raises ConflictError: If it has changed, or the disk refuses.
        """
        try:
            with self._open(name) as (descriptor, status):
                if _sign(status) != signature:
                    raise ConflictError(f"model '{name}' has just been replaced; try again.", is_passing=True)
                return open(os.dup(descriptor), "rb")
        except model_file.ModelFileError as error:
            raise ConflictError(f"model '{name}' cannot be read: {error}") from error

    def canonicalize(self, reference: str) -> str | None:
        """Return a name for each version that no other reference to it has: without ``@`` for the newest one.

        :param reference: A model's name, or one with ``@`` and a version or an alias.
        :return: None if there is no such version or alias.
        """
        found = self.versions.resolve(reference) if self.exists(reference.partition("@")[0]) else None
        if found is None:
            return None
        name, version = found
        return name if version is None else f"{name}@{version}"

    def write(self, name: str, content: bytes, job_id: str | None = None) -> FileSignature | None:
        """Save a file atomically; return its signature, or None if it is already gone.

        What it replaces becomes an earlier version.

        :param job_id: The job that trained it.
        :raises InvalidRequestError: If it is not a model name.
        :raises OSError: If the disk refuses; the old file stays.
        """
        if not is_model_name(name):
            raise InvalidRequestError(f"'{printable(name)}' is not a model name.")
        path = Path(self._path(name))
        self._renew_lock()
        with self.versions.replacing(name, content, job_id):
            atomic_write.write_atomic(path, content)
        return self.get_signature(name)

    def delete(self, name: str) -> None:
        """Delete a file, with its earlier versions and aliases.

        :raises NotFoundError: If there is no such model.
        :raises ConflictError: If it is a version.
        :raises StorageError: If the disk refuses.
        """
        if "@" in name:
            if self.canonicalize(name) is None:
                raise self.make_not_found(name)
            raise ConflictError(
                f"'{name}' is a version, and only whole models are deleted; versions that no alias names make room for "
                "newer ones by themselves."
            )
        if not self.exists(name):
            raise self.make_not_found(name)
        try:
            self._renew_lock()
            with self.versions.deleting(name):
                os.unlink(self._path(name))
        except FileNotFoundError as error:
            raise self.make_not_found(name) from error
        except OSError as error:
            raise StorageError(
                f"model '{name}' cannot be deleted ({describe_refusal(error)}); fix the models folder."
            ) from error

    def _list_zips(self) -> list[str]:
        try:
            return [file.removesuffix(SUFFIX) for file in os.listdir(self.path) if file.endswith(SUFFIX)]
        except (FileNotFoundError, NotADirectoryError):  # the folder was removed
            return []
        except OSError as error:
            raise NotReadyError(
                f"the models folder cannot be read ({describe_refusal(error)}); fix its permissions or its disk."
            ) from error

    def _path(self, name: str) -> str:
        name, sign, _ = (reference := name).partition("@")
        if not is_model_name(name):
            raise InvalidRequestError(f"'{printable(name)}' is not a model name.")
        if sign:
            found = self.versions.resolve(reference)
            if found is None:
                raise self.versions.make_not_found(reference)
            if found[1] is not None:
                return get_version_path(self.path, found[0], found[1])
        return get_newest_path(self.path, name)

    def _open_descriptor(self, name: str) -> int:
        """Open the file that a reference means, and no newer one that has just taken its place.

        A version is kept before it is replaced, so that one which is still the newest was so when its file was opened.
        """
        path = self._path(name)
        while True:
            descriptor = os.open(path, OPEN_FLAGS)
            try:
                means = self._path(name)
            except BaseException:
                os.close(descriptor)
                raise
            if means == path:
                return descriptor
            os.close(descriptor)
            path = means

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[int, os.stat_result]]:
        """Open a model's regular file, and close it afterwards.

        :raises NotFoundError: If there is no such model.
        :raises ModelFileError: If the disk refuses while the caller reads.
        """
        if not is_model_name(name.partition("@")[0]):
            raise self.make_not_found(name)
        try:
            descriptor = self._open_descriptor(name)
        except OSError as error:
            if self.get_signature(name) is None:  # nothing, or a link or another thing that is no file
                raise self.make_not_found(name) from error
            raise model_file.ModelFileError(f"the file cannot be read ({describe_refusal(error)}).") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self.make_not_found(name)
            yield descriptor, status
        except OSError as error:
            raise model_file.ModelFileError(f"the file cannot be read ({describe_refusal(error)}).") from error
        finally:
            os.close(descriptor)


def _prepare(path: Path) -> None:
    """Create the folder if it is absent, and remove what a crash has left in it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"the models folder {path} is not writable")
    for leftover in path.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            # A younger one may be another server's save in progress.
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink()


def describe_remedy(error: OSError) -> str:
    """Say what lets the models folder be written again."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some space or fix the models folder" if is_full else "fix the models folder"


def describe_refusal(error: OSError) -> str:
    """Say why the system refuses, without the path."""
    return "another server uses it" if isinstance(error, FolderInUseError) else error.strerror or "unknown reason"


def _sign(status: os.stat_result) -> FileSignature:
    return status.st_ino, status.st_mtime_ns, status.st_size
