"""The table of all training jobs: how one is found, listed, labelled and forgotten."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from cachetools import LRUCache

from service.errors import ConflictError, NotFoundError, StorageError, printable
from service.jobs.job import Job
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.database import JournalError
from service.jobs.records.record import PastJob
from service.jobs.records.recorder import JobRecorder
from service.schemas.jobs import JobLabels, JobStatus

logger = logging.getLogger("grpo.service")

# May take the place of an id in a path: the newest job.
LATEST = "latest"
# Ended jobs that stay in memory, the ones that ended last. Of those before, only the line in the list does.
_MAX_IN_MEMORY = 100
# As many if the disk does not take them.
_MAX_UNWRITTEN = 1000
# Ended jobs that are looked at.
_MAX_LOADED = 32
# How often the disk is asked for jobs that are too old; days are what their age is counted in.
_FORGET_SECONDS = 3600.0


class JobTable:
    """All jobs by id. Safe to use from any thread.

    :param recorder: Writes the jobs down.
    :param checkpoints: Where the jobs' checkpoints are kept.
    :param max_kept: Number of ended jobs to remember; those that ended first are forgotten first.
    :param max_kept_days: Age from which ended jobs are forgotten.
    """

    def __init__(
        self, recorder: JobRecorder, checkpoints: CheckpointFolder, max_kept: int, max_kept_days: float
    ) -> None:
        self.recorder = recorder
        self.checkpoints = checkpoints
        self._max_kept, self._max_kept_days = max_kept, max_kept_days
        # Held while something is written on a job, or it is deleted or resumed, so that the last to write is the one
        # that is remembered.
        self._labelling = threading.Lock()
        # Guards changes of everything below; single jobs are looked up without it.
        self._lock = threading.Lock()
        self._jobs: dict[str, Job | PastJob] = {}
        # Jobs that had not ended at the last look, and the ids of the others, so that only a list of all jobs has to
        # go through all of them. Of the others, the last are in memory.
        self._active: list[Job] = []
        self._ended: deque[str] = deque()
        self._in_memory: deque[str] = deque()
        self._loaded: LRUCache[str, Job] = LRUCache(_MAX_LOADED)
        self._next_look = 0.0
        # Ids of forgotten jobs whose checkpoints are still to be removed.
        self._without_job: deque[str] = deque()

    def _fill(self, jobs: Iterable[Job | PastJob]) -> None:
        """Take in the jobs of earlier servers, oldest first."""
        self._jobs = {job.job_id: job for job in jobs}
        self._active = [job for job in self._jobs.values() if isinstance(job, Job)]
        self._ended = deque(job.job_id for job in self._jobs.values() if isinstance(job, PastJob))
        self._forget_old()

    def get(self, job_id: str) -> Job:
        """Return a job.

        :param job_id: The job's id, or ``LATEST``.
        :raises NotFoundError: If it never existed or has been forgotten.
        """
        job = self.find_in_memory(job_id)
        return self._load(job_id) if job is None else job

    def find_in_memory(self, job_id: str) -> Job | None:
        """Return a job without reading the disk; None if its record has to be read.

        :param job_id: The job's id, or ``LATEST``.
        :raises NotFoundError: If it never existed or has been forgotten.
        """
        with self._lock:
            job = self._jobs.get(self._get_latest_id() if job_id == LATEST else job_id)
            if isinstance(job, PastJob):
                return self._loaded.get(job.job_id)
        if job is None:
            raise self._make_not_found(job_id)
        return job

    def _get_latest_id(self) -> str:
        if not self._jobs:
            raise NotFoundError("there is no training job yet; POST /train starts one.")
        return next(reversed(self._jobs))

    def _load(self, job_id: str) -> Job:
        with self._lock:
            past = self._find(job_id)
            job_id = past.job_id
        try:
            record = self.recorder.journal.load(job_id)
            if record is None:
                raise make_not_found(job_id)
            job = Job.restore(record)
            self.check_checkpoint(job)
        except (JournalError, LookupError, TypeError, ValueError) as error:
            reason = error.reason if isinstance(error, JournalError) else "it is damaged"
            logger.warning("the record of job %s cannot be read: %s", job_id, reason)
            raise NotFoundError(
                f"the record of training job '{printable(job_id)}' cannot be read ({reason}); the jobs' file or its "
                "disk is damaged."
            ) from error
        with self._lock:
            if self._jobs.get(job_id) is past:
                self._loaded[job_id] = job
                return job
        return self.get(job_id)  # it has changed since it was read

    def check_checkpoint(self, job: Job) -> None:
        """Look on the disk whether an ended job still has its checkpoint, which it may have lost to others since."""
        if job.status.is_final and job.state.checkpoint is not None and self.checkpoints.is_gone(job.job_id):
            job.forget_checkpoint()

    def list_jobs(self, status: JobStatus | None = None) -> list[Job | PastJob]:
        """List jobs, oldest first.

        :param status: List only jobs with this status.
        """
        with self._lock:
            jobs = list(self._jobs.values())
        return [job for job in jobs if status in (None, job.status)]

    def find_id(self, job_id: str) -> str:
        """Return the id of a job that is remembered.

        :param job_id: The job's id, or ``LATEST``.
        :raises NotFoundError: If it never existed or has been forgotten.
        """
        with self._lock:
            return self._find(job_id).job_id

    def list_lines(self) -> list[PastJob]:
        """List the lines of all jobs, oldest first."""
        with self._lock:
            jobs = list(self._jobs.values())
        return [job if isinstance(job, PastJob) else PastJob(job.summarize()) for job in jobs]

    def list_configs(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the configurations of a few jobs; of those that are unknown or cannot be read there is none."""
        with self._lock:
            jobs = [(job_id, self._jobs.get(job_id)) for job_id in job_ids]
        past = [job_id for job_id, job in jobs if isinstance(job, PastJob)]
        return {
            **(self.recorder.load_configs(past) if past else {}),
            **{job_id: job.config.model_dump(mode="json") for job_id, job in jobs if isinstance(job, Job)},
        }

    def label(self, job_id: str, changes: Mapping[str, Any]) -> Job | PastJob:
        """Write something on a job, or take it away; it is on the disk when this returns.

        :param job_id: The job's id, or ``LATEST``.
        :param changes: Fields of ``JobLabels``.
        :raises NotFoundError: If it never existed or has been forgotten.
        :raises StorageError: If it cannot be written down.
        """
        with self._labelling:
            with self._lock:
                job = self._find(job_id)
            old = job.summarize()
            known = {name: getattr(old, name) for name in JobLabels.model_fields}
            labels = JobLabels.model_validate({**known, **changes})
            try:
                if changes:
                    changed = labels.model_dump(include=set(changes))
                    self.recorder.journal.write_labels(job.job_id, changed)
            except JournalError as error:
                raise StorageError(f"nothing is written on job {job.job_id}: {error.reason}.") from error
            with self._lock:
                self._put_labels(job.job_id, labels)
                return self._jobs.get(job.job_id, job)

    def _put_labels(self, job_id: str, labels: JobLabels) -> None:
        for job in (self._jobs.get(job_id), self._loaded.get(job_id)):
            if isinstance(job, Job):
                job.labels = labels
            elif job is not None:
                self._jobs[job_id] = PastJob(job.summary.model_copy(update=dict(labels)))

    def delete(self, job_id: str) -> str:
        """Forget a job that has ended, and return its id; its model stays.

        :param job_id: The job's id, or ``LATEST``.
        :raises NotFoundError: If it never existed or has been forgotten.
        :raises ConflictError: If it has not ended.
        :raises StorageError: If the jobs' file refuses; it stays.
        """
        with self._labelling:
            with self._lock:
                job = self._find(job_id)
                if not job.status.is_final:
                    raise ConflictError(
                        f"job {job.job_id} is {job.status}; stop it with POST /training/{job.job_id}/stop before it is "
                        "deleted."
                    )
                job_id = job.job_id
            try:
                self.recorder.journal.forget([job_id])
            except JournalError as error:
                raise StorageError(f"job {job_id} is not deleted: {error.reason}.") from error
            with self._lock:
                self._update_active()  # it may have ended just now
                self._forget(job_id)
            self._remove_checkpoints()
        return job_id

    def _find(self, job_id: str) -> Job | PastJob:
        job = self._jobs.get(self._get_latest_id() if job_id == LATEST else job_id)
        if job is None:
            raise self._make_not_found(job_id)
        return job

    def _make_not_found(self, job_id: str) -> NotFoundError:
        """Build the error for a job that is not there; people take the name of a job's model for its id."""
        for job in reversed(list(self._jobs.values())):
            name = job.config.model_name if isinstance(job, Job) else job.summary.model_name
            if name == job_id:
                return NotFoundError(
                    f"there is no training job '{printable(job_id)}': that is the name of a model, which job "
                    f"{job.job_id} was the latest to train; name the job by its id."
                )
        return make_not_found(job_id)

    def is_active(self, job_id: str) -> bool:
        """Return whether a job is queued or running."""
        job = self._jobs.get(job_id)
        return job is not None and not job.status.is_final

    def find_recent(self, job_id: str) -> Job | None:
        """Return a job that is active or has ended lately; None for others."""
        job = self._jobs.get(job_id)
        return job if isinstance(job, Job) else None

    def count_active(self) -> int:
        """Count the queued and running jobs."""
        with self._lock:
            return len(self._update_active())

    def _update_active(self) -> list[Job]:
        """Note which jobs have ended since the last look, and return the others."""
        still_active = []
        for job in self._active:
            if job.status.is_final:
                self._ended.append(job.job_id)
                self._in_memory.append(job.job_id)
            else:
                still_active.append(job)
        self._active = still_active
        self._free_memory()
        return still_active

    def _free_memory(self) -> None:
        """Keep of the jobs that ended long ago only their lines in the list."""
        while len(self._in_memory) > _MAX_IN_MEMORY:
            job_id = self._in_memory[0]
            is_written = self.recorder.has_written(job_id)
            if not is_written and len(self._in_memory) <= _MAX_UNWRITTEN:
                return
            self._in_memory.popleft()
            job = self._jobs.get(job_id)
            if not is_written:
                self._forget(job_id)
            elif isinstance(job, Job):
                self._jobs[job_id] = PastJob(job.summarize())

    def _forget_old(self) -> None:
        """Forget the ended jobs that are too many, and now and then those that are too old."""
        old: list[str] = []
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _FORGET_SECONDS
            old = self.recorder.list_old(self._max_kept_days)
            if old:
                what = "%d job(s) forgotten, more than %g days older than the newest one (GRPO_MAX_KEPT_DAYS)"
                logger.info(what, len(old), self._max_kept_days)
        with self._lock:
            n_excess = max(0, len(self._ended) - self._max_kept)
            for job_id in [*islice(self._ended, n_excess), *old]:
                if not self.is_active(job_id):  # it was resumed, and the disk has refused to write that down
                    self._forget(job_id)
        self._remove_checkpoints()

    def _forget(self, job_id: str) -> None:
        self._drop_ended(job_id)
        if self._jobs.pop(job_id, None) is not None:
            self.recorder.forget([job_id])
            self._without_job.append(job_id)

    def _remove_checkpoints(self) -> None:
        """Remove the checkpoints of forgotten jobs; without the lock, since a disk may be slow."""
        while self._without_job:
            with suppress(IndexError):  # another thread has taken the last
                self.checkpoints.delete(self._without_job.popleft())

    def _drop_ended(self, job_id: str) -> None:
        for ids in (self._ended, self._in_memory):
            with suppress(ValueError):
                ids.remove(job_id)  # nearly always the first
        self._loaded.pop(job_id, None)


def make_not_found(job_id: str) -> NotFoundError:
    """Build the error for a job that is not there."""
    return NotFoundError(f"there is no training job '{printable(job_id)}'; GET /training/jobs lists them.")
