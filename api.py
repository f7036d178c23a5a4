"""The web service: ``create_app`` puts it together, and ``REWARD_FUNCTIONS`` is where it can be extended."""

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from grpo_core import __version__
from grpo_core.options import rewards
from service.dashboard.mount import PREFIX, DashboardDoor
from service.environments.catalogue import Catalogue
from service.extensions import import_extensions
from service.http.access_log import Telemetry
from service.http.fast_inference import InferenceShortcut
from service.http.guards import BrowserRules, RequestGuard, UploadRoom
from service.http.openapi import install_schema
from service.http.problems import install_error_handlers
from service.http.routes import catalogue, files, inference, login, models, server, training
from service.http.sessions import LoginLimit
from service.http.shutdown import announce_shutdown
from service.jobs.events import EventStreams
from service.jobs.registry import JobRegistry
from service.models.player import Stage
from service.models.store import ModelStore
from service.models.uploads import Uploads
from service.monitoring.memory import get_available_bytes, get_total_bytes
from service.monitoring.prometheus import Metrics
from service.monitoring.readiness import Readiness
from service.settings import Settings
from service.workers.executors import make_executor
from service.workers.short_tasks import Errands

# Add your own reward functions here, before the server starts: REWARD_FUNCTIONS["my_reward"] = my_reward.
REWARD_FUNCTIONS = dict(rewards.REWARD_FUNCTIONS)

# Batches that are answered at the same time: each makes the event loop wait for the interpreter now and then.
_MAX_RUNNING_BATCHES = 2
_UPKEEP_SECONDS = 5.0
# Between two files that are verified, which takes 1 ms or 2: requests have most of the processor meanwhile.
_VERIFICATION_PAUSE_SECONDS = 0.005


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if app.state.settings.preload:
        # In a thread that nobody waits for: the server answers meanwhile, and may end.
        arguments = ("service.training.plan",)
        threading.Thread(target=importlib.import_module, args=arguments, name="grpo-preload", daemon=True).start()
        app.state.registry.warm_up()
    upkeep = asyncio.create_task(_keep_store(app.state.store))
    try:
        with announce_shutdown(app.state.closing):
            yield
    finally:
        upkeep.cancel()
        await app.state.dashboard_door.close()
        grace_seconds = app.state.settings.shutdown_grace_seconds
        await run_in_threadpool(app.state.registry.shutdown, grace_seconds)
        with suppress(asyncio.CancelledError):
            await upkeep


async def _keep_store(store: ModelStore) -> None:
    while True:
        while await run_in_threadpool(store.verify_next):
            await asyncio.sleep(_VERIFICATION_PAUSE_SECONDS)
        await asyncio.sleep(_UPKEEP_SECONDS)
        store.unload_under_pressure()


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the service.

    :param settings: None reads them from the process environment.
    :raises OSError: If the models folder cannot be created or written to.
    :raises ExtensionError: If a module of ``env_modules`` cannot be imported.
    """
    settings = settings or Settings()
    import_extensions(settings.env_modules)
    app = FastAPIOffline(
        title="GRPO API",
        version=__version__,
        summary="Train reinforcement-learning policies with GRPO, and ask them for actions.",
        lifespan=_lifespan,
        # Swagger UI would ask a validator on the web about this schema.
        swagger_ui_parameters={"validatorUrl": None},
        # Nobody collects it, and finding that out would take longer than many an answer.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.settings = settings
    app.state.store = ModelStore(
        settings.models_dir,
        settings.max_cached_models,
        settings.max_cached_bytes,
        get_available_bytes,
        get_total_bytes(),
        settings.min_free_bytes,
    )
    executor = make_executor(settings.executor, settings.log_style)
    app.state.registry = JobRegistry(
        app.state.store,
        executor,
        settings.max_running_jobs,
        settings.max_queued_jobs,
        settings.max_kept_jobs,
        settings.stall_seconds,
        settings.tensorboard_dir,
    )
    app.state.closing = threading.Event()
    app.state.readiness = Readiness(app.state.store, app.state.registry, app.state.closing)
    app.state.metrics = Metrics(app.state.store, app.state.registry, app.state.readiness)
    app.state.streams = EventStreams(app.state.closing)
    app.state.reward_functions = REWARD_FUNCTIONS
    app.state.errands = Errands(executor, settings.stage_seconds, app.state.closing)
    app.state.uploads = Uploads(app.state.store, app.state.registry)
    app.state.stage = Stage(app.state.store, app.state.errands)
    app.state.catalogue = Catalogue(app.state.errands, REWARD_FUNCTIONS)
    app.state.batch_limiter = CapacityLimiter(_MAX_RUNNING_BATCHES)
    app.state.drawing_limiter = CapacityLimiter(1)
    app.state.login_limit = LoginLimit()
    app.state.dashboard_door = DashboardDoor(app)
    for room in (server, training, inference, models, files, catalogue, login):
        app.include_router(room.router)
    app.mount(PREFIX, app.state.dashboard_door)
    install_error_handlers(app)
    install_schema(app)
    app.add_middleware(InferenceShortcut, store=app.state.store, metrics=app.state.metrics)
    app.add_middleware(RequestGuard, settings=settings)
    app.add_middleware(UploadRoom)
    # Outside the guard, so that pages may read refusals too.
    app.add_middleware(BrowserRules, settings=settings)
    app.add_middleware(Telemetry, metrics=app.state.metrics, access_log=settings.access_log)
    return app


def __getattr__(name: str) -> FastAPI:
    """Build ``app`` when it is first asked for: ``uvicorn api:app`` works, and importing this module costs nothing."""
    if name != "app":
        raise AttributeError(f"module 'api' has no attribute '{name}'")
    app = globals()["app"] = create_app()
    return app
