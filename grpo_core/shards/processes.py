"""Rollout workers in processes of this machine.

Each is an interpreter of its own and not a fork: the trainer may have threads, and ``multiprocessing`` would run the
user's script again in every worker. A worker has one thread for torch and BLAS. It ends with its connection, and within
a second of the trainer, whatever ended that.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import torch

from grpo_core.shards.player import ShardPlayer
from grpo_core.shards.pool import RolloutPool, Worker, WorkerDiedError

# How often a wait for a worker looks at whether it lives, and a worker at whether its trainer does.
_LOOK_SECONDS = 0.5
# Longest wait for a worker that was told to end.
_END_SECONDS = 2.0
# Before anything is imported: a key that interrupts the trainer is not for its workers, and libraries count the threads
# they may use when they are loaded.
_PREPARE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.putenv(name, "1")
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from grpo_core.shards.processes import work
work(connection, int(sys.argv[2]))
"""


class ProcessPool(RolloutPool):
    """Workers in processes of this machine, which needs no package beside the library.

    :param n_workers: Processes, at least 1; more than there are cores gain nothing.
    """

    def _start(self, setup: bytes) -> "_ProcessWorker":
        return _ProcessWorker(setup)


class _ProcessWorker(Worker):
    def __init__(self, setup: bytes) -> None:
        self._connection, theirs = Pipe()
        self._policy: bytes | None = None
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PREPARE, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        try:
            self._connection.send([path or os.getcwd() for path in sys.path])
            self._connection.send_bytes(setup)
        except OSError:
            self.kill()
            raise WorkerDiedError(self._describe_end()) from None

    def play(self, policy: bytes, order: bytes) -> bytes:
        try:
            self._connection.send_bytes(b"" if policy is self._policy else policy)
            self._policy = policy
            self._connection.send_bytes(order)
            # A process that the environment has started may hold the pipe of a dead worker open.
            while not self._connection.poll(_LOOK_SECONDS):
                if self._process.poll() is not None and not self._connection.poll(0):
                    raise EOFError
            return self._connection.recv_bytes()
        except (OSError, EOFError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)  # its pipe ends before it does
            self.kill()
            raise WorkerDiedError(self._describe_end()) from None

    def close(self) -> None:
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _describe_end(self) -> str:
        status = self._process.wait()
        if status < 0:
            return f"the process was killed by {signal.Signals(-status).name}"
        return f"the process exited with status {status}"


def work(connection: "Connection[bytes, bytes]", trainer_pid: int) -> None:
    """Play shards until the connection ends.

    :param trainer_pid: The process to end with.
    """
    threading.Thread(target=_end_with, args=(trainer_pid,), daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the trainer has ended, or wants no more
        player = ShardPlayer(connection.recv_bytes())
        try:
            while True:
                if policy := connection.recv_bytes():
                    player.set_policy(policy)
                connection.send_bytes(player.play(connection.recv_bytes()))
        finally:
            player.close()


def _end_with(trainer_pid: int) -> None:
    while os.getppid() == trainer_pid:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)
