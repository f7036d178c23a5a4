"""Parameters that routes share, and the documentation of their errors."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Path, Request

from service.app import Service
from service.context import HAS_LEFT
from service.http import examples
from service.schemas.problems import ProblemDetails


async def get_service(request: Request) -> Service:
    """Return the application's service."""
    service: Service = request.app.state.service
    return service


async def note_leaving(request: Request) -> AsyncIterator[None]:
    """Notice a client that leaves while it waits for its turn, for a route whose answer is of no use without it."""
    has_left = threading.Event()

    async def wait_for_leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left.set()

    HAS_LEFT.set(has_left.is_set)
    waiting = asyncio.create_task(wait_for_leaving())
    try:
        yield
    finally:
        waiting.cancel()


CurrentService = Annotated[Service, Depends(get_service)]
# Unchecked, so that a name no model can have is answered with 404.
ModelNameInPath = Annotated[
    str, Path(description="Name of a model file, without `.zip`.", openapi_examples=examples.MODEL)
]


def errors(*status_codes: int) -> dict[int | str, dict[str, object]]:
    """Document the errors of a route, beside those that every route but the health checks may answer."""
    # How a body comes, in the headers Expect and Transfer-Encoding, is refused before a route is asked.
    of_bodies = (417, 501) if 415 in status_codes else ()
    return health_errors(401, 429, 503, *of_bodies, *status_codes)


def health_errors(*status_codes: int) -> dict[int | str, dict[str, object]]:
    """Document the errors of a route without a key and without limits: an unknown host or query, and its own."""
    return {status_code: {"model": ProblemDetails} for status_code in sorted({400, 422, *status_codes})}
