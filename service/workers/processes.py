"""Tasks in worker processes, forked by Python's forkserver from one process that has imported everything.

Importing torch takes seconds and a few hundred MB. The forkserver does it once (``service.workers.preload``), so that
a worker starts in about 10 ms and shares the memory. ``service.workers.forking`` starts the forkserver, and
``service.workers.worker`` is the code that runs in a worker.
"""

import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe, forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from weakref import WeakSet

import cloudpickle
import gymnasium as gym

from grpo_core.checkpoints.facts import MAX_JOB_BYTES
from grpo_core.process import describe_exit, read_delay
from service.context import JOB_ID, REQUEST_ID
from service.errors import InvalidRequestError, describe_error, printable
from service.logs import LogStyle
from service.workers.forking import describe_start, fork, start_forkserver
from service.workers.messages import (
    BROKEN_STATUS,
    CLOSED_STATUS,
    WITH_CONTENT,
    BrokenMessageError,
    Outcome,
    deliver,
    read_message,
    read_outcome,
)
from service.workers.task import (
    KILLED,
    N_STOPS,
    Progress,
    Task,
    TaskDrainedError,
    TaskFailedError,
    WorkerLostError,
    WorkerNotStartedError,
)

logger = logging.getLogger("grpo.service")

# How late the end of the server may end the wait for a worker.
_WATCH_SECONDS = 0.1
# Longest wait for a killed process to end.
_KILL_SECONDS = 1.0
# A forkserver that was just killed may still be taken for alive.
_MAX_FORKS, _FORK_PAUSE_SECONDS = 2, 0.2
_STARTER_ENDED = "the process that starts workers has ended"
_LOST = (
    f"the worker process was lost because {_STARTER_ENDED}; the server's log may say why. "
    "Resume the job, or send the request again."
)
_GARBLED = (
    "the worker process sent bytes that are not a worker's message; the environment, the reward function or one of "
    "their libraries writes to file descriptors that are not its own."
)
_BROKEN = (
    "the worker process reported something that is not allowed ({}); look for numbers in the environment's rewards or "
    "info, or in the metrics, that are not finite or far too large."
)
# Reading and taking such bytes may raise these.
_GARBAGE_ERRORS = (ValueError, TypeError, OverflowError, RecursionError, MemoryError)
# Any four letters make a longer length: text that is written to the connection is not waited for.
_MAX_MESSAGE_BYTES, _MAX_CONTENT_BYTES = 2**24, MAX_JOB_BYTES
# Takes a message of a worker: its kind, its value, and the bytes that followed.
Receiver = Callable[[str, Any, bytes], None]


class ProcessExecutor:
    """Runs every task in a process of its own, so that a crash or a hang harms only this task.

    :param log_style: How workers write their logs.
    """

    def __init__(self, log_style: LogStyle) -> None:
        self._log_style = log_style
        # Guards the two below.
        self._lock = threading.Lock()
        self._runs: WeakSet[ProcessRun] = WeakSet()
        self._is_closed = False
        self._draining = threading.Event()

    @property
    def is_busy(self) -> bool:
        """Whether any task is running."""
        with self._lock:
            return any(run.is_open for run in self._runs)

    def warm_up(self) -> None:
        """Start the forkserver, which imports in the background."""
        start_forkserver()

    def start(self, task: Task, progress: Progress) -> "ProcessRun":
        """Start a task in a new process."""
        run = self.start_packed(pack(task), partial(deliver, progress))
        progress.attach_stop(run.stop)
        return run

    def start_packed(self, packed: bytes, receive: Receiver) -> "ProcessRun":
        """Start a task that ``pack`` has packed.

        :param receive: Takes the worker's messages but the last; called by ``ProcessRun.wait``.
        """
        run = ProcessRun(packed, self._log_style, receive, self._draining)
        with self._lock:
            self._runs.add(run)
            if self._is_closed:
                run.send_kill()
        return run

    def drain(self) -> None:
        """Start no more tasks; those that wait for the forkserver's imports are refused."""
        self._draining.set()

    def close(self) -> None:
        """Kill the running tasks; the forkserver ends with this process."""
        with self._lock:
            self._is_closed = True
            for run in self._runs:
                run.send_kill()


class ProcessRun:
    """A task in a process of its own.

    :param packed: The task, packed.
    :param receive: Takes the worker's messages but the last.
    :param draining: Set to end all waiting for workers.
    :raises WorkerNotStartedError: If no worker can be started.
    :raises TaskDrainedError: If ``draining`` is set before one is ready.
    """

    def __init__(self, packed: bytes, log_style: LogStyle, receive: Receiver, draining: threading.Event) -> None:
        self._receive_message = receive
        self._outcome: Outcome | None = None
        # Guards the two below, and closing: a stop or a kill may come at the same time.
        self._lock = threading.Lock()
        self._n_stops = 0
        self.is_open = False
        self._fds: tuple[int, ...] = ()
        self._pid: int | None = None
        for n_left in reversed(range(_MAX_FORKS)):
            try:
                self._start(draining)
                break
            except (OSError, EOFError) as error:
                logger.warning("a worker process could not be started", exc_info=True)
                self._close()
                if n_left == 0:
                    raise WorkerNotStartedError(_describe_failed_start(error)) from error
                draining.wait(_FORK_PAUSE_SECONDS)
        with suppress(OSError):  # the worker has already ended, and its status says how
            self._connection.send_bytes(pickle.dumps((log_style, REQUEST_ID.get(), JOB_ID.get(), packed)))
        # What may still be read. Both show that the worker has ended, and either may fail to: processes that the
        # environment started may hold the connection open, and the forkserver, which writes the status, may be gone.
        self._sources: list[Connection[Any, Any] | int] = [self._connection, self._status_fd]

    def _start(self, draining: threading.Event) -> None:
        """Have the forkserver fork the process.

        :raises TaskDrainedError: If it is not ready in time.
        :raises OSError: If the forkserver has ended, and so does EOFError; or if the system refuses, for example
            because too many files are open.
        """
        self._connection, theirs = Pipe()
        self.is_open = True
        with theirs:
            self._fds = fork(theirs)
        self._status_fd, server_fd = self._fds
        # This end of the pipe stays open while the server lives and the run lasts; the worker watches it.
        with open(server_fd, "wb", closefd=False) as pipe:
            pipe.write(describe_start())
        while not wait([self._status_fd], _WATCH_SECONDS):
            if draining.is_set():
                self._close()
                raise TaskDrainedError("the server ended before a worker process was ready.")
        self._pid = forkserver.read_signed(self._status_fd)

    @property
    def delay_seconds(self) -> float:
        """How long others have kept it from the processor so far; 0 where the system does not say."""
        return 0.0 if self._pid is None else read_delay(Path(f"/proc/{self._pid}/schedstat"))

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the task has ended, at most for a time; return whether it has."""
        deadline = time.monotonic() + timeout_seconds
        while self._outcome is None:
            ready = wait(self._sources, max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            if self._connection in ready:
                self._receive()
            else:
                self._read_status()
            if not self._sources:
                self._outcome = self._outcome or WorkerLostError(_LOST)
        return True

    def get_content(self) -> bytes:
        """Return what the ended task returned, or raise what it raised."""
        assert self._outcome is not None, "called after the end"
        self._close()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def kill(self) -> None:
        """End the process without a result."""
        self.send_kill()
        if self._status_fd in self._sources:
            wait([self._status_fd], _KILL_SECONDS)
        self._close()

    def send_kill(self) -> None:
        """Kill the process, and those that it has started, from any thread; ``wait`` then notices its end."""
        with self._lock:
            if not self.is_open or self._outcome is not None or self._pid is None:
                return
            # Once the forkserver has reported its end, the process id may belong to another process.
            if self._status_fd in self._sources and wait([self._status_fd], 0.0):
                return
            for kill in (os.kill, os.killpg):  # it may not have a group of its own yet
                with suppress(OSError):
                    kill(self._pid, signal.SIGKILL)

    def _kill_left(self) -> None:
        """Kill what the ended task has left running, which its environment should have ended."""
        if self._pid is None:
            return
        if wait([self._status_fd], 0.0):
            with suppress(ProcessLookupError):
                os.kill(self._pid, 0)
                return  # another process has its id, or the forkserver is gone, and the worker ends by itself
        with suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)

    def _receive(self) -> None:
        try:
            kind, value = read_message(self._connection.recv_bytes(_MAX_MESSAGE_BYTES))
            content = self._connection.recv_bytes(_MAX_CONTENT_BYTES) if kind in WITH_CONTENT else b""
        except (EOFError, OSError):
            if self._connection.readable:
                self._sources.remove(self._connection)
            else:  # a message is too long, and nothing can be read after it
                self._outcome = TaskFailedError(_GARBLED)
            return
        except BrokenMessageError as error:
            self._outcome = TaskFailedError(_BROKEN.format(error))
            return
        except _GARBAGE_ERRORS:
            self._outcome = TaskFailedError(_GARBLED)
            return
        try:
            self._outcome = read_outcome(kind, value, content)
            if self._outcome is None:
                self._receive_message(kind, value, content)
        except _GARBAGE_ERRORS:
            logger.warning("a message of a worker cannot be taken", exc_info=True)
            self._outcome = TaskFailedError(_GARBLED)

    def _read_status(self) -> None:
        """Read from the forkserver how the worker ended, or notice that the forkserver is gone."""
        try:
            self._outcome = WorkerLostError(_describe_death(forkserver.read_signed(self._status_fd)))
        except EOFError:
            self._sources.remove(self._status_fd)

    def stop(self) -> None:
        """Ask the task to stop, from any thread; a second time, to skip what would follow."""
        with self._lock:
            if self._n_stops == N_STOPS:  # a worker that hangs reads nothing, and more messages would fill the pipe
                return
            self._n_stops += 1
            with suppress(OSError):  # it has already ended
                self._connection.send_bytes(b"stop")

    def _close(self) -> None:
        with self._lock:
            if not self.is_open:
                return
            self._kill_left()
            self.is_open = False
            self._connection.close()
            for fd in self._fds:
                os.close(fd)
            self._fds = ()


def pack(task: Task) -> bytes:
    """Pickle a task together with the registration of its environment, if it has one.

    :raises InvalidRequestError: If they cannot be pickled.
    """
    spec = None if task.env_name is None else gym.registry[task.env_name]
    try:
        packed: bytes = cloudpickle.dumps((spec, task))
    except Exception as error:  # pickling may call foreign code
        culprit = "a reward function" if _can_pickle(spec) else f"the registration of env_name '{task.env_name}'"
        raise InvalidRequestError(
            f"{culprit} cannot be sent to a worker process ({printable(str(error), 200)}); remove what cannot be "
            "pickled, such as locks and open files, or define it at the top level of a module."
        ) from error
    return packed


def _can_pickle(value: object) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:  # pickling may call foreign code
        return False
    return True


def _describe_failed_start(error: OSError | EOFError) -> str:
    """Describe why no worker could be started."""
    is_starter_gone = isinstance(error, EOFError | ConnectionError)
    reason = _STARTER_ENDED if is_starter_gone else describe_error(error)
    return (
        f"no worker process could be started ({reason}); the server's log says more. Resume the job, or send the "
        "request again."
    )


def _describe_death(status: int) -> str:
    """Describe how a worker ended.

    :param status: Its exit status, or the negative number of the signal that killed it.
    """
    if status == -signal.SIGKILL:
        return f"{KILLED}."
    if status == CLOSED_STATUS:
        return (
            "the worker process lost its connection to the server; the environment, the reward function or one of "
            "their libraries closed file descriptors that are not its own."
        )
    if status == BROKEN_STATUS:
        return (
            "the worker process could not report to the server any more; the environment, the reward function or one "
            "of their libraries changed what Python's modules hold, such as json.dumps. The server's log says where."
        )
    return (
        f"the worker process {describe_exit(status)} during its work; the environment, the reward function or "
        "one of their libraries crashed it. The server's log may say where."
    )
