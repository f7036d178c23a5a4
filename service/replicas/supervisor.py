"""Starts several replicas, starts those again that crash, and ends them together."""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from types import FrameType

from grpo_core.process import end_with_parent
from service.restart_pause import RestartPause
from service.workers.end_signals import list_end_signals

logger = logging.getLogger("grpo.service")

# How late a replica that died is noticed, which is little beside what another one takes to start.
_LOOK_SECONDS = 0.05
# From a first start with this status the settings are known to be invalid.
_INVALID = 2


class Supervisor:
    """Runs replicas as processes of their own until a signal ends them.

    :param make_command: Returns the command of the replica with a number, from 0.
    :param n_replicas: Number of replicas, at least 1.
    """

    def __init__(self, make_command: Callable[[int], Sequence[str]], n_replicas: int) -> None:
        self._make_command = make_command
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        # When those that have crashed are started again, and when each was started, on the monotonic clock.
        self._due: dict[int, float] = dict.fromkeys(range(n_replicas), 0.0)
        self._started = dict.fromkeys(range(n_replicas), 0.0)
        # Of those that have crashed.
        self._pauses: dict[int, RestartPause] = {}
        self._is_ending = False
        self._status = 0

    def run(self) -> int:
        """Run the replicas; call it in the main thread.

        :return: The exit status: 0, 1 if a replica did not end well, or 2 if their settings are invalid.
        """
        previous = {number: signal.signal(number, self._end) for number in list_end_signals()}
        try:
            while self._running or (self._due and not self._is_ending):
                self._start_due()
                time.sleep(_LOOK_SECONDS)
                self._look()
        finally:
            self._end(signal.SIGTERM, None)  # nothing runs by now, unless an error ended the loop
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._status

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._is_ending = True
        for replica in list(self._running.values()):
            replica.send_signal(number)

    def _start_due(self) -> None:
        for number, moment in list(self._due.items()):
            if self._is_ending or time.monotonic() < moment:
                continue
            self._started[number] = time.monotonic()
            try:
                # In a session of its own: Ctrl-C in a terminal would reach it twice, which ends it at once.
                replica = subprocess.Popen(
                    self._make_command(number), start_new_session=True, preexec_fn=_end_with_parent
                )
            except OSError as error:  # too many processes, or too little memory
                logger.warning("replica %d cannot be started: %s", number, error)
                self._wait(number)
                continue
            self._running[number] = replica
            del self._due[number]
            if self._is_ending:  # since just now
                replica.terminate()

    def _wait(self, number: int) -> None:
        now = time.monotonic()
        pause = self._pauses.setdefault(number, RestartPause())
        self._due[number] = now + pause.choose(now - self._started[number])

    def _look(self) -> None:
        for number, replica in list(self._running.items()):
            status = replica.poll()
            if status is None:
                continue
            del self._running[number]
            # After the first start, a file may be in the middle of a change.
            is_invalid = status == _INVALID and number not in self._pauses
            if self._is_ending or is_invalid:
                self._status = max(self._status, _INVALID if is_invalid else int(status != 0))
                if not self._is_ending:
                    self._end(signal.SIGTERM, None)
            else:
                logger.warning("replica %d ended with status %d and starts again", number, status)
                self._wait(number)


def _end_with_parent() -> None:
    """Have the kernel end a replica whose supervisor was killed; the next one's would share their port with it."""
    end_with_parent(signal.SIGTERM)
