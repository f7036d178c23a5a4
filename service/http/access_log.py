"""What is noted of every request, refusals included."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.context import REQUEST_ID, RequestIds
from service.monitoring.prometheus import Metrics

logger = logging.getLogger("grpo.service")

# Where no route was asked: the path is unknown, or the guard refused the request.
UNMATCHED = "unmatched"
# As nginx calls it: the client went away before it was answered.
_CLIENT_GONE = 499
# Asked for by the thousand, and of interest when they fail.
_QUIET_ROUTES = frozenset({"/inference", "/metrics", "/health", "/health/live", "/health/ready"})


class AccessLog:
    """Names every request, tells its name in the answer, and counts and logs how it was answered.

    :param app: The application behind it.
    :param metrics: Where requests are counted.
    :param access_log: Log successful requests that come by the thousand as well.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note what becomes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        request_id = self._ids.choose(offered)
        REQUEST_ID.set(request_id)
        header = (b"x-request-id", request_id.encode())
        begun = time.perf_counter()
        status, seconds = _CLIENT_GONE, 0.0

        async def send_with_id(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                # Until the answer begins: a stream of events goes on for hours.
                status, seconds = message["status"], time.perf_counter() - begun
                message["headers"] = [*message["headers"], header]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._note(scope, status, seconds)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = find_route(scope, status)
        self._metrics.note_request(scope["method"], route, status, seconds)
        if status >= 400 or self._access_log or route not in _QUIET_ROUTES:
            fields = {"method": scope["method"], "route": route, "status": status, "seconds": seconds}
            logger.info("request", extra=fields)


def find_route(scope: Scope, status: int) -> str:
    """Name the route that answered a request, with its parameters by name, so that there are only so many names."""
    if status == 200 and scope["path"] == "/inference":  # the shortcut asks no route
        return "/inference"
    if "route" in scope:
        return str(scope["route"].path)
    if scope.get("root_path"):  # what is mounted has routes of its own
        return f"/{scope['root_path'].split('/')[1]}/*"
    return str(scope["path"]) if "endpoint" in scope and not scope.get("path_params") else UNMATCHED
