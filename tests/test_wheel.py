"""The wheel and the source distribution: what is in them, and that what is in them runs."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.models import make_model

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta; print(build_meta.build_{}({!r}))"
# What is under another name in the wheel.
SERVER = "grpo_cli/server/"


def build(kind: str, source: Path, folder: Path) -> Path:
    """Build a distribution, as ``pip wheel`` and ``python -m build`` have it built."""
    command = [sys.executable, "-c", BUILD.format(kind, str(folder))]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / built.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    # Building leaves files in the folder that it builds from.
    source = folder / "checkout"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("the tests are not in a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    return build("sdist", source, folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from nothing but the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel would put beside other packages."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def list_sources() -> set[str]:
    """List what the wheel has to hold, by its name in the checkout."""
    rooms = ("grpo_cli", "grpo_client", "grpo_core", "service")
    files = {file for room in rooms for file in (ROOT / room).glob("**/*") if file.is_file()}
    doors = ("grpo.py", "grpo_terminal.py", "grpo_zoo.py", "api.py", "run_api.py")
    return {
        file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts and file.suffix != ".pyc"
    } | set(doors)


def test_the_wheel_holds_every_file_of_the_library_the_client_and_the_server_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix(SERVER) for name in archive.namelist() if ".dist-info/" not in name}
    assert held == list_sources()


def test_no_name_is_taken_that_a_users_own_modules_may_have(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"grpo.py", "grpo_terminal.py", "grpo_zoo.py", "grpo_cli", "grpo_client", "grpo_core"}


def test_the_page_of_the_wheel_needs_no_other_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    page = metadata.get_payload()
    assert isinstance(page, str)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "pip install" in page
    assert "](" not in page.replace("](https://", ""), "a link leads to a file that is not there"


def test_an_extra_installs_what_the_server_is_tested_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [Requirement(text) for name in ("server", "client", "film", "progress") for text in extras[name]]
    listed += map(Requirement, project["dependencies"])
    allowed = {requirement.name: requirement.specifier for requirement in listed}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pinned = Requirement(line)
            if pinned.name != "requests":  # which only examples use
                (version,) = pinned.specifier
                assert version.version in allowed[pinned.name], pinned.name


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_what_is_installed_runs_where_no_checkout_is(installed: Path, tmp_path: Path) -> None:
    make_model("CartPole-v1").save(tmp_path / "m.zip")
    described = run(installed, tmp_path, "grpo_cli", "info", "m.zip")
    assert described.returncode == 0, described.stderr
    served = run(installed, tmp_path, "grpo_cli", "serve", "--help")
    assert served.stdout.startswith("usage: grpo serve"), served.stderr
    asked = run(installed, tmp_path, "grpo_client", "--help")
    assert asked.stdout.startswith("usage: python -m grpo_client"), asked.stderr
    # Settings that cannot work get as far as the server itself, which no process here has to wait for.
    refused = run(installed, tmp_path, "grpo_cli", "serve", "--host", "0.0.0.0")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "GRPO_API_KEY" in refused.stderr
