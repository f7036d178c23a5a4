"""Tasks in threads of the server: simple, but training and requests compete for one interpreter lock."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from contextvars import copy_context
from typing import Any, cast
from weakref import WeakSet

from service.workers.task import N_STOPS, Progress, Task

# Chosen, less than workers have: a thread that waits for a core may hold the interpreter lock, and requests need that.
# With two jobs on two busy cores, the median answer took 12 to 21 ms at niceness 0, and 9 to 13 ms at 10 and 15 alike.
_NICENESS = 10


class ThreadExecutor:
    """Runs every task in a thread of its own."""

    def __init__(self) -> None:
        # Guards the set below.
        self._lock = threading.Lock()
        self._runs: WeakSet[_ThreadRun] = WeakSet()

    @property
    def is_busy(self) -> bool:
        """Whether any task is running, abandoned ones included."""
        with self._lock:
            return any(not run.wait(0.0) for run in self._runs)

    def warm_up(self) -> None:
        """Do nothing: threads need no preparation."""

    def start(self, task: Task, progress: Progress) -> "_ThreadRun":
        """Start a task in a new thread."""
        run = _ThreadRun(task, progress)
        with self._lock:
            self._runs.add(run)
        return run

    def drain(self) -> None:
        """Do nothing: no thread is waited for."""

    def close(self) -> None:
        """Do nothing: a thread cannot be killed."""


class _ThreadRun:
    delay_seconds = 0.0

    def __init__(self, task: Task, progress: Progress) -> None:
        self._content: futures.Future[bytes] = futures.Future()
        self._reports = _Reports(progress)
        # In the caller's context, so that log lines carry the job's id. A daemon, since Python would wait forever for a
        # thread that hangs.
        arguments = (self._run, task, cast(Progress, self._reports))
        threading.Thread(target=copy_context().run, args=arguments, name="grpo-task", daemon=True).start()

    def _run(self, task: Task, progress: Progress) -> None:
        _let_requests_go_first()
        try:
            self._content.set_result(task.run(progress))
        except BaseException as error:  # raised again by get_content
            self._content.set_exception(error)

    def wait(self, timeout_seconds: float) -> bool:
        return bool(futures.wait([self._content], timeout_seconds).done)

    def get_content(self) -> bytes:
        return self._content.result()

    def kill(self) -> None:
        """Abandon the thread: what it still reports is dropped, since its job may go on with another one by then."""
        self._reports.drop()


class _Reports:
    """The ``Progress`` of a task in a thread, which passes its reports on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        # Guards the flag, so that a task is stopped either by whom it reports to or here.
        self._lock = threading.Lock()
        self._are_dropped = False

    def drop(self) -> None:
        with self._lock:
            self._are_dropped = True

    def attach_stop(self, stop: Callable[[], None]) -> None:
        with self._lock:
            if not self._are_dropped:
                self._progress.attach_stop(stop)
                return
        for _ in range(N_STOPS):
            stop()

    def __getattr__(self, name: str) -> Callable[..., None]:
        report: Callable[..., None] = getattr(self._progress, name)

        def pass_on(*arguments: Any) -> None:
            if not self._are_dropped:
                report(*arguments)

        return pass_on


def _let_requests_go_first() -> None:
    """Lower the priority of the calling thread; on Linux, each thread has its own niceness."""
    if sys.platform == "linux":
        thread_id = threading.get_native_id()
        # Only root may raise it again, and a server may have been started with a lower one.
        niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread_id))
        os.setpriority(os.PRIO_PROCESS, thread_id, niceness)
