"""What the conductor notes of a sweep beside its jobs."""

from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import ConflictError, InvalidRequestError, QueueFullError, ServiceError
from service.schemas.jobs import JobStatus
from service.schemas.sweeps import SweepStatus, TrialStatus
from service.sweeps.conductor import Conductor
from service.sweeps.sweep import Sweep
from service.sweeps.sweep_models import SweepModels
from service.sweeps.table import SweepTable
from tests.service.sweeps.test_sweep import make_job, make_sweep
from tests.support import PATIENCE_SECONDS


def make_conductor(sweep: Sweep, answers: list[ServiceError | None]) -> tuple[Conductor, SweepTable]:
    """Make a conductor whose jobs are refused, or, with None, never made since the budget does not allow them."""
    table, quiet = SweepTable(), SimpleNamespace(write=lambda sweep_id: None)
    table.sweeps[sweep.sweep_id] = sweep
    table.turns.append(sweep.sweep_id)
    parts: Any = (quiet, quiet, SimpleNamespace(get=lambda job_id: None, find_recent=lambda job_id: None), quiet)
    conductor = Conductor(table, *parts)

    def start_job(sweep: Sweep, trial: Any) -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    conductor._start_job = start_job  # type: ignore[method-assign]
    return conductor, table


@pytest.mark.parametrize("then", [None, InvalidRequestError("its model is gone.")], ids=["no-budget", "refused"])
def test_a_sweep_is_held_by_nothing_once_its_job_waits_no_more(then: ServiceError | None) -> None:
    sweep = make_sweep(300)
    conductor, _ = make_conductor(sweep, [QueueFullError("the queue is full."), then])
    trial = sweep.record.trials[0]
    assert not conductor._start(sweep, trial)
    assert sweep.held_by == "the queue is full."
    assert conductor._start(sweep, trial)
    assert sweep.held_by is None


def test_the_servers_end_is_not_taken_for_the_sweeps() -> None:
    sweep, jobs = make_sweep(300), [make_job(), make_job()]
    conductor, table = make_conductor(sweep, [])
    for trial, job in zip(sweep.record.trials, jobs, strict=True):
        sweep.note_job(trial, job)
        job.stop("shutdown")
        job.give_up(JobStatus.STOPPED, "it did not end in time.")
        conductor._seen_jobs[job.job_id] = job
    table.is_closing = True
    assert conductor._look() == [sweep]
    assert (sweep.status, {trial.status for trial in sweep.record.trials}) == (
        SweepStatus.RUNNING,
        {TrialStatus.WAITING},
    )


def test_a_server_that_closes_during_a_round_waits_for_nothing() -> None:
    conductor, table = make_conductor(make_sweep(300), [])
    table.turns.clear()

    def go_round() -> float:
        conductor.begin_close()
        return 1.0

    conductor._go_round = go_round  # type: ignore[method-assign]
    conductor.start()
    assert conductor._thread is not None
    conductor._thread.join(PATIENCE_SECONDS)
    assert not conductor._thread.is_alive()


def test_a_disk_that_does_not_say_whose_a_model_is_ends_no_trial() -> None:
    sweep = make_sweep(300)
    trial = sweep.record.trials[0]
    trial.sha256 = "a" * 64

    def find_file(name: str) -> None:
        raise ConflictError(f"model '{name}' cannot be read: Input/output error.")

    parts: Any = (SimpleNamespace(find_file=find_file), None, None, SweepTable())
    models = SweepModels(*parts, max_models=100)
    conductor, _ = make_conductor(sweep, [])
    conductor._start_job = lambda sweep, trial: models.is_own("m", trial.sha256)  # type: ignore[method-assign,assignment,return-value]
    assert not conductor._start(sweep, trial)
    assert (trial.status, sweep.held_by) == (TrialStatus.WAITING, "model 'm' cannot be read: Input/output error.")
