"""Where tasks run: what every executor can do, and which one the settings ask for."""

import sys
from typing import Literal, Protocol

from service.logs import LogStyle
from service.workers.processes import ProcessExecutor
from service.workers.task import Progress, Run, Task
from service.workers.threads import ThreadExecutor


class Executor(Protocol):
    """Runs tasks. Safe to use from any thread."""

    @property
    def is_busy(self) -> bool:
        """Whether a task still runs."""

    def warm_up(self) -> None:
        """Get ready in the background, so that the first task starts at once."""

    def start(self, task: Task, progress: Progress) -> Run:
        """Start a task.

        :param progress: Told about it as it goes.
        :raises InvalidRequestError: If the task cannot be brought to where it would run.
        :raises TaskFailedError: If it could not be started.
        """

    def close(self) -> None:
        """Kill what still runs, where that is possible."""


def make_executor(kind: Literal["auto", "thread", "process"], log_style: LogStyle) -> Executor:
    """Make the executor that a setting names.

    :param kind: ``"auto"``: processes on Linux, threads elsewhere.
    :param log_style: How worker processes write their logs.
    """
    if kind == "thread" or (kind == "auto" and sys.platform != "linux"):
        return ThreadExecutor()
    return ProcessExecutor(log_style)
