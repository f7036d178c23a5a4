"""How the versions of a deleted model go with it, even if a crash comes in between.

Before a model is deleted, the folder of its versions becomes ``models/.versions/.deleted-<name>``: from the model's
file, which goes next, the start after a crash can tell whether to put the folder back or to remove it.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from grpo_core.saving.atomic_write import sync_folder
from service.models.files.paths import (
    VERSIONS_FOLDER,
    check_is_folder,
    find_versions_folder,
    get_newest_path,
    list_folders,
)
from service.schemas.fields import is_model_name

# No model's name begins with a dot.
_DELETED_PREFIX = ".deleted-"


def put_aside(models_dir: Path, name: str) -> bool:
    """Rename the folder of a model's versions, at once; return whether it has one."""
    remove_aside(models_dir, name)
    try:
        find_versions_folder(models_dir, name).rename(_find_aside(models_dir, name))
    except (FileNotFoundError, NotADirectoryError):  # none, or a link that leads elsewhere
        return False
    with suppress(OSError):  # without it, only a power cut could leave half a model
        sync_folder(models_dir / VERSIONS_FOLDER)
    return True


def put_back(models_dir: Path, name: str) -> None:
    """Undo ``put_aside``; if the disk refuses, the next start does."""
    with suppress(OSError):
        _find_aside(models_dir, name).rename(models_dir / VERSIONS_FOLDER / name)


def remove_aside(models_dir: Path, name: str) -> None:
    """Remove what was put aside of a model that is deleted."""
    with suppress(OSError):
        check_is_folder(models_dir, models_dir / VERSIONS_FOLDER)
        shutil.rmtree(_find_aside(models_dir, name), ignore_errors=True)


def finish_deletions(models_dir: Path) -> None:
    """Finish the deletions whose file a crash left deleted, and undo the others."""
    folders = list_folders(models_dir)
    names = [name.removeprefix(_DELETED_PREFIX) for name in folders if name.startswith(_DELETED_PREFIX)]
    for name in filter(is_model_name, names):
        is_deleted = not os.path.lexists(get_newest_path(models_dir, name))
        if is_deleted or os.path.lexists(models_dir / VERSIONS_FOLDER / name):
            remove_aside(models_dir, name)
        else:
            put_back(models_dir, name)


def _find_aside(models_dir: Path, name: str) -> Path:
    return models_dir / VERSIONS_FOLDER / f"{_DELETED_PREFIX}{name}"
