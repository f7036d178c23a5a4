"""Rollout workers in processes of this machine.

One process, the *nursery*, imports what workers need and forks them, so that the second costs milliseconds and all
share its memory. It is an interpreter of its own: the trainer may have threads, which make forking unsafe, and
``multiprocessing`` would run the user's script again. Nor would Python's forkserver do: a process has one, and whoever
used it first, a ``SubprocVecEnv`` perhaps, has settled what it imports and how many threads its libraries take.

A worker has one thread for torch and BLAS. All of them end within a second of the trainer, whatever ended that.
"""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import torch

from grpo_core.process import describe_exit, end_with_parent, list_import_paths
from grpo_core.shards.pool import Worker, WorkerDiedError, WorkerPool, describe_stall
from grpo_core.shards.shard_player import ShardPlayer

# How often a wait for a worker looks at whether it lives, and a process at whether the one that it serves does.
_LOOK_SECONDS = 0.5
# Longest wait for a process that was told to end.
_END_SECONDS = 2.0
# Longest wait for the nursery to fork, as it may be importing on a busy machine, and to tell of an end.
_FORK_SECONDS, _WAIT_SECONDS = 300.0, 10.0
# How often a worker at most says that it has taken a step.
_SIGN_SECONDS = 0.1
# Upper limit for a half-sent message.
_MAX_STUCK_SECONDS = 86400.0
# A request to the nursery: a letter, and a process id or 0. The answer is one number.
_REQUEST, _ANSWER = struct.Struct("<cq"), struct.Struct("<q")
_FORK, _WAIT = b"f", b"w"
# Before anything is imported: a key that interrupts the trainer is not for its workers, and libraries count the threads
# they may use when they are loaded.
_PREPARE = """
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.putenv(name, "1")
sys.path[:] = json.loads(sys.argv[3])
from grpo_core.shards.process_pool import serve
serve(int(sys.argv[1]), int(sys.argv[2]))
"""


class ProcessPool(WorkerPool):
    """Workers in processes of this machine, which needs no package beside the library.

    :param n_workers: Processes, at least 1; more than there are cores gain nothing.
    """

    def __init__(self, n_workers: int) -> None:
        super().__init__(n_workers)
        self._nursery: _Nursery | None = None
        # Guards its start, which every worker's thread may be the first to need.
        self._start_lock = threading.Lock()

    def _start(self) -> Worker:
        with self._start_lock:
            if self._nursery is None or self._nursery.has_ended:
                self._nursery = _Nursery()
            nursery = self._nursery
        return _ProcessWorker(nursery)

    def _give_up(self) -> None:
        if self._nursery is not None:
            self._nursery.interrupt()
        super()._give_up()

    def _end(self) -> None:
        super()._end()
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None


class _Nursery:
    """The trainer's side of the process that forks workers. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        paths = json.dumps(list_import_paths())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PREPARE, str(theirs.fileno()), str(os.getpid()), paths],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def fork(self, theirs: "Connection[bytes, bytes]") -> int:
        """Fork a worker, and return its process id.

        :param theirs: The worker's end of its connection.
        :raises WorkerDiedError: If the nursery has ended.
        """
        return self._ask(_FORK, 0, [theirs.fileno()], _FORK_SECONDS)

    def wait(self, pid: int) -> int:
        """Wait for the end of a worker, and return its exit status, or the negative number of the signal.

        :raises WorkerDiedError: If the nursery has ended, and its workers with it.
        """
        return self._ask(_WAIT, pid, [], _WAIT_SECONDS)

    def interrupt(self) -> None:
        """End it if its end is waited for: it may be importing for seconds yet."""
        if self._lock.locked():
            self._process.kill()

    def _ask(self, letter: bytes, pid: int, fds: list[int], max_seconds: float) -> int:
        with self._lock:
            try:
                self._control.settimeout(max_seconds)
                socket.send_fds(self._control, [_REQUEST.pack(letter, pid)], fds)
                answer: int = _ANSWER.unpack(self._control.recv(_ANSWER.size))[0]
                return answer
            except (OSError, struct.error):
                # Before the lock is free: a late answer would be taken for that to the next request.
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_END_SECONDS)
                self.close()
            raise WorkerDiedError(
                f"the process that starts workers {describe_exit(self._process.wait())}; its stderr may say why"
            ) from None

    def close(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


class _ProcessWorker(Worker):
    def __init__(self, nursery: _Nursery) -> None:
        self._nursery = nursery
        self._connection, theirs = Pipe()
        with theirs:
            self._pid = nursery.fork(theirs)
        self._known: tuple[bytes, bytes] = (b"", b"")
        # Guards the two below: once its end has been waited for, the process id may be another's.
        self._lock = threading.Lock()
        self._status: int | None = None

    def play(self, setup: bytes, policy: bytes, order: bytes, stall_seconds: float) -> bytes:
        try:
            self._limit_waits(stall_seconds)
            for known, message in zip(self._known, (setup, policy), strict=True):
                self._connection.send_bytes(b"" if message is known else message)
            self._known = setup, policy
            self._connection.send_bytes(order)
            while not (reply := self._wait(stall_seconds)):
                pass  # a sign of life
            return reply
        except (BlockingIOError, TimeoutError):
            self.kill()
            raise WorkerDiedError(describe_stall(stall_seconds)) from None
        except (OSError, EOFError):
            self._wait_for_end()  # the pipe ends before the process does
            self.kill()
            raise WorkerDiedError(f"the process {describe_exit(self._status or 0)}") from None

    def _limit_waits(self, stall_seconds: float) -> None:
        """Bound how long a message may be stuck half way, to a worker that is stopped or from it."""
        seconds = min(max(stall_seconds, 1e-3), _MAX_STUCK_SECONDS)  # 0 would be for ever
        with socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))

    def _wait(self, stall_seconds: float) -> bytes:
        """Wait for the worker's next message: the steps, or nothing where it only says that it has taken one.

        :raises TimeoutError: If none comes in time.
        :raises EOFError: If the worker has ended.
        """
        deadline = time.monotonic() + stall_seconds
        while not self._connection.poll(min(_LOOK_SECONDS, stall_seconds)):
            # Its pipe ends with it, unless a process that the environment has started holds that open.
            if self._nursery.has_ended or not _is_running(self._pid):
                raise EOFError
            if time.monotonic() >= deadline:
                raise TimeoutError
        return self._connection.recv_bytes()

    def close(self) -> None:
        self._connection.close()
        self._wait_for_end()
        self.kill()

    def _wait_for_end(self) -> None:
        deadline = time.monotonic() + _END_SECONDS
        while _is_running(self._pid) and time.monotonic() < deadline:
            time.sleep(0.01)

    def kill(self) -> None:
        with self._lock:
            if self._status is not None:
                return
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            try:
                self._status = self._nursery.wait(self._pid)
            except WorkerDiedError:
                self._status = -signal.SIGKILL


def _is_running(pid: int) -> bool:
    """Tell whether a process has not ended; one that has stays known until the nursery has waited for it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return not os.path.exists("/proc/self/stat")  # without /proc, only the worker's pipe tells


def serve(control_fd: int, trainer_pid: int) -> None:
    """Fork workers as the trainer asks for them, until it ends.

    :param control_fd: Where it asks.
    """
    torch.set_num_threads(1)
    with socket.socket(fileno=control_fd) as control:
        while os.getppid() == trainer_pid:
            if not select.select([control], [], [], _LOOK_SECONDS)[0]:
                continue
            request, fds, _, _ = socket.recv_fds(control, _REQUEST.size, 1)
            if not request:
                return
            letter, pid = _REQUEST.unpack(request)
            if letter == _WAIT:
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            elif (answer := os.fork()) == 0:
                control.close()
                _run(work, Connection(fds[0]))
            for fd in fds:
                os.close(fd)
            control.sendall(_ANSWER.pack(answer))


def _run(task: Callable[["Connection[bytes, bytes]"], None], connection: "Connection[bytes, bytes]") -> None:
    """Do a forked worker's task, and end its process."""
    status = 1
    try:
        nursery_pid = os.getppid()
        end_with_parent(signal.SIGKILL)
        threading.Thread(target=_end_with, args=(nursery_pid,), daemon=True).start()
        task(connection)
        status = 0
    except BaseException:  # it must not go on where the nursery would
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def work(connection: "Connection[bytes, bytes]") -> None:
    """Play shards until the connection ends."""
    with ExitStack() as opened, suppress(EOFError, OSError):  # the trainer has ended, or wants no more
        signs = _Signs(connection)
        while True:
            # First all of it, so that the trainer never waits to send while the environment is made.
            setup, policy, order = [connection.recv_bytes() for _ in range(3)]
            if setup:
                opened.close()
                player = ShardPlayer(setup)
                opened.callback(player.close)
            if policy:
                player.set_policy(policy)
            connection.send_bytes(player.play(order, signs.send))


class _Signs:
    """Tells the trainer now and then that the environment goes on."""

    def __init__(self, connection: "Connection[bytes, bytes]") -> None:
        self._connection = connection
        self._sent_at = 0.0

    def send(self) -> bool:
        """Say that a step was taken, unless that was said just now; return False, as what asks whether to stop."""
        if time.monotonic() - self._sent_at >= _SIGN_SECONDS:
            self._connection.send_bytes(b"")
            self._sent_at = time.monotonic()
        return False


def _end_with(nursery_pid: int) -> None:
    """End this process once the nursery has ended, which ends with the trainer."""
    while os.getppid() == nursery_pid:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)
