"""The server itself: version, health and metrics."""

from datetime import UTC, datetime

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from grpo_core import __version__
from service.errors import NotReadyError
from service.http import examples
from service.http.browser_rules import DASHBOARD_PATH
from service.http.request_guard import has_key
from service.http.routes.dependencies import CurrentService, errors, health_errors
from service.monitoring.prometheus import MEDIA_TYPE
from service.schemas.server import Health, Liveness, ReadyState, ServerInfo

router = APIRouter(tags=["server"])


@router.get("/", responses=errors())
async def describe_server(service: CurrentService) -> ServerInfo:
    """List the main endpoints."""
    endpoints = {
        "train": "POST /train",
        "inference": "POST /inference",
        "health": "GET /health",
        "models": "GET /models",
    }
    if service.settings.is_replica:
        del endpoints["train"]
    return ServerInfo(
        message="GRPO API Server",
        version=__version__,
        endpoints=endpoints,
        dashboard=None if service.settings.is_replica else DASHBOARD_PATH,
        docs="/docs",
    )


@router.get("/health", response_model_exclude_defaults=True, responses=health_errors())
async def check_health(request: Request, service: CurrentService) -> Health:
    """Report that the server is running, with its jobs and models.

    Needs no API key; but if one is set, only requests that send it learn the numbers.
    """
    is_trusted = _is_trusted(request, service)
    return Health(
        status="healthy",
        timestamp=datetime.now(UTC),
        active_jobs=service.registry.count_active() if is_trusted else None,
        loaded_models=service.store.n_loaded if is_trusted else None,
        role=service.settings.role,
    )


@router.get("/health/live", responses=health_errors())
async def check_liveness() -> Liveness:
    """Report that the server is running; restart it if this fails. Needs no API key."""
    return Liveness(status="alive")


@router.get("/health/ready", response_model_exclude_defaults=True, responses=health_errors(503))
async def check_readiness(request: Request, service: CurrentService) -> ReadyState:
    """Report that the server can save models and run jobs; send it no new work while this fails.

    Needs no API key; but if one is set, only requests that send it learn the reason.
    """
    # Not in the threads of the other routes, which may all be busy.
    obstacles = await to_thread.run_sync(service.readiness.list_obstacles, limiter=service.readiness_limiter)
    problem = service.registry.recorder.problem or (service.mirror and service.mirror.problem)
    is_trusted = _is_trusted(request, service)
    if obstacles:
        raise NotReadyError(f"{'; '.join(obstacles)}." if is_trusted else "the server is not ready.")
    return ReadyState(status="ready", warnings=[problem] if problem is not None and is_trusted else [])


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": examples.METRICS}}},
        **errors(),
    },
)
def get_metrics(service: CurrentService) -> Response:
    """Return metrics of requests, jobs, models and the process in Prometheus' text format."""
    return Response(service.metrics.render(), media_type=MEDIA_TYPE)


def _is_trusted(request: Request, service: CurrentService) -> bool:
    """Return whether the request carries the key, or none is configured."""
    api_key = service.settings.api_key
    headers = dict(reversed(request.scope["headers"]))  # the first of each name
    return api_key is None or has_key(headers, api_key.get_secret_value().encode())
