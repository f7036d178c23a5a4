"""What the server is, and how it does."""

from datetime import UTC, datetime

from fastapi import APIRouter, Response

from grpo_core import __version__
from service.metrics import MEDIA_TYPE
from service.routes.dependencies import Observer, Registry, Store, errors
from service.schemas import Health, ServerInfo

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
async def check_health(store: Store, registry: Registry) -> Health:
    """Say that the server lives, and what it holds. Needs no API key."""
    return Health(
        status="healthy",
        timestamp=datetime.now(UTC),
        active_jobs=registry.count_active(),
        loaded_models=store.n_loaded,
        lost_slots=registry.n_lost_slots,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}, **errors(400, 401)},
)
def get_metrics(metrics: Observer) -> Response:
    """Tell Prometheus of requests, jobs, models and the process, in its text format."""
    return Response(metrics.render(), media_type=MEDIA_TYPE)
