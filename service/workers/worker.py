"""Run one task in a worker process, and report its progress to the server."""

import fcntl
import importlib
import json
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from service.context import JOB_ID, REQUEST_ID
from service.errors import ServiceError, describe_error
from service.logs import configure_logs
from service.workers.messages import BROKEN_STATUS, CLOSED_STATUS, Message

logger = logging.getLogger("grpo.service")

# When memory runs out, the kernel should kill a worker, not the server.
_OOM_SCORE = 500
_REPORT_SECONDS = 0.1
# Taken once, by the thread that ends the process: to another one it would look, half-way, as if it had no group to end.
_ENDING = threading.Lock()


def work(connection: "Connection[bytes, bytes]", server_fd: int) -> NoReturn:
    """Run the task that the server sends, and end the process.

    :param connection: Connection to the server.
    :param server_fd: File descriptor of a pipe whose other end only the server holds.
    """
    try:
        _run_task(connection, server_fd)
    except (OSError, EOFError):  # the server is gone, or the environment has closed the connection
        _end_all(CLOSED_STATUS)
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system would in a moment
    except BaseException:  # the environment has broken what reports to the server
        with suppress(Exception):
            logger.warning("a worker process cannot report to the server", exc_info=True)
        _end_all(BROKEN_STATUS)
    os._exit(0)  # without waiting for threads that an environment has left


def _run_task(connection: "Connection[bytes, bytes]", server_fd: int) -> None:
    # So that the processes which an environment starts can be ended with this one. No session, see the forkserver's.
    os.setpgid(0, 0)
    with suppress(OSError):  # the file exists only on Linux
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    received = connection.recv_bytes()
    # Not earlier: what the server first writes to the pipe would end the process as well.
    _end_with_server(server_fd)
    # Every worker starts with a copy of the forkserver's generators, and an environment may draw from them.
    np.random.seed()
    torch.seed()
    reporter = Reporter(connection)
    threading.Thread(target=reporter.listen, daemon=True).start()
    # The server made these bytes: nothing else can write to the unnamed socket.
    log_style, request_id, job_id, packed = pickle.loads(received)
    configure_logs(log_style)
    REQUEST_ID.set(request_id)
    JOB_ID.set(job_id)
    try:
        content = _run_packed(packed, reporter)
    except ServiceError as error:
        reporter.send(Message.REFUSAL, [error.status_code, error.detail])
    except BaseException as error:  # the task's boundary: whatever an environment raises ends only its task
        logger.warning("a task failed in its worker process", exc_info=True)
        reporter.send(Message.FAILURE, describe_error(error))
    else:
        reporter.send(Message.RESULT, None)
        connection.send_bytes(content)


def _run_packed(packed: bytes, reporter: "Reporter") -> bytes:
    try:
        spec, task = pickle.loads(packed)  # part of what the server sent, see above
        if spec is not None:
            _register(task.env_name, spec)
        content: bytes = task.run(reporter)
        return content
    finally:
        # What environments print, if they have left the stream; the server may kill this process as soon as it hears of
        # the end.
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()


def _end_with_server(server_fd: int) -> None:
    """Have the kernel end this process, and those it has started, when the server dies, whatever they are doing.

    A thread that waits for the server's end is not enough: native code may hold the interpreter's lock forever. When
    the pipe's last writer is gone, the kernel sends SIGIO, which by default ends a process.
    """
    if sys.platform == "linux":
        fcntl.fcntl(server_fd, fcntl.F_SETOWN, -os.getpid())  # negative: the group of that id
        fcntl.fcntl(server_fd, fcntl.F_SETFL, fcntl.fcntl(server_fd, fcntl.F_GETFL) | os.O_ASYNC)
        if wait([server_fd], 0.0):  # the server died before the signal was set up
            _end_all(CLOSED_STATUS)


def _end_all(status: int) -> NoReturn:
    """End this process, and those that its environment has started.

    :param status: What tells the server the cause, if it lives.
    """
    _ENDING.acquire()
    group = os.getpid()
    if os.getpgrp() == group:
        with suppress(OSError):  # a signal to a group that it is in would end it without the status
            os.setpgid(0, os.getpgid(os.getppid()))
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    os._exit(status)


def _register(env_name: str, spec: EnvSpec) -> None:
    """Register an environment as it is registered in the server."""
    if isinstance(spec.entry_point, str):
        # Import its module first, since that may register the environment and would warn if it were registered already.
        # If the import fails, it fails again when the environment is made, with a better message.
        with suppress(Exception):
            importlib.import_module(spec.entry_point.partition(":")[0])
    gym.registry[env_name] = spec


class Reporter:
    """The ``Progress`` of a task in a worker: it reports to the server, and stops the task when the server says so.

    Steps and metrics are sent at most ten times a second.

    :param connection: Connection to the server.
    """

    def __init__(self, connection: "Connection[bytes, bytes]") -> None:
        self._connection = connection
        self._pid = os.getpid()
        # None until the task knows: it may go on from a checkpoint.
        self._timesteps: int | None = None
        # Metrics with the simulator steps taken by then. None may be dropped: the server counts rollouts.
        self._unsent: list[tuple[int | None, dict[str, float]]] = []
        self._sent_at = -_REPORT_SECONDS
        # Guards the two below.
        self._lock = threading.Lock()
        self._stop_training: Callable[[], None] | None = None
        self._n_stops = 0

    def attach_stop(self, stop: Callable[[], None]) -> None:
        """Take the function that stops the task."""
        with self._lock:
            self._stop_training = stop
            for _ in range(self._n_stops):
                stop()

    def advance(self, current_timesteps: int) -> None:
        """Report the number of simulator steps taken so far."""
        self._timesteps = current_timesteps
        self._report()

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Report metrics."""
        self._unsent.append((self._timesteps, dict(metrics)))
        self._report()

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Report an evaluation."""
        self.send(Message.EVALUATION, evaluation)

    def publish_final_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Report the evaluation of the policy that is saved."""
        self.send(Message.FINAL_EVALUATION, evaluation)

    def publish_checkpoint(self, described: Mapping[str, Any], content: bytes) -> None:
        """Report a checkpoint."""
        self.send(Message.CHECKPOINT, described)
        self._connection.send_bytes(content)

    def publish_warning(self, warning: str) -> None:
        """Report a warning for the client."""
        self.send(Message.WARNING, warning)

    def publish_ended_by(self, ended_by: str) -> None:
        """Report the rule that ends the training early."""
        self.send(Message.ENDED_BY, ended_by)

    def listen(self) -> None:
        """Stop the task when the server says so, and end the process when the server is gone."""
        try:
            while True:
                self._connection.recv_bytes()
                with self._lock:
                    self._n_stops += 1
                    if self._stop_training is not None:
                        self._stop_training()
        except (EOFError, OSError):
            _end_all(CLOSED_STATUS)

    def send(self, kind: Message, value: Any) -> None:
        """Send a message, after all steps and metrics that are not sent yet."""
        self._report_all()
        self._connection.send_bytes(json.dumps([kind, value]).encode())

    def _report(self) -> None:
        if time.monotonic() - self._sent_at >= _REPORT_SECONDS:
            self._report_all()

    def _report_all(self) -> None:
        if os.getpid() != self._pid:  # an environment has forked, and its child goes on as if it were the worker
            os._exit(0)
        self._sent_at = time.monotonic()
        self._connection.send_bytes(json.dumps([Message.PROGRESS, [*self._unsent, (self._timesteps, {})]]).encode())
        self._unsent.clear()
