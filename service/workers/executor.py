"""The interface of executors, which run tasks, and the choice of one."""

import sys
from typing import Literal, Protocol

from service.logs import LogStyle
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_executor import RayExecutor
from service.workers.processes import ProcessExecutor
from service.workers.task import Progress, Run, Task
from service.workers.threads import ThreadExecutor


class Executor(Protocol):
    """Runs tasks. Safe to use from any thread."""

    @property
    def is_busy(self) -> bool:
        """Whether any task is running."""

    def warm_up(self) -> None:
        """Get ready in the background, so that the first task starts quickly."""

    def start(self, task: Task, progress: Progress) -> Run:
        """Start a task.

        :param progress: Receives the task's reports.
        :raises InvalidRequestError: If the task cannot be sent to a worker.
        :raises TaskFailedError: If no worker can be started.
        :raises TaskDrainedError: If the server ends before a worker is ready.
        """

    def drain(self) -> None:
        """Start no more tasks; those that wait for a worker are refused."""

    def close(self) -> None:
        """Kill the running tasks if possible."""


def make_executor(
    kind: Literal["auto", "thread", "process", "ray"],
    log_style: LogStyle,
    ray_options: RayOptions = RayOptions(),  # noqa: B008  # it never changes
) -> Executor:
    """Make an executor of the given kind.

    :param kind: ``"auto"`` means processes on Linux and threads elsewhere.
    :param log_style: How worker processes write their logs.
    :param ray_options: Which cluster ``"ray"`` uses, and how.
    """
    if kind == "ray":
        return RayExecutor(log_style, ray_options)
    if kind == "thread" or (kind == "auto" and sys.platform != "linux"):
        return ThreadExecutor()
    return ProcessExecutor(log_style)
