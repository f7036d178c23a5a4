"""Where tasks such as a job's training run: in a thread of the server, or in a process of its own."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from contextlib import suppress
from contextvars import copy_context
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, Protocol

import gymnasium as gym

from service.context import JOB_ID, REQUEST_ID
from service.errors import ConflictError, InvalidRequestError, ServiceError, TooLargeError, printable
from service.logs import LogStyle
from service.workers.task import Progress, Task
from service.workers.worker import (
    CONCLUSION,
    EVALUATION,
    EXIT_STATUS,
    FAILURE,
    FORK,
    KILL,
    PROGRESS,
    REFUSAL,
    REQUEST,
    RESULT,
)

_CLOSE_SECONDS = 1.0
_THREAD_NICENESS = 10
_LOG_STYLE = LogStyle()


class TaskFailedError(Exception):
    """A task failed; the message is fit for a client as it is."""


_LOST = (
    "the worker process was lost together with the one that starts workers; the server's log may say why. Send the "
    "request again."
)


# What a task in a process may refuse with, which tells the server the status alone.
_REFUSALS: dict[int, type[ServiceError]] = {error.status_code: error for error in (ConflictError, TooLargeError)}


class Run(Protocol):
    """One task under way.

    :param can_kill: Whether it can be ended when it hangs.
    """

    can_kill: bool

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for its end, not for ever; return whether it has ended."""

    def get_content(self) -> bytes:
        """Return what was made, once it has ended.

        :raises Exception: What the task raised.
        """

    def kill(self) -> None:
        """End it without a result, if that is possible."""


class Executor(Protocol):
    """Runs tasks."""

    def warm_up(self) -> None:
        """Get ready, so that the first job starts at once."""

    def check(self, task: Task) -> list[str]:
        """Refuse a task that cannot be run here.

        :return: What the client should know of how it will be run.
        :raises InvalidRequestError: With the remedy.
        """

    def start(self, task: Task, progress: Progress) -> Run:
        """Start a task.

        :param progress: Told about it as it goes.
        """

    def close(self) -> None:
        """Kill what still runs, if that is possible."""


class ThreadExecutor:
    """Runs tasks in threads of the server: nothing to set up, but jobs and answers share one interpreter lock."""

    def warm_up(self) -> None:
        """Nothing to get ready."""

    def check(self, task: Task) -> list[str]:
        """Every task can be run here."""
        return []

    def start(self, task: Task, progress: Progress) -> Run:
        """See ``Executor``."""
        return _ThreadRun(task, progress)

    def close(self) -> None:
        """A thread cannot be killed."""


class _ThreadRun:
    can_kill = False

    def __init__(self, task: Task, progress: Progress) -> None:
        self._content: futures.Future[bytes] = futures.Future()
        # A daemon, for whoever waits gives up on it when it hangs.
        # In the context of whoever starts it, so that the log says which job wrote a line.
        run = copy_context().run
        threading.Thread(target=run, args=(self._train, task, progress), name="grpo-training", daemon=True).start()

    def _train(self, task: Task, progress: Progress) -> None:
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
        raise NotImplementedError("a thread cannot be killed")


def _let_requests_go_first() -> None:
    """Make the calling thread give way to those that answer requests; on Linux, niceness is each thread's own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _THREAD_NICENESS)


class ProcessExecutor:
    """Runs every task in a process of its own, forked from one that has imported everything; see ``worker``.

    A crash or a hang ends with its process, and the server's answers share no interpreter lock with training. The
    environment's registration and the reward functions are sent by reference: a worker has to be able to import them.

    :param log_style: How workers write their logs.
    """

    def __init__(self, log_style: LogStyle = _LOG_STYLE) -> None:
        self._log_style = log_style
        # Guards the template's start and end.
        self._lock = threading.Lock()
        self._template: _Template | None = None

    def warm_up(self) -> None:
        """See ``Executor``; the imports go on in the background."""
        self._get_template()

    def check(self, task: Task) -> list[str]:
        """See ``Executor``."""
        try:
            _pack(task)
        except InvalidRequestError as error:
            remedy = "or start the server with GRPO_EXECUTOR=auto."
            raise InvalidRequestError(f"{error.detail.removesuffix('.')}, {remedy}") from error
        return []

    def start(self, task: Task, progress: Progress) -> Run:
        """See ``Executor``."""
        return _ProcessRun(self._get_template(), task, progress)

    def _get_template(self) -> _Template:
        with self._lock:
            if self._template is not None and not self._template.is_alive:  # the kernel may have killed it
                self._template.close()
                self._template = None
            self._template = self._template or _Template(self._log_style)
            return self._template

    def close(self) -> None:
        """See ``Executor``."""
        with self._lock:
            if self._template is not None:
                self._template.close()
                self._template = None


class MixedExecutor:
    """Runs in processes what a worker can import, and the rest in threads.

    :param log_style: How workers write their logs.
    """

    def __init__(self, log_style: LogStyle = _LOG_STYLE) -> None:
        self._processes, self._threads = ProcessExecutor(log_style), ThreadExecutor()

    def warm_up(self) -> None:
        """See ``Executor``."""
        self._processes.warm_up()

    def check(self, task: Task) -> list[str]:
        """See ``Executor``."""
        try:
            _pack(task)
        except InvalidRequestError as error:
            return [f"the job trains in a thread of the server, which is slower beside other jobs: {error.detail}"]
        return []

    def start(self, task: Task, progress: Progress) -> Run:
        """See ``Executor``."""
        executor = self._threads if self.check(task) else self._processes
        return executor.start(task, progress)

    def close(self) -> None:
        """See ``Executor``."""
        self._processes.close()


def make_executor(kind: Literal["auto", "thread", "process"], log_style: LogStyle = _LOG_STYLE) -> Executor:
    """Make the executor that a setting names.

    :param kind: ``"auto"``: processes on Linux, but threads for what they cannot import; threads elsewhere.
    :param log_style: How worker processes write their logs.
    """
    if kind == "thread" or (kind == "auto" and sys.platform != "linux"):
        return ThreadExecutor()
    return ProcessExecutor(log_style) if kind == "process" else MixedExecutor(log_style)


class _Template:
    """The process that workers are forked from, as the server sees it."""

    def __init__(self, log_style: LogStyle) -> None:
        self._numbers = itertools.count()
        self._control, theirs = socket.socketpair()
        with theirs:
            # The template finds modules where the server does, wherever it was started.
            program = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from service.workers.worker import serve_template; "
                f"serve_template({theirs.fileno()}, *{tuple(log_style)!r})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # An interrupt from the keyboard is the server's to handle. Not a session of its own: Linux shares cores
                # between sessions first (sched_autogroup), and the workers' niceness would count for nothing.
                process_group=0,
            )

    @property
    def is_alive(self) -> bool:
        """Whether it can start workers."""
        return self._process.poll() is None

    def fork(self, socket_fd: int, status_fd: int) -> int:
        """Start a worker on its end of a socket; return its number.

        :raises OSError: If the template is gone.
        """
        number = next(self._numbers)
        socket.send_fds(self._control, [REQUEST.pack(FORK, number)], [socket_fd, status_fd])
        return number

    def kill(self, number: int) -> None:
        """Kill a worker, if it lives.

        :raises OSError: If the template is gone.
        """
        self._control.sendall(REQUEST.pack(KILL, number))

    def close(self) -> None:
        """Kill every worker and the template."""
        self._control.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:  # it is still importing, and has no workers yet
            self._process.kill()
            self._process.wait()


class _ProcessRun:
    can_kill = True

    def __init__(self, template: _Template, task: Task, progress: Progress) -> None:
        self._template, self._progress = template, progress
        self._outcome: bytes | TaskFailedError | ServiceError | None = None
        # Guards the connection's end, which a stop may come upon, and the flag.
        self._lock = threading.Lock()
        self._was_told_to_stop = False
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        status_fd, status_writer = os.pipe()
        self._status_fds = [status_fd]  # none once the template is gone
        try:
            with theirs:
                self._number = template.fork(theirs.fileno(), status_writer)
            self._connection.send_bytes(_pack(task))
        except OSError as error:
            self._close()
            raise TaskFailedError(_LOST) from error
        finally:
            os.close(status_writer)
        progress.attach(self._stop)

    def wait(self, timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        while self._outcome is None:
            # The status counts as well, for processes that the environment forked may hold the connection open.
            ready = wait([self._connection, *self._status_fds], max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            if self._connection in ready:
                self._receive()
            else:
                self._read_status()
        return True

    def get_content(self) -> bytes:
        assert self._outcome is not None
        self._close()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def kill(self) -> None:
        try:
            self._template.kill(self._number)
        except OSError:  # then at least the worker hears that nobody waits for it
            self._outcome = TaskFailedError(_LOST)

    def _receive(self) -> None:
        try:
            kind, value = json.loads(self._connection.recv_bytes())
            content = self._connection.recv_bytes() if kind == RESULT else None
        except (EOFError, OSError):
            self._read_status()
            self._outcome = self._outcome or TaskFailedError(_LOST)
            return
        if kind == PROGRESS:
            for timesteps, metrics in value:
                self._progress.advance(timesteps)
                self._progress.publish_metrics(metrics)
        elif kind == EVALUATION:
            self._progress.publish_evaluation(value)
        elif kind == CONCLUSION:
            self._progress.conclude(value)
        if kind == REFUSAL:
            status_code, detail = value
            self._outcome = _REFUSALS.get(status_code, InvalidRequestError)(detail)
        else:
            self._outcome = TaskFailedError(value) if kind == FAILURE else content

    def _read_status(self) -> None:
        """Wait for the template's word on what ended the worker; without it if the template is gone."""
        packed = os.read(self._status_fds[0], EXIT_STATUS.size) if self._status_fds else b""
        if packed:
            self._outcome = TaskFailedError(_describe_death(*EXIT_STATUS.unpack(packed)))
        else:
            self._close_status()

    def _stop(self) -> None:
        with self._lock:
            if self._was_told_to_stop:  # a worker that hangs reads nothing, and what it is sent would pile up
                return
            self._was_told_to_stop = True
            with suppress(OSError):  # it has ended, which is what was wanted
                self._connection.send_bytes(b"stop")

    def _close(self) -> None:
        with self._lock:
            self._connection.close()
        self._close_status()

    def _close_status(self) -> None:
        while self._status_fds:
            os.close(self._status_fds.pop())


def _describe_death(status: int) -> str:
    """Say what ended a worker.

    :param status: Its exit status, or minus the number of a signal.
    """
    if status == -signal.SIGKILL:
        return (
            "the worker process was killed (SIGKILL), as systems do when memory runs out; lower n_envs, n_steps "
            "or net_arch, or give the server more memory."
        )
    how = f"was ended by signal {_name_signal(-status)}" if status < 0 else f"exited with status {status}"
    return (
        f"the worker process {how} in the middle of its work; the environment, the reward function or a library of "
        "theirs crashed it, and the server's log may say where."
    )


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


class _ReferencePickler(pickle.Pickler):
    """Pickles what a worker can import; a worker's ``__main__`` is not the server's."""

    def reducer_override(self, value: Any) -> Any:
        """Refuse what lives in the start script."""
        if getattr(value, "__module__", None) == "__main__":
            raise pickle.PicklingError("it is defined in the script that was started")
        return NotImplemented


def _pack(task: Task) -> bytes:
    """Pickle a task together with the registration of its environment and the names that its log lines bear.

    :raises InvalidRequestError: If a worker could not import them.
    """
    spec = gym.registry[task.env_name]
    for described, value in {f"environment '{task.env_name}'": spec, **task.foreign}.items():
        _pickle(value, described)
    return _pickle((spec, task, REQUEST_ID.get(), JOB_ID.get()), "job")


def _pickle(value: object, described: str) -> bytes:
    buffer = io.BytesIO()
    try:
        _ReferencePickler(buffer).dump(value)
    except Exception as error:  # objects may say in code of their own how they are pickled
        raise InvalidRequestError(
            f"{described} cannot be brought into a worker process ({printable(str(error), 200)}); define it at the top "
            "level of a module that can be imported."
        ) from error
    return buffer.getvalue()
