"""Free memory respects the control group's limits, not only the machine's."""

from pathlib import Path

import psutil
import pytest

from service.monitoring.memory import get_available_bytes, get_total_bytes

MIB = 2**20


def write_cgroup(folder: Path, limit: str, used: str | None = None, stat: str | None = None) -> Path:
    for name, text in (("memory.max", limit), ("memory.current", used), ("memory.stat", stat)):
        if text is not None:
            (folder / name).write_text(f"{text}\n")
    return folder


def test_without_a_control_group_the_machine_counts(tmp_path: Path) -> None:
    assert get_total_bytes(tmp_path) == psutil.virtual_memory().total
    assert 0 < get_available_bytes(tmp_path) <= psutil.virtual_memory().total


def test_an_unlimited_control_group_is_like_none(tmp_path: Path) -> None:
    cgroup = write_cgroup(tmp_path, "max", str(5 * MIB))
    assert get_total_bytes(cgroup) == psutil.virtual_memory().total
    assert get_available_bytes(cgroup) > 5 * MIB


def test_a_limit_below_the_machines_memory_counts(tmp_path: Path) -> None:
    cgroup = write_cgroup(tmp_path, str(64 * MIB), str(24 * MIB))
    assert get_total_bytes(cgroup) == 64 * MIB
    assert get_available_bytes(cgroup) == 40 * MIB


def test_page_cache_that_can_be_dropped_counts_as_available(tmp_path: Path) -> None:
    stat = f"anon {10 * MIB}\ninactive_file {8 * MIB}\nactive_file {3 * MIB}"
    cgroup = write_cgroup(tmp_path, str(64 * MIB), str(24 * MIB), stat)
    assert get_available_bytes(cgroup) == 48 * MIB


@pytest.mark.parametrize("stat", ["", "no two words here", "anon 5"])
def test_an_unreadable_statistic_leaves_the_page_cache_out(tmp_path: Path, stat: str) -> None:
    cgroup = write_cgroup(tmp_path, str(64 * MIB), str(24 * MIB), stat)
    assert get_available_bytes(cgroup) == 40 * MIB


def test_a_limit_above_the_machines_memory_changes_nothing(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().total
    cgroup = write_cgroup(tmp_path, str(4 * machine), "0")
    assert get_total_bytes(cgroup) == machine
    assert get_available_bytes(cgroup) <= machine


def test_this_machine_has_some_memory() -> None:
    assert 0 < get_available_bytes() <= get_total_bytes()
