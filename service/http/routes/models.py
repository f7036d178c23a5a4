"""Trained models: listing, cards, evaluation, films, deletion."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request, Response

from service.http import examples
from service.http.file_headers import check_change
from service.http.films import FILM_RESPONSES, OrderedFilm, answer_film
from service.http.routes.dependencies import CurrentService, ModelNameInPath, errors, note_leaving
from service.http.routes.unambiguous_route import UnambiguousRoute
from service.models.card import make_card
from service.schemas.models import (
    DeleteResponse,
    EvaluateRequest,
    EvaluateResponse,
    ModelCard,
    ModelList,
    ModelSummary,
)

router = APIRouter(tags=["models"], route_class=UnambiguousRoute)


@router.get("/models", responses=errors())
def list_models(service: CurrentService) -> ModelList:
    """List the models: `loaded` in memory, `saved` on disk, `corrupt`, or `unsafe` (not written by GRPO)."""
    return ModelList(models=[ModelSummary(name=name, status=status) for name, status in service.store.list_models()])


@router.get("/models/{model_name}", responses=errors(404, 409))
def describe_model(model_name: ModelNameInPath, service: CurrentService) -> ModelCard:
    """Describe a model: spaces, environment, reward, hyperparameters, steps, evaluation, versions."""
    file = service.store.inspect_file(model_name)
    return make_card(model_name, file, service.player.find_evaluation)


@router.post(
    "/models/{model_name}/evaluate",
    responses=errors(403, 404, 408, 409, 413, 415),
    dependencies=[Depends(note_leaving)],
)
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
    responses={**FILM_RESPONSES, **errors(404, 409, 412, 413, 416, 507)},
    dependencies=[Depends(note_leaving)],
)
def film_model(
    model_name: ModelNameInPath,
    service: CurrentService,
    request: Request,
    order: OrderedFilm,
) -> Response:
    """Film one episode of a model; the headers `X-Episode-Reward` and `X-Episode-Length` give its reward and length."""
    return answer_film(request, service.player.film(model_name, order))


@router.delete("/models/{model_name}", responses=errors(403, 404, 409, 412, 507))
def delete_model(model_name: ModelNameInPath, service: CurrentService, request: Request) -> DeleteResponse:
    """Delete a model from memory and disk; with `If-Match`, only the file with that `ETag`."""

    def is_meant() -> bool:
        check_change(request, partial(service.store.find_file, model_name))
        return True

    service.registry.delete_model(model_name, is_meant)
    return DeleteResponse(message="Model deleted", model_name=model_name)
