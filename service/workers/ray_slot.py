"""What runs on a node of a Ray cluster: a place for one task at a time, each in a worker process of its own.

The cluster gets this class by value, so the module imports only what Python brings. Ray's process runs no code of an
environment or a reward function: workers are forked on the node as they are beside the server.
"""

import importlib
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

_WATCH_SECONDS = 0.5
# Longest wait for a killed process to end.
_KILL_SECONDS = 5.0


class Entry(NamedTuple):
    """A message of the worker.

    :param number: Counts the messages of a slot, all tasks together.
    :param kind: One of ``Message``.
    :param value: What can be written in JSON.
    :param content: The bytes that followed; empty if none did.
    """

    number: int
    kind: str
    value: Any
    content: bytes


class Slot:
    """Runs one task after the other. A Ray actor with several threads: a call may come while another one waits."""

    def __init__(self) -> None:
        self._executor: Any = None
        self._watcher: threading.Thread | None = None
        # Guards everything below, and announces messages.
        self._news = threading.Condition()
        self._run: Any = None
        self._entries: deque[Entry] = deque()
        self._n_entries = 0
        self._n_stops = 0

    def prepare(
        self, paths: Sequence[str], folder: str | None, versions: Mapping[str, str], log_style: Sequence[Any]
    ) -> str | None:
        """Get ready to fork workers.

        :param paths: Folders in which the server finds modules, if this is its machine.
        :param folder: Its working folder, if this is its machine.
        :param versions: The packages of the server whose versions the node must have.
        :param log_style: How workers write their logs, ``LogStyle``.
        :return: What the node lacks, in words; None if nothing.
        """
        sys.path += [path for path in paths if path not in sys.path]
        if folder is not None:
            os.chdir(folder)
        for name, version in versions.items():
            try:
                found = metadata.version(name)
            except metadata.PackageNotFoundError:
                return f"it has no {name}, the server has {version}"
            if _cut_build(found) != _cut_build(version):
                return f"it has {name} {found}, the server has {version}"
        try:
            processes = importlib.import_module("service.workers.processes")
            style = importlib.import_module("service.logs").LogStyle(*log_style)
        except ImportError as error:
            return f"a module of the server cannot be imported there ({error})"
        self._executor = processes.ProcessExecutor(style)
        self._executor.warm_up()
        return None

    def begin(self, job_id: str | None, request_id: str | None, packed: bytes) -> int:
        """Start a task; the one before has ended. Return the number of the last message before its own.

        :param job_id: The job that it belongs to, for its log; None if to none.
        :param request_id: The same of the request.
        :param packed: What ``service.workers.processes.pack`` made.
        """
        context = importlib.import_module("service.context")
        tasks = importlib.import_module("service.workers.task")
        context.JOB_ID.set(job_id)
        context.REQUEST_ID.set(request_id)
        with self._news:
            self._entries.clear()
            self._n_stops = 0
            n_before = self._n_entries
        try:
            run = self._executor.start_packed(packed, self._add)
        except tasks.TaskFailedError as error:
            self._add("lost", str(error), b"")
            return n_before
        with self._news:
            self._run = run
        self._watcher = threading.Thread(target=self._watch, args=(run, tasks.WorkerLostError), daemon=True)
        self._watcher.start()
        return n_before

    def poll(self, n_seen: int, seconds: float) -> list[Entry]:
        """Forget the messages up to a number, and return those after it, once there are any or the time is over."""
        with self._news:
            while self._entries and self._entries[0].number <= n_seen:
                self._entries.popleft()
            self._news.wait_for(lambda: self._entries, seconds)
            return list(self._entries)

    def stop(self, n_stops: int) -> None:
        """Ask the task to stop so many times in all."""
        with self._news:
            while self._run is not None and self._n_stops < n_stops:
                self._n_stops += 1
                self._run.stop()

    def kill(self) -> bool:
        """Kill the task's process; return whether the slot is free for another one."""
        with self._news:
            run, watcher = self._run, self._watcher
        if run is not None:
            run.send_kill()
        if watcher is not None:
            watcher.join(_KILL_SECONDS)
        self.release()
        return watcher is None or not watcher.is_alive()

    def release(self) -> None:
        """Note that the server has taken all of the task."""
        with self._news:
            self._run = None
            self._entries.clear()

    def _add(self, kind: str, value: Any, content: bytes) -> None:
        with self._news:
            if kind == "checkpoint":  # only the last one counts
                self._entries = deque(entry for entry in self._entries if entry.kind != kind)
            self._n_entries += 1
            self._entries.append(Entry(self._n_entries, kind, value, content))
            self._news.notify_all()

    def _watch(self, run: Any, lost: type[Exception]) -> None:
        entry: tuple[str, Any, bytes]
        try:
            while not run.wait(_WATCH_SECONDS):
                pass
            entry = "result", None, run.get_content()
        except lost as error:
            entry = "lost", str(error), b""
        except Exception as error:  # what the task refused, or failed with
            status_code = getattr(error, "status_code", None)
            entry = ("failure", str(error), b"") if status_code is None else ("refusal", [status_code, str(error)], b"")
        self._add(*entry)


def _cut_build(version: str) -> str:
    """Cut off what tells builds of one version apart, such as ``+cpu``."""
    return re.sub(r"\+.*", "", version)
