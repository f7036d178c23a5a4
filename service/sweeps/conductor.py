"""The conductor, which keeps all sweeps, and starts their jobs as places come free."""

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

from pydantic import ValidationError

from service.errors import (
    ConflictError,
    DrainingError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    StorageError,
    printable,
)
from service.jobs.job import Job
from service.jobs.records.database import JournalError
from service.jobs.records.journal import JobJournal
from service.jobs.registry import JobRegistry
from service.jobs.table import LATEST
from service.models.store import ModelStore
from service.schemas.jobs import JobStatus
from service.schemas.sweeps import SweepDescription, SweepRequest, SweepStatus, SweepSummary, Trial, TrialStatus
from service.schemas.training import TrainConfig, TrainRequest
from service.sweeps.planning import PlannedSweep, plan_sweep
from service.sweeps.recorder import SweepRecorder
from service.sweeps.sweep import Sweep
from service.sweeps.sweep_models import CHORE_SECONDS, SweepModels

logger = logging.getLogger("grpo.service")

# How often jobs are looked at while a sweep is active.
_LOOK_SECONDS = 0.1
# Pause before a refused job is tried again.
_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 5.0
# Sweeps that are remembered; the oldest that have ended go first.
_MAX_KEPT = 200
_MAX_ACTIVE, _MAX_ACTIVE_OF_CLIENT = 16, 4
# A refusal with one of these says that there is no room now.
_BUSY_STATUSES = frozenset({429, 503, 507})


class Starter(Protocol):
    """Starts jobs, as the service does."""

    def plan_config(self, request: TrainRequest, client: str | None, init_sha256: str | None = None) -> TrainConfig:
        """Check a client's request and fill it in."""

    def start_job(
        self, request: TrainRequest, client: str | None, sweep_id: str | None, init_sha256: str | None
    ) -> Job:
        """Queue a job of a client."""

    def resume_job(self, job_id: str, client: str | None) -> Job:
        """Queue a job again that was stopped or failed."""


class SweepPage(NamedTuple):
    """Some of the sweeps, the newest first.

    :param n_total: Number of all.
    """

    sweeps: list[SweepSummary]
    n_total: int


class Conductor:
    """All sweeps by id, and the thread that starts their jobs. Safe to use from any thread.

    At most one job of all sweeps waits in the queue; the rest of it is left to other clients. Sweeps take turns.

    :param journal: The jobs' file; it is not closed here.
    :param registry: Where jobs are looked up.
    :param store: Where their models are.
    :param starter: Starts them.
    :param max_models: Largest number of models in the store.
    """

    def __init__(
        self, journal: JobJournal, registry: JobRegistry, store: ModelStore, starter: Starter, max_models: int
    ) -> None:
        self._registry, self._starter = registry, starter
        self._recorder = SweepRecorder(journal, self._read)
        # Guards everything below, and all sweeps; never held while a job is planned, or the disk is read or written.
        self._changed = threading.Condition()
        self._sweeps: dict[str, Sweep] = {}
        # Active sweeps in the order of their turns.
        self._turns: list[str] = []
        # Ids of sweeps that are being deleted. Written once more, they would come back with the next server.
        self._leaving: set[str] = set()
        # The jobs of active trials as the thread, which alone uses them, has last seen them, by id.
        self._seen_jobs: dict[str, Job] = {}
        self._is_closing = False
        self._thread: threading.Thread | None = None
        self._restore()
        self._models = SweepModels(store, registry, self._recorder, self._changed, self._sweeps, max_models)
        if self._models.has_surplus:
            self._start_thread()

    def create(self, request: SweepRequest, client: str | None = None) -> PlannedSweep:
        """Plan a sweep and start it. It may take seconds.

        :param client: Whose it is, as an address; None for the operator's own.
        :raises InvalidRequestError: If a setting fits no job, or the sweep is too large.
        :raises ConflictError: If its name is taken.
        :raises QueueFullError: If too many sweeps are active.
        :raises ServiceError: Whatever planning a job raises.
        """
        with self._changed:
            self._check_room(request.name, client)
        planned = plan_sweep(
            request, client, self._registry.max_running, partial(self._starter.plan_config, client=client)
        )
        self._models.check_room(planned)
        self._models.pin_init_models(planned.record)
        sweep = Sweep(planned.record)
        with self._changed:
            self._check_room(planned.record.name, client)
            old = self._drop_old()
            self._sweeps[sweep.sweep_id] = sweep
        for sweep_id in old:
            with suppress(JournalError):  # it comes back with the next server
                self._recorder.forget(sweep_id)
        # Before it has jobs, which would have no sweep if the server were killed now.
        self._recorder.write(sweep.sweep_id)
        with self._changed:
            self._activate(sweep)
        return planned

    def list_page(self, limit: int, after: str | None = None) -> SweepPage:
        """List sweeps, the newest first.

        :param after: Id of a sweep; list only those before it.
        :raises NotFoundError: If there is none with this id.
        """
        with self._changed:
            sweeps = list(reversed(self._sweeps.values()))
            n_total = len(sweeps)
            if after is not None:
                sweeps = sweeps[sweeps.index(self._get(after)) + 1 :]
        return SweepPage([self._summarize(sweep) for sweep in sweeps[:limit]], n_total)

    def describe(self, sweep_id: str) -> SweepDescription:
        """Describe a sweep.

        :param sweep_id: Its id, or ``LATEST``.
        :raises NotFoundError: If there is none.
        """
        with self._changed:
            return self._get(sweep_id).describe()

    def stop(self, sweep_id: str) -> SweepSummary:
        """Start no more jobs of a sweep, and stop those that run, which save what they have learned.

        A second stop skips their evaluations. Jobs may run although the sweep was interrupted: some outlive the server.

        :raises NotFoundError: If there is none.
        :raises ConflictError: If it has ended.
        """
        with self._changed:
            sweep = self._get(sweep_id)
            left = self._list_left(sweep)
            if not sweep.status.is_active and not left:
                raise ConflictError(
                    f"sweep '{sweep.record.name}' is {sweep.status} already; only running sweeps can be stopped."
                )
            sweep.stop()
            for trial, job in left:
                sweep.note_job(trial, job)
            if left:
                self._activate(sweep)
            self._changed.notify_all()
            job_ids = [trial.job_id for trial in sweep.list_active()]
        self._recorder.write(sweep.sweep_id)
        for job_id in job_ids:
            if job_id is not None:
                self._stop_job(job_id)
        return self._summarize(sweep)

    def can_stop(self, sweep_id: str) -> bool:
        """Return whether the sweep, or a job that outlived it, can still be stopped.

        :raises NotFoundError: If there is none.
        """
        with self._changed:
            sweep = self._get(sweep_id)
            return sweep.status.is_active or bool(self._list_left(sweep))

    def _list_left(self, sweep: Sweep) -> list[tuple[Trial, Job]]:
        """List the trials of a sweep whose jobs go on without it: it was interrupted, perhaps while it stopped them."""
        if sweep.status not in (SweepStatus.INTERRUPTED, SweepStatus.STOPPED):
            return []
        left = []
        for trial in sweep.record.trials:
            if trial.job_id is not None and self._registry.is_active(trial.job_id):
                job = self._registry.find_in_memory(trial.job_id)
                left += [] if job is None else [(trial, job)]
        return left

    def resume(self, sweep_id: str) -> SweepSummary:
        """Go on with a sweep that was stopped, or interrupted by the end of the server.

        :raises NotFoundError: If there is none.
        :raises ConflictError: If it has not ended, or is complete.
        :raises QueueFullError: If too many sweeps are active.
        """
        with self._changed:
            sweep = self._get(sweep_id)
            if sweep.status not in (SweepStatus.STOPPED, SweepStatus.INTERRUPTED):
                raise ConflictError(
                    f"sweep '{sweep.record.name}' is {sweep.status}; only stopped and interrupted sweeps can be "
                    "resumed."
                )
            self._check_n_active(sweep.record.client)
            sweep.resume()
            self._activate(sweep)
        self._recorder.write(sweep.sweep_id)
        return self._summarize(sweep)

    def delete(self, sweep_id: str) -> SweepSummary:
        """Forget a sweep; its jobs and its models stay.

        :raises NotFoundError: If there is none.
        :raises ConflictError: If it is active.
        :raises StorageError: If the disk refuses; the sweep stays.
        """
        with self._changed:
            sweep = self._get(sweep_id)
            self._check_is_ended(sweep)
            self._leaving.add(sweep.sweep_id)
        is_forgotten = was_resumed = False
        try:
            self._recorder.forget(sweep.sweep_id)
            is_forgotten = True
        except JournalError as error:
            raise StorageError(f"sweep '{sweep.record.name}' is not deleted: {error.reason}.") from error
        finally:
            with self._changed:
                was_resumed = sweep.status.is_active
                if is_forgotten and not was_resumed:
                    self._sweeps.pop(sweep.sweep_id, None)
                self._leaving.discard(sweep.sweep_id)  # not before: whoever waits to write it would bring it back
        if was_resumed:  # just now
            self._recorder.write(sweep.sweep_id)
            self._check_is_ended(sweep)
        return self._summarize(sweep)

    def _check_is_ended(self, sweep: Sweep) -> None:
        if sweep.status.is_active:
            raise ConflictError(
                f"sweep '{sweep.record.name}' is {sweep.status}; stop it first with POST /sweeps/{sweep.sweep_id}/stop."
            )

    def begin_close(self) -> None:
        """Leave all sweeps as they are; the next server finds them interrupted."""
        with self._changed:
            self._is_closing = self._recorder.is_closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread."""
        self.begin_close()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _restore(self) -> None:
        """Read the sweeps of earlier servers; those that were active are interrupted."""
        sweeps = [Sweep(record) for record in self._recorder.list_records()]
        self._sweeps = {sweep.sweep_id: sweep for sweep in sweeps}
        interrupted = [sweep for sweep in sweeps if sweep.status.is_active]
        if interrupted:
            newest = {line.summary.model_name: line.job_id for line in self._registry.list_lines()}
            for sweep in interrupted:
                self._interrupt(sweep, newest)

    def _interrupt(self, sweep: Sweep, newest: Mapping[str, str]) -> None:
        """Note how a sweep was when the last server ended.

        :param newest: Ids of the newest jobs by the names of their models.
        """
        for trial in sweep.record.trials:
            # A job that was started last may not have been noted.
            job = None if trial.status.is_final else self._find_own_job(sweep, newest.get(sweep.name_model(trial)))
            if job is not None and job.job_id != trial.job_id:
                sweep.note_job(trial, job)
        for trial in sweep.list_active():
            job = self._find_job(trial)
            if job is not None and job.status.is_final:
                sweep.observe(trial, job)
            if trial.status is not TrialStatus.COMPLETED:
                trial.status = TrialStatus.INTERRUPTED
        sweep.interrupt()
        self._recorder.write(sweep.sweep_id)

    def _find_own_job(self, sweep: Sweep, job_id: str | None) -> Job | None:
        """Return a job if it is one of a sweep's."""
        if job_id is None:
            return None
        with suppress(NotFoundError):
            job = self._registry.get(job_id)
            return job if job.plan.sweep_id == sweep.sweep_id else None
        return None

    def _check_room(self, name: str | None, client: str | None) -> None:
        if self._is_closing:
            raise DrainingError("the server is shutting down; submit the sweep again when it is back.")
        self._check_n_active(client)
        for sweep in self._sweeps.values():
            if name is not None and sweep.record.name.casefold() == name.casefold():
                raise ConflictError(
                    f"there is a sweep '{sweep.record.name}' already; pick another name, or delete it with DELETE "
                    f"/sweeps/{sweep.sweep_id}."
                )

    def _check_n_active(self, client: str | None) -> None:
        active = [sweep for sweep in self._sweeps.values() if sweep.status.is_active]
        n_own = sum(sweep.record.client == client for sweep in active)
        if client is not None and n_own >= _MAX_ACTIVE_OF_CLIENT:
            raise QueueFullError(
                f"{n_own} of your sweeps are running, the most that one client may have; stop one, or wait."
            )
        if len(active) >= _MAX_ACTIVE:
            raise QueueFullError(f"{_MAX_ACTIVE} sweeps are running, the most that may; stop one, or try again later.")

    def _activate(self, sweep: Sweep) -> None:
        self._turns.append(sweep.sweep_id)
        self._changed.notify_all()
        self._start_thread()

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._conduct, name="grpo-sweeps", daemon=True)
            self._thread.start()

    def _drop_old(self) -> list[str]:
        """Forget the sweeps that are too many; return their ids."""
        ended = [sweep_id for sweep_id, sweep in self._sweeps.items() if not sweep.status.is_active]
        old = ended[: max(0, len(self._sweeps) + 1 - _MAX_KEPT)]
        for sweep_id in old:
            del self._sweeps[sweep_id]
        return old

    def _read(self, sweep_id: str) -> str | None:
        """Return a sweep's record in JSON; None if it is forgotten."""
        with self._changed:
            sweep = None if sweep_id in self._leaving else self._sweeps.get(sweep_id)
            return None if sweep is None else sweep.record.model_dump_json()

    def _summarize(self, sweep: Sweep) -> SweepSummary:
        with self._changed:
            return sweep.summarize()

    def _get(self, sweep_id: str) -> Sweep:
        if sweep_id == LATEST and self._sweeps:
            return next(reversed(self._sweeps.values()))
        if sweep_id not in self._sweeps:
            what = "no sweep yet" if sweep_id == LATEST else f"no sweep '{printable(sweep_id)}'"
            raise NotFoundError(f"there is {what}; GET /sweeps lists them, and POST /sweeps starts one.")
        return self._sweeps[sweep_id]

    def _conduct(self) -> None:
        pause_seconds = 0.0
        while True:
            with self._changed:
                if pause_seconds:
                    has_chores = self._models.has_surplus or self._recorder.has_unwritten
                    self._changed.wait(pause_seconds if self._turns else CHORE_SECONDS if has_chores else None)
                if self._is_closing:
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
        with self._changed:
            turn = self._choose_turn()
        if turn is None:
            return _LOOK_SECONDS
        return 0.0 if self._start(*turn) else _RETRY_SECONDS

    def _look(self) -> list[Sweep]:
        """Note how all jobs are, and what follows; return the sweeps in which something has changed."""
        with self._changed:
            active = [(self._sweeps[sweep_id], self._sweeps[sweep_id].list_active()) for sweep_id in self._turns]
        # Without the lock, since a job may have to be read from the disk.
        seen = [(sweep, [(trial, self._look_at_job(trial)) for trial in trials]) for sweep, trials in active]
        self._seen_jobs = {job.job_id: job for _, jobs in seen for _, job in jobs if job is not None}
        changed = []
        with self._changed:
            for sweep, jobs in seen:
                news = [sweep.observe(trial, job) for trial, job in jobs]
                if sweep.advance() or any(news):
                    changed.append(sweep)
                if not sweep.status.is_active:
                    self._turns.remove(sweep.sweep_id)
                    names = {"sweep_id": sweep.sweep_id, "sweep": sweep.record.name}
                    logger.info("sweep %s", sweep.status, extra=names)
        return changed

    def _find_job(self, trial: Trial) -> Job | None:
        if trial.job_id is None:
            return None
        try:
            return self._registry.get(trial.job_id)
        except NotFoundError:
            return None

    def _look_at_job(self, trial: Trial) -> Job | None:
        """Return a trial's job, also if it has ended and was deleted since it was last seen."""
        seen = self._seen_jobs.get(trial.job_id or "")
        return self._find_job(trial) or (seen if seen is not None and seen.status.is_final else None)

    def _choose_turn(self) -> tuple[Sweep, Trial] | None:
        """Return the sweep whose turn it is, and its next job; None while another job of a sweep waits."""
        sweeps = [self._sweeps[sweep_id] for sweep_id in self._turns]
        if any(trial.status is TrialStatus.QUEUED for sweep in sweeps for trial in sweep.list_active()):
            return None
        for sweep in sweeps:
            trial = sweep.choose_next()
            if trial is not None:
                self._turns.remove(sweep.sweep_id)
                self._turns.append(sweep.sweep_id)
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
            with self._changed:
                if is_busy:
                    sweep.held_by = detail
                else:
                    sweep.note_refusal(trial, detail)
            if not is_busy:
                self._recorder.write(sweep.sweep_id)
            return not is_busy
        if job is None:
            return True
        with self._changed:
            sweep.held_by = None
            sweep.note_job(trial, job)
            sweep.observe(trial, job)
            self._seen_jobs[job.job_id] = job
            must_stop = sweep.status is SweepStatus.STOPPING  # a stop came while the job was planned
        self._recorder.write(sweep.sweep_id)
        if must_stop:
            self._stop_job(job.job_id)
        return True

    def _start_job(self, sweep: Sweep, trial: Trial) -> Job | None:
        """Return a trial's job; None if the budget does not allow it."""
        job = self._resume_job(trial, sweep.record.client)
        if job is not None:
            return job
        request = sweep.make_request(trial)
        init_sha256 = sweep.record.init_sha256.get(request.init_model or "")
        if sweep.record.budget_timesteps is not None:
            config = self._starter.plan_config(request, sweep.record.client, init_sha256)
            with self._changed:
                if not sweep.plan_steps(trial, config):
                    return None
        return self._starter.start_job(request, sweep.record.client, sweep.sweep_id, init_sha256)

    def _resume_job(self, trial: Trial, client: str | None) -> Job | None:
        """Let a trial's interrupted job go on; None if it has none that can."""
        job = self._find_job(trial)
        if job is None or job.status not in (JobStatus.STOPPED, JobStatus.FAILED):
            return job
        try:
            return self._starter.resume_job(job.job_id, client)
        except NotFoundError:
            return None
        except ConflictError as error:
            if error.is_passing:
                raise
            return None

    def _stop_job(self, job_id: str) -> None:
        with suppress(NotFoundError, ConflictError):  # it has ended in the meantime
            self._registry.stop(self._registry.get(job_id))
