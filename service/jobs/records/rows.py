"""A job's record as rows of the jobs' file, and back."""

import json
import sqlite3
import zlib
from datetime import UTC, datetime
from typing import Any

import numpy as np

from service.jobs.records.history import HistoryEvent, MetricRows
from service.jobs.records.record import JobRecord
from service.schemas.jobs import JobLabels, JobSummary

# Columns of a line in the list that hold JSON.
_JSON_COLUMNS = ("mean_reward_ci95", "tags")
LABELS = tuple(JobLabels.model_fields)
# Columns that stay as they were first written; labels are changed by themselves.
_FIXED = {"job_id", "env_name", "model_name", "total_timesteps", "created_at", "plan", "seed", "recipe", *LABELS}
# Beside an event's payload, where older servers expect it alone.
_EVENT_TIME = "event_time"


def read_line(columns: dict[str, Any]) -> JobSummary:
    """Read a job's line in the list."""
    return JobSummary.model_validate(read_json_columns(columns))


def read_json_columns(columns: dict[str, Any]) -> dict[str, Any]:
    """Read the columns of such a line that hold JSON, and leave the others as they are."""
    return {name: json.loads(value) if name in _JSON_COLUMNS else value for name, value in columns.items()}


def to_columns(fields: JobLabels | JobSummary) -> dict[str, Any]:
    """Return the columns that hold what people have written on a job, or its line in the list."""
    columns = {name: json.dumps(value) if name in _JSON_COLUMNS else value for name, value in fields}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in columns.items()}


def write_record(connection: sqlite3.Connection, record: JobRecord) -> None:
    """Write a new job, or what has changed of a known one, within a transaction."""
    state, history = record.state, record.history
    progress = None if history.progress is None else [history.progress.event_id, *history.progress[1:]]
    columns = {
        **to_columns(record.summarize()),
        "written_at": datetime.now(UTC).timestamp(),
        "plan": record.plan.model_dump_json(),
        "state": state.model_dump_json(),
        "history": json.dumps([history.last_event_id, history.stride, progress]),
    }
    updates = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in _FIXED)
    (number,) = connection.execute(
        f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "
        f"ON CONFLICT (job_id) DO UPDATE SET {updates} RETURNING number",
        tuple(columns.values()),
    ).fetchone()
    if history.replaces_events:
        connection.execute("DELETE FROM events WHERE number = ?", (number,))
    connection.executemany(
        "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?)",
        [(number, event.event_id, event.name, _write_payload(event)) for event in history.events],
    )
    if history.replaces_rows:
        connection.execute("DELETE FROM metrics WHERE number = ?", (number,))
    connection.executemany(
        "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?)", [(number, *_pack(rows)) for rows in history.rows]
    )


def _write_payload(event: HistoryEvent) -> str:
    time_of_event = {} if event.created_at is None else {_EVENT_TIME: event.created_at.isoformat()}
    return json.dumps({**event.payload, **time_of_event})


def read_event(event_id: int, name: str, payload_json: str) -> HistoryEvent:
    """Read an event."""
    payload = json.loads(payload_json)
    created_at = payload.pop(_EVENT_TIME, None)
    return HistoryEvent(event_id, name, payload, None if created_at is None else datetime.fromisoformat(created_at))


def _pack(rows: MetricRows) -> tuple[int, int, str, bytes]:
    numbers = b"".join(part.astype(part.dtype.newbyteorder("<")).tobytes() for part in rows[1:])
    return int(rows.ids[0]), len(rows.ids), json.dumps(rows.keys), zlib.compress(numbers, 1)


def unpack_metrics(keys_json: str, n_rows: int, packed: bytes) -> MetricRows:
    """Read rows of metrics, as they were packed."""
    keys = tuple(json.loads(keys_json))
    content = zlib.decompress(packed)
    integers = np.frombuffer(content, "<i8", 2 * n_rows).astype(np.int64)
    numbers = np.frombuffer(content, "<f8", offset=integers.nbytes).astype(np.float64)
    return MetricRows(keys, integers[:n_rows], integers[n_rows:], numbers.reshape(n_rows, 1 + len(keys)))
