"""The service with a leak, which the soak has to find: ``python -m tests.soak.leaking_server`` takes run_api's flags.

Every model that is deleted leaves 12 MiB, and five threads and open files.
"""

import os
import sys
import threading
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

import run_api
from api import create_app

_LEAKED_BYTES = 12 * 2**20
_N_LEAKED = 5

_kept: list[object] = []


class Leak:
    """Keeps something of every deletion.

    :param app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope.get("method") == "DELETE":
            _kept.append(os.urandom(_LEAKED_BYTES))
            for _ in range(_N_LEAKED):
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
