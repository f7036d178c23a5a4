"""A job's history: its metrics over time, its evaluations, and its events in order."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from heapq import merge
from operator import attrgetter
from typing import Any, NamedTuple

from service.schemas.jobs import EvaluationRow

# A curve on a screen shows no more points than this.
MAX_METRIC_ROWS = 2000
# Events that are of steps, and are forgotten with them.
_OF_STEPS = ("job.evaluation", "job.final_evaluation")
# Rows kept of a job that ended long ago.
_CONDENSED_ROWS = 250


class MetricRow(NamedTuple):
    """Metrics of one rollout and the update before it.

    :param timesteps: Simulator steps taken by then.
    :param elapsed_seconds: Time since the job started.
    :param metrics: Under SB3's log keys.
    """

    timesteps: int
    elapsed_seconds: float
    metrics: dict[str, float]


class JobEvent(NamedTuple):
    """Something that happened to a job.

    :param event_id: Grows with every event of a job, from 1 on.
    :param name: Such as ``job.metrics``.
    :param payload: JSON values.
    """

    event_id: int
    name: str
    payload: dict[str, Any]


class _PackedRow(NamedTuple):
    """A row of metrics in a fraction of a dictionary's memory: most rows share one tuple of keys."""

    event_id: int
    timesteps: int
    elapsed_seconds: float
    keys: tuple[str, ...]
    values: array[float]

    def unpack(self) -> MetricRow:
        return MetricRow(self.timesteps, self.elapsed_seconds, dict(zip(self.keys, self.values, strict=True)))

    def to_event(self) -> JobEvent:
        return JobEvent(self.event_id, "job.metrics", self.unpack()._asdict())


class JobHistory:
    """Keeps a job's events in bounded memory. Safe to use from any thread.

    At most ``MAX_METRIC_ROWS`` rows of metrics are kept: every row at first, then every second, every fourth and so on,
    and always the latest. Of the progress events only the latest is kept; all other events are kept.
    """

    def __init__(self) -> None:
        # Guards everything below.
        self._lock = threading.Lock()
        self._last_event_id = 0
        self._rows: list[_PackedRow] = []
        self._stride = 1
        self._n_rows_seen = 0
        self._last_row: _PackedRow | None = None
        self._key_tuples: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._progress: JobEvent | None = None
        self._kept_events: list[JobEvent] = []
        self._evaluations: list[EvaluationRow] = []

    @property
    def last_event_id(self) -> int:
        """Id of the latest event; 0 before the first."""
        return self._last_event_id

    def append(self, name: str, payload: dict[str, Any]) -> None:
        """Keep an event for good."""
        with self._lock:
            self._kept_events.append(JobEvent(self._next_id(), name, payload))

    def append_evaluation(self, row: EvaluationRow) -> None:
        """Keep an evaluation and its event for good."""
        with self._lock:
            self._evaluations.append(row)
            self._kept_events.append(JobEvent(self._next_id(), "job.evaluation", row.model_dump(mode="json")))

    def replace_progress(self, payload: dict[str, Any]) -> None:
        """Keep the latest progress in place of the previous one."""
        with self._lock:
            self._progress = JobEvent(self._next_id(), "job.progress", payload)

    def append_metrics(self, timesteps: int, elapsed_seconds: float, metrics: Mapping[str, float]) -> None:
        """Keep a row of metrics, at least until rows are thinned out."""
        keys = tuple(metrics)
        with self._lock:
            keys = self._key_tuples.setdefault(keys, keys)
            row = _PackedRow(self._next_id(), timesteps, elapsed_seconds, keys, array("d", metrics.values()))
            self._last_row = row
            if self._n_rows_seen % self._stride == 0:
                self._rows.append(row)
                self._thin(MAX_METRIC_ROWS)
            self._n_rows_seen += 1

    def rewind(self, timesteps: int) -> None:
        """Forget what came after a number of simulator steps; training will take these steps again."""
        with self._lock:
            self._rows = [row for row in self._list_packed_rows() if row.timesteps <= timesteps]
            self._last_row = self._rows[-1] if self._rows else None
            self._progress = None
            self._evaluations = [row for row in self._evaluations if row.timesteps <= timesteps]
            self._kept_events = [
                event
                for event in self._kept_events
                if event.name not in _OF_STEPS or event.payload["timesteps"] <= timesteps
            ]

    def condense(self) -> None:
        """Free most of the metrics' memory."""
        with self._lock:
            self._thin(_CONDENSED_ROWS)

    def list_rows(self) -> list[MetricRow]:
        """List the kept rows of metrics, oldest first."""
        with self._lock:
            rows = self._list_packed_rows()
        return [row.unpack() for row in rows]

    def list_values(self, key: str, max_values: int) -> list[float]:
        """List a metric's values, oldest first, evenly thinned out; the latest is always included.

        :param max_values: Maximum number of values.
        """
        with self._lock:
            rows = [row for row in self._list_packed_rows() if key in row.keys]
        stride = max(1, -(-len(rows) // max_values))
        return [row.values[row.keys.index(key)] for row in reversed(rows[::-1][::stride])]

    def list_evaluations(self) -> list[EvaluationRow]:
        """List the evaluations, oldest first."""
        with self._lock:
            return list(self._evaluations)

    def list_events(self, after: int = 0) -> list[JobEvent]:
        """List the kept events, oldest first.

        :param after: Id of an event; only later ones are listed.
        """
        key = attrgetter("event_id")
        with self._lock:
            packed = self._list_packed_rows()
            rows = packed[bisect_right(packed, after, key=key) :]
            kept = self._kept_events[bisect_right(self._kept_events, after, key=key) :]
            progress = [self._progress] if self._progress is not None and self._progress.event_id > after else []
        return list(merge(map(_PackedRow.to_event, rows), kept, progress, key=key))

    def _list_packed_rows(self) -> list[_PackedRow]:
        if self._last_row is None or self._rows[-1] is self._last_row:
            return list(self._rows)
        return [*self._rows, self._last_row]

    def _thin(self, max_rows: int) -> None:
        while len(self._rows) >= max_rows:
            self._rows = self._rows[::2]
            self._stride *= 2

    def _next_id(self) -> int:
        self._last_event_id += 1
        return self._last_event_id
