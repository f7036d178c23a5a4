"""The thread that writes jobs down while they run."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from service.jobs.records.database import JournalError
from service.jobs.records.history import JobHistory
from service.jobs.records.journal import JobJournal
from service.jobs.records.record import JobRecord
from service.workers.receipts import Receipts

logger = logging.getLogger("grpo.service")

# How often the progress of running jobs is written: a crash may cost this much of it.
_WRITE_SECONDS = 1.0
# A disk takes milliseconds. If it hangs, jobs go on without it.
_PATIENCE_SECONDS = 5.0
# The last event and the stride before anything of a history was written.
_NOTHING_WRITTEN = (0, 1)
_DAY_SECONDS = 86_400.0


class Recorded(Protocol):
    """A job as the recorder needs it, to write it down."""

    job_id: str
    history: JobHistory

    @property
    def receipts(self) -> Receipts:
        """The reports that were taken from its worker."""

    def make_record(self, after: int, stride: int) -> JobRecord:
        """Write down the job as it is, with the part of its history since a record."""


class _Order(NamedTuple):
    """Something to write at once.

    :param subject: The last record of a job, or a running job, whose record is made only when it is written: an earlier
        one might by then be older than the disk's.
    :param done: Set when it is on the disk, or could not be brought there.
    """

    subject: JobRecord | Recorded
    done: threading.Event


class JobRecorder:
    """Writes jobs to the jobs' file from one thread, many in a transaction. Safe to use from any thread.

    A disk that refuses or hangs fails no job: the log says so once, and the rest is written when the disk is
    back.

    :param journal: The jobs' file; the recorder closes it.
    :param obstacle: Why the journal is in memory only; None if it is not.
    """

    def __init__(self, journal: JobJournal, obstacle: str | None = None) -> None:
        #: The jobs' file, to read or write at once.
        self.journal = journal
        self._obstacle = obstacle
        # Guards everything below, and wakes the thread.
        self._news = threading.Condition()
        # Why the latest write failed; None if it did not.
        self._trouble: str | None = None
        self._orders: deque[_Order] = deque()
        self._to_forget: list[str] = []
        self._is_urgent = False
        self._is_closing = False
        # Running jobs, with the last event and the stride of their history on the disk.
        self._running: dict[Recorded, tuple[int, int]] = {}
        # Ended jobs whose record is not on the disk.
        self._unwritten: set[str] = set()
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> str | None:
        """Why jobs would not survive the server now; None if they would."""
        if self._obstacle is not None:
            return f"jobs are remembered only until the server ends: the jobs' file cannot be used ({self._obstacle})"
        with self._news:
            trouble = self._trouble
        return None if trouble is None else f"the jobs' file cannot be written ({trouble})"

    @property
    def is_kept(self) -> bool:
        """Whether jobs are remembered beyond the server's end."""
        return self._obstacle is None

    @property
    def knows_all_jobs(self) -> bool:
        """Whether the file has all jobs of earlier servers; a new, a damaged or no file may have lost some."""
        return self.is_kept and not self.journal.lacks_jobs

    def interrupt(self, job_id: str) -> None:
        """Mark a job whose record cannot be read as failed."""
        try:
            self.journal.interrupt_active([job_id])
        except JournalError as error:
            logger.warning("job %s cannot be marked as failed (%s)", job_id, error.reason)

    def load_configs(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Read the configurations of jobs; those that cannot be read are left out."""
        try:
            return self.journal.load_configs(job_ids)
        except JournalError:
            return {}

    def list_trained_on(self, sha256: str) -> list[str]:
        """List the ids of the jobs that began from a model's file, oldest first; none if the disk does not say."""
        try:
            return self.journal.list_trained_on(sha256)
        except JournalError:
            return []

    def begin(self, job: Recorded) -> None:
        """Write a new job down, and its reports from then on; return when it is on the disk."""
        with self._news:
            self._running[job] = _NOTHING_WRITTEN
        self._write_now(job)

    def write(self, job: Recorded) -> None:
        """Write down how a running job is; return when it is on the disk, or the disk has refused or hangs."""
        self._write_now(job)

    def follow(self, job: Recorded, stride: int) -> None:
        """Write down the reports of a job that is in the file already.

        :param stride: The ``stride`` of its history there.
        """
        with self._news:
            self._running[job] = job.history.last_event_id, stride
            self._wake()

    def note_start(self) -> None:
        """Write changes soon."""
        with self._news:
            self._is_urgent = True
            self._news.notify()

    def end(self, record: JobRecord) -> None:
        """Write the last record of a job; return when it is on the disk, or the disk has refused or hangs."""
        with self._news:
            self._unwritten.add(record.job_id)
            self._running = {job: seen for job, seen in self._running.items() if job.job_id != record.job_id}
            order = self._append_order(record)  # the thread must not find a job that is neither running nor ordered
        self._wait_for(order)

    def has_written(self, job_id: str) -> bool:
        """Return whether an ended job can be read again."""
        return job_id not in self._unwritten

    def list_old(self, max_days: float) -> list[str]:
        """List the ids of older ended jobs in the file, oldest first."""
        if math.isinf(max_days):
            return []
        try:
            return self.journal.list_old(max_days * _DAY_SECONDS)
        except JournalError:  # it is not urgent, and the next write will say what is wrong
            return []

    def forget(self, job_ids: Sequence[str]) -> None:
        """Remove jobs from the file soon, and drop what was still to be written of them."""
        with self._news:
            self._to_forget += job_ids
            self._unwritten -= set(job_ids)
            self._wake()

    def close(self) -> None:
        """Write the rest, and close the file."""
        with self._news:
            self._is_closing = True
            self._news.notify()
            thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE_SECONDS)
        if thread is None or not thread.is_alive():
            self.journal.close()

    def _write_now(self, subject: JobRecord | Recorded) -> None:
        with self._news:
            order = self._append_order(subject)
        self._wait_for(order)

    def _append_order(self, subject: JobRecord | Recorded) -> _Order | None:
        """Have the thread write something at once; None if it ends. The caller holds the lock."""
        if self._is_closing:
            return None
        order = _Order(subject, threading.Event())
        self._orders.append(order)
        self._wake()
        return order

    def _wait_for(self, order: _Order | None) -> None:
        if order is not None and not order.done.wait(_PATIENCE_SECONDS):
            self._note_trouble(f"the disk has not answered for {_PATIENCE_SECONDS:g} s", order)

    def _wake(self) -> None:
        """Have the thread look; the first call starts it."""
        self._news.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_until_closed, name="grpo-recorder", daemon=True)
            self._thread.start()

    def _write_until_closed(self) -> None:
        next_round = time.monotonic() + _WRITE_SECONDS
        while True:
            with self._news:
                self._news.wait_for(self._has_urgent_news, max(0.0, next_round - time.monotonic()))
                is_last, self._is_urgent = self._is_closing, False
                orders = list(self._orders)
                forgotten, self._to_forget = self._to_forget, []
                running = dict(self._running)
            try:
                self._write(orders, running, forgotten)
            except Exception:  # this thread is the only one that writes: it must survive a record that it cannot write
                logger.exception("jobs cannot be written down")
                self._give_up(orders, forgotten, "an error of this server, see its log")
            next_round = time.monotonic() + _WRITE_SECONDS
            if is_last:
                return

    def _has_urgent_news(self) -> bool:
        return self._is_closing or self._is_urgent or any(not order.done.is_set() for order in self._orders)

    def _write(self, orders: list[_Order], running: dict[Recorded, tuple[int, int]], forgotten: list[str]) -> None:
        """Write the changes of all jobs in one transaction."""
        ordered = {order.subject for order in orders if not isinstance(order.subject, JobRecord)}
        changed = {job: seen for job, seen in running.items() if job in ordered or job.history.last_event_id != seen[0]}
        records = {job: record for job, seen in changed.items() if (record := _make_record(job, seen)) is not None}
        try:
            if orders or records:
                self.journal.write(_sort(orders, records))
            if forgotten:
                self.journal.forget(forgotten)
        except JournalError as error:
            self._give_up(orders, forgotten, error.reason)
            return
        with self._news:
            for order in orders:
                self._orders.remove(order)
            self._unwritten -= {order.subject.job_id for order in orders if isinstance(order.subject, JobRecord)}
            for job, record in records.items():
                if self._running.get(job) == running[job]:  # it has neither ended nor begun again since
                    self._note_written(job, record)
        for order in orders:
            order.done.set()
        if orders or records or forgotten:
            self._note_success()

    def _note_written(self, job: Recorded, record: JobRecord) -> None:
        """Note how much of a running job is on the disk, as far as this thread knows."""
        if record.state.status.is_final:
            del self._running[job]
            return
        self._running[job] = record.history.last_event_id, record.history.stride
        receipts = job.receipts  # another worker's in a moment, perhaps
        if receipts.attempt == record.state.n_restarts:
            receipts.note_written(record.state.n_reports)

    def _give_up(self, orders: list[_Order], forgotten: list[str], reason: str) -> None:
        """Keep unwritten records for later: no caller waits until a disk is mended."""
        self._note_trouble(reason)
        with self._news:
            self._to_forget += forgotten
        for order in orders:
            order.done.set()

    def _note_trouble(self, reason: str, order: _Order | None = None) -> None:
        """Note why nothing can be written.

        :param order: What was waited for in vain; if it is done by now, there is no trouble.
        """
        with self._news:
            if order is not None and order.done.is_set():
                return
            is_first, self._trouble = self._trouble is None, reason
        if is_first:
            logger.warning(
                "the jobs' file cannot be written (%s); jobs continue, and are saved once it can be written", reason
            )

    def _note_success(self) -> None:
        with self._news:
            had_trouble, self._trouble = self._trouble is not None, None
        if had_trouble:
            logger.warning("the jobs' file can be written again, and has everything")


def _make_record(job: Recorded, seen: tuple[int, int]) -> JobRecord | None:
    """Make the record of a job; None if it cannot be made, which must not keep the others from being written."""
    try:
        return job.make_record(*seen)
    except Exception:  # a bug, or a report of foreign code
        logger.exception("job %s cannot be written down", job.job_id)
        return None


def _sort(orders: Sequence[_Order], records: Mapping[Recorded, JobRecord]) -> list[JobRecord]:
    """List what to write: orders first, in their order, since new jobs are listed as they were written.

    :param records: Those of running jobs. One that has ended in the meantime takes its place with its last record.
    """
    subjects = [order.subject for order in orders]
    ended = {subject.job_id: subject for subject in subjects if isinstance(subject, JobRecord)}
    ordered = [
        subject if isinstance(subject, JobRecord) else records.get(subject, ended.get(subject.job_id))
        for subject in subjects
    ]
    others = [record for job, record in records.items() if job not in subjects]
    return [*(record for record in ordered if record is not None), *others]
