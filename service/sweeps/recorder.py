"""Writes sweeps down, so that they survive the server."""

import logging
import threading
import time

from pydantic import ValidationError

from service.jobs.records.database import JournalError
from service.jobs.records.journal import JobJournal
from service.sweeps.sweep import SweepRecord
from service.sweeps.table import SweepTable

logger = logging.getLogger("grpo.service")

# Pause before the disk is tried again: each try may keep the jobs' file for a second.
_RETRY_SECONDS = 5.0


class SweepRecorder:
    """Writes sweeps to the jobs' file. Safe to use from any thread, but not while a lock is held: a disk may be slow.

    A disk that refuses ends no sweep: the log says so once, and what could not be written is written when it can be.

    :param journal: The jobs' file; it is not closed here.
    :param table: The sweeps; once it is closing, a closed file is no news.
    """

    def __init__(self, journal: JobJournal, table: SweepTable) -> None:
        self._journal, self._table = journal, table
        # Held from reading a record to having written it, so that no older one comes later.
        self._lock = threading.Lock()
        self._unwritten: set[str] = set()
        self._next_try = 0.0
        self._could_write = True

    @property
    def has_unwritten(self) -> bool:
        """Whether a sweep waits for the disk."""
        return bool(self._unwritten)

    def list_records(self) -> list[SweepRecord]:
        """List the sweeps in the file, oldest first; what cannot be read is left out."""
        try:
            texts = self._journal.list_sweeps()
        except JournalError as error:
            logger.warning("the sweeps cannot be read (%s); none are listed until they can be", error.reason)
            return []
        records = []
        for text in texts:
            try:
                records.append(SweepRecord.model_validate_json(text))
            except ValidationError:
                logger.warning("the record of a sweep cannot be read, and is left out")
        return records

    def write(self, sweep_id: str) -> bool:
        """Write a sweep down as it is now; return whether the disk has taken it."""
        with self._lock:
            self._unwritten.discard(sweep_id)
            record = self._table.read(sweep_id)
            if record is None:
                return True
            try:
                self._journal.write_sweep(sweep_id, record)
            except JournalError as error:
                self._unwritten.add(sweep_id)
                self._next_try = time.monotonic() + _RETRY_SECONDS
                if self._could_write and not self._table.is_closing:
                    logger.warning(
                        "a sweep cannot be written down (%s): it goes on, and is written later", error.reason
                    )
                self._could_write = False
                return False
            self._could_write = True
            return True

    def retry(self) -> None:
        """Write what the disk has refused, if it is time to."""
        if time.monotonic() >= self._next_try:
            for sweep_id in list(self._unwritten):
                if not self.write(sweep_id):
                    return

    def forget(self, sweep_id: str) -> None:
        """Remove a sweep from the file.

        :raises JournalError: If it fails; the sweep stays.
        """
        with self._lock:
            self._journal.forget_sweep(sweep_id)
            self._unwritten.discard(sweep_id)
