"""Clients that send too much, too slowly or nothing at all, over real sockets."""

import asyncio
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
import requests
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

import service.http.limits.bodies
import service.http.request_guard
import service.http.serving.connections
from service.http.serving.connections import MAX_HEAD_BYTES, Connection
from tests.support import PATIENCE_SECONDS, PROBLEM_FIELDS, serve, wait_until

START = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
LONG = b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
HELD = b"GET /held HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"model_name": "absent", "observation": [0.0]}'
SOCKET = (
    START + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"

short_patience = pytest.mark.parametrize("patience_seconds", [0.3])


@pytest.fixture
def patience_seconds() -> float:
    return PATIENCE_SECONDS


@pytest.fixture
def port(app: FastAPI, monkeypatch: pytest.MonkeyPatch, patience_seconds: float) -> Iterator[int]:
    monkeypatch.setattr(service.http.serving.connections, "PATIENCE_SECONDS", patience_seconds)
    with serve(app) as port:
        yield port


class Held:
    """A path whose answers last until the test lets them end, or the server does."""

    def __init__(self, app: FastAPI) -> None:
        self._closing = app.state.service.closing
        self.n_open = 0
        self.may_end = False
        app.add_api_route("/held", self._answer)

    async def _answer(self) -> StreamingResponse:
        return StreamingResponse(self._stream())

    async def _stream(self) -> AsyncIterator[bytes]:
        self.n_open += 1
        try:
            while not (self.may_end or self._closing.is_set()):
                yield b" "
                await asyncio.sleep(0.01)
            yield b"{}"
        finally:
            self.n_open -= 1


@pytest.fixture
def held(app: FastAPI) -> Held:
    """A path whose answers last."""
    return Held(app)


def connect(port: int, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
    try:
        connection.sendall(sent)
    except OSError:
        connection.close()
        raise
    return connection


def read_answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read one answer in JSON."""
    response = HTTPResponse(connection)
    response.begin()
    body = json.loads(response.read())
    return response.status, body


def read_to_end(connection: socket.socket) -> bytes:
    """Read all answers until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def is_closed(connection: socket.socket) -> bool:
    """Send a line break, which a server ignores before a request, and return whether it has closed the connection."""
    try:
        connection.sendall(b"\r\n")
    except OSError:
        return True
    return False


def ask_in_time(port: int, sent: bytes) -> tuple[int, dict[str, Any]]:
    """Read the answer to what is sent at once; again if this machine was too busy to send it before patience ended."""
    answers: list[tuple[int, dict[str, Any]]] = []

    def is_answered() -> bool:
        with suppress(ConnectionError), connect(port, sent) as connection:
            answers.append(read_answer(connection))
        return bool(answers)

    wait_until(is_answered)
    return answers[0]


def is_healthy(port: int) -> bool:
    with connect(port, START + b"\r\n") as connection:
        return read_answer(connection)[0] == 200


_OF_POSTS = 'grpo_http_requests_total{method="POST"'


def read_metrics(port: int) -> dict[str, float]:
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_SECONDS).text
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(number) for name, _, number in pairs}


class TestHeads:
    def test_a_head_may_have_16_kib_and_not_a_byte_more(self, port: int) -> None:
        n_left = MAX_HEAD_BYTES - len(START) - len(b"X: \r\n\r\n")
        for n_more, status in ((0, 200), (1, 431)):
            with connect(port, START + b"X: " + b"a" * (n_left + n_more) + b"\r\n\r\n") as connection:
                assert read_answer(connection)[0] == status
                # The next one is counted anew.
                if status == 200:
                    connection.sendall(START + b"X: " + b"a" * n_left + b"\r\n\r\n")
                    assert read_answer(connection)[0] == 200

    @pytest.mark.parametrize(
        "beginning",
        [
            START + b"X: ",
            START,
            b"GET /",
            CHUNKED + b"5\r\n{    \r\n0\r\nX: ",
            CHUNKED + b"5;",
            CHUNKED + b"5\r\n{    \r\n5;",
        ],
        ids=["value", "name", "path", "trailer", "extension", "later extension"],
    )
    def test_one_that_never_ends_is_refused_in_words_that_are_read(self, port: int, beginning: bytes) -> None:
        with connect(port, beginning) as connection:
            for _ in range(100):
                connection.sendall(b"a" * 100_000)
            status, problem = read_answer(connection)
            assert status in (431, 400)
            assert problem.keys() == PROBLEM_FIELDS
        assert is_healthy(port)

    def test_a_long_path_is_refused(self, port: int) -> None:
        with connect(port, LONG) as connection:
            status, problem = read_answer(connection)
        assert (status, problem["type"]) == (414, "urn:grpo:problem:path-too-long")

    def test_what_is_refused_before_the_application_is_counted_too(self, port: int) -> None:
        heads = {
            ("GET", "414"): LONG,
            ("GET", "417"): START + b"Expect: x\r\n\r\n",
            ("CONNECT", "400"): b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            ("other", "400"): b"junk\r\n\r\n",
            ("other", "431"): START + b"X: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        }
        for (_, status), head in heads.items():
            with connect(port, head) as connection:
                assert str(read_answer(connection)[0]) == status
        found = read_metrics(port)
        for method, status in heads:
            labels = f'method="{method}",route="unmatched",status="{status}"'
            assert found[f"grpo_http_requests_total{{{labels}}}"] == 1
        timed = 'grpo_http_request_duration_seconds_count{method="CONNECT",route="unmatched"}'
        assert found.get(timed, 0) == 0  # nobody knows how long it took

    @pytest.mark.parametrize("pieces", [[CHUNKED + b"zz\r\n"], [CHUNKED, b"zz\r\n"]], ids=["one", "two"])
    def test_a_request_whose_body_breaks_is_counted_once(self, port: int, pieces: list[bytes]) -> None:
        def count() -> dict[str, float]:
            return {name: n for name, n in read_metrics(port).items() if name.startswith(_OF_POSTS)}

        before = count()
        with connect(port, pieces[0]) as connection:
            for piece in pieces[1:]:
                assert is_healthy(port)  # so that it arrives by itself
                connection.sendall(piece)
            assert read_answer(connection)[0] == 400
        wait_until(lambda: count() != before)
        after = count()
        refused = f'{_OF_POSTS},route="unmatched",status="400"}}'
        assert after == {**before, refused: before.get(refused, 0) + 1}

    @pytest.mark.parametrize(
        ("target", "path"),
        [
            ("http://localhost/health", "/health"),
            ("HTTP://localhost:80/health", "/health"),
            ("https://localhost/health", "/health"),
            ("http://localhost", "/"),
            ("http://localhost?", "/"),
        ],
    )
    def test_a_target_may_have_its_absolute_form(self, port: int, target: str, path: str) -> None:
        # Its host counts, and not the header's; an answer shows none, so a page that asks across origins does.
        origin = b"Origin: http://" + target.partition("//")[2].split("/")[0].rstrip("?").encode()
        with connect(port, b"GET %s HTTP/1.1\r\nHost: elsewhere\r\n%s\r\n\r\n" % (target.encode(), origin)) as one:
            found = read_answer(one)
        with connect(port, b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode()) as one:
            expected = read_answer(one)
        assert (found[0], found[1].keys()) == (expected[0], expected[1].keys()) == (200, found[1].keys())

    @pytest.mark.parametrize("target", [b"ftp://localhost/health", b"http://u@localhost/health", b"http://?x"])
    def test_another_target_is_refused(self, port: int, target: bytes) -> None:
        with connect(port, b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % target) as connection:
            assert read_answer(connection)[0] == 400

    @pytest.mark.parametrize("expectation", [b"200-ok", b"x, 100-continue", b""])
    def test_an_expectation_that_cannot_be_met_is_refused(self, port: int, expectation: bytes) -> None:
        with connect(port, START + b"Expect: " + expectation + b"\r\n\r\n") as connection:
            status, problem = read_answer(connection)
        assert (status, problem["type"]) == (417, "urn:grpo:problem:expectation-failed")

    @pytest.mark.parametrize("coding", [b"gzip, chunked", b"X, Chunked"])
    def test_another_transfer_coding_is_refused(self, port: int, coding: bytes) -> None:
        sent = POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        with connect(port, sent) as connection:
            status, problem = read_answer(connection)
        assert (status, problem["type"]) == (501, "urn:grpo:problem:unknown-transfer-coding")

    @pytest.mark.parametrize("rest", [b"2\r\n{}\r\n", b""])
    def test_what_follows_a_chunked_body_is_no_part_of_the_head(self, port: int, rest: bytes) -> None:
        sent = b"POST /train HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        sent += rest + b"0\r\nContent-Type: application/json\r\n\r\n"
        with connect(port, sent + START + b"\r\n") as connection:
            assert read_answer(connection)[0] == 415

    @pytest.mark.parametrize(
        ("sent", "reason"),
        [
            (b"\x16\x03\x01\x02\x00", "Invalid method"),
            (b"get / HTTP/1.1\r\n\r\n", "Invalid method"),
            (b"GET\r\n\r\n", "Expected"),
            (b"GET / HTTP/9.9\r\n\r\n", "Invalid HTTP version"),
            (START + b"\x00", "Invalid header token"),
            (START + b" folded\r\n\r\n", "whitespace"),
            (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "Duplicate Content-Length"),
            (CHUNKED + b"zz\r\n", "chunk size"),
        ],
    )
    def test_what_is_not_http_is_refused_in_json_with_the_reason(self, port: int, sent: bytes, reason: str) -> None:
        with connect(port, sent) as connection:
            status, problem = read_answer(connection)
        assert (status, problem["type"]) == (400, "urn:grpo:problem:not-http")
        assert problem["detail"].startswith("the request is not valid HTTP (")
        assert reason in problem["detail"]

    @pytest.mark.parametrize(("n_sent", "n_answered"), [(17, 17), (100, 17)])
    def test_so_many_may_be_sent_ahead_of_the_answers(self, port: int, n_sent: int, n_answered: int) -> None:
        received = b""
        sent = (START + b"\r\n") * (n_sent - 1) + START + b"Connection: close\r\n\r\n"
        with suppress(ConnectionError), connect(port, sent) as connection:
            received = read_to_end(connection)
        assert received.count(b"HTTP/1.1 200 OK") == n_answered

    def test_what_comes_after_a_request_that_is_answered_takes_no_answer_away(self, port: int) -> None:
        request = POST + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
        for following in (b"junk\r\n\r\n", request + b"junk\r\n\r\n", LONG, POST + b"a\r\n"):
            with connect(port, request + following) as connection:
                received = read_to_end(connection)
            first, *_, last = received.split(b"HTTP/1.1 ")[1:]
            assert first.startswith(b"404")
            assert last.startswith((b"400", b"414"))

    def test_a_body_that_breaks_off_leaves_the_answers_before_it(self, port: int, held: Held) -> None:
        sent = HELD + b"\r\n" + CHUNKED + b"no length\r\n"
        with connect(port, sent) as connection:
            wait_until(lambda: held.n_open == 1)
            held.may_end = True
            answers = read_to_end(connection).split(b"HTTP/1.1 ")[1:]
        assert [answer[:3] for answer in answers] == [b"200", b"400"]


class TestUpgrades:
    @pytest.mark.parametrize("n_bytes", [1, 10_000])
    def test_one_to_another_protocol_is_ignored_and_the_body_read(self, port: int, n_bytes: int) -> None:
        sent = POST + H2C + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY) + START + H2C + b"\r\n"
        sent += CHUNKED[:-2] + H2C + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
        sent += START + b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n\r\n"
        with connect(port) as connection:
            for i in range(0, len(sent), n_bytes):
                connection.sendall(sent[i : i + n_bytes])
            answers = read_to_end(connection).split(b"HTTP/1.1 ")[1:]
        assert [answer[:3] for answer in answers] == [b"404", b"200", b"404", b"200"]

    @pytest.mark.parametrize(
        "rest",
        [
            b"Content-Length: 1\r\n\r\nx",
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"X: " + b"a" * 9_000 + b"\r\n\r\n",
            b"".join(b"X%d: a\r\n" % n for n in range(200)) + b"\r\n",
        ],
        ids=["body", "chunks", "long line", "many lines"],
    )
    def test_a_head_that_opens_no_socket_is_answered(self, port: int, rest: bytes) -> None:
        with connect(port, SOCKET + rest) as connection:
            status, problem = read_answer(connection)
        assert status in (413, 431)
        assert problem.keys() == PROBLEM_FIELDS

    def test_a_socket_waits_for_no_answer_to_another_request(self, port: int, held: Held) -> None:
        with connect(port, HELD + b"\r\n" + SOCKET + b"\r\n") as connection:
            wait_until(lambda: held.n_open == 1)
            held.may_end = True
            assert read_answer(connection)[0] == 200


class TestPatience:
    @short_patience
    def test_a_silent_connection_is_closed(self, port: int) -> None:
        with connect(port) as connection:
            assert connection.recv(1) == b""

    @short_patience
    @pytest.mark.parametrize("sent", [START, b"G", START + b"X:"])
    def test_half_a_head_is_refused(self, port: int, sent: bytes) -> None:
        status, problem = ask_in_time(port, sent)
        assert (status, problem["type"]) == (408, "urn:grpo:problem:head-timeout")

    @short_patience
    def test_bytes_one_by_one_gain_no_time(self, port: int) -> None:
        with connect(port) as connection:
            pieces = iter([START])

            def is_closed() -> bool:
                try:
                    connection.sendall(next(pieces, b"a"))
                except OSError:
                    return True
                return False

            wait_until(is_closed)

    @short_patience
    @pytest.mark.parametrize("sent", [b"\r\n", b"GET "])
    def test_so_it_is_with_the_second_request_of_a_connection(self, port: int, sent: bytes) -> None:
        def is_answered_and_closed() -> bool:
            with connect(port) as connection:
                with suppress(ConnectionError):  # this machine was too busy to send it before patience ended
                    connection.sendall(START + b"\r\n")
                    status, _ = read_answer(connection)
                    assert status == 200
                    with suppress(ConnectionError):
                        connection.sendall(sent)
                        while connection.recv(4096):
                            pass
                    return True
            return False

        wait_until(is_answered_and_closed)

    @short_patience
    def test_an_answer_that_takes_long_is_waited_for(self, app: FastAPI, port: int) -> None:
        async def answer_slowly() -> dict[str, str]:
            import asyncio

            await asyncio.sleep(1.0)
            return {}

        app.add_api_route("/slow", answer_slowly)
        assert ask_in_time(port, b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n") == (200, {})

    def test_a_line_break_sets_it_no_deadline(self, port: int, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
        deadlines: list[float | None] = []
        receive = Connection.data_received

        def receive_and_note(self: Connection, data: bytes) -> None:
            receive(self, data)
            deadlines.append(self._deadline)

        monkeypatch.setattr(Connection, "data_received", receive_and_note)
        with connect(port, HELD + b"Connection: close\r\n\r\n") as connection:
            wait_until(lambda: held.n_open == 1)
            connection.sendall(b"\r\n")
            wait_until(lambda: len(deadlines) == 2)
            assert deadlines[1] is None
            held.may_end = True
            assert read_to_end(connection).endswith(b"\r\n0\r\n\r\n")

    def test_who_does_not_read_is_let_go(self, app: FastAPI, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service.http.serving.connections, "_UNREAD_SECONDS", 0.3)
        app.add_api_route("/much", lambda: Response(bytes(2**25)))
        with connect(port, b"GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
            wait_until(lambda: is_closed(connection))

    @short_patience
    def test_so_is_who_stays_after_a_refusal(self, port: int) -> None:
        def is_refused_and_let_go() -> bool:
            with suppress(ConnectionError), connect(port, LONG) as connection:
                if b"path-too-long" in read_to_end(connection):
                    wait_until(lambda: is_closed(connection))
                    return True
            return False  # this machine was too busy to send it before patience ended

        wait_until(is_refused_and_let_go)


class TestNobodyElsePays:
    def test_the_connection_that_has_waited_longest_makes_room(
        self, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service.http.serving.connections, "_MAX_CONNECTIONS", 20)
        with ExitStack() as stack:
            silent = [stack.enter_context(connect(port, START[:n])) for n in range(60)]
            assert is_healthy(port)
            assert silent[0].recv(1) == b""
            silent[-1].sendall(START[59:] + b"\r\n")
            HTTPResponse(silent[-1]).begin()

    def test_requests_count_once_they_are_complete(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service.http.request_guard, "_MAX_REQUESTS", 2)
        with ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(connect(port, POST + b"Content-Length: 9\r\n\r\n{"))
            with connect(port, b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
                assert read_answer(connection)[0] == 200

    def test_health_is_outside_every_limit(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service.http.request_guard, "_MAX_REQUESTS", 0)
        response = requests.get(f"http://127.0.0.1:{port}/models", timeout=PATIENCE_SECONDS)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["type"] == "urn:grpo:problem:busy"
        for path in ("/health", "/health/live", "/health/ready"):
            assert requests.get(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_SECONDS).status_code == 200

    def test_one_that_is_answered_makes_none(self, port: int, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service.http.serving.connections, "_MAX_CONNECTIONS", 5)
        with ExitStack() as stack:
            # The second request came while the first one was answered.
            pipelined = START + b"\r\n" + HELD + b"Connection: close\r\n\r\n"
            answered = stack.enter_context(connect(port, pipelined))
            wait_until(lambda: held.n_open == 1)
            for _ in range(10):
                stack.enter_context(connect(port))
            assert is_healthy(port)
            held.may_end = True
            assert read_to_end(answered).count(b"HTTP/1.1 200 OK") == 2

    def test_who_leaves_is_missed_though_another_request_waits(self, port: int, held: Held) -> None:
        with connect(port, HELD + b"\r\n" + START + b"\r\n"):
            wait_until(lambda: held.n_open == 1)
        wait_until(lambda: held.n_open == 0)


class TestHalfClosed:
    def test_a_client_that_sends_nothing_more_is_answered(self, port: int, held: Held) -> None:
        with connect(port, START + b"\r\n" + HELD + b"\r\n" + START + b"\r\n") as connection:
            connection.shutdown(socket.SHUT_WR)
            wait_until(lambda: held.n_open == 1)
            held.may_end = True
            assert read_to_end(connection).count(b"HTTP/1.1 200 OK") == 3

    def test_so_it_is_if_it_has_sent_too_many_ahead(self, port: int, held: Held) -> None:
        with connect(port, HELD + b"\r\n" + 17 * (START + b"\r\n")) as connection:
            connection.shutdown(socket.SHUT_WR)
            wait_until(lambda: held.n_open == 1)
            held.may_end = True
            assert read_to_end(connection).count(b"HTTP/1.1 200 OK") == 17

    def test_one_that_is_read_slowly_is_sent_all(
        self, app: FastAPI, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service.http.serving.connections, "_HALF_CLOSED_SECONDS", 0.01)
        app.add_api_route("/much", lambda: Response(bytes(2**25)))
        with connect(port, b"GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
            assert connection.recv(1) == b"H"  # the answer has begun, however busy the machine is
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            assert len(read_to_end(connection)) > 2**25

    def test_nobody_who_may_be_gone_is_waited_for(
        self, app: FastAPI, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def answer_nobody(request: Request) -> None:
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)

        monkeypatch.setattr(service.http.serving.connections, "_HALF_CLOSED_SECONDS", 0.01)
        app.add_api_route("/unanswered", answer_nobody)
        with connect(port, b"GET /unanswered HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
            connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                assert read_to_end(connection) == b""


class TestBodies:
    SMALL = ({"max_body_bytes": 2**17, "max_batch_bytes": 2**17, "max_upload_bytes": 2**17},)

    def test_every_client_reads_why_its_body_is_refused(self, port: int) -> None:
        body, url = b" " * 8_000_000, f"http://127.0.0.1:{port}/inference"
        headers = {"Content-Type": "application/json"}
        for _ in range(3):
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=PATIENCE_SECONDS)
            assert refusal.value.code == 413
            refusal.value.close()
            assert requests.post(url, body, headers=headers, timeout=PATIENCE_SECONDS).status_code == 413
            pieces = (body[i : i + 65_536] for i in range(0, len(body), 65_536))
            assert requests.post(url, pieces, headers=headers, timeout=PATIENCE_SECONDS).status_code == 413

    def test_a_server_that_ends_waits_for_nobody(self, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service.http.serving.connections, "PATIENCE_SECONDS", 1e6)
        with ExitStack() as stack, serve(app) as port:
            for sent in (b"", START, START + b"\r\n", POST + b"Content-Length: 99999999\r\n\r\n{"):
                stack.enter_context(connect(port, sent))
            refused = stack.enter_context(connect(port, POST + b"Content-Length: 99999999\r\n\r\n{"))
            assert read_answer(refused)[0] == 413

    def test_a_connection_lives_on_after_a_refusal_of_the_head(self, port: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        for _ in range(2):
            connection.request("POST", "/inference", b" " * 300_000, {"Content-Type": "text/plain"})
            response = connection.getresponse()
            assert response.status == 415
            response.read()
        connection.close()

    @pytest.mark.parametrize("overrides", SMALL, ids=["small"])
    def test_those_that_stall_make_room(
        self, port: int, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any]
    ) -> None:
        monkeypatch.setattr(service.http.limits.bodies, "_MIN_BYTES_AT_ONCE", 0)
        monkeypatch.setattr(service.http.limits.bodies, "_STALLED_SECONDS", 0.0)
        size = 2**17
        stalled = POST + b"Content-Length: %d\r\n\r\n" % size + b" " * (size - 1)
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(connect(port, stalled))
                assert is_healthy(port)  # it has been read by then
            waiting = stack.enter_context(connect(port, stalled))
            assert is_healthy(port)
            waiting.sendall(b" ")
            assert read_answer(waiting)[0] == 422

    @pytest.mark.parametrize("overrides", SMALL, ids=["small"])
    def test_there_is_always_room_for_a_small_one(
        self, port: int, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any]
    ) -> None:
        monkeypatch.setattr(service.http.limits.bodies, "_MIN_BYTES_AT_ONCE", 0)
        size = 2**17
        moving = POST + b"Content-Length: %d\r\n\r\n" % size + b" " * (size - 1)
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(connect(port, moving))
            with connect(port, POST + b"Content-Length: 2\r\n\r\n{}") as connection:
                assert read_answer(connection)[0] == 422
