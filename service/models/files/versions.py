"""Earlier versions of models, in a hidden folder beside them, and the aliases that point at versions.

``models/<name>.zip`` is the newest version of a model, as if there were no others. ``models/.versions/<name>/<n>.zip``
are earlier ones: what a newer one replaces is linked there first, under its number, and only then replaced, so that a
crash leaves the old state or the new. The newest version normally has the number after the last of those. It
has the same number if it is the same file, because a crash came in between, or if the last one is a copy of it, kept
because an alias points at it: the copy shows whether somebody else has replaced the newest file or written into it.
``notes.json`` says what no file does (see ``notes``).
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grpo_core.saving.atomic_write import UnconfirmedWriteError
from service.errors import ConflictError
from service.models.files.deletion import finish_deletions, put_aside, put_back, remove_aside
from service.models.files.kept import KeptVersions, has_content
from service.models.files.lock import TEMPORARY_PREFIX, remove_leftovers
from service.models.files.notes import NOTES_FILE, Notes, save_notes
from service.models.files.paths import (
    SUFFIX,
    VERSIONS_FOLDER,
    find_versions_folder,
    get_newest_path,
    get_version_path,
    make_versions_folder,
)
from service.models.files.trimming import VersionTrimmer

logger = logging.getLogger("grpo.service")

# Each may keep a version beyond the limit of versions.
MAX_ALIASES = 8


class VersionFolder(KeptVersions):
    """Keeps the earlier versions of the models of one folder. Safe to use from any thread.

    What belongs to no model, as after a crash during its deletion, is removed.

    :param models_dir: The folder.
    :param max_versions: Versions kept of each model, the newest included and those with an alias not, at least 1.
    :param max_bytes: Largest size of all models and versions together; the oldest versions give way.
    :param is_read_only: Whether another server keeps them; then nothing is removed.
    """

    def __init__(self, models_dir: Path, max_versions: int, max_bytes: int, is_read_only: bool = False) -> None:
        super().__init__(models_dir)
        self._trimmer = VersionTrimmer(models_dir, self, max_versions, max_bytes)
        if not is_read_only:
            finish_deletions(self._models_dir)
        for name in self.list_names():
            self.find_newest(name)  # compares its files, before a request waits for that
            if is_read_only:
                continue
            remove_leftovers(self._dir / name)
            try:
                if not Path(get_newest_path(self._models_dir, name)).exists() and not self._forget_unless_pinned(name):
                    logger.warning(
                        "model %s has versions with aliases and no file; put %s%s back, or delete %s/%s",
                        *(name, name, SUFFIX, VERSIONS_FOLDER, name),
                    )
                self._trimmer.trim(name)
            except OSError:  # which concerns this model alone
                logger.warning("the versions of model %s cannot be trimmed", name, exc_info=True)

    def set_alias(self, name: str, alias: str, version: int | None) -> int | None:
        """Point an alias at a version, which stays as long as it does.

        :param version: None removes the alias.
        :return: The version that it pointed at before; None if it is new.
        :raises NotFoundError: If the model has no such version, or no such alias to remove.
        :raises ConflictError: If it has too many.
        :raises OSError: If the disk refuses; all stays as it was.
        """
        with self.lock(name):
            notes = self.read_notes_or_fail(name)
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
            try:
                if version is not None and version == self.find_newest(name):
                    is_new = self._keep(name, version, copies=True)
                self._write_notes(name, notes._replace(aliases=aliases))
            except OSError:
                if is_new:
                    self._undo(name, notes)
                else:
                    self._remove_empty(name)
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
                remove_aside(self._models_dir, name)
                if self.list_kept(name) and self._forget_unless_pinned(name):
                    logger.warning("model %s was deleted by hand: the next one of that name begins anew", name)
            version = self.find_newest(name)
            if is_gone and (before := self.read_notes(name)).aliases:  # the file that is gone had a number too
                version = max(version, before.newest + 1)
            is_file = path.exists() and not path.is_symlink()
            is_new = False
            if is_file and not has_content(path, content):
                is_new = self._keep(name, version)
                version += 1
            notes = self.read_notes_or_fail(name)
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
                self._trimmer.trim(name)
        with suppress(OSError):
            self._trimmer.trim_folder()

    @contextmanager
    def deleting(self, name: str) -> Iterator[None]:
        """Remove a model's versions and aliases while the caller deletes its file.

        :raises OSError: If the disk refuses; all stays as it was.
        """
        with self.lock(name):
            is_aside = False
            try:
                is_aside = put_aside(self._models_dir, name)
                yield
            except OSError:
                if is_aside:
                    put_back(self._models_dir, name)
                raise
            remove_aside(self._models_dir, name)

    def _forget(self, name: str) -> None:
        """Remove the versions and aliases of a model whose file is gone."""
        with self.lock(name), suppress(OSError):
            shutil.rmtree(find_versions_folder(self._models_dir, name), ignore_errors=True)

    def _forget_unless_pinned(self, name: str) -> bool:
        """Remove the versions of a model whose file is gone, unless an alias keeps one; return whether they are."""
        if self.list_pinned(name):
            return False
        self._forget(name)
        return True

    def _undo(self, name: str, notes: Notes, is_new: bool = True) -> None:
        """Remove what was kept of a newest version that was not replaced, or got no alias, after all.

        :param notes: Those from before.
        :param is_new: Whether it was kept only now.
        """
        last = max(self.list_kept(name), default=0)
        with suppress(OSError):
            if is_new and last and self.is_newest(name, last):
                os.unlink(get_version_path(self._models_dir, name, last))
            if notes == Notes({}, {}):
                (self._dir / name / NOTES_FILE).unlink(missing_ok=True)
            else:
                self._write_notes(name, notes)
            self._remove_empty(name)

    def _remove_empty(self, name: str) -> None:
        """Remove the hidden folders, as far as nothing is in them."""
        with suppress(OSError):
            (self._dir / name).rmdir()
            self._dir.rmdir()

    def _keep(self, name: str, version: int, copies: bool = False) -> bool:
        """Keep a model's newest version under its number; return whether it was not before.

        :param copies: Whether it stays the newest, so that somebody may write into its file.
        :raises OSError: If the disk refuses.
        """
        kept = make_versions_folder(self._models_dir, name) / f"{version}.zip"
        if os.path.lexists(kept):
            with suppress(OSError):  # a copy, which an alias asked for, has the same content
                if not copies and not os.path.samefile(kept, get_newest_path(self._models_dir, name)):
                    self._link(name, kept, copies)
            return False
        self._link(name, kept, copies)
        return True

    def _renew(self, name: str, version: int) -> None:
        """Keep a version's new file if the same bytes were saved once more while it was kept."""
        kept = Path(get_version_path(self._models_dir, name, version))
        with suppress(OSError):
            if version in self.list_kept(name) and not self.is_newest(name, version):
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
                _link_or_copy(path, temporary)
            os.replace(temporary, kept)
        except OSError:
            temporary.unlink(missing_ok=True)  # a part of it, where the disk is full
            raise
        if copies:
            self.is_newest(name, int(kept.stem))  # compares them now, in this thread; requests come on the event loop

    def _write_notes(self, name: str, notes: Notes) -> None:
        save_notes(make_versions_folder(self._models_dir, name), notes)


def _link_or_copy(path: str, target: Path) -> None:
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(path, target, follow_symlinks=False)
