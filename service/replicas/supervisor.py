"""Starts several replicas, starts those again that crash, and ends them together."""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from types import FrameType

from service.workers.processes import END_SIGNALS

logger = logging.getLogger("grpo.service")

_LOOK_SECONDS = 0.05
# So that a replica that cannot start does not take a core.
_RESTART_SECONDS = 1.0
# A start with this status can never succeed: its settings are invalid.
_NEVER = 2


class Supervisor:
    """Runs replicas as processes of their own until a signal ends them.

    :param make_command: Returns the command of the replica with a number, from 0.
    :param n_replicas: Number of replicas, at least 1.
    """

    def __init__(self, make_command: Callable[[int], Sequence[str]], n_replicas: int) -> None:
        self._make_command = make_command
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        # When those that have crashed are started again, on the monotonic clock.
        self._due: dict[int, float] = dict.fromkeys(range(n_replicas), 0.0)
        self._is_ending = False
        self._status = 0

    def run(self) -> int:
        """Run the replicas; call it in the main thread.

        :return: The exit status: 0, 1 if a replica did not end well, or 2 if their settings are invalid.
        """
        previous = {number: signal.signal(number, self._end) for number in END_SIGNALS}
        try:
            while self._running or (self._due and not self._is_ending):
                self._start_due()
                time.sleep(_LOOK_SECONDS)
                self._look()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._status

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._is_ending = True
        for replica in list(self._running.values()):
            replica.send_signal(number)

    def _start_due(self) -> None:
        for number, moment in list(self._due.items()):
            if not self._is_ending and time.monotonic() >= moment:
                # In a session of its own: Ctrl-C in a terminal would reach it twice, which ends it at once.
                self._running[number] = subprocess.Popen(self._make_command(number), start_new_session=True)
                del self._due[number]
                if self._is_ending:  # since just now
                    self._running[number].terminate()

    def _look(self) -> None:
        for number, replica in list(self._running.items()):
            status = replica.poll()
            if status is None:
                continue
            del self._running[number]
            if self._is_ending or status == _NEVER:
                self._status = max(self._status, _NEVER if status == _NEVER else int(status != 0))
                if not self._is_ending:
                    self._end(signal.SIGTERM, None)
            else:
                logger.warning("replica %d ended with status %d and starts again", number, status)
                self._due[number] = time.monotonic() + _RESTART_SECONDS
