"""Training jobs: their states, and the registry that remembers them and has them run."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import dropwhile, islice
from typing import TYPE_CHECKING

from service.errors import (
    ConflictError,
    DrainingError,
    NotFoundError,
    QueueFullError,
    SlotsLostError,
    describe_error,
    printable,
)
from service.executors import Executor, Run, TaskFailedError
from service.model_store import ModelStore
from service.schemas import JobStatus, JobSummary, TrainingStatus

if TYPE_CHECKING:  # it imports torch, which takes seconds that the server's start can do without
    from service.configuration import TrainingPlan

logger = logging.getLogger("grpo.service")

_ZERO_STD_KEY = "rollout/zero_std_group_fraction"
# Less than this without a signal happens by chance, and on the way to a rare reward.
_SILENT_ROLLOUTS_TO_WARN = 10
_SILENT_STEPS_TO_WARN = 2000
_POLL_SECONDS = 0.02
# How often a running job is looked after.
_WATCH_SECONDS = 0.25
# A stopped training ends at its next step or minibatch; one that shows no sign of either for this long hangs.
_STOP_PATIENCE_SECONDS = 5.0


class Job:
    """One training job. Safe to read and to stop from any thread; only its worker reports progress.

    :param plan: What it trains with.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        self.job_id = str(uuid.uuid4())
        self.plan = plan
        self.config = plan.config
        self.finished = threading.Event()
        self.can_be_killed = False
        # Guards everything below.
        self._lock = threading.Lock()
        self._status = JobStatus.QUEUED
        # How it will end, once that is settled: a stop settles it before the training has ended.
        self._outcome: JobStatus | None = None
        self._stop_training: Callable[[], None] | None = None
        self._last_sign = time.monotonic()
        self._current_timesteps = 0
        self._metrics: dict[str, float] = {}
        self._n_silent_rollouts = 0
        self._last_signal_timesteps = 0
        self._error_message: str | None = None
        self._model_name: str | None = None
        self._sha256: str | None = None
        self._created_at = datetime.now(UTC)
        self._start_time: datetime | None = None
        self._end_time: datetime | None = None

    @property
    def status(self) -> JobStatus:
        """Where it is."""
        return self._status

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._outcome is JobStatus.STOPPED

    @property
    def silent_seconds(self) -> float:
        """Time since it was started, told to stop, or last took a step or an update."""
        return time.monotonic() - self._last_sign

    def summarize(self) -> JobSummary:
        """Describe it in a line."""
        with self._lock:
            return JobSummary(job_id=self.job_id, status=self._status, progress=self._progress)

    def describe(self) -> TrainingStatus:
        """Describe it in full."""
        with self._lock:
            return TrainingStatus(
                job_id=self.job_id,
                status=self._status,
                progress=self._progress,
                current_timesteps=self._current_timesteps,
                total_timesteps=self.config.total_timesteps,
                created_at=self._created_at,
                start_time=self._start_time,
                end_time=self._end_time,
                error_message=self._error_message,
                metrics=self._metrics,
                warnings=self._list_warnings(),
                model_name=self._model_name,
                sha256=self._sha256,
                config=self.config,
            )

    def _list_warnings(self) -> list[str]:
        n_steps = self._current_timesteps - self._last_signal_timesteps
        if self._n_silent_rollouts < _SILENT_ROLLOUTS_TO_WARN or n_steps < _SILENT_STEPS_TO_WARN:
            return list(self.plan.warnings)
        return [
            *self.plan.warnings,
            f"no signal in the last {self._n_silent_rollouts} rollouts ({n_steps} steps): within every group all "
            "branches earned the same. A rare reward may still be found; else let the reward tell branches apart, "
            "lengthen horizon, or raise group_size.",
        ]

    def start(self) -> bool:
        """Turn from queued to running; False if it was stopped before its turn came."""
        with self._lock:
            if self._status is not JobStatus.QUEUED:
                return False
            self._status, self._start_time = JobStatus.RUNNING, datetime.now(UTC)
            self._last_sign = time.monotonic()
            return True

    def stop(self) -> None:
        """End it: at once if it is queued, at the next simulator step or minibatch if it runs.

        :raises ConflictError: If it has finished training already.
        """
        with self._lock:
            if self._outcome in (JobStatus.COMPLETED, JobStatus.FAILED):
                past = f"has {self._outcome}" if self._status.is_final else "has finished training and is being saved"
                raise ConflictError(f"job {self.job_id} {past} already; only training jobs can be stopped.")
            if self._outcome is None:
                self._outcome, self._last_sign = JobStatus.STOPPED, time.monotonic()
            if self._status is JobStatus.QUEUED:
                self._enter(JobStatus.STOPPED)
            elif self._stop_training is not None:
                self._stop_training()

    def end_training(self) -> JobStatus:
        """Decide, once training is over, whether it completed or was stopped; later stops are refused."""
        with self._lock:
            self._outcome = self._outcome or JobStatus.COMPLETED
            return self._outcome

    def finish(self, status: JobStatus, error_message: str | None = None) -> None:
        """Enter a final status; the first one stays."""
        with self._lock:
            if not self._status.is_final:
                self._outcome, self._error_message = status, error_message
                self._enter(status)

    def give_up(self, status: JobStatus, error_message: str) -> None:
        """Enter a final status while the training hangs; should it ever go on, it ends at once."""
        with self._lock:
            if self._stop_training is not None:
                self._stop_training()
        self.finish(status, error_message)

    def _enter(self, final_status: JobStatus) -> None:
        self._status, self._end_time = final_status, datetime.now(UTC)
        self._stop_training = None
        self.finished.set()

    async def wait_finished(self, timeout_seconds: float) -> bool:
        """Wait, without a thread of its own, until it has ended; return whether it has."""
        deadline = time.monotonic() + timeout_seconds
        while not self.finished.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        return self.finished.is_set()

    def keep_policy(self, model_name: str, sha256: str) -> None:
        """Note where the policy was saved."""
        with self._lock:
            self._model_name, self._sha256 = model_name, sha256

    def attach(self, stop: Callable[[], None]) -> None:
        """Take the function that ends the training; see ``Progress``."""
        with self._lock:
            self._stop_training = stop
            if self._outcome is not None:
                stop()

    def advance(self, current_timesteps: int) -> None:
        """Note the simulator steps taken; see ``Progress``."""
        with self._lock:
            if not self._status.is_final:  # a thread that was given up on may go on
                self._current_timesteps, self._last_sign = current_timesteps, time.monotonic()

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Note the latest metrics; see ``Progress``."""
        with self._lock:
            if self._status.is_final:
                return
            self._metrics = {**self._metrics, **metrics}
            if _ZERO_STD_KEY not in metrics:  # these are the last update's, not another rollout's
                return
            if metrics[_ZERO_STD_KEY] == 1.0:
                self._n_silent_rollouts += 1
            else:
                self._n_silent_rollouts, self._last_signal_timesteps = 0, self._current_timesteps

    @property
    def _progress(self) -> float:
        if self._status is JobStatus.COMPLETED:
            return 1.0
        return min(1.0, self._current_timesteps / self.config.total_timesteps)


class JobRegistry:
    """All jobs, by id, and the slots that they run in.

    :param store: Where trained policies go.
    :param executor: What runs them; the registry closes it.
    :param max_running: Jobs training at the same time.
    :param max_queued: Jobs waiting for their turn.
    :param max_kept: Finished jobs whose status stays available; the ones that ended first are forgotten first.
    :param stall_seconds: A job that shows no sign of life for this long has failed.
    """

    def __init__(
        self,
        store: ModelStore,
        executor: Executor,
        max_running: int,
        max_queued: int,
        max_kept: int,
        stall_seconds: float,
    ) -> None:
        self._store = store
        self._executor = executor
        self._max_running = max_running
        self._max_active = max_running + max_queued
        self._max_kept = max_kept
        self._stall_seconds = stall_seconds
        # A slot is a thread that starts a training and looks after it.
        self._slots = ThreadPoolExecutor(max_running, thread_name_prefix="grpo-job")
        # Guards everything below and makes "check the name, then take it" one step.
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        # Those that had not ended when somebody last looked, and the ids of the others: nothing ever goes through
        # all jobs but a list of them.
        self._active: list[Job] = []
        self._ended: deque[str] = deque()
        # Jobs that were given up on, but whose training holds its slot: it cannot be killed.
        self._lost: set[str] = set()
        self._draining = False

    def warm_up(self) -> None:
        """Get ready, so that the first job starts at once."""
        self._executor.warm_up()

    def submit(self, plan: TrainingPlan) -> Job:
        """Queue a job.

        :raises InvalidRequestError: If it cannot be run by the executor.
        :raises ConflictError: If an active job will save under the same name.
        :raises QueueFullError: If there is no room.
        :raises SlotsLostError: If no job will ever run again.
        :raises DrainingError: If the server is shutting down.
        """
        job = Job(plan._replace(warnings=(*plan.warnings, *self._executor.check(plan.make_task()))))
        with self._lock:
            active = self._check_room()
            self._check_name_is_free(plan.config.model_name, active)
            self._store.check_no_case_twin(plan.config.model_name)
            self._slots.submit(self._run, job)
            self._jobs[job.job_id] = job
            self._active.append(job)
            self._forget_oldest()
        return job

    def check_room(self) -> None:
        """Refuse what ``submit`` would refuse whatever the job is, before anybody takes the trouble to plan it.

        :raises QueueFullError: If there is no room.
        :raises SlotsLostError: If no job will ever run again.
        :raises DrainingError: If the server is shutting down.
        """
        with self._lock:
            self._check_room()

    def _check_room(self) -> list[Job]:
        active = self._list_active()
        if self._draining:
            raise DrainingError("the server is shutting down; submit the job again when it is back.")
        if len(self._lost) >= self._max_running:
            raise SlotsLostError(
                f"all {self._max_running} job slots are held by stalled jobs, and a thread cannot be killed; restart "
                "the server, with GRPO_EXECUTOR=process if this is to end by itself next time."
            )
        if len(active) >= self._max_active:
            raise QueueFullError(f"{len(active)} jobs are running or queued already; try again later.")
        return active

    def get(self, job_id: str) -> Job:
        """Return a job.

        :raises NotFoundError: If it never existed or has been forgotten.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFoundError(f"there is no training job '{printable(job_id)}'; GET /training/jobs lists them.")
        return job

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
    def n_lost_slots(self) -> int:
        """Slots held by stalled jobs, which no other job can have."""
        return len(self._lost)

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

    def shutdown(self, grace_seconds: float) -> None:
        """Take no new jobs, stop the active ones and wait, not forever, for them to save; kill the rest if possible."""
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
            if not job.finished.wait(max(0.0, deadline - time.monotonic())) and job.can_be_killed:
                job.finish(JobStatus.STOPPED, f"it did not end within {grace_seconds:g} s of the server's shutdown.")
        self._slots.shutdown(wait=False, cancel_futures=True)
        self._executor.close()

    def _run(self, job: Job) -> None:
        if not job.start():
            return
        try:
            run = self._executor.start(job.plan.make_task(), job)
            job.can_be_killed = run.can_kill
            while not run.wait(_WATCH_SECONDS):
                self._look_after(job, run)
            content = run.get_content()
            if job.finished.is_set():  # given up on
                return
            outcome = job.end_training()
            name = self._choose_name(job, outcome)
            job.keep_policy(name, self._store.publish(name, content))
        except TaskFailedError as error:
            logger.warning("job %s failed: %s", job.job_id, error)
            job.finish(JobStatus.FAILED, str(error))
        except BaseException as error:  # the job boundary: whatever an environment throws ends its job alone
            logger.warning("job %s failed", job.job_id, exc_info=True)
            job.finish(JobStatus.FAILED, describe_error(error))
        else:
            job.finish(outcome)
        finally:
            with self._lock:
                self._lost.discard(job.job_id)

    def _look_after(self, job: Job, run: Run) -> None:
        """Give a job up that shows no sign of life."""
        patience = self._stall_seconds
        if job.is_stopping and run.can_kill:
            patience = min(patience, _STOP_PATIENCE_SECONDS)
        if job.finished.is_set() or job.silent_seconds < patience:
            return
        silence = f"no simulator step and no update for {patience:g} s"
        if job.is_stopping:
            job.give_up(JobStatus.STOPPED, f"stalled: {silence} after the stop, so nothing could be saved.")
        else:
            job.give_up(
                JobStatus.FAILED,
                f"stalled: {silence}, where GRPO_STALL_SECONDS allows no more; mend the environment "
                f"'{job.config.env_name}', or raise the setting if a step or an update may take that long.",
            )
        if run.can_kill:
            run.kill()
        else:
            with self._lock:
                self._lost.add(job.job_id)

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
            else:
                still_active.append(job)
        self._active = still_active
        return still_active

    def _check_name_is_free(self, model_name: str, active: Iterable[Job]) -> None:
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
