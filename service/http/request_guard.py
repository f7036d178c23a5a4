"""Checks every request before any route sees it.

Plain ASGI, because Starlette's ``BaseHTTPMiddleware`` reads bodies without a limit of its own.
"""

import hmac
import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

from anyio import BrokenResourceError, ClosedResourceError, move_on_after
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Problem, ReadOnlyError, TooLargeError, printable
from service.http.browser_rules import DASHBOARD_PATH, LOCAL_ORIGIN_PATTERN, NICEGUI_PATH
from service.http.limits.bodies import (
    BodyReader,
    BodyRule,
    find_length,
    has_body,
    is_upload,
    read_as_utf8,
    replay,
    strip_parameters,
)
from service.http.limits.clients import ClientLimits, GuessLimit
from service.http.problems import NO_SUCH_PATH, NOT_UTF8, Refusal, error_response, report_bug, unreadable_body
from service.http.sessions import COOKIE_NAME, Sessions
from service.replicas.read_only import ReadOnlyRule
from service.settings import Settings

_LOCAL_ORIGIN = re.compile(LOCAL_ORIGIN_PATTERN.encode())
_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
_EMPTY_PATHS = _HEALTH_PATHS | {"/logout"}
_OPEN_PATHS = _EMPTY_PATHS | {"/login"}
_MAX_FORM_BYTES = 4096
_MAX_KNOWN_HOSTS = 64
# Most requests answered at once; each counts only after it has fully arrived.
_MAX_REQUESTS = 256
_MAX_SOCKETS = 100
# Each holds its whole body in memory until it is answered.
_MAX_UPLOADS = 4
_CHECKED = "grpo.checked"
_NO_SOCKET = "this address opens no WebSocket; only the dashboard's pages open theirs."

_UNKNOWN_HOST = Problem("unknown-host", "The Host header names another server")
_CROSS_SITE = Problem("cross-site", "The request comes from another web site")
_BUSY = Problem("busy", "The server is busy")
_UPLOADS_FULL = Problem("uploads-full", "Too many files are being uploaded")
_NO_KEY = Problem("no-key", "The API key is missing or wrong")

_OTHER_HOST = Refusal(
    _UNKNOWN_HOST,
    400,
    "the Host header does not name this server; add the name to GRPO_ALLOWED_HOSTS if it is right.",
)
_NO_HOST = _OTHER_HOST._replace(detail="the Host header is missing; send one with the name of this server.")
CROSS_SITE = Refusal(
    _CROSS_SITE, 403, "requests from other web sites are refused; add the site to GRPO_CORS_ORIGINS to allow it."
)
NO_KEY = Refusal(
    _NO_KEY,
    401,
    "this server needs an API key; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY', or log in at /login.",
    {"WWW-Authenticate": "Bearer"},
)
_WRONG_KEY = NO_KEY._replace(
    detail="the API key that was sent is not this server's; send it as 'Authorization: Bearer KEY' or "
    "'X-API-Key: KEY', or log in at /login."
)


class RequestRules:
    """The rules for the host, origin, key, content type and size of a request.

    A socket is checked like a request that changes something, since its messages may.

    Works on raw headers, because Starlette's ``Headers`` decode every name again at each look-up.

    :param settings: Lists the allowed hosts, origins and sizes, and holds the key.
    :param guesses: Counts wrong keys.
    :param limits: Counts each client's requests; None if they are not limited.
    """

    def __init__(self, settings: Settings, guesses: GuessLimit, limits: ClientLimits | None) -> None:
        self._guesses = guesses
        self._limits = limits
        self._read_only = ReadOnlyRule(settings) if settings.is_replica else None
        # A client sends the same again and again.
        self._is_known_host = lru_cache(_MAX_KNOWN_HOSTS)(self._match_host)
        self._allowed_hosts = {host.strip("[]").casefold().encode() for host in settings.allowed_hosts}
        self._allowed_origins = frozenset(origin.encode() for origin in settings.cors_origins)
        self._api_key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
        self._sessions = None if self._api_key is None else Sessions(self._api_key)
        #: For most bodies.
        self.body_rule = BodyRule(
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

    @property
    def max_body_bytes(self) -> int:
        """Size of the largest body of any kind."""
        return max(rule.max_bytes for rule in (self.body_rule, self._upload_rule, *self._body_rules.values()))

    def get_body_rule(self, scope: Scope) -> BodyRule:
        """Return the rule for the body of a request."""
        return self._upload_rule if is_upload(scope) else self._body_rules.get(scope["path"], self.body_rule)

    def check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Refusal | None:
        """Check all of a request but its body, and count it; None if it is fine.

        :param headers: The first of each name, in lower case.
        """
        if _CHECKED not in scope:  # the shortcut for /inference may have asked before
            scope[_CHECKED] = self._check(scope, headers)
        refusal: Refusal | None = scope[_CHECKED]
        return refusal

    def _check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Refusal | None:
        if not self._has_known_host(scope, headers):
            return _NO_HOST if b"host" not in headers else _OTHER_HOST
        if _is_unsafe(scope) and self._is_cross_site(headers):
            return CROSS_SITE
        if self._api_key is not None and scope["path"] not in _OPEN_PATHS and scope.get("method") != "OPTIONS":
            refusal = self._check_key(scope, headers)
            if refusal is not None:
                return refusal
        if self._limits is not None and scope["path"] not in _HEALTH_PATHS:
            refusal = self._limits.check(scope)
            if refusal is not None:
                return refusal
        if not scope["path"].isprintable():  # routes match in spite of a final newline, and rules do not
            detail = f"{scope['path'][:100]!a} contains an unprintable character, which no path has; leave it out."
            return Refusal(NO_SUCH_PATH, 404, detail)
        if self._read_only is not None:
            reason = self._read_only.find_refusal(scope.get("method", "GET"), scope["path"])
            if reason is not None:
                return Refusal(ReadOnlyError.problem, ReadOnlyError.status_code, reason)
        return self._check_body(scope, headers) if has_body(headers) else None

    def _check_body(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Refusal | None:
        """Check the head of a body; what needs no key takes none, so that strangers cannot fill the memory."""
        path = scope["path"]
        if path in _EMPTY_PATHS or scope.get("method") == "OPTIONS":
            asked = printable(f"{scope.get('method', 'GET')} {path}")
            detail = f"'{asked}' was sent with a body and takes none; send it without one."
            return Refusal(TooLargeError.problem, TooLargeError.status_code, detail, {"Connection": "close"})
        return self.get_body_rule(scope).check(headers)

    def count_upload(self, scope: Scope, n_bytes: int | None) -> Refusal | None:
        """Count an upload that has a place; return a refusal if its client has sent too much.

        :param n_bytes: Its size; None if it is not known yet.
        """
        return None if self._limits is None or n_bytes is None else self._limits.count_upload(scope, n_bytes)

    def _check_key(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Refusal | None:
        assert self._api_key is not None
        if has_key(headers, self._api_key):
            return None
        if self._has_session(headers):
            # Browsers send the cookie whichever page asks, and to them another port of this machine is the same site.
            if _is_unsafe(scope) and not _is_same_origin(headers):
                detail = "a browser session may change something only from this server's own pages; send the API key."
                return Refusal(_CROSS_SITE, 403, detail)
            return None
        if _find_key(headers):
            refusal = self._guesses.count_header(scope)
            if refusal is not None:
                return refusal
        path = scope["path"]
        is_read = scope.get("method") in ("GET", "HEAD")
        if is_read and path.startswith(DASHBOARD_PATH) and not path.startswith(NICEGUI_PATH):
            page = f"{path}?{query}" if (query := scope.get("query_string", b"").decode("latin-1")) else path
            return Refusal(_NO_KEY, 303, "log in first.", {"Location": f"/login?next={quote(page)}"})
        return _WRONG_KEY if _find_key(headers) else NO_KEY

    def _has_known_host(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        if b"*" in self._allowed_hosts:
            return True
        names = scope["headers"]
        if len(headers) < len(names) and sum(name == b"host" for name, _ in names) > 1:
            return False
        return self._is_known_host(headers.get(b"host", b""))

    def _match_host(self, host: bytes) -> bool:
        match = _HOST.fullmatch(host)
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


class RequestGuard:
    """Refuses requests that break the rules or are too many, and answers if the application fails.

    :param app: The application behind it.
    :param rules: What requests have to be like.
    """

    def __init__(self, app: ASGIApp, rules: RequestRules) -> None:
        self._app = app
        self._rules = rules
        self._reader = BodyReader(rules.max_body_bytes)
        self._n_requests = 0
        self._n_sockets = 0
        self._n_uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, open a socket, or pass on the server's own messages."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))  # the first of each name
        refusal = self._rules.check(scope, headers)
        if scope["type"] == "websocket":
            await self._open_socket(refusal, scope, receive, send)
        elif refusal is None and is_upload(scope):
            await self._take_upload(scope, headers, receive, send)
        else:
            await self._take(refusal, scope, headers, receive, send)

    async def _take_upload(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        """Take in an upload, or ask for it again later, before any of it is read."""
        if self._n_uploads >= _MAX_UPLOADS:
            detail = f"{self._n_uploads} files are being uploaded already; try again later."
            headers_of_answer = {"Retry-After": "2", "Connection": "close"}
            await error_response(_UPLOADS_FULL, 429, detail, headers_of_answer)(scope, receive, send)
            return
        self._n_uploads += 1
        try:
            refusal = self._rules.count_upload(scope, find_length(headers))
            await self._take(refusal, scope, headers, receive, send)
        finally:
            self._n_uploads -= 1

    async def _take(
        self, refusal: Refusal | None, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        """Read the body of a request that is not refused, and answer."""
        try:
            if refusal is None and has_body(headers):
                body = await self._reader.read(receive, self._rules.get_body_rule(scope).max_bytes)
                if body is None:
                    return
                if isinstance(body, bytes) and _is_json(headers) and (body := read_as_utf8(body)) is None:
                    await unreadable_body(NOT_UTF8)(scope, receive, send)
                    return
                if isinstance(body, Refusal):
                    refusal = body
                else:
                    if is_upload(scope) and find_length(headers) is None:
                        refusal = self._rules.count_upload(scope, len(body))
                    receive = replay({"type": "http.request", "body": body, "more_body": False}, receive)
            if refusal is None and self._n_requests >= _MAX_REQUESTS and scope["path"] not in _HEALTH_PATHS:
                refusal = Refusal(_BUSY, 503, f"{self._n_requests} requests are being answered.", {"Retry-After": "1"})
            await (self._answer if refusal is None else error_response(*refusal))(scope, receive, send)
        except Exception as error:  # a bug, or what a client causes that has left
            if _comes_of_leaving(error) and await _has_left(receive):
                return
            # Answered here, inside CORS, so that pages may read it too.
            await report_bug(error, scope["path"])(scope, receive, send)
        finally:
            self._reader.release()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._n_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._n_requests -= 1

    async def _open_socket(self, refusal: Refusal | None, scope: Scope, receive: Receive, send: Send) -> None:
        if refusal is None and self._n_sockets >= _MAX_SOCKETS:
            refusal = Refusal(_BUSY, 503, f"{self._n_sockets} dashboards are open.", {"Retry-After": "10"})
        if refusal is not None:
            await _refuse_socket(refusal, scope, send)
            return
        self._n_sockets += 1
        try:
            await self._app(scope, receive, _explain_denial(scope, send))
        finally:
            self._n_sockets -= 1


def has_key(headers: Mapping[bytes, bytes], api_key: bytes) -> bool:
    """Check a request's key, in constant time.

    :param headers: Names in lower case.
    """
    return hmac.compare_digest(_find_key(headers), api_key)


def _find_key(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key that a request offers; empty if none."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    offered = token if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return offered.strip(b" \t")


def _comes_of_leaving(error: BaseException) -> bool:
    """Return whether an error is one that a client causes by closing its connection."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_comes_of_leaving, error.exceptions))
    return isinstance(error, BrokenResourceError | ClosedResourceError | ClientDisconnect | ConnectionError)


async def _has_left(receive: Receive) -> bool:
    """Return whether the client has closed its connection."""
    with move_on_after(0):
        while (await receive())["type"] != "http.disconnect":
            pass
        return True
    return False


def _is_json(headers: Mapping[bytes, bytes]) -> bool:
    return strip_parameters(headers.get(b"content-type", b"")) == b"application/json"


def _is_unsafe(scope: Scope) -> bool:
    return scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS


def _is_same_origin(headers: Mapping[bytes, bytes]) -> bool:
    origin = headers.get(b"origin")
    if origin is None:
        return headers.get(b"sec-fetch-site") == b"same-origin"
    return origin.partition(b"://")[2] == headers.get(b"host")


def _explain_denial(scope: Scope, send: Send) -> Send:
    """Return a ``send`` that says why no socket is opened; by itself that would be a 403 without a word."""
    is_open = False

    async def send_or_explain(message: Message) -> None:
        nonlocal is_open
        is_open = is_open or message["type"] == "websocket.accept"
        if message["type"] == "websocket.close" and not is_open:
            await _refuse_socket(Refusal(NO_SUCH_PATH, 404, _NO_SOCKET), scope, send)
        else:
            await send(message)

    return send_or_explain


async def _refuse_socket(refusal: Refusal, scope: Scope, send: Send) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail})
        return
    response = error_response(*refusal)
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "websocket.http.response.start", **start})
    await send({"type": "websocket.http.response.body", "body": response.body})
