"""The jobs' file: all jobs and sweeps, in one SQLite database beside the models."""

import json
import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from service.jobs.records.database import (
    FILE_NAME,
    DamagedError,
    JournalError,
    connect,
    explain,
    move_aside,
    says_disk_is_full,
)
from service.jobs.records.history import HistoryPart
from service.jobs.records.interruption import (
    ACTIVE,
    MAX_UNWRITTEN_EVENTS,
    fail,
    interrupt,
    mend_statuses,
    skip_event_ids,
)
from service.jobs.records.record import JobRecord, JobState, PastJob, PlanRecord
from service.jobs.records.rows import (
    LABELS,
    UNREADABLE,
    has_id,
    list_damaged_parts,
    read_event,
    read_history,
    read_labels,
    read_line,
    read_time,
    to_columns,
    unpack_metrics,
    write_record,
)
from service.schemas.jobs import JobStatus, JobSummary

logger = logging.getLogger("grpo.service")


class JobJournal:
    """Reads and writes the jobs' file. Safe to use from any thread.

    SQLite keeps other processes out while it is open: another server would take running jobs for interrupted ones.

    :param path: The file, created if absent; None keeps everything in memory until the journal is closed.
    :raises JournalError: If it cannot be used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        # Guards the connection.
        self._lock = threading.Lock()
        #: Whether it may lack jobs of earlier servers, for it has just been begun, or ids in it are damaged.
        self.lacks_jobs = path is None or not path.exists()
        # Whether the file's active jobs are still to be noted as failed with their server.
        self._has_to_interrupt = False
        self._connection = connect(path)
        self._inode = None if path is None else path.stat().st_ino
        self._close = weakref.finalize(self, self._connection.close)

    def skip_event_ids(self) -> None:
        """Skip, in active jobs, the ids of events that clients have seen and the file lacks."""
        with self._transact() as connection:
            mend_statuses(connection)
            skip_event_ids(connection)

    def interrupt_active(self, job_ids: Sequence[str] | None = None, keeps_running: bool = False) -> int:
        """Note that active jobs have failed with the server that ran them; return how many.

        :param job_ids: Those that may have failed; None means all.
        :param keeps_running: Whether running jobs may continue elsewhere, so that only queued ones have failed.
        """
        with self._transact() as connection:
            return interrupt(connection, job_ids, keeps_running)

    def interrupt_later(self) -> int:
        """Show active jobs as failed, and note it with the next write; return how many.

        :raises JournalError: If they cannot be read.
        """
        with self._lock, explain():
            query = f"SELECT count(*) FROM jobs WHERE status IN {ACTIVE}"
            (n_jobs,) = self._connection.execute(query).fetchone()
            self._has_to_interrupt = True
        return int(n_jobs)

    def list_jobs(self) -> list[PastJob]:
        """List all jobs, oldest first; a row whose id is damaged stays in the file alone."""
        with self._lock, explain():
            lines = [_read_line(row)[0] for row in self._read_rows() if has_id(row["job_id"])]
            if self._has_to_interrupt:
                failed = {"status": JobStatus.FAILED}
                lines = [line if line.status.is_final else line.model_copy(update=failed) for line in lines]
            return list(map(PastJob, lines))

    def log_damage(self) -> None:
        """Log what is damaged in the rows of jobs, beside their events and metrics.

        :raises JournalError: If none can be read.
        """
        with self._lock, explain():
            for row in self._read_rows():
                is_listed = has_id(row["job_id"])
                damaged = [*_read_line(row if is_listed else {**row, "job_id": ""})[1], *list_damaged_parts(row)]
                if not is_listed:
                    self.lacks_jobs = True
                    what = f"row {row['number']}: {', '.join(['job_id', *damaged])}; the job is not listed"
                    logger.warning("%s is damaged at %s, and its row is kept", FILE_NAME, what)
                elif damaged:
                    what = f"job {row['job_id']} (row {row['number']}): {', '.join(damaged)}"
                    logger.warning("%s is damaged at %s; the rest of that job is kept", FILE_NAME, what)

    def _read_rows(self) -> Iterator[dict[str, Any]]:
        """Read the jobs' rows, oldest first; the caller holds the lock."""
        names = ("number", "plan", "state", "history", "written_at", *JobSummary.model_fields)
        for row in self._connection.execute(f"SELECT {', '.join(names)} FROM jobs ORDER BY number"):
            yield dict(zip(names, row, strict=True))

    def load(self, job_id: str) -> JobRecord | None:
        """Read a job; None if it is unknown.

        :raises JournalError: If it cannot be read.
        """
        with self._lock, explain():
            query = f"SELECT number, plan, state, history, written_at, {', '.join(LABELS)} FROM jobs WHERE job_id = ?"
            row = self._connection.execute(query, (job_id,)).fetchone()
            if row is None:
                return None
            query = "SELECT event_id, name, payload FROM events WHERE number = ? ORDER BY event_id"
            events = self._connection.execute(query, row[:1]).fetchall()
            query = "SELECT keys, n_rows, numbers FROM metrics WHERE number = ? ORDER BY first_id"
            metrics = self._connection.execute(query, row[:1]).fetchall()
            has_to_interrupt = self._has_to_interrupt
        _, plan, state, history, written_at, *written = row
        with _name_damage("plan"):
            plan = PlanRecord.model_validate_json(plan)
        with _name_damage("state"):
            state = JobState.model_validate_json(state)
        with _name_damage("written_at"):
            time_written = read_time(written_at)
        with _name_damage("history"):
            last_event_id, stride, progress = read_history(history)
        with _name_damage("events"):
            events = [read_event(*event) for event in events]
        with _name_damage("metrics"):
            metrics = [unpack_metrics(*packed) for packed in metrics]
        if has_to_interrupt and not state.status.is_final:
            state, last_event_id = fail(state, job_id, written_at), last_event_id + MAX_UNWRITTEN_EVENTS
        part = HistoryPart(last_event_id, stride, events, metrics, replaces_rows=True, progress=progress)
        return JobRecord(job_id, plan, state, part, read_labels(dict(zip(LABELS, written, strict=True))), time_written)

    def load_configs(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Read the configurations of jobs; those that cannot be read are left out."""
        query = f"SELECT job_id, plan FROM jobs WHERE job_id IN ({', '.join('?' * len(job_ids))})"
        with self._lock, explain():
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
        with self._lock, explain():
            written = f'"init_sha256":{json.dumps(sha256)}'
            return [job_id for (job_id,) in self._connection.execute(query, (written,)) if has_id(job_id)]

    def write_labels(self, job_id: str, changes: Mapping[str, Any]) -> None:
        """Save a job's edited labels, and leave the rest of its row, which may be damaged.

        :param changes: Fields of ``JobLabels``; at least one.
        :raises JournalError: If it fails, or the file does not have the job.
        """
        columns = to_columns(changes.items())
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
                    write_record(connection, record)
                except (ValueError, TypeError, OverflowError):  # from an environment's report; the others are written
                    logger.warning("job %s cannot be written down", record.job_id, exc_info=True)
                    connection.execute("ROLLBACK TO record")
                connection.execute("RELEASE record")

    def list_old(self, max_seconds: float) -> list[str]:
        """List the ids of older ended jobs, oldest first.

        :param max_seconds: Age in seconds, counted back from the newest record: one start with a clock that is far
            ahead would forget all jobs, were it counted from that.
        """
        newest = "min(?, (SELECT max(written_at) FROM jobs))"
        query = f"SELECT job_id FROM jobs WHERE written_at < {newest} - ? AND status NOT IN {ACTIVE} ORDER BY number"
        with self._lock, explain():
            return [job_id for (job_id,) in self._connection.execute(query, (time.time(), max_seconds))]

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
        with self._lock, explain():
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
        with self._lock, explain():
            self._check_file_is_there()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if self._has_to_interrupt:
                    mend_statuses(self._connection)
                    skip_event_ids(self._connection)
                    interrupt(self._connection)
                yield self._connection
                self._connection.execute("COMMIT")
                self._has_to_interrupt = False
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite itself has rolled back what a full disk has stopped
                    self._connection.execute("ROLLBACK")
                raise

    def _check_file_is_there(self) -> None:
        """Notice that the file was removed: writes would still succeed, and be lost."""
        if self._path is not None and self._path.stat().st_ino != self._inode:
            raise JournalError("it has been replaced; restart the server")


def open_journal(models_dir: Path, keeps_running: bool = False) -> tuple[JobJournal, str | None]:
    """Open the jobs' file of a models folder, and end the jobs that its last server left running.

    A file that is damaged is moved aside.

    :param keeps_running: Whether jobs that ran may go on elsewhere.
    :return: The journal, and why it is in memory only; None if it is not.
    """
    path = models_dir / FILE_NAME
    try:
        try:
            return _open(path, keeps_running), None
        except DamagedError as error:
            aside = move_aside(path)
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
        try:
            journal.skip_event_ids()
            n_interrupted = journal.interrupt_active(keeps_running=keeps_running)
        except JournalError as error:
            if keeps_running or not says_disk_is_full(error):
                raise
            logger.warning("%s cannot be written (%s); it is written once that is mended", FILE_NAME, error.reason)
            n_interrupted = journal.interrupt_later()
        if n_interrupted:
            what = "1 job was" if n_interrupted == 1 else f"{n_interrupted} jobs were"
            logger.warning(
                "%s interrupted when the last server ended; python -m grpo_client resume interrupted lets all go on, "
                "POST /training/{job_id}/resume one",
                what,
            )
        journal.log_damage()
    except JournalError:
        journal.close()
        raise
    return journal


def _read_line(row: Mapping[str, Any]) -> tuple[JobSummary, list[str]]:
    return read_line({name: row[name] for name in JobSummary.model_fields}, row["plan"], row["state"])


@contextmanager
def _name_damage(part: str) -> Iterator[None]:
    """Name the part of a record that cannot be read."""
    try:
        yield
    except UNREADABLE as error:
        raise JournalError(f"damaged {part}") from error
