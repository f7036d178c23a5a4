"""A process's cores, import paths and end."""

import ctypes
import os
import signal
import sys
from pathlib import Path

# Linux: a signal for a process whose parent has died.
_PR_SET_PDEATHSIG = 1


def count_cores() -> int:
    """Count the cores that this process may use."""
    # Not on macOS and Windows.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def list_import_paths() -> list[str]:
    """List the folders of ``sys.path``, as another process can use them."""
    return [path or os.getcwd() for path in sys.path]


def describe_exit(status: int) -> str:
    """Describe how a process ended.

    :param status: Its exit status, or the negative number of the signal that killed it.
    """
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by signal {signal.Signals(-status).name}"
    except ValueError:  # most real-time signals have no name
        return f"was killed by signal {-status}"


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies, whatever ended that; on Linux only.

    A thread that watches the parent is not enough where native code holds the interpreter's lock for ever. The parent
    may have died before the call: ``os.getppid`` tells.

    :param number: The signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def read_delay(path: Path) -> float:
    """Return how many seconds a thread has waited for a processor; 0 where the system does not say.

    :param path: Its ``schedstat`` on Linux: nanoseconds that it has run, and that it has waited, and how often it ran.
    """
    try:
        return int(path.read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
