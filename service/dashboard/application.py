"""NiceGUI, set up for the dashboard.

NiceGUI is one application per process. Whichever service shows its dashboard enters it, and no other may meanwhile;
pages find that service with ``get_service``.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from nicegui import Client, core, ui
from starlette.types import ASGIApp

from service.dashboard_door import SERVICE_KEY

# NiceGUI's own default of 3 s takes a page away from whoever changes networks.
_RECONNECT_SECONDS = 10.0


@ui.page("/")
def show() -> None:
    """Show a first page."""
    ui.label("GRPO dashboard").props("role=heading")


def _build() -> ASGIApp:
    # Sockets only: polling would need requests that the guard refuses. Origins are checked by the guard.
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
    return core.app


PAGES = _build()


def is_open() -> bool:
    """Tell whether a service of this process shows its dashboard."""
    return core.app.is_started


@asynccontextmanager
async def open_pages() -> AsyncIterator[None]:
    """Enter NiceGUI's lifespan, without the search through all objects for a server that ``run_with`` adds to it."""
    engine = core.sio.eio
    engine.start_service_task = True  # it belongs to one event loop
    async with core.app.router.lifespan_context(core.app):
        try:
            yield
        finally:
            for client in list(Client.instances.values()):
                client.delete()
            if engine.service_task_handle is not None:
                await core.sio.shutdown()


def get_service() -> FastAPI:
    """Return the service that the page being built or used belongs to."""
    service: FastAPI = ui.context.client.request.scope[SERVICE_KEY]
    return service
