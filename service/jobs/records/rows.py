"""A job's record as rows of the jobs' file, and back."""

import json
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from service.jobs.records.history import HistoryEvent, MetricRows
from service.jobs.records.record import JobRecord, JobState, PlanRecord, compute_recipe, pick_figures
from service.schemas.jobs import JobLabels, JobStatus, JobSummary

# Columns of a line in the list that hold JSON.
_JSON_COLUMNS = ("mean_reward_ci95", "tags")
LABELS = tuple(JobLabels.model_fields)
# Columns that stay as they were first written; labels are changed by themselves.
_FIXED = {"job_id", "env_name", "model_name", "total_timesteps", "created_at", "plan", "seed", "recipe", *LABELS}
# The name of an event's time, among those of its payload.
_EVENT_TIME = "event_time"
_JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Reading a damaged record raises these.
UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,  # for a time that no calendar has
    RecursionError,
    zlib.error,
)
# The part of a line in the list that a job's configuration says.
_CONFIGURED = ("env_name", "model_name", "total_timesteps", "seed")
# A line shows these where neither it nor the rest of the record can be read, and the field has no default.
_SUBSTITUTES = {
    "status": JobStatus.FAILED,
    "progress": 0.0,
    "env_name": "(damaged)",
    "model_name": "(damaged)",
    "current_timesteps": 0,
    "total_timesteps": 0,
    "created_at": datetime.fromtimestamp(0, UTC),
}
_Fields = TypeVar("_Fields", JobLabels, JobSummary)


def has_id(job_id: Any) -> bool:
    """Tell whether a row's ``job_id`` is one that a job can have."""
    return isinstance(job_id, str) and _JOB_ID.fullmatch(job_id) is not None


def read_line(columns: Mapping[str, Any], plan_json: str, state_json: str) -> tuple[JobSummary, list[str]]:
    """Read a job's line in the list; the rest of the record stands in for damaged columns.

    :param columns: Those of the line; the job's id is whole.
    :return: The line, and the names of its damaged columns.
    """
    return _read_columns(JobSummary, columns, lambda: _recover_line(columns["job_id"], plan_json, state_json))


def read_labels(columns: Mapping[str, Any]) -> JobLabels:
    """Read a job's labels, without damaged ones."""
    return _read_columns(JobLabels, columns, dict)[0]


def _read_columns(
    model: type[_Fields], columns: Mapping[str, Any], recover: Callable[[], Mapping[str, Any]]
) -> tuple[_Fields, list[str]]:
    """Read columns; also return the names of those that are damaged.

    :param recover: Returns what stands in the place of these; where it says nothing, a field's default does.
    """
    values = {name: _read_json(value) if name in _JSON_COLUMNS else value for name, value in columns.items()}
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        damaged = sorted({str(each["loc"][0]) for each in error.errors()})
    readable = {name: value for name, value in values.items() if name not in damaged}
    return model.model_validate({**recover(), **readable}), damaged


def _read_json(text: Any) -> Any:
    """Read a column that holds JSON; other text stays as it is, and fits no field."""
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return text


def _recover_line(job_id: str, plan_json: str, state_json: str) -> dict[str, Any]:
    known = {"job_id": job_id, **to_columns(_recover_fields(plan_json, state_json).items())}
    return dict(_read_columns(JobSummary, known, lambda: _SUBSTITUTES)[0])


def _recover_fields(plan_json: str, state_json: str) -> dict[str, Any]:
    """Return the parts of a job's line in the list that its plan and its state say, where they can be read."""
    known: dict[str, Any] = {}
    with suppress(*UNREADABLE):
        config = PlanRecord.model_validate_json(plan_json).config
        known |= {name: config[name] for name in _CONFIGURED if name in config}
        known["recipe"] = compute_recipe(config)
    with suppress(*UNREADABLE):
        state = JobState.model_validate_json(state_json)
        known |= {name: getattr(state, name) for name in ("status", "current_timesteps", "created_at")}
        known["elapsed_seconds"] = state.elapsed_seconds
        known |= pick_figures(state.final_evaluation, state.evaluation)
        known["progress"] = state.compute_progress(known["total_timesteps"])
    return known


def read_history(history_json: str) -> tuple[int, int, HistoryEvent | None]:
    """Read the id of a job's last event, the distance of the rows that are kept, and the last report of progress."""
    last_event_id, stride, progress = json.loads(history_json)
    return int(last_event_id), int(stride), None if progress is None else HistoryEvent(*progress)


def list_damaged_parts(columns: Mapping[str, Any]) -> list[str]:
    """Name the damaged parts of a job's record beside its line in the list, its events and its metrics.

    :param columns: Those of its row.
    """
    damaged = []
    for name, read in _PARTS.items():
        try:
            read(columns[name])
        except UNREADABLE:
            damaged.append(name)
    return damaged


def read_time(seconds: float) -> datetime:
    """Read when a record was written."""
    return datetime.fromtimestamp(seconds, UTC)


_PARTS: dict[str, Callable[[Any], Any]] = {
    "plan": PlanRecord.model_validate_json,
    "state": JobState.model_validate_json,
    "history": read_history,
    "written_at": read_time,
}


def to_columns(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the columns of a job's labels, or of its line in the list.

    :param fields: Names with values, as a model lists its own.
    """
    columns = {name: json.dumps(value) if name in _JSON_COLUMNS else value for name, value in fields}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in columns.items()}


def write_record(connection: sqlite3.Connection, record: JobRecord) -> None:
    """Write a new job, or the changes of a known one, within a transaction."""
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
    """Read an event.

    :raises TypeError: If its name is no text; what else is damaged raises any of ``UNREADABLE``.
    """
    if not isinstance(name, str):
        raise TypeError(f"an event's name is {type(name).__name__}, not a text")
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
