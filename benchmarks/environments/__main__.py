"""Try other people's environments and write ``docs/environments.md``: ``python -m benchmarks.environments``.

What was tried before is not tried again, unless ``--again`` says so.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks.environments.page import format_page
from benchmarks.environments.sandbox import InstallError, Package, prepare
from benchmarks.environments.trial import Spec
from benchmarks.lib.runs import RESULTS_FOLDER

_ROOT = Path(__file__).parents[2]
_RESULTS = RESULTS_FOLDER / "environments.json"
_PAGE = _ROOT / "docs" / "environments.md"
_CATALOGUE = Path(__file__).with_name("catalogue.yml")


class Results:
    """Outcomes by label and reasons of packages that were not installed, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.outcomes: dict[str, dict[str, Any]] = stored.get("outcomes", {})
        self.errors: dict[str, str] = stored.get("errors", {})

    def save(self) -> None:
        """Write the file."""
        text = json.dumps({"outcomes": self.outcomes, "errors": self.errors}, indent=1, sort_keys=True)
        self._path.write_text(text + "\n")


def list_specs(package: Package) -> dict[str, Spec]:
    """Return a package's environments by the labels of their rows."""
    specs = {}
    for entry in package.environments:
        fields = {"id": entry} if isinstance(entry, str) else entry
        spec = Spec(imports=package.imports, **fields)
        arguments = ", ".join(f"{name}={value}" for name, value in spec.kwargs.items())
        specs[f"{spec.id} ({arguments})" if arguments else spec.id] = spec
    return specs


def try_environment(python: Path, spec: Spec, seconds: float) -> dict[str, Any]:
    """Run a trial in a process of its own, and return what its stages found."""
    command = [str(python), "-m", "benchmarks.environments.trial", json.dumps(asdict(spec))]
    settings = {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "MUJOCO_GL": "disabled"}
    outcome: dict[str, Any] = {"has_kwargs": bool(spec.kwargs), "has_wrapper": spec.wrapper is not None}
    # Some packages write files where they run.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **settings}, stdout=output, stderr=subprocess.DEVNULL
        )
        try:
            code = process.wait(seconds)
            if code:
                outcome["died"] = code
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            outcome["stopped"] = seconds
        output.seek(0)
        for line in output:
            if line.startswith("{"):
                outcome.update(json.loads(line))
    return outcome


def _try_package(package: Package, specs: dict[str, Spec], folder: Path, seconds: float, results: Results) -> None:
    try:
        python = prepare(package, folder)
    except InstallError as error:
        results.errors[package.package] = str(error)
        results.save()
        return
    results.errors.pop(package.package, None)
    for label, spec in specs.items():
        results.outcomes[label] = try_environment(python, spec, seconds)
        results.save()
        print(label, results.outcomes[label], flush=True)


def _write_page(packages: Sequence[Package], results: Results) -> None:
    entries = [
        {
            "package": package.package,
            "note": package.note,
            "error": results.errors.get(package.package, ""),
            "labels": list(list_specs(package)),
        }
        for package in packages
    ]
    _PAGE.write_text(format_page(entries, results.outcomes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Install, try, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="keep the throw-away environments here; default: a temporary folder"
    )
    parser.add_argument("--only", default="", help="a regular expression that packages have to match")
    parser.add_argument("--again", action="store_true", help="try again what was tried before")
    parser.add_argument("--seconds", type=float, default=180.0, help="time limit of one environment")
    parser.add_argument("--jobs", type=int, default=1, help="packages at the same time; timings suffer")
    options = parser.parse_args(arguments)
    packages = [Package(**entry) for entry in yaml.safe_load(_CATALOGUE.read_text())]
    results = Results(_RESULTS)
    wanted: list[tuple[Package, dict[str, Spec]]] = []
    for package in packages:
        specs = list_specs(package)
        new = {label: spec for label, spec in specs.items() if options.again or label not in results.outcomes}
        is_known = package.package in results.errors and not options.again
        if re.search(options.only, package.package) and not is_known and (new or not specs):
            wanted.append((package, new))
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.jobs) as pool:
        folder = options.folder or Path(temporary)
        futures = [pool.submit(_try_package, *entry, folder, options.seconds, results) for entry in wanted]
        for future in futures:
            future.result()
            _write_page(packages, results)
    _write_page(packages, results)


if __name__ == "__main__":
    main()
