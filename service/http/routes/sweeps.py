"""Sweeps: starting, watching, stopping."""

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Body, Query, Request
from fastapi import Path as PathParameter

from service.http import examples
from service.http.limits.clients import find_client
from service.http.routes.dependencies import CurrentService, errors
from service.http.routes.unambiguous_route import UnambiguousRoute
from service.schemas.sweeps import SweepDescription, SweepList, SweepMessage, SweepRequest, SweepStarted, SweepSummary

SweepId = Annotated[
    str,
    PathParameter(description="A sweep's id, or `latest` for the newest one.", openapi_examples=examples.SWEEP_ID),
]

router = APIRouter(tags=["sweeps"], route_class=UnambiguousRoute)


@router.post("/sweeps", responses=errors(403, 408, 409, 413, 415))
async def start_sweep(
    service: CurrentService,
    http_request: Request,
    request: Annotated[SweepRequest, Body(openapi_examples=examples.SWEEP)],
) -> SweepStarted:
    """Try several settings, each in jobs of its own, which start as places come free; return at once."""
    service.admission.check_planning()
    # Where clients are not limited, all sweeps are the operator's own.
    client = find_client(http_request.scope) if service.settings.limits_clients else None
    create = partial(service.sweeps.create, request, client)
    planned = await to_thread.run_sync(create, limiter=service.admission.planning_limiter)
    return SweepStarted(
        message="Sweep started",
        sweep_id=planned.record.sweep_id,
        name=planned.record.name,
        seed=planned.seed,
        n_settings=len(planned.record.settings),
        n_jobs=planned.n_jobs,
        timesteps=planned.timesteps,
    )


@router.get("/sweeps", responses=errors(404))
def list_sweeps(
    service: CurrentService,
    limit: Annotated[int, Query(ge=1, le=200, description="The most sweeps to list.")] = 50,
    after: Annotated[str | None, Query(description="Id of a sweep; only those before it are listed.")] = None,
) -> SweepList:
    """List the sweeps the server remembers, newest first; page with `after` and `limit`."""
    sweeps, n_total = service.sweeps.list_page(limit, after)
    return SweepList(sweeps=sweeps, n_total=n_total)


@router.get("/sweeps/{sweep_id}", responses=errors(404))
def describe_sweep(sweep_id: SweepId, service: CurrentService) -> SweepDescription:
    """Describe a sweep: its settings by what they earned, their jobs, and which is the best."""
    sweep = service.sweeps.describe(sweep_id)
    if sweep.best is not None:
        sweep.best.model_name = service.sweeps.find_best_model(sweep)
    return sweep


@router.post("/sweeps/{sweep_id}/stop", responses=errors(403, 404, 409))
def stop_sweep(sweep_id: SweepId, service: CurrentService) -> SweepMessage:
    """Stop all jobs of a sweep, and start no more; its best model is kept."""
    return _confirm("Sweep stopping", service.sweeps.stop(sweep_id))


@router.post("/sweeps/{sweep_id}/resume", responses=errors(403, 404, 409))
async def resume_sweep(sweep_id: SweepId, service: CurrentService) -> SweepMessage:
    """Go on with a sweep that was stopped, or interrupted by the end of the server."""
    service.admission.check_planning()
    resume = partial(service.sweeps.resume, sweep_id)
    return _confirm("Sweep resumed", await to_thread.run_sync(resume, limiter=service.admission.planning_limiter))


@router.delete("/sweeps/{sweep_id}", responses=errors(403, 404, 409, 507))
def delete_sweep(sweep_id: SweepId, service: CurrentService) -> SweepMessage:
    """Forget a sweep that has ended; its jobs and the models that it has kept stay."""
    return _confirm("Sweep deleted", service.sweeps.delete(sweep_id))


def _confirm(message: str, sweep: SweepSummary) -> SweepMessage:
    return SweepMessage(message=message, sweep_id=sweep.sweep_id, name=sweep.name)
