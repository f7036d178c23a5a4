"""Refuse what a path does not take instead of ignoring it: query parameters, bodies, integers in odd forms."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from fastapi import Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute
from pydantic_core import PydanticKnownError
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from grpo_core.suggestions import suggest
from service.errors import InvalidFieldsError
from service.http.limits.bodies import has_body

_INTEGER = re.compile(r"-?[0-9]+")
# What programs send where they have nothing to say.
_EMPTY_BODIES = frozenset({b"", b"{}"})


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
            _check(Request(scope), [], [], "")
        await self._app(scope, receive, send)


def refuse_queries(route: Route) -> None:
    """Refuse every query parameter of a route that FastAPI has made itself."""
    route.app = WithoutQuery(route.app)


async def check_query_names(request: Request) -> None:
    """Refuse a query parameter that the route does not have, that comes twice, or that is no plain integer.

    Python, and so pydantic, takes ``1_0`` for an integer too.

    :raises InvalidFieldsError: For the first one of each name.
    """
    route = _get_route(request)
    if request.scope["query_string"]:
        types = _find_query_types(route)
        integers = [name for name, alternatives in types.items() if int in alternatives]
        remedy = "; send the fields as JSON in the body" if _takes_body(route) else ""
        _check(request, list(types), integers, remedy)


def check_plain_integer(text: str) -> str:
    """Refuse a header that is not a plain integer, before pydantic reads it as a number.

    :raises PydanticKnownError: If it is anything else.
    """
    if not _INTEGER.fullmatch(text):
        raise PydanticKnownError("int_parsing")
    return text


async def check_absent_body(request: Request) -> None:
    """Refuse a body where the route takes none: what it asks for would be left out, and something else be done.

    :raises InvalidFieldsError: If there is one with anything in it.
    """
    if not has_body(dict(request.scope["headers"])) or _takes_body(route := _get_route(request)):
        return
    if (await request.body()).strip() in _EMPTY_BODIES:
        return
    names = ", ".join(_find_query_types(route))
    remedy = f"; its query takes: {names}" if names else ""
    message = f"this path takes no body; send the request without one{remedy}"
    raise InvalidFieldsError([{"type": "body_unexpected", "loc": ("body",), "msg": message}])


def _get_route(request: Request) -> APIRoute:
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    return route


def _takes_body(route: APIRoute) -> bool:
    """Return whether a route has a body, be it one that it reads itself and has described by hand."""
    return route.body_field is not None or "requestBody" in (route.openapi_extra or {})


def _find_query_types(route: APIRoute) -> dict[str, Sequence[object]]:
    """Return the types that each parameter of a route's query may have."""
    fields = [field for field in get_flat_params(route.dependant) if isinstance(field.field_info, Query)]
    return {field.alias: _list_types(field.field_info.annotation) for field in fields}


def _list_types(annotation: object) -> Sequence[object]:
    return get_args(annotation) or [annotation]


def _check(request: Request, known: list[str], integers: Sequence[str], remedy: str) -> None:
    violations = [
        {"type": "query_name", "loc": ("query", name), "msg": message}
        for name, n in Counter(name for name, _ in request.query_params.multi_items()).items()
        if (message := _find_violation(name, n, known, remedy))
    ]
    violations += [
        {"type": "int_parsing", "loc": ("query", name), "msg": ""}
        for name, value in request.query_params.items()
        if name in integers and not _INTEGER.fullmatch(value)
    ]
    if violations:
        raise InvalidFieldsError(violations)


def _find_violation(name: str, n_times: int, known: list[str], remedy: str) -> str:
    if name in known:
        return "" if n_times == 1 else "a parameter may be given only once"
    if not known:
        return f"unknown parameter: this path takes none in its query{remedy}"
    hint = suggest(name, known, n_most=1, spell=str) or f"known: {', '.join(known)}"
    return f"unknown parameter; {hint}"
