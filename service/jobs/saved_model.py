"""Whether the model of a name is what a job has saved last."""

import hashlib
from contextlib import suppress

from grpo_core.saving.model_file import ModelFileError
from service.errors import NotFoundError
from service.jobs.job import Job
from service.models.store import ModelStore


def is_own_model(store: ModelStore, job: Job) -> bool:
    """Return whether the model of a job's name is the one that it has saved itself, when it was stopped.

    Or just before its server died, so that the job does not know.
    """
    name, saved, versions = job.config.model_name, job.state.last_saved, store.folder.versions
    if saved is not None and saved[0] == name and has_its_model(store, job):
        return True
    return versions.read_notes(name).find_job(versions.find_newest(name), _hash(store, name)) == job.job_id


def has_its_model(store: ModelStore, job: Job) -> bool:
    """Return whether the model that a job has saved last is there, and is still the newest of its name."""
    return job.state.last_saved is not None and _hash(store, job.state.last_saved[0]) == job.state.last_saved[1]


def holds_content(store: ModelStore, name: str, content: bytes) -> bool:
    """Return whether the newest model of a name is this file."""
    return _hash(store, name) == hashlib.sha256(content).hexdigest()


def _hash(store: ModelStore, reference: str) -> str | None:
    with suppress(NotFoundError, ModelFileError):
        return hashlib.sha256(store.folder.read(reference)[1]).hexdigest()
    return None
