"""Request bodies: their type and size, the deadline for reading them, and the number of uploads at a time."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Problem, TooLargeError
from service.http.problems import Refusal, error_response

_UPLOAD_PATH = re.compile(r"/models/[^/]*/file")
_MAX_UPLOADS = 4
# A client that takes longer than this to send a body is stalled or hostile.
_BODY_DEADLINE_SECONDS = 15.0

_WRONG_MEDIA_TYPE = Problem("wrong-media-type", "The body is of the wrong type")
_UPLOADS_FULL = Problem("uploads-full", "Too many files are being uploaded")
_BODY_TIMEOUT = Problem("body-timeout", "The body arrives too slowly")


class BodyRule(NamedTuple):
    """The allowed type and size of a body.

    :param content_types: Media types, in lower case.
    :param max_bytes: Largest size.
    :param remedy: Tells a client what to send instead.
    """

    content_types: frozenset[bytes]
    max_bytes: int
    remedy: str

    def check(self, headers: Mapping[bytes, bytes]) -> Refusal | None:
        """Check a body's headers; None if they are fine.

        :param headers: Names in lower case.
        """
        content_type = headers.get(b"content-type", b"")
        if content_type not in self.content_types and _strip_parameters(content_type) not in self.content_types:
            return Refusal(_WRONG_MEDIA_TYPE, 415, self.remedy)
        # Without leading zeros, the longer number is the larger one; int() refuses numbers of thousands of digits.
        length = headers.get(b"content-length", b"0").lstrip(b"0")
        limit = b"%d" % self.max_bytes
        return _too_large(self.max_bytes) if (len(length), length) > (len(limit), limit) else None


def _strip_parameters(content_type: bytes) -> bytes:
    return content_type.split(b";")[0].strip().lower()


class BodyReader:
    """Reads bodies, each within a deadline.

    One timer serves all of them: starting and stopping a timer per body would take a fifth of a request's time.
    """

    def __init__(self) -> None:
        self._begun: dict[asyncio.Task[Any], float] = {}  # oldest first, on the event loop's clock
        self._next_check = 0.0

    async def read(self, receive: Receive, max_bytes: int) -> bytes | Refusal | None:
        """Read a whole body; None if the client disconnected before its end, so that nothing acts on half of it."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "an application is called in a task"
        self._begun[task] = now = loop.time()
        if self._next_check <= now:
            self._check_at(loop, now + _BODY_DEADLINE_SECONDS)
        try:
            return await _read_chunks(receive, max_bytes)
        except asyncio.CancelledError:
            if task in self._begun:  # not cancelled by the timer
                raise
            task.uncancel()
            detail = f"the body did not arrive within {_BODY_DEADLINE_SECONDS:.0f} s."
            return Refusal(_BODY_TIMEOUT, 408, detail, {"Connection": "close"})
        finally:
            self._begun.pop(task, None)

    def _check_at(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self._next_check = when
        loop.call_at(when, self._cancel_overdue, loop)

    def _cancel_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        for task, begun in list(self._begun.items()):
            if begun + _BODY_DEADLINE_SECONDS > loop.time():
                self._check_at(loop, begun + _BODY_DEADLINE_SECONDS)
                return
            del self._begun[task]
            task.cancel()


async def _read_chunks(receive: Receive, max_bytes: int) -> bytes | Refusal | None:
    # One growing buffer: in a list of chunks, one-byte chunks would cost hundreds of bytes each.
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


class UploadLimit:
    """Lets in a few uploads at a time: each holds its whole body in memory until it is answered.

    :param app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._n_uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or ask an upload to try again later."""
        if not is_upload(scope):
            await self._app(scope, receive, send)
            return
        if self._n_uploads >= _MAX_UPLOADS:
            detail = f"{self._n_uploads} files are being uploaded already; try again later."
            headers = {"Retry-After": "2", "Connection": "close"}
            await error_response(_UPLOADS_FULL, 429, detail, headers)(scope, receive, send)
            return
        self._n_uploads += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._n_uploads -= 1


def is_upload(scope: Scope) -> bool:
    """Return whether a request sends a model file."""
    return scope.get("method") == "PUT" and bool(_UPLOAD_PATH.fullmatch(scope["path"]))


def has_body(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request's headers announce a body.

    :param headers: Names in lower case.
    """
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip() != b"0"


def replay(message: Message, receive: Receive) -> Receive:
    """Return a ``receive`` that hands out a message received earlier, then whatever follows, such as a disconnect."""
    pending = [message]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
