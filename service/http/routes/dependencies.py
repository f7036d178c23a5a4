"""What routes are given, and how they say which errors they answer."""

from typing import Annotated

from fastapi import Depends, Path, Request

from service.app import Service
from service.http import examples
from service.schemas.problems import ProblemDetails


async def get_service(request: Request) -> Service:
    """Return the service that the request's application serves."""
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(get_service)]
# The store knows which names there can be: any other is not found.
ModelNameInPath = Annotated[
    str, Path(description="Name of a model file, without `.zip`.", openapi_examples=examples.MODEL)
]


def errors(*status_codes: int) -> dict[int | str, dict[str, object]]:
    """Document the errors of a route."""
    return {status_code: {"model": ProblemDetails} for status_code in status_codes}
