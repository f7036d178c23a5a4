"""Response headers that tell browsers what pages may do: CORS, content security policies, caching."""

from collections.abc import Iterable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.settings import Settings

# Pages served from this machine, such as notebooks and development servers, may call the API from any port.
LOCAL_ORIGIN_PATTERN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?"
DASHBOARD_PATH = "/dashboard"
# For its files and its socket.
NICEGUI_PATH = f"{DASHBOARD_PATH}/_nicegui"

_CSP = b"default-src 'none'; frame-ancestors 'none'"
# Swagger UI and ReDoc start from an inline script and style themselves; ReDoc searches in a worker made of a blob.
_DOCS_CSP = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; worker-src blob:; frame-ancestors 'none'"
)
# Vue compiles its templates in the page, which needs eval; charts are saved as blobs.
_DASHBOARD_CSP = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'"
)
# Pages without scripts.
_PLAIN_CSP = (
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
# Without a referrer, browsers send forms with "Origin: null", which the guard cannot tell from a foreign origin.
_DASHBOARD_HEADERS = _list_headers(_DASHBOARD_CSP, b"same-origin")
# Cacheable, since the paths contain NiceGUI's version.
_ASSET_HEADERS = _list_headers(_CSP, cache_control=b"private, max-age=86400")
_PLAIN_HEADERS = _list_headers(_PLAIN_CSP, b"same-origin")
_PAGE_HEADERS = {
    "/docs": _list_headers(_DOCS_CSP),
    "/redoc": _list_headers(_DOCS_CSP),
    "/login": _PLAIN_HEADERS,
}


class BrowserRules:
    """Adds the headers to every answer, refusals and preflights included.

    :param app: The application behind it; it sets none of these headers itself.
    :param settings: Lists the allowed origins.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        # Credentials are never allowed: keys travel in headers.
        self._cors = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_origin_regex=LOCAL_ORIGIN_PATTERN,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                *("content-type", "authorization", "x-api-key", "x-request-id"),
                *("if-match", "if-none-match", "if-range", "range", "last-event-id"),
            ],
            expose_headers=[
                *("x-request-id", "retry-after", "etag", "content-disposition", "content-range", "accept-ranges"),
                *("x-episode-reward", "x-episode-length", "x-total-count", "x-checkpoint-timesteps"),
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
                is_page = added is _ANSWER_HEADERS and message["status"] == 404 and _is_html(headers)
                # Without an origin, CORSMiddleware would add only this, and take longer to find that out.
                message["headers"] = [*headers, *([] if has_origin else _VARY), *(_PLAIN_HEADERS if is_page else added)]
            await send(message)

        await (self._cors if has_origin else self._app)(scope, receive, send_with_headers)


def list_headers(path: str) -> list[tuple[bytes, bytes]]:
    """List the headers of an answer to a request without an origin."""
    return [*_VARY, *_choose_headers(path)]


def _choose_headers(path: str) -> list[tuple[bytes, bytes]]:
    if path.startswith(DASHBOARD_PATH):
        return _ASSET_HEADERS if path.startswith(f"{NICEGUI_PATH}/") else _DASHBOARD_HEADERS
    return _PAGE_HEADERS.get(path, _ANSWER_HEADERS)


def _is_html(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)
