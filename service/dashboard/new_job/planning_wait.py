"""The message shown while the server plans a job or a sweep."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from service.dashboard.widgets.html_elements import Text, make_box
from service.dashboard.widgets.number_format import format_duration

_WORDS = (
    "Checking the settings: a worker builds the environment and tries it out. The first worker since the server "
    "started also loads its libraries."
)
_REFRESH_SECONDS = 1.0
_Planned = TypeVar("_Planned")


class PlanningWait:
    """Says what the page is waiting for and for how long; otherwise it is empty."""

    def __init__(self) -> None:
        with make_box("row-flex baseline between") as self._box:
            self._words = Text("", "muted small", "p").props("role=status")
            # A screen reader should not read out every second.
            self._seconds = Text("", "muted small number").props("aria-hidden=true").style("white-space: nowrap")
        self._box.set_visibility(False)

    async def plan(self, plan: Callable[[], _Planned], limiter: CapacityLimiter) -> _Planned:
        """Plan in a thread, and return what was planned.

        :param plan: What plans; it raises whatever it refuses.
        :param limiter: Lets no more than some plan at once.
        """
        began = time.monotonic()
        planned = asyncio.ensure_future(to_thread.run_sync(plan, limiter=limiter))
        self._box.set_visibility(True)
        self._words.set_text(_WORDS)
        while not planned.done():
            self._seconds.set_text(format_duration(time.monotonic() - began))
            await asyncio.wait({planned}, timeout=_REFRESH_SECONDS)
        self._words.set_text("")
        self._box.set_visibility(False)
        return planned.result()
