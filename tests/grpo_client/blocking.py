"""Both clients behind blocking methods, so that one test covers both."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from inspect import isasyncgen, isawaitable
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from grpo_client import AsyncClient, AsyncJob, Client


class Blocking:
    """Runs the methods of an asynchronous object on an event loop and waits for them; events come as a list.

    :param target: A client or a job.
    :param portal: The event loop.
    """

    def __init__(self, target: Any, portal: BlockingPortal) -> None:
        self._target = target
        self._portal = portal

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        return self._make_blocking(attribute) if callable(attribute) else attribute

    def _make_blocking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            value = self._portal.call(_finish, method(*args, **kwargs))
            return Blocking(value, self._portal) if isinstance(value, AsyncJob) else value

        return call


async def _finish(pending: Any) -> Any:
    if isasyncgen(pending):
        return await _collect(pending)
    assert isawaitable(pending)
    return await pending


async def _collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


@contextmanager
def open_client(kind: str, url: str, **arguments: Any) -> Iterator[Any]:
    """Open a client of either kind, ``"sync"`` or ``"async"``."""
    if kind == "sync":
        with Client(url, **arguments) as client:
            yield client
        return
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(AsyncClient(url, **arguments)) as client:
        yield Blocking(client, portal)
