"""Replicas run together: one that crashes starts again, and a signal ends all."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from service.replicas.supervisor import Supervisor
from tests.support import wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it sends signals")

# Counts its starts; the first one crashes.
CRASHING = 'echo >> "$1"; [ "$(wc -l < "$1")" -gt 1 ] || exit 7; while :; do sleep 0.02; done'
# Ends well at a signal.
LASTING = 'trap "exit 0" TERM; echo >> "$1"; while :; do sleep 0.02; done'


def run(scripts: list[str], folder: Path, n_starts: list[int]) -> int:
    """Run scripts until each has started so many times; then end them, and return the status."""
    files = [folder / str(number) for number in range(len(scripts))]

    def end_when_started() -> None:
        wait_until(lambda: all(f.exists() and len(f.read_text()) >= n for f, n in zip(files, n_starts, strict=True)))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_when_started, daemon=True).start()
    supervisor = Supervisor(lambda number: ["sh", "-c", scripts[number], "sh", str(files[number])], len(scripts))
    return supervisor.run()


def test_a_signal_ends_them_all(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert run([LASTING, LASTING], tmp_path, [1, 1]) == 0
    assert signal.getsignal(signal.SIGTERM) == handler


def test_one_that_crashes_starts_again_and_the_others_go_on(tmp_path: Path) -> None:
    # The second start of the first does not end well: the signal kills it.
    assert run([CRASHING, LASTING], tmp_path, [2, 1]) == 1
    assert (tmp_path / "1").read_text() == "\n"


def test_invalid_settings_end_them_all() -> None:
    commands = [["sh", "-c", "exit 2"], ["sh", "-c", "while :; do sleep 0.02; done"]]
    assert Supervisor(commands.__getitem__, 2).run() == 2
