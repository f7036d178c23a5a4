"""Request bodies: their type and size, the deadline for reading them, and how much of them is held at a time."""

import asyncio
import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.types import Message, Receive, Scope

from service.errors import Problem, TooLargeError
from service.http.problems import Refusal

# Some programs write several byte-order marks; some readers of JSON skip only one.
_MARKS = re.compile(b"(?:%s)+" % codecs.BOM_UTF8)
_UPLOAD_PATH = re.compile(r"/models/[^/]*/file")
# A client that takes longer than this to send a body is stalled or hostile.
_BODY_DEADLINE_SECONDS = 15.0
_PACE_BYTES_PER_SECOND = 2**20

WRONG_MEDIA_TYPE = Problem("wrong-media-type", "The body is of the wrong type")
_BODY_TIMEOUT = Problem("body-timeout", "The body arrives too slowly")
_BODIES_FULL = Problem("bodies-full", "Too much is being sent at once")

# All bodies together may take this much memory, or twice the largest one if that is more.
_MIN_BYTES_AT_ONCE = 64 * 2**20
# Bodies this small are always accepted: small requests do not wait for large ones.
_SMALL_BYTES = 16 * 2**10
# A body that has been silent for this long makes room for others.
_STALLED_SECONDS = 1.0


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
        if content_type not in self.content_types and strip_parameters(content_type) not in self.content_types:
            return Refusal(WRONG_MEDIA_TYPE, 415, self.remedy)
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
            detail = "the body must not be compressed; send it as it is, without the header Content-Encoding."
            return Refusal(WRONG_MEDIA_TYPE, 415, detail, {"Accept-Encoding": "identity"})
        # Without leading zeros, the longer number is the larger one; int() refuses numbers of thousands of digits.
        length = headers.get(b"content-length", b"0").lstrip(b"0")
        limit = b"%d" % self.max_bytes
        return too_large(self.max_bytes) if (len(length), length) > (len(limit), limit) else None


def strip_parameters(content_type: bytes) -> bytes:
    """Return the media type that ``Content-Type`` names, in lower case."""
    return content_type.split(b";")[0].strip().lower()


@dataclass
class _Body:
    """A body from its first byte until its request is answered.

    :param begun: When it was first waited for, on the event loop's clock.
    :param arrived: When a piece of it last came.
    :param n_bytes: How much of it is held.
    """

    begun: float
    arrived: float
    n_bytes: int = 0

    @property
    def due(self) -> float:
        """When it has to be complete: later for one that comes at a good pace, as large files do."""
        return self.begun + _BODY_DEADLINE_SECONDS + self.n_bytes / _PACE_BYTES_PER_SECOND


class BodyReader:
    """Reads bodies, each within a deadline, and bounds what all of them take until their requests are answered.

    One timer serves all of them: starting and stopping a timer per body would take a fifth of a request's time.

    :param largest: Size of the largest body allowed.
    """

    def __init__(self, largest: int) -> None:
        self._max_bytes = max(_MIN_BYTES_AT_ONCE, 2 * largest)
        self._n_bytes = 0
        self._held: dict[asyncio.Task[Any], _Body] = {}
        self._unfinished: dict[asyncio.Task[Any], _Body] = {}  # oldest first
        self._next_check = 0.0

    async def read(self, receive: Receive, max_bytes: int) -> bytes | Refusal | None:
        """Read a whole body; None if the client disconnected before its end, so that nothing acts on half of it.

        Call ``release`` when the request is answered.
        """
        loop, task = asyncio.get_running_loop(), _get_task()
        now = loop.time()
        self._held[task] = self._unfinished[task] = body = _Body(now, now)
        if not now < self._next_check <= now + _BODY_DEADLINE_SECONDS:
            self._check_at(loop, now + _BODY_DEADLINE_SECONDS)
        try:
            return await self._read_chunks(receive, body, max_bytes)
        except asyncio.CancelledError:
            if task in self._unfinished:  # not cancelled here
                raise
            task.uncancel()
            if task not in self._held:
                return _bodies_full()
            return too_slow()
        finally:
            self._unfinished.pop(task, None)

    def release(self) -> None:
        """Let go of the body that this task has read, if it has read any."""
        body = self._held.pop(_get_task(), None)
        if body is not None:
            self._n_bytes -= body.n_bytes

    async def _read_chunks(self, receive: Receive, body: _Body, max_bytes: int) -> bytes | Refusal | None:
        # One growing buffer: in a list of chunks, one-byte chunks would cost hundreds of bytes each.
        content = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            if len(content) + len(piece) > max_bytes:
                return too_large(max_bytes)
            body.arrived = asyncio.get_running_loop().time()
            if not self._make_room(len(piece), len(content)):
                return _bodies_full()
            content += piece
            body.n_bytes += len(piece)
            self._n_bytes += len(piece)
            if not message.get("more_body", False):
                return bytes(content)

    def _make_room(self, n_new: int, n_before: int) -> bool:
        """Return whether a body may grow; if need be, those that have stalled longest are refused."""
        while self._n_bytes + n_new > self._max_bytes and n_before + n_new > _SMALL_BYTES:
            before = asyncio.get_running_loop().time() - _STALLED_SECONDS
            large = [(body.arrived, task) for task, body in self._unfinished.items() if body.n_bytes > _SMALL_BYTES]
            arrived, task = min(large, key=lambda pair: pair[0], default=(before, None))
            if task is None or arrived >= before:
                return False
            self._n_bytes -= self._held.pop(task).n_bytes
            self._cancel(task)
        return True

    def _check_at(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self._next_check = when
        loop.call_at(when, self._cancel_overdue, loop)

    def _cancel_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for task, body in list(self._unfinished.items()):
            if body.due <= now:
                self._cancel(task)
        if self._unfinished:
            self._check_at(loop, min(body.due for body in self._unfinished.values()))

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        del self._unfinished[task]
        task.cancel()


def _get_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "an application is called in a task"
    return task


def _bodies_full() -> Refusal:
    detail = "the server's room for request bodies is full; send the request again."
    return Refusal(_BODIES_FULL, 503, detail, {"Retry-After": "1", "Connection": "close"})


def too_slow() -> Refusal:
    """Build the refusal of a body that takes too long to arrive."""
    detail = f"the body did not arrive within {_BODY_DEADLINE_SECONDS:.0f} s."
    return Refusal(_BODY_TIMEOUT, 408, detail, {"Connection": "close"})


def too_large(max_bytes: int) -> Refusal:
    """Build the refusal of a body above a limit."""
    detail = f"the body is larger than {max_bytes} bytes."
    return Refusal(TooLargeError.problem, TooLargeError.status_code, detail, {"Connection": "close"})


def read_as_utf8(body: bytes) -> bytes | None:
    """Return a JSON body without the marks at its beginning that some programs write; None in another encoding."""
    if json.detect_encoding(body[:4]) not in ("utf-8", "utf-8-sig"):
        return None
    marks = _MARKS.match(body)
    return body if marks is None else body[marks.end() :]


def is_upload(scope: Scope) -> bool:
    """Return whether a request sends a model file."""
    return scope.get("method") == "PUT" and bool(_UPLOAD_PATH.fullmatch(scope["path"]))


def has_body(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request's headers announce a body.

    :param headers: Names in lower case.
    """
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip() != b"0"


def find_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Return the length of a body that is not too large; None if its head does not say.

    :param headers: Names in lower case.
    """
    length = headers.get(b"content-length")
    # int() refuses numbers of thousands of digits; zeros in front of one must not hide it.
    return None if length is None else int(length.lstrip(b"0") or b"0")


def replay(message: Message, receive: Receive) -> Receive:
    """Return a ``receive`` that hands out a message received earlier, then whatever follows, such as a disconnect."""
    pending = [message]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
