"""Query parameters that a path does not have: refused, as unknown fields of a body are."""

from collections import Counter

from fastapi import Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute

from service.errors import InvalidFieldsError
from service.suggestions import list_close


async def check_query_names(request: Request) -> None:
    """Refuse a query parameter that the route does not have, or that comes twice.

    :raises InvalidFieldsError: For the first one of each name.
    """
    if not request.scope["query_string"]:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = [field.alias for field in get_flat_params(route.dependant) if isinstance(field.field_info, Query)]
    violations = [
        {"type": "query_name", "loc": ("query", name), "msg": message}
        for name, n in Counter(name for name, _ in request.query_params.multi_items()).items()
        if (message := _find_violation(name, n, known, request.method))
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
