"""Finished models that the disk does not take, kept in memory for a resume to save."""

import threading
from contextlib import suppress
from typing import NamedTuple

from cachetools import LRUCache

from service.schemas.jobs import EndedBy

# The oldest give way.
_MAX_BYTES = 2**26


class UnsavedModel(NamedTuple):
    """What a training ended with.

    :param content: The model file.
    :param ended_by: The rule that ended the training; None for its last step.
    """

    content: bytes
    ended_by: EndedBy | None


class UnsavedModels:
    """The models of failed jobs that only have to be saved. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By job.
        self._kept: LRUCache[str, UnsavedModel] = LRUCache(_MAX_BYTES, lambda model: len(model.content))

    def keep(self, job_id: str, model: UnsavedModel) -> bool:
        """Keep the model of a job; return whether there is room for it."""
        with suppress(ValueError), self._lock:  # too large
            self._kept[job_id] = model
            return True
        return False

    def get(self, job_id: str) -> UnsavedModel | None:
        """Return the model of a job; None if it has none, or it made room for others."""
        with self._lock:
            kept: UnsavedModel | None = self._kept.get(job_id)
        return kept

    def forget(self, job_id: str) -> None:
        """Drop the model of a job that is saved or forgotten."""
        with self._lock:
            self._kept.pop(job_id, None)
