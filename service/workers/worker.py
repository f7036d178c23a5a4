"""The processes that tasks run in: a template that has imported everything, and the workers it forks.

Importing torch takes seconds and a few hundred MB. The template pays for both once; a worker forked from it starts in
about ten milliseconds and shares the template's memory. The template has one thread, so forking it is safe, which
forking the server is not.
"""

import gc
import importlib
import json
import logging
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from service.context import JOB_ID, REQUEST_ID
from service.logs import LogFormat, LogLevel, LogStyle, configure_logs

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

logger = logging.getLogger("grpo.service")

# What the server asks of the template: a command, and a number of the server's choosing for the worker.
REQUEST = struct.Struct("!cI")
FORK, KILL = b"F", b"K"
# What the template tells when a worker has ended: its exit status, or minus the signal that ended it.
EXIT_STATUS = struct.Struct("!i")
# What a worker tells: one JSON list of a kind and a value. A result is followed by its content; a refusal is one of
# ours, made for the client, where a failure is somebody else's.
PROGRESS, RESULT, FAILURE, REFUSAL = "progress", "result", "failure", "refusal"
EVALUATION, CONCLUSION = "evaluation", "conclusion"

# Answers over HTTP go before training: beside two jobs on two cores, one answer of a hundred takes 4 ms at 5, 1.5 ms at
# 10 and 0.7 ms at 15, where idle ones take 0.5 ms. A server that is never idle still leaves a thirtieth of a core.
_NICENESS = 15
# Where memory runs out, the kernel should end a worker and not the server.
_OOM_SCORE = 500
_REPORT_SECONDS = 0.1
_REAP_SECONDS = 0.05


class _Child(NamedTuple):
    """A worker as the template knows it.

    :param pid: Its process.
    :param status_fd: Pipe to the server for its exit status.
    """

    pid: int
    status_fd: int


def serve_template(control_fd: int, log_format: LogFormat, log_level: LogLevel) -> None:
    """Fork a worker per request, until the server closes its end of the control socket, or dies.

    :param control_fd: Socket on which requests come, each ``FORK`` with the worker's socket and its status pipe.
    :param log_format: How it and its workers write their logs: see ``LogStyle``.
    :param log_level: The same.
    """
    configure_logs(LogStyle(log_format, log_level))
    control = socket.socket(fileno=control_fd)
    _settle()
    children: dict[int, _Child] = {}
    while True:
        # Without workers there is nobody to reap, and so nothing to wake up for.
        if select.select([control], [], [], _REAP_SECONDS if children else None)[0]:
            try:
                message, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 2)
            except ConnectionError:  # the server was killed
                break
            if not message:
                break
            command, number = REQUEST.unpack(message)
            if command == FORK:
                children[number] = _fork(control, children, *descriptors)
            elif number in children:
                os.kill(children[number].pid, signal.SIGKILL)
        _reap(children)
    for child in children.values():
        os.kill(child.pid, signal.SIGKILL)


def _settle() -> None:
    """Import all that training needs, and make the process one that serves in the background."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Whoever ends the server by a signal to all of its processes lets the workers save. A handler, because
        # processes that an environment starts would inherit an ignored signal.
        signal.signal(number, lambda *_: None)
    os.nice(_NICENESS)
    os.putenv("OMP_NUM_THREADS", "1")  # read when torch is imported; a second thread would make forking unsafe
    import torch
    import torch._dynamo  # the first optimizer would import it, a second in every worker

    import service.training.train  # noqa: F401  # what workers run

    torch.set_num_threads(1)
    gc.freeze()  # else the first collection in a worker would copy the memory it shares


def _fork(control: socket.socket, children: Mapping[int, _Child], socket_fd: int, status_fd: int) -> _Child:
    pid = os.fork()
    if pid == 0:
        control.close()
        # Whoever holds these keeps the server from seeing that another worker has ended.
        for fd in (status_fd, *(child.status_fd for child in children.values())):
            os.close(fd)
        _work(Connection(socket_fd))
    os.close(socket_fd)
    return _Child(pid, status_fd)


def _reap(children: dict[int, _Child]) -> None:
    for number, child in list(children.items()):
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid == 0:
            continue
        del children[number]
        with suppress(BrokenPipeError):  # the server no longer wants to know
            os.write(child.status_fd, EXIT_STATUS.pack(os.waitstatus_to_exitcode(status)))
        os.close(child.status_fd)


def _work(connection: "Connection") -> NoReturn:
    """Run the task that the server sends, and end the process."""
    try:
        _run_task(connection)
    except BaseException:  # the server is gone, or memory is: nobody is left to tell
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # past the template's loop, whose copy this process is


def _run_task(connection: "Connection") -> None:
    import numpy as np
    import torch

    from service.errors import ServiceError, describe_error

    with suppress(OSError):  # no such file elsewhere than on Linux
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    # Of the template's generators every worker has the same copy, and an environment may draw from them.
    np.random.seed()
    torch.seed()
    reporter = Reporter(connection)
    try:
        packed = connection.recv_bytes()
        threading.Thread(target=reporter.listen, daemon=True).start()
        # The server made these bytes, and the socket has no name under which anybody else could write to it.
        spec, task, request_id, job_id = pickle.loads(packed)
        REQUEST_ID.set(request_id)
        JOB_ID.set(job_id)
        _register(task.env_name, spec)
        content = task.run(reporter)
    except ServiceError as error:
        reporter.send(REFUSAL, [error.status_code, error.detail])
    except BaseException as error:  # the job boundary: whatever an environment throws ends its job alone
        logger.warning("a task failed in its worker process", exc_info=True)
        reporter.send(FAILURE, describe_error(error))
    else:
        reporter.send(RESULT, None)
        connection.send_bytes(content)


def _register(env_name: str, spec: "EnvSpec") -> None:
    """Register an environment as the server has it."""
    import gymnasium as gym

    if isinstance(spec.entry_point, str):
        # Its module may register it when it is imported, and would warn of an environment that is there already. One
        # that cannot be imported fails when the environment is made, with a better word for it.
        with suppress(Exception):
            importlib.import_module(spec.entry_point.partition(":")[0])
    gym.registry[env_name] = spec


class Reporter:
    """Tells the server of the training, at most every tenth of a second, and hears from it when to stop.

    :param connection: Socket to the server.
    """

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._timesteps = 0
        # The metrics of every rollout are told, each with the simulator steps it came after: rollouts are counted.
        self._unsent: list[tuple[int, dict[str, float]]] = []
        self._sent_at = -_REPORT_SECONDS
        # Guards the two below.
        self._lock = threading.Lock()
        self._stop_training: Callable[[], None] | None = None
        self._is_stopped = False

    def attach(self, stop: Callable[[], None]) -> None:
        """See ``Progress``."""
        with self._lock:
            self._stop_training = stop
            if self._is_stopped:
                stop()

    def advance(self, current_timesteps: int) -> None:
        """See ``Progress``."""
        self._timesteps = current_timesteps
        self._report()

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """See ``Progress``."""
        self._unsent.append((self._timesteps, dict(metrics)))
        self._report()

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """See ``Progress``."""
        self.send(EVALUATION, evaluation)

    def conclude(self, ended_by: str) -> None:
        """See ``Progress``."""
        self.send(CONCLUSION, ended_by)

    def listen(self) -> None:
        """Stop the training when the server says so, and end the process when the server is gone."""
        with suppress(EOFError, OSError):
            while True:
                self._connection.recv_bytes()
                with self._lock:
                    self._is_stopped = True
                    if self._stop_training is not None:
                        self._stop_training()
        os._exit(1)

    def send(self, kind: str, value: Any) -> None:
        """Send a message, after whatever has not been reported yet."""
        self._report_all()
        self._connection.send_bytes(json.dumps([kind, value]).encode())

    def _report(self) -> None:
        if time.monotonic() - self._sent_at >= _REPORT_SECONDS:
            self._report_all()

    def _report_all(self) -> None:
        self._sent_at = time.monotonic()
        self._connection.send_bytes(json.dumps([PROGRESS, [*self._unsent, (self._timesteps, {})]]).encode())
        self._unsent.clear()
