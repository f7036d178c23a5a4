"""Actions from trained policies."""

from contextlib import suppress
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Body, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service.errors import InvalidFieldsError
from service.http import examples
from service.http.routes.dependencies import CurrentService, errors
from service.inference.batch import ARRAY_TYPE, answer_array, answer_json
from service.inference.infer import LARGE_MODEL_BYTES, encode, infer
from service.schemas.fields import ModelReference
from service.schemas.inference import BatchRequest, BatchResponse, InferenceRequest, InferenceResponse

router = APIRouter(tags=["inference"])


@router.post("/inference", response_model=InferenceResponse, responses=errors(403, 404, 408, 409, 413, 415))
async def predict(
    request: Annotated[InferenceRequest, Body(openapi_examples=examples.INFERENCE)],
    service: CurrentService,
) -> Response:
    """Choose an action for one observation of a trained model's environment."""
    model = service.store.get_cached(request.model_name)
    if model is None:
        model = await run_in_threadpool(service.load_model, request.model_name)
    arguments = (model, request.observation, request.deterministic, request.action_masks)
    answer = partial(service.metrics.measure_inference, infer, *arguments)
    # A small network answers sooner than a thread would begin to.
    found = answer() if model.n_bytes < LARGE_MODEL_BYTES else await run_in_threadpool(answer)
    return Response(encode(found), media_type="application/json")


@router.post(
    "/inference/batch",
    response_model=BatchResponse,
    responses={
        200: {"content": {ARRAY_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
        **errors(403, 404, 408, 409, 413, 415),
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
    service: CurrentService,
    model_name: Annotated[
        ModelReference | None, Query(description="Name of a trained model; for an array only.")
    ] = None,
    deterministic: Annotated[bool, Query(description="As in JSON; for an array only.")] = True,
) -> Response:
    """Choose actions for many observations: JSON, where each gets its own answer, or one array from `numpy.save`.

    Send an array with the header `Content-Type: application/octet-stream`; add `Accept: application/octet-stream` to
    get an array of actions back.
    """
    body = await request.body()
    as_array = False
    answer = partial(answer_json, body, service.load_model)
    if request.headers.get("content-type", "").split(";")[0].strip().lower() == ARRAY_TYPE:
        as_array = _is_array_wanted(_read_weights(request.headers.getlist("accept")))
        answer = partial(answer_array, body, model_name, service.load_model, deterministic, as_array)
    elif request.query_params:
        message = "this is for an array; with JSON, send it in the body"
        raise InvalidFieldsError(
            [{"type": "query_of_array", "loc": ("query", name), "msg": message} for name in request.query_params]
        )
    measured = partial(service.metrics.measure_batch, answer)
    content = await to_thread.run_sync(measured, limiter=service.batch_limiter)
    return Response(content, media_type=ARRAY_TYPE if as_array else "application/json")


def _is_array_wanted(weights: dict[str, float]) -> bool:
    """Return whether an array is wanted more than JSON, or as much and by its name."""
    array, as_json = _weigh(ARRAY_TYPE, weights), _weigh("application/json", weights)
    return array > 0.0 and (array > as_json or (array == as_json and ARRAY_TYPE in weights))


def _weigh(kind: str, weights: dict[str, float]) -> float:
    """Return how much a media type is wanted: what names it more closely counts."""
    return next((weights[name] for name in (kind, "application/*", "*/*") if name in weights), 0.0)


def _read_weights(headers: list[str]) -> dict[str, float]:
    """Return how much each media type of ``Accept`` is wanted, from 0 to 1; a weight that is no number counts as 1."""
    weights: dict[str, float] = {}
    for wanted in ",".join(headers).lower().split(","):
        kind, *parameters = (part.strip() for part in wanted.split(";"))
        weights[kind] = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                with suppress(ValueError):
                    weights[kind] = float(parameter[2:])
    return weights
