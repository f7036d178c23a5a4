"""The checkpoints of jobs, in a hidden folder beside the models."""

import io
import json
import os
import zipfile
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from grpo_core.saving.model_file import write_atomic
from service.schemas.jobs import JobCheckpoint

_FOLDER = ".checkpoints"
_SUFFIX = ".zip"
# As service.training.checkpoint_callback names it; the server must not import what imports torch.
_FINISHED = "attachments/finished"
# As grpo_core.checkpoints.checkpoint names it, which imports torch.
_MODEL = "model.zip"


class CheckpointFolder:
    """Keeps the latest checkpoint of each job. Safe to use from any thread.

    :param models_dir: The folder of the models.
    """

    def __init__(self, models_dir: Path) -> None:
        self._dir = models_dir / _FOLDER

    def write(self, job_id: str, content: bytes) -> None:
        """Keep a checkpoint in the place of the job's earlier one.

        :raises OSError: If the disk refuses; the earlier one is then as it was.
        """
        self._dir.mkdir(mode=0o700, exist_ok=True)
        write_atomic(self._path(job_id), content)

    def read(self, job_id: str) -> bytes | None:
        """Return a job's checkpoint; None if there is none."""
        with suppress(OSError):
            return self._path(job_id).read_bytes()
        return None

    def describe(self, job_id: str) -> JobCheckpoint | None:
        """Describe a job's checkpoint; None if there is none that can be read."""
        path = self._path(job_id)
        with suppress(OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError), zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read("checkpoint.json"))
            note, is_certain = facts["caveat"] or (None, None)
            exact = True if note is None else False if is_certain else None
            created_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return JobCheckpoint(timesteps=facts["num_timesteps"], created_at=created_at, exact=exact, note=note)
        return None

    def read_finished(self, job_id: str) -> bytes | None:
        """Return the model file of a job whose training was over at its checkpoint; None if it was not."""
        content = self.read(job_id)
        if content is None:
            return None
        with suppress(zipfile.BadZipFile, KeyError), zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(_FINISHED)
        return None

    def read_model(self, job_id: str) -> bytes | None:
        """Return the model file in a job's checkpoint; None if there is none that can be read."""
        content = self.read(job_id)
        if content is None:
            return None
        with suppress(zipfile.BadZipFile, KeyError), zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(_MODEL)
        return None

    def delete(self, job_id: str) -> None:
        """Delete a job's checkpoint, if there is one."""
        with suppress(OSError):
            self._path(job_id).unlink()

    def sweep(self, job_ids: Collection[str]) -> None:
        """Delete what belongs to none of these jobs."""
        with suppress(OSError):
            for entry in os.scandir(self._dir):
                if entry.name.removesuffix(_SUFFIX) not in job_ids and not entry.is_dir(follow_symlinks=False):
                    with suppress(OSError):
                        os.unlink(entry.path)

    def _path(self, job_id: str) -> Path:
        return self._dir / f"{job_id}{_SUFFIX}"
