"""Earlier versions of models, in a hidden folder beside them, and the aliases that point at versions.

``models/<name>.zip`` is the newest version of a model, as if there were no others. ``models/.versions/<name>/<n>.zip``
are earlier ones: what a newer one replaces is linked there first, under its number, and only then replaced, so that a
crash leaves the old state or the new. The newest version has the number after the last of those, or the same if it is
the same file, because a crash came in between, or a copy of it, because an alias points at it: then a file that
somebody else puts in its place, or writes into it, is told apart. ``notes.json`` says what no file does (see
``notes``). Before a model is deleted, its folder becomes ``models/.versions/.deleted-<name>``: from its file,
which goes next, the start after a crash can tell whether to put the folder back or to remove it.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cachetools import LRUCache

from grpo_core.saving.atomic_write import UnconfirmedWriteError, sync_folder
from service.errors import ConflictError, NotFoundError, printable
from service.models.files.lock import TEMPORARY_PREFIX, remove_leftovers
from service.models.files.notes import NOTES_FILE, DamagedNotesError, Notes, has_damaged_notes, load_notes, save_notes
from service.models.files.paths import SUFFIX, VERSIONS_FOLDER, get_newest_path, get_version_path
from service.schemas.fields import LATEST_ALIAS, is_model_name

logger = logging.getLogger("grpo.service")

# No model's name begins with a dot.
_DELETED_PREFIX = ".deleted-"
_VERSION_FILE = re.compile(r"([1-9]\d{0,8})\.zip")
_NUMBER = re.compile(r"[1-9]\d{0,8}")
# Each may keep a version beyond the limit of versions.
MAX_ALIASES = 8
_N_LOCKS = 64
_MAX_COMPARED = 1024


class VersionFolder:
    """Keeps the earlier versions of the models of one folder. Safe to use from any thread.

    What belongs to no model, as after a crash during its deletion, is removed.

    :param models_dir: The folder.
    :param max_versions: Versions kept of each model, the newest included and those with an alias not, at least 1.
    :param max_bytes: Largest size of all models and versions together; the oldest versions give way.
    :param is_read_only: Whether another server keeps them; then nothing is removed.
    """

    def __init__(self, models_dir: Path, max_versions: int, max_bytes: int, is_read_only: bool = False) -> None:
        self._models_dir = models_dir
        self._dir = models_dir / VERSIONS_FOLDER
        self._max_versions, self._max_bytes = max_versions, max_bytes
        # One model's versions are changed by one thread at a time.
        self._locks = [threading.RLock() for _ in range(_N_LOCKS)]
        # Whether two files that look the same are; each look at an alias asks, and they may be large.
        self._compared: LRUCache[tuple[int, ...], bool] = LRUCache(_MAX_COMPARED)
        self._comparing = threading.Lock()
        # Notes that were found damaged: they are read often, and one line of the log is enough.
        self._reported: set[tuple[int, ...]] = set()
        if not is_read_only:
            self._finish_deletions()
        for name in [] if is_read_only else self._list_folders():
            remove_leftovers(self._dir / name)
            try:
                if not Path(get_newest_path(self._models_dir, name)).exists() and not self._forget_unless_pinned(name):
                    logger.warning(
                        "model %s has versions with aliases and no file; put %s%s back, or delete %s/%s",
                        *(name, name, SUFFIX, VERSIONS_FOLDER, name),
                    )
                self._trim(name)
            except OSError:  # which concerns this model alone
                logger.warning("the versions of model %s cannot be trimmed", name, exc_info=True)

    def find_problem(self) -> str | None:
        """Return why no model could be replaced now; None if one could."""
        try:
            self._check_is_folder(self._dir)
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
        return last if last and self._is_newest(name, last) else max(last + 1, self.read_notes(name).newest)

    def list_kept(self, name: str) -> list[int]:
        """List the numbers of the versions in the hidden folder, in order."""
        try:
            with os.scandir(self._find_folder(name)) as entries:
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
        earlier = [version for version in self.list_kept(name) if not self._is_newest(name, version)]
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
        aliases = ", ".join(sorted(self.read_notes(name).aliases)) or "none"
        return NotFoundError(
            f"model '{name}' has no version or alias '{printable(selector)}'; its versions are "
            f"{', '.join(map(str, self.list_all(name)))}, its aliases {aliases}."
        )

    def read_notes(self, name: str) -> Notes:
        """Return what is known of a model's versions; what cannot be read is left out."""
        try:
            return self._read_notes_or_fail(name)
        except OSError:
            logger.warning("the notes on the versions of model %s cannot be read", name, exc_info=True)
            return Notes({}, {})

    def _read_notes_or_fail(self, name: str) -> Notes:
        """Return what is known of a model's versions, to change it: aliases that the disk hides must not be lost.

        :raises OSError: If the disk does not give it.
        """
        try:
            return load_notes(folder := self._find_folder(name))
        except (FileNotFoundError, NotADirectoryError):
            return Notes({}, {})
        except DamagedNotesError as error:
            with suppress(OSError):
                if (identity := _identify(os.lstat(folder / NOTES_FILE))) not in self._reported:
                    self._reported.add(identity)
                    logger.warning("the notes on the versions of model %s are damaged: %s", name, error)
            return Notes({}, {}, are_damaged=True)

    def set_alias(self, name: str, alias: str, version: int | None) -> int | None:
        """Point an alias at a version, which stays as long as it does.

        :param version: None removes the alias.
        :return: The version that it pointed at before; None if it is new.
        :raises NotFoundError: If the model has no such version, or no such alias to remove.
        :raises ConflictError: If it has too many.
        :raises OSError: If the disk refuses; all stays as it was.
        """
        with self.lock(name):
            notes = self._read_notes_or_fail(name)
            before = notes.aliases.get(alias)
            aliases = {other: pinned for other, pinned in notes.aliases.items() if other != alias}
            if version is None:
                if before is None:
                    raise self.make_not_found(f"{name}@{alias}")
            elif version not in self.list_all(name) or not Path(get_newest_path(self._models_dir, name)).exists():
                raise self.make_not_found(f"{name}@{version}")  # a model that is gone has none
            elif len(aliases) >= MAX_ALIASES:
                raise ConflictError(
                    f"model '{name}' has the aliases {', '.join(sorted(aliases))} already and may have {MAX_ALIASES}; "
                    "delete one first."
                )
            else:
                aliases[alias] = version
            is_new = False
            if version is not None and version == self.find_newest(name):
                is_new = self._keep(name, version, copies=True)
            try:
                self._write_notes(name, notes._replace(aliases=aliases))
            except OSError:
                if is_new:
                    self._undo(name, notes)
                raise
            return before

    @contextmanager
    def replacing(self, name: str, content: bytes, job_id: str | None) -> Iterator[None]:
        """Keep the newest version of a model while the caller replaces it.

        :param content: The file that comes in its place; one with the same bytes is no new version.
        :param job_id: The job that trained that.
        :raises OSError: If the disk refuses; all stays as it was.
        """
        with self.lock(name):
            path = Path(get_newest_path(self._models_dir, name))
            is_gone = not os.path.lexists(path)
            if is_gone:
                self._remove_aside(name)
                if self.list_kept(name) and self._forget_unless_pinned(name):
                    logger.warning("model %s was deleted by hand: the next one of that name begins anew", name)
            version = self.find_newest(name)
            if is_gone and (before := self.read_notes(name)).aliases:  # the file that is gone had a number too
                version = max(version, before.newest + 1)
            is_file = path.exists() and not path.is_symlink()
            is_new = False
            if is_file and not _has_content(path, content):
                is_new = self._keep(name, version)
                version += 1
            notes = self._read_notes_or_fail(name)
            sha256 = hashlib.sha256(content).hexdigest()
            if notes.find_job(version, sha256) != job_id:
                jobs = {**notes.jobs, version: job_id}
                kept = {version, *self.list_kept(name)}
                known = {k: v for k, v in jobs.items() if v is not None and k in kept}
                digests = {k: v for k, v in {**notes.digests, version: sha256}.items() if k in known}
                self._write_notes(name, notes._replace(jobs=known, digests=digests, newest=version))
            elif notes.newest != version:
                self._write_notes(name, notes._replace(newest=version))
            try:
                yield
            except UnconfirmedWriteError:  # the model is in its place
                self._renew(name, version)
                raise
            except OSError:
                self._undo(name, notes, is_new)
                raise
            self._renew(name, version)
            with suppress(OSError):  # the next save trims
                self._trim(name)
        with suppress(OSError):
            self._trim_folder()

    @contextmanager
    def deleting(self, name: str) -> Iterator[None]:
        """Remove a model's versions and aliases while the caller deletes its file.

        :raises OSError: If the disk refuses; all stays as it was.
        """
        with self.lock(name):
            is_aside = False
            try:
                is_aside = self._put_aside(name)
                yield
            except OSError:
                if is_aside:
                    with suppress(OSError):  # then the next start puts it back
                        self._find_aside(name).rename(self._dir / name)
                raise
            self._remove_aside(name)

    def _find_aside(self, name: str) -> Path:
        return self._dir / f"{_DELETED_PREFIX}{name}"

    def _put_aside(self, name: str) -> bool:
        """Rename the folder of a model's versions, at once; return whether it has one."""
        self._remove_aside(name)
        try:
            self._find_folder(name).rename(self._find_aside(name))
        except (FileNotFoundError, NotADirectoryError):  # none, or a link that leads elsewhere
            return False
        with suppress(OSError):  # without it, only a power cut could leave half a model
            sync_folder(self._dir)
        return True

    def _remove_aside(self, name: str) -> None:
        with suppress(OSError):
            self._check_is_folder(self._dir)
            shutil.rmtree(self._find_aside(name), ignore_errors=True)

    def _finish_deletions(self) -> None:
        """Finish the deletions whose file a crash left deleted, and undo the others."""
        names = [name.removeprefix(_DELETED_PREFIX) for name in self._scan() if name.startswith(_DELETED_PREFIX)]
        for name in filter(is_model_name, names):
            if os.path.lexists(get_newest_path(self._models_dir, name)) and not os.path.lexists(self._dir / name):
                with suppress(OSError):  # then the next start tries again
                    self._find_aside(name).rename(self._dir / name)
            else:
                self._remove_aside(name)

    def _forget(self, name: str) -> None:
        """Remove the versions and aliases of a model whose file is gone."""
        with self.lock(name), suppress(OSError):
            shutil.rmtree(self._find_folder(name), ignore_errors=True)

    def _forget_unless_pinned(self, name: str) -> bool:
        """Remove the versions of a model whose file is gone, unless an alias keeps one; return whether they are."""
        if self._list_pinned(name):
            return False
        self._forget(name)
        return True

    def count_pinned_bytes(self) -> int:
        """Return the size of the versions that aliases keep, as far as the disk says which."""
        files = self._list_files()
        pinned = {name: set(self.read_notes(name).aliases.values()) for name in {name for _, _, name, _ in files}}
        return sum(n_bytes for _, n_bytes, name, version in files if version in pinned[name])

    def _is_newest(self, name: str, version: int) -> bool:
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
                is_same = _has_content(newest, Path(kept).read_bytes())
                with self._comparing:
                    self._compared[key] = is_same
            return is_same
        except OSError:
            return False

    def _undo(self, name: str, notes: Notes, is_new: bool = True) -> None:
        """Remove what was kept of a newest version that was not replaced, or got no alias, after all.

        :param notes: Those from before.
        :param is_new: Whether it was kept only now.
        """
        last = max(self.list_kept(name), default=0)
        with suppress(OSError):
            if is_new and last and self._is_newest(name, last):
                os.unlink(get_version_path(self._models_dir, name, last))
            if notes == Notes({}, {}):
                (self._dir / name / NOTES_FILE).unlink(missing_ok=True)
            else:
                self._write_notes(name, notes)
            # Where nothing else is left in them.
            (self._dir / name).rmdir()
            self._dir.rmdir()

    def _find_folder(self, name: str) -> Path:
        """Return the folder of a model's versions.

        :raises NotADirectoryError: If something else is in its place, such as a link that leads elsewhere.
        :raises FileNotFoundError: If there is none.
        """
        folder = self._dir / name
        for path in (self._dir, folder):
            self._check_is_folder(path)
        return folder

    def _check_is_folder(self, path: Path) -> None:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            place = path.relative_to(self._models_dir)
            raise NotADirectoryError(errno.ENOTDIR, f"{place} in the models folder is not a folder")

    def _make_folder(self, name: str) -> Path:
        """Return the folder of a model's versions, created if absent; the models folder itself never is."""
        for path in (self._dir, self._dir / name):
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            self._check_is_folder(path)  # before anything is made in it
        return self._find_folder(name)

    def _keep(self, name: str, version: int, copies: bool = False) -> bool:
        """Keep a model's newest version under its number; return whether it was not before.

        :param copies: Whether it stays the newest, so that somebody may write into its file.
        :raises OSError: If the disk refuses.
        """
        kept = self._make_folder(name) / f"{version}.zip"
        if os.path.lexists(kept):
            return False
        self._link(name, kept, copies)
        return True

    def _renew(self, name: str, version: int) -> None:
        """Keep a version's new file if the same bytes were saved once more while it was kept."""
        kept = Path(get_version_path(self._models_dir, name, version))
        with suppress(OSError):
            if version in self.list_kept(name) and not self._is_newest(name, version):
                self._link(name, kept, copies=True)

    def _link(self, name: str, kept: Path, copies: bool) -> None:
        """Put a model's newest version where an earlier one belongs, at once: a link, or a copy."""
        path = get_newest_path(self._models_dir, name)
        temporary = kept.with_name(f"{TEMPORARY_PREFIX}{kept.stem}")
        temporary.unlink(missing_ok=True)  # which a crash has left; it may be a link
        try:
            if copies:
                shutil.copy2(path, temporary, follow_symlinks=False)
            else:
                os.link(path, temporary, follow_symlinks=False)
        except OSError:  # a file system without links
            shutil.copy2(path, temporary, follow_symlinks=False)
        os.replace(temporary, kept)

    def _write_notes(self, name: str, notes: Notes) -> None:
        save_notes(self._make_folder(name), notes)

    def _trim(self, name: str) -> None:
        """Remove the versions beyond the limit."""
        pinned = self._list_pinned(name)
        kept = self.list_kept(name)
        loose = [version for version in kept if version not in pinned and not self._is_newest(name, version)]
        for version in loose[: max(0, len(loose) - (self._max_versions - 1))]:
            self._remove(name, version)

    def _trim_folder(self) -> None:
        """Remove the oldest versions while the folder is larger than it may be."""
        files = sorted(self._list_files())
        excess = sum(n_bytes for _, n_bytes, *_ in files) + self._count_newest_bytes() - self._max_bytes
        for _, n_bytes, name, version in files:
            if excess <= 0:
                return
            with self.lock(name):
                if version not in self._list_pinned(name):
                    self._remove(name, version)
                    excess -= n_bytes

    def _remove(self, name: str, version: int) -> None:
        notes, newest = self._read_notes_or_fail(name), self.find_newest(name)
        with suppress(OSError):
            if notes.newest != newest:
                self._write_notes(name, notes._replace(newest=newest))
            os.unlink(get_version_path(self._models_dir, name, version))

    def _list_pinned(self, name: str) -> set[int]:
        """List the versions that aliases keep; all, if the notes are damaged or such notes were put aside.

        :raises OSError: If the disk does not say which.
        """
        notes = self._read_notes_or_fail(name)
        if notes.are_damaged or has_damaged_notes(self._dir / name):
            return set(self.list_kept(name))
        return set(notes.aliases.values())

    def _list_folders(self) -> list[str]:
        return list(filter(is_model_name, self._scan()))

    def _scan(self) -> list[str]:
        """List the names of all folders in the hidden one."""
        try:
            with os.scandir(self._dir) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            return [] if self._dir.is_symlink() else names
        except OSError:
            return []

    def _list_files(self) -> list[tuple[int, int, str, int]]:
        """List the kept versions: when they were saved, their size, model and number."""
        files = []
        for name in self._list_folders():
            for version in self.list_kept(name):
                with suppress(OSError):
                    status = os.lstat(get_version_path(self._models_dir, name, version))
                    if stat.S_ISREG(status.st_mode) and not self._is_newest(name, version):
                        files.append((status.st_mtime_ns, status.st_size, name, version))
        return files

    def _count_newest_bytes(self) -> int:
        n_bytes = 0
        with suppress(OSError), os.scandir(self._models_dir) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    with suppress(OSError):
                        n_bytes += entry.stat(follow_symlinks=False).st_size
        return n_bytes


def _identify(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _has_content(path: Path, content: bytes) -> bool:
    with suppress(OSError):
        return path.stat().st_size == len(content) and path.read_bytes() == content
    return False
