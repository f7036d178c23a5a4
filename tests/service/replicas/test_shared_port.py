"""Replicas of different models do not share a port."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from service.replicas.shared_port import SharedPortError, join_port
from service.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
PORT = 8123


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def make_settings(**changed: Any) -> Settings:
    given: dict[str, Any] = {"role": "serve", "port": PORT, "models_dir": Path("a")}
    return Settings(**given | changed)


def test_those_of_the_same_models_share_it(caplog: pytest.LogCaptureFixture) -> None:
    with join_port(make_settings()), join_port(make_settings(models_dir=Path("a/../a"), metrics_port=9100)):
        pass
    assert caplog.text == ""


@pytest.mark.parametrize("other", [{"models_dir": Path("b")}, {"models_url": "memory://models"}])
def test_those_of_other_models_are_refused_until_all_of_the_first_have_ended(other: dict[str, Any]) -> None:
    with join_port(make_settings()):
        with (
            join_port(make_settings()),
            pytest.raises(SharedPortError, match=r"port 8123 of 127.0.0.1.*is not theirs; choose another port"),
            join_port(make_settings(**other)),
        ):
            pass
        with pytest.raises(SharedPortError), join_port(make_settings(**other)):
            pass
        with join_port(make_settings(**other, port=PORT + 1)):  # another port
            pass
    with join_port(make_settings(**other)):
        pass


def test_copies_of_one_store_in_different_folders_are_the_same_models() -> None:
    url = "memory://models"
    with join_port(make_settings(models_url=url)), join_port(make_settings(models_url=url, models_dir=Path("b"))):
        pass


def test_other_settings_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with join_port(make_settings(api_key="k" * 40)):
        with (
            caplog.at_level(logging.WARNING, "grpo.service"),
            join_port(make_settings(api_key="j" * 40, max_body_bytes=2**21)),
        ):
            pass
    assert "other settings (api_key, max_body_bytes); until" in caplog.text


def test_another_file_that_somebody_has_linked_there_stays_as_it_is(folder: Path) -> None:
    with join_port(make_settings()):
        (file,) = folder.iterdir()
    file.unlink()
    other = folder / "other"
    other.write_text("mine")
    file.hardlink_to(other)
    with join_port(make_settings()):
        assert other.read_text() == "mine"


def test_a_file_that_cannot_be_used_keeps_nobody_away(folder: Path) -> None:
    with join_port(make_settings()):
        (file,) = folder.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        file.write_text("[")
        with join_port(make_settings(models_dir=Path("b"))):
            pass
    file.unlink()
    file.symlink_to(folder / "elsewhere")
    with join_port(make_settings()):
        assert not (folder / "elsewhere").exists()


def test_the_server_refuses_in_words(folder: Path) -> None:
    root = Path(__file__).parent.parent.parent.parent
    command = [sys.executable, "run_api.py", "--role=serve", f"--port={PORT}", f"--models-dir={folder / 'b'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPO_")}
    with join_port(make_settings()):
        refused = subprocess.run(
            command, cwd=root, env={**environment, "TMPDIR": str(folder)}, capture_output=True, text=True
        )
    assert (refused.returncode, "replicas of other models" in refused.stderr) == (2, True), refused.stderr
