"""Trained models: listing, cards, evaluation, films, deletion."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response

from service.http import examples
from service.http.problems import Refusal, error_response
from service.http.ranges import choose_part, is_known
from service.http.routes.dependencies import CurrentService, ModelNameInPath, errors
from service.models.card import make_card
from service.models.player import MEDIA_TYPES
from service.schemas.fields import MAX_FILM_STEPS, MAX_PLAY_SEED
from service.schemas.models import (
    DeleteResponse,
    EvaluateRequest,
    EvaluateResponse,
    ModelCard,
    ModelList,
    ModelSummary,
    VideoFormat,
)

_FILM_CONTENT = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES.values()}

router = APIRouter(tags=["models"])


@router.get("/models", responses=errors())
def list_models(service: CurrentService) -> ModelList:
    """List the models: `loaded` in memory, `saved` on disk, `corrupt`, or `unsafe` (not written by GRPO)."""
    return ModelList(models=[ModelSummary(name=name, status=status) for name, status in service.store.list_models()])


@router.get("/models/{model_name}", responses=errors(404, 409))
def describe_model(model_name: ModelNameInPath, service: CurrentService) -> ModelCard:
    """Describe a model: spaces, environment, reward, hyperparameters, steps, evaluation, versions."""
    return make_card(service.store, model_name, service.player.find_evaluation)


@router.post("/models/{model_name}/evaluate", responses=errors(403, 404, 408, 409, 413, 415))
def evaluate_model(
    model_name: ModelNameInPath,
    service: CurrentService,
    request: Annotated[EvaluateRequest | None, Body(openapi_examples=examples.EVALUATE)] = None,
) -> EvaluateResponse:
    """Evaluate a model over seeded episodes, next to random actions on the same seeds; every field is optional."""
    request = request or EvaluateRequest()
    return service.player.evaluate(model_name, request.n_episodes, request.seed, request.deterministic)


@router.get(
    "/models/{model_name}/video",
    response_class=Response,
    responses={
        200: {"content": _FILM_CONTENT},
        206: {"description": "The part that `Range` asks for.", "content": _FILM_CONTENT},
        304: {"description": "The film still matches `If-None-Match`."},
        **errors(404, 409, 413, 416),
    },
)
def film_model(
    model_name: ModelNameInPath,
    service: CurrentService,
    request: Request,
    video_format: Annotated[VideoFormat, Query(alias="format", description="`gif` loops; `mp4` is smaller.")] = "gif",
    seed: Annotated[int, Query(ge=0, le=MAX_PLAY_SEED, description="Seed of the episode.")] = 0,
    deterministic: Annotated[bool, Query(description="Take the most likely actions instead of drawing them.")] = True,
    max_steps: Annotated[int, Query(ge=1, le=MAX_FILM_STEPS, description="Cut the episode after so many steps.")] = 500,
) -> Response:
    """Film one episode of a model; the headers `X-Episode-Reward` and `X-Episode-Length` give its reward and length."""
    film = service.player.film(model_name, video_format, seed, deterministic, max_steps)
    headers = {"X-Episode-Reward": str(film.reward), "X-Episode-Length": str(film.n_steps)}
    etag = f'"{hashlib.sha256(film.content).hexdigest()}"'
    if is_known(request, etag):
        return Response(status_code=304, headers={"ETag": etag, **headers})
    part = choose_part(request, len(film.content), etag)
    if isinstance(part, Refusal):
        return error_response(*part)
    content = film.content[part.start : part.start + part.n_bytes]
    return Response(content, part.status_code, {**headers, **part.headers}, film.media_type)


@router.delete("/models/{model_name}", responses=errors(403, 404, 409))
def delete_model(model_name: ModelNameInPath, service: CurrentService) -> DeleteResponse:
    """Delete a model from memory and disk."""
    service.registry.delete_model(model_name)
    return DeleteResponse(message="Model deleted", model_name=model_name)
