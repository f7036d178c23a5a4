"""What a request must satisfy before any route sees it.

Plain ASGI, because Starlette's ``BaseHTTPMiddleware`` reads bodies without a limit of its own.
"""

import asyncio
import hmac
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Problem, TooLargeError
from service.http.problems import error_response, report_bug
from service.http.sessions import COOKIE_NAME, Sessions
from service.settings import Settings

# Pages served from this machine may call the API, whatever their port: notebooks, development servers.
LOCAL_ORIGIN_PATTERN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?"
_LOCAL_ORIGIN = re.compile(LOCAL_ORIGIN_PATTERN.encode())
_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
_UPLOAD_PATH = re.compile(r"/models/[^/]*/file")
_MAX_UPLOADS = 4
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# A body that takes longer than this to arrive is a stalled or hostile client.
_BODY_DEADLINE_SECONDS = 15.0
_OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/login", "/logout"})
_DASHBOARD = "/dashboard"
_ASSETS = "/dashboard/_nicegui"
_MAX_FORM_BYTES = 4096

_CSP = b"default-src 'none'; frame-ancestors 'none'"
# Swagger UI and ReDoc start from an inline script and style themselves; ReDoc searches in a worker made of a blob.
_DOCS_CSP = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; worker-src blob:; frame-ancestors 'none'"
)
# Vue compiles its templates in the page, which counts as evaluating; charts are saved as blobs.
_DASHBOARD_CSP = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'"
)
_LOGIN_CSP = (
    b"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'"
)


def _list_headers(
    csp: bytes, referrer_policy: bytes = b"no-referrer", cache_control: bytes = b"no-store"
) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", referrer_policy),
        (b"cache-control", cache_control),
        (b"content-security-policy", csp),
    ]


_VARY = [(b"vary", b"Origin")]
_ANSWER_HEADERS = _list_headers(_CSP)
# A form of a page without referrers is sent with "Origin: null", which the guard cannot tell from a foreign one.
_DASHBOARD_HEADERS = _list_headers(_DASHBOARD_CSP, b"same-origin")
# Their paths hold NiceGUI's version.
_ASSET_HEADERS = _list_headers(_CSP, cache_control=b"private, max-age=86400")
_PAGE_HEADERS = {
    "/docs": _list_headers(_DOCS_CSP),
    "/redoc": _list_headers(_DOCS_CSP),
    "/login": _list_headers(_LOGIN_CSP, b"same-origin"),
}


class BrowserRules:
    """Tells browsers in the headers of every answer, refusals and preflights included, what pages may do with it.

    :param app: The application behind it; it sets none of these headers itself.
    :param settings: Origins that are allowed.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        # Credentials are never allowed: keys travel in headers.
        self._cors = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_origin_regex=LOCAL_ORIGIN_PATTERN,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["content-type", "authorization", "x-api-key", "x-request-id", "if-none-match"],
            expose_headers=[
                *("x-request-id", "retry-after", "etag", "content-disposition"),
                *("x-episode-reward", "x-episode-length"),
            ],
            allow_credentials=False,
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and add the headers to its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added = _choose_headers(scope["path"])
        has_origin = any(name == b"origin" for name, _ in scope["headers"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                if added is _ASSET_HEADERS:  # NiceGUI sets some of its own
                    headers = [header for header in headers if header[0] != b"cache-control"]
                # What CORSMiddleware would add where there is no origin; it takes longer to find that out than this.
                message["headers"] = [*headers, *([] if has_origin else _VARY), *added]
            await send(message)

        await (self._cors if has_origin else self._app)(scope, receive, send_with_headers)


def _choose_headers(path: str) -> list[tuple[bytes, bytes]]:
    if path.startswith(_DASHBOARD):
        return _ASSET_HEADERS if path.startswith(f"{_ASSETS}/") else _DASHBOARD_HEADERS
    return _PAGE_HEADERS.get(path, _ANSWER_HEADERS)


_UNKNOWN_HOST = Problem("unknown-host", "The Host header names another server")
_CROSS_SITE = Problem("cross-site", "The request comes from another web site")
_NO_KEY = Problem("no-key", "The API key is missing or wrong")
_WRONG_MEDIA_TYPE = Problem("wrong-media-type", "The body is of the wrong type")
_UPLOADS_FULL = Problem("uploads-full", "Too many files are being uploaded")
_BODY_TIMEOUT = Problem("body-timeout", "The body arrives too slowly")


def is_upload(scope: Scope) -> bool:
    """Tell whether a request sends a model file."""
    return scope.get("method") == "PUT" and bool(_UPLOAD_PATH.fullmatch(scope["path"]))


class Refusal(NamedTuple):
    """An answer given instead of the route's."""

    problem: Problem
    status_code: int
    detail: str
    headers: dict[str, str] | None = None


class BodyRule(NamedTuple):
    """What the body of a request may be.

    :param content_types: Media types, in lower case.
    :param max_bytes: Largest size.
    :param demand: Tells a client what to send.
    """

    content_types: frozenset[bytes]
    max_bytes: int
    demand: str


class RequestGuard:
    """Checks host, origin, key, content type and size of every request, and answers when the application cannot.

    Sockets are checked as requests are that change something: what comes through them may.

    Works on raw headers: Starlette's ``Headers`` decode every name anew for every look at one.

    :param app: The application behind it.
    :param settings: Hosts, origins, key and sizes that are allowed.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._allowed_hosts = {host.strip("[]").casefold().encode() for host in settings.allowed_hosts}
        self._allowed_origins = frozenset(origin.encode() for origin in settings.cors_origins)
        self._api_key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
        self._sessions = None if self._api_key is None else Sessions(self._api_key)
        self._reader = BodyReader()
        self._body_rule = BodyRule(
            frozenset({b"application/json"}),
            settings.max_body_bytes,
            "the body must be JSON; send the header 'Content-Type: application/json'.",
        )
        self._upload_rule = BodyRule(
            frozenset({b"application/zip", b"application/octet-stream"}),
            settings.max_upload_bytes,
            "the body must be a model file; send the header 'Content-Type: application/zip' or 'Content-Type: "
            "application/octet-stream'.",
        )
        self._body_rules = {
            "/inference/batch": BodyRule(
                frozenset({b"application/json", b"application/octet-stream"}),
                settings.max_batch_bytes,
                "the body must be JSON or an array as numpy.save writes it; send the header 'Content-Type: "
                "application/json' or 'Content-Type: application/octet-stream'.",
            ),
            "/login": BodyRule(
                frozenset({b"application/x-www-form-urlencoded"}),
                _MAX_FORM_BYTES,
                "the body must be a form; send the header 'Content-Type: application/x-www-form-urlencoded'.",
            ),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, open one socket, or pass the server's own messages through."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))  # the first of each name
        rule = self._upload_rule if is_upload(scope) else self._body_rules.get(scope["path"], self._body_rule)
        refusal = self._check_headers(scope, headers, rule)
        if scope["type"] == "websocket":
            await (self._app(scope, receive, send) if refusal is None else _refuse_socket(refusal, scope, send))
            return
        if refusal is None and _has_body(headers):
            body = await self._reader.read(receive, rule.max_bytes)
            if body is None:
                return
            if isinstance(body, Refusal):
                refusal = body
            else:
                receive = replay({"type": "http.request", "body": body, "more_body": False}, receive)
        if refusal is not None:
            await error_response(*refusal)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # a bug; answered here, inside CORS, so that pages may read it too
            await report_bug(error, scope["path"])(scope, receive, send)

    def _check_headers(self, scope: Scope, headers: Mapping[bytes, bytes], rule: BodyRule) -> Refusal | None:
        if not self._is_known_host([value for name, value in scope["headers"] if name == b"host"]):
            detail = "the Host header does not name this server; GRPO_ALLOWED_HOSTS lists the names it takes."
            return Refusal(_UNKNOWN_HOST, 400, detail)
        if _is_unsafe(scope) and self._is_cross_site(headers):
            detail = "requests from other web sites are refused; GRPO_CORS_ORIGINS lists those that may."
            return Refusal(_CROSS_SITE, 403, detail)
        if self._api_key is not None and scope["path"] not in _OPEN_PATHS and scope.get("method") != "OPTIONS":
            refusal = self._check_key(scope, headers)
            if refusal is not None:
                return refusal
        if not _has_body(headers):
            return None
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() not in rule.content_types:
            return Refusal(_WRONG_MEDIA_TYPE, 415, rule.demand)
        # Without leading zeros, a longer number is a larger one; int() refuses numbers of thousands of digits.
        length = headers.get(b"content-length", b"0").lstrip(b"0")
        limit = b"%d" % rule.max_bytes
        if (len(length), length) > (len(limit), limit):
            return _too_large(rule.max_bytes)
        return None

    def _check_key(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Refusal | None:
        assert self._api_key is not None
        if has_key(headers, self._api_key):
            return None
        if self._has_session(headers):
            # Browsers send a cookie whoever asks for it, and a page on another port of this machine is no other site.
            if _is_unsafe(scope) and not _is_same_origin(headers):
                return Refusal(
                    _CROSS_SITE, 403, "with a session, only pages of this server itself may change anything."
                )
            return None
        path = scope["path"]
        if scope.get("method") == "GET" and path.startswith(_DASHBOARD) and not path.startswith(_ASSETS):
            return Refusal(_NO_KEY, 303, "log in first.", {"Location": f"/login?next={quote(path)}"})
        return Refusal(
            _NO_KEY,
            401,
            "this server needs an API key; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY', or log in at "
            "/login.",
            {"WWW-Authenticate": "Bearer"},
        )

    def _is_known_host(self, hosts: list[bytes]) -> bool:
        if b"*" in self._allowed_hosts:
            return True
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        return match is not None and match["name"].strip(b"[]").lower() in self._allowed_hosts

    def _is_cross_site(self, headers: Mapping[bytes, bytes]) -> bool:
        origin = headers.get(b"origin")
        if origin is None:
            return headers.get(b"sec-fetch-site") == b"cross-site"
        return not (_is_same_origin(headers) or origin in self._allowed_origins or _LOCAL_ORIGIN.fullmatch(origin))

    def _has_session(self, headers: Mapping[bytes, bytes]) -> bool:
        assert self._sessions is not None
        pairs = (part.strip().partition(b"=") for part in headers.get(b"cookie", b"").split(b";"))
        return any(self._sessions.is_valid(token) for name, _, token in pairs if name == COOKIE_NAME.encode())


class UploadLimit:
    """Lets a few uploads in at a time: each holds its whole body in memory until it is answered.

    :param app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._n_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or tell an upload to come again."""
        if not is_upload(scope):
            await self._app(scope, receive, send)
            return
        if self._n_inside >= _MAX_UPLOADS:
            detail = f"{self._n_inside} files are being uploaded already; try again later."
            headers = {"Retry-After": "2", "Connection": "close"}
            await error_response(_UPLOADS_FULL, 429, detail, headers)(scope, receive, send)
            return
        self._n_inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._n_inside -= 1


def has_key(headers: Mapping[bytes, bytes], api_key: bytes) -> bool:
    """Tell, in a time that says nothing of the key, whether a request bears it.

    :param headers: Names in lower case.
    """
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    offered = token if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return hmac.compare_digest(offered.strip(b" \t"), api_key)


class BodyReader:
    """Reads bodies, each within a deadline.

    One timer watches over all of them: to start and stop one for each would take a fifth of a request's time.
    """

    def __init__(self) -> None:
        self._begun: dict[asyncio.Task[Any], float] = {}  # in the order of their beginning, on the loop's clock
        self._next_check = 0.0

    async def read(self, receive: Receive, max_bytes: int) -> bytes | Refusal | None:
        """Read a whole body; None if the client went away before its end, for then nobody may act on it."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "an application is called in a task"
        self._begun[task] = now = loop.time()
        if self._next_check <= now:
            self._check_at(loop, now + _BODY_DEADLINE_SECONDS)
        try:
            return await _read_chunks(receive, max_bytes)
        except asyncio.CancelledError:
            if task in self._begun:  # it was somebody else
                raise
            task.uncancel()
            detail = f"the body did not arrive within {_BODY_DEADLINE_SECONDS:.0f} s."
            return Refusal(_BODY_TIMEOUT, 408, detail, {"Connection": "close"})
        finally:
            self._begun.pop(task, None)

    def _check_at(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self._next_check = when
        loop.call_at(when, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        for task, begun in list(self._begun.items()):
            if begun + _BODY_DEADLINE_SECONDS > loop.time():
                self._check_at(loop, begun + _BODY_DEADLINE_SECONDS)
                return
            del self._begun[task]
            task.cancel()


async def _read_chunks(receive: Receive, max_bytes: int) -> bytes | Refusal | None:
    # One growing buffer: a list of chunks would let one-byte chunks cost hundreds of bytes each.
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_bytes: int) -> Refusal:
    detail = f"the body is larger than {max_bytes} bytes."
    return Refusal(TooLargeError.problem, TooLargeError.status_code, detail, {"Connection": "close"})


def _is_unsafe(scope: Scope) -> bool:
    return scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS


def _is_same_origin(headers: Mapping[bytes, bytes]) -> bool:
    origin = headers.get(b"origin")
    if origin is None:
        return headers.get(b"sec-fetch-site") == b"same-origin"
    return origin.partition(b"://")[2] == headers.get(b"host")


async def _refuse_socket(refusal: Refusal, scope: Scope, send: Send) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail})
        return
    response = error_response(*refusal)
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "websocket.http.response.start", **start})
    await send({"type": "websocket.http.response.body", "body": response.body})


def _has_body(headers: Mapping[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip() != b"0"


def replay(message: Message, receive: Receive) -> Receive:
    """Hand out a message that was received already, then whatever else comes, such as a disconnect."""
    pending = [message]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
