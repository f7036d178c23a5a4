"""The jobs' file: what the server knows of its jobs and sweeps, in one SQLite database beside the models."""

import json
import logging
import os
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from service.jobs.records.history import HistoryPart, JobEvent, MetricRows
from service.jobs.records.record import JobRecord, JobState, PastJob, PlanRecord, choose_evaluation, compute_recipe
from service.schemas.jobs import JobLabels, JobStatus, JobSummary

logger = logging.getLogger("grpo.service")

# A hidden file, and no name that a model can have.
FILE_NAME = ".jobs.sqlite3"
# Raise it with every change of the tables, and have _migrate bring older files up to it.
SCHEMA_VERSION = 2
# "GRPO", in the header of the file: whose database it is.
_APPLICATION_ID = 0x4752504F
_TABLES = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    progress REAL NOT NULL,
    env_name TEXT NOT NULL,
    model_name TEXT NOT NULL,
    current_timesteps INTEGER NOT NULL,
    total_timesteps INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    written_at REAL NOT NULL,
    plan TEXT NOT NULL,
    state TEXT NOT NULL,
    history TEXT NOT NULL
    {columns}
);
CREATE TABLE events (
    number INTEGER NOT NULL, event_id INTEGER NOT NULL, name TEXT NOT NULL, payload TEXT NOT NULL,
    PRIMARY KEY (number, event_id)
) WITHOUT ROWID;
CREATE TABLE metrics (
    number INTEGER NOT NULL, first_id INTEGER NOT NULL, n_rows INTEGER NOT NULL, keys TEXT NOT NULL,
    numbers BLOB NOT NULL, PRIMARY KEY (number, first_id)
) WITHOUT ROWID;
"""
# What version 2 has added to the jobs: what the list shows, and what people have written on them.
_ADDED_COLUMNS = {
    "seed": "INTEGER NOT NULL DEFAULT 0",
    "elapsed_seconds": "REAL NOT NULL DEFAULT 0",
    "mean_reward": "REAL",
    "mean_reward_ci95": "TEXT NOT NULL DEFAULT 'null'",
    "recipe": "TEXT NOT NULL DEFAULT ''",
    "display_name": "TEXT",
    "tags": "TEXT NOT NULL DEFAULT '[]'",
    "note": "TEXT NOT NULL DEFAULT ''",
    "hidden": "INTEGER NOT NULL DEFAULT 0",
}
# Columns of a line in the list that hold JSON.
_JSON_COLUMNS = ("mean_reward_ci95", "tags")
_LABELS = tuple(JobLabels.model_fields)
_SWEEPS_TABLE = "CREATE TABLE sweeps (number INTEGER PRIMARY KEY, sweep_id TEXT NOT NULL UNIQUE, record TEXT NOT NULL)"
# Beside an event's payload, where older servers expect it alone.
_EVENT_TIME = "event_time"
_ACTIVE = "('queued', 'running')"
# To check a larger file in full would hold up the start; its damage shows when it is read.
_CHECKED_BYTES = 32 * 2**20
# Another program may hold the file for a moment.
_BUSY_SECONDS = 1.0
# More events than a server shows to clients between two writes, even if the disk hangs for an hour.
_MAX_UNWRITTEN_EVENTS = 1_000_000
INTERRUPTED = (
    "interrupted by restart: the server ended while the job was {status}; POST /training/{job_id}/resume goes on with "
    "it."
)


class JournalError(Exception):
    """The jobs' file cannot be used.

    :param reason: Why, in words and without a path.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _DamagedError(JournalError):
    """It is no database, or a damaged one."""


class JobJournal:
    """Reads and writes the jobs' file. Safe to use from any thread.

    SQLite keeps other processes out while it is open, for another server would take running jobs for interrupted ones.

    :param path: The file, created if absent; None keeps everything in memory until the journal is closed.
    :raises JournalError: If it cannot be used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        # Guards the connection.
        self._lock = threading.Lock()
        #: Whether it has just been begun, and so knows no job of earlier servers.
        self.is_new = path is None or not path.exists() or path.stat().st_size == 0
        self._connection = _connect(path)
        self._inode = None if path is None else path.stat().st_ino
        self._close = weakref.finalize(self, self._connection.close)

    def skip_event_ids(self) -> None:
        """Leave out, in jobs that had not ended, the ids of events that clients have seen and the file has not."""
        with self._transact() as connection:
            query = f"SELECT number, history FROM jobs WHERE status IN {_ACTIVE}"
            for number, history in connection.execute(query).fetchall():
                with suppress(ValueError, TypeError):  # it is damaged, and whoever asks for more of it is told
                    last_event_id, *others = json.loads(history)
                    skipped = json.dumps([last_event_id + _MAX_UNWRITTEN_EVENTS, *others])
                    connection.execute("UPDATE jobs SET history = ? WHERE number = ?", (skipped, number))

    def interrupt_active(self, job_ids: Sequence[str] | None = None, keeps_running: bool = False) -> int:
        """Note that the jobs which had not ended have failed with the server that ran them; return how many.

        :param job_ids: Those that may have failed; None means all.
        :param keeps_running: Whether those that ran may go on elsewhere, and only those that waited have failed.
        """
        with self._transact() as connection:
            query = f"SELECT number, job_id, state, written_at FROM jobs WHERE status IN {_ACTIVE}"
            rows = connection.execute(query).fetchall()
            if job_ids is not None:
                rows = [row for row in rows if row[1] in job_ids]
            if keeps_running:
                rows = [row for row in rows if not _has_started(row[2])]
            for number, job_id, state_json, written_at in rows:
                connection.execute("UPDATE jobs SET status = ? WHERE number = ?", (JobStatus.FAILED, number))
                try:
                    state = JobState.model_validate_json(state_json)
                except ValueError:  # it stays in the list, and whoever asks for more of it is told
                    continue
                message = INTERRUPTED.format(status=state.status, job_id=job_id)
                ended = {
                    "status": JobStatus.FAILED,
                    "error_message": message,
                    "end_time": datetime.fromtimestamp(written_at, UTC),
                    "ended_by": None,
                }
                changed = state.model_copy(update=ended).model_dump_json()
                connection.execute("UPDATE jobs SET state = ? WHERE number = ?", (changed, number))
        return len(rows)

    def list_jobs(self) -> list[PastJob]:
        """List all jobs, oldest first."""
        names = list(JobSummary.model_fields)
        with self._lock, _explain():
            rows = self._connection.execute(f"SELECT {', '.join(names)} FROM jobs ORDER BY number").fetchall()
            return [PastJob(_read_line(dict(zip(names, row, strict=True)))) for row in rows]

    def load(self, job_id: str) -> JobRecord | None:
        """Read a job; None if there is none.

        :raises JournalError: If it cannot be read.
        """
        with self._lock, _explain():
            query = f"SELECT number, plan, state, history, written_at, {', '.join(_LABELS)} FROM jobs WHERE job_id = ?"
            row = self._connection.execute(query, (job_id,)).fetchone()
            if row is None:
                return None
            query = "SELECT event_id, name, payload FROM events WHERE number = ? ORDER BY event_id"
            events = self._connection.execute(query, row[:1]).fetchall()
            query = "SELECT keys, n_rows, numbers FROM metrics WHERE number = ? ORDER BY first_id"
            metrics = self._connection.execute(query, row[:1]).fetchall()
        with _explain():
            _, plan, state, history, written_at, *written = row
            labels = _read_json_columns(dict(zip(_LABELS, written, strict=True)))
            last_event_id, stride, progress = json.loads(history)
            part = HistoryPart(
                last_event_id,
                stride,
                [_read_event(*event) for event in events],
                [_unpack(*packed) for packed in metrics],
                replaces_rows=True,
                progress=None if progress is None else JobEvent(*progress),
            )
            return JobRecord(
                job_id,
                PlanRecord.model_validate_json(plan),
                JobState.model_validate_json(state),
                part,
                JobLabels.model_validate(labels),
                datetime.fromtimestamp(written_at, UTC),
            )

    def load_configs(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Read the configurations of jobs; those that cannot be read are left out."""
        query = f"SELECT job_id, plan FROM jobs WHERE job_id IN ({', '.join('?' * len(job_ids))})"
        with self._lock, _explain():
            rows = self._connection.execute(query, tuple(job_ids)).fetchall()
        configs = {}
        for job_id, plan in rows:
            with suppress(ValueError, KeyError):
                configs[job_id] = json.loads(plan)["config"]
        return configs

    def list_trained_on(self, sha256: str) -> list[str]:
        """List the ids of the jobs that began from a model's file, oldest first.

        :param sha256: The file's.
        :raises JournalError: If they cannot be read.
        """
        query = "SELECT job_id FROM jobs WHERE instr(plan, ?) ORDER BY number"
        with self._lock, _explain():
            written = f'"init_sha256":{json.dumps(sha256)}'
            return [job_id for (job_id,) in self._connection.execute(query, (written,))]

    def write_labels(self, job_id: str, labels: JobLabels) -> None:
        """Write down what people have written on a job.

        :raises JournalError: If it fails, or the file does not have the job.
        """
        columns = _write_labels(labels)
        settings = ", ".join(f"{name} = ?" for name in columns)
        with self._transact() as connection:
            changed = connection.execute(f"UPDATE jobs SET {settings} WHERE job_id = ?", (*columns.values(), job_id))
            if changed.rowcount != 1:
                raise JournalError("the job is not in the jobs' file")

    def write(self, records: Sequence[JobRecord]) -> None:
        """Write records of new and of known jobs: all that can be written, or none.

        They are on the disk when this returns.

        :raises JournalError: If it fails.
        """
        with self._transact() as connection:
            for record in records:
                connection.execute("SAVEPOINT record")
                try:
                    _write(connection, record)
                except (ValueError, TypeError, OverflowError):  # what an environment reported; others are written
                    logger.warning("job %s cannot be written down", record.job_id, exc_info=True)
                    connection.execute("ROLLBACK TO record")
                connection.execute("RELEASE record")

    def list_old(self, written_before: float) -> list[str]:
        """List the ids of jobs that ended before a time in seconds since 1970, oldest first."""
        query = f"SELECT job_id FROM jobs WHERE written_at < ? AND status NOT IN {_ACTIVE} ORDER BY number"
        with self._lock, _explain():
            return [job_id for (job_id,) in self._connection.execute(query, (written_before,))]

    def forget(self, job_ids: Sequence[str]) -> None:
        """Remove jobs.

        :raises JournalError: If it fails.
        """
        with self._transact() as connection:
            for job_id in job_ids:
                number = "(SELECT number FROM jobs WHERE job_id = ?)"
                connection.execute(f"DELETE FROM events WHERE number = {number}", (job_id,))
                connection.execute(f"DELETE FROM metrics WHERE number = {number}", (job_id,))
                connection.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))

    def list_sweeps(self) -> list[str]:
        """List the records of all sweeps, oldest first, in JSON.

        :raises JournalError: If they cannot be read.
        """
        with self._lock, _explain():
            return [record for (record,) in self._connection.execute("SELECT record FROM sweeps ORDER BY number")]

    def write_sweep(self, sweep_id: str, record: str) -> None:
        """Write the record of a new or of a known sweep; it is on the disk when this returns.

        :raises JournalError: If it fails.
        """
        with self._transact() as connection:
            connection.execute(
                "INSERT INTO sweeps (sweep_id, record) VALUES (?, ?) "
                "ON CONFLICT (sweep_id) DO UPDATE SET record = excluded.record",
                (sweep_id, record),
            )

    def forget_sweep(self, sweep_id: str) -> None:
        """Remove a sweep.

        :raises JournalError: If it fails.
        """
        with self._transact() as connection:
            connection.execute("DELETE FROM sweeps WHERE sweep_id = ?", (sweep_id,))

    def close(self) -> None:
        """Close the file; what was written is in it."""
        with self._lock:
            self._close()

    @contextmanager
    def _transact(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _explain():
            self._check_place()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite itself has rolled back what a full disk has stopped
                    self._connection.execute("ROLLBACK")
                raise

    def _check_place(self) -> None:
        """Notice a file that somebody has removed, into which everything could still be written in vain."""
        if self._path is not None and self._path.stat().st_ino != self._inode:
            raise JournalError("it has been replaced; restart the server")


def open_journal(models_dir: Path, keeps_running: bool = False) -> tuple[JobJournal, str | None]:
    """Open the jobs' file of a models folder, and end what a server was doing that has written it.

    A file that is damaged is moved aside.

    :param keeps_running: Whether jobs that ran may go on elsewhere.
    :return: The journal, and why it is in memory only; None if it is not.
    """
    path = models_dir / FILE_NAME
    try:
        try:
            return _open(path, keeps_running), None
        except _DamagedError as error:
            aside = _move_aside(path)
            logger.warning("%s is damaged (%s): it is now %s, and a new one begins", FILE_NAME, error, aside)
            if keeps_running:
                logger.warning("jobs that went on without the server are not known any more, and are ended")
            return _open(path, keeps_running), None
    except (JournalError, OSError) as error:
        reason = error.reason if isinstance(error, JournalError) else error.strerror or "unknown reason"
        logger.warning("%s cannot be used (%s): jobs are remembered only until the server ends", FILE_NAME, reason)
        return JobJournal(), reason


def _open(path: Path, keeps_running: bool) -> JobJournal:
    journal = JobJournal(path)
    try:
        journal.skip_event_ids()
        n_interrupted = journal.interrupt_active(keeps_running=keeps_running)
        if n_interrupted:
            logger.warning("%d jobs were interrupted when the last server ended", n_interrupted)
        journal.list_jobs()  # which must not fail later
    except JournalError:
        journal.close()
        raise
    return journal


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        _create(path)
    with _explain():
        target = ":memory:" if path is None else path
        connection = sqlite3.connect(target, _BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, 0 if path is None else path.stat().st_size)
        except BaseException:
            connection.close()
            raise
    return connection


def _create(path: Path) -> None:
    """Create the file for its owner alone if it is absent, and refuse what is no file."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise JournalError("it is not a regular file")
    with _explain():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _prepare(connection: sqlite3.Connection, n_bytes: int) -> None:
    """Lock the database, check that it is one of ours, and create its tables if it is new."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    is_new = n_tables == 0 and version == 0
    if not is_new and application != _APPLICATION_ID:
        raise JournalError("another program's database")
    if not is_new and not 1 <= version <= SCHEMA_VERSION:
        raise JournalError(f"it has schema version {version}, this server knows {SCHEMA_VERSION}; upgrade the server")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    if is_new:
        columns = "".join(f", {name} {kind}" for name, kind in _ADDED_COLUMNS.items())
        for statement in _TABLES.format(columns=columns).split(";"):
            connection.execute(statement)
        connection.execute(_SWEEPS_TABLE)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    elif version < SCHEMA_VERSION:
        _migrate(connection)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
    if n_bytes <= _CHECKED_BYTES:
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise _DamagedError("its check fails")


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring a file of version 1 up to this one."""
    connection.execute(_SWEEPS_TABLE)
    for name, kind in _ADDED_COLUMNS.items():
        connection.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")
    for number, plan_json, state_json in connection.execute("SELECT number, plan, state FROM jobs").fetchall():
        try:
            plan, state = PlanRecord.model_validate_json(plan_json), JobState.model_validate_json(state_json)
            columns = {"seed": plan.config["seed"], "recipe": compute_recipe(plan.config), **_list_figures(state)}
        except (ValueError, KeyError):  # it stays in the list, and whoever asks for more of it is told
            continue
        settings = ", ".join(f"{name} = ?" for name in columns)
        connection.execute(f"UPDATE jobs SET {settings} WHERE number = ?", (*columns.values(), number))
    logger.warning("%s was of version 1, and is now of version %d", FILE_NAME, SCHEMA_VERSION)


@contextmanager
def _explain() -> Iterator[None]:
    """Turn the errors of SQLite, of the disk and of what was read into words."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kind = _DamagedError if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else JournalError
        raise kind(str(error)) from error
    except OSError as error:
        raise JournalError(error.strerror or "unknown reason") from error
    except (ValueError, TypeError, zlib.error) as error:  # what was read, or is to be written
        raise JournalError(f"a record is damaged: {type(error).__name__}") from error


def _move_aside(path: Path) -> str:
    """Rename a damaged file and what SQLite keeps beside it; return its new name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for ending in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{ending}", f"{aside}{ending}")
    return aside.name


def _has_started(state_json: str) -> bool:
    try:
        return JobState.model_validate_json(state_json).status is JobStatus.RUNNING
    except ValueError:
        return False


def _read_line(columns: dict[str, Any]) -> JobSummary:
    return JobSummary.model_validate(_read_json_columns(columns))


def _read_json_columns(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: json.loads(value) if name in _JSON_COLUMNS else value for name, value in columns.items()}


def _write_labels(labels: JobLabels) -> dict[str, Any]:
    return {name: json.dumps(value) if name in _JSON_COLUMNS else value for name, value in labels}


def _list_figures(state: JobState) -> dict[str, Any]:
    """List what a line of the list shows of a job's state."""
    mean_reward, interval = choose_evaluation(state.final_evaluation, state.evaluation)
    return {
        "elapsed_seconds": state.elapsed_seconds,
        "mean_reward": mean_reward,
        "mean_reward_ci95": json.dumps(interval),
    }


def _write(connection: sqlite3.Connection, record: JobRecord) -> None:
    plan, state, history = record.plan, record.state, record.history
    progress = None if history.progress is None else [history.progress.event_id, *history.progress[1:]]
    changing = {
        "status": str(state.status),
        "progress": state.compute_progress(int(plan.config["total_timesteps"])),
        "current_timesteps": state.current_timesteps,
        "written_at": datetime.now(UTC).timestamp(),
        "state": state.model_dump_json(),
        "history": json.dumps([history.last_event_id, history.stride, progress]),
        **_list_figures(state),
    }
    fixed = {
        "job_id": record.job_id,
        "env_name": plan.config["env_name"],
        "model_name": plan.config["model_name"],
        "total_timesteps": plan.config["total_timesteps"],
        "created_at": state.created_at.isoformat(),
        "plan": plan.model_dump_json(),
        "seed": plan.config["seed"],
        "recipe": compute_recipe(plan.config),
        **_write_labels(record.labels),
    }
    columns = {**fixed, **changing}
    updates = ", ".join(f"{name} = excluded.{name}" for name in changing)
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


def _write_payload(event: JobEvent) -> str:
    time_of_event = {} if event.created_at is None else {_EVENT_TIME: event.created_at.isoformat()}
    return json.dumps({**event.payload, **time_of_event})


def _read_event(event_id: int, name: str, payload_json: str) -> JobEvent:
    payload = json.loads(payload_json)
    created_at = payload.pop(_EVENT_TIME, None)
    return JobEvent(event_id, name, payload, None if created_at is None else datetime.fromisoformat(created_at))


def _pack(rows: MetricRows) -> tuple[int, int, str, bytes]:
    numbers = b"".join(part.astype(part.dtype.newbyteorder("<")).tobytes() for part in rows[1:])
    return int(rows.ids[0]), len(rows.ids), json.dumps(rows.keys), zlib.compress(numbers, 1)


def _unpack(keys_json: str, n_rows: int, packed: bytes) -> MetricRows:
    keys = tuple(json.loads(keys_json))
    content = zlib.decompress(packed)
    integers = np.frombuffer(content, "<i8", 2 * n_rows).astype(np.int64)
    numbers = np.frombuffer(content, "<f8", offset=integers.nbytes).astype(np.float64)
    return MetricRows(keys, integers[:n_rows], integers[n_rows:], numbers.reshape(n_rows, 1 + len(keys)))
