"""Training jobs: their states, the registry that remembers them, and the threads they run in."""

import asyncio
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from service.configuration import TrainingPlan
from service.errors import ConflictError, DrainingError, NotFoundError, QueueFullError, printable
from service.model_store import ModelStore
from service.schemas import JobStatus, JobSummary, TrainingStatus
from service.training import train_policy

logger = logging.getLogger("grpo.service")

_ZERO_STD_KEY = "rollout/zero_std_group_fraction"
# Less than this without a signal happens by chance, and on the way to a rare reward.
_SILENT_ROLLOUTS_TO_WARN = 10
_SILENT_STEPS_TO_WARN = 2000
_POLL_SECONDS = 0.02
_MAX_ERROR_CHARS = 500
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][\w.@+~-]+){2,}")


class Job:
    """One training job. Safe to read and to stop from any thread; only its worker reports progress.

    :param plan: What it trains with.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        self.job_id = str(uuid.uuid4())
        self.plan = plan
        self.config = plan.config
        self.finished = threading.Event()
        # Guards everything below.
        self._lock = threading.Lock()
        self._status = JobStatus.QUEUED
        # How it will end, once that is settled: a stop settles it before the training has ended.
        self._outcome: JobStatus | None = None
        self._stop_training: Callable[[], None] | None = None
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
            return True

    def stop(self) -> None:
        """End it: at once if it is queued, at the next simulator step or minibatch if it runs.

        :raises ConflictError: If it has finished training already.
        """
        with self._lock:
            if self._outcome in (JobStatus.COMPLETED, JobStatus.FAILED):
                past = f"has {self._outcome}" if self._status.is_final else "has finished training and is being saved"
                raise ConflictError(f"job {self.job_id} {past} already; only training jobs can be stopped.")
            self._outcome = JobStatus.STOPPED
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
        """Take the function that ends the training; see ``TrainingProgress``."""
        with self._lock:
            self._stop_training = stop
            if self._outcome is JobStatus.STOPPED:
                stop()

    def advance(self, current_timesteps: int) -> None:
        """Note the simulator steps taken; see ``TrainingProgress``."""
        with self._lock:
            self._current_timesteps = current_timesteps

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Note the latest metrics; see ``TrainingProgress``."""
        with self._lock:
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
    """All jobs, by id, and the threads that run them.

    :param store: Where trained policies go.
    :param max_running: Jobs training at the same time.
    :param max_queued: Jobs waiting for their turn.
    :param max_kept: Finished jobs whose status stays available; the oldest are forgotten first.
    """

    def __init__(self, store: ModelStore, max_running: int, max_queued: int, max_kept: int) -> None:
        self._store = store
        self._max_active = max_running + max_queued
        self._max_kept = max_kept
        self._executor = ThreadPoolExecutor(max_running, thread_name_prefix="grpo-job")
        # Guards the two below and makes "check the name, then take it" one step.
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._draining = False

    def submit(self, plan: TrainingPlan) -> Job:
        """Queue a job.

        :raises ConflictError: If an active job will save under the same name.
        :raises QueueFullError: If there is no room.
        :raises DrainingError: If the server is shutting down.
        """
        job = Job(plan)
        with self._lock:
            active = self._check_room()
            self._check_name_is_free(plan.config.model_name, active)
            self._store.check_no_case_twin(plan.config.model_name)
            self._executor.submit(self._run, job)
            self._jobs[job.job_id] = job
            self._forget_oldest()
        return job

    def check_room(self) -> None:
        """Refuse what ``submit`` would refuse whatever the job is, before anybody takes the trouble to plan it.

        :raises QueueFullError: If there is no room.
        :raises DrainingError: If the server is shutting down.
        """
        with self._lock:
            self._check_room()

    def _check_room(self) -> list[Job]:
        active = self._list_active()
        if self._draining:
            raise DrainingError("the server is shutting down; submit the job again when it is back.")
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

    def list_jobs(self) -> list[Job]:
        """List all jobs, oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def count_active(self) -> int:
        """Count the queued and running jobs."""
        with self._lock:
            return len(self._list_active())

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
        """Take no new jobs, stop the active ones and wait, not forever, for them to save."""
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
            job.finished.wait(max(0.0, deadline - time.monotonic()))
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Job) -> None:
        if not job.start():
            return
        try:
            content = train_policy(job.config, job.plan.reward, job)
            outcome = job.end_training()
            name = self._choose_name(job, outcome)
            job.keep_policy(name, self._store.publish(name, content))
        except BaseException as error:  # the job boundary: whatever an environment throws ends its job alone
            logger.warning("job %s failed", job.job_id, exc_info=True)
            job.finish(JobStatus.FAILED, _describe_error(error))
        else:
            job.finish(outcome)

    def _choose_name(self, job: Job, outcome: JobStatus) -> str:
        """Pick the job's own name; a stopped job leaves a model of that name alone and takes another."""
        name = job.config.model_name
        if outcome is JobStatus.COMPLETED or not self._store.exists(name):
            return name
        return f"{name[:80]}-stopped-{job.job_id[:8]}"

    def _list_active(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.status.is_final]

    def _check_name_is_free(self, model_name: str, active: Iterable[Job]) -> None:
        for job in active:
            if _same_name(job, model_name):
                raise ConflictError(
                    f"job {job.job_id} is {job.status} and will save as '{job.config.model_name}'; pick another name, "
                    f"or stop it with POST /training/{job.job_id}/stop."
                )

    def _forget_oldest(self) -> None:
        finished = [job.job_id for job in self._jobs.values() if job.status.is_final]
        for job_id in finished[: max(0, len(finished) - self._max_kept)]:
            del self._jobs[job_id]


def _same_name(job: Job, model_name: str) -> bool:
    return job.config.model_name.casefold() == model_name.casefold()


def _describe_error(error: BaseException) -> str:
    """Name the error for a client, without the server's paths."""
    try:
        # An OSError's text ends in the path; what went wrong is its strerror.
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    except BaseException:  # foreign code as well
        text = "(it cannot describe itself)"
    return printable(f"{type(error).__name__}: {_PATH.sub('<path>', text)}", _MAX_ERROR_CHARS)
