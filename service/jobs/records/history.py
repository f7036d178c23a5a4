"""A job's history: its metrics over time, its evaluations, and its events in order."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service.schemas.jobs import EvaluationRow

# A curve on a screen shows no more points than this.
MAX_METRIC_ROWS = 2000
_EVALUATION = "job.evaluation"
# Events tied to steps, which are dropped when the steps are taken again, and events that end a job.
_OF_STEPS = (_EVALUATION, "job.final_evaluation")
_ENDS = ("job.completed", "job.failed", "job.stopped")


class MetricRow(NamedTuple):
    """Metrics of one rollout and the update before it.

    :param timesteps: Simulator steps taken by then.
    :param elapsed_seconds: Time since the job started.
    :param metrics: Under SB3's log keys.
    """

    timesteps: int
    elapsed_seconds: float
    metrics: dict[str, float]


class HistoryEvent(NamedTuple):
    """Something that happened to a job.

    :param event_id: Grows with every event of a job, from 1 on.
    :param name: Such as ``job.metrics``.
    :param payload: JSON values.
    :param created_at: When it happened; None for metrics and progress.
    """

    event_id: int
    name: str
    payload: dict[str, Any]
    created_at: datetime | None = None


class _PackedRow(NamedTuple):
    """A row of metrics in a fraction of a dictionary's memory: most rows share one tuple of keys."""

    event_id: int
    timesteps: int
    elapsed_seconds: float
    keys: tuple[str, ...]
    values: array[float]

    def unpack(self) -> MetricRow:
        return MetricRow(self.timesteps, self.elapsed_seconds, dict(zip(self.keys, self.values, strict=True)))

    def to_event(self) -> HistoryEvent:
        return HistoryEvent(self.event_id, "job.metrics", self.unpack()._asdict())


class MetricRows(NamedTuple):
    """Rows of metrics that share their keys, packed.

    :param keys: Under SB3's log keys.
    :param ids: Event ids, ``(n_rows,)``.
    :param timesteps: Simulator steps, ``(n_rows,)``.
    :param numbers: Seconds since the job started, then a value per key, ``(n_rows, 1 + n_keys)``.
    """

    keys: tuple[str, ...]
    ids: npt.NDArray[np.int64]
    timesteps: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.float64]


class MetricColumn(NamedTuple):
    """One metric over time, each part of shape ``(n_points,)``.

    :param timesteps: Simulator steps.
    :param seconds: Time since the job started.
    :param values: The metric's.
    """

    timesteps: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]


class HistoryPart(NamedTuple):
    """The part of a history that is new since the last look.

    :param last_event_id: Id of the latest event.
    :param stride: One row in this many is kept.
    :param events: Events other than metrics and progress, oldest first.
    :param rows: Rows of metrics, oldest first.
    :param replaces_rows: Whether they take the place of all earlier rows, which have been thinned out.
    :param progress: The latest progress event, new or not; None if there was none.
    :param replaces_events: Whether they take the place of all earlier ones.
    """

    last_event_id: int
    stride: int
    events: Sequence[HistoryEvent]
    rows: Sequence[MetricRows]
    replaces_rows: bool
    progress: HistoryEvent | None
    replaces_events: bool = False


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
        self._progress: HistoryEvent | None = None
        self._kept_events: list[HistoryEvent] = []
        self._evaluations: list[EvaluationRow] = []
        # The latest event when the history was last rewound: parts up to there are no longer right.
        self._rewound_at = 0

    @property
    def last_event_id(self) -> int:
        """Id of the latest event; 0 before the first."""
        return self._last_event_id

    def append(self, name: str, payload: dict[str, Any], created_at: datetime | None = None) -> None:
        """Keep an event for good.

        :param created_at: When it happened; None is now.
        """
        with self._lock:
            self._kept_events.append(HistoryEvent(self._next_id(), name, payload, created_at or datetime.now(UTC)))

    def append_evaluation(self, row: EvaluationRow) -> None:
        """Keep an evaluation and its event for good, in place of one at the same step from before a restart."""
        with self._lock:
            if any(earlier.timesteps == row.timesteps for earlier in self._evaluations):
                self._evaluations = [each for each in self._evaluations if each.timesteps != row.timesteps]
                self._kept_events = [
                    event
                    for event in self._kept_events
                    if event.name != _EVALUATION or event.payload["timesteps"] != row.timesteps
                ]
                self._rewound_at = self._last_event_id
            self._evaluations.append(row)
            payload = row.model_dump(mode="json")
            self._kept_events.append(HistoryEvent(self._next_id(), _EVALUATION, payload, datetime.now(UTC)))

    def replace_progress(self, payload: dict[str, Any]) -> None:
        """Keep the latest progress in place of the previous one."""
        with self._lock:
            self._progress = HistoryEvent(self._next_id(), "job.progress", payload)

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
        """Forget how the job ended, and what came after a number of simulator steps, which will be taken again."""
        with self._lock:
            self._rows = [row for row in self._list_packed_rows() if row.timesteps <= timesteps]
            self._last_row = self._rows[-1] if self._rows else None
            self._n_rows_seen = len(self._rows) * self._stride  # so that the next one is kept
            self._progress = None
            self._evaluations = [row for row in self._evaluations if row.timesteps <= timesteps]
            self._kept_events = [
                event
                for event in self._kept_events
                if event.name not in _ENDS and (event.name not in _OF_STEPS or event.payload["timesteps"] <= timesteps)
            ]
            self._rewound_at = self._last_event_id

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

    def get_column(self, key: str) -> MetricColumn:
        """Return a metric over time, oldest first."""
        with self._lock:
            rows = self._list_packed_rows()
            places = {keys: keys.index(key) for keys in self._key_tuples if key in keys}
        known = [row for row in rows if row.keys in places]
        return MetricColumn(
            np.array([row.timesteps for row in known], np.int64),
            np.array([row.elapsed_seconds for row in known], np.float64),
            np.array([row.values[places[row.keys]] for row in known], np.float64),
        )

    def list_keys(self) -> list[str]:
        """List the keys of the metrics in the kept rows, sorted."""
        with self._lock:
            tuples = {row.keys for row in self._list_packed_rows()}
        return sorted({key for keys in tuples for key in keys})

    def list_kept_events(self) -> list[HistoryEvent]:
        """List the events that are kept for good, oldest first: all but metrics and progress."""
        with self._lock:
            return list(self._kept_events)

    def list_evaluations(self) -> list[EvaluationRow]:
        """List the evaluations, oldest first."""
        with self._lock:
            return list(self._evaluations)

    def list_events(self, after: int = 0) -> list[HistoryEvent]:
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

    def get_part(self, after: int, stride: int, is_last: bool) -> HistoryPart:
        """Return the new part of the history, to be written to a disk.

        :param after: ``last_event_id`` of the part before.
        :param stride: ``stride`` of the part before.
        :param is_last: Whether all rows are wanted, the latest included, in place of those before.
        """
        with self._lock:
            if after <= self._rewound_at:
                after = 0
            replaces_rows = is_last or stride != self._stride or after == 0
            rows = self._list_packed_rows() if is_last else self._rows
            first = 0 if replaces_rows else bisect_right(rows, after, key=attrgetter("event_id"))
            new = rows[first:]
            kept = self._kept_events[bisect_right(self._kept_events, after, key=attrgetter("event_id")) :]
            part = self._last_event_id, self._stride, kept, self._progress
        return HistoryPart(*part[:3], _pack_rows(new), replaces_rows, part[3], replaces_events=after == 0)

    @classmethod
    def restore(cls, part: HistoryPart) -> JobHistory:
        """Rebuild a history from its record."""
        history = cls()
        history._last_event_id, history._stride = part.last_event_id, part.stride
        history._rows = [row for rows in part.rows for row in _unpack_rows(rows)]
        history._key_tuples = {rows.keys: rows.keys for rows in part.rows}
        history._n_rows_seen = len(history._rows) * part.stride
        history._last_row = history._rows[-1] if history._rows else None
        history._progress = part.progress
        history._kept_events = list(part.events)
        history._evaluations = [
            EvaluationRow.model_validate(event.payload) for event in part.events if event.name == _EVALUATION
        ]
        return history

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


def _pack_rows(rows: Sequence[_PackedRow]) -> list[MetricRows]:
    return [_pack(keys, list(group)) for keys, group in groupby(rows, key=attrgetter("keys"))]


def _pack(keys: tuple[str, ...], rows: Sequence[_PackedRow]) -> MetricRows:
    return MetricRows(
        keys,
        np.array([row.event_id for row in rows], np.int64),
        np.array([row.timesteps for row in rows], np.int64),
        np.array([[row.elapsed_seconds, *row.values] for row in rows], np.float64),
    )


def _unpack_rows(rows: MetricRows) -> Iterator[_PackedRow]:
    for event_id, timesteps, numbers in zip(rows.ids.tolist(), rows.timesteps.tolist(), rows.numbers, strict=True):
        yield _PackedRow(event_id, timesteps, float(numbers[0]), rows.keys, array("d", numbers[1:].tobytes()))
