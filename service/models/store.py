"""Model names to files and frozen policies: the ``models/`` folder and a bounded cache over it."""

import hashlib
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from cachetools import Cache, LRUCache

from grpo_core.actor.actor import Actor
from grpo_core.saving import model_file
from service.errors import ConflictError, InvalidRequestError, NotFoundError, StorageLowError, printable
from service.schemas.fields import is_model_name
from service.schemas.models import ModelStatus
from service.suggestions import suggest

logger = logging.getLogger("grpo.service")

_SUFFIX = ".zip"
# A symbolic link is not followed, and a FIFO named like a model does not block the reader.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Below this share of the machine's memory, or this size if that is less, cached models are unloaded.
_LOW_MEMORY_FRACTION = 0.10
_LOW_MEMORY_BYTES = 512 * 2**20

# A save takes seconds: what is older was left by a crash.
_LEFTOVER_SECONDS = 3600.0
# New files that one listing verifies itself, which takes it a few milliseconds.
_LISTED_BYTES = 2**17
# Inode, modification time in ns and size in bytes of a file: what changes with its content.
Signature = tuple[int, int, int]


class ModelEntry(NamedTuple):
    """One line of the listing."""

    name: str
    status: ModelStatus


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A policy ready to answer; never the object that is being trained.

    :param signature: That of the file it came from.
    :param rng: Draws stochastic actions; NumPy's generators lock themselves, so threads may share it.
    """

    name: str
    actor: Actor
    meta: dict[str, Any]
    signature: Signature
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    @property
    def n_bytes(self) -> int:
        """Memory its weights take."""
        return 4 * self.actor.n_parameters


class FileState(NamedTuple):
    """What one look at a model's file says of it.

    :param sha256: None if the file is larger than what is read.
    :param model: None if it cannot be used.
    """

    status: ModelStatus
    signature: Signature
    sha256: str | None
    model: ServedModel | None


class ModelStore:
    """The model files of one folder, with the most recently used ones in memory.

    A file is *verified* when it has been read in full, its checksums included, and built into a policy as for serving.
    That holds until its signature changes.

    :param models_dir: The folder; created if absent. Unfinished files of an earlier crash are removed.
    :param max_models: Models held in memory at most.
    :param max_bytes: Memory they may take at most.
    :param available_bytes: Tells how much memory is left.
    :param total_bytes: Memory there is at all.
    :param min_free_bytes: Space on the disk below which nothing new should be started.
    :raises OSError: If the folder cannot be created or written to.
    """

    def __init__(
        self,
        models_dir: Path,
        max_models: int,
        max_bytes: int,
        available_bytes: Callable[[], int],
        total_bytes: int,
        min_free_bytes: int = 0,
    ) -> None:
        models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(models_dir, os.W_OK | os.X_OK):
            raise PermissionError(f"the models folder {models_dir} is not writable")
        for leftover in models_dir.glob(".tmp-*"):
            # Another server may be saving to the same folder just now.
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink(missing_ok=True)
        self._dir = models_dir
        self._max_models = max_models
        self._min_free_bytes = min_free_bytes
        self._available_bytes = available_bytes
        self._low_memory_bytes = min(_LOW_MEMORY_BYTES, int(_LOW_MEMORY_FRACTION * total_bytes))
        # Guards the three below, and makes "check the file, then change the cache" one step. Never held while
        # a file is read.
        self._lock = threading.Lock()
        self._cache = _CountingCache(max_bytes, getsizeof=lambda model: model.n_bytes)
        self._verdicts: dict[str, tuple[Signature, ModelStatus]] = {}
        self._unverified = set(filter(is_model_name, self._list_names()))
        # One thread for all loads. Clients that ask for the same model share its first load; and the C library keeps
        # what a thread has freed to that thread: loads in many of them took 200 MiB beyond a cache of 512 MiB.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="grpo-load")

    @property
    def n_loaded(self) -> int:
        """Number of models in memory."""
        return len(self._cache)

    @property
    def n_evicted(self) -> int:
        """Number of models that were dropped from memory, to make room for others or because it ran low."""
        return self._cache.n_evicted

    @property
    def n_free_bytes(self) -> int | None:
        """Space left on the folder's disk; None if it cannot be read, as without the folder."""
        try:
            return shutil.disk_usage(self._dir).free
        except OSError:
            return None

    def check_space(self) -> None:
        """Refuse what will have to be saved later while there is little space.

        :raises StorageLowError: If less than ``min_free_bytes`` are left.
        """
        n_free_bytes = self.n_free_bytes
        if n_free_bytes is not None and n_free_bytes < self._min_free_bytes:
            raise StorageLowError(
                f"{n_free_bytes} bytes are left for models, and GRPO_MIN_FREE_BYTES keeps {self._min_free_bytes}; "
                "delete models, or free space on the server's disk."
            )

    def find_storage_problem(self) -> str | None:
        """Say why no model could be saved now, if that is so."""
        if not self._dir.is_dir():
            return "the models folder is missing, or is no folder"
        if not os.access(self._dir, os.W_OK | os.X_OK):
            return "the models folder is not writable"
        try:
            self.check_space()
        except StorageLowError as error:
            return error.detail
        return None

    def publish(self, name: str, content: bytes) -> str:
        """Save a model under a name, atomically, and serve it from now on.

        The content is read back by the safe loader first, so that nothing unreadable ever replaces a good file.

        :return: SHA-256 of the file.
        :raises ModelFileError: If it cannot be used; the old file stays.
        :raises OSError: If the disk refuses; the old file stays.
        """
        parsed = model_file.from_bytes(content)
        actor = parsed.make_actor()
        self._dir.mkdir(mode=0o700, exist_ok=True)
        model_file.write_atomic(Path(self._path(name)), content)
        signature = self._get_signature(name)
        if signature is not None:
            self._note_verdict(name, signature, ModelStatus.SAVED)
            self._remember(ServedModel(name, actor, parsed.meta, signature))
        return hashlib.sha256(content).hexdigest()

    def get(self, name: str) -> ServedModel:
        """Return a model, from memory or from its file.

        :raises NotFoundError: If there is none of that name.
        :raises ConflictError: If its file is damaged or was not written by GRPO.
        """
        cached = self.get_cached(name)
        if cached is not None:
            return cached
        try:
            return self._loader.submit(self._load_to_serve, name).result()
        except model_file.ModelFileError as error:
            raise ConflictError(f"model '{name}' cannot be used: {error}") from error

    def get_cached(self, name: str) -> ServedModel | None:
        """Return a model if it is in memory and its file is still the one it came from."""
        with self._lock:
            model = self._cache.get(name)
            if model is not None and model.signature != self._get_signature(name):
                del self._cache[name]
                return None
        return model

    def examine(self, name: str) -> FileState:
        """Read a model's file in full and say what it is, without serving it from now on.

        :raises NotFoundError: If there is none of that name.
        :raises ConflictError: If the disk does not let it be read.
        """
        try:
            return self._loader.submit(self._examine, name).result()
        except model_file.ModelFileError as error:
            raise ConflictError(f"model '{name}' cannot be used: {error}") from error

    def open_file(self, name: str, signature: Signature) -> BinaryIO:
        """Open a file, as it was when it was examined, to be read and closed by the caller.

        :raises NotFoundError: If there is none of that name.
        :raises ConflictError: If it has changed since, or the disk does not let it be read.
        """
        try:
            with self._open(name) as (descriptor, status):
                if _sign(status) != signature:
                    raise ConflictError(f"model '{name}' has just been replaced; ask again.")
                return open(os.dup(descriptor), "rb")
        except model_file.ModelFileError as error:
            raise ConflictError(f"model '{name}' cannot be read: {error}") from error

    def list_models(self) -> list[ModelEntry]:
        """List the models by name.

        A listing verifies up to 128 KiB of files that are new or have changed. Where there are more, as in a large
        folder just after the start, it sees only the two ends of each: other programs' zips and files that were cut
        are recognised and verified, but a file that is damaged in between is called ``saved`` until ``verify_next``
        has come to it. A file that is served is always verified.
        """
        entries = []
        n_bytes_left = _LISTED_BYTES
        for name in sorted(filter(is_model_name, self._list_names())):
            signature = self._get_signature(name)
            status = None if signature is None else self._get_known_status(name, signature)
            if signature is not None and status is None:
                *_, n_bytes = signature
                status = self._judge(name, in_full=n_bytes <= n_bytes_left)
                n_bytes_left = max(0, n_bytes_left - n_bytes)
            if status is not None:
                entries.append(ModelEntry(name, status))
        return entries

    def verify_next(self) -> bool:
        """Verify one of the files that were there at the start, or that a listing has only glanced at.

        :return: Whether there was one.
        """
        with self._lock:
            if not self._unverified:
                return False
            name = self._unverified.pop()
        if self.exists(name):
            self._loader.submit(self._judge, name, in_full=True).result()
        return True

    def delete(self, name: str) -> None:
        """Remove a model from memory and disk.

        :raises NotFoundError: If there is none of that name.
        """
        with self._lock:
            if not self.exists(name):
                raise self.make_not_found(name)
            os.unlink(self._path(name))
            self._cache.pop(name, None)
            self._verdicts.pop(name, None)

    def exists(self, name: str) -> bool:
        """Tell whether a file of that name is there, usable or not."""
        return is_model_name(name) and self._get_signature(name) is not None

    def make_not_found(self, name: str) -> NotFoundError:
        """Say that there is no model of a name, and which names resemble it."""
        hint = suggest(name, sorted(filter(is_model_name, self._list_names()))) or "GET /models lists them."
        return NotFoundError(f"there is no model '{printable(name)}'; {hint}")

    def check_no_case_twin(self, name: str) -> None:
        """Refuse a name that differs from an existing one by case alone: on some disks they are one file.

        :raises ConflictError: If there is such a model.
        """
        for other in self._list_names():
            if other != name and other.casefold() == name.casefold():
                raise ConflictError(
                    f"model_name '{name}' differs from the model '{other}' by case alone; pick another."
                )

    def unload_under_pressure(self) -> int:
        """Drop least recently used models while memory is low; their files stay.

        :return: How many were dropped.
        """
        n_unloaded = 0
        while self._is_memory_low():
            with self._lock:
                if not self._cache:
                    break
                self._cache.popitem()
            n_unloaded += 1
        return n_unloaded

    def _is_memory_low(self) -> bool:
        try:
            return self._available_bytes() < self._low_memory_bytes
        except OSError:  # no reading is no reason to fail whoever asked
            logger.warning("cannot read how much memory is left", exc_info=True)
            return False

    def _remember(self, model: ServedModel) -> None:
        with self._lock:
            # The file may have been deleted or replaced since it was read: then the model answers once, uncached.
            if model.signature == self._get_signature(model.name) and model.n_bytes <= self._cache.maxsize:
                self._cache[model.name] = model
                while len(self._cache) > self._max_models:
                    self._cache.popitem()
        self.unload_under_pressure()

    def _load_to_serve(self, name: str) -> ServedModel:
        model = self.get_cached(name)
        if model is None:
            model = self._load(name)
            self._remember(model)
        return model

    def _examine(self, name: str) -> FileState:
        signature, content = self._read(name)
        sha256 = hashlib.sha256(content).hexdigest() if len(content) <= model_file.MAX_FILE_BYTES else None
        with self._lock:
            model = self._peek(name, signature)
        if model is not None:
            return FileState(ModelStatus.LOADED, signature, sha256, model)
        try:
            return FileState(ModelStatus.SAVED, signature, sha256, self._build(name, signature, content))
        except model_file.ModelFileError as error:
            return FileState(_get_verdict(error), signature, sha256, None)

    def _load(self, name: str) -> ServedModel:
        """Read and verify a model, and note the verdict.

        :raises NotFoundError: If there is none of that name.
        :raises ModelFileError: If its file cannot be used.
        """
        return self._build(name, *self._read(name))

    def _build(self, name: str, signature: Signature, content: bytes) -> ServedModel:
        try:
            parsed = model_file.from_bytes(content)
            model = ServedModel(name, parsed.make_actor(), parsed.meta, signature)
        except model_file.ModelFileError as error:
            self._note_verdict(name, signature, _get_verdict(error))
            raise
        self._note_verdict(name, signature, ModelStatus.SAVED)
        return model

    def _note_verdict(self, name: str, signature: Signature, status: ModelStatus) -> None:
        with self._lock:
            self._verdicts[name] = (signature, status)
            self._unverified.discard(name)

    def _get_known_status(self, name: str, signature: Signature) -> ModelStatus | None:
        with self._lock:
            if self._peek(name, signature) is not None:
                return ModelStatus.LOADED
            known = self._verdicts.get(name)
        return known[1] if known is not None and known[0] == signature else None

    def _peek(self, name: str, signature: Signature) -> ServedModel | None:
        """Return what is cached of a file, past the LRU order: to be listed is no use of a model. Needs the lock."""
        model = Cache.__getitem__(self._cache, name) if name in self._cache else None
        return model if model is not None and model.signature == signature else None

    def _judge(self, name: str, in_full: bool) -> ModelStatus | None:
        """Judge a file; None if it has gone.

        :param in_full: Verify it even if its ends look well.
        """
        try:
            if in_full or not self._has_intact_ends(name):
                self._load(name)
        except model_file.ModelFileError as error:
            return _get_verdict(error)
        except NotFoundError:
            return None
        return ModelStatus.SAVED

    def _has_intact_ends(self, name: str) -> bool:
        """Glance at a file; if it looks well, that is its verdict until it is verified."""
        with self._open(name) as (descriptor, status):
            head = os.pread(descriptor, model_file.N_HEAD_BYTES, 0)
            tail = os.pread(descriptor, model_file.N_TAIL_BYTES, max(0, status.st_size - model_file.N_TAIL_BYTES))
        if not model_file.has_intact_ends(head, tail, status.st_size):
            return False
        with self._lock:
            self._verdicts[name] = (_sign(status), ModelStatus.SAVED)
            self._unverified.add(name)
        return True

    def _list_names(self) -> list[str]:
        try:
            return [file.removesuffix(_SUFFIX) for file in os.listdir(self._dir) if file.endswith(_SUFFIX)]
        except (FileNotFoundError, NotADirectoryError):  # somebody removed the folder
            return []

    def _path(self, name: str) -> str:
        if not is_model_name(name):
            raise InvalidRequestError(f"'{printable(name)}' is not a model name.")
        return f"{self._dir}{os.sep}{name}{_SUFFIX}"  # a listing makes a thousand; a Path takes ten times as long

    def _get_signature(self, name: str) -> Signature | None:
        try:
            status = os.lstat(self._path(name))
        except OSError:
            return None
        return _sign(status) if stat.S_ISREG(status.st_mode) else None

    def _read(self, name: str) -> tuple[Signature, bytes]:
        with self._open(name) as (descriptor, status), open(descriptor, "rb", closefd=False) as file:
            # One byte past the limit is enough for the parser to refuse an oversized file.
            return _sign(status), file.read(model_file.MAX_FILE_BYTES + 1)

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[int, os.stat_result]]:
        """Open a model's file, and no other; close it afterwards.

        :raises NotFoundError: If there is none of that name.
        :raises ModelFileError: If the disk does not let the caller read it.
        """
        if not is_model_name(name):
            raise self.make_not_found(name)
        try:
            descriptor = os.open(self._path(name), _OPEN_FLAGS)
        except OSError as error:
            raise self.make_not_found(name) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self.make_not_found(name)
            yield descriptor, status
        except OSError as error:
            raise model_file.ModelFileError(f"the file cannot be read ({error.strerror}).") from error
        finally:
            os.close(descriptor)


class _CountingCache(LRUCache[str, ServedModel]):
    """Counts what it drops by itself."""

    n_evicted = 0

    def popitem(self) -> tuple[str, ServedModel]:
        """Drop what was unused for longest."""
        dropped = super().popitem()
        self.n_evicted += 1
        return dropped


def _get_verdict(error: model_file.ModelFileError) -> ModelStatus:
    foreign = isinstance(error, model_file.ForeignModelError)
    return ModelStatus.UNSAFE if foreign else ModelStatus.CORRUPT


def _sign(status: os.stat_result) -> Signature:
    return status.st_ino, status.st_mtime_ns, status.st_size
