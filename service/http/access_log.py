"""The log and the metrics of requests, refused ones included."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.context import REQUEST_ID, RequestIds
from service.monitoring.prometheus import Metrics

logger = logging.getLogger("grpo.service")

# No route was reached: the path is unknown, or the guard refused the request.
UNMATCHED = "unmatched"
# nginx's code for a client that disconnected before the answer.
_CLIENT_GONE = 499
# Requested by the thousand, and of interest only when they fail.
_QUIET_ROUTES = frozenset({"/inference", "/metrics", "/health", "/health/live", "/health/ready"})


class AccessLog:
    """Gives every request an id, returns it in the answer, and counts and logs the outcome.

    :param app: The application behind it.
    :param metrics: Counts the requests.
    :param access_log: Log successful requests to the quiet routes too.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and record how it was answered."""
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
                # Time until the answer begins: a stream of events goes on for hours.
                status, seconds = message["status"], time.perf_counter() - begun
                message["headers"] = [*message["headers"], header]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._record(scope, status, seconds)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = find_route(scope, status)
        self._metrics.count_request(scope["method"], route, status, seconds)
        if status >= 400 or self._access_log or route not in _QUIET_ROUTES:
            fields = {"method": scope["method"], "route": route, "status": status, "seconds": seconds}
            logger.info("request", extra=fields)


def find_route(scope: Scope, status: int) -> str:
    """Return the path template of the route that answered a request, so that the number of labels is bounded."""
    if status == 200 and scope["path"] == "/inference":  # FastInference bypasses the route
        return "/inference"
    if "route" in scope:
        return str(scope["route"].path)
    if scope.get("root_path"):  # a mounted application has its own routes
        return f"/{scope['root_path'].split('/')[1]}/*"
    return str(scope["path"]) if "endpoint" in scope and not scope.get("path_params") else UNMATCHED
