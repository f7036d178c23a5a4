"""The dashboard as an ASGI application, which imports its pages when the first visitor comes.

NiceGUI takes half a second and 25 MB, which a server without visitors does not need.
"""

import asyncio
from contextlib import AsyncExitStack
from importlib import import_module

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import Service
from service.errors import Problem
from service.http.problems import error_response

# A request's scope holds the service under this key, because all services of a process share one NiceGUI.
SERVICE_KEY = "grpo.service"
_TAKEN = Problem("dashboard-taken", "The dashboard shows another service")


class LazyDashboard:
    """The application mounted at ``DASHBOARD_PATH``; it loads at the first request.

    :param service: The service to show.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._entered = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._pages: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or socket below ``DASHBOARD_PATH``."""
        if self._pages is None:
            async with self._lock:
                if self._pages is None:
                    self._pages = await self._open()
        if self._pages is None:
            detail = "another service of this process shows its dashboard; end it first."
            await error_response(_TAKEN, 503, detail)(scope, receive, send)
            return
        if scope["type"] == "http":  # whoever opens no socket has not upgraded; engine.io would take the header's word
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"upgrade"]}
        await self._pages({**scope, SERVICE_KEY: self._service}, receive, send)

    async def close(self) -> None:
        """Shut NiceGUI down if a visitor ever came."""
        self._pages = None
        await self._entered.aclose()

    async def _open(self) -> ASGIApp | None:
        # In a thread, so that the server can answer other requests in the meantime.
        nicegui_app = await run_in_threadpool(import_module, "service.dashboard.nicegui_app")
        if nicegui_app.is_open():
            return None
        await self._entered.enter_async_context(nicegui_app.open_pages())
        pages: ASGIApp = nicegui_app.PAGES
        return pages
