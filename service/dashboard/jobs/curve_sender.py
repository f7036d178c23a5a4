"""Sends a page the curves of the jobs in its charts."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.jobs.curves import REWARD, describe_curves
from service.errors import ServiceError
from service.jobs.job import Job
from service.jobs.records.record import PastJob
from service.jobs.registry import JobRegistry

# This many jobs' curves are read from the disk before they are sent together.
_BATCH = 10
# Up to this many jobs of an environment are drawn with the bounds of their lines; see MAX_BANDS in curves.js.
_MAX_BOUNDED = 4


class CurveSender:
    """Sends the browser what it lacks of the chosen curves; the browser keeps all that it was sent."""

    def __init__(self, registry: JobRegistry) -> None:
        self._registry = registry
        self._metric = REWARD
        self._colours: Mapping[str, int] = {}
        # How the jobs in the charts are drawn.
        self._styles: Mapping[str, _Style] = {}
        # The state of each job's curves when they were last sent, by metric.
        self._sent: dict[str, dict[str, _CurveState]] = {}
        self._is_sending = asyncio.Lock()

    def choose(self, metric: str, lines: Sequence[PastJob], colours: Mapping[str, int]) -> None:
        """Choose the metric and the jobs, also while others are being sent.

        :param lines: The lines of all jobs.
        :param colours: Ids of the jobs in the charts, and the indices of their colours.
        """
        self._metric, self._colours = metric, colours
        self._styles = _choose_styles(lines, colours)
        # A curve that is taken out has to be sent again when it comes back.
        self._sent = {job_id: sent for job_id, sent in self._sent.items() if job_id in colours}

    async def send(self) -> None:
        """Send what is chosen, unless it is being sent."""
        if self._is_sending.locked():
            return
        async with self._is_sending:
            sent: tuple[str, Mapping[str, int]] | None = None
            while sent != (self._metric, self._colours):  # another one may be chosen meanwhile
                sent = self._metric, self._colours
                await self._send(*sent)

    async def _send(self, metric: str, colours: Mapping[str, int]) -> None:
        outdated = [job_id for job_id in colours if self._may_be_new(job_id, metric)]
        at_hand = [job_id for job_id in outdated if self._find_in_memory(job_id) is not None]
        on_disk = [job_id for job_id in outdated if job_id not in at_hand]
        # A few at a time from the disk: the first lines appear soon, and no running job waits for them.
        for batch in filter(None, (at_hand, *_batched(on_disk, _BATCH))):
            news = await run_in_threadpool(self._describe_new, batch, metric)
            if metric != self._metric:
                return
            shown = self._colours  # some may have been taken out meanwhile
            calls = []
            for job_id, (state, text) in news.items():
                if job_id in shown:
                    self._sent.setdefault(job_id, {})[metric] = state
                    calls.append(f"grpoCurves.set({text}, {shown[job_id]});")
            if calls:
                ui.run_javascript("".join(calls))

    def _find_in_memory(self, job_id: str) -> Job | None:
        with suppress(ServiceError):  # it was deleted just now
            return self._registry.find_in_memory(job_id)
        return None

    def _may_be_new(self, job_id: str, metric: str) -> bool:
        """Return whether the browser may lack part of a job's curves, without reading the disk."""
        sent = self._sent.get(job_id, {}).get(metric)
        job = self._find_in_memory(job_id)
        # The lines of a job that is not in memory stay as they are.
        n_events = job.history.last_event_id if job is not None else 0 if sent is None else sent.last_event_id
        return sent != self._get_state(job_id, n_events, metric)

    def _describe_new(self, job_ids: Sequence[str], metric: str) -> "dict[str, tuple[_CurveState, str]]":
        """Describe the curves that the browser lacks, as JSON."""
        news = {}
        for job_id in job_ids:
            try:
                job = self._registry.get(job_id)
            except ServiceError:  # it was deleted just now
                continue
            state = self._get_state(job_id, job.history.last_event_id, metric)
            news[job_id] = state, json.dumps(describe_curves(job, [metric], state.has_bounds))
        return news

    def _get_state(self, job_id: str, last_event_id: int, metric: str) -> "_CurveState":
        style = self._styles.get(job_id, _Style(None, False))
        return _CurveState(last_event_id, style.display_name, style.has_bounds and metric != REWARD)


class _Style(NamedTuple):
    """How a job is drawn.

    :param has_bounds: Whether its chart has room for the bounds of its lines.
    """

    display_name: str | None
    has_bounds: bool


class _CurveState(NamedTuple):
    """Differs from the last one whenever a line has to be drawn again."""

    last_event_id: int
    display_name: str | None
    has_bounds: bool


def _choose_styles(lines: Sequence[PastJob], colours: Mapping[str, int]) -> dict[str, _Style]:
    shown = [line.summary for line in lines if line.job_id in colours]
    n_shown = Counter(line.env_name for line in shown)
    return {line.job_id: _Style(line.display_name, n_shown[line.env_name] <= _MAX_BOUNDED) for line in shown}


def _batched(names: list[str], size: int) -> Iterator[list[str]]:
    """Yield names in batches of a size."""
    for start in range(0, len(names), size):
        yield names[start : start + size]
