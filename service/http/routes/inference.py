"""Asking trained policies for actions."""

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Body, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service.errors import NotFoundError
from service.http import examples
from service.http.fast_inference import LARGE_MODEL_BYTES
from service.http.routes.dependencies import Observer, Registry, Store, errors
from service.inference.batch import ARRAY_TYPE, answer_array, answer_json
from service.inference.single import infer
from service.jobs.registry import JobRegistry
from service.models.store import ModelStore, ServedModel
from service.schemas.fields import ModelName
from service.schemas.inference import BatchRequest, BatchResponse, InferenceRequest, InferenceResponse

router = APIRouter(tags=["inference"])


@router.post("/inference", responses=errors(400, 401, 403, 404, 408, 409, 413, 415, 422))
async def predict(
    request: Annotated[InferenceRequest, Body(openapi_examples=examples.INFERENCE)],
    store: Store,
    registry: Registry,
    metrics: Observer,
) -> InferenceResponse:
    """Choose an action for one observation of a trained model's environment."""
    model = store.get_cached(request.model_name)
    if model is None:
        model = await run_in_threadpool(_load_model, request.model_name, store, registry)
    arguments = (model, request.observation, request.deterministic, request.action_masks)
    answer = partial(metrics.measure_inference, infer, *arguments)
    # A small network answers sooner than a thread would begin to.
    return answer() if model.n_bytes < LARGE_MODEL_BYTES else await run_in_threadpool(answer)


@router.post(
    "/inference/batch",
    response_model=BatchResponse,
    responses={
        200: {"content": {ARRAY_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
        **errors(400, 401, 403, 404, 408, 409, 413, 415, 422),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": BatchRequest.model_json_schema(), "example": examples.BATCH},
                ARRAY_TYPE: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def predict_batch(
    request: Request,
    store: Store,
    registry: Registry,
    metrics: Observer,
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
    measured = partial(metrics.measure_batch, answer)
    content = await to_thread.run_sync(measured, limiter=request.app.state.batch_limiter)
    return Response(content, media_type=ARRAY_TYPE if as_array else "application/json")


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
