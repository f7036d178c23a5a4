"""The way to the dashboard, which imports it when the first visitor comes.

NiceGUI takes a second and 60 MB that a server without visitors does without.
"""

import asyncio
from contextlib import AsyncExitStack
from importlib import import_module

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import Service
from service.errors import Problem
from service.http.problems import error_response

PREFIX = "/dashboard"
# Where pages find the service that shows them: NiceGUI itself is one per process.
SERVICE_KEY = "grpo.service"
_TAKEN = Problem("dashboard-taken", "The dashboard shows another service")


class DashboardMount:
    """Opens at the first request; belongs at ``PREFIX``.

    :param service: What the pages show.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._entered = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._pages: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or socket below ``PREFIX``."""
        if self._pages is None:
            async with self._lock:
                if self._pages is None:
                    self._pages = await self._open()
        if self._pages is None:
            detail = "another service of this process shows its dashboard; end that one first."
            await error_response(_TAKEN, 503, detail)(scope, receive, send)
            return
        await self._pages({**scope, SERVICE_KEY: self._service}, receive, send)

    async def close(self) -> None:
        """Let go of NiceGUI, if it was ever asked for."""
        self._pages = None
        await self._entered.aclose()

    async def _open(self) -> ASGIApp | None:
        # In a thread, so that other requests are answered meanwhile.
        application = await run_in_threadpool(import_module, "service.dashboard.application")
        if application.is_open():
            return None
        await self._entered.enter_async_context(application.open_pages())
        pages: ASGIApp = application.PAGES
        return pages
