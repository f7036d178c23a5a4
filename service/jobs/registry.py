"""The registry that remembers all training jobs and has them run."""

import logging
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
from service.training.planner import TrainingPlan
from service.workers.executor import Executor
from service.workers.task import TaskFailedError

logger = logging.getLogger("grpo.service")

# What a path may say instead of an id: the job that was submitted last.
LATEST = "latest"
# Jobs that ended last, whose curves are kept as they are.
_MAX_FULL_HISTORIES = 100
# How often a running job is looked after.
_WATCH_SECONDS = 0.25
# A stopped training ends at its next step or minibatch; one that shows no sign of either for this long hangs.
_STOP_PATIENCE_SECONDS = 5.0


class JobRegistry:
    """All jobs, by id, and the slots that they run in.

    :param store: Where trained policies go.
    :param executor: What runs them; whoever made it closes it.
    :param max_running: Jobs training at the same time.
    :param max_queued: Jobs waiting for their turn.
    :param max_kept: Finished jobs whose status stays available; the ones that ended first are forgotten first.
    :param stall_seconds: A job that shows no sign of life for this long has failed.
    :param tensorboard_dir: Where jobs that are asked to write a folder that TensorBoard reads, made with the first.
    """

    def __init__(
        self,
        store: ModelStore,
        executor: Executor,
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
        # A slot is a thread that starts a training and looks after it.
        self._slots = ThreadPoolExecutor(max_running, thread_name_prefix="grpo-job")
        # Guards everything below and makes "check the name, then take it" one step.
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        # Those that had not ended when somebody last looked, and the ids of the others: nothing ever goes through
        # all jobs but a list of them.
        self._active: list[Job] = []
        self._ended: deque[str] = deque()
        # Names reserved by uploads, folded.
        self._reserved: set[str] = set()
        self._draining = False

    def submit(self, plan: TrainingPlan) -> Job:
        """Queue a job.

        :raises ConflictError: If an active job will save under the same name.
        :raises QueueFullError: If there is no room.
        :raises DrainingError: If the server is shutting down.
        """
        job = Job(plan, self.totals)
        with self._lock:
            active = self._check_room()
            self._check_name_is_free(plan.config.model_name, active)
            self._store.folder.check_case_collision(plan.config.model_name)
            job.log("queued")
            # In the request's context, so that the log tells to whom the job's lines belong.
            self._slots.submit(copy_context().run, self._run, job)
            self._jobs[job.job_id] = job
            self._active.append(job)
            self._forget_oldest()
        return job

    def check_room(self) -> None:
        """Refuse a job whatever it is, before anybody takes the trouble to plan it.

        :raises StorageLowError: If what it learns could not be saved.
        :raises QueueFullError: If there is no room.
        :raises DrainingError: If the server is shutting down.
        """
        with self._lock:
            self._check_room()
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

        :param job_id: Or ``LATEST``.
        :raises NotFoundError: If it never existed or has been forgotten.
        """
        if job_id == LATEST:
            return self._get_latest()
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFoundError(f"there is no training job '{printable(job_id)}'; GET /training/jobs lists them.")
        return job

    def _get_latest(self) -> Job:
        jobs = list(self._jobs.values())  # copied in one step, so that nobody waits for the lock
        if not jobs:
            raise NotFoundError("there is no training job yet; POST /train starts one.")
        return jobs[-1]

    def list_jobs(
        self, status: JobStatus | None = None, after: str | None = None, limit: int | None = None
    ) -> list[Job]:
        """List jobs, oldest first.

        :param status: Only those that are there.
        :param after: Id of a job; only those that were submitted later.
        :param limit: At most so many.
        :raises NotFoundError: If the job ``after`` never existed or has been forgotten.
        """
        with self._lock:
            jobs = iter(list(self._jobs.values()))
        if after is not None:
            last = self.get(after)
            jobs = islice(dropwhile(lambda job: job is not last, jobs), 1, None)
        return list(islice((job for job in jobs if status in (None, job.status)), limit))

    def count_active(self) -> int:
        """Count the queued and running jobs."""
        with self._lock:
            return len(self._list_active())

    @property
    def max_running(self) -> int:
        """Slots there are."""
        return self._max_running

    def find_active(self, model_name: str) -> Job | None:
        """Return the active job that will save under a name, if there is one."""
        with self._lock:
            return next((job for job in self._list_active() if _same_name(job, model_name)), None)

    def delete_model(self, model_name: str) -> None:
        """Delete a model, unless a job is about to replace it.

        :raises ConflictError: If an active job will save under its name.
        :raises NotFoundError: If there is no such model.
        """
        with self._lock:
            self._check_name_is_free(model_name, self._list_active())
            self._store.delete(model_name)

    @contextmanager
    def reserve_name(self, model_name: str) -> Iterator[None]:
        """Keep a name from jobs, and from being deleted, while something else is saved under it.

        :raises ConflictError: If an active job or anybody else will save under it, or another model's name differs by
            case alone.
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
        """Take no new jobs, stop the active ones and wait, not forever, for them to save; give the rest up."""
        with self._lock:
            self._draining = True
            active = self._list_active()
        for job in active:
            try:
                job.stop()
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
            run = self._executor.start(job.plan.make_task(run_dir), job)
            while not run.wait(_WATCH_SECONDS):
                self._give_up_if_silent(job)
                if job.finished.is_set():
                    run.kill()
                    return
            content = run.get_content()
            outcome = job.end_training()
            name = self._choose_name(job, outcome)
            job.keep_policy(name, self._store.publish(name, content))
        except (TaskFailedError, ServiceError) as error:
            logger.warning("job %s failed: %s", job.job_id, error)
            job.finish(JobStatus.FAILED, str(error))
        except BaseException as error:  # the job boundary: whatever an environment throws ends its job alone
            logger.warning("job %s failed", job.job_id, exc_info=True)
            job.finish(JobStatus.FAILED, describe_error(error))
        else:
            job.finish(outcome)

    def _give_up_if_silent(self, job: Job) -> None:
        patience = self._stall_seconds
        if job.is_stopping:
            patience = min(patience, _STOP_PATIENCE_SECONDS)
        if job.finished.is_set() or job.silent_seconds < patience:
            return
        silence = f"no simulator step and no update for {patience:g} s"
        if job.is_stopping:
            job.give_up(JobStatus.STOPPED, f"stalled: {silence} after the stop, so nothing could be saved.")
        else:
            job.give_up(
                JobStatus.FAILED,
                f"stalled: {silence}, where GRPO_STALL_SECONDS allows no more; fix the environment "
                f"'{job.config.env_name}', or raise the setting if a step or an update may take that long.",
            )

    def _choose_name(self, job: Job, outcome: JobStatus) -> str:
        """Pick the job's own name; a stopped job leaves a model of that name alone and takes another."""
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
            raise ConflictError(f"a file is being uploaded as '{printable(model_name)}'; try again when it is there.")
        for job in active:
            if _same_name(job, model_name):
                raise ConflictError(
                    f"job {job.job_id} is {job.status} and will save as '{job.config.model_name}'; pick another name, "
                    f"or stop it with POST /training/{job.job_id}/stop."
                )

    def _forget_oldest(self) -> None:
        while len(self._ended) > self._max_kept:
            del self._jobs[self._ended.popleft()]


def _same_name(job: Job, model_name: str) -> bool:
    return job.config.model_name.casefold() == model_name.casefold()
