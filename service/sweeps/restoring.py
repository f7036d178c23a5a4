"""Find sweeps of earlier servers again: those that were active are interrupted, with what their jobs did."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from service.errors import NotFoundError
from service.jobs.job import Job
from service.jobs.registry import JobRegistry
from service.schemas.sweeps import Trial, TrialStatus
from service.sweeps.sweep import Sweep


def interrupt_sweeps(sweeps: Iterable[Sweep], registry: JobRegistry) -> list[Sweep]:
    """Note how the sweeps that were active were when the last server ended; return them.

    :param registry: Where their jobs are looked up.
    """
    interrupted = [sweep for sweep in sweeps if sweep.status.is_active]
    if interrupted:
        newest = {line.summary.model_name: line.job_id for line in registry.list_lines()}
        for sweep in interrupted:
            _interrupt(sweep, registry, newest)
    return interrupted


def find_trial_job(registry: JobRegistry, trial: Trial) -> Job | None:
    """Return the job of a trial; None if it has no job, or the job is forgotten."""
    if trial.job_id is None:
        return None
    try:
        return registry.get(trial.job_id)
    except NotFoundError:
        return None


def _interrupt(sweep: Sweep, registry: JobRegistry, newest: Mapping[str, str]) -> None:
    """Note how a sweep was when the last server ended.

    :param newest: Ids of the newest jobs by the names of their models.
    """
    for trial in sweep.record.trials:
        # A job that was started last may not have been noted.
        job = None if trial.status.is_final else _find_own_job(sweep, registry, newest.get(sweep.name_model(trial)))
        if job is not None and job.job_id != trial.job_id:
            sweep.note_job(trial, job)
    for trial in sweep.list_active():
        job = find_trial_job(registry, trial)
        if job is not None and job.status.is_final:
            sweep.observe(trial, job)
        if trial.status is not TrialStatus.COMPLETED:
            trial.status = TrialStatus.INTERRUPTED
    sweep.interrupt()


def _find_own_job(sweep: Sweep, registry: JobRegistry, job_id: str | None) -> Job | None:
    """Return a job if it is one of a sweep's."""
    if job_id is None:
        return None
    with suppress(NotFoundError):
        job = registry.get(job_id)
        return job if job.plan.sweep_id == sweep.sweep_id else None
    return None
