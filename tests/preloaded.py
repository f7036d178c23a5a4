"""A Python that starts programs at once, for it has imported what they need: each is forked from a process that has.

Importing torch and what goes with it takes seconds. A server pays for that once; ``preload`` starts it and writes a
program to call in the place of Python. It takes ``-u``, ``-c CODE``, ``-m MODULE`` and the names of scripts, and hands
on its folder, its variables, its descriptors, its process group and signals, and the exit status. Packages alone are
preloaded: what the project and the tests hold is imported anew by every program.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_PACKAGES = (
    "fastapi.testclient",
    "gymnasium.wrappers",
    "httpx2",
    "imageio",
    "matplotlib.pyplot",
    "pydantic_settings",
    "requests",
    "rich.progress",
    "stable_baselines3",
    "structlog",
    "torch",
    "torch._dynamo",  # the first optimizer would import it
    "uvicorn",
)


@contextmanager
def preload(folder: Path) -> Iterator[Path]:
    """Start the server, and yield the program that stands for Python: ``python`` in a folder of its own.

    :param folder: An empty one.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        address = folder / "socket"
        listener.bind(str(address))
        listener.listen()
        program = folder / "bin" / "python"
        program.parent.mkdir()
        call = shlex.join([sys.executable, "-IS", __file__, "call", str(address)])
        program.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
        program.chmod(0o755)
        command = [sys.executable, __file__, "serve", str(listener.fileno())]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # whose end, at the latest with this process, ends the server
            stdout=subprocess.DEVNULL,
            env=variables | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},  # a second thread would make forking unsafe
            pass_fds=[listener.fileno()],
        )
    try:
        yield program
    finally:
        server.communicate()


def _call(address: str, arguments: list[str]) -> int:
    """Have the server run a program in the place of this one, and return its exit status."""
    handed_on = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    signal.pthread_sigmask(signal.SIG_BLOCK, handed_on)  # until there is a process to hand them on to
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"."], [0, 1, 2])
        request = {
            "arguments": arguments,
            "folder": os.getcwd(),
            "variables": dict(os.environ),
            "group": os.getpgid(0),
        }
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        answers = connection.makefile()
        pid = int(answers.readline())
        for number in handed_on:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handed_on)
        status = int(answers.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for every request, until the standard input ends; return a request in the process that is to run it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _take(connection)
        connection.close()
    sys.exit()


def _take(connection: socket.socket) -> dict[str, Any]:
    """Fork the process that is to run a request, and return there; here tell who asked how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    request: dict[str, Any] = json.loads(connection.makefile("rb").read())
    pid = os.fork()
    if pid == 0:
        connection.close()
        return {**request, "descriptors": descriptors}
    for descriptor in [0, 1, 2, *descriptors]:
        os.close(descriptor)
    with suppress(OSError):  # who asked may be gone
        connection.sendall(b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _run(request: dict[str, Any]) -> None:
    """Be the program that a request asks for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, request["group"])
    for target, descriptor in enumerate(request["descriptors"]):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.path[:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    arguments: list[str] = request["arguments"]
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]  # it is no stand-in here
        arguments = arguments[1:]
    match arguments:
        case ["-c", code, *rest]:
            sys.argv, main = ["-c", *rest], ModuleType("__main__")
            sys.path.insert(0, "")
            sys.modules["__main__"] = main
            exec(compile(code, "<string>", "exec"), main.__dict__)
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [script, *_]:
            sys.argv = arguments
            sys.path.insert(0, str(Path(script).resolve().parent))
            runpy.run_path(script, run_name="__main__")


def _end(status: object) -> NoReturn:
    """End the process as Python would, but for the packages, of which the first process alone is to dispose."""
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does; it joins pools as well
    atexit._run_exitfuncs()
    if not isinstance(status, int | None):
        sys.stderr.write(f"{status}\n")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def _be_server(listener: socket.socket) -> NoReturn:
    for name in _PACKAGES:
        importlib.import_module(name)
    gc.freeze()
    request = _serve(listener)
    atexit._clear()
    try:
        _run(request)
    except SystemExit as end:
        _end(end.code)
    except BaseException as error:
        traceback.print_exception(error)
        if isinstance(error, KeyboardInterrupt):
            sys.stderr.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        _end(1)
    _end(0)


if __name__ == "__main__":
    if sys.argv[1] == "call":
        sys.exit(_call(sys.argv[2], sys.argv[3:]))
    _be_server(socket.socket(fileno=int(sys.argv[2])))
