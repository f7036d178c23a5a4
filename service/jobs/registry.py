"""The registry, which remembers all training jobs and runs them."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from itertools import dropwhile, islice
from pathlib import Path

from service.context import JOB_ID
from service.errors import (
    ConflictError,
    DrainingError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    describe_error,
    printable,
)
from service.jobs.job import Job
from service.jobs.totals import JobTotals
from service.models.store import ModelStore
from service.schemas.jobs import JobStatus
from service.training.plan import TrainingPlan
from service.workers.executor import Executor
from service.workers.task import TaskFailedError

logger = logging.getLogger("grpo.service")

# May take the place of an id in a path: the newest job.
LATEST = "latest"
# Jobs whose curves are kept in full: the ones that ended last.
_MAX_FULL_HISTORIES = 100
# How often a running job is checked for stalls.
_WATCH_SECONDS = 0.25
# A stopped training ends at its next step or minibatch; without either for this long, it hangs.
_STOP_PATIENCE_SECONDS = 5.0


class JobRegistry:
    """All jobs by id, and the threads that look after the running ones. Safe to use from any thread.

    :param store: Where trained policies are saved.
    :param executor: Runs the trainings; the registry does not close it.
    :param max_running: Largest number of running jobs.
    :param max_queued: Largest number of waiting jobs.
    :param max_kept: Number of ended jobs to remember; those that ended first are forgotten first.
    :param stall_seconds: A job without a step or an update for this long fails.
    :param tensorboard_dir: Folder for TensorBoard logs, created when a job first writes one.
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
        tensorboard_dir: Path = Path("runs"),
    ) -> None:
        self.totals = JobTotals()
        self._store = store
        self._executor = executor
        self._max_running = max_running
        self._max_active = max_running + max_queued
        self._max_kept = max_kept
        self._stall_seconds = stall_seconds
        self._tensorboard_dir = tensorboard_dir.absolute()
        # Of the machine's cores, each running job has its share.
        self._n_threads_per_job = max(1, _count_cores() // max_running)
        # A slot is a thread that starts a training and watches it.
        self._slots = ThreadPoolExecutor(max_running, thread_name_prefix="grpo-job")
        # Guards everything below and makes "check the name, then take it" one step.
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        # Jobs that had not ended at the last look, and the ids of the others, so that only a list of all jobs has to
        # go through all of them.
        self._active: list[Job] = []
        self._ended: deque[str] = deque()
        # Names reserved by uploads, folded.
        self._reserved: set[str] = set()
        self._draining = False

    def submit(self, plan: TrainingPlan) -> Job:
        """Queue a job.

        :raises ConflictError: If an active job or an upload will save under the same name.
        :raises QueueFullError: If too many jobs are active.
        :raises DrainingError: If the server is shutting down.
        """
        job = Job(plan, self.totals)
        with self._lock:
            active = self._check_room()
            self._check_name_is_free(plan.config.model_name, active)
            self._store.folder.check_case_collision(plan.config.model_name)
            job.log("queued")
            # In the request's context, so that the job's log lines carry the request's id.
            self._slots.submit(copy_context().run, self._run, job)
            self._jobs[job.job_id] = job
            self._active.append(job)
            self._forget_oldest()
        return job

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

    def _check_room(self) -> list[Job]:
        active = self._list_active()
        if self._draining:
            raise DrainingError("the server is shutting down; submit the job again when it is back.")
        if len(active) >= self._max_active:
            raise QueueFullError(f"{len(active)} jobs are running or queued already; try again later.")
        return active

    def get(self, job_id: str) -> Job:
        """Return a job.

        :param job_id: The job's id, or ``LATEST``.
        :raises NotFoundError: If it never existed or has been forgotten.
        """
        if job_id == LATEST:
            return self._get_latest()
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFoundError(f"there is no training job '{printable(job_id)}'; GET /training/jobs lists them.")
        return job

    def _get_latest(self) -> Job:
        jobs = list(self._jobs.values())  # an atomic copy, so no lock is needed
        if not jobs:
            raise NotFoundError("there is no training job yet; POST /train starts one.")
        return jobs[-1]

    def list_jobs(
        self, status: JobStatus | None = None, after: str | None = None, limit: int | None = None
    ) -> list[Job]:
        """List jobs, oldest first.

        :param status: List only jobs with this status.
        :param after: Id of a job; list only those submitted after it.
        :param limit: Largest number of jobs to list.
        :raises NotFoundError: If the job ``after`` never existed or has been forgotten.
        """
        with self._lock:
            jobs = iter(list(self._jobs.values()))
        if after is not None:
            last = self.get(after)
            jobs = islice(dropwhile(lambda job: job is not last, jobs), 1, None)
        return list(islice((job for job in jobs if status in (None, job.status)), limit))

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

    def shutdown(self, grace_seconds: float) -> None:
        """Refuse new jobs, stop the active ones and wait for them to save.

        :param grace_seconds: Longest time to wait; jobs that take longer are abandoned.
        """
        with self._lock:
            self._draining = True
            active = self._list_active()
        for job in active:
            try:
                job.stop()
                job.stop()  # skips its evaluation
            except ConflictError:  # it ended between the two lines
                continue
        deadline = time.monotonic() + grace_seconds
        for job in active:
            if not job.finished.wait(max(0.0, deadline - time.monotonic())):
                job.finish(JobStatus.STOPPED, f"it did not end within {grace_seconds:g} s of the server's shutdown.")
        self._slots.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Job) -> None:
        JOB_ID.set(job.job_id)
        if not job.start():
            return
        job.log("started")
        try:
            run_name = job.tensorboard_run
            run_dir = None if run_name is None else self._tensorboard_dir / run_name
            run = self._executor.start(job.plan.make_task(run_dir, self._n_threads_per_job), job)
            while not run.wait(_WATCH_SECONDS):
                self._give_up_if_stalled(job)
                if job.finished.is_set():
                    run.kill()
                    return
            content = run.get_content()
            outcome = job.settle_outcome()
            name = self._choose_name(job, outcome)
            job.record_saved_model(name, self._store.publish(name, content))
        except (TaskFailedError, ServiceError) as error:
            logger.warning("job %s failed: %s", job.job_id, error)
            job.finish(JobStatus.FAILED, str(error))
        except BaseException as error:  # the job boundary: whatever an environment raises ends only its own job
            logger.warning("job %s failed", job.job_id, exc_info=True)
            job.finish(JobStatus.FAILED, describe_error(error))
        else:
            job.finish(outcome)

    def _give_up_if_stalled(self, job: Job) -> None:
        patience = self._stall_seconds
        if job.is_stopping:
            patience = min(patience, _STOP_PATIENCE_SECONDS)
        if job.finished.is_set() or job.inactive_seconds < patience:
            return
        stall = f"stalled: no simulator step and no update for {patience:g} s"
        if job.is_stopping:
            job.give_up(JobStatus.STOPPED, f"{stall} after the stop, so nothing could be saved.")
        else:
            job.give_up(
                JobStatus.FAILED,
                f"{stall}, the limit that GRPO_STALL_SECONDS sets; fix the environment '{job.config.env_name}', or "
                "raise the setting if a step or an update may take longer.",
            )

    def _choose_name(self, job: Job, outcome: JobStatus) -> str:
        """Return the name to save under: the job's own, but a stopped job never replaces a model."""
        name = job.config.model_name
        if outcome is JobStatus.COMPLETED or not self._store.exists(name):
            return name
        return f"{name[:80]}-stopped-{job.job_id[:8]}"

    def _list_active(self) -> list[Job]:
        still_active = []
        for job in self._active:
            if job.status.is_final:
                self._ended.append(job.job_id)
                if len(self._ended) > _MAX_FULL_HISTORIES:
                    self._jobs[self._ended[-_MAX_FULL_HISTORIES - 1]].history.condense()
            else:
                still_active.append(job)
        self._active = still_active
        return still_active

    def _check_name_is_free(self, model_name: str, active: Iterable[Job]) -> None:
        if model_name.casefold() in self._reserved:
            raise ConflictError(f"a file is being uploaded as '{printable(model_name)}'; try again in a moment.")
        for job in active:
            if _same_name(job, model_name):
                raise ConflictError(
                    f"job {job.job_id} is {job.status} and will save as '{job.config.model_name}'; pick another name, "
                    f"or stop it with POST /training/{job.job_id}/stop."
                )

    def _forget_oldest(self) -> None:
        while len(self._ended) > self._max_kept:
            del self._jobs[self._ended.popleft()]


def _count_cores() -> int:
    # Not on macOS and Windows.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _same_name(job: Job, model_name: str) -> bool:
    return job.config.model_name.casefold() == model_name.casefold()
