"""The web application: ``create_app`` builds it, and ``REWARD_FUNCTIONS`` is where you add your own."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute, Route

from grpo_core import __version__
from grpo_core.options import rewards
from service.app import Service
from service.dashboard.mount import LazyDashboard
from service.extensions import import_extensions
from service.http.access_log import COUNT_REQUEST, AccessLog, RequestLog
from service.http.browser_rules import DASHBOARD_PATH, BrowserRules
from service.http.fast_inference import FastInference
from service.http.head_requests import HeadRequests
from service.http.limits.clients import ClientLimits, GuessLimit
from service.http.openapi import install_schema
from service.http.problems import install_error_handlers
from service.http.request_guard import RequestGuard, RequestRules
from service.http.routes import catalogue, files, inference, login, models, server, sweeps, training, versions
from service.http.serving.shutdown import announce_shutdown
from service.http.unexpected_input import check_absent_body, check_query_names, refuse_queries
from service.models.files.lock import FolderLock
from service.models.store import ModelStore
from service.settings import Settings

logger = logging.getLogger("grpo.service")

# Add your own reward functions here, before the server starts: REWARD_FUNCTIONS["my_reward"] = my_reward.
REWARD_FUNCTIONS = dict(rewards.REWARD_FUNCTIONS)

_UPKEEP_SECONDS = 5.0
# Verifying a file takes 1 or 2 ms; the pause after it leaves requests most of the processor.
_VERIFICATION_PAUSE_SECONDS = 0.005
# Pages that FastAPI makes itself.
_WITHOUT_QUERY = frozenset({"/docs", "/redoc", "/openapi.json"})


def _include_routers() -> list[BaseRoute]:
    """Make the routes that every application has."""
    router = APIRouter()
    for topic in (server, training, sweeps, inference, models, versions, files, catalogue):
        router.include_router(topic.router, dependencies=[Depends(check_query_names), Depends(check_absent_body)])
    router.include_router(login.router)
    return router.routes


# Shared by all applications of a process, for FastAPI takes longer to build them than the rest of one.
_ROUTES = _include_routers()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    service: Service = app.state.service
    _build_routes(app)
    if service.mirror is not None:
        service.mirror.start()
    service.begin()
    upkeep = asyncio.create_task(_keep_store(service.store))
    try:
        with announce_shutdown(service.closing):
            yield {COUNT_REQUEST: service.metrics.count_request}
    finally:
        upkeep.cancel()
        await app.state.dashboard.close()
        await run_in_threadpool(service.close)
        with suppress(asyncio.CancelledError):
            await upkeep


def _build_routes(app: FastAPI) -> None:
    """Match a path that no route has: FastAPI builds routes when they are first tried, and a request would wait."""
    for route in app.routes:
        route.matches({"type": "http", "method": "GET", "path": "/no/such/path", "headers": []})


async def _keep_store(store: ModelStore) -> None:
    while True:
        try:
            while await run_in_threadpool(store.verify_next):
                await asyncio.sleep(_VERIFICATION_PAUSE_SECONDS)
            await run_in_threadpool(store.unload_under_pressure)
        except OSError:  # the disk may be back in the next round
            logger.warning("the models could not be verified", exc_info=True)
        except Exception:  # this task is the only one that keeps the store: it must survive all of them
            logger.exception("a round through the models failed")
        await asyncio.sleep(_UPKEEP_SECONDS)


def create_app(settings: Settings | None = None, lock: FolderLock | None = None) -> FastAPI:
    """Build the service's application; ``app.state.service`` holds its parts.

    :param settings: None reads them from the environment variables.
    :param lock: Keeps other servers out of the models folder; None if nothing does.
    :raises OSError: If the models folder cannot be created or written to.
    :raises ExtensionError: If a module of ``env_modules`` cannot be imported, or a reward function cannot be named.
    """
    settings = settings or Settings()
    import_extensions(settings.env_modules, REWARD_FUNCTIONS)
    service = Service(settings, REWARD_FUNCTIONS, lock)
    app = FastAPIOffline(
        title="GRPO API",
        version=__version__,
        summary="Train reinforcement-learning policies with GRPO, and ask them for actions.",
        lifespan=_lifespan,
        # By default Swagger UI would send this schema to a validator on the web.
        swagger_ui_parameters={"validatorUrl": None},
        # Nothing collects it, and FastAPI's checks for a collector would take longer than many answers.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    app.state.guess_limit = GuessLimit()
    app.state.dashboard = LazyDashboard(service)
    app.routes.extend(_ROUTES)
    for route in app.routes:
        if isinstance(route, Route) and route.path in _WITHOUT_QUERY:
            refuse_queries(route)
    app.mount(DASHBOARD_PATH, app.state.dashboard)
    install_error_handlers(app)
    install_schema(app)
    client_limits = ClientLimits(settings) if settings.limits_clients else None
    rules = RequestRules(settings, app.state.guess_limit, client_limits)
    log = RequestLog(service.metrics, settings.access_log)
    app.add_middleware(HeadRequests)
    app.add_middleware(RequestGuard, rules=rules)
    # Outside the guard, so that pages can read refusals too.
    app.add_middleware(BrowserRules, settings=settings)
    app.add_middleware(AccessLog, log=log)
    # In front of the layers too that FastAPI puts before all middleware.
    build_others = app.build_middleware_stack
    app.build_middleware_stack = lambda: FastInference(  # type: ignore[method-assign]
        build_others(), rules, service.store, service.metrics, log
    )
    return app


def __getattr__(name: str) -> FastAPI:
    """Build ``app`` on first access, so that ``uvicorn api:app`` works and importing this module stays cheap."""
    if name != "app":
        raise AttributeError(f"module 'api' has no attribute '{name}'")
    app = globals()["app"] = create_app()
    return app
