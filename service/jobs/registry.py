"""The registry, which remembers all training jobs and runs them."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from grpo_core.options.rewards import Reward
from service.errors import (
    ConflictError,
    DrainingError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    StorageError,
    printable,
)
from service.jobs.checkpoints import CheckpointFolder
from service.jobs.job import Job
from service.jobs.journal import JobJournal, JournalError
from service.jobs.record import PastJob
from service.jobs.recorder import JobRecorder
from service.jobs.runner import JobRunner
from service.jobs.saved_model import is_own_model
from service.jobs.totals import JobTotals
from service.models.store import ModelStore
from service.schemas.jobs import JobLabels, JobStatus
from service.schemas.training import TrainConfig
from service.training.planning.plan import TrainingPlan
from service.workers.executor import Executor
from service.workers.task import Keeper

logger = logging.getLogger("grpo.service")

# May take the place of an id in a path: the newest job.
LATEST = "latest"
# Ended jobs that stay in memory, the ones that ended last. Of those before, only the line in the list does.
_MAX_IN_MEMORY = 100
# As many if the disk does not take them.
_MAX_UNWRITTEN = 1000
# Ended jobs that somebody looks at.
_MAX_LOADED = 32
_FORGET_SECONDS = 3600.0


class JobRegistry:
    """All jobs by id, and the threads that look after the running ones. Safe to use from any thread.

    :param store: Where trained policies are saved.
    :param executor: Runs the trainings; the registry does not close it.
    :param max_running: Largest number of running jobs.
    :param max_queued: Largest number of waiting jobs.
    :param max_kept: Number of ended jobs to remember; those that ended first are forgotten first.
    :param max_kept_days: Age from which ended jobs are forgotten.
    :param recorder: Writes the jobs down; the registry closes it. None keeps them in memory.
    :param stall_seconds: A job without a step or an update for this long fails.
    :param checkpoints: Where the jobs' checkpoints are kept; None keeps none.
    :param tensorboard_dir: Folder for TensorBoard logs, created when a job first writes one.
    :param n_threads_per_job: Threads that may step a job's simulators; None gives each job its share of the cores.
    :param keeper: The executor, where its jobs outlive the server; None if they end with it.
    """

    def __init__(
        self,
        store: ModelStore,
        executor: Executor,
        *,
        max_running: int,
        max_queued: int,
        max_kept: int,
        stall_seconds: float,
        checkpoints: CheckpointFolder | None = None,
        tensorboard_dir: Path = Path("runs"),
        max_kept_days: float = math.inf,
        recorder: JobRecorder | None = None,
        n_threads_per_job: int | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.totals = JobTotals()
        self.recorder = recorder or JobRecorder(JobJournal())
        self._store = store
        self._max_running = max_running
        self._max_active = max_running + max_queued
        self._max_kept, self._max_kept_days = max_kept, max_kept_days
        self._checkpoints = checkpoints
        self._jobs_outlive_server = keeper is not None
        self._runner = JobRunner(
            store,
            executor,
            self.recorder,
            max_running=max_running,
            stall_seconds=stall_seconds,
            tensorboard_dir=tensorboard_dir,
            n_threads_per_job=n_threads_per_job,
            keeper=keeper,
        )
        # Held while a job is written down, so that jobs are listed in the order of the file.
        self._admission = threading.Lock()
        # Held while something is written on a job, so that the last to write is the one that is remembered.
        self._labelling = threading.Lock()
        # Guards everything below and makes "check the name, then take it" one step.
        self._lock = threading.Lock()
        past_jobs = self.recorder.list_past_jobs()
        self._jobs: dict[str, Job | PastJob] = {job.job_id: self._revive(job) for job in past_jobs}
        # Jobs that go on without their server, and are to be followed again.
        self._unfollowed = [job for job in self._jobs.values() if isinstance(job, Job)]
        if checkpoints is not None:
            checkpoints.is_active = self.is_active
            if self.recorder.knows_all_jobs:
                checkpoints.remove_orphans(self._jobs)
        # Jobs that had not ended at the last look, and the ids of the others, so that only a list of all jobs has to
        # go through all of them. Of the others, the last are in memory.
        self._active = list(self._unfollowed)
        self._ended: deque[str] = deque(job.job_id for job in self._jobs.values() if isinstance(job, PastJob))
        self._in_memory: deque[str] = deque()
        self._loaded: LRUCache[str, Job] = LRUCache(_MAX_LOADED)
        self._next_look = 0.0
        self._forget_old()
        # Names reserved by uploads, folded.
        self._reserved: set[str] = set()
        self._draining = False

    def _revive(self, past: PastJob) -> Job | PastJob:
        """Return a job that had not ended as one that goes on."""
        if past.status.is_final:
            return past
        with suppress(JournalError, LookupError, TypeError, ValueError):
            record = self.recorder.load_record(past.job_id)
            if record is not None:
                job = Job.revive(record, self.totals, self.recorder.end, self._checkpoints)
                self.recorder.follow(job, record.history.stride)
                return job
        logger.warning("job %s cannot be read, so that nobody can follow it", past.job_id)
        self.recorder.interrupt(past.job_id)
        return PastJob(past.summary.model_copy(update={"status": JobStatus.FAILED}))

    def rejoin(self, find_rewards: Callable[[TrainConfig], Reward]) -> None:
        """Follow the jobs again that went on without their server.

        :param find_rewards: Returns the reward functions that a configuration names, or refuses.
        """
        jobs = list(self._unfollowed)
        for job in jobs:
            try:
                job.set_reward(find_rewards(job.config))
            except ServiceError as error:
                job.forbid_restarts(str(error))
        self._runner.rejoin(jobs, self._note_found)
        if not jobs:
            self._runner.end_left()

    def submit(self, plan: TrainingPlan) -> Job:
        """Queue a job.

        :raises ConflictError: If an active job or an upload will save under the same name.
        :raises QueueFullError: If too many jobs are active.
        :raises DrainingError: If the server is shutting down.
        """
        job = Job(plan, self.totals, self.recorder.end, self._checkpoints)
        with self._admission:
            with self._lock:
                self._check_name_is_free(plan.config.model_name, self._check_room())
                self._store.folder.check_case_collision(plan.config.model_name)
                if (warning := self._check_replacement(job)) is not None:
                    job.publish_warning(warning)
                self._active.append(job)
            self._queue(job)
            self._forget_old()
        return job

    def resume(self, job: Job, reward: Reward) -> None:
        """Queue a job again that was stopped or failed; it goes on from its checkpoint, or else begins again.

        :param job: What ``get`` returned.
        :param reward: The reward functions that its configuration names.
        :raises ConflictError: If it has not ended, or has completed, or another job or upload uses its model's name.
        :raises QueueFullError: If too many jobs are active.
        :raises DrainingError: If the server is shutting down.
        """
        with self._admission:
            checkpoint = None if self._checkpoints is None else self._checkpoints.describe(job.job_id, job.config)
            is_own = is_own_model(self._store, job)
            with self._lock:
                active = [other for other in self._check_room() if other is not job]
                self._check_name_is_free(job.config.model_name, active)
                warning = None if is_own else self._check_replacement(job)
                job.requeue(reward, self.totals, self.recorder.end, self._checkpoints, checkpoint)
                if warning is not None:
                    job.publish_warning(warning)
                for ids in (self._ended, self._in_memory):
                    with suppress(ValueError):
                        ids.remove(job.job_id)
                self._loaded.pop(job.job_id, None)
                self._active.append(job)
            self._queue(job)

    def _queue(self, job: Job) -> None:
        # Before anybody can see the job: what a client has seen survives whatever happens.
        self.recorder.begin(job)
        with self._lock:
            self._jobs[job.job_id] = job
        job.log("queued")
        self._runner.submit(job)

    def _check_replacement(self, job: Job) -> str | None:
        """Return a warning if a job's policy will take a model's place, or refuse it if that must not be."""
        name = job.config.model_name
        if not self._store.exists(name):
            return None
        if not job.config.replace:
            raise ConflictError(f"a model '{name}' already exists; pick another model_name, or send replace=true.")
        return f"there is a model '{name}' already; this job's policy will take its place."

    def check_room(self, model_name: str | None = None) -> None:
        """Check that another job could be queued, before it is planned.

        :param model_name: The name that it would save under, if that is known.
        :raises ConflictError: If an active job or an upload will save under the same name.
        :raises StorageLowError: If the disk is too full to save its policy.
        :raises QueueFullError: If too many jobs are active.
        :raises DrainingError: If the server is shutting down.
        """
        with self._lock:
            active = self._check_room()
            if model_name is not None:
                self._check_name_is_free(model_name, active)
        self._store.folder.check_space()

    def check_place(self, n_planned: int) -> None:
        """Check that there is a place for another job, without a look at the disk.

        :param n_planned: Requests that are being planned, and may soon be jobs.
        :raises QueueFullError: If too many jobs are active.
        :raises DrainingError: If the server is shutting down.
        """
        with self._lock:
            self._check_room(n_planned)

    def _check_room(self, n_planned: int = 0) -> list[Job]:
        active = self._list_active()
        if self._draining:
            raise DrainingError("the server is shutting down; submit the job again when it is back.")
        if len(active) + n_planned >= self._max_active:
            planned = f", and {n_planned} are being planned" if n_planned else ""
            raise QueueFullError(f"{len(active)} jobs are running or queued already{planned}; try again later.")
        return active

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
            raise _make_not_found(job_id)
        return job

    def _get_latest_id(self) -> str:
        if not self._jobs:
            raise NotFoundError("there is no training job yet; POST /train starts one.")
        return next(reversed(self._jobs))

    def _load(self, job_id: str) -> Job:
        with self._lock:
            job_id = self._get_latest_id() if job_id == LATEST else job_id
        try:
            job = self.recorder.load(job_id)
        except JournalError as error:
            raise NotFoundError(
                f"the record of training job '{printable(job_id)}' cannot be read ({error.reason}); the jobs' file or "
                "its disk is damaged."
            ) from error
        if job is None:
            raise _make_not_found(job_id)
        with self._lock:
            self._loaded[job_id] = job
        return job

    def list_jobs(
        self, status: JobStatus | None = None, after: str | None = None, limit: int | None = None
    ) -> list[Job | PastJob]:
        """List jobs, oldest first.

        :param status: List only jobs with this status.
        :param after: Id of a job; list only those submitted after it.
        :param limit: Largest number of jobs to list.
        :raises NotFoundError: If the job ``after`` never existed or has been forgotten.
        """
        with self._lock:
            jobs: Iterator[Job | PastJob] = iter(list(self._jobs.values()))
            if after == LATEST:
                after = self._get_latest_id()
            if after is not None and after not in self._jobs:
                raise _make_not_found(after)
        if after is not None:
            jobs = islice(dropwhile(lambda job: job.job_id != after, jobs), 1, None)
        return list(islice((job for job in jobs if status in (None, job.status)), limit))

    def read_checkpoint_model(self, job: Job) -> tuple[bytes, int] | None:
        """Return the model file in a job's latest checkpoint, and the steps it was trained for; None without one."""
        kept = None if self._checkpoints is None else self._checkpoints.describe(job.job_id, job.config)
        if self._checkpoints is None or kept is None:
            return None
        content = self._checkpoints.read_model(job.job_id)
        return None if content is None else (content, kept.timesteps)

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
                self.recorder.write_labels(job.job_id, labels)
            except JournalError as error:
                raise StorageError(f"nothing is written on job {job.job_id}: {error.reason}.") from error
            with self._lock:
                for one in (self._jobs.get(job.job_id), self._loaded.get(job.job_id)):
                    if isinstance(one, Job):
                        one.labels = labels
                    elif one is not None:
                        job = PastJob(one.summary.model_copy(update=dict(labels)))
                        self._jobs[job.job_id] = job
        return job

    def delete(self, job_id: str) -> str:
        """Forget a job that has ended, and return its id; its model stays.

        :param job_id: The job's id, or ``LATEST``.
        :raises NotFoundError: If it never existed or has been forgotten.
        :raises ConflictError: If it has not ended.
        """
        with self._lock:
            job = self._find(job_id)
            if not job.status.is_final:
                raise ConflictError(
                    f"job {job.job_id} is {job.status}; stop it with POST /training/{job.job_id}/stop before it is "
                    "deleted."
                )
            self._list_active()  # it may have ended just now
            self._forget(job.job_id, is_urgent=True)
        return job.job_id

    def _find(self, job_id: str) -> Job | PastJob:
        job = self._jobs.get(self._get_latest_id() if job_id == LATEST else job_id)
        if job is None:
            raise _make_not_found(job_id)
        return job

    def is_active(self, job_id: str) -> bool:
        """Return whether a job is queued or running."""
        job = self._jobs.get(job_id)
        return job is not None and not job.status.is_final

    def count_active(self) -> int:
        """Count the queued and running jobs."""
        with self._lock:
            return len(self._list_active())

    @property
    def max_running(self) -> int:
        """Largest number of running jobs."""
        return self._max_running

    def find_active(self, model_name: str) -> Job | None:
        """Return the active job that will save under a name; None if there is none."""
        with self._lock:
            return next((job for job in self._list_active() if _same_name(job, model_name)), None)

    def delete_model(self, model_name: str) -> None:
        """Delete a model, unless an active job will replace it.

        :raises ConflictError: If an active job will save under its name.
        :raises NotFoundError: If there is no such model.
        """
        with self._lock:
            self._check_name_is_free(model_name, self._list_active())
            self._store.delete(model_name)

    @contextmanager
    def reserve_name(self, model_name: str) -> Iterator[None]:
        """Reserve a name while an upload is saved under it: no job may take it and nobody may delete its model.

        :raises ConflictError: If an active job or another upload will save under it, or another model's name differs
            only by case.
        """
        with self._lock:
            self._check_name_is_free(model_name, self._list_active())
            self._store.folder.check_case_collision(model_name)
            self._reserved.add(model_name.casefold())
        try:
            yield
        finally:
            with self._lock:
                self._reserved.remove(model_name.casefold())

    def stop(self, job: Job) -> None:
        """Stop a job as ``Job.stop`` does; where it outlives the server, that is on the disk when this returns.

        :param job: What ``get`` returned.
        :raises ConflictError: If it has already finished training.
        """
        job.stop()
        if self._jobs_outlive_server:
            self.recorder.write(job)

    def stop_all(self) -> None:
        """Refuse new jobs, and stop the active ones, which save what they have learned."""
        with self._lock:
            if self._draining:
                return
            self._draining = True
            active = self._list_followed()
        for job in active:
            try:
                job.stop()
                job.stop()  # skips its evaluation
            except ConflictError:  # it ended between the two lines
                continue

    def shutdown(self, grace_seconds: float) -> None:
        """Stop all jobs and wait for them to save.

        :param grace_seconds: Longest time to wait; jobs that take longer are abandoned.
        """
        self.stop_all()
        with self._lock:
            active = self._list_followed()
        deadline = time.monotonic() + grace_seconds
        for job in active:
            if not job.finished.wait(max(0.0, deadline - time.monotonic())):
                job.finish(JobStatus.STOPPED, f"it did not end within {grace_seconds:g} s of the server's shutdown.")
        self._runner.close()
        self.recorder.close()

    def _list_followed(self) -> list[Job]:
        """List the active jobs but for those that nobody has found yet: the next server will."""
        return [job for job in self._list_active() if job not in self._unfollowed]

    def _note_found(self, job: Job) -> bool:
        """Note that it is known what a job does, or that it is gone; False if the server ends, which leaves it."""
        with self._lock:
            if self._draining:
                return False
            self._unfollowed.remove(job)
            is_last = not self._unfollowed
        if is_last:
            self._runner.end_left()
        return True

    def find_its_model(self, job: Job) -> str | None:
        """Return what names the model that a job has saved last, perhaps an earlier version by now; None if none."""
        return None if job.last_saved is None else self._store.folder.find_reference(*job.last_saved)

    def find_init_model(self, job: Job) -> str | None:
        """Return what names the file that a job began from, perhaps an earlier version by now; None if none does."""
        if job.config.init_model is None:
            return None
        return self._store.folder.find_reference(job.config.init_model, job.plan.init_sha256)

    def list_trained_on(self, job: Job) -> list[Job]:
        """List the jobs that began from the model which a job has saved last, oldest first."""
        if job.last_saved is None:
            return []
        found = []
        for job_id in self.recorder.list_trained_on(job.last_saved[1]):
            with suppress(NotFoundError):  # it was deleted just now
                found.append(self.get(job_id))
        return found

    def _list_active(self) -> list[Job]:
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

    def _check_name_is_free(self, model_name: str, active: Iterable[Job]) -> None:
        if model_name.casefold() in self._reserved:
            raise ConflictError(f"a file is being uploaded as '{printable(model_name)}'; try again in a moment.")
        for job in active:
            if _same_name(job, model_name):
                raise ConflictError(
                    f"job {job.job_id} is {job.status} and will save as '{job.config.model_name}'; pick another name, "
                    f"or stop it with POST /training/{job.job_id}/stop."
                )

    def _forget_old(self) -> None:
        """Forget the ended jobs that are too many, and now and then those that are too old."""
        old: list[str] = []
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _FORGET_SECONDS
            old = self.recorder.list_old(self._max_kept_days)
        with self._lock:
            n_excess = max(0, len(self._ended) - self._max_kept)
            for job_id in [*islice(self._ended, n_excess), *old]:
                self._forget(job_id)

    def _forget(self, job_id: str, is_urgent: bool = False) -> None:
        for ids in (self._ended, self._in_memory):
            with suppress(ValueError):
                ids.remove(job_id)  # nearly always the first
        self._loaded.pop(job_id, None)
        if self._jobs.pop(job_id, None) is not None:
            self.recorder.forget([job_id], is_urgent)
            if self._checkpoints is not None:
                self._checkpoints.delete(job_id)


def _make_not_found(job_id: str) -> NotFoundError:
    return NotFoundError(f"there is no training job '{printable(job_id)}'; GET /training/jobs lists them.")


def _same_name(job: Job, model_name: str) -> bool:
    return job.config.model_name.casefold() == model_name.casefold()
