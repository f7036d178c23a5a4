"""What routes are given, and how they say which errors they answer."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, Path, Request

from grpo_core.rewards import RewardFunction
from service import examples
from service.catalogue import Catalogue
from service.jobs import JobRegistry
from service.metrics import Metrics
from service.model_store import ModelStore
from service.schemas import ProblemDetails
from service.stage import Stage
from service.streams import EventStreams
from service.uploads import Uploads


async def _get_store(request: Request) -> ModelStore:
    store: ModelStore = request.app.state.store
    return store


async def _get_registry(request: Request) -> JobRegistry:
    registry: JobRegistry = request.app.state.registry
    return registry


async def _get_streams(request: Request) -> EventStreams:
    streams: EventStreams = request.app.state.streams
    return streams


async def _get_catalogue(request: Request) -> Catalogue:
    catalogue: Catalogue = request.app.state.catalogue
    return catalogue


async def _get_stage(request: Request) -> Stage:
    stage: Stage = request.app.state.stage
    return stage


async def _get_uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


async def _get_reward_functions(request: Request) -> Mapping[str, RewardFunction]:
    reward_functions: Mapping[str, RewardFunction] = request.app.state.reward_functions
    return reward_functions


async def _get_metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


Store = Annotated[ModelStore, Depends(_get_store)]
Observer = Annotated[Metrics, Depends(_get_metrics)]
Registry = Annotated[JobRegistry, Depends(_get_registry)]
ModelUploads = Annotated[Uploads, Depends(_get_uploads)]
PlayStage = Annotated[Stage, Depends(_get_stage)]
Environments = Annotated[Catalogue, Depends(_get_catalogue)]
# Which names there can be, the store knows: one that is none is not found.
ModelNameInPath = Annotated[
    str, Path(description="Name of a model file, without `.zip`.", openapi_examples=examples.MODEL)
]
Streams = Annotated[EventStreams, Depends(_get_streams)]
RewardFunctions = Annotated[Mapping[str, RewardFunction], Depends(_get_reward_functions)]


def errors(*status_codes: int) -> dict[int | str, dict[str, object]]:
    """Document the errors of a route."""
    return {status_code: {"model": ProblemDetails} for status_code in status_codes}
