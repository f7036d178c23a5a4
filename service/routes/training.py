"""Training jobs."""

from typing import Annotated

from fastapi import APIRouter, Body, Query

from service.routes.dependencies import Registry, RewardFunctions, errors
from service.schemas import JobList, JobStatus, StopResponse, TrainingStatus, TrainRequest, TrainResponse

# How long an answer to "stop" waits for the job to end, so that it usually has when the client asks next.
_STOP_WAIT_SECONDS = 2.0

router = APIRouter(tags=["training"])


@router.post("/train", responses=errors(400, 401, 403, 408, 409, 413, 415, 422, 429, 503))
def start_training(
    registry: Registry, reward_functions: RewardFunctions, request: Annotated[TrainRequest | None, Body()] = None
) -> TrainResponse:
    """Start a training job and answer at once; every field is optional, and so is the body."""
    registry.check_room()
    registry.warm_up()
    # It imports torch, 2 s and 250 MB that a server which only serves does without.
    from service.configuration import resolve_request

    plan = resolve_request(request or TrainRequest(), reward_functions)
    job = registry.submit(plan)
    return TrainResponse(job_id=job.job_id, message="Training started", config=plan.config)


@router.get("/training/{job_id}/status", responses=errors(400, 401, 404, 422))
async def get_training_status(job_id: str, registry: Registry) -> TrainingStatus:
    """Say where a job is: progress, metrics, warnings, and where the policy was saved."""
    return registry.get(job_id).describe()


@router.get("/training/jobs", responses=errors(400, 401, 404, 422))
def list_training_jobs(
    registry: Registry,
    status: JobStatus | None = None,
    limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
    after: str | None = None,
) -> JobList:
    """List the jobs the server remembers, oldest first: all, or one status, or the page after a job."""
    return JobList(jobs=[job.summarize() for job in registry.list_jobs(status, after, limit)])


@router.post("/training/{job_id}/stop", responses=errors(400, 401, 403, 404, 409, 422))
async def stop_training(job_id: str, registry: Registry) -> StopResponse:
    """Stop a queued or running job; the policy so far is kept, under the name its status tells."""
    job = registry.get(job_id)
    job.stop()
    await job.wait_finished(_STOP_WAIT_SECONDS)
    message = "Training job stopped" if job.status.is_final else "Training job stopping"
    return StopResponse(message=message, job_id=job_id)
