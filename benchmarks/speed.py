"""Measure how fast everything is, one benchmark after the other, and keep what each printed.

``python -m benchmarks.speed`` takes a quarter of an hour on a machine that does nothing else;
``python -m benchmarks.speed startup load`` measures some of it. ``python -m benchmarks.report`` puts the tables into
RESULTS.md.
"""

import argparse
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "results" / "speed"
_PACKAGES = ("torch", "stable_baselines3", "gymnasium", "numpy", "fastapi", "uvicorn")


class Part(NamedTuple):
    """One benchmark.

    :param heading: Of its section in RESULTS.md.
    :param arguments: Module of this package, and what it is given.
    """

    heading: str
    arguments: tuple[str, ...]


# In the order of the page.
PARTS = {
    "training": Part("Training", ("training_speed",)),
    "physics": Part("Physics of many states at once", ("batched_physics",)),
    "concurrency": Part("Two jobs at once", ("concurrency",)),
    "serving": Part("Answering", ("serving",)),
    "batches": Part("Answering many at once", ("batches",)),
    "load": Part("Answering under load, jobs in processes", ("load", "--executor", "process")),
    "load_threads": Part("Answering under load, jobs in threads", ("load", "--executor", "thread")),
    "startup": Part("Starting", ("startup",)),
    "growth": Part("Large folders", ("growth",)),
}


def measure(name: str, peer_python: str | None) -> None:
    """Run one benchmark and keep its tables, with what they were measured on."""
    module, *arguments = PARTS[name].arguments
    shown = [f"benchmarks.{module}", *arguments]
    given = list(shown)
    if name == "serving" and peer_python is not None:
        shown += ["--peer-python", "PATH"]
        given += ["--peer-python", peer_python]
    sys.stderr.write(f"{name} ...\n")
    tables = subprocess.run([sys.executable, "-m", *given], stdout=subprocess.PIPE, text=True, check=True).stdout
    tables = re.sub(r"^#", "###", tables, flags=re.MULTILINE)  # below this page's own headings
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    python = ".".join(map(str, sys.version_info[:3]))
    machine = f"{os.cpu_count()} cores, Python {python}, {versions}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.md").write_text(f"`python -m {' '.join(shown)}` on {machine}.\n\n{tables.strip()}\n")


def format_sections() -> list[str]:
    """Return the section of each benchmark that was run."""
    return [
        f"## {part.heading}\n\n{file.read_text()}"
        for name, part in PARTS.items()
        if (file := FOLDER / f"{name}.md").exists()
    ]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--peer-python", metavar="PATH", help="Python that has LitServe and Ray Serve")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}.")
    for name in arguments.parts or PARTS:
        measure(name, arguments.peer_python)


if __name__ == "__main__":
    main()
