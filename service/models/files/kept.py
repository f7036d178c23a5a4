"""Which versions of models are kept, what is known of them, and which one a reference means."""

import hashlib
import logging
import os
import re
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cachetools import LRUCache

from service.errors import NotFoundError, printable
from service.models.files.notes import NOTES_FILE, DamagedNotesError, Notes, has_damaged_notes, load_notes
from service.models.files.paths import (
    VERSIONS_FOLDER,
    check_is_folder,
    find_versions_folder,
    get_newest_path,
    get_version_path,
    list_folders,
)
from service.schemas.fields import LATEST_ALIAS, is_model_name

logger = logging.getLogger("grpo.service")

_VERSION_FILE = re.compile(r"([1-9]\d{0,8})\.zip")
_NUMBER = re.compile(r"[1-9]\d{0,8}")
_N_LOCKS = 64
_MAX_COMPARED = 1024


class KeptVersions:
    """Reads the versions of the models of one folder. Safe to use from any thread.

    :param models_dir: The folder.
    """

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._dir = models_dir / VERSIONS_FOLDER
        # One model's versions are changed by one thread at a time.
        self._locks = [threading.RLock() for _ in range(_N_LOCKS)]
        # Whether two files that look the same are; each look at an alias asks, and they may be large.
        self._compared: LRUCache[tuple[int, ...], bool] = LRUCache(_MAX_COMPARED)
        self._comparing = threading.Lock()
        # Notes that were found damaged: they are read often, and one line of the log is enough.
        self._reported: set[tuple[int, ...]] = set()

    def find_problem(self) -> str | None:
        """Return why no model could be replaced now; None if one could."""
        try:
            check_is_folder(self._models_dir, self._dir)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.strerror
        if not os.access(self._dir, os.W_OK | os.X_OK):
            return f"{VERSIONS_FOLDER} in the models folder is not writable"
        return None

    def lock(self, name: str) -> threading.RLock:
        """Return what guards a model's versions."""
        return self._locks[hash(name) % _N_LOCKS]

    def find_newest(self, name: str) -> int:
        """Return the number of a model's newest version."""
        last = max(self.list_kept(name), default=0)
        return last if last and self.is_newest(name, last) else max(last + 1, self.read_notes(name).newest)

    def list_kept(self, name: str) -> list[int]:
        """List the numbers of the versions in the hidden folder, in order."""
        try:
            with os.scandir(find_versions_folder(self._models_dir, name)) as entries:
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except OSError:
            return []
        return sorted(int(match[1]) for match in map(_VERSION_FILE.fullmatch, names) if match)

    def list_all(self, name: str) -> list[int]:
        """List the numbers of all versions, in order."""
        return sorted({*self.list_kept(name), self.find_newest(name)})

    def is_in_use(
        self, name: str, job_id: str | None, is_begun_from: Callable[[str], bool] = lambda sha256: False
    ) -> bool:
        """Return whether somebody has pointed an alias at a model, or needs an earlier version of it.

        :param job_id: The job that has trained it, whose own earlier versions nobody needs but who begins from one.
        :param is_begun_from: Tells of a file's SHA-256 whether a job begins from it.
        """
        notes = self.read_notes(name)
        earlier = [version for version in self.list_kept(name) if not self.is_newest(name, version)]
        own = (self._find_own(name, version, notes, job_id) for version in earlier)
        return bool(notes.aliases) or any(sha256 is None or is_begun_from(sha256) for sha256 in own)

    def _find_own(self, name: str, version: int, notes: Notes, job_id: str | None) -> str | None:
        """Return the SHA-256 of a version that a job has saved; None of another one."""
        with suppress(OSError):
            content = Path(get_version_path(self._models_dir, name, version)).read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            return sha256 if job_id is not None and notes.find_job(version, sha256) == job_id else None
        return None

    def resolve(self, reference: str) -> tuple[str, int | None] | None:
        """Find what a reference means.

        :param reference: A model's name, or one with ``@`` and a version or an alias.
        :return: The name, and the number of an earlier version, or None for the newest. None if it is no reference, or
            there is no such version or alias.
        """
        name, sign, selector = reference.partition("@")
        if not is_model_name(name):
            return None
        if not sign or selector == LATEST_ALIAS:
            return name, None
        number = int(selector) if _NUMBER.fullmatch(selector) else self.read_notes(name).aliases.get(selector)
        if number is None:
            return None
        if number == self.find_newest(name):
            return name, None
        # Listed last: it may have been the newest until now, and be kept because another one has just come.
        return (name, number) if number in self.list_kept(name) else None

    def make_not_found(self, reference: str) -> NotFoundError:
        """Build the error for a version or alias that an existing model lacks."""
        name, _, selector = reference.partition("@")
        aliases = self.read_notes(name).aliases
        versions = f"its versions are {', '.join(map(str, self.list_all(name)))}"
        if selector in aliases:
            return NotFoundError(
                f"alias '{selector}' of model '{name}' points at version {aliases[selector]}, whose file is gone; "
                f"{versions}: point it at one of these, or delete it."
            )
        known = ", ".join(sorted(aliases)) or "none"
        return NotFoundError(
            f"model '{name}' has no version or alias '{printable(selector)}'; {versions}, its aliases {known}."
        )

    def read_notes(self, name: str) -> Notes:
        """Return what is known of a model's versions; what cannot be read is left out."""
        try:
            return self.read_notes_or_fail(name)
        except OSError:
            logger.warning("the notes on the versions of model %s cannot be read", name, exc_info=True)
            return Notes({}, {})

    def read_notes_or_fail(self, name: str) -> Notes:
        """Return what is known of a model's versions, to change it: aliases that the disk hides must not be lost.

        :raises OSError: If the disk does not give it.
        """
        try:
            return load_notes(folder := find_versions_folder(self._models_dir, name))
        except (FileNotFoundError, NotADirectoryError):
            return Notes({}, {})
        except DamagedNotesError as error:
            with suppress(OSError):
                if (identity := _identify(os.lstat(folder / NOTES_FILE))) not in self._reported:
                    self._reported.add(identity)
                    logger.warning("the notes on the versions of model %s are damaged: %s", name, error)
            return Notes({}, {}, are_damaged=True)

    def list_pinned(self, name: str) -> set[int]:
        """List the versions that aliases keep; all, if the notes are damaged or such notes were put aside.

        :raises OSError: If the disk does not say which.
        """
        notes = self.read_notes_or_fail(name)
        if notes.are_damaged or has_damaged_notes(self._dir / name):
            return set(self.list_kept(name))
        return set(notes.aliases.values())

    def count_pinned_bytes(self) -> int:
        """Return the size of the versions that aliases keep, as far as the disk says which."""
        files = self.list_files()
        pinned = {name: set(self.read_notes(name).aliases.values()) for name in {name for _, _, name, _ in files}}
        return sum(n_bytes for _, n_bytes, name, version in files if version in pinned[name])

    def is_newest(self, name: str, version: int) -> bool:
        """Tell whether a version's file is the newest one itself: a link to it, or a copy where there are no links."""
        newest, kept = Path(get_newest_path(self._models_dir, name)), get_version_path(self._models_dir, name, version)
        try:
            one, other = os.lstat(newest), os.lstat(kept)
            if os.path.samestat(one, other):
                return True
            # A coarse clock gives two saves one time, so that only their content tells them apart.
            if (one.st_mtime_ns, one.st_size) != (other.st_mtime_ns, other.st_size):
                return False
            key = (*_identify(one), *_identify(other))
            with self._comparing:
                is_same = self._compared.get(key)
            if is_same is None:
                is_same = has_content(newest, Path(kept).read_bytes())
                with self._comparing:
                    self._compared[key] = is_same
            return is_same
        except OSError:
            return False

    def list_names(self) -> list[str]:
        """List the models that have a folder of versions."""
        return list(filter(is_model_name, list_folders(self._models_dir)))

    def list_files(self) -> list[tuple[int, int, str, int]]:
        """List the kept versions: when they were saved, their size, model and number."""
        files = []
        for name in self.list_names():
            for version in self.list_kept(name):
                with suppress(OSError):
                    status = os.lstat(get_version_path(self._models_dir, name, version))
                    if stat.S_ISREG(status.st_mode) and not self.is_newest(name, version):
                        files.append((status.st_mtime_ns, status.st_size, name, version))
        return files


def _identify(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def has_content(path: Path, content: bytes) -> bool:
    """Return whether a file holds these bytes."""
    with suppress(OSError):
        return path.stat().st_size == len(content) and path.read_bytes() == content
    return False
