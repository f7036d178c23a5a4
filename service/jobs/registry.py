"""The registry, which takes training jobs in and runs them: names, places in the queue, shutdown."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from grpo_core.options.rewards import Reward
from service.errors import ConflictError, DrainingError, QueueFullError, ServiceError, printable
from service.jobs.job import Job, JobServices
from service.jobs.lineage import is_own_model
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.database import JournalError
from service.jobs.records.record import PastJob
from service.jobs.records.recorder import JobRecorder
from service.jobs.runner import JobRunner
from service.jobs.table import JobTable, make_not_found
from service.jobs.totals import JobTotals
from service.models.store import ModelStore
from service.schemas.jobs import JobStatus
from service.schemas.training import TrainConfig
from service.training.planning.plan import TrainingPlan

logger = logging.getLogger("grpo.service")

# Checkpoints named in a line of the log.
_MAX_NAMED = 3


class JobRegistry(JobTable):
    """Takes jobs in, and runs them. Safe to use from any thread.

    :param store: Where trained policies are saved.
    :param runner: Runs the jobs; the registry closes it.
    :param recorder: Writes the jobs down; the registry closes it.
    :param max_queued: Largest number of waiting jobs.
    :param max_kept: Number of ended jobs to remember; those that ended first are forgotten first.
    :param max_kept_days: Age from which ended jobs are forgotten.
    :param checkpoints: Where the jobs' checkpoints are kept.
    """

    def __init__(
        self,
        store: ModelStore,
        runner: JobRunner,
        recorder: JobRecorder,
        checkpoints: CheckpointFolder,
        *,
        max_queued: int,
        max_kept: int,
        max_kept_days: float = math.inf,
    ) -> None:
        super().__init__(recorder, checkpoints, max_kept, max_kept_days)
        self.totals = JobTotals()
        self._services = JobServices(self.totals, self.recorder.end, checkpoints)
        self._store, self._runner = store, runner
        self._max_active = runner.max_running + max_queued
        # Held while a job is written down, so that jobs are listed in the order of the file.
        self._submitting = threading.Lock()
        # The table's lock guards everything below, and makes "check the name, then take it" one step.
        self._fill(map(self._revive, self.recorder.journal.list_jobs()))
        # Jobs that went on without their server and have not been found again yet.
        self._unfollowed = list(self._active)
        if self.recorder.knows_all_jobs:
            checkpoints.remove_orphans(self._jobs)
        elif self.recorder.is_kept and (orphans := checkpoints.list_orphans(self._jobs)):
            what = "1 checkpoint is of a job" if len(orphans) == 1 else f"{len(orphans)} checkpoints are of jobs"
            logger.warning(
                "%s that the jobs' file does not have (%s); the next start with this file removes them; put the "
                "right file back first if you have it",
                *(what, ", ".join(orphans[:_MAX_NAMED])),
            )
        # Names reserved by uploads and deletions, folded.
        self._reserved: set[str] = set()
        # Held during a deletion, so that a second one of the same model waits and finds none.
        self._deleting = threading.Lock()
        self._draining = False

    def _revive(self, past: PastJob) -> Job | PastJob:
        """Rebuild an active job as one that goes on."""
        if past.status.is_final:
            return past
        with suppress(JournalError, LookupError, TypeError, ValueError):
            record = self.recorder.journal.load(past.job_id)
            if record is not None:
                job = Job.revive(record, self._services)
                self.recorder.follow(job, record.history.stride)
                return job
        logger.warning("job %s cannot be read, so that nobody can follow it", past.job_id)
        self.recorder.interrupt(past.job_id)
        return PastJob(past.summary.model_copy(update={"status": JobStatus.FAILED}))

    def rejoin(self, find_rewards: Callable[[TrainConfig], Reward | None]) -> None:
        """Follow the jobs that went on without their server.

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

        :raises ConflictError: If an active job or an upload will save under the same name, or nothing can be.
        :raises QueueFullError: If too many jobs are active.
        :raises DrainingError: If the server is shutting down.
        """
        job = Job(plan, self._services)
        with self._submitting:
            with self._reserve(job.config.model_name):
                remedy = "pick another model_name, or send replace=true"
                if (warning := self._check_replacement(job, remedy)) is not None:
                    job.warn(warning)
                with self._lock:
                    self._check_queue()
                    self._active.append(job)
            # Before the job can be seen: a job that a client has seen survives whatever happens.
            self._write_down(job)
            with self._lock:
                self._jobs[job.job_id] = job
            self._queue(job)
            self._forget_old()
        return job

    def check_checkpoint(self, job: Job) -> None:
        """Look after it, unless a resume saves the finished policy that is still in memory."""
        if self._runner.unsaved.get(job.job_id) is None:
            super().check_checkpoint(job)

    def resume(self, job: Job, reward: Reward | None) -> Job:
        """Queue a job again that was stopped or failed; it goes on from its checkpoint, or else begins again.

        :param job: What ``get`` returned.
        :param reward: The reward functions that its configuration names.
        :return: What ``get`` returns from now on.
        :raises NotFoundError: If it has been forgotten in the meantime.
        :raises ConflictError: If it has not ended, or has completed, or another job or upload uses its model's name.
        :raises QueueFullError: If too many jobs are active.
        :raises DrainingError: If the server is shutting down.
        """
        # Before any lock is held: it is read to its end, and new jobs need not wait for that.
        checkpoint = self.checkpoints.describe(job.job_id, job.config)
        with self._submitting, self._labelling:  # or a deletion could remove the new record
            job = self.get(job.job_id)  # another resume may have come first
            with self._reserve(job.config.model_name, but_for=job):
                warning = None
                if not is_own_model(self._store, job):
                    name = job.config.model_name
                    remedy = f"download it and DELETE /models/{name}, or start a new job with another model_name"
                    warning = self._check_replacement(job, remedy)
                with self._lock:
                    if job.job_id not in self._jobs:
                        raise make_not_found(job.job_id)
                    self._check_queue()
                    job = job.resume(reward, self._services, checkpoint, self._runner.unsaved.get(job.job_id))
                    if warning is not None:
                        job.warn(warning)
                    self._drop_ended(job.job_id)
                    self._jobs[job.job_id] = job  # in the place of its line, or it could be deleted meanwhile
                    self._active.append(job)
            self._write_down(job)
            self._queue(job)
        return job

    def _write_down(self, job: Job) -> None:
        self.recorder.begin(job)
        if (problem := self.recorder.problem) is not None:
            job.warn(f"this job may be lost if the server is killed: {problem}.")

    def _queue(self, job: Job) -> None:
        job.log("queued")
        self._runner.submit(job)

    def _check_replacement(self, job: Job, remedy: str) -> str | None:
        """Return a warning if a job's policy will replace a model; refuse a job that must not, or cannot be saved.

        :param remedy: What the client of one that must not can do.
        """
        name = job.config.model_name
        self._store.folder.check_name(name)
        if not self._store.exists(name):
            return None
        if not job.config.replace:
            raise ConflictError(f"a model '{name}' already exists; {remedy}.")
        return f"there is a model '{name}' already; this job's policy will take its place."

    def check_can_submit(self, model_name: str | None = None) -> None:
        """Check that another job could be queued, before it is planned.

        :param model_name: The name that it would save under, if known.
        :raises ConflictError: If an active job or an upload will save under the same name.
        :raises NotReadyError: If there is no folder to save its policy in.
        :raises StorageLowError: If the disk is too full to save its policy, or the folder has its fill of models and it
            would replace none.
        :raises QueueFullError: If too many jobs are active.
        :raises DrainingError: If the server is shutting down.
        """
        with self._lock:
            active = self._check_queue()
            if model_name is not None:
                self._check_name_is_free(model_name, active)
        self._store.folder.check_can_save(name=model_name or "")

    def check_queue(self, n_planned: int) -> None:
        """Check that there is a place for another job, without a look at the disk.

        :param n_planned: Requests that are being planned, and may soon be jobs.
        :raises QueueFullError: If too many jobs are active.
        :raises DrainingError: If the server is shutting down.
        """
        with self._lock:
            self._check_queue(n_planned)

    def _check_queue(self, n_planned: int = 0) -> list[Job]:
        active = self._update_active()
        if self._draining:
            raise DrainingError("the server is shutting down; submit the job again when it is back.")
        if len(active) + n_planned >= self._max_active:
            planned = f", and {n_planned} are being planned" if n_planned else ""
            raise QueueFullError(f"{len(active)} jobs are running or queued already{planned}; try again later.")
        return active

    @property
    def max_running(self) -> int:
        """Largest number of running jobs."""
        return self._runner.max_running

    def find_active(self, model_name: str) -> Job | None:
        """Return the active job that will save under a name; None if there is none."""
        with self._lock:
            return next((job for job in self._update_active() if _same_name(job, model_name)), None)

    def is_begun_from(self, sha256: str) -> bool:
        """Tell whether an active job begins from a model's file."""
        with self._lock:
            return any(job.plan.init_sha256 == sha256 for job in self._update_active())

    def delete_model(self, model_name: str, is_surplus: Callable[[], bool] = lambda: True) -> bool:
        """Delete a model, unless an active job will replace it.

        :param is_surplus: Asked once no other model can take its place; False, or an error, leaves it.
        :return: Whether it is gone.
        :raises ConflictError: If an active job will save under its name.
        :raises NotFoundError: If there is no such model.
        """
        # The versions' lock, so that no alias is pointed at it meanwhile.
        with self._deleting, self._reserve(model_name), self._store.folder.versions.lock(model_name):
            if not is_surplus():
                return False
            self._store.delete(model_name)
            return True

    @contextmanager
    def reserve_name(self, model_name: str) -> Iterator[None]:
        """Reserve a name while an upload is saved under it: no job may take it, and its model cannot be deleted.

        :raises ConflictError: If an active job or another upload will save under it, another model's name differs
            only by case, or a folder is in its place.
        """
        with self._reserve(model_name):
            self._store.folder.check_name(model_name)
            yield

    @contextmanager
    def _reserve(self, model_name: str, but_for: Job | None = None) -> Iterator[None]:
        """Reserve a name during a look at the disk or a write to it, which may be slow.

        :param but_for: A job that may have it.
        :raises ConflictError: If it is another's.
        """
        with self._lock:
            self._check_name_is_free(model_name, [job for job in self._update_active() if job is not but_for])
            self._reserved.add(model_name.casefold())
        try:
            yield
        finally:
            with self._lock:
                self._reserved.remove(model_name.casefold())

    def stop(self, job: Job) -> None:
        """Stop a job as ``Job.stop`` does; where it outlives the server, the stop is written down first.

        :param job: What ``get`` returned.
        :raises ConflictError: If it has already finished training.
        """
        job.stop()
        if self._runner.jobs_outlive_server:
            self.recorder.write(job)

    def _forget(self, job_id: str) -> None:
        super()._forget(job_id)
        self._runner.unsaved.forget(job_id)

    def stop_all(self) -> None:
        """Refuse new jobs, and stop the active ones, which save what they have learned."""
        with self._lock:
            if self._draining:
                return
            self._draining = True
            active = self._list_followed()
        for job in reversed(active):  # those that wait first, or one would begin in a place that comes free
            with suppress(ConflictError):  # it has finished training in the meantime
                job.stop("shutdown", skips_evaluation=True)

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
                late = f"it did not end within {grace_seconds:g} s of the server's shutdown"
                job.finish(JobStatus.STOPPED, f"{late}; {job.describe_resume()}", server_end="shutdown")
        n_interrupted = sum(job.state.ended_by == "shutdown" for job in active)
        if n_interrupted:
            logger.warning(
                "the shutdown stopped %d job(s); with the next server, python -m grpo_client resume interrupted lets "
                "them go on",
                n_interrupted,
            )
        self._runner.close()
        self.recorder.close()

    def _list_followed(self) -> list[Job]:
        """List the active jobs except those that were not found again yet, which are left to the next server."""
        return [job for job in self._update_active() if job not in self._unfollowed]

    def _note_found(self, job: Job) -> bool:
        """Note that a job was found again or is gone; return False if the server is shutting down and leaves it."""
        with self._lock:
            if self._draining:
                return False
            self._unfollowed.remove(job)
            is_last = not self._unfollowed
        if is_last:
            self._runner.end_left()
        return True

    def _check_name_is_free(self, model_name: str, active: Iterable[Job]) -> None:
        if model_name.casefold() in self._reserved:
            detail = f"model '{printable(model_name)}' is being saved or deleted; try again in a moment."
            raise ConflictError(detail, is_passing=True)
        for job in active:
            if _same_name(job, model_name):
                raise ConflictError(
                    f"job {job.job_id} is {job.status} and will save as '{job.config.model_name}'; pick another name, "
                    f"or stop it with POST /training/{job.job_id}/stop."
                )


def _same_name(job: Job, model_name: str) -> bool:
    return job.config.model_name.casefold() == model_name.casefold()
