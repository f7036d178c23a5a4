"""Find again what sweeps have lost sight of: sweeps of earlier servers, and jobs that went on without theirs."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from service.errors import NotFoundError
from service.jobs.job import Job
from service.jobs.registry import JobRegistry
from service.schemas.jobs import JobStatus
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


def list_gone_on(sweep: Sweep, registry: JobRegistry) -> list[tuple[Trial, Job]]:
    """List the trials that a sweep takes for ended, and whose jobs are active or have completed since.

    Somebody has resumed them, or they have outlived their server. The disk is not read.
    """
    gone_on = []
    for trial in sweep.record.trials:
        if trial.job_id is not None and not trial.status.is_active and trial.status is not TrialStatus.COMPLETED:
            job = registry.find_recent(trial.job_id)
            if job is not None and (not job.status.is_final or job.status is JobStatus.COMPLETED):
                gone_on.append((trial, job))
    return gone_on


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
