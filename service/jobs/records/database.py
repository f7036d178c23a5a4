"""The jobs' file as a database: opened for this process alone, checked, and refused if it is of another version."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from service.jobs.records.rows import UNREADABLE

# A hidden file, and no name that a model can have.
FILE_NAME = ".jobs.sqlite3"
# Raise it with every change of the tables; files of released versions are to be brought up to it then.
SCHEMA_VERSION = 3
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
    history TEXT NOT NULL,
    seed INTEGER NOT NULL,
    elapsed_seconds REAL NOT NULL,
    mean_reward REAL,
    mean_reward_ci95 TEXT NOT NULL,
    success_rate REAL,
    recipe TEXT NOT NULL,
    display_name TEXT,
    tags TEXT NOT NULL,
    note TEXT NOT NULL,
    hidden INTEGER NOT NULL
);
CREATE TABLE events (
    number INTEGER NOT NULL, event_id INTEGER NOT NULL, name TEXT NOT NULL, payload TEXT NOT NULL,
    PRIMARY KEY (number, event_id)
) WITHOUT ROWID;
CREATE TABLE metrics (
    number INTEGER NOT NULL, first_id INTEGER NOT NULL, n_rows INTEGER NOT NULL, keys TEXT NOT NULL,
    numbers BLOB NOT NULL, PRIMARY KEY (number, first_id)
) WITHOUT ROWID;
CREATE TABLE sweeps (number INTEGER PRIMARY KEY, sweep_id TEXT NOT NULL UNIQUE, record TEXT NOT NULL)
"""
# A full check of a larger file would hold up the start; damage shows when it is read.
_CHECKED_BYTES = 32 * 2**20
# Another program may hold the file for a moment.
_BUSY_SECONDS = 1.0


class JournalError(Exception):
    """The jobs' file cannot be used.

    :param reason: Why, in words and without a path.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DamagedError(JournalError):
    """The file is no database, or a damaged one."""


def connect(path: Path | None) -> sqlite3.Connection:
    """Open the file, or a database in memory.

    :param path: The file, created if absent; None opens one in memory.
    :raises JournalError: If it cannot be used.
    """
    if path is not None:
        _create(path)
    with explain():
        target = ":memory:" if path is None else path
        connection = sqlite3.connect(target, _BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.text_factory = _read_text
        try:
            _prepare(connection, 0 if path is None else path.stat().st_size)
        except BaseException:
            connection.close()
            if path is not None and path.stat().st_size == 0:
                path.unlink()  # created just now; the next start would take it for a damaged one
            raise
    return connection


def _read_text(content: bytes) -> str | bytes:
    """Read text; what has a bad byte stays bytes: it hides no other row, and whoever reads it notices."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _create(path: Path) -> None:
    """Create the file, readable by its owner only, if it is absent; refuse anything that is not a regular file.

    Nor is one taken that has been emptied: SQLite would take it for new, and delete the newest changes beside it.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise JournalError("it is not a regular file")
    if path.exists() and path.stat().st_size == 0:
        raise DamagedError("it is empty")
    with explain():
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
    if not is_new and version != SCHEMA_VERSION:
        remedy = "upgrade the server" if version > SCHEMA_VERSION else "move it away, and a new one begins"
        raise JournalError(f"it has schema version {version}, this server knows {SCHEMA_VERSION}; {remedy}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if is_new:
        _create_tables(connection)
    if n_bytes <= _CHECKED_BYTES:
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise DamagedError("its check fails")
    if not _list_columns(connection) >= _list_expected_columns():
        raise DamagedError("its tables are not as this server makes them")


def _list_columns(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """List the tables, each with the names of its columns."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {
        (table, column)
        for (table,) in tables
        for _, column, *_ in connection.execute("SELECT * FROM pragma_table_info(?)", (table,))
    }


def _list_expected_columns() -> set[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _create_tables(connection)
        return _list_columns(connection)


def _create_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


@contextmanager
def explain() -> Iterator[None]:
    """Turn the errors of SQLite, of the disk and of what was read into words."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kind = DamagedError if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else JournalError
        raise kind(str(error)) from error
    except OSError as error:
        raise JournalError(error.strerror or "unknown reason") from error
    except UnicodeDecodeError as error:  # SQLite's message, too, which quotes a damaged name
        raise DamagedError("text in it is damaged") from error
    except UNREADABLE as error:  # from the values read or written
        raise JournalError(f"a record is damaged: {type(error).__name__}") from error


def says_disk_is_full(error: JournalError) -> bool:
    """Tell whether a file can be read and, for lack of space, not be written now."""
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def move_aside(path: Path) -> str:
    """Rename a damaged file and SQLite's files beside it; return its new name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for ending in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{ending}", f"{aside}{ending}")
    return aside.name
