"""Connections: how much a client may send and how long it may take before its request is there, and how it is let go.

Left to itself, uvicorn waits for ever for the rest of a request and for a client that does not read its answer; and
where a body is refused, it closes so early that the client never sees why.
"""

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.context import REQUEST_ID
from service.errors import Problem
from service.http.access_log import COUNT_REQUEST, REFUSED_STATUS, UNMATCHED
from service.http.browser_rules import list_headers
from service.http.limits.bodies import has_body
from service.http.problems import error_response
from service.http.request_ids import RequestIds

if sys.platform != "win32":
    import resource

logger = logging.getLogger("grpo.service")

# What a client may send before a request's head, or the next piece of its body, is complete.
MAX_HEAD_BYTES = 16 * 2**10
_MAX_TARGET_BYTES = 8 * 2**10
# How long a head may take from its first byte to its last, a new connection be silent, and a client go on sending what
# is no longer read.
PATIENCE_SECONDS = 10.0
# A client whose request is refused while it still sends must be let finish: closing at once would make its system
# throw the answer away.
_MAX_IGNORED_BYTES = 128 * 2**20
# Requests that wait for the answer to an earlier one of their connection. All that was read at once is parsed, and each
# takes memory before its key is looked at; a client that sends ahead has to repeat what is not answered anyway.
_MAX_PIPELINED = 16
# A client that takes nothing of its answer for this long is gone.
_UNREAD_SECONDS = 30.0
# A client that has closed its side may still read, or be gone; only writing to it shows which. It is sent what begins
# within this time, and a stream until that pauses for longer.
_HALF_CLOSED_SECONDS = 2.0
_MAX_CONNECTIONS = 2048
# Leave the remaining descriptors for models, workers and the log.
_SHARE_OF_DESCRIPTORS = 0.75

_HEAD_TOO_LARGE = Problem("head-too-large", "The head of the request is too large")
_PATH_TOO_LONG = Problem("path-too-long", "The path is too long")
_HEAD_TIMEOUT = Problem("head-timeout", "The head of the request arrives too slowly")
EXPECTATION = Problem("expectation-failed", "The expectation cannot be met")
TRANSFER_CODING = Problem("unknown-transfer-coding", "The transfer coding is not supported")
_NOT_HTTP = Problem("not-http", "The request is not valid HTTP")


_ABSOLUTE_TARGET = re.compile(rb"https?://([^/?#@]+)((?:[/?].*)?)", re.IGNORECASE | re.DOTALL)


class Connection(HttpToolsProtocol):
    """A connection that does not wait for its client without end.

    Connections that wait for their clients do not keep new ones out: if there are too many, the one that has waited
    longest is closed for the next.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._socket: asyncio.Transport
        #: Since when the client is awaited, on the event loop's clock; None while it is the client that waits.
        self.waiting_since: float | None = None
        # What was parsed since a head or a piece of a body was last complete.
        self._n_unreported = 0
        self._in_head = True
        self._in_body = False
        # The request that was started last; ``cycle`` is the one that came last, which may still wait behind it.
        self._started: RequestResponseCycle | None = None
        # How much more is read and ignored; None while requests are still answered.
        self._n_ignorable: int | None = None
        self._deadline: float | None = None
        # Moves on when it rings before the deadline: to set it anew for every request would take longer.
        self._alarm: asyncio.TimerHandle | None = None
        self._unread_alarm: asyncio.TimerHandle | None = None
        # Set once the client has closed its side while it is answered, with whether anything was written since.
        self._half_closed_alarm: asyncio.TimerHandle | None = None
        self._has_written = False
        # The head asks for another protocol, and is read again without that.
        self._is_rereading = False
        # How the connection ends once the requests before are answered; until then nothing is read.
        self._end_after_answers: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        self._socket = cast(asyncio.Transport, transport)
        _make_room(self.connections)
        super().connection_made(cast(asyncio.Transport, _Transport(self)))
        # The scope's client may be what a proxy's header says; this is not.
        self.app_state = {**self.app_state, "peer": self.client[0] if self.client else ""}
        self.waiting_since = self.loop.time()
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        for alarm in (self._alarm, self._unread_alarm, self._half_closed_alarm):
            if alarm is not None:
                alarm.cancel()
        self.waiting_since = None
        if self._started is not None and self._is_answering():
            _report_loss(self._started)
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer what the client has asked, though it sends nothing more; close the connection if that is nothing."""
        if self._end_after_answers is not None:
            self._in_body = False  # what is not read is not waited for
        if self._in_body or self._n_ignorable is not None or not self._is_answering():
            return None
        if self._end_after_answers is None:
            self._end_after_answers = self.end
        self.transport.write = self._write_to_half_closed  # type: ignore[method-assign]
        self._let_go_unless_written()
        return True

    def _write_to_half_closed(self, data: bytes | bytearray | memoryview) -> None:
        self._has_written = True
        self._socket.write(data)

    def _let_go_unless_written(self) -> None:
        """Abort the connection unless something is written to it, which the system of a client that is gone refuses."""
        is_first_look = self._half_closed_alarm is None
        if not (is_first_look or self._has_written or self._socket.get_write_buffer_size()):
            self._socket.abort()
            return
        self._has_written = False
        self._half_closed_alarm = self.loop.call_later(_HALF_CLOSED_SECONDS, self._let_go_unless_written)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, unless it is more than a head may hold."""
        while data and self._n_ignorable is None:
            if self._end_after_answers is not None:
                return
            n_left = MAX_HEAD_BYTES - self._n_unreported
            if n_left == 0:
                self._refuse(431, _HEAD_TOO_LARGE, f"the head of the request has more than {MAX_HEAD_BYTES} bytes.")
                break
            piece, data = data[:n_left], data[n_left:]
            self._n_unreported += len(piece)
            self._parse(piece)
            if data and (self._socket.is_closing() or self._socket.get_protocol() is not self):
                return
        if self._n_ignorable is not None:
            self._n_ignorable -= len(data)
            if self._n_ignorable < 0:
                self._socket.abort()
        elif self._n_unreported and self._in_head and self._deadline is None and not self._is_answering():
            self._set_deadline()

    def _parse(self, piece: bytes) -> None:
        """Parse as uvicorn does, but for what follows a head that asks for a protocol which this server does not speak.

        The parser takes it for that protocol; an upgrade may be ignored (RFC 9110, 7.8), and a request not.
        """
        self._unset_keepalive_if_required()
        while piece:
            try:
                self.parser.feed_data(piece)
                return
            except httptools.HttpParserError as error:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("" if isinstance(error, httptools.HttpParserCallbackError) else str(error))
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self._is_rereading:
                    if self._should_upgrade():
                        self.handle_websocket_upgrade()
                    return
                self._is_rereading = False
                piece = self._make_head() + piece[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)  # one that has read "Connection: close" reads no more
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _make_head(self) -> bytes:
        """Write a head that was read, without the header that asks for another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"".join([*lines, b"\r\n"])

    def _should_upgrade(self) -> bool:
        """Return whether a head opens a WebSocket; one with a body does not, nor one that others wait before."""
        if self._is_answering() or self.parser.get_method() != b"GET" or has_body(dict(self.headers)):
            return False
        return super()._should_upgrade()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line of the head; those behind a chunked body come unchecked, and are ignored (RFC 9110, 6.5.1)."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the answer to a request."""
        if self._is_deaf():
            return
        asks_for_tunnel = self.parser.get_method() == b"CONNECT"
        if self.parser.should_upgrade() and not (asks_for_tunnel or self._should_upgrade()):
            self._is_rereading = True
            return
        self._n_unreported = 0
        self._in_head, self._in_body = False, True
        self._deadline = None
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._end_after_answers = self.end
            return
        if len(self.url) > _MAX_TARGET_BYTES:
            self._refuse(414, _PATH_TOO_LONG, f"the path has more than {_MAX_TARGET_BYTES} bytes with its query.")
            return
        if any(name == b"expect" and value.lower() != b"100-continue" for name, value in self.headers):
            self._refuse(417, EXPECTATION, "the only Expect header supported is '100-continue'; leave it out.")
            return
        if any(name == b"transfer-encoding" and value.strip().lower() != b"chunked" for name, value in self.headers):
            detail = "the only Transfer-Encoding supported is 'chunked'; send the body without another."
            self._refuse(501, TRANSFER_CODING, detail)
            return
        if not self.url.startswith((b"/", b"*")) and not self._read_absolute_target():
            self._refuse(400, _NOT_HTTP, "the target of the request is neither a path nor an http:// address.")
            return
        super().on_headers_complete()
        if self.expect_100_continue:  # a client that is refused may or may not send the body after all
            self.cycle.keep_alive = False

    def _read_absolute_target(self) -> bool:
        """Take the host and the path from a target in absolute form, as RFC 9112 (3.2.2) has it; False in another form.

        The host that it names takes precedence over the header Host.
        """
        found = _ABSOLUTE_TARGET.fullmatch(self.url)
        if found is None:
            return False
        host, target = found.groups()
        self.headers[:] = [(b"host", host), *(header for header in self.headers if header[0] != b"host")]
        self.url = target if target.startswith(b"/") else b"/" + target
        return True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._n_unreported = 0
        if not self._is_deaf():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the client has nothing more to send."""
        if self._is_deaf() or self._is_rereading:  # what is ignored has a deadline too
            return
        self._n_unreported = 0
        self._in_head, self._in_body = True, False
        self._deadline = self.waiting_since = None
        if self.cycle is not None and self.cycle.response_complete:
            self.waiting_since = self.loop.time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request or for the rest of this one, unless another one waits already."""
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if following is None or following.more_body:
            self.waiting_since = self.loop.time()
        if following is None and self._end_after_answers is not None:
            end, self._end_after_answers = self._end_after_answers, None
            end()
        elif following is None and self._in_body and self._n_ignorable is None:
            self._set_deadline()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP.

        :param msg: The parser's reason, which repeats nothing of the request; empty for an error of our own methods.
        """
        reason = f" ({msg})" if msg else ""
        self._refuse(400, _NOT_HTTP, f"the request is not valid HTTP{reason}.")

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to the socket's own protocol, unless that cannot read the head."""
        transport, self.transport = self.transport, self._socket
        super().handle_websocket_upgrade()
        protocol = cast(Any, self._socket.get_protocol())
        if getattr(protocol, "handshake_initiated", True):
            for alarm in (self._alarm, self._unread_alarm):
                if alarm is not None:
                    alarm.cancel()
            return
        # It would never answer, nor let the client go: it allows shorter lines and fewer of them.
        self.connections.discard(protocol)
        self.connections.add(self)
        self.transport = transport
        self._socket.set_protocol(self)
        self._refuse(431, _HEAD_TOO_LARGE, "a line of the head is too long for a WebSocket's, or it has too many.")

    def pause_writing(self) -> None:
        """Give a client that does not read a last chance."""
        super().pause_writing()
        self._unread_alarm = self.loop.call_later(_UNREAD_SECONDS, self._socket.abort)

    def resume_writing(self) -> None:
        """Go on, for the client reads."""
        super().resume_writing()
        if self._unread_alarm is not None:
            self._unread_alarm.cancel()
            self._unread_alarm = None

    def shutdown(self) -> None:
        """Answer the request in progress; a server that ends waits for nothing else."""
        if self.cycle is None or self.cycle.response_complete:
            self._socket.close()
        else:
            super().shutdown()

    def _is_deaf(self) -> bool:
        """Return whether what arrives is no longer looked at."""
        return self._end_after_answers is not None or self.is_ending()

    def is_ending(self) -> bool:
        """Return whether nothing more will be answered."""
        return self._n_ignorable is not None or self._socket.is_closing()

    def end(self) -> None:
        """Close the connection, as soon as the client has finished what it is sending."""
        if self._n_ignorable is not None:
            return
        if self._in_body and not self._socket.is_closing():
            self._ignore_rest()
            return
        self._socket.close()
        if self._socket.get_write_buffer_size():
            self._unread_alarm = self.loop.call_later(_UNREAD_SECONDS, self._socket.abort)

    def evict(self) -> None:
        """Close the connection in favour of another one."""
        self.waiting_since = None
        self._socket.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._started = cycle
        super()._start_asgi_task(cycle, app)

    def _is_answering(self) -> bool:
        return self._started is not None and not self._started.response_complete

    def _refuse(self, status: int, problem: Problem, detail: str) -> None:
        """Answer in place of the application, and end the connection; what was asked before is answered first."""
        if self._is_deaf():
            return
        is_counted = False
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
            if self.pipeline:  # it has not been started
                self.pipeline.popleft()
            elif self.cycle.response_started:  # an answer now would be taken for the rest of that one
                self._socket.close()
                return
            else:
                cast(dict[str, Any], self.cycle.scope)[REFUSED_STATUS] = status  # which its application's log counts
                _report_loss(self.cycle)
                self._started, is_counted = None, True
        if self._is_answering():
            self._deadline = None
            self._end_after_answers = partial(self._refuse, status, problem, detail)
            return
        request_id = RequestIds().choose(None)
        token = REQUEST_ID.set(request_id)
        response = error_response(problem, status, detail, {"Connection": "close", "X-Request-ID": request_id})
        REQUEST_ID.reset(token)
        headers = [*self.server_state.default_headers, *response.raw_headers, *list_headers("")]
        lines = [STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in headers), b"\r\n", response.body]
        self._socket.write(b"".join(lines))
        logger.info("connection refused: %s", detail, extra={"status": status})
        if not is_counted and (count := self.app_state.get(COUNT_REQUEST)) is not None:
            method = "" if self._in_head else self.parser.get_method().decode()  # half a head does not tell
            count(method, UNMATCHED, status)
        self._ignore_rest()

    def _ignore_rest(self) -> None:
        self._n_ignorable = _MAX_IGNORED_BYTES
        self.waiting_since = self.loop.time()
        self._unset_keepalive_if_required()
        self._set_deadline()
        if self._socket.can_write_eof():
            self._socket.write_eof()
        self.flow.resume_reading()

    def _set_deadline(self) -> None:
        self._deadline = self.loop.time() + PATIENCE_SECONDS
        if self._alarm is None:
            self._alarm = self.loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._alarm = None
        if self._deadline is None:
            return
        if self.loop.time() < self._deadline:
            self._alarm = self.loop.call_at(self._deadline, self._check_deadline)
        elif self._in_head and self._n_unreported and not self.is_ending():
            self._refuse(408, _HEAD_TIMEOUT, f"the head of the request did not arrive in {PATIENCE_SECONDS:.0f} s.")
        else:
            self._socket.abort()


class _Transport:
    """A connection's transport, as uvicorn sees it: to close it is to end the connection.

    It holds the methods themselves, so that none takes longer than without it.
    """

    def __init__(self, connection: Connection) -> None:
        socket = connection._socket
        self.write, self.get_extra_info = socket.write, socket.get_extra_info
        self.pause_reading, self.resume_reading = socket.pause_reading, socket.resume_reading
        self.close, self.is_closing = connection.end, connection.is_ending


def _report_loss(cycle: RequestResponseCycle) -> None:
    """Let a request's application know that its client is gone."""
    cycle.disconnected = True
    cycle.message_event.set()


def _make_room(connections: Collection[Any]) -> None:
    """Close the connection that has waited longest for its client, if there are too many."""
    if len(connections) < _find_max_connections():
        return
    waiting = [(since, id(held), held) for held in connections if (since := getattr(held, "waiting_since", None))]
    if waiting:
        *_, longest = min(waiting)
        longest.evict()


def _find_max_connections() -> int:
    if sys.platform == "win32":
        return _MAX_CONNECTIONS
    n_descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_MAX_CONNECTIONS, int(_SHARE_OF_DESCRIPTORS * n_descriptors))
