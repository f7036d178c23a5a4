"""What the server is, and how it does."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from grpo_core import __version__
from service.errors import NotReadyError
from service.http import examples
from service.http.guards import has_key
from service.http.routes.dependencies import CurrentService, errors
from service.monitoring.prometheus import MEDIA_TYPE
from service.schemas.server import Health, Liveness, ReadyState, ServerInfo

router = APIRouter(tags=["server"])


@router.get("/", responses=errors(400, 401))
async def describe_server() -> ServerInfo:
    """Say what the server offers."""
    endpoints = {
        "train": "POST /train",
        "inference": "POST /inference",
        "health": "GET /health",
        "models": "GET /models",
    }
    return ServerInfo(message="GRPO API Server", version=__version__, endpoints=endpoints)


@router.get("/health", responses=errors(400))
async def check_health(service: CurrentService) -> Health:
    """Say that the server lives, and what it holds. Needs no API key."""
    return Health(
        status="healthy",
        timestamp=datetime.now(UTC),
        active_jobs=service.registry.count_active(),
        loaded_models=service.store.n_loaded,
    )


@router.get("/health/live", responses=errors(400))
async def check_liveness() -> Liveness:
    """Say that the server lives, and nothing else: where this fails, a restart is due. Needs no API key."""
    return Liveness(status="alive")


@router.get("/health/ready", responses=errors(400, 503))
def check_readiness(request: Request, service: CurrentService) -> ReadyState:
    """Say that the server can save models and run jobs: where this fails, it should get no new work.

    Needs no API key; where one is set, only requests with it are told what stands in the way.
    """
    obstacles = service.readiness.list_obstacles()
    if obstacles:
        api_key = service.settings.api_key
        headers = dict(reversed(request.scope["headers"]))  # the first of each name
        is_trusted = api_key is None or has_key(headers, api_key.get_secret_value().encode())
        raise NotReadyError(f"{'; '.join(obstacles)}." if is_trusted else "the server is not ready.")
    return ReadyState(status="ready")


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": examples.METRICS}}},
        **errors(400, 401),
    },
)
def get_metrics(service: CurrentService) -> Response:
    """Tell Prometheus of requests, jobs, models and the process, in its text format."""
    return Response(service.metrics.render(), media_type=MEDIA_TYPE)
