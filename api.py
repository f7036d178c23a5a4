"""The web service: every route, and nothing that is not HTTP."""

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from grpo_core import __version__, rewards
from service.batches import ARRAY_TYPE, answer_array, answer_json
from service.errors import NotFoundError, install_error_handlers
from service.executors import make_executor
from service.inference import infer
from service.jobs import JobRegistry
from service.memory import get_available_bytes, get_total_bytes
from service.model_store import ModelStore, ServedModel
from service.schemas import (
    BatchRequest,
    BatchResponse,
    DeleteResponse,
    ErrorResponse,
    Health,
    InferenceRequest,
    InferenceResponse,
    JobList,
    JobStatus,
    ModelList,
    ModelName,
    ModelSummary,
    ServerInfo,
    StopResponse,
    TrainingStatus,
    TrainRequest,
    TrainResponse,
)
from service.security import BrowserRules, RequestGuard
from service.settings import Settings
from service.shortcut import LARGE_MODEL_BYTES, InferenceShortcut

# Add your own reward functions here, before the server starts: REWARD_FUNCTIONS["my_reward"] = my_reward.
REWARD_FUNCTIONS = dict(rewards.REWARD_FUNCTIONS)

# Batches that are answered at the same time: each makes the event loop wait for the interpreter now and then.
_MAX_RUNNING_BATCHES = 2
# How long an answer to "stop" waits for the job to end, so that it usually has when the client asks next.
_STOP_WAIT_SECONDS = 2.0
_UPKEEP_SECONDS = 5.0
# Between two files that are verified, which takes 1 ms or 2: requests have most of the processor meanwhile.
_VERIFICATION_PAUSE_SECONDS = 0.005

router = APIRouter()


async def _get_store(request: Request) -> ModelStore:
    store: ModelStore = request.app.state.store
    return store


async def _get_registry(request: Request) -> JobRegistry:
    registry: JobRegistry = request.app.state.registry
    return registry


Store = Annotated[ModelStore, Depends(_get_store)]
Registry = Annotated[JobRegistry, Depends(_get_registry)]


def _errors(*status_codes: int) -> dict[int | str, dict[str, object]]:
    return {status_code: {"model": ErrorResponse} for status_code in status_codes}


@router.get("/", tags=["server"], responses=_errors(400, 401))
async def describe_server() -> ServerInfo:
    """Say what the server offers."""
    endpoints = {
        "train": "POST /train",
        "inference": "POST /inference",
        "health": "GET /health",
        "models": "GET /models",
    }
    return ServerInfo(message="GRPO API Server", version=__version__, endpoints=endpoints)


@router.post("/train", tags=["training"], responses=_errors(400, 401, 403, 408, 409, 413, 415, 422, 429, 503))
def start_training(registry: Registry, request: Annotated[TrainRequest | None, Body()] = None) -> TrainResponse:
    """Start a training job and answer at once; every field is optional, and so is the body."""
    registry.check_room()
    registry.warm_up()
    # It imports torch, 2 s and 250 MB that a server which only serves does without.
    from service.configuration import resolve_request

    plan = resolve_request(request or TrainRequest(), REWARD_FUNCTIONS)
    job = registry.submit(plan)
    return TrainResponse(job_id=job.job_id, message="Training started", config=plan.config)


@router.get("/training/{job_id}/status", tags=["training"], responses=_errors(400, 401, 404, 422))
async def get_training_status(job_id: str, registry: Registry) -> TrainingStatus:
    """Say where a job is: progress, metrics, warnings, and where the policy was saved."""
    return registry.get(job_id).describe()


@router.get("/training/jobs", tags=["training"], responses=_errors(400, 401, 404, 422))
def list_training_jobs(
    registry: Registry,
    status: JobStatus | None = None,
    limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
    after: str | None = None,
) -> JobList:
    """List the jobs the server remembers, oldest first: all, or one status, or the page after a job."""
    return JobList(jobs=[job.summarize() for job in registry.list_jobs(status, after, limit)])


@router.post("/training/{job_id}/stop", tags=["training"], responses=_errors(400, 401, 403, 404, 409, 422))
async def stop_training(job_id: str, registry: Registry) -> StopResponse:
    """Stop a queued or running job; the policy so far is kept, under the name its status tells."""
    job = registry.get(job_id)
    job.stop()
    await job.wait_finished(_STOP_WAIT_SECONDS)
    message = "Training job stopped" if job.status.is_final else "Training job stopping"
    return StopResponse(message=message, job_id=job_id)


@router.post("/inference", tags=["inference"], responses=_errors(400, 401, 403, 404, 408, 409, 413, 415, 422))
async def predict(request: InferenceRequest, store: Store, registry: Registry) -> InferenceResponse:
    """Choose an action for one observation of a trained model's environment."""
    model = store.get_cached(request.model_name)
    if model is None:
        model = await run_in_threadpool(_load_model, request.model_name, store, registry)
    arguments = (model, request.observation, request.deterministic, request.action_masks)
    # A small network answers sooner than a thread would begin to.
    return infer(*arguments) if model.n_bytes < LARGE_MODEL_BYTES else await run_in_threadpool(infer, *arguments)


@router.post(
    "/inference/batch",
    tags=["inference"],
    response_model=BatchResponse,
    responses={
        200: {"content": {ARRAY_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
        **_errors(400, 401, 403, 404, 408, 409, 413, 415, 422),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": BatchRequest.model_json_schema()},
                ARRAY_TYPE: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def predict_batch(
    request: Request,
    store: Store,
    registry: Registry,
    model_name: Annotated[ModelName | None, Query(description="The model that an array is for.")] = None,
    deterministic: Annotated[bool, Query(description="The same as in JSON, for an array.")] = True,
) -> Response:
    """Choose actions for many observations: in JSON, each answered for itself, or as one array of `numpy.save`.

    An array comes with the header `Content-Type: application/octet-stream`, and is answered with an array of actions
    if the header `Accept: application/octet-stream` asks for it.
    """
    body = await request.body()
    load_model = partial(_load_model, store=store, registry=registry)
    as_array = False
    answer = partial(answer_json, body, load_model)
    if request.headers.get("content-type", "").split(";")[0].strip().lower() == ARRAY_TYPE:
        as_array = ARRAY_TYPE in request.headers.get("accept", "")
        answer = partial(answer_array, body, model_name, load_model, deterministic, as_array)
    content = await to_thread.run_sync(answer, limiter=request.app.state.batch_limiter)
    return Response(content, media_type=ARRAY_TYPE if as_array else "application/json")


@router.get("/models", tags=["models"], responses=_errors(400, 401))
def list_models(store: Store) -> ModelList:
    """List the model files: `loaded` in memory, `saved` on disk, `corrupt`, or `unsafe` (not written by GRPO)."""
    return ModelList(models=[ModelSummary(name=name, status=status) for name, status in store.list_models()])


@router.delete("/models/{model_name}", tags=["models"], responses=_errors(400, 401, 403, 404, 409, 422))
def delete_model(model_name: str, registry: Registry) -> DeleteResponse:
    """Delete a model from memory and disk."""
    registry.delete_model(model_name)
    return DeleteResponse(message="Model deleted", model_name=model_name)


@router.get("/health", tags=["server"], responses=_errors(400))
async def check_health(store: Store, registry: Registry) -> Health:
    """Say that the server lives, and what it holds. Needs no API key."""
    return Health(
        status="healthy",
        timestamp=datetime.now(UTC),
        active_jobs=registry.count_active(),
        loaded_models=store.n_loaded,
        lost_slots=registry.n_lost_slots,
    )


def _load_model(model_name: str, store: ModelStore, registry: JobRegistry) -> ServedModel:
    try:
        return store.get(model_name)
    except NotFoundError as error:
        job = registry.find_active(model_name)
        if job is None:
            raise
        raise NotFoundError(
            f"there is no model '{model_name}' yet: job {job.job_id} is {job.status} and saves it when it completes."
        ) from error


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if app.state.settings.preload:
        # In a thread that nobody waits for: the server answers meanwhile, and may end.
        arguments = ("service.configuration",)
        threading.Thread(target=importlib.import_module, args=arguments, name="grpo-preload", daemon=True).start()
        app.state.registry.warm_up()
    upkeep = asyncio.create_task(_keep_store(app.state.store))
    try:
        yield
    finally:
        upkeep.cancel()
        grace_seconds = app.state.settings.shutdown_grace_seconds
        await run_in_threadpool(app.state.registry.shutdown, grace_seconds)
        with suppress(asyncio.CancelledError):
            await upkeep


async def _keep_store(store: ModelStore) -> None:
    while True:
        while await run_in_threadpool(store.verify_next):
            await asyncio.sleep(_VERIFICATION_PAUSE_SECONDS)
        await asyncio.sleep(_UPKEEP_SECONDS)
        store.unload_under_pressure()


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the service.

    :param settings: None reads them from the process environment.
    :raises OSError: If the models folder cannot be created or written to.
    """
    settings = settings or Settings()
    app = FastAPIOffline(
        title="GRPO API",
        version=__version__,
        summary="Train reinforcement-learning policies with GRPO, and ask them for actions.",
        lifespan=_lifespan,
        # Swagger UI would ask a validator on the web about this schema.
        swagger_ui_parameters={"validatorUrl": None},
        # Nobody collects it, and finding that out would take longer than many an answer.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.settings = settings
    app.state.store = ModelStore(
        settings.models_dir,
        settings.max_cached_models,
        settings.max_cached_bytes,
        get_available_bytes,
        get_total_bytes(),
    )
    app.state.registry = JobRegistry(
        app.state.store,
        make_executor(settings.executor),
        settings.max_running_jobs,
        settings.max_queued_jobs,
        settings.max_kept_jobs,
        settings.stall_seconds,
    )
    app.state.batch_limiter = CapacityLimiter(_MAX_RUNNING_BATCHES)
    app.include_router(router)
    install_error_handlers(app)
    app.add_middleware(InferenceShortcut, store=app.state.store)
    app.add_middleware(RequestGuard, settings=settings)
    # Outside the guard, so that pages may read refusals too.
    app.add_middleware(BrowserRules, settings=settings)
    return app


def __getattr__(name: str) -> FastAPI:
    """Build ``app`` when it is first asked for: ``uvicorn api:app`` works, and importing this module costs nothing."""
    if name != "app":
        raise AttributeError(f"module 'api' has no attribute '{name}'")
    app = globals()["app"] = create_app()
    return app
