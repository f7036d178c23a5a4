"""Short tasks whose callers wait for them: a few at a time, a few more waiting, and none for longer than a limit."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from service.errors import (
    DrainingError,
    InvalidRequestError,
    QueueFullError,
    ServiceError,
    TooLargeError,
    describe_error,
)
from service.schemas.jobs import EndedBy
from service.workers.executor import Executor
from service.workers.task import Task, TaskFailedError

_WATCH_SECONDS = 0.1


class ShortTasks:
    """Runs tasks for callers that wait. Safe to use from any thread.

    :param executor: Runs them; whoever made it closes it.
    :param limit_seconds: How long each may take.
    :param closing: Set when the server begins to shut down; what runs is ended then, and who waits is sent away.
    :param n_at_once: Tasks that run at the same time.
    :param n_waiting: Callers that wait for their turn; more are refused.
    """

    def __init__(
        self,
        executor: Executor,
        limit_seconds: float,
        closing: threading.Event,
        n_at_once: int = 2,
        n_waiting: int = 8,
    ) -> None:
        self._executor = executor
        self._limit_seconds = limit_seconds
        self._closing = closing
        self._n_at_once = n_at_once
        self._n_waiting = n_waiting
        # Guards everything below.
        self._changed = threading.Condition()
        self._n_present = 0
        self._n_running = 0

    def run(self, task: Task, remedy: str) -> bytes:
        """Run a task and return what it made.

        :param remedy: What the client can do about one that takes too long.
        :raises QueueFullError: If too many wait already, or those that run do not end.
        :raises TooLargeError: If it takes longer than the limit.
        :raises DrainingError: If the server is shutting down.
        :raises InvalidRequestError: If what others wrote, such as the environment, fails in it.
        :raises ServiceError: Whatever the task itself refuses.
        """
        with self._take_place():
            signal = _StopSignal()
            try:
                run = self._executor.start(task, signal)
                deadline = time.monotonic() + self._limit_seconds
                while not run.wait(_WATCH_SECONDS):
                    if self._closing.is_set() or time.monotonic() > deadline:
                        signal.stop()
                        run.kill()
                        raise self._make_refusal(remedy)
                return run.get_content()
            except ServiceError:
                raise
            except TaskFailedError as error:
                reason = str(error)
            except BaseException as error:  # the task's boundary: whatever an environment throws ends its task alone
                reason = describe_error(error)
        raise InvalidRequestError(f"env_name '{task.env_name}' failed on this server: {reason}")

    def _make_refusal(self, remedy: str) -> ServiceError:
        if self._closing.is_set():
            return DrainingError("the server is shutting down; send the request again when it is back.")
        return TooLargeError(
            f"this takes longer than {self._limit_seconds:g} s, where GRPO_TASK_SECONDS allows no more; {remedy}"
        )

    @contextmanager
    def _take_place(self) -> Iterator[None]:
        with self._changed:
            if self._n_present >= self._n_at_once + self._n_waiting:
                raise QueueFullError(f"{self._n_present} such requests are being answered already; try again later.")
            self._n_present += 1
        try:
            self._wait_for_turn()
            try:
                yield
            finally:
                self._leave(running=True)
        finally:
            self._leave(running=False)

    def _wait_for_turn(self) -> None:
        deadline = time.monotonic() + self._limit_seconds
        with self._changed:
            while not self._closing.is_set():
                if self._n_running < self._n_at_once:
                    self._n_running += 1
                    return
                if time.monotonic() > deadline:
                    raise QueueFullError("those that came before take long; try again later.")
                self._changed.wait(_WATCH_SECONDS)  # nobody tells of the server's end
        raise self._make_refusal("")

    def _leave(self, running: bool) -> None:
        with self._changed:
            if running:
                self._n_running -= 1
            else:
                self._n_present -= 1
            self._changed.notify_all()


class _StopSignal:
    """Passes on that a task is to end; what else it tells is of no interest. See ``Progress``."""

    def __init__(self) -> None:
        # Guards the two below.
        self._lock = threading.Lock()
        self._is_stopped = False
        self._stop: Callable[[], None] = lambda: None

    def attach(self, stop: Callable[[], None]) -> None:
        """Take the function that ends the task."""
        with self._lock:
            self._stop = stop
            if self._is_stopped:
                stop()

    def stop(self) -> None:
        """End the task, if it listens."""
        with self._lock:
            self._is_stopped = True
            self._stop()

    def advance(self, current_timesteps: int) -> None:
        """Nobody counts."""

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Nobody asked."""

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Nobody asked."""

    def conclude(self, ended_by: EndedBy) -> None:
        """Nobody asked."""
