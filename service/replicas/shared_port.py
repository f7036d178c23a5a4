"""Keeps replicas of different models from sharing a port by mistake."""

import hashlib
import json
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.settings import Settings

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("grpo.service")

# Which models there are: replicas that differ in these would answer one client in turns with one and another.
_MODELS = ("models_dir", "models_url")
# What replicas may differ in without a client noticing.
_OWN = frozenset({"metrics_port", "replicas", "log_format", "log_level", "access_log"})
_N_DIGITS = 16
# While another replica writes the file.
_MAX_TRIES, _PAUSE_SECONDS = 100, 0.01


class SharedPortError(OSError):
    """Replicas of other models listen on the port; the message names the remedy."""


@contextmanager
def join_port(settings: Settings) -> Iterator[None]:
    """Share the port with replicas of the same models alone, until the context ends.

    The kernel lets all processes of one user share a port (``SO_REUSEPORT``), and spreads connections. Each replica
    therefore locks a file in the folder for temporary files, which says what they serve. Those that differ in other
    settings, as while a setting is changed one replica after the other, only get a warning in the log. Without file
    locks, or where such a file cannot be used, this has no effect.

    :raises SharedPortError: If replicas of other models listen there.
    """
    descriptor = None
    try:
        descriptor = _join(settings)
    except _UnusableError:
        logger.info("nothing keeps replicas of other models away from port %d: there is no file for it", settings.port)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


class _UnusableError(Exception):
    """The file is missing, or its content cannot be read."""


def _join(settings: Settings) -> int:
    if sys.platform == "win32" or settings.port == 0:  # with port 0, each gets one of its own
        raise _UnusableError
    path = _find_file(settings)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _UnusableError from error
    try:
        status = os.fstat(descriptor)
        # Others who may write in that folder could have linked any file of this user there, to have it overwritten.
        if status.st_uid != os.geteuid() or status.st_nlink != 1 or not stat.S_ISREG(status.st_mode):
            raise _UnusableError
        _agree(descriptor, settings)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, SharedPortError):
            raise
        raise _UnusableError from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _agree(descriptor: int, settings: Settings) -> None:
    """Share the lock on the file with replicas that serve the same models; the first one writes what it serves.

    :raises SharedPortError: If those who hold it serve something else.
    """
    own = _describe(settings)
    for _ in range(_MAX_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(own).encode(), 0)
        # To change a lock is to give it up for an instant, so that what the file says may be another's by now.
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _compare(own, _read(descriptor), settings)
            return
        time.sleep(_PAUSE_SECONDS)
    raise _UnusableError


def _read(descriptor: int) -> dict[str, str]:
    try:
        found = json.loads(os.pread(descriptor, 2**16, 0))
    except ValueError as error:
        raise _UnusableError from error
    if not isinstance(found, dict):
        raise _UnusableError
    return found


def _compare(own: dict[str, str], theirs: dict[str, str], settings: Settings) -> None:
    different = sorted(name for name in own if own[name] != theirs.get(name))
    if models := [name for name in different if name in _MODELS]:
        raise SharedPortError(
            f"replicas of other models listen on port {settings.port} of {settings.host}, so clients would get answers "
            f"from both: {', '.join(models)} is not theirs; choose another port with --port or GRPO_PORT, or end them."
        )
    if different:
        logger.warning(
            "the replicas on port %d were started with other settings (%s); until they restart, clients get answers "
            "from both",
            settings.port,
            ", ".join(different),
        )


def _describe(settings: Settings) -> dict[str, str]:
    """Return a digest of each setting that clients may notice: some are secret."""
    described = settings.model_dump(mode="json", exclude=set(_OWN))
    described["api_key"] = settings.api_key and settings.api_key.get_secret_value()
    described["models_dir"] = os.path.realpath(settings.models_dir)
    if settings.models_url is not None:
        del described["models_dir"]  # each may have a copy of its own
    return {name: _digest(json.dumps(value, sort_keys=True, default=str)) for name, value in described.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_N_DIGITS]


def _find_file(settings: Settings) -> Path:
    address = f"{settings.host}-{settings.port}".replace(":", "_").replace("/", "_")
    return Path(tempfile.gettempdir()) / f".grpo-{os.geteuid()}-{address}.port"
