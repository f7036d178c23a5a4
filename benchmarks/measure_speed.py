"""Run the benchmarks of speed, and keep the tables that they print.

``python -m benchmarks.measure_speed`` takes a quarter of an hour on an idle machine;
``python -m benchmarks.measure_speed startup load`` runs two of them. ``python -m benchmarks.report`` puts the tables
into RESULTS.md.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.lib.versions import read_versions

FOLDER = Path(__file__).parent / "results" / "speed"
_PACKAGES = ("torch", "stable_baselines3", "gymnasium", "mujoco", "numpy", "fastapi", "uvicorn")


class Part(NamedTuple):
    """One benchmark.

    :param heading: Heading of its section in RESULTS.md.
    :param arguments: Module of this package, and its arguments.
    """

    heading: str
    arguments: tuple[str, ...]


# In the order of the page.
PARTS = {
    "training": Part("Training", ("training.speed",)),
    "physics": Part("Physics of many states at once", ("training.batched_physics",)),
    "mujoco": Part("MuJoCo", ("training.mujoco_speed",)),
    "rollout_workers": Part("Rollout workers", ("training.rollout_workers",)),
    "concurrency": Part("Two jobs at once", ("serving.concurrency",)),
    "serving": Part("Answering", ("serving.compare_servers",)),
    "batches": Part("Answering many at once", ("serving.batches",)),
    "replicas": Part("Replicas on one port", ("serving.replicas",)),
    "load": Part("Answering under load, jobs in processes", ("serving.load", "--executor", "process")),
    "load_threads": Part("Answering under load, jobs in threads", ("serving.load", "--executor", "thread")),
    "startup": Part("Starting", ("serving.startup",)),
    "growth": Part("Large folders", ("serving.growth",)),
}


# Those that ask servers which are not in requirements.txt.
_WITH_PEERS = frozenset({"serving", "replicas"})


def measure(name: str, peer_python: str | None) -> None:
    """Run one benchmark, and keep its tables below a line about the machine and its versions.

    :param peer_python: A Python with LitServe and Ray Serve; None for this one.
    """
    module, *arguments = PARTS[name].arguments
    shown = [f"benchmarks.{module}", *arguments]
    given = list(shown)
    if name in _WITH_PEERS and peer_python is not None:
        shown += ["--peer-python", "PATH"]
        given += ["--peer-python", peer_python]
    sys.stderr.write(f"{name} ...\n")
    tables = subprocess.run([sys.executable, "-m", *given], stdout=subprocess.PIPE, text=True, check=True).stdout
    tables = re.sub(r"^#", "###", tables, flags=re.MULTILINE)  # below this page's own headings
    found = read_versions(*_PACKAGES)
    versions = ", ".join(f"{name} {found[name]}".strip() for name in found if found[name])
    python = ".".join(map(str, sys.version_info[:3]))
    machine = f"{os.cpu_count()} cores, Python {python}, {versions}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.md").write_text(f"`python -m {' '.join(shown)}` on {machine}.\n\n{tables.strip()}\n")


def format_sections() -> list[str]:
    """Return a section of RESULTS.md for each benchmark with tables."""
    return [
        f"## {part.heading}\n\n{file.read_text()}"
        for name, part in PARTS.items()
        if (file := FOLDER / f"{name}.md").exists()
    ]


def main() -> None:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python with LitServe and Ray Serve")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}.")
    for name in arguments.parts or PARTS:
        measure(name, arguments.peer_python)


if __name__ == "__main__":
    main()
