"""How many versions stay: of each model, and of all together as far as they take room."""

import os
from contextlib import suppress
from pathlib import Path

from service.models.files.kept import KeptVersions
from service.models.files.notes import save_notes
from service.models.files.paths import SUFFIX, get_version_path, make_versions_folder


class VersionTrimmer:
    """Removes the oldest versions that no alias keeps, beyond a number and a size.

    :param models_dir: The folder of models.
    :param kept: The versions in it.
    :param max_versions: Versions kept of each model, the newest included and those with an alias not, at least 1.
    :param max_bytes: Largest size of all models and versions together.
    """

    def __init__(self, models_dir: Path, kept: KeptVersions, max_versions: int, max_bytes: int) -> None:
        self._models_dir, self._kept = models_dir, kept
        self._max_versions, self._max_bytes = max_versions, max_bytes

    def trim(self, name: str) -> None:
        """Remove the versions beyond the limit."""
        pinned = self._kept.list_pinned(name)
        kept = self._kept.list_kept(name)
        loose = [version for version in kept if version not in pinned and not self._kept.is_newest(name, version)]
        for version in loose[: max(0, len(loose) - (self._max_versions - 1))]:
            self._remove(name, version)

    def trim_folder(self) -> None:
        """Remove the oldest versions while the folder is larger than it may be."""
        files = sorted(self._kept.list_files())
        excess = sum(n_bytes for _, n_bytes, *_ in files) + self._count_newest_bytes() - self._max_bytes
        for _, n_bytes, name, version in files:
            if excess <= 0:
                return
            with self._kept.lock(name):
                if version not in self._kept.list_pinned(name):
                    self._remove(name, version)
                    excess -= n_bytes

    def _remove(self, name: str, version: int) -> None:
        notes, newest = self._kept.read_notes_or_fail(name), self._kept.find_newest(name)
        with suppress(OSError):
            if notes.newest != newest:
                save_notes(make_versions_folder(self._models_dir, name), notes._replace(newest=newest))
            os.unlink(get_version_path(self._models_dir, name, version))

    def _count_newest_bytes(self) -> int:
        n_bytes = 0
        with suppress(OSError), os.scandir(self._models_dir) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    with suppress(OSError):
                        n_bytes += entry.stat(follow_symlinks=False).st_size
        return n_bytes
