"""What a result was made with."""

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_LEARNING_CODE = ("grpo.py", "grpo_core", "benchmarks/learning", "benchmarks/lib")


def read_versions(*packages: str) -> dict[str, str]:
    """Return the version of each package, and under ``commit`` what ``_name_commit`` returns."""
    return {name: version(name) for name in packages} | {"commit": _name_commit()}


def _name_commit() -> str:
    """Name the last commit that changed how policies learn, with a ``+`` where that is being changed.

    Empty outside a clone, and without git.
    """

    def ask(*arguments: str) -> str:
        command = ("git", "-C", str(_ROOT), *arguments, "--", *_LEARNING_CODE)
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    if shutil.which("git") is None:
        return ""
    return ask("log", "-1", "--format=%h") + ("+" if ask("status", "--porcelain") else "")
