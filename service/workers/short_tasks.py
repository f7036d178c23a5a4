"""Short tasks that requests wait for: only a few run or wait at a time, and each has a time limit."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.context import HAS_LEFT
from service.errors import (
    ClusterUnavailableError,
    DrainingError,
    InvalidRequestError,
    NotReadyError,
    QueueFullError,
    ServiceError,
    TooLargeError,
    describe_error,
)
from service.workers.executor import Executor
from service.workers.task import (
    ClusterLostError,
    IgnoredProgress,
    NodeLostError,
    Run,
    Task,
    TaskDrainedError,
    TaskFailedError,
    WorkerLostError,
    WorkerNotStartedError,
)

# How late it may be noticed that the client has left, the server ends or the time is over.
_WATCH_SECONDS = 0.1
_FIX_ENVIRONMENT = "the environment may hang while it is built, tried out or closed; fix it."
_MORE_MEMORY = "if that happens again, give the server more memory."
_DRAINING = "the server is shutting down; send the request again when it is back."


class ShortTasks:
    """Runs tasks whose callers wait for the answer. Safe to use from any thread.

    :param executor: Runs the tasks; it is not closed here.
    :param limit_seconds: Longest time that a task may run, and that a caller may wait for its turn.
    :param closing: Set when the server begins to shut down: tasks are then ended and waiting callers refused.
    :param max_running: Largest number of running tasks.
    :param max_waiting: Largest number of callers waiting for their turn; more are refused.
    """

    def __init__(
        self,
        executor: Executor,
        limit_seconds: float,
        closing: threading.Event,
        *,
        max_running: int = 2,
        max_waiting: int = 8,
    ) -> None:
        self._executor = executor
        self._limit_seconds = limit_seconds
        self._closing = closing
        self._max_running = max_running
        self._max_waiting = max_waiting
        # Guards everything below.
        self._changed = threading.Condition()
        # Threads that wait for an answer, and the ones among them whose task runs.
        self._callers: set[int] = set()
        self._running: set[int] = set()

    def run(self, task: Task, remedy: str = _FIX_ENVIRONMENT, memory_remedy: str = _MORE_MEMORY) -> bytes:
        """Run a task and return what it made.

        :param remedy: What the client can do if the task takes too long.
        :param memory_remedy: What helps if memory runs out.
        :raises QueueFullError: If too many callers wait already, no task ends in time, or the caller's client leaves.
        :raises TooLargeError: If the task takes longer than the limit.
        :raises DrainingError: If the server is shutting down.
        :raises ClusterUnavailableError: If no machine can be reached that would run it.
        :raises NotReadyError: If this machine starts no process for it.
        :raises InvalidRequestError: If foreign code fails in it, such as the environment's.
        :raises ServiceError: Whatever the task itself refuses.
        """
        with self._wait_in_line():
            signal = _StopSignal()
            try:
                run = self._executor.start(task, signal)
                try:
                    self._wait_for(run, signal, remedy)
                except BaseException:  # or its worker would go on, though its answer is no longer wanted
                    run.kill()
                    raise
                return run.get_content()
            except ServiceError:
                raise
            except TaskDrainedError as error:
                raise DrainingError(_DRAINING) from error
            except (ClusterLostError, NodeLostError) as error:
                raise ClusterUnavailableError(f"{error} Try again later.") from error
            except WorkerNotStartedError as error:
                raise NotReadyError(str(error)) from error
            except WorkerLostError as error:
                reason = error.explain(memory_remedy)
            except TaskFailedError as error:
                reason = str(error)
            except BaseException as error:  # the task's boundary: whatever an environment raises ends only its task
                reason = describe_error(error)
        culprit = "this" if task.env_name is None else f"env_name '{task.env_name}'"
        raise InvalidRequestError(f"{culprit} failed on this server: {reason}")

    def _wait_for(self, run: Run, signal: "_StopSignal", remedy: str) -> None:
        """Wait for the end of a task, see ``run``."""
        deadline, has_left = time.monotonic() + self._limit_seconds, HAS_LEFT.get()
        while not run.wait(_WATCH_SECONDS):
            # If no other task waits, it goes on: its answer is kept for the next request.
            if has_left() and self._give_way():
                signal.stop()
                raise QueueFullError("the client has left, and others wait for their turn.")
            if self._closing.is_set() or time.monotonic() > deadline:
                signal.stop()
                raise self._make_refusal(remedy)

    def _give_way(self) -> bool:
        """Leave at once if another caller waits for this one's place; return whether one does."""
        with self._changed:
            is_needed = len(self._callers) > len(self._running) == self._max_running
            if is_needed:
                self._leave()
            return is_needed

    def _make_refusal(self, remedy: str) -> ServiceError:
        if self._closing.is_set():
            return DrainingError(_DRAINING)
        return TooLargeError(
            f"this takes longer than {self._limit_seconds:g} s, the limit that GRPO_TASK_SECONDS sets; {remedy}"
        )

    @contextmanager
    def _wait_in_line(self) -> Iterator[None]:
        with self._changed:
            if len(self._callers) >= self._max_running + self._max_waiting:
                raise QueueFullError(f"{len(self._callers)} requests like this are being answered; try again later.")
            self._callers.add(threading.get_ident())
        try:
            self._wait_for_turn()
            yield
        finally:
            self._leave()

    def _wait_for_turn(self) -> None:
        deadline, has_left = time.monotonic() + self._limit_seconds, HAS_LEFT.get()
        with self._changed:
            while not self._closing.is_set():
                if has_left():
                    raise QueueFullError("the client has left before its turn.")
                if len(self._running) < self._max_running:
                    self._running.add(threading.get_ident())
                    return
                if time.monotonic() > deadline:
                    raise QueueFullError("earlier requests like this take long; try again later.")
                self._changed.wait(_WATCH_SECONDS)  # with a limit, since setting `closing` wakes no thread
        raise self._make_refusal("")

    def _leave(self) -> None:
        with self._changed:
            self._callers.discard(threading.get_ident())
            self._running.discard(threading.get_ident())
            self._changed.notify_all()


class _StopSignal(IgnoredProgress):
    """Can stop its task, and ignores everything that the task reports."""

    def __init__(self) -> None:
        # Guards the two below.
        self._lock = threading.Lock()
        self._is_stopped = False
        self._stop: Callable[[], None] = lambda: None

    def attach_stop(self, stop: Callable[[], None]) -> None:
        """Take the function that stops the task."""
        with self._lock:
            self._stop = stop
            if self._is_stopped:
                stop()

    def stop(self) -> None:
        """Ask the task to stop."""
        with self._lock:
            self._is_stopped = True
            self._stop()
