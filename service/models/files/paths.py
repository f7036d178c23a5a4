"""Where the files of models lie: the newest of each in the models folder, earlier versions in a hidden one below it."""

import os
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
