"""Imported by the forkserver before it forks the first worker: everything that workers need, once for all of them.

To import this module changes the process: it then serves in the background.
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

from service.workers.processes import START_VARIABLE

# Answers over HTTP go before training: beside two jobs on two cores, one answer of a hundred takes 4 ms at 5, 1.5 ms at
# 10 and 0.7 ms at 15, where idle ones take 0.5 ms. A server that is never idle still leaves a thirtieth of a core.
_NICENESS = 15
_WATCH_SECONDS = 0.1
_MODULES = (
    "torch",
    "torch._dynamo",  # the first optimizer would import it, a second in every worker
    "service.training.plan",
    "service.training.train",
    "service.environments.inspection",
    "service.models.episodes",
    "service.workers.worker",
)


class _Start(NamedTuple):
    """What the server tells the forkserver when it starts it.

    :param server_pid: The server's process id.
    :param folder: Where the socket is on which workers are asked for; None where nobody told.
    :param variables: What the process environment held before; None where it held nothing.
    """

    server_pid: int
    folder: str | None
    variables: Mapping[str, str | None]


def _prepare() -> None:
    start = _read_start()
    _restore_variables(start)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Whoever ends the server by a signal to all of its processes lets the workers save. A handler, because
        # processes that an environment starts would inherit an ignored signal.
        signal.signal(number, lambda *_: None)
    # An interrupt from the keyboard is the server's to handle. Not a session of its own: Linux shares cores between
    # sessions first (sched_autogroup), and the workers' niceness would count for nothing.
    os.setpgid(0, 0)
    os.putenv("OMP_NUM_THREADS", "1")  # read when torch is imported; a second thread would make forking unsafe
    atexit.register(_remove_folder, start.folder, os.getpid())
    is_done = threading.Event()
    watcher = threading.Thread(target=_end_with_server, args=(start, is_done), daemon=True)
    watcher.start()
    for name in _MODULES:
        importlib.import_module(name)
    is_done.set()
    watcher.join()
    os.nice(_NICENESS)  # not before: the first request waits for the imports
    gc.freeze()  # else the first collection in a worker would copy the memory it shares


def _read_start() -> _Start:
    told = os.environ.pop(START_VARIABLE, None)
    start = _Start(os.getppid(), None, {}) if told is None else _Start(**json.loads(told))
    if get_inherited_fds() is not None:  # a worker, which does what the forkserver could not, and whose child it is
        start = start._replace(server_pid=os.getppid(), folder=None)
    return start


def _restore_variables(start: _Start) -> None:
    """Undo what made the forkserver find its modules: environments, and what they start, inherit it."""
    for name, value in start.variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _end_with_server(start: _Start, is_done: threading.Event) -> None:
    """End the process if the server dies before the imports are done; the forkserver itself looks only then."""
    while not is_done.wait(_WATCH_SECONDS):
        if os.getppid() != start.server_pid:
            _remove_folder(start.folder, os.getpid())
            os._exit(1)


def _remove_folder(folder: str | None, pid: int) -> None:
    """Remove what a server that was killed could not; never in a process that was forked from this one."""
    if folder is not None and os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


_prepare()
