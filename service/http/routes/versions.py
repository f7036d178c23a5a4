"""Versions of models: their list, their aliases, and the way back."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Path, Request

from service.http import examples
from service.http.file_headers import check_change
from service.http.routes.dependencies import CurrentService, ModelNameInPath, errors
from service.http.routes.unambiguous_route import UnambiguousRoute
from service.schemas.fields import ALIAS_PATTERN
from service.schemas.models import AliasRequest, AliasResponse, ModelVersions, RollbackRequest, RollbackResponse

Alias = Annotated[
    str,
    Path(
        pattern=ALIAS_PATTERN,
        description="A name for a version, such as `prod` or `best`.",
        openapi_examples=examples.ALIAS,
    ),
]

router = APIRouter(tags=["models"], route_class=UnambiguousRoute)


@router.get("/models/{model_name}/versions", responses=errors(404, 409))
def list_versions(model_name: ModelNameInPath, service: CurrentService) -> ModelVersions:
    """List the versions of a model, the newest first, with who made them from what, and its aliases."""
    return service.promotion.list_versions(model_name)


@router.put("/models/{model_name}/aliases/{alias}", responses=errors(403, 404, 408, 409, 413, 415, 507))
def set_alias(
    model_name: ModelNameInPath,
    alias: Alias,
    service: CurrentService,
    request: Annotated[AliasRequest | None, Body(openapi_examples=examples.PROMOTE)] = None,
) -> AliasResponse:
    """Point an alias at a version: `model_name@alias` means it wherever a model is named."""
    return service.promotion.set_alias(model_name, alias, (request or AliasRequest()).version)


@router.delete("/models/{model_name}/aliases/{alias}", responses=errors(403, 404, 507))
def delete_alias(model_name: ModelNameInPath, alias: Alias, service: CurrentService) -> AliasResponse:
    """Delete an alias; its version stays as long as there is room for it."""
    return service.promotion.delete_alias(model_name, alias)


@router.post("/models/{model_name}/rollback", responses=errors(403, 404, 408, 409, 412, 413, 415, 507))
def roll_back(
    model_name: ModelNameInPath,
    service: CurrentService,
    http_request: Request,
    request: Annotated[RollbackRequest | None, Body(openapi_examples=examples.ROLL_BACK)] = None,
) -> RollbackResponse:
    """Save an earlier version as the newest one; what was the newest stays as a version."""
    check = partial(check_change, http_request, partial(service.store.find_file, model_name))
    return service.replacement.roll_back(model_name, (request or RollbackRequest()).version, check)
