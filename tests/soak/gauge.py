"""What a server holds while it works, and whether that has stopped growing."""

import os
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

_MIB = 2**20


class Reading(NamedTuple):
    """What a server holds at one time.

    :param rss_mib: Resident memory.
    :param n_descriptors: Open files and sockets.
    :param n_threads: Threads.
    :param n_children: Processes that it has started, and these in turn.
    :param n_temporary: Entries in its folder of temporary files, and unfinished models.
    :param n_shared: Parts of shared memory that it and its children see.
    """

    rss_mib: float
    n_descriptors: int
    n_threads: int
    n_children: int
    n_temporary: int
    n_shared: int


def read(pid: int, models_dir: Path, temporary_dir: Path) -> Reading:
    """Read what a server holds."""
    process = psutil.Process(pid)
    children = process.children(recursive=True)
    return Reading(
        process.memory_info().rss / _MIB,
        process.num_fds(),
        process.num_threads(),
        len(children),
        len(os.listdir(temporary_dir)) + len(list(models_dir.glob(".tmp-*"))),
        sum(map(_count_shared, [process, *children])),
    )


def _count_shared(process: psutil.Process) -> int:
    try:
        return Path(f"/proc/{process.pid}/maps").read_text().count("/dev/shm/")
    except OSError:  # it has ended
        return 0


def find_growth(readings: list[Reading], max_mib: float, max_more: int) -> list[str]:
    """List what has grown in the second half: the median of the last quarter beside that of the one before.

    :param max_mib: Growth of the memory that is none.
    :param max_more: The same for everything that is counted.
    """
    quarter = len(readings) // 4
    before, after = readings[-2 * quarter : -quarter], readings[-quarter:]
    grown = []
    for place, name in enumerate(Reading._fields):
        more = median(reading[place] for reading in after) - median(reading[place] for reading in before)
        if more > (max_mib if name == "rss_mib" else max_more):
            grown.append(f"{name}: {more:.1f} more")
    return grown
