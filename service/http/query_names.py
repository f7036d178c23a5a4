"""Query parameters that a path does not have, and integers that are not plain: refused, as in a body."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from fastapi import Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import InvalidFieldsError
from service.suggestions import list_close

_INTEGER = re.compile(r"-?[0-9]+")


class WithoutQuery:
    """A route's application that takes no query.

    :param app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        :raises InvalidFieldsError: If it has a query.
        """
        if scope["query_string"]:
            _check(Request(scope), [], [])
        await self._app(scope, receive, send)


def refuse_queries(route: Route) -> None:
    """Refuse every query parameter of a route that FastAPI has made itself."""
    route.app = WithoutQuery(route.app)


async def check_query_names(request: Request) -> None:
    """Refuse a query parameter that the route does not have, that comes twice, or that is no plain integer.

    Python, and so pydantic, takes ``1_0`` for an integer too.

    :raises InvalidFieldsError: For the first one of each name.
    """
    if not request.scope["query_string"]:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    fields = [field for field in get_flat_params(route.dependant) if isinstance(field.field_info, Query)]
    integers = [field.alias for field in fields if int in _list_types(field.field_info.annotation)]
    _check(request, [field.alias for field in fields], integers)


def _list_types(annotation: object) -> Sequence[object]:
    return get_args(annotation) or [annotation]


def _check(request: Request, known: list[str], integers: Sequence[str]) -> None:
    violations = [
        {"type": "query_name", "loc": ("query", name), "msg": message}
        for name, n in Counter(name for name, _ in request.query_params.multi_items()).items()
        if (message := _find_violation(name, n, known, request.method))
    ]
    violations += [
        {"type": "int_parsing", "loc": ("query", name), "msg": ""}
        for name, value in request.query_params.items()
        if name in integers and not _INTEGER.fullmatch(value)
    ]
    if violations:
        raise InvalidFieldsError(violations)


def _find_violation(name: str, n_times: int, known: list[str], method: str) -> str:
    if name in known:
        return "" if n_times == 1 else "a parameter may be given only once"
    if not known:
        remedy = "; send the fields as JSON in the body" if method == "POST" else ""
        return f"unknown parameter: this path takes none in its query{remedy}"
    close = list_close(name, known, n_most=1)
    return f"unknown parameter; did you mean {close[0]}?" if close else f"unknown parameter; known: {', '.join(known)}"
