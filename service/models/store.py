"""The trained models: which files can be used, and a bounded cache of the policies in them."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from cachetools import Cache, LRUCache

from grpo_core.saving import atomic_write, model_file
from service.errors import ConflictError, NotFoundError, StorageError, printable
from service.models.files.folder import FileSignature, ModelFolder, describe_refusal, describe_remedy
from service.models.served import InspectedFile, ServedModel
from service.schemas.fields import is_model_name
from service.schemas.models import ModelStatus

logger = logging.getLogger("grpo.service")

# Models are unloaded while less memory is free than this share of the machine's or this size, whichever is less.
_LOW_MEMORY_FRACTION = 0.10
_LOW_MEMORY_BYTES = 512 * 2**20
# A listing verifies new files up to this size in total itself, which takes a few milliseconds.
_LISTED_BYTES = 2**17
# Asking for a file's signature at every request would take longer than the policy's first layer.
_RECENT_SECONDS = 0.1
_MAX_RESOLVED = 256


class ModelEntry(NamedTuple):
    """One line of the listing."""

    name: str
    status: ModelStatus


# What is read of a file, with its signature.
_Signed = TypeVar("_Signed", ServedModel, InspectedFile)


class ModelStore:
    """The models of one folder, with the most recently used ones in memory. Safe to use from any thread.

    A file is *verified* once it has been read in full, checksums included, and built into a policy as for serving.
    It stays verified until its signature changes.

    :param folder: The folder.
    :param max_cached_models: Maximum number of models in memory.
    :param max_cached_bytes: Maximum memory they may take.
    :param available_bytes: Returns how much memory is free.
    :param total_bytes: All the memory there is.
    """

    def __init__(
        self,
        folder: ModelFolder,
        *,
        max_cached_models: int,
        max_cached_bytes: int,
        available_bytes: Callable[[], int],
        total_bytes: int,
    ) -> None:
        self.folder = folder
        self._max_cached_models = max_cached_models
        self._available_bytes = available_bytes
        self._low_memory_bytes = min(_LOW_MEMORY_BYTES, int(_LOW_MEMORY_FRACTION * total_bytes))
        # Guards the three below, and makes "check the file, then change the cache" one step. Never held while
        # a file is read.
        self._lock = threading.Lock()
        self._cache = _Cache(max_cached_bytes)
        self._file_statuses: dict[str, tuple[FileSignature, ModelStatus]] = {}
        self._unverified = set(self.folder.list_names())
        # What references meant a moment ago: looking that up for every request would take as long as the policy.
        self._resolved: dict[str, _Meaning] = {}
        # One thread for all loads. Clients that ask for the same model share its first load; and the C library keeps
        # what a thread has freed to that thread: loads in many of them took 200 MiB beyond a cache of 512 MiB.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="grpo-load")

    @property
    def n_loaded(self) -> int:
        """Number of models in memory."""
        return len(self._cache)

    @property
    def n_evicted(self) -> int:
        """Number of models dropped from memory, to make room for others or because it ran low."""
        return self._cache.n_evicted

    def publish(
        self, name: str, content: bytes, job_id: str | None = None, parsed: model_file.ModelContent | None = None
    ) -> str:
        """Save a model atomically and serve it from now on; what it replaces becomes an earlier version.

        The content is parsed by the safe loader first, so that nothing unreadable ever replaces a good file.

        :param job_id: The job that trained it.
        :param parsed: The content as the safe loader has read it; None reads it here.
        :return: SHA-256 of the file.
        :raises ModelFileError: If it cannot be used; the old file stays.
        :raises StorageError: If the disk refuses; the old file stays, unless it says otherwise.
        """
        parsed = parsed or model_file.from_bytes(content)
        actor = parsed.make_actor()
        try:
            signature = self.folder.write(name, content, job_id)
        except atomic_write.UnconfirmedWriteError as error:
            raise StorageError(
                f"model '{name}' is in its place, but the disk did not confirm it ({describe_refusal(error)}), so a "
                "power cut may bring the earlier one back; check the disk, and save it again."
            ) from error
        except OSError as error:
            raise StorageError(
                f"model '{name}' cannot be saved ({describe_refusal(error)}); {describe_remedy(error)}."
            ) from error
        with self._lock:
            self._cache.checks.pop(name, None)
            self._resolved.clear()
        if signature is not None:
            self._record_status(name, signature, ModelStatus.SAVED)
            self._add_to_cache(ServedModel(name, actor, parsed.meta, signature))
        return hashlib.sha256(content).hexdigest()

    def get(self, name: str) -> ServedModel:
        """Return a model, from memory or from its file.

        :param name: The model's name, or one with ``@`` and a version or an alias, here and below.
        :raises NotFoundError: If there is no such model, version or alias.
        :raises ConflictError: If its file is damaged or was not written by GRPO.
        """
        return self._read_meant(
            name, lambda meant: self.get_cached(meant) or self._read_in_turn(self._get_or_load, meant)
        )

    def get_cached(self, name: str) -> ServedModel | None:
        """Return a model if it is in memory and its file has not changed since; quick enough for an event loop."""
        meaning = self._resolve(name)
        if meaning is None:
            return None
        with self._lock:
            model = self._cache.get(meaning.name)
            if model is not None and model.signature != self.folder.get_signature(meaning.name):
                del self._cache[meaning.name]
                return None
            if model is not None and not meaning.is_of(model.signature):
                self._resolved.pop(name, None)
                return None
            if model is not None:
                self._cache.checks[meaning.name] = model, time.monotonic() + _RECENT_SECONDS
        return model

    def get_recently_checked(self, name: str) -> ServedModel | None:
        """Return what ``get_cached`` does, or did within the last 100 ms.

        In between no system call is made. What this store itself writes or deletes counts at once.
        """
        recent = self._cache.checks.get(name)
        if recent is not None and time.monotonic() < recent[1]:
            return recent[0]
        return self.get_cached(name)

    def inspect_file(self, name: str) -> InspectedFile:
        """Read a model's file in full, without adding the model to the cache.

        :raises NotFoundError: If there is no such model.
        :raises ConflictError: If the disk refuses.
        """
        return self._read_meant(name, lambda meant: self._read_in_turn(self._inspect_file, meant))

    def describe_unread(self, name: str) -> InspectedFile:
        """Say what is known of a file that the disk does not give: to listings, it is corrupt.

        :raises NotFoundError: If there is no such model.
        """
        signature = self.folder.get_signature(name)
        if signature is None:
            raise self.folder.make_not_found(name)
        return InspectedFile(ModelStatus.CORRUPT, signature, None, None)

    def find_file(self, name: str) -> InspectedFile | None:
        """Read a model's file as ``inspect_file`` does; return None if there is none.

        :raises ConflictError: If the disk refuses.
        """
        try:
            return self.inspect_file(name)
        except NotFoundError:
            return None

    def is_loaded(self, name: str, signature: FileSignature) -> bool:
        """Return whether the model of a file is in memory."""
        meaning = self._resolve(name)
        with self._lock:
            return meaning is not None and self._find_cached(meaning.name, signature) is not None

    def list_models(self) -> list[ModelEntry]:
        """List the models by name.

        A listing verifies up to 128 KiB of files that are new or have changed. Beyond that, as in a large folder just
        after the start, it reads only both ends of each file. Those give away other programs' zips and truncated
        files, which are then verified; but a file damaged in between is listed as ``saved`` until ``verify_next``
        reaches it. A file that is served is always verified.
        """
        entries = []
        n_bytes_left = _LISTED_BYTES
        for name in self.folder.list_names():
            signature = self.folder.get_signature(name)
            status = None if signature is None else self._get_known_status(name, signature)
            if signature is not None and status is None:
                *_, n_bytes = signature
                status = self._check_file(name, in_full=n_bytes <= n_bytes_left)
                n_bytes_left = max(0, n_bytes_left - n_bytes)
            if status is not None:
                entries.append(ModelEntry(name, status))
        return entries

    def verify_next(self) -> bool:
        """Verify one file that was there at the start, or whose ends alone a listing has read.

        :return: False if none is left.
        """
        with self._lock:
            if not self._unverified:
                return False
            name = self._unverified.pop()
        if self.exists(name):
            self._loader.submit(self._check_file, name, in_full=True).result()
        return True

    def delete(self, name: str) -> None:
        """Remove a model from memory and disk, with its earlier versions and aliases.

        :raises ServiceError: Whatever ``ModelFolder.delete`` raises.
        """
        self.folder.delete(name)  # without the lock, since a disk may be slow
        with self._lock:
            for held in [held for held in self._cache if held.partition("@")[0] == name]:
                del self._cache[held]
            self._file_statuses.pop(name, None)
            self._resolved.clear()

    def set_alias(self, name: str, alias: str, version: int | None) -> int | None:
        """Point an alias of a model at a version from now on, or remove it.

        :param version: None removes it.
        :return: The version that it pointed at before.
        :raises NotFoundError: If the model has no such version or alias.
        :raises ConflictError: If the model has too many aliases.
        :raises StorageError: If the disk refuses.
        """
        try:
            before = self.folder.versions.set_alias(name, alias, version)
        except OSError as error:
            raise StorageError(
                f"alias '{alias}' of model '{name}' cannot be saved ({describe_refusal(error)}); "
                f"{describe_remedy(error)}."
            ) from error
        with self._lock:
            self._resolved.clear()
        return before

    def exists(self, name: str) -> bool:
        """Return whether there is a file of that name, usable or not."""
        return self.folder.exists(name)

    def check_exists(self, name: str) -> None:
        """Check that a name is an existing model's, and not a version's.

        :raises NotFoundError: If it is not.
        """
        if "@" in name:
            raise NotFoundError(
                f"'{printable(name)}' names one version; name the model itself, without '@' and what follows it."
            )
        if not self.exists(name):
            raise self.folder.make_not_found(name)

    def unload_under_pressure(self) -> int:
        """Drop the least recently used models while memory is low; their files stay.

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

    def _resolve(self, reference: str) -> "_Meaning | None":
        """Return what a reference means, or did within the last 100 ms; None if there is no such version or alias.

        The newest version gets another name as soon as it is replaced, so a caller that reads a file by this meaning
        has to check that it is the same file.
        """
        base, sign, _ = reference.partition("@")
        if not sign:
            return _Meaning(reference)
        known = self._resolved.get(reference)
        if known is not None and time.monotonic() < known.until:
            return known
        until = time.monotonic() + _RECENT_SECONDS
        with self._lock:  # as changes of aliases do
            # Before the look at the versions: if the file is still this one afterwards, it is what they meant.
            signature = self.folder.get_signature(base) if is_model_name(base) else None
            name = self.folder.canonicalize(reference)
            if name is None:
                return None
            if len(self._resolved) >= _MAX_RESOLVED:
                self._resolved.clear()
            meaning = _Meaning(name, signature if name == base else None, until)
            self._resolved[reference] = meaning
        return meaning

    def _read_meant(self, reference: str, read: Callable[[str], _Signed]) -> _Signed:
        """Read what a reference means, again if its file is replaced meanwhile.

        :param read: Reads what has a name in memory.
        :raises NotFoundError: If there is no such model, version or alias.
        :raises ConflictError: If its file cannot be used.
        """
        while True:
            meaning = self._resolve(reference)
            if meaning is None:
                raise self.folder.make_not_found(reference)
            try:
                found = read(meaning.name)
            except model_file.ModelFileError as error:
                raise ConflictError(f"model '{reference}' cannot be used: {error}") from error
            if meaning.is_of(found.signature):
                return found
            with self._lock:
                self._resolved.pop(reference, None)

    def _read_in_turn(self, read: Callable[[str], _Signed], name: str) -> _Signed:
        """Read a file, unless it is missing, in the one thread for that: the look-up for a 404 would block it."""
        if not self.exists(name.partition("@")[0]):
            raise self.folder.make_not_found(name)
        return self._loader.submit(read, name).result()

    def _is_memory_low(self) -> bool:
        try:
            return self._available_bytes() < self._low_memory_bytes
        except OSError:  # a failed reading must not fail the caller
            logger.warning("cannot read how much memory is free", exc_info=True)
            return False

    def _add_to_cache(self, model: ServedModel) -> None:
        with self._lock:
            # If the file was deleted or replaced since it was read, the model answers once, uncached.
            if model.signature == self.folder.get_signature(model.name) and model.n_bytes <= self._cache.maxsize:
                self._cache[model.name] = model
                while len(self._cache) > self._max_cached_models:
                    self._cache.popitem()
        self.unload_under_pressure()

    def _get_or_load(self, name: str) -> ServedModel:
        model = self.get_cached(name)
        if model is None:
            model = self._build(name, *self.folder.read(name))
            self._add_to_cache(model)
        return model

    def _inspect_file(self, name: str) -> InspectedFile:
        signature, content = self.folder.read(name)
        sha256 = hashlib.sha256(content).hexdigest() if len(content) <= model_file.SERVICE_LIMITS.file_bytes else None
        with self._lock:
            model = self._find_cached(name, signature)
        if model is not None:
            return InspectedFile(ModelStatus.LOADED, signature, sha256, model)
        try:
            return InspectedFile(ModelStatus.SAVED, signature, sha256, self._build(name, signature, content))
        except model_file.ModelFileError as error:
            return InspectedFile(_get_status(error), signature, sha256, None)

    def _build(self, name: str, signature: FileSignature, content: bytes) -> ServedModel:
        """Verify a file's content, and record its status.

        :raises ModelFileError: If it cannot be used.
        """
        try:
            parsed = model_file.from_bytes(content)
            model = ServedModel(name, parsed.make_actor(), parsed.meta, signature)
        except model_file.ModelFileError as error:
            self._record_status(name, signature, _get_status(error))
            raise
        self._record_status(name, signature, ModelStatus.SAVED)
        return model

    def _record_status(self, name: str, signature: FileSignature, status: ModelStatus) -> None:
        if "@" in name:  # listings have no earlier versions
            return
        with self._lock:
            self._file_statuses[name] = (signature, status)
            self._unverified.discard(name)

    def _get_known_status(self, name: str, signature: FileSignature) -> ModelStatus | None:
        with self._lock:
            if self._find_cached(name, signature) is not None:
                return ModelStatus.LOADED
            known = self._file_statuses.get(name)
        return known[1] if known is not None and known[0] == signature else None

    def _find_cached(self, name: str, signature: FileSignature) -> ServedModel | None:
        """Return the cached model of a file without marking it as used, since a listing uses none. Needs the lock."""
        model = Cache.__getitem__(self._cache, name) if name in self._cache else None
        return model if model is not None and model.signature == signature else None

    def _check_file(self, name: str, in_full: bool) -> ModelStatus | None:
        """Return a file's status; None if it is gone.

        :param in_full: Verify it even if both ends are intact.
        """
        try:
            if in_full or not self._has_intact_ends(name):
                self._build(name, *self.folder.read(name))
        except model_file.ModelFileError as error:
            return _get_status(error)
        except NotFoundError:
            return None
        return ModelStatus.SAVED

    def _has_intact_ends(self, name: str) -> bool:
        signature, is_intact = self.folder.check_ends(name)
        if is_intact:
            with self._lock:
                self._file_statuses[name] = (signature, ModelStatus.SAVED)
                self._unverified.add(name)
        return is_intact


class _Meaning(NamedTuple):
    """The meaning of a reference to a model.

    :param name: The name under which it is in memory.
    :param signature: The file's, if a number or an alias asks for what is the newest version; None if any file of that
        name is meant, or one that is never replaced.
    :param until: When to look again.
    """

    name: str
    signature: FileSignature | None = None
    until: float = 0.0

    def is_of(self, signature: FileSignature) -> bool:
        """Return whether a file is the one that was meant."""
        return self.signature in (None, signature)


class _Cache(LRUCache[str, ServedModel]):
    """Counts the models it evicts, and remembers until when each counts as checked against its file."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, getsizeof=lambda model: model.n_bytes)
        self.n_evicted = 0
        #: May be read without the store's lock.
        self.checks: dict[str, tuple[ServedModel, float]] = {}

    def __setitem__(self, name: str, model: ServedModel) -> None:
        self.checks.pop(name, None)
        super().__setitem__(name, model)

    def __delitem__(self, name: str) -> None:
        self.checks.pop(name, None)
        super().__delitem__(name)

    def popitem(self) -> tuple[str, ServedModel]:
        """Evict the least recently used model."""
        evicted = super().popitem()
        self.n_evicted += 1
        return evicted


def _get_status(error: model_file.ModelFileError) -> ModelStatus:
    return ModelStatus.UNSAFE if isinstance(error, model_file.ForeignModelError) else ModelStatus.CORRUPT
