"""The notes on a model's versions: what their files do not say, in a small file of JSON beside them."""

import errno
import json
import logging
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from grpo_core.saving.atomic_write import UnconfirmedWriteError, write_atomic
from service.models.files.lock import OPEN_FLAGS
from service.schemas.fields import ALIAS_PATTERN

logger = logging.getLogger("grpo.service")

NOTES_FILE = "notes.json"
_DAMAGED_PREFIX = f"{NOTES_FILE}.damaged-"
_MAX_BYTES = 2**20
# What reading damaged notes raises.
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, ArithmeticError)
_MAX_VERSION = 10**9 - 2  # the next one still has nine digits
_ALIAS = re.compile(ALIAS_PATTERN)


class DamagedNotesError(Exception):
    """Notes that cannot be understood."""


class Notes(NamedTuple):
    """Facts about a model's versions that are not in their files.

    :param aliases: Versions by alias.
    :param jobs: Ids of the jobs that trained them, by version.
    :param newest: The highest version there ever was, or a lower one; no number is given twice.
    :param digests: SHA-256 of what those jobs saved, by version.
    :param are_damaged: Whether what was written cannot be read.
    """

    aliases: Mapping[str, int]
    jobs: Mapping[int, str]
    newest: int = 1
    digests: Mapping[int, str] = MappingProxyType({})
    are_damaged: bool = False

    def find_job(self, version: int, sha256: str | None) -> str | None:
        """Return the job that trained a version; None if it is unknown, or another file was put in its place.

        :param sha256: That of the version's file.
        """
        return self.jobs.get(version) if self.digests.get(version) == sha256 else None


def load_notes(folder: Path) -> Notes:
    """Read the notes in the folder of a model's versions.

    :raises OSError: If the disk does not give them.
    :raises DamagedNotesError: If they are damaged.
    """
    try:
        return _parse(_read_small(folder / NOTES_FILE))
    except _DAMAGE as error:
        raise DamagedNotesError(str(error)) from error


def save_notes(folder: Path, notes: Notes) -> None:
    """Write notes in the place of earlier ones; damaged ones are kept under another name.

    :raises OSError: If the disk refuses.
    """
    _move_damaged_aside(folder)
    written: dict[str, Any] = {"aliases": dict(notes.aliases), "jobs": {str(k): v for k, v in notes.jobs.items()}}
    written["newest"] = notes.newest
    written["digests"] = {str(k): v for k, v in notes.digests.items()}
    with suppress(UnconfirmedWriteError):  # they are there, and a model that follows them is confirmed itself
        write_atomic(folder / NOTES_FILE, json.dumps(written).encode())


def has_damaged_notes(folder: Path) -> bool:
    """Tell whether damaged notes were kept under another name."""
    return any(folder.glob(f"{_DAMAGED_PREFIX}*"))


def _read_small(path: Path) -> bytes:
    """Read a small file that others may have put there; a pipe, which would block for ever, is not waited for.

    :raises OSError: If the disk does not give it, or if it is not a regular file.
    :raises ValueError: If it is too large.
    """
    descriptor = os.open(path, OPEN_FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
        if status.st_size > _MAX_BYTES:
            raise ValueError(f"{path.name} is larger than {_MAX_BYTES:,} bytes")
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def _parse(content: bytes) -> Notes:
    """Read what is written in notes; whatever is in ``_DAMAGE`` says that they are damaged."""
    found = json.loads(content)
    aliases = {k: v for k, v in found["aliases"].items() if _ALIAS.fullmatch(k) and type(v) is int}
    jobs = {int(k): v for k, v in found["jobs"].items() if isinstance(v, str)}
    digests = {int(k): v for k, v in found["digests"].items() if isinstance(v, str)}
    newest = int(found["newest"])
    if not all(1 <= number <= _MAX_VERSION for number in (newest, *aliases.values(), *jobs, *digests)):
        raise ValueError("a version's number is out of range")
    return Notes(aliases, jobs, newest, digests)


def _move_damaged_aside(folder: Path) -> None:
    """Rename notes that are damaged, before others take their place: people may still read the aliases in them."""
    with suppress(FileNotFoundError):
        try:
            load_notes(folder)
        except DamagedNotesError:
            aside = folder / f"{_DAMAGED_PREFIX}{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
            (folder / NOTES_FILE).rename(aside)
            logger.warning("damaged notes were renamed to %s", aside)
