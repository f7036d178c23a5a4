"""Free and total memory, container limits included."""

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def get_available_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the machine's free memory, or what the control group (v2) still allows if that is less.

    :param cgroup: Folder of the control group's files; without a ``memory.max`` in it only the machine counts.
    """
    return min(psutil.virtual_memory().available, _cgroup_headroom(cgroup))


def get_total_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the machine's memory or the control group's limit, whichever is smaller."""
    limit = _read_number(cgroup / "memory.max")
    total: int = psutil.virtual_memory().total
    return total if limit is None else min(total, limit)


def _cgroup_headroom(cgroup: Path) -> int:
    limit, used = _read_number(cgroup / "memory.max"), _read_number(cgroup / "memory.current")
    if limit is None or used is None:
        total: int = psutil.virtual_memory().total
        return total
    return limit - used + _reclaimable_bytes(cgroup / "memory.stat")


def _reclaimable_bytes(stat_file: Path) -> int:
    # The page cache counts as used, but the kernel reclaims it before memory runs out.
    try:
        fields = dict(line.split() for line in stat_file.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(fields.get("inactive_file", 0))


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
