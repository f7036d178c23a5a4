"""How the forkserver is started, and has a new process run a worker."""

import importlib
import json
import os
import pickle
import pkgutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.util import get_temp_dir

from grpo_core.process import list_import_paths
from service.workers.end_signals import END_SIGNALS

# Environment variable that tells the forkserver what ``preload`` needs to know.
START_VARIABLE = "GRPO_FORKSERVER_START"
_PRELOAD = "service.workers.preload"
_WORK = "service.workers.worker:work"
# Guards the start of the forkserver, which all services of a process share.
_START_LOCK = threading.Lock()


def start_forkserver() -> None:
    """Start the forkserver, which imports in the background, unless it runs."""
    with _prepare_forkserver():
        forkserver.ensure_running()


def fork(connection: "Connection[object, object]") -> tuple[int, int]:
    """Have the forkserver fork a process.

    :return: File descriptors of two pipes: one that yields the process id and later the exit status, and one that the
        process reads.
    :raises OSError: If the forkserver is gone or cannot be started.
    """
    with _prepare_forkserver():
        return forkserver.connect_to_new_process([connection.fileno()])


def describe_start() -> bytes:
    """Pickle what a new process reads first: its preparation data and the object to call.

    ``multiprocessing.Process`` would make it import the server's start script again, and a script without ``if
    __name__ == "__main__"`` would start another server. Cloudpickle sends what a task needs of that script.
    """
    start = {"name": "grpo-worker", "sys_path": list_import_paths(), "dir": os.getcwd()}
    return pickle.dumps(start) + pickle.dumps(_CallInWorker())


class _CallInWorker:
    """Takes the place of ``multiprocessing.Process``: the forkserver unpickles and calls it in a new process."""

    def _bootstrap(self, parent_sentinel: int) -> None:
        importlib.import_module(_PRELOAD)  # does nothing if the forkserver has imported it
        fds = forkserver.get_inherited_fds()
        assert fds is not None, "the forkserver passes them on"
        pkgutil.resolve_name(_WORK)(Connection(fds[0]), parent_sentinel)


@contextmanager
def _prepare_forkserver() -> Iterator[None]:
    """Set the variables that the forkserver needs to find its modules, in case it is started now.

    It imports them before it learns the server's ``sys.path``, and is silent if it finds none.
    """
    variables = {"PYTHONPATH": os.pathsep.join(list_import_paths()), "PYTHONSAFEPATH": "1"}
    with _START_LOCK:
        before = {name: os.environ.get(name) for name in variables}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        start = json.dumps({"server_pid": os.getpid(), "folder": find_own_folder(), "variables": before})
        try:
            # Not in os.environ, which other threads may be reading.
            for name, value in {**variables, START_VARIABLE: start}.items():
                os.putenv(name, value)
            forkserver.set_forkserver_preload([_PRELOAD])
            resource_tracker.ensure_running()  # which would let the signals through
            # The forkserver inherits this, so that a signal to all processes of the server does not end it before it
            # has handlers.
            signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name, old in {**before, START_VARIABLE: None}.items():
                if old is None:
                    os.unsetenv(name)
                else:
                    os.putenv(name, old)


def find_own_folder() -> str | None:
    """Return the temporary folder that the forkserver removes after this process; None if it may be another's.

    A process that ``multiprocessing`` has started shares the folder of its parent, which removes it itself.
    """
    folder: str = get_temp_dir()
    return folder if parent_process() is None else None
