"""The folder of checkpoints: nothing in it is trusted, and nothing outside it is touched."""

import json
import os
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from grpo_core.checkpoints.facts import FORMAT
from service.jobs.records.checkpoints import CheckpointFolder
from service.schemas.training import TrainConfig
from tests.support import make_plan

JOB_ID = "8f1b1a86-0000-4000-8000-0123456789ab"


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return make_plan(env_name="CartPole-v1").config


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path, lambda job_id: False)


def make_file(config: TrainConfig, compression: int = zipfile.ZIP_STORED, **facts: Any) -> bytes:
    """Make a checkpoint as far as the server reads one."""
    own = {"config": config.model_dump(mode="json")}
    described = {"format": FORMAT, "num_timesteps": 64, "caveat": None, "own": own, **facts}
    content = BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        archive.writestr("checkpoint.json", json.dumps(described))
        archive.writestr("attachments/finished", b"model")
    return content.getvalue()


def test_a_checkpoint_is_described_and_read(folder: CheckpointFolder, config: TrainConfig) -> None:
    folder.write(JOB_ID, make_file(config, caveat=["the states are elsewhere", True]))
    described = folder.describe(JOB_ID, config)
    assert described is not None
    assert (described.timesteps, described.exact, described.note) == (64, False, "the states are elsewhere")
    assert folder.read_finished(JOB_ID) == b"model"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "grpo-checkpoint/1"},
        {"own": {}},
        {"own": None},
        {"num_timesteps": "many"},
        {"caveat": 7},
        {"compression": zipfile.ZIP_DEFLATED},
    ],
    ids=str,
)
def test_one_that_cannot_be_used_is_none(folder: CheckpointFolder, config: TrainConfig, change: dict[str, Any]) -> None:
    folder.write(JOB_ID, make_file(config, **change))
    assert folder.describe(JOB_ID, config) is None


def test_one_of_another_training_is_none(folder: CheckpointFolder, config: TrainConfig) -> None:
    folder.write(JOB_ID, make_file(config.model_copy(update={"gamma": 0.5})))
    assert folder.describe(JOB_ID, config) is None


def test_one_of_a_version_with_fewer_fields_is_described(folder: CheckpointFolder, config: TrainConfig) -> None:
    written = config.model_dump(mode="json")
    del written["fill_rollouts"], written["max_restarts"]
    folder.write(JOB_ID, make_file(config, own={"config": written}))
    assert folder.describe(JOB_ID, config) is not None
    assert folder.describe(JOB_ID, config.model_copy(update={"fill_rollouts": True})) is None


def test_one_of_a_version_with_more_fields_is_none(folder: CheckpointFolder, config: TrainConfig) -> None:
    folder.write(JOB_ID, make_file(config, own={"config": config.model_dump(mode="json") | {"of_tomorrow": 1}}))
    assert folder.describe(JOB_ID, config) is None


@pytest.mark.parametrize("content", [b"", b"PK", b"[" * 100_000], ids=["empty", "cut", "deep"])
def test_damage_is_no_error(folder: CheckpointFolder, config: TrainConfig, content: bytes) -> None:
    whole = make_file(config)
    for damaged in (content, whole[:-10], whole.replace(b'"format"', b'"form@t"'), whole.replace(b"null", b"[[[[")):
        folder.write(JOB_ID, damaged)
        assert folder.describe(JOB_ID, config) is None


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, folder: CheckpointFolder, config: TrainConfig) -> None:
    folder.write(JOB_ID, make_file(config))
    path = tmp_path / ".checkpoints" / f"{JOB_ID}.zip"
    path.rename(tmp_path / "elsewhere.zip")
    for put in (partial(os.mkfifo, path), partial(path.symlink_to, tmp_path / "elsewhere.zip"), path.mkdir):
        put()
        assert folder.describe(JOB_ID, config) is None
        assert folder.read(JOB_ID) is None
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_link_in_the_folders_place_is_not_followed(tmp_path: Path, config: TrainConfig) -> None:
    elsewhere, models_dir = tmp_path / "elsewhere", tmp_path / "models"
    elsewhere.mkdir()
    models_dir.mkdir()
    (elsewhere / f"{JOB_ID}.zip").write_bytes(b"precious")
    (models_dir / ".checkpoints").symlink_to(elsewhere)
    folder = CheckpointFolder(models_dir, lambda job_id: False)
    folder.remove_orphans([])
    with pytest.raises(OSError, match="is not a folder"):
        folder.write(JOB_ID, make_file(config))
    assert (elsewhere / f"{JOB_ID}.zip").read_bytes() == b"precious"


def test_only_what_was_written_here_is_swept(tmp_path: Path, folder: CheckpointFolder, config: TrainConfig) -> None:
    for job_id in (JOB_ID, JOB_ID.replace("8", "9")):
        folder.write(job_id, make_file(config))
    (tmp_path / ".checkpoints" / ".tmp-1").touch()
    (tmp_path / ".checkpoints" / "notes.txt").touch()
    folder.remove_orphans([JOB_ID])
    assert {path.name for path in (tmp_path / ".checkpoints").iterdir()} == {f"{JOB_ID}.zip", "notes.txt"}


def test_those_that_were_written_longest_ago_make_room(tmp_path: Path, config: TrainConfig) -> None:
    content = make_file(config)
    folder = CheckpointFolder(tmp_path, lambda job_id: False, max_bytes=2 * len(content) + 10)
    job_ids = [JOB_ID.replace("8", str(i)) for i in range(3)]
    for age, job_id in enumerate(job_ids[:2]):
        folder.write(job_id, content)
        os.utime(tmp_path / ".checkpoints" / f"{job_id}.zip", (age, age))
    folder.write(job_ids[1], content)
    assert folder.read(job_ids[0]) is not None
    folder.write(job_ids[2], content)
    assert [folder.read(job_id) is not None for job_id in job_ids] == [False, True, True]


def test_those_of_running_jobs_make_no_room(tmp_path: Path, config: TrainConfig) -> None:
    content = make_file(config)
    folder = CheckpointFolder(tmp_path, {JOB_ID}.__contains__, max_bytes=len(content) + 10)
    folder.write(JOB_ID, content)
    with pytest.raises(OSError, match="have their fill"):
        folder.write(JOB_ID.replace("8", "9"), content)
    assert folder.read(JOB_ID) == content
