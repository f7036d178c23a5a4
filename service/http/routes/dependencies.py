"""What routes are given, and how they say which errors they answer."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Path, Request

from grpo_core.options.rewards import RewardFunction
from service.environments.catalogue import Catalogue
from service.http import examples
from service.jobs.events import EventStreams
from service.jobs.registry import JobRegistry
from service.models.player import Stage
from service.models.store import ModelStore
from service.models.uploads import Uploads
from service.monitoring.prometheus import Metrics
from service.schemas.problems import ProblemDetails


def _from_state(name: str) -> Any:
    """Depend on a part of the service, by the name that ``create_app`` gave it."""

    async def get_part(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(get_part)


Store = Annotated[ModelStore, _from_state("store")]
Observer = Annotated[Metrics, _from_state("metrics")]
Registry = Annotated[JobRegistry, _from_state("registry")]
ModelUploads = Annotated[Uploads, _from_state("uploads")]
PlayStage = Annotated[Stage, _from_state("stage")]
Environments = Annotated[Catalogue, _from_state("catalogue")]
# Which names there can be, the store knows: one that is none is not found.
ModelNameInPath = Annotated[
    str, Path(description="Name of a model file, without `.zip`.", openapi_examples=examples.MODEL)
]
Streams = Annotated[EventStreams, _from_state("streams")]
RewardFunctions = Annotated[Mapping[str, RewardFunction], _from_state("reward_functions")]


def errors(*status_codes: int) -> dict[int | str, dict[str, object]]:
    """Document the errors of a route."""
    return {status_code: {"model": ProblemDetails} for status_code in status_codes}
