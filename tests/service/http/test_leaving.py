"""Clients that leave before they are answered: none of the errors that this causes is the server's."""

import asyncio
from collections.abc import Callable

import anyio
import pytest
from fastapi import Depends, FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.context import HAS_LEFT
from service.http.limits.clients import GuessLimit
from service.http.request_guard import RequestGuard, RequestRules
from service.http.routes.dependencies import note_leaving
from service.settings import Settings
from tests.support import wait_until

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/training/x/events",
    "headers": [(b"host", b"localhost")],
    "query_string": b"",
}
DISCONNECT = {"type": "http.disconnect"}
EMPTY = {"type": "http.request", "body": b"", "more_body": False}


def ask(error: Exception, received: list[Message]) -> list[Message]:
    """Return what a client is sent whose request fails in the application."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    async def receive() -> Message:
        if received:
            return received.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    guard = RequestGuard(fail, RequestRules(Settings(), GuessLimit(), None))
    asyncio.run(guard(dict(SCOPE), receive, send))
    return sent


@pytest.mark.parametrize(
    "make",
    [
        anyio.BrokenResourceError,
        ClientDisconnect,
        ConnectionResetError,
        lambda: ExceptionGroup("", [anyio.BrokenResourceError(), ExceptionGroup("", [anyio.ClosedResourceError()])]),
    ],
)
@pytest.mark.parametrize("received", [[DISCONNECT], [EMPTY, DISCONNECT]], ids=["at once", "later"])
def test_a_client_that_has_left_is_sent_nothing(make: Callable[[], Exception], received: list[Message]) -> None:
    assert ask(make(), list(received)) == []


def test_a_route_learns_that_its_client_has_left_while_it_answers() -> None:
    app, messages, has_left = FastAPI(), asyncio.Queue[Message](), list[bool]()

    @app.get("/", dependencies=[Depends(note_leaving)])
    def answer() -> None:
        has_left.append(HAS_LEFT.get()())
        anyio.from_thread.run_sync(messages.put_nowait, DISCONNECT)
        wait_until(HAS_LEFT.get())
        has_left.append(HAS_LEFT.get()())

    async def send(message: Message) -> None:
        """Send nothing, since nobody is there."""

    async def request() -> None:
        messages.put_nowait(EMPTY)
        await app({**SCOPE, "path": "/"}, messages.get, send)

    asyncio.run(request())
    assert has_left == [False, True]


@pytest.mark.parametrize(
    ("error", "received"),
    [
        (anyio.BrokenResourceError(), [EMPTY]),  # the client is still there
        (KeyError("bug"), [DISCONNECT]),
        (ExceptionGroup("", [anyio.BrokenResourceError(), KeyError("bug")]), [DISCONNECT]),
    ],
    ids=["still there", "bug", "both"],
)
def test_a_bug_is_a_bug_whoever_has_left(error: Exception, received: list[Message]) -> None:
    assert ask(error, list(received))[0]["status"] == 500
