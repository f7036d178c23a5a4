"""The registry, which takes sweeps in, and lists, stops, resumes and forgets them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from pydantic import ValidationError

from service.errors import ConflictError, InvalidRequestError, StorageError
from service.jobs.admission import JobAdmission
from service.jobs.job import Job
from service.jobs.records.database import JournalError
from service.jobs.records.journal import JobJournal
from service.jobs.registry import JobRegistry
from service.models.store import ModelStore
from service.schemas.sweeps import SweepDescription, SweepRequest, SweepStatus, SweepSummary, Trial
from service.schemas.training import TrainConfig, TrainRequest
from service.sweeps.conductor import Conductor
from service.sweeps.planning import PlannedSweep, check_settings, plan_sweep
from service.sweeps.ranking import find_best_trial
from service.sweeps.recorder import SweepRecorder
from service.sweeps.restoring import find_trial_job, interrupt_sweeps, list_gone_on
from service.sweeps.sweep import Sweep, SweepRecord
from service.sweeps.sweep_models import SweepModels
from service.sweeps.table import SweepTable


class SweepPage(NamedTuple):
    """Some of the sweeps, the newest first.

    :param n_total: Number of all.
    """

    sweeps: list[SweepSummary]
    n_total: int


class SweepRegistry:
    """Takes sweeps in, and has their jobs started. Safe to use from any thread.

    :param journal: The jobs' file; it is not closed here.
    :param registry: Where jobs are looked up.
    :param store: Where their models are.
    :param admission: Plans and queues them.
    :param max_models: Largest number of models in the store.
    """

    def __init__(
        self, journal: JobJournal, registry: JobRegistry, store: ModelStore, admission: JobAdmission, max_models: int
    ) -> None:
        self._registry, self._admission = registry, admission
        self._table = table = SweepTable()
        self._recorder = SweepRecorder(journal, table)
        table.sweeps.update((record.sweep_id, Sweep(record)) for record in self._recorder.list_records())
        for sweep in interrupt_sweeps(table.sweeps.values(), registry):
            self._recorder.write(sweep.sweep_id)
        self._store = store
        self._models = SweepModels(store, registry, self._recorder, table, max_models=max_models)
        self._conductor = Conductor(table, self._recorder, self._models, registry, admission)
        if self._models.has_surplus:
            self._conductor.start()

    def create(self, request: SweepRequest, client: str | None = None) -> PlannedSweep:
        """Plan a sweep and start it. It may take seconds.

        :param client: Whose it is, as an address; None for the operator's own.
        :raises InvalidRequestError: If a setting fits no job, or the sweep is too large.
        :raises ConflictError: If its name is taken.
        :raises QueueFullError: If too many sweeps are active.
        :raises NotReadyError: If there is no folder to save models in.
        :raises StorageLowError: If the disk is too full for them.
        :raises ServiceError: Whatever planning a job raises.
        """
        self._store.folder.check_can_save()
        with self._table.changed:
            self._table.check_can_start(request.name, client)
        planned = plan_sweep(
            request, client, self._registry.max_running, lambda of_job: self._admission.plan(of_job, client).config
        )
        self._models.check_models_fit(planned)
        self._models.pin_init_models(planned.record)
        sweep = Sweep(planned.record)
        with self._table.changed:
            self._table.check_can_start(planned.record.name, client)
            old = self._table.drop_old()
            self._table.sweeps[sweep.sweep_id] = sweep
        for sweep_id in old:
            with suppress(JournalError):  # it comes back with the next server
                self._recorder.forget(sweep_id)
        # Before it has jobs, which would have no sweep if the server were killed now.
        self._recorder.write(sweep.sweep_id)
        with self._table.changed:
            self._conductor.activate(sweep)
        return planned

    def list_page(self, limit: int, after: str | None = None) -> SweepPage:
        """List sweeps, the newest first.

        :param after: Id of a sweep; list only those before it.
        :raises NotFoundError: If no sweep has this id.
        """
        with self._table.changed:
            sweeps = list(reversed(self._table.sweeps.values()))
            n_total = len(sweeps)
            if after is not None:
                sweeps = sweeps[sweeps.index(self._table.get(after)) + 1 :]
        return SweepPage([self._table.summarize(sweep) for sweep in sweeps[:limit]], n_total)

    def describe(self, sweep_id: str) -> SweepDescription:
        """Describe a sweep.

        :param sweep_id: Its id, or ``LATEST``.
        :raises NotFoundError: If there is no such sweep.
        """
        with self._table.changed:
            return self._table.get(sweep_id).describe()

    def find_best_model(self, sweep: SweepDescription) -> str | None:
        """Return a reference to the model of the best policy, perhaps an earlier version by now; None if it is gone."""
        best = find_best_trial(sweep.settings[0])
        if best is None or best.model_name is None:
            return None
        return self._store.folder.find_reference(best.model_name, best.sha256)

    def stop(self, sweep_id: str) -> SweepSummary:
        """Start no more jobs of a sweep, and stop those that run, which save what they have learned.

        A second stop skips their evaluations. Jobs may run although the sweep was interrupted: some outlive the server.

        :raises NotFoundError: If there is no such sweep.
        :raises ConflictError: If it has ended.
        """
        with self._table.changed:
            sweep = self._table.get(sweep_id)
            left, was_active = self._list_left(sweep), sweep.status.is_active
            if not was_active and not left:
                raise ConflictError(
                    f"sweep '{sweep.record.name}' is {sweep.status} already; only running sweeps can be stopped."
                )
            sweep.stop()
            for trial, job in left:
                sweep.note_job(trial, job)
            if not was_active:
                self._conductor.activate(sweep)
            self._table.changed.notify_all()
            job_ids = [trial.job_id for trial in sweep.list_active()]
        self._recorder.write(sweep.sweep_id)
        for job_id in job_ids:
            if job_id is not None:
                self._conductor.stop_job(job_id)
        return self._table.summarize(sweep)

    def can_stop(self, sweep_id: str) -> bool:
        """Return whether the sweep, or a job that outlived it, can still be stopped.

        :raises NotFoundError: If there is no such sweep.
        """
        with self._table.changed:
            sweep = self._table.get(sweep_id)
            return sweep.status.is_active or bool(self._list_left(sweep))

    def _list_left(self, sweep: Sweep) -> list[tuple[Trial, Job]]:
        """List the trials of a sweep whose jobs go on without it: they outlived its server, or were resumed by hand."""
        if sweep.status is SweepStatus.COMPLETED:
            return []
        return [(trial, job) for trial, job in list_gone_on(sweep, self._registry) if not job.status.is_final]

    def resume(self, sweep_id: str) -> SweepSummary:
        """Go on with a sweep that was stopped, or interrupted by the end of the server. It may take seconds.

        :raises NotFoundError: If there is no such sweep.
        :raises ConflictError: If it has not ended, or is complete, or this server lacks something that it needs.
        :raises QueueFullError: If too many sweeps are active.
        :raises ServiceError: Whatever planning a job raises.
        """
        with self._table.changed:
            sweep = self._table.get(sweep_id)
            _check_can_resume(sweep)
            left, may_promote = sweep.list_left(), sweep.may_promote
        self._check_can_train(sweep.record, left, may_promote)
        with self._table.changed:
            sweep = self._table.get(sweep.sweep_id)  # it may be gone, or active, by now
            _check_can_resume(sweep)
            self._table.check_n_active(sweep.record.client)
            sweep.resume()
            self._conductor.activate(sweep)
        self._recorder.write(sweep.sweep_id)
        return self._table.summarize(sweep)

    def _check_can_train(self, record: SweepRecord, left: Mapping[int, list[Trial]], may_promote: bool) -> None:
        """Plan a sweep's jobs again: what this server lacks would refuse one after the other, for good.

        :param left: The trials of the settings that it goes on with, by the numbers of these.
        :param may_promote: Whether these settings may begin jobs of further rungs, too.
        """

        def plan(request: TrainRequest) -> TrainConfig:
            init_sha256 = record.init_sha256.get(request.init_model or "")
            return self._admission.plan(request, record.client, init_sha256=init_sha256).config

        begun: set[int] = set()  # whose jobs no longer need what they began from
        if record.init_sha256 and not may_promote:
            begun = {number for number, trials in left.items() if all(map(self._has_checkpoint, trials))}
        # The others come first, since a setting with no value of its own is not planned.
        settings = {number: record.settings[number - 1] for number in left if number not in begun}
        settings |= {number: {**record.settings[number - 1], "init_model": None} for number in sorted(begun)}
        try:
            check_settings(SweepRequest.model_validate(record.request).base, settings, plan)
        except (InvalidRequestError, ValidationError) as error:
            detail = error.detail if isinstance(error, InvalidRequestError) else "its settings are of another version."
            raise ConflictError(
                f"sweep '{record.name}' cannot go on with this server: {detail} Bring back what the sweep was "
                "accepted with, such as its --env-module or the file of its init_model, and resume it then."
            ) from error

    def _has_checkpoint(self, trial: Trial) -> bool:
        job = find_trial_job(self._registry, trial)
        return job is not None and self._registry.checkpoints.describe(job.job_id, job.config) is not None

    def delete(self, sweep_id: str) -> SweepSummary:
        """Forget a sweep; its jobs and its models stay.

        :raises NotFoundError: If there is no such sweep.
        :raises ConflictError: If it is active.
        :raises StorageError: If the disk refuses; the sweep stays.
        """
        with self._table.changed:
            sweep = self._table.get(sweep_id)
            _check_is_ended(sweep)
            self._table.leaving.add(sweep.sweep_id)
        is_forgotten = was_resumed = False
        try:
            self._recorder.forget(sweep.sweep_id)
            is_forgotten = True
        except JournalError as error:
            raise StorageError(f"sweep '{sweep.record.name}' is not deleted: {error.reason}.") from error
        finally:
            with self._table.changed:
                was_resumed = sweep.status.is_active
                if is_forgotten and not was_resumed:
                    self._table.sweeps.pop(sweep.sweep_id, None)
                self._table.leaving.discard(sweep.sweep_id)  # not before: a write that waits would bring it back
        if was_resumed:  # just now
            self._recorder.write(sweep.sweep_id)
            _check_is_ended(sweep)
        return self._table.summarize(sweep)

    def begin_close(self) -> None:
        """Leave all sweeps as they are; the next server finds them interrupted."""
        self._conductor.begin_close()

    def close(self) -> None:
        """Start no more jobs."""
        self._conductor.close()


def _check_can_resume(sweep: Sweep) -> None:
    if sweep.status not in (SweepStatus.STOPPED, SweepStatus.INTERRUPTED):
        raise ConflictError(
            f"sweep '{sweep.record.name}' is {sweep.status}; only stopped and interrupted sweeps can be resumed."
        )


def _check_is_ended(sweep: Sweep) -> None:
    if sweep.status.is_active:
        raise ConflictError(
            f"sweep '{sweep.record.name}' is {sweep.status}; stop it first with POST /sweeps/{sweep.sweep_id}/stop."
        )
