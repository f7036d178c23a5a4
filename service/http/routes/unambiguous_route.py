"""Refuse bodies in which an object has a name twice: one of the two values would be lost without a word."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.schemas.duplicate_keys import make_object


class _UnambiguousRequest(Request):
    async def json(self) -> Any:
        """Read the body.

        :raises InvalidFieldsError: If an object in it has a name twice.
        """
        if not hasattr(self, "_json"):
            self._json = json.loads(await self.body(), object_pairs_hook=make_object)
        return self._json


class UnambiguousRoute(APIRoute):
    """A route whose body has each name once."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            return await handle(_UnambiguousRequest(request.scope, request.receive))

        return read_and_handle
