"""The models of sweeps: room for them, what they begin from, and which of them are deleted."""

import time
from contextlib import suppress

from service.errors import ConflictError, NotFoundError, ServiceError
from service.jobs.registry import JobRegistry
from service.models.store import ModelStore
from service.sweeps.planning import PlannedSweep
from service.sweeps.recorder import SweepRecorder
from service.sweeps.sweep import Sweep, SweepRecord, name_model
from service.sweeps.table import SweepTable

#: Pause before what a disk has refused is tried again.
CHORE_SECONDS = 5.0


class SweepModels:
    """Looks after the models of all sweeps. One thread deletes them.

    :param store: Where they are.
    :param registry: Deletes them, and knows which jobs begin from one.
    :param recorder: Writes down the sweeps whose models are gone.
    :param table: The sweeps.
    :param max_models: Largest number of models in the store.
    """

    def __init__(
        self,
        store: ModelStore,
        registry: JobRegistry,
        recorder: SweepRecorder,
        table: SweepTable,
        *,
        max_models: int,
    ) -> None:
        self._store, self._registry, self._recorder = store, registry, recorder
        self._table, self._max_models = table, max_models
        # Ids of sweeps some of whose models should be deleted.
        self._untidy = {sweep_id for sweep_id, sweep in table.sweeps.items() if sweep.list_surplus_models()}
        self._next_tidying = 0.0

    @property
    def has_surplus(self) -> bool:
        """Whether models are left that should be deleted."""
        return bool(self._untidy)

    def check_models_fit(self, planned: PlannedSweep) -> None:
        """Refuse a sweep whose models would replace others, or find no room.

        :raises ConflictError: If one would.
        """
        record = planned.record
        taken = {name.casefold(): name for name in self._store.folder.list_names()}
        for number in range(1, planned.n_jobs + 1):
            own = name_model(record.name, number, planned.n_jobs)
            if own.casefold() in taken:
                raise ConflictError(
                    f"the sweep '{record.name}' would save a model as '{own}', and there is one; pick another name."
                )
        n_most = len(taken) + planned.n_jobs
        if record.request.get("keep") == "all" and n_most > self._max_models:
            raise ConflictError(
                f"with the sweep's {planned.n_jobs} models there would be {n_most}, more than the {self._max_models} "
                "that GRPO_MAX_MODELS allows; send keep='best', try fewer settings, or delete models."
            )

    def pin_init_models(self, record: SweepRecord) -> None:
        """Note which files the jobs begin from, so that all begin alike if one is replaced meanwhile."""
        requests = [record.request.get("base", {}), *record.settings]
        for name in {request["init_model"] for request in requests if request.get("init_model")}:
            with suppress(NotFoundError):  # it was deleted just now, which the first job will say
                if (sha256 := self._store.inspect_file(name).sha256) is not None:
                    record.init_sha256[name] = sha256

    def is_own(self, name: str, sha256: str | None) -> bool:
        """Return whether the model of a name is a file that a trial has saved.

        :param sha256: The file's; None if the trial has saved none.
        :raises ConflictError: If the disk refuses now.
        """
        try:
            found = None if sha256 is None else self._store.find_file(name)
        except ConflictError as error:  # only its disk may be to blame, so that the trial is tried again
            raise ConflictError(error.detail, is_passing=True) from error
        return found is not None and found.sha256 == sha256

    def remove_surplus(self, sweep: Sweep) -> None:
        """Delete the models that are not to be kept, unless others have taken their places."""
        with self._table.changed:
            surplus = [(trial, trial.model_name, trial.sha256, trial.job_id) for trial in sweep.list_surplus_models()]
        for trial, name, sha256, job_id in surplus:
            try:
                is_gone = name is not None and sha256 is not None and self._remove_model(name, sha256, job_id)
            except ServiceError:  # such as a disk that refuses
                self._untidy.add(sweep.sweep_id)
                continue
            if is_gone:
                with self._table.changed:
                    trial.model_name = None
                self._recorder.write(sweep.sweep_id)

    def retry(self) -> None:
        """Delete the models that the disk kept before, if it is time to try again."""
        if not self._untidy or time.monotonic() < self._next_tidying:
            return
        self._next_tidying = time.monotonic() + CHORE_SECONDS
        with self._table.changed:
            untidy = [self._table.sweeps[sweep_id] for sweep_id in self._untidy if sweep_id in self._table.sweeps]
        self._untidy.clear()
        for sweep in untidy:
            self.remove_surplus(sweep)

    def _remove_model(self, name: str, sha256: str, job_id: str | None) -> bool:
        """Delete a model, unless another has taken its place, or it is in use; return whether it is gone.

        :param job_id: The job that has trained it, and saved it before as well if it was stopped and went on.
        :raises ServiceError: If it cannot be deleted now.
        """
        versions = self._store.folder.versions

        def is_surplus() -> bool:
            is_it = self._store.inspect_file(name).sha256 == sha256
            is_begun_from = self._is_begun_from
            return is_it and not is_begun_from(sha256) and not versions.is_in_use(name, job_id, is_begun_from)

        try:
            return self._registry.delete_model(name, is_surplus)
        except NotFoundError:
            return True

    def _is_begun_from(self, sha256: str) -> bool:
        """Tell whether a job that was accepted, or one that a sweep has yet to start, begins from a model's file."""
        with self._table.changed:
            active = (sweep for sweep in self._table.sweeps.values() if sweep.status.is_active)
            is_pinned = any(sha256 in sweep.record.init_sha256.values() for sweep in active)
        return is_pinned or self._registry.is_begun_from(sha256)
