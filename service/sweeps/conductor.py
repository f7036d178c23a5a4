"""The conductor, which starts the jobs of sweeps as places come free, and notes what becomes of them."""

import logging
import threading
from contextlib import suppress

from pydantic import ValidationError

from service.errors import ConflictError, NotFoundError, ServiceError
from service.jobs.admission import JobAdmission
from service.jobs.job import Job
from service.jobs.registry import JobRegistry
from service.schemas.jobs import JobStatus
from service.schemas.sweeps import SweepStatus, Trial, TrialStatus
from service.sweeps.recorder import SweepRecorder
from service.sweeps.restoring import find_trial_job, list_gone_on
from service.sweeps.sweep import Sweep
from service.sweeps.sweep_models import CHORE_SECONDS, SweepModels
from service.sweeps.table import SweepTable

logger = logging.getLogger("grpo.service")

# How often jobs are looked at while a sweep is active.
_LOOK_SECONDS = 0.1
# Pause before a refused job is tried again.
_RETRY_SECONDS = 1.0
# What is under way then is a request to start one job, or to copy one model: neither should hold up the server's end.
_CLOSE_SECONDS = 5.0
# A refusal with one of these says that there is no room now.
_BUSY_STATUSES = frozenset({429, 503, 507})


class Conductor:
    """The thread that starts the jobs of all sweeps. Safe to use from any thread.

    At most one job of all sweeps waits in the queue; the rest of it is left to other clients. Sweeps take turns.

    :param table: The sweeps.
    :param recorder: Writes them down.
    :param models: Deletes the models that are not to be kept.
    :param registry: Where jobs are looked up.
    :param admission: Plans and queues them.
    """

    def __init__(
        self,
        table: SweepTable,
        recorder: SweepRecorder,
        models: SweepModels,
        registry: JobRegistry,
        admission: JobAdmission,
    ) -> None:
        self._table, self._recorder, self._models = table, recorder, models
        self._registry, self._admission = registry, admission
        # The jobs of active trials as the thread, which alone uses them, has last seen them, by id.
        self._seen_jobs: dict[str, Job] = {}
        self._thread: threading.Thread | None = None

    def activate(self, sweep: Sweep) -> None:
        """Give a sweep its turns; the caller holds the table."""
        self._table.turns.append(sweep.sweep_id)
        self._table.changed.notify_all()
        self.start()

    def start(self) -> None:
        """Begin the rounds, if they have not begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._conduct, name="grpo-sweeps", daemon=True)
            self._thread.start()

    def begin_close(self) -> None:
        """Leave all sweeps as they are; the next server finds them interrupted."""
        with self._table.changed:
            self._table.is_closing = True
            self._table.changed.notify_all()

    def close(self) -> None:
        """End the thread."""
        self.begin_close()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _conduct(self) -> None:
        pause_seconds = 0.0
        while True:
            with self._table.changed:
                if pause_seconds and not self._table.is_closing:  # which it may have become during the round
                    has_chores = self._models.has_surplus or self._recorder.has_unwritten
                    self._table.changed.wait(
                        pause_seconds if self._table.turns else CHORE_SECONDS if has_chores else None
                    )
                if self._table.is_closing:
                    return
            try:
                pause_seconds = self._go_round()
            except Exception:  # this thread is the only one that starts jobs of sweeps: it must survive all of them
                logger.exception("a round through the sweeps failed")
                pause_seconds = _RETRY_SECONDS

    def _go_round(self) -> float:
        """Note what is new, and start the next job; return after how many seconds to look again."""
        for sweep in self._look():
            self._recorder.write(sweep.sweep_id)
            self._models.remove_surplus(sweep)
        # What a disk has refused before.
        self._recorder.retry()
        self._models.retry()
        with self._table.changed:
            turn = self._choose_turn()
        if turn is None:
            return _LOOK_SECONDS
        return 0.0 if self._start(*turn) else _RETRY_SECONDS

    def _look(self) -> list[Sweep]:
        """Note how all jobs are, and what follows; return the sweeps in which something has changed."""
        with self._table.changed:
            active = [
                (self._table.sweeps[sweep_id], self._table.sweeps[sweep_id].list_active())
                for sweep_id in self._table.turns
            ]
        # Without the lock, since a job may have to be read from the disk.
        seen = [(sweep, [(trial, self._look_at_job(trial)) for trial in trials]) for sweep, trials in active]
        self._seen_jobs = {job.job_id: job for _, jobs in seen for _, job in jobs if job is not None}
        changed = []
        with self._table.changed:
            for sweep, jobs in seen:
                news = [sweep.observe(trial, job) for trial, job in jobs]
                for trial, job in list_gone_on(sweep, self._registry):
                    self._follow(sweep, trial, job)
                    news.append(True)
                # The server's end stops jobs too, which the next server's sweep has yet to go on with.
                has_advanced = not self._table.is_closing and sweep.advance()
                if has_advanced or any(news):
                    changed.append(sweep)
                if not sweep.status.is_active:
                    self._table.turns.remove(sweep.sweep_id)
                    names = {"sweep_id": sweep.sweep_id, "sweep": sweep.record.name}
                    logger.info("sweep %s", sweep.status, extra=names)
        return changed

    def _follow(self, sweep: Sweep, trial: Trial, job: Job) -> None:
        """Note that a trial has become a job, or goes on; the caller holds the table."""
        sweep.note_job(trial, job)
        sweep.observe(trial, job)
        self._seen_jobs[job.job_id] = job

    def _look_at_job(self, trial: Trial) -> Job | None:
        """Return a trial's job, also if it has ended and was deleted since it was last seen."""
        seen = self._seen_jobs.get(trial.job_id or "")
        return find_trial_job(self._registry, trial) or (seen if seen is not None and seen.status.is_final else None)

    def _choose_turn(self) -> tuple[Sweep, Trial] | None:
        """Return the sweep whose turn it is, and its next job; None while another job of a sweep waits."""
        sweeps = [self._table.sweeps[sweep_id] for sweep_id in self._table.turns]
        if any(trial.status is TrialStatus.QUEUED for sweep in sweeps for trial in sweep.list_active()):
            return None
        for sweep in sweeps:
            trial = sweep.choose_next()
            if trial is not None:
                self._table.turns.remove(sweep.sweep_id)
                self._table.turns.append(sweep.sweep_id)
                return sweep, trial
        return None

    def _start(self, sweep: Sweep, trial: Trial) -> bool:
        """Make a job of a trial; return False if there is no room for one now."""
        try:
            job = self._start_job(sweep, trial)
        except (ServiceError, ValidationError) as error:
            detail = error.detail if isinstance(error, ServiceError) else "its settings are of another version"
            is_busy = isinstance(error, ServiceError) and error.status_code in _BUSY_STATUSES
            is_busy = is_busy or (isinstance(error, ConflictError) and error.is_passing)
            with self._table.changed:
                sweep.held_by = detail if is_busy else None
                if not is_busy:
                    sweep.note_refusal(trial, detail)
            if not is_busy:
                self._recorder.write(sweep.sweep_id)
            return not is_busy
        with self._table.changed:
            sweep.held_by = None
            if job is None:
                return True
            # A stop came while the job was planned, and has not found it.
            must_stop = sweep.status is SweepStatus.STOPPING and not trial.status.is_active
            self._follow(sweep, trial, job)
        self._recorder.write(sweep.sweep_id)
        if must_stop:
            self.stop_job(job.job_id)
        return True

    def _start_job(self, sweep: Sweep, trial: Trial) -> Job | None:
        """Return a trial's job; None if the budget does not allow it."""
        job = self._resume_job(trial, sweep.record.client)
        if job is not None:
            return job
        # Only what an earlier job of this trial has saved may be replaced.
        request = sweep.make_request(trial, replace=self._models.is_own(sweep.name_model(trial), trial.sha256))
        init_sha256 = sweep.record.init_sha256.get(request.init_model or "")
        if sweep.record.budget_timesteps is not None:
            config = self._admission.plan(request, sweep.record.client, init_sha256=init_sha256).config
            with self._table.changed:
                if not sweep.plan_steps(trial, config):
                    return None
        return self._admission.start_job(request, sweep.record.client, sweep.sweep_id, init_sha256)

    def _resume_job(self, trial: Trial, client: str | None) -> Job | None:
        """Let a trial's interrupted job go on; None if it has none."""
        job = find_trial_job(self._registry, trial)
        if job is None or job.status not in (JobStatus.STOPPED, JobStatus.FAILED):
            return job
        with suppress(NotFoundError):  # it was deleted just now
            return self._admission.resume_job(job.job_id, client)
        return None

    def stop_job(self, job_id: str) -> None:
        """Stop a job of a sweep, unless it has ended."""
        with suppress(NotFoundError, ConflictError):
            self._registry.stop(self._registry.get(job_id))
