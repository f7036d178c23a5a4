"""What a request must satisfy before any route sees it.

Plain ASGI, because Starlette's ``BaseHTTPMiddleware`` reads bodies without a limit of its own.
"""

import asyncio
import hmac
import re
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import error_response, report_bug
from service.settings import Settings

# Pages served from this machine may call the API, whatever their port: notebooks, development servers.
LOCAL_ORIGIN_PATTERN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?"
_LOCAL_ORIGIN = re.compile(LOCAL_ORIGIN_PATTERN)
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# A body that takes longer than this to arrive is a stalled or hostile client.
_BODY_DEADLINE_SECONDS = 15.0
_OPEN_PATHS = frozenset({"/health"})
_DOCS_PATHS = frozenset({"/docs", "/redoc"})

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_CSP = "default-src 'none'; frame-ancestors 'none'"
# Swagger UI and ReDoc start from an inline script and style themselves; ReDoc searches in a worker made of a blob.
_DOCS_CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; worker-src blob:; frame-ancestors 'none'"
)


class SecurityHeaders:
    """Sets headers on every answer, refusals and preflights included, that keep browsers from misusing it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and add the headers to its answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", _DOCS_CSP if scope["path"] in _DOCS_PATHS else _CSP)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class Refusal(NamedTuple):
    """An answer given instead of the route's."""

    status_code: int
    detail: str
    headers: dict[str, str] | None = None


class RequestGuard:
    """Checks host, origin, key, content type and size of every request, and answers when the application cannot.

    :param app: The application behind it.
    :param settings: Hosts, origins, key and size that are allowed.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._allowed_hosts = {host.strip("[]").casefold() for host in settings.allowed_hosts}
        self._allowed_origins = frozenset(settings.cors_origins)
        self._api_key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass anything that is not HTTP through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        headers = Headers(scope=scope)
        refusal = self._check_headers(scope, headers)
        if refusal is None and _has_body(headers):
            body = await self._read_body(receive)
            if body is None:
                return
            if isinstance(body, Refusal):
                refusal = body
            else:
                receive = _replay(body, receive)
        if refusal is not None:
            await error_response(*refusal)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # a bug; answered here, inside CORS, so that pages may read it too
            await report_bug(error, scope["path"])(scope, receive, send)

    def _check_headers(self, scope: Scope, headers: Headers) -> Refusal | None:
        if not self._is_known_host(headers.getlist("host")):
            return Refusal(
                400, "the Host header does not name this server; GRPO_ALLOWED_HOSTS lists the names it takes."
            )
        if scope["method"] not in _SAFE_METHODS and self._is_cross_site(headers):
            return Refusal(403, "requests from other web sites are refused; GRPO_CORS_ORIGINS lists those that may.")
        if self._api_key is not None and scope["path"] not in _OPEN_PATHS and scope["method"] != "OPTIONS":
            if not self._has_key(headers):
                return Refusal(
                    401,
                    "this server needs an API key; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
                    {"WWW-Authenticate": "Bearer"},
                )
        if not _has_body(headers):
            return None
        content_type = headers.get("content-type", "").split(";")[0].strip().lower()
        if content_type != "application/json":
            return Refusal(415, "the body must be JSON; send the header 'Content-Type: application/json'.")
        # Without leading zeros, a longer number is a larger one; int() refuses numbers of thousands of digits.
        length = headers.get("content-length", "0").lstrip("0")
        limit = str(self._max_body_bytes)
        if (len(length), length) > (len(limit), limit):
            return self._too_large()
        return None

    def _is_known_host(self, hosts: list[str]) -> bool:
        if "*" in self._allowed_hosts:
            return True
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        return match is not None and match["name"].strip("[]").casefold() in self._allowed_hosts

    def _is_cross_site(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") == "cross-site"
        same_origin = origin.partition("://")[2] == headers.get("host")
        return not (same_origin or origin in self._allowed_origins or _LOCAL_ORIGIN.fullmatch(origin))

    def _has_key(self, headers: Headers) -> bool:
        assert self._api_key is not None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(offered.strip(" \t").encode("latin-1"), self._api_key)

    async def _read_body(self, receive: Receive) -> bytes | Refusal | None:
        """Read the whole body; None if the client went away before its end, for then nobody may act on it."""
        # One growing buffer: a list of chunks would let one-byte chunks cost hundreds of bytes each.
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_DEADLINE_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        return self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            return Refusal(
                408, f"the body did not arrive within {_BODY_DEADLINE_SECONDS:.0f} s.", {"Connection": "close"}
            )

    def _too_large(self) -> Refusal:
        detail = f"the body is larger than {self._max_body_bytes} bytes."
        return Refusal(413, detail, {"Connection": "close"})


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip() != "0"


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand out a body that was read already, then whatever else comes, such as a disconnect."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
