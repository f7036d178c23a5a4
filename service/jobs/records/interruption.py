"""How the jobs' file is put right after its server was killed: its active jobs have failed, or go on without it."""

import json
import logging
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from service.jobs.records.database import FILE_NAME
from service.jobs.records.record import JobState
from service.jobs.records.rows import UNREADABLE
from service.schemas.jobs import JobStatus

logger = logging.getLogger("grpo.service")

#: The statuses of active jobs, for a query.
ACTIVE = "('queued', 'running')"
#: More events than a server shows to clients between two writes, even if the disk hangs for an hour.
MAX_UNWRITTEN_EVENTS = 1_000_000


def mend_statuses(connection: sqlite3.Connection) -> None:
    """Take the status of a job from the rest of its record where its line's is damaged."""
    query = f"SELECT number, state FROM jobs WHERE status NOT IN ({', '.join('?' * len(JobStatus))})"
    for number, state_json in connection.execute(query, tuple(JobStatus)).fetchall():
        with suppress(ValueError):
            status = JobState.model_validate_json(state_json).status
            logger.warning("%s: the status in row %d was damaged, and is %s again", FILE_NAME, number, status)
            connection.execute("UPDATE jobs SET status = ? WHERE number = ?", (status, number))


def skip_event_ids(connection: sqlite3.Connection) -> None:
    """Skip, in active jobs, the ids of events that clients have seen and the file lacks."""
    query = f"SELECT number, history FROM jobs WHERE status IN {ACTIVE}"
    for number, history in connection.execute(query).fetchall():
        with suppress(*UNREADABLE):  # it is damaged, and whoever asks for more of it is told
            last_event_id, *others = json.loads(history)
            skipped = json.dumps([last_event_id + MAX_UNWRITTEN_EVENTS, *others])
            connection.execute("UPDATE jobs SET history = ? WHERE number = ?", (skipped, number))


def interrupt(connection: sqlite3.Connection, job_ids: Sequence[str] | None = None, keeps_running: bool = False) -> int:
    """Note that active jobs have failed; see ``JobJournal.interrupt_active``."""
    query = f"SELECT number, job_id, state, written_at FROM jobs WHERE status IN {ACTIVE}"
    rows = connection.execute(query).fetchall()
    if job_ids is not None:
        rows = [row for row in rows if row[1] in job_ids]
    if keeps_running:
        rows = [row for row in rows if not _has_started(row[2])]
    for number, job_id, state_json, written_at in rows:
        connection.execute("UPDATE jobs SET status = ? WHERE number = ?", (JobStatus.FAILED, number))
        with suppress(*UNREADABLE):  # it stays in the list, and whoever asks for more of it is told
            state = fail(JobState.model_validate_json(state_json), job_id, written_at)
            connection.execute("UPDATE jobs SET state = ? WHERE number = ?", (state.model_dump_json(), number))
    return len(rows)


def fail(state: JobState, job_id: str, written_at: float) -> JobState:
    """Return the state of a job that has failed with its server."""
    ended = {
        "status": JobStatus.FAILED,
        "error_message": state.describe_interruption(job_id, was_killed=True),
        "end_time": datetime.fromtimestamp(written_at, UTC),
        "ended_by": "restart",
        "end_before": None,
    }
    return state.model_copy(update=ended)


def _has_started(state_json: str) -> bool:
    try:
        return JobState.model_validate_json(state_json).status is JobStatus.RUNNING
    except ValueError:
        return False
