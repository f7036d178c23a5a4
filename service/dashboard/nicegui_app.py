"""NiceGUI's application with the pages of the dashboard.

A process has one such application. Only one service at a time may enter it; pages find that service with
``current_service.get_service``.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from nicegui import Client, core, ui
from starlette.types import ASGIApp

from service.dashboard.frame import install_styles
from service.dashboard.jobs.job_page import show_job
from service.dashboard.jobs.jobs_page import show_jobs
from service.dashboard.models.model_page import show_model
from service.dashboard.models.models_page import show_models
from service.dashboard.models.side_by_side_page import show_side_by_side
from service.dashboard.new_job.new_job_page import show_form
from service.dashboard.server_page import show_server
from service.dashboard.sweeps.sweep_page import show_sweep
from service.dashboard.sweeps.sweeps_page import show_sweeps
from service.dashboard.unknown_page import show_unknown

# NiceGUI's default of 3 s drops the page of a visitor who changes networks.
_RECONNECT_SECONDS = 10.0
# A model waits for its turn while many are read for the first time.
_RESPONSE_SECONDS = 30.0
_PAGES: Mapping[str, Callable[..., Any]] = {
    "/": show_jobs,
    "/jobs/{job_id}": show_job,
    "/new": show_form,
    "/sweeps": show_sweeps,
    "/sweeps/{sweep_id}": show_sweep,
    "/models": show_models,
    "/models/{name}": show_model,
    "/side-by-side": show_side_by_side,
    "/server": show_server,
    "/{path:path}": show_unknown,  # the last one, since it takes whatever is left
}


def _build() -> ASGIApp:
    # Sockets only: polling would need requests that the guard refuses. The guard checks origins.
    core.sio.eio.transports = ["websocket"]
    core.sio.eio.cors_allowed_origins = []
    core.app.config.socket_io_js_transports = ["websocket"]
    ui.run_with(
        FastAPI(openapi_url=None),
        title="GRPO",
        dark=None,
        tailwind=False,
        reconnect_timeout=_RECONNECT_SECONDS,
        binding_refresh_interval=None,
        show_welcome_message=False,
    )
    # Pages ask this to find out whether the server still answers.
    core.sio.on("grpo_ask", _answer)
    install_styles()
    for path, show in _PAGES.items():
        ui.page(path, response_timeout=_RESPONSE_SECONDS)(show)
    return core.app


async def _answer(_: str) -> bool:
    return True


PAGES = _build()


def is_open() -> bool:
    """Return whether a service of this process shows its dashboard."""
    return core.app.is_started


@asynccontextmanager
async def open_pages() -> AsyncIterator[None]:
    """Run NiceGUI's lifespan, without ``run_with``'s search through all objects for a server."""
    engine = core.sio.eio
    engine.start_service_task = True  # each event loop needs its own
    async with core.app.router.lifespan_context(core.app):
        try:
            yield
        finally:
            for client in list(Client.instances.values()):
                client.delete()
            if engine.service_task_handle is not None:
                await core.sio.shutdown()
