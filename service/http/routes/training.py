"""Training jobs: starting, watching, stopping."""

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BeforeValidator, NonNegativeInt
from starlette.concurrency import run_in_threadpool

from service.app import Service
from service.http import examples
from service.http.films import FILM_RESPONSES, OrderedFilm, answer_film
from service.http.limits.clients import find_client
from service.http.routes.dependencies import CurrentService, errors, note_leaving
from service.http.routes.unambiguous_route import UnambiguousRoute
from service.http.unexpected_input import check_plain_integer
from service.jobs.job import Job
from service.jobs.views.learning_curve import Theme, draw_curve
from service.jobs.views.listing import OLDEST_FIRST, JobQuery, choose_page
from service.jobs.views.metrics_table import describe_metrics, write_csv
from service.schemas.jobs import (
    JobDeleteResponse,
    JobList,
    JobMetrics,
    JobSort,
    JobStatus,
    JobSummary,
    LabelRequest,
    ResumeResponse,
    StopResponse,
    TrainingStatus,
)
from service.schemas.training import TrainRequest, TrainResponse

# A stop is answered after at most this long, by when the job has usually ended.
_STOP_WAIT_SECONDS = 2.0

JobId = Annotated[
    str,
    PathParameter(description="A job's id, or `latest` for the newest job.", openapi_examples=examples.JOB_ID),
]

router = APIRouter(tags=["training"], route_class=UnambiguousRoute)


async def _get_job(service: Service, job_id: str) -> Job:
    """Return a job; one that ended long ago is read from the disk, in a thread.

    :raises NotFoundError: If it never existed, has been forgotten, or cannot be read.
    """
    job = service.registry.find_in_memory(job_id)
    return await run_in_threadpool(service.registry.get, job_id) if job is None else job


@router.post("/train", responses=errors(403, 408, 409, 413, 415))
async def start_training(
    service: CurrentService,
    http_request: Request,
    request: Annotated[TrainRequest | None, Body(openapi_examples=examples.TRAIN)] = None,
) -> TrainResponse:
    """Start a training job and return at once; every field, and the body itself, is optional."""
    service.admission.check_queue()
    start = partial(service.admission.start_job, request or TrainRequest(), find_client(http_request.scope))
    job = await to_thread.run_sync(start, limiter=service.admission.planning_limiter)
    return TrainResponse(
        job_id=job.job_id,
        message="Training started",
        config=job.config,
        config_origins=job.plan.config_origins,
        warnings=job.warnings,
    )


@router.get("/training/{job_id}/status", responses=errors(404))
async def get_training_status(job_id: JobId, service: CurrentService) -> TrainingStatus:
    """Return a job's status: progress, metrics, warnings, and where the policy was saved."""
    job = await _get_job(service, job_id)
    if job.status.is_final:
        await run_in_threadpool(service.registry.check_checkpoint, job)
    return job.describe()


@router.get(
    "/training/{job_id}/metrics",
    response_model=JobMetrics,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}, **errors(404)},
)
def get_training_metrics(
    job_id: JobId,
    service: CurrentService,
    format: Annotated[Literal["json", "csv"], Query(description="Format of the answer.")] = "json",
) -> Response | JobMetrics:
    """Return a job's metrics since it began, rollout by rollout."""
    job = service.registry.get(job_id)
    if format == "json":
        return describe_metrics(job)
    headers = {"Content-Disposition": f'attachment; filename="{job.job_id}.csv"'}
    return Response(write_csv(job.history.list_rows()), media_type="text/csv", headers=headers)


async def _open_stream(job_id: JobId, service: CurrentService) -> AsyncIterator[Job]:
    job = await _get_job(service, job_id)
    with service.streams.open():
        yield job


@router.get("/training/{job_id}/events", response_class=EventSourceResponse, responses=errors(404))
async def stream_training_events(
    job: Annotated[Job, Depends(_open_stream)],
    service: CurrentService,
    after: Annotated[int, Query(ge=0, description="Id of an event; only later ones are sent.")] = 0,
    last_event_id: Annotated[
        NonNegativeInt | None,
        BeforeValidator(check_plain_integer),
        Header(alias="Last-Event-ID", description="The same; browsers send it when they reconnect."),
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Send a job's events as they happen, from the first one on, until it ends."""
    async for event in service.streams.follow(job, after if last_event_id is None else last_event_id):
        yield ServerSentEvent(raw_data=json.dumps(event.payload), event=event.name, id=str(event.event_id))


@router.get(
    "/training/{job_id}/curve",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        **errors(404),
    },
)
async def draw_training_curve(
    job_id: JobId,
    service: CurrentService,
    metric: Annotated[str, Query(description="Key of a metric of the job.")] = "rollout/ep_rew_mean",
    theme: Annotated[Theme, Query(description="Background that the picture is for.")] = "light",
) -> Response:
    """Draw one of a job's metrics over its simulator steps, as a PNG."""
    draw = partial(draw_curve, await _get_job(service, job_id), metric, theme)
    picture = await to_thread.run_sync(draw, limiter=service.drawing_limiter)
    return Response(picture, media_type="image/png")


# A dependency, or the schema would list it before the film's.
async def _read_of(
    of: Annotated[
        str | None,
        Query(min_length=64, max_length=64, description="The `ETag` of a film that was made before: it comes again."),
    ] = None,
) -> str | None:
    return of


@router.get(
    "/training/{job_id}/video",
    response_class=Response,
    responses={**FILM_RESPONSES, **errors(404, 409, 412, 413, 416, 507)},
    dependencies=[Depends(note_leaving)],
)
def film_training(
    job_id: JobId,
    service: CurrentService,
    request: Request,
    order: OrderedFilm,
    of: Annotated[str | None, Depends(_read_of)],
) -> Response:
    """Film one episode of a job's newest policy: its latest checkpoint's while it trains, then the one it saved."""
    film, timesteps = service.films.film(job_id, order, of)
    return answer_film(request, film, {} if timesteps is None else {"X-Checkpoint-Timesteps": str(timesteps)})


@router.get("/training/jobs", response_model=JobList, responses=errors(404))
def list_training_jobs(
    service: CurrentService,
    status: JobStatus | None = None,
    limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
    after: str | None = None,
    sort: Annotated[JobSort, Query(description="Field to sort by; a minus before it turns the order around.")] = (
        OLDEST_FIRST
    ),
    search: Annotated[
        str, Query(max_length=200, description="Words that a job's names, id, environment, tags and note all have.")
    ] = "",
    env_name: Annotated[str | None, Query(description="Only jobs in this environment.")] = None,
    tag: Annotated[str | None, Query(description="Only jobs with this tag.")] = None,
    hidden: Annotated[bool | None, Query(description="Only hidden jobs, or only the others.")] = None,
) -> Response:
    """List the jobs the server remembers, oldest first unless sorted otherwise; `after` and `limit` ask for a page.

    The header `X-Total-Count` gives the number of jobs on all pages.
    """
    after_id = None if after is None else service.registry.find_id(after)
    statuses = None if status is None else frozenset({status})
    query = JobQuery(statuses=statuses, env_name=env_name, tag=tag, hidden=hidden, search=search, sort=sort)
    page = choose_page(service.registry.list_lines(), query, after_id, limit=limit)
    # Each line was written when it was first asked for: there may be thousands.
    content = b'{"jobs":[' + b",".join(job.json_line for job in page.jobs) + b"]}"
    return Response(content, media_type="application/json", headers={"X-Total-Count": str(page.n_jobs)})


@router.patch("/training/{job_id}", responses=errors(403, 404, 408, 409, 413, 415, 507))
def label_training(job_id: JobId, service: CurrentService, request: LabelRequest) -> JobSummary:
    """Write a display name, tags or a note on a job, or hide it; what is left out stays as it is."""
    changes = request.model_dump(exclude_unset=True)
    empty: dict[str, Any] = {"tags": [], "note": "", "hidden": False}
    changes = {name: empty.get(name) if value is None else value for name, value in changes.items()}
    return service.registry.label(job_id, changes).summarize()


@router.delete("/training/{job_id}", responses=errors(403, 404, 409, 507))
def delete_training(job_id: JobId, service: CurrentService) -> JobDeleteResponse:
    """Forget a job that has ended, with its metrics and its checkpoint; the model that it has saved stays."""
    return JobDeleteResponse(message="Training job deleted", job_id=service.registry.delete(job_id))


@router.post("/training/{job_id}/stop", responses=errors(403, 404, 409))
async def stop_training(job_id: JobId, service: CurrentService) -> StopResponse:
    """Stop a queued or running job; the policy so far is saved under the name that its status shows."""
    job = await _get_job(service, job_id)
    await run_in_threadpool(service.registry.stop, job)  # which writes it down
    await job.wait_finished(_STOP_WAIT_SECONDS)
    message = "Training job stopped" if job.status.is_final else "Training job stopping"
    return StopResponse(message=message, job_id=job.job_id)


@router.post("/training/{job_id}/resume", responses=errors(403, 404, 409))
async def resume_training(job_id: JobId, service: CurrentService, http_request: Request) -> ResumeResponse:
    """Let a stopped or failed job go on from its checkpoint; without one it begins again.

    One that has finished and could not be saved, as on a full disk, is only saved.
    """
    job = await run_in_threadpool(service.admission.resume_job, job_id, find_client(http_request.scope))
    timesteps = job.state.begins_at
    return ResumeResponse(message="Training resumed", job_id=job.job_id, timesteps=timesteps, config=job.config)
