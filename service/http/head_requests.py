"""HEAD: what GET would answer, without the body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What the router notes of the route, for the log.
_ROUTE_KEYS = ("route", "endpoint", "path_params")


class HeadRequests:
    """Answers HEAD wherever there is a GET.

    :param app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a HEAD on as GET, and send the head of what comes back."""
        if scope.get("method") != "HEAD":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def send_head(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                is_answered = True

        async def receive_until_answered() -> Message:
            # An endless answer, such as a stream of events, ends when the client leaves.
            return {"type": "http.disconnect"} if is_answered else await receive()

        # Ranges are of GET alone.
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        inner = {**scope, "method": "GET", "headers": headers}
        await self._app(inner, receive_until_answered, send_head)
        scope.update({key: inner[key] for key in _ROUTE_KEYS if key in inner})
