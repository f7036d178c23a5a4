"""The models of a job: the one it began from, its checkpoint's, the one it saved, and the jobs that began from that."""

import hashlib
from contextlib import suppress

from grpo_core.saving.model_file import ModelFileError
from service.errors import NotFoundError
from service.jobs.job import Job
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.table import JobTable
from service.models.store import ModelStore


def find_init_model(store: ModelStore, job: Job) -> str | None:
    """Return a reference to the model a job began from, perhaps an earlier version by now; None if it is gone."""
    if job.config.init_model is None:
        return None
    return store.folder.find_reference(job.config.init_model, job.plan.init_sha256)


def find_its_model(store: ModelStore, job: Job) -> str | None:
    """Return a reference to the model a job has saved last, as ``find_init_model`` does; None if it is gone."""
    return None if (saved := job.state.last_saved) is None else store.folder.find_reference(*saved)


def list_trained_on(table: JobTable, job: Job) -> list[Job]:
    """List the jobs that began from the model which a job has saved last, oldest first."""
    found: list[Job] = []
    if (saved := job.state.last_saved) is None:
        return found
    for job_id in table.recorder.list_trained_on(saved[1]):
        with suppress(NotFoundError):  # it was deleted just now
            found.append(table.get(job_id))
    return found


def read_checkpoint_model(checkpoints: CheckpointFolder, job: Job) -> tuple[bytes, int] | None:
    """Return the model file in a job's latest checkpoint, and the steps it was trained for; None without one."""
    if (kept := checkpoints.describe(job.job_id, job.config)) is None:
        return None
    content = checkpoints.read_model(job.job_id)
    return None if content is None else (content, kept.timesteps)


def is_own_model(store: ModelStore, job: Job) -> bool:
    """Return whether the model of a job's name is one that the job has saved itself.

    It saved it when it was stopped, or just before its server died, which the job does not know of.
    """
    name, versions = job.config.model_name, store.folder.versions
    sha256 = _hash(store, name)
    if job.state.last_saved == (name, sha256):
        return True
    return versions.read_notes(name).find_job(versions.find_newest(name), sha256) == job.job_id


def holds_content(store: ModelStore, name: str, content: bytes) -> bool:
    """Return whether the newest model of a name is this file."""
    return _hash(store, name) == hashlib.sha256(content).hexdigest()


def _hash(store: ModelStore, reference: str) -> str | None:
    with suppress(NotFoundError, ModelFileError):
        return hashlib.sha256(store.folder.read(reference)[1]).hexdigest()
    return None
