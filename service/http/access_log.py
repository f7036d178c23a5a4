"""The log and the metrics of requests, refused ones included."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.context import REQUEST_ID
from service.http.request_ids import RequestIds
from service.monitoring.prometheus import Metrics

logger = logging.getLogger("grpo.service")

# No route was reached: the path is unknown, or the guard refused the request.
UNMATCHED = "unmatched"
#: Name, in the lifespan's state, of the function that counts what is refused before it reaches an application.
COUNT_REQUEST = "count_request"
#: Name, in a request's scope, of the status with which its connection has answered in place of the application.
REFUSED_STATUS = "refused_status"
# nginx's code for a client that disconnected before the answer.
_CLIENT_GONE = 499
# Requested by the thousand, and of interest only when they fail.
_QUIET_ROUTES = frozenset({"/inference", "/metrics", "/health", "/health/live", "/health/ready"})


class RequestLog:
    """Counts and logs requests.

    :param metrics: Counts them.
    :param access_log: Log successful requests to the quiet routes too.
    """

    def __init__(self, metrics: Metrics, access_log: bool) -> None:
        #: Makes the ids of requests.
        self.ids = RequestIds()
        self._metrics = metrics
        #: Whether to log successful requests to the quiet routes too.
        self.is_complete = access_log

    def record(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record how a request was answered.

        :param route: Its path template.
        :param seconds: Time until the answer began, or the client was gone.
        """
        self._metrics.count_request(method, route, status, seconds)
        if status >= 400 or self.is_complete or route not in _QUIET_ROUTES:
            self.write(method, route, status, seconds)

    def write(self, method: str, route: str, status: int, seconds: float) -> None:
        """Write a line without counting the request."""
        fields = {"method": method, "route": route, "status": status, "seconds": seconds}
        logger.info("request", extra=fields)


class AccessLog:
    """Gives every request an id, returns it in the answer, and records the outcome.

    :param app: The application behind it.
    :param log: Where it records.
    """

    def __init__(self, app: ASGIApp, log: RequestLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and record how it was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        request_id = self._log.ids.choose(offered)
        REQUEST_ID.set(request_id)
        header = (b"x-request-id", request_id.encode())
        begun = time.perf_counter()
        status, seconds = 0, 0.0

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
            if not status:
                status, seconds = _CLIENT_GONE, time.perf_counter() - begun
            self._log.record(scope["method"], find_route(scope), scope.get(REFUSED_STATUS, status), seconds)


def find_route(scope: Scope) -> str:
    """Return the path template of the route that answered a request, so that the number of labels is bounded."""
    if "route" in scope:
        return str(scope["route"].path)
    if scope.get("root_path"):  # a mounted application has its own routes
        return f"/{scope['root_path'].split('/')[1]}/*"
    return str(scope["path"]) if "endpoint" in scope and not scope.get("path_params") else UNMATCHED
