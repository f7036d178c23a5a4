"""Tasks in threads of the server: nothing to set up, but jobs and answers share one interpreter lock."""

import os
import sys
import threading
from concurrent import futures
from contextvars import copy_context
from weakref import WeakSet

from service.workers.task import Progress, Task

_NICENESS = 10


class ThreadExecutor:
    """Runs every task in a thread of its own."""

    def __init__(self) -> None:
        # Guards the runs.
        self._lock = threading.Lock()
        self._runs: WeakSet[_ThreadRun] = WeakSet()

    @property
    def is_busy(self) -> bool:
        """Whether a task still runs, given up on or not."""
        with self._lock:
            return any(not run.wait(0.0) for run in self._runs)

    def warm_up(self) -> None:
        """Do nothing: there is nothing to get ready."""

    def start(self, task: Task, progress: Progress) -> "_ThreadRun":
        """Start a task; see ``Executor``."""
        run = _ThreadRun(task, progress)
        with self._lock:
            self._runs.add(run)
        return run

    def close(self) -> None:
        """Do nothing: a thread cannot be killed."""


class _ThreadRun:
    def __init__(self, task: Task, progress: Progress) -> None:
        self._content: futures.Future[bytes] = futures.Future()
        # In the context of whoever starts it, so that the log says which job wrote a line. A daemon, since Python would
        # wait forever for one that hangs.
        arguments = (self._run, task, progress)
        threading.Thread(target=copy_context().run, args=arguments, name="grpo-task", daemon=True).start()

    def _run(self, task: Task, progress: Progress) -> None:
        _let_requests_go_first()
        try:
            self._content.set_result(task.run(progress))
        except BaseException as error:  # raised anew by get_content
            self._content.set_exception(error)

    def wait(self, timeout_seconds: float) -> bool:
        return bool(futures.wait([self._content], timeout_seconds).done)

    def get_content(self) -> bytes:
        return self._content.result()

    def kill(self) -> None:
        """Leave it behind."""


def _let_requests_go_first() -> None:
    """Make the calling thread give way to those that answer requests; on Linux, niceness is each thread's own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
