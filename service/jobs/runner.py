"""The runner, which trains jobs in threads of the server that watch their workers, and publishes what they end with."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path

from grpo_core.process import count_cores
from service.context import JOB_ID
from service.errors import ConflictError, NotFoundError, ServiceError, StorageError, describe_error
from service.jobs.description import SHORT_ID_CHARS
from service.jobs.job import Job
from service.jobs.lineage import holds_content, is_own_model
from service.jobs.records.record import INTERRUPTED
from service.jobs.records.recorder import JobRecorder
from service.jobs.records.unsaved import UnsavedModel, UnsavedModels
from service.models.store import ModelStore
from service.restart_pause import RestartPause
from service.schemas.fields import MAX_NAME_STEM_CHARS
from service.schemas.jobs import JobStatus
from service.training.order import MEMORY_REMEDY, UNEVALUATED, TrainingOrder
from service.workers.executor import Executor
from service.workers.task import Keeper, LastingRun, Run, TaskDrainedError, TaskFailedError, WorkerLostError

logger = logging.getLogger("grpo.service")

# How often a running job is checked for stalls.
_WATCH_SECONDS = 0.25
# How late a stop may end the pause before a worker is replaced.
_POLL_SECONDS = 0.05
# A stopped training ends at its next step or minibatch; without either for this long, it hangs.
_STOP_PATIENCE_SECONDS = 5.0


class _UnsavedError(Exception):
    """The disk does not take a finished model, which is kept in memory for a resume."""


class JobRunner:
    """Runs jobs, as many at a time as it has threads. Safe to use from any thread.

    :param store: Where trained policies are saved.
    :param executor: Runs the trainings; it is not closed here.
    :param recorder: Writes the jobs down; it is not closed here.
    :param max_running: Largest number of running jobs.
    :param stall_seconds: A job without a step or an update for this long fails.
    :param tensorboard_dir: Folder for TensorBoard logs, created when a job first writes one.
    :param n_threads_per_job: Threads that may step a job's simulators; None gives each job its share of the cores.
    :param keeper: The executor, where its jobs outlive the server; None if they end with it.
    """

    def __init__(
        self,
        store: ModelStore,
        executor: Executor,
        recorder: JobRecorder,
        *,
        max_running: int,
        stall_seconds: float,
        tensorboard_dir: Path = Path("runs"),
        n_threads_per_job: int | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._store, self._recorder = store, recorder
        self._executor, self._keeper = executor, keeper
        self._stall_seconds = stall_seconds
        #: Largest number of running jobs.
        self.max_running = max_running
        self._tensorboard_dir = tensorboard_dir.absolute()
        self._n_threads_per_job = n_threads_per_job or max(1, count_cores() // max_running)
        #: Finished models that the disk does not take.
        self.unsaved = UnsavedModels()
        # Each starts a training and watches it.
        self._threads = ThreadPoolExecutor(max_running, thread_name_prefix="grpo-job")

    @property
    def jobs_outlive_server(self) -> bool:
        """Whether jobs go on when their server ends."""
        return self._keeper is not None

    def submit(self, job: Job) -> None:
        """Run a queued job as soon as a thread is free."""
        # In the request's context, so that the job's log lines carry the request's id.
        with suppress(RuntimeError):  # the shutdown that came meanwhile has stopped the job
            self._threads.submit(copy_context().run, self._run, job)

    def rejoin(self, jobs: Sequence[Job], note_found: Callable[[Job], bool]) -> None:
        """Follow jobs that went on without their server, all at once even if they are more than may run.

        :param note_found: Called once the job's task is found, or known to be gone; returns whether this server goes on
            with it, and does not end.
        """
        n_more = max(0, len(jobs) - self.max_running)
        for job in jobs[:n_more]:
            threading.Thread(target=self._rejoin, args=(job, note_found), name="grpo-job", daemon=True).start()
        for job in jobs[n_more:]:
            self._threads.submit(self._rejoin, job, note_found)

    def end_left(self) -> None:
        """End tasks elsewhere that no server follows, once all jobs that went on are followed again."""
        if self._keeper is not None:
            self._keeper.end_left()

    def close(self) -> None:
        """Start no more jobs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Job) -> None:
        JOB_ID.set(job.job_id)
        if not job.start():
            return
        if self._keeper is None:
            self._recorder.note_start()
        else:  # before its worker begins, which the next server would not look for
            self._recorder.begin(job)
        job.log("started")
        with ExitStack() as held:
            self._see_through(job, partial(self._train, job, held))

    def _rejoin(self, job: Job, note_found: Callable[[Job], bool]) -> None:
        JOB_ID.set(job.job_id)
        with ExitStack() as held:
            run = self._find(job, note_found, held)
            if run is not None:
                self._see_through(job, partial(self._train, job, held, run))

    def _find(self, job: Job, note_found: Callable[[Job], bool], held: ExitStack) -> Run | None:
        """Find a job's task again; None if the job has ended, or is left to the next server."""
        assert self._keeper is not None, "otherwise no job goes on without its server"
        run: LastingRun | None = None
        is_gone = False
        try:
            run, error_message = self._keeper.adopt(job.job_id, job.progress, job.receipts), ""
            if run is None:
                is_gone = True
                error_message = job.describe_interruption()
        except TaskDrainedError:
            return None
        except TaskFailedError as error:
            error_message = f"{INTERRUPTED}: {error}"
        except BaseException as error:  # the job boundary: a job that no server follows would run for ever
            logger.warning("job %s cannot be found again", job.job_id, exc_info=True)
            error_message = f"{INTERRUPTED}: {describe_error(error)}"
        if not note_found(job):
            if run is not None:
                run.leave()
            return None
        if run is None:
            status = JobStatus.STOPPED if is_gone and job.is_stopping else JobStatus.FAILED
            job.finish(status, error_message, server_end="restart")
            return None
        held.callback(run.release)
        job.log("found again")
        with suppress(ConflictError):  # it has ended
            while job.state.n_stops < run.n_earlier_stops:  # a stop by hand would have been written down
                job.stop("shutdown")
        return run

    def _see_through(self, job: Job, train: Callable[[], bytes | None]) -> None:
        """Train a job's policy, publish it, and end the job."""
        try:
            content = train()
            outcome = None if content is None else job.settle_outcome()
            if content is None or outcome is None:
                return
            self._publish(job, outcome, content)
        except TaskDrainedError as error:
            # It may know of the shutdown before the registry does.
            job.finish(JobStatus.STOPPED, f"{error} {job.describe_resume()}", server_end="shutdown")
        except (TaskFailedError, ServiceError, _UnsavedError) as error:
            logger.warning("job %s failed: %s", job.job_id, error)
            job.finish(JobStatus.FAILED, str(error), is_unsaved=isinstance(error, _UnsavedError))
        except BaseException as error:  # the job boundary: whatever an environment raises ends only its own job
            logger.warning("job %s failed", job.job_id, exc_info=True)
            job.finish(JobStatus.FAILED, describe_error(error))
        else:
            job.finish(outcome)

    def _publish(self, job: Job, outcome: JobStatus, content: bytes) -> None:
        name = self._choose_name(job, outcome, content)
        try:
            sha256 = self._store.publish(name, content, job.job_id)
        except StorageError as error:
            # A resume could not go on from the end of a stopped job.
            model = UnsavedModel(content, job.state.ended_by)
            if outcome is not JobStatus.COMPLETED or not self.unsaved.keep(job.job_id, model):
                raise
            raise _UnsavedError(
                f"{error} As long as the server that trained it runs, it keeps the finished policy in memory, and "
                f"POST /training/{job.job_id}/resume saves it without training again."
            ) from error
        self.unsaved.forget(job.job_id)
        job.record_saved_model(name, sha256)

    def _train(self, job: Job, held: ExitStack, run: Run | None = None) -> bytes | None:
        """Train a job's policy, and go on from its checkpoint if the worker dies.

        :param held: Ended when the policy is published, or the training begins again.
        :param run: What trains it already; None if nothing does.
        :return: The model file; None if the job has ended in the meantime.
        :raises Exception: Whatever the task raises.
        """
        if (finished := job.take_unsaved_model()) is not None:
            return finished
        pause = RestartPause(is_first_at_once=True)
        while True:
            began = time.monotonic()
            run = self._start(job, held) if run is None else run
            job.wake()  # a cluster may have had no room for it until now
            try:
                return self._follow(run, job)
            except WorkerLostError as error:
                reason = error.explain(MEMORY_REMEDY)
                logger.warning("the worker of job %s was lost: %s", job.job_id, reason)
                if job.restart(reason):
                    if self._keeper is not None:
                        self._recorder.begin(job)
                    held.close()  # what it has left makes room for the next worker
                    _pause(job, pause.choose(time.monotonic() - began))
                    run = None
                    continue
                if (content := job.read_finished_model()) is None:
                    raise TaskFailedError(reason) from error
                job.warn(f"{UNEVALUATED}: {reason}")
                return content

    def _start(self, job: Job, held: ExitStack) -> Run:
        """Start a job's training, from its checkpoint if there is one, see ``_train``."""
        run_dir = None if job.tensorboard_run is None else self._tensorboard_dir / job.tensorboard_run
        checkpoint = job.read_checkpoint()
        init = self._read_init_model(job, is_needed=checkpoint is None)
        task = TrainingOrder(
            config=job.config,
            reward=job.plan.reward,
            run_dir=run_dir,
            n_threads=self._n_threads_per_job,
            checkpoint=checkpoint,
            init=init,
            stall_seconds=self._stall_seconds,
        ).make_task()
        if self._keeper is None:
            return self._executor.start(task, job.progress)
        run = self._keeper.start_lasting(task, job.progress, job.receipts)
        held.callback(run.release)
        return run

    def _follow(self, run: Run, job: Job) -> bytes | None:
        """Wait for the end of a training, see ``_train``."""
        watch = _StallWatch()
        try:
            while not run.wait(_WATCH_SECONDS):
                stall = self._find_stall(job, watch.measure_idle(job.inactive_seconds, run.delay_seconds))
                if stall is not None:
                    if (content := job.read_finished_model()) is not None:
                        run.kill()
                        job.warn(f"{UNEVALUATED}: its evaluation {stall}.")
                        return content
                    _give_up(job, stall)
                    run.kill()
                    return None
                if job.finished.is_set():
                    run.kill()
                    return None
        except BaseException:  # or its worker would go on alone
            run.kill()
            raise
        return run.get_content()

    def _read_init_model(self, job: Job, is_needed: bool) -> bytes | None:
        """Return the file that a job's ``init_model`` named when it was accepted, wherever it is now."""
        if (reference := job.config.init_model) is None:
            return None
        content = self._store.folder.find_content(reference, job.plan.init_sha256)
        if content is None and is_needed:
            raise NotFoundError(
                f"init_model '{reference}' was deleted or replaced since the job was accepted, and no version of it "
                "is that file; submit the job again with a model that is there."
            )
        return content

    def _find_stall(self, job: Job, idle_seconds: float) -> str | None:
        """Say how long a job has not moved, if that is too long; None otherwise."""
        patience = self._stall_seconds
        if job.is_stopping:
            patience = min(patience, _STOP_PATIENCE_SECONDS)
        if job.finished.is_set() or idle_seconds < patience:
            return None
        return f"stalled: no simulator step and no update for {patience:g} s"

    def _choose_name(self, job: Job, outcome: JobStatus, content: bytes) -> str:
        """Return the name to save under: the job's own, but a stopped job never replaces another one's model."""
        name = job.config.model_name
        if outcome is JobStatus.COMPLETED or not self._store.exists(name) or is_own_model(self._store, job):
            return name
        # A server that was killed may have saved it just before.
        if holds_content(self._store, name, content):
            return name
        return f"{name[:MAX_NAME_STEM_CHARS]}-stopped-{job.job_id[:SHORT_ID_CHARS]}"


def _pause(job: Job, seconds: float) -> None:
    """Wait before a worker that has died is replaced again, unless the job is stopped."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not job.is_stopping and not job.finished.wait(_POLL_SECONDS):
        pass
    job.wake()


def _give_up(job: Job, stall: str) -> None:
    if job.is_stopping:
        job.give_up(JobStatus.STOPPED, f"{stall} after the stop, so nothing could be saved; {job.describe_resume()}")
        return
    env_name, limit = job.config.env_name, "the limit that GRPO_STALL_SECONDS sets"
    if job.has_stepped:
        remedy = f"fix the environment '{env_name}', or raise the setting if a step or an update may take longer"
    else:
        remedy = f"its worker did not come to a first step; raise the setting if making '{env_name}' may take longer"
    job.give_up(JobStatus.FAILED, f"{stall}, {limit}; {remedy}. {job.describe_resume()}")


class _StallWatch:
    """Tells how long a job has not moved, without the time in which others kept its worker from the processor."""

    def __init__(self) -> None:
        self._inactive_seconds = self._delay_seconds = 0.0

    def measure_idle(self, inactive_seconds: float, delay_seconds: float) -> float:
        """Return the time since the job moved in which its worker could have worked.

        :param inactive_seconds: The time since the job moved.
        :param delay_seconds: How long others have kept its worker from the processor so far.
        """
        if inactive_seconds < self._inactive_seconds:  # it has moved since the last look
            self._delay_seconds = delay_seconds
        self._inactive_seconds = inactive_seconds
        return inactive_seconds - (delay_seconds - self._delay_seconds)
