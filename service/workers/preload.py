"""Prepare the forkserver: import once, before the first worker is forked, everything that workers need.

Importing this module changes the process: signals, process group and niceness.
"""

import atexit
import gc
import importlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Mapping
from multiprocessing.forkserver import get_inherited_fds
from typing import NamedTuple

from service.workers.end_signals import END_SIGNALS
from service.workers.forking import START_VARIABLE

# HTTP answers take precedence over training. With two jobs on two cores, the slowest answer of a hundred takes 4 ms at
# niceness 5, 1.5 ms at 10 and 0.7 ms at 15; 0.5 ms on an idle server. Even a server that is never idle leaves training
# a thirtieth of a core.
_NICENESS = 15
# How late the death of the server may be noticed.
_WATCH_SECONDS = 0.1
_MODULES = (
    "torch",
    "torch._dynamo",  # the first optimizer imports it, which would take a second in every worker
    "service.training.planning.fill_in",
    "service.training.train",
    "service.environments.inspection",
    "service.models.playing.episodes",
    "service.workers.worker",
)


class _Start(NamedTuple):
    """What the forkserver needs to know of the server.

    :param server_pid: The server's process id.
    :param folder: Temporary folder of the socket on which the server requests workers; None if it is to stay.
    :param variables: Environment variables to restore; None for one that was not set.
    """

    server_pid: int
    folder: str | None
    variables: Mapping[str, str | None]


def _prepare() -> None:
    start = _read_start()
    _restore_variables(start)
    for number in END_SIGNALS:
        # A signal sent to all processes of the server must not end the workers, so that they can still save. A handler
        # that does nothing, because processes that an environment starts would inherit an ignored signal.
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    # A process group of its own, so that Ctrl-C reaches only the server. Not a session: Linux first divides cores among
    # sessions (sched_autogroup), and the workers' niceness would have no effect.
    os.setpgid(0, 0)
    os.putenv("OMP_NUM_THREADS", "1")  # torch reads it on import; with a second thread, forking would be unsafe
    atexit.register(_remove_folder, start.folder, os.getpid())
    is_done = threading.Event()
    watcher = threading.Thread(target=_end_with_server, args=(start, is_done), daemon=True)
    watcher.start()
    for name in _MODULES:
        importlib.import_module(name)
    is_done.set()
    watcher.join()
    os.nice(_NICENESS)  # not before: the first request waits for the imports
    gc.freeze()  # otherwise the first collection in a worker would copy the memory that it shares


def _read_start() -> _Start:
    told = os.environ.pop(START_VARIABLE, None)
    start = _Start(os.getppid(), None, {}) if told is None else _Start(**json.loads(told))
    if get_inherited_fds() is not None:  # a worker, which does what the forkserver could not, and whose child it is
        start = start._replace(server_pid=os.getppid(), folder=None)
    return start


def _restore_variables(start: _Start) -> None:
    """Restore the changed variables, which environments and their processes would inherit."""
    for name, value in start.variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _end_with_server(start: _Start, is_done: threading.Event) -> None:
    """End the process if the server dies during the imports; the forkserver itself checks only after them."""
    while not is_done.wait(_WATCH_SECONDS):
        if os.getppid() != start.server_pid:
            _remove_folder(start.folder, os.getpid())
            os._exit(1)


def _remove_folder(folder: str | None, pid: int) -> None:
    """Remove the folder of a server that was killed; a process forked from this one leaves it alone."""
    if folder is not None and os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


_prepare()
