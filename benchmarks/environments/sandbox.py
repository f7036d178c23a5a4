"""Throw-away environments for packages to try, each on top of the one that this program runs in."""

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What must not change under the project.
_KEPT = ("gymnasium", "numpy", "stable-baselines3", "torch")
_INSTALL_SECONDS = 600.0


@dataclass(frozen=True)
class Package:
    """A package to try, with its environments; see ``catalogue.yml``."""

    package: str
    install: list[str] = field(default_factory=list)
    no_deps: bool = False
    sdist: bool = False
    imports: list[str] = field(default_factory=list)
    environments: list[Any] = field(default_factory=list)
    note: str = ""

    @property
    def is_in_project(self) -> bool:
        """Whether the project's own development environment has it."""
        return self.package.partition("[")[0] in ("gymnasium", "ale-py")


class InstallError(RuntimeError):
    """pip did not install a package; the message has its last lines."""


def prepare(package: Package, folder: Path) -> Path:
    """Install a package into an environment of its own, and return its Python.

    An environment that is complete is used again.

    :raises InstallError: If pip fails.
    """
    if package.is_in_project:
        return Path(sys.executable)
    home = folder / "".join(char if char.isalnum() else "-" for char in package.package)
    python, complete = home / "bin" / "python", home / "complete"
    requirements = package.install or [package.package]
    if complete.exists() and complete.read_text().split() == requirements:
        return python
    venv.create(home, clear=True, with_pip=False, symlinks=True)
    site = next((home / "lib").glob("python*")) / "site-packages"
    (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    constraints = home / "constraints.txt"
    constraints.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in _KEPT))
    options = [] if package.sdist else ["--only-binary=:all:"]
    if package.no_deps:
        _pip(python, [*options, "--no-deps", *requirements])
    else:
        _pip(python, [*options, "--constraint", str(constraints), *requirements])
    complete.write_text("\n".join(requirements))
    return python


def _pip(python: Path, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "-q"]
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"not installed within {_INSTALL_SECONDS:.0f} s") from error
    if done.returncode:
        raise InstallError(explain(done.stderr))


def explain(stderr: str) -> str:
    """Return why pip failed, in one line without the names of all versions that it tried."""
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    text = lines[0] if lines else "pip failed"
    if "conflicting dependencies" in text:
        return "its requirements contradict the project's versions"
    if text.startswith(("No matching distribution", "Could not find a version")):
        return "no wheel for this Python"
    return text
