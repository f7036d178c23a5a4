"""Where the files of models lie: the newest of each in the models folder, earlier versions in a hidden one below it."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

#: What a model's file ends in.
SUFFIX = ".zip"
# Holds a folder for each model that has earlier versions.
VERSIONS_FOLDER = ".versions"


def get_newest_path(models_dir: Path, name: str) -> str:
    """Return where a model's newest version is, whether there is one or not."""
    # Listings build a thousand; a Path takes ten times as long.
    return f"{models_dir}{os.sep}{name}{SUFFIX}"


def get_version_path(models_dir: Path, name: str, version: int) -> str:
    """Return where an earlier version is kept."""
    return f"{models_dir}{os.sep}{VERSIONS_FOLDER}{os.sep}{name}{os.sep}{version}{SUFFIX}"


def find_versions_folder(models_dir: Path, name: str) -> Path:
    """Return the folder of a model's earlier versions.

    :raises NotADirectoryError: If something else is in its place, such as a link that leads elsewhere.
    :raises FileNotFoundError: If there is none.
    """
    folder = models_dir / VERSIONS_FOLDER / name
    for path in (folder.parent, folder):
        check_is_folder(models_dir, path)
    return folder


def make_versions_folder(models_dir: Path, name: str) -> Path:
    """Return the folder of a model's earlier versions, created if absent; the models folder itself never is."""
    folder = models_dir / VERSIONS_FOLDER / name
    for path in (folder.parent, folder):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        check_is_folder(models_dir, path)  # before anything is made in it
    return find_versions_folder(models_dir, name)


def check_is_folder(models_dir: Path, path: Path) -> None:
    """Refuse a path that is not a folder, or is a link to one.

    :raises NotADirectoryError: If it is something else.
    :raises FileNotFoundError: If it does not exist.
    """
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        place = path.relative_to(models_dir)
        raise NotADirectoryError(errno.ENOTDIR, f"{place} in the models folder is not a folder")


def list_folders(models_dir: Path) -> list[str]:
    """List the names of all folders in the hidden one."""
    hidden = models_dir / VERSIONS_FOLDER
    try:
        with os.scandir(hidden) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return [] if hidden.is_symlink() else names
    except OSError:
        return []
