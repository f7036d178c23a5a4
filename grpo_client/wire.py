"""Doing the steps: the only two places that talk to a server, one that blocks and one that awaits."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

import anyio
import httpx2

from grpo_client.answers import JobEvent
from grpo_client.calls import Call
from grpo_client.steps import Listen, Pause, Receive, Send, Step, Steps

T = TypeVar("T")

Outcome = httpx2.Response | httpx2.ServerSentEvent | httpx2.RequestError | None


def make_options(base_url: str, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """Return the arguments of either of httpx2's clients.

    :raises ValueError: If an argument cannot work.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"base_url='{base_url}' is not allowed: write it as http://HOST:PORT or https://HOST.")
    if not timeout_seconds > 0:
        raise ValueError(f"timeout_seconds={timeout_seconds} is not allowed: it must be above 0.")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    return {"base_url": base_url.rstrip("/"), "headers": headers, "timeout": timeout_seconds}


def _to_arguments(call: Call[Any]) -> dict[str, Any]:
    """Return the arguments of httpx2's requests beyond method and path."""
    timeout = {} if call.timeout_seconds is None else {"timeout": call.timeout_seconds}
    body = {"json": call.json} if call.content is None else {"content": call.content}
    # An empty query would take away what stands in the URL.
    return {**body, **timeout, "params": call.query or None, "headers": dict(call.headers)}


class SyncWire:
    """Does steps and blocks meanwhile.

    :param http: What requests are sent with.
    """

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self._stream = ExitStack()
        self._events: Iterator[httpx2.ServerSentEvent] = iter(())

    def run(self, steps: Steps[T]) -> T:
        """Do all steps of something that tells no events, and return what comes of it."""
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                value: T = end.value
                return value
            outcome = self._take(step)

    def iterate(self, steps: Steps[None]) -> Generator[JobEvent, None, None]:
        """Do steps, and hand out the events that they tell."""
        outcome: Outcome = None
        with self._stream:
            while True:
                try:
                    step = steps.send(outcome)
                except StopIteration:
                    return
                if isinstance(step, JobEvent):
                    yield step
                    outcome = None
                else:
                    outcome = self._take(step)

    def _take(self, step: Step) -> Outcome:
        try:
            match step:
                case Send(call):
                    return self._http.request(call.method, call.path, **_to_arguments(call))
                case Listen(call):
                    return self._open(call)
                case Receive():
                    return next(self._events, None)
                case Pause(seconds):
                    time.sleep(seconds)
        except httpx2.RequestError as error:
            return error
        return None

    def _open(self, call: Call[httpx2.Response]) -> httpx2.Response:
        self._stream.close()
        source = self._stream.enter_context(self._http.sse(call.path, **_to_arguments(call)))
        if not source.response.is_success:
            source.response.read()
        self._events = iter(source)
        return source.response


class AsyncWire:
    """Does steps and awaits them.

    :param http: What requests are sent with.
    """

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._stream = AsyncExitStack()
        self._events: AsyncIterator[httpx2.ServerSentEvent] | None = None

    async def run(self, steps: Steps[T]) -> T:
        """Do all steps of something that tells no events, and return what comes of it."""
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                value: T = end.value
                return value
            outcome = await self._take(step)

    async def iterate(self, steps: Steps[None]) -> AsyncGenerator[JobEvent, None]:
        """Do steps, and hand out the events that they tell."""
        outcome: Outcome = None
        async with self._stream:
            while True:
                try:
                    step = steps.send(outcome)
                except StopIteration:
                    return
                if isinstance(step, JobEvent):
                    yield step
                    outcome = None
                else:
                    outcome = await self._take(step)

    async def _take(self, step: Step) -> Outcome:
        try:
            match step:
                case Send(call):
                    return await self._http.request(call.method, call.path, **_to_arguments(call))
                case Listen(call):
                    return await self._open(call)
                case Receive():
                    assert self._events is not None, "a stream is opened before it is read"
                    return await anext(self._events, None)
                case Pause(seconds):
                    await anyio.sleep(seconds)
        except httpx2.RequestError as error:
            return error
        return None

    async def _open(self, call: Call[httpx2.Response]) -> httpx2.Response:
        await self._stream.aclose()
        source = await self._stream.enter_async_context(self._http.sse(call.path, **_to_arguments(call)))
        if not source.response.is_success:
            await source.response.aread()
        self._events = aiter(source)
        return source.response
