"""The service with a leak, which the soak has to find: ``python -m tests.soak.leaking_server`` takes run_api's flags.

Every request leaves 20 kB, and every fiftieth a thread and an open file.
"""

import os
import sys
import threading
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

import run_api
from api import create_app

_LEAKED_BYTES = 20_000
_EACH = 50

_kept: list[object] = []


class Leak:
    """Keeps something of every request.

    :param app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            _kept.append(os.urandom(_LEAKED_BYTES))
            if len(_kept) % _EACH == 0:
                _kept.append(os.open(os.devnull, os.O_RDONLY))
                threading.Thread(target=threading.Event().wait, daemon=True).start()
        await self._app(scope, receive, send)


def create_leaking_app(*arguments: Any) -> FastAPI:
    """Build the service's application behind the leak."""
    app = create_app(*arguments)
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Leak(build())  # type: ignore[method-assign]
    return app


if __name__ == "__main__":
    vars(run_api)["create_app"] = create_leaking_app
    sys.exit(run_api.main())
