"""The checkpoints of jobs, in a hidden folder beside the models."""

import errno
import json
import os
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from grpo_core.checkpoints.facts import (
    ATTACHED,
    FACTS_MEMBER,
    FORMAT,
    MAX_JOB_BYTES,
    MODEL_MEMBER,
    is_exact,
    read_caveat,
)
from grpo_core.saving.atomic_write import write_atomic
from service.models.files.lock import OPEN_FLAGS, TEMPORARY_PREFIX
from service.schemas.jobs import JobCheckpoint
from service.schemas.training import TrainConfig
from service.training.order import FINISHED

_FOLDER = ".checkpoints"
_SUFFIX = ".zip"
_OURS = re.compile(rf"[0-9a-f-]{{36}}{re.escape(_SUFFIX)}|{re.escape(TEMPORARY_PREFIX)}.*")
# Reading a damaged file raises these.
_DAMAGE = (OSError, zipfile.BadZipFile, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
           RuntimeError, EOFError)  # fmt: skip  # NotImplementedError and RecursionError are RuntimeErrors


class CheckpointFolder:
    """Keeps the latest checkpoint of each job. Safe to use from any thread.

    :param models_dir: The folder of the models.
    :param is_active: Tells whether a job runs or waits, by its id: its checkpoint makes no room for others.
    :param max_bytes: Largest size of all checkpoints; those of ended jobs, the oldest first, make room for others.
    """

    def __init__(self, models_dir: Path, is_active: Callable[[str], bool], max_bytes: int = sys.maxsize) -> None:
        self._dir = models_dir / _FOLDER
        self._is_active, self._max_bytes = is_active, max_bytes

    def write(self, job_id: str, content: bytes) -> None:
        """Keep a checkpoint in the place of the job's earlier one.

        :raises OSError: If the disk refuses, there is no room, or something else is in the folder's place; an earlier
            checkpoint is then as it was.
        """
        self._dir.mkdir(mode=0o700, exist_ok=True)
        if not stat.S_ISDIR(os.lstat(self._dir).st_mode):
            raise NotADirectoryError(0, f"{_FOLDER} in the models folder is not a folder")
        self._make_room(job_id, len(content))
        write_atomic(self._path(job_id), content)

    def read(self, job_id: str) -> bytes | None:
        """Return a job's checkpoint; None if this class has written none."""
        with suppress(OSError), self._open(job_id) as file:
            return file.read()
        return None

    def describe(self, job_id: str, config: TrainConfig) -> JobCheckpoint | None:
        """Describe a job's checkpoint; None without one that the job can go on from.

        :param config: What the job trains.
        """
        with suppress(*_DAMAGE), self._open(job_id) as file, zipfile.ZipFile(file) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()) or archive.testzip():
                return None  # none is compressed, and what such members unpack to has no bound
            facts = json.loads(archive.read(FACTS_MEMBER))
            if facts["format"] != FORMAT or not config.is_written_as(facts["own"]["config"]):
                return None
            caveat = read_caveat(facts["caveat"])
            written_at = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
            return JobCheckpoint(
                timesteps=facts["num_timesteps"],
                created_at=facts["own"].get("created_at", written_at),  # earlier versions did not keep it
                exact=is_exact(caveat),
                note=None if caveat is None else caveat.reason,
            )
        return None

    def is_gone(self, job_id: str) -> bool:
        """Return whether a job has no checkpoint; False if the disk does not say, or the models folder is away."""
        try:
            self._path(job_id).lstat()
        except OSError as error:
            return isinstance(error, FileNotFoundError) and self._dir.parent.is_dir()
        return False

    def read_finished(self, job_id: str) -> bytes | None:
        """Return the model file of a job whose training was over at its checkpoint; None if it was not."""
        return self._read_member(job_id, f"{ATTACHED}{FINISHED}")

    def read_model(self, job_id: str) -> bytes | None:
        """Return the model file in a job's checkpoint; None without a readable one."""
        return self._read_member(job_id, MODEL_MEMBER)

    def delete(self, job_id: str) -> None:
        """Delete a job's checkpoint, if there is one."""
        with suppress(OSError):
            self._path(job_id).unlink()

    def list_orphans(self, job_ids: Collection[str]) -> list[str]:
        """List the jobs whose checkpoints are here, without these."""
        names = [name for name, _ in self._list_files() if not name.startswith(TEMPORARY_PREFIX)]
        return [job_id for job_id in (name.removesuffix(_SUFFIX) for name in names) if job_id not in job_ids]

    def remove_orphans(self, job_ids: Collection[str]) -> None:
        """Delete the checkpoints of all jobs but these, and what was never finished."""
        for name, _ in self._list_files():
            if name.removesuffix(_SUFFIX) not in job_ids:
                with suppress(OSError):
                    os.unlink(self._dir / name)

    def _read_member(self, job_id: str, name: str) -> bytes | None:
        with suppress(*_DAMAGE), self._open(job_id) as file, zipfile.ZipFile(file) as archive:
            if archive.getinfo(name).compress_type == zipfile.ZIP_STORED:
                return archive.read(name)
        return None

    def _make_room(self, own_id: str, n_bytes: int) -> None:
        files = [(name.removesuffix(_SUFFIX), status) for name, status in self._list_files()]
        others = [(job_id, status) for job_id, status in files if job_id != own_id]
        excess = sum(status.st_size for _, status in others) + n_bytes - self._max_bytes
        if excess <= 0:
            return
        loose = [file for file in others if not file[0].startswith(TEMPORARY_PREFIX) and not self._is_active(file[0])]
        if sum(status.st_size for _, status in loose) < excess:
            raise OSError(errno.EDQUOT, "the checkpoints of running jobs have their fill of GRPO_MAX_MODELS_BYTES")
        for job_id, status in sorted(loose, key=lambda file: file[1].st_mtime_ns):
            if excess <= 0:
                return
            with suppress(OSError):
                os.unlink(self._path(job_id))
            excess -= status.st_size

    def _list_files(self) -> list[tuple[str, os.stat_result]]:
        """List the files that this class has written; a link in the folder's place is not followed."""
        found: list[tuple[str, os.stat_result]] = []
        with suppress(OSError):
            if not stat.S_ISDIR(os.lstat(self._dir).st_mode):
                return found
            for entry in os.scandir(self._dir):
                if _OURS.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                    with suppress(OSError):
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
        return found

    @contextmanager
    def _open(self, job_id: str) -> Iterator[BinaryIO]:
        """Open a file that was written here: nothing that a link leads to, that blocks, or that has no end.

        :raises OSError: If it cannot be opened.
        """
        descriptor = os.open(self._path(job_id), OPEN_FLAGS)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JOB_BYTES:
                raise OSError(0, "it is no checkpoint")
            yield file

    def _path(self, job_id: str) -> Path:
        return self._dir / f"{job_id}{_SUFFIX}"
