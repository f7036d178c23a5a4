"""The suites that look for faults by the thousand: how far they go, and the report that they leave.

``make test`` runs a short form of each, ``make test-fuzz``, ``make test-load`` and ``make test-soak`` the long ones.
"""

import fcntl
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

REPORTS = Path(__file__).parent / "artefacts"
IS_LONG = os.environ.get("SUITES") == "long"
SEED = int(os.environ.get("SUITE_SEED", "0"))
# What the tests of the algorithm train on: make test-gpu runs them on "cuda".
DEVICE = os.environ.get("TEST_DEVICE", "cpu")
_PACKAGES = ("numpy", "gymnasium", "fastapi", "uvicorn", "httptools", "uvloop")


def choose(short: T, long: T) -> T:
    """Return what applies to the form that runs."""
    return long if IS_LONG else short


class Report:
    """Figures of one part of a suite, kept in ``tests/artefacts/<suite>.json``.

    :param suite: Name of the suite.
    :param part: Name of the part.
    """

    def __init__(self, suite: str, part: str) -> None:
        self._file, self._part = REPORTS / f"{suite}.json", part
        self._begun = time.monotonic()
        self.figures: dict[str, Any] = {}

    def count(self, name: str) -> None:
        """Count one more of something."""
        self.figures[name] = self.figures.get(name, 0) + 1

    def write(self) -> None:
        """Add the figures to the report, in place of earlier ones of this part."""
        REPORTS.mkdir(exist_ok=True)
        entry = {
            "form": choose("short", "long"),
            "seed": SEED,
            "figures": self.figures,
            "seconds": round(time.monotonic() - self._begun, 1),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in _PACKAGES},
        }
        with open(self._file, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process may be at another part
            file.seek(0)
            parts = json.loads(file.read() or "{}")
            file.seek(0)
            file.truncate()
            json.dump(parts | {self._part: entry}, file, indent=1)
