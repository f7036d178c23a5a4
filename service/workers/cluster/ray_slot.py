"""What runs on a node of a Ray cluster: a place for one task at a time, each in a worker process of its own.

The cluster gets this class by value, so the module imports only what Python brings. Ray's process runs no code of an
environment or a reward function: workers are forked on the node as they are beside the server.

A slot may outlive the server that has made it. Then it keeps what its task reports until a server has written that
down, and ends by itself if no server asks for it in time.
"""

import importlib
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import islice
from typing import Any, NamedTuple

#: Longest time that a server waits for a worker: a forkserver imports torch before it forks the first one, which may
#: take long on a busy node.
START_SECONDS = 300.0
# How late the end of a lease may be noticed. The end of a task is noticed at once.
_WATCH_SECONDS = 0.5
# Longest wait for a killed process to end.
_KILL_SECONDS = 5.0
#: A server asks every few seconds. Another one may take the slot of one that has been silent for this long.
OWNER_SECONDS = 15.0
# How long a slot without a task waits for a server.
_UNCLAIMED_SECONDS = 60.0
# Limits of one answer, and of messages kept for a server that does not come.
_MAX_ANSWERED = 500
_MAX_KEPT = 100_000


class Entry(NamedTuple):
    """A message of the worker.

    :param number: Counts the messages of the task, from 1 on.
    :param kind: One of ``Message``.
    :param value: What can be written in JSON.
    :param content: The bytes that followed; empty if none did.
    :param came: When it came, on the monotonic clock of the node.
    """

    number: int
    kind: str
    value: Any
    content: bytes
    came: float


class Report(NamedTuple):
    """A message of the worker as a server is told it; the rest is as in ``Entry``.

    :param age_seconds: How long ago it came.
    """

    number: int
    kind: str
    value: Any
    content: bytes
    age_seconds: float


class Described(NamedTuple):
    """What a slot is, and what it runs.

    :param lack: What its node lacks to run anything, in words; None if nothing.
    :param node_id: Ray's id of its node.
    :param node: Name of the node for people.
    :param job_id: The job whose task it runs, or has run and keeps the end of; None if none.
    :param attempt: Which attempt of the job.
    """

    lack: str | None
    node_id: str
    node: str
    job_id: str | None
    attempt: int


class Slot:
    """Runs one task after the other. A Ray actor with several threads: a call may come while another one waits.

    :param owner: Names the server that has made it.
    :param lease_seconds: How long it goes on without a server; None if it ends with the server.
    """

    def __init__(self, owner: str, lease_seconds: float | None) -> None:
        self._executor: Any = None
        self._watcher: threading.Thread | None = None
        # Guards everything below, and announces messages.
        self._news = threading.Condition()
        self._owner, self._heard = owner, time.monotonic()
        self._lack: str | None = None
        self._run: Any = None
        self._job: tuple[str | None, int] = (None, 0)
        self._entries: deque[Entry] = deque()
        # Numbers of the last message, and of the last that a server has been told.
        self._n_entries = self._n_told = 0
        self._n_stops = 0
        if lease_seconds is not None:
            threading.Thread(target=self._end_without_server, args=(lease_seconds,), daemon=True).start()

    def prepare(
        self, paths: Sequence[str], folder: str | None, versions: Mapping[str, str], log_style: Sequence[Any]
    ) -> Described:
        """Get ready to fork workers.

        :param paths: Folders in which the server finds modules, if this is its machine.
        :param folder: Its working folder, if this is its machine.
        :param versions: The packages of the server whose versions the node must have.
        :param log_style: How workers write their logs, ``LogStyle``.
        """
        self._heard = time.monotonic() + START_SECONDS  # imports may take long
        try:
            self._lack = self._find_lack(paths, folder, versions, log_style)
        finally:
            self._heard = time.monotonic()
        return self.describe()

    def _find_lack(
        self, paths: Sequence[str], folder: str | None, versions: Mapping[str, str], log_style: Sequence[Any]
    ) -> str | None:
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

    def describe(self) -> Described:
        """Say where this is, and what it runs."""
        node_id = importlib.import_module("ray").get_runtime_context().get_node_id()
        address = importlib.import_module("ray").util.get_node_ip_address()
        with self._news:
            return Described(self._lack, node_id, f"{address} ({node_id[:8]})", *self._job)

    def begin(self, job_id: str | None, request_id: str | None, attempt: int, packed: bytes) -> None:
        """Start a task; the one before has ended.

        :param job_id: The job that it belongs to; None without one.
        :param request_id: The request of it, for its log.
        :param attempt: Which attempt of the job.
        :param packed: What ``service.workers.processes.pack`` made.
        """
        context = importlib.import_module("service.context")
        tasks = importlib.import_module("service.workers.task")
        context.JOB_ID.set(job_id)
        context.REQUEST_ID.set(request_id)
        with self._news:
            self._entries.clear()
            self._n_entries = self._n_told = self._n_stops = 0
            # A worker may have to wait for imports.
            self._job, self._heard = (job_id, attempt), time.monotonic() + START_SECONDS
        try:
            run = self._executor.start_packed(packed, self._add)
        except tasks.TaskFailedError as error:
            self._add("lost", str(error), b"")
            return
        finally:
            self._heard = time.monotonic()
        with self._news:
            self._run = run
        self._watcher = threading.Thread(target=self._watch, args=(run, tasks.WorkerLostError), daemon=True)
        self._watcher.start()

    def attach(self, owner: str, job_id: str, attempt: int) -> int | None:
        """Let another server follow the task, unless the one before still does.

        :return: How often the task was asked to stop; None if it is not this one, or another server follows it.
        """
        with self._news:
            is_free = owner == self._owner or self._is_left
            if self._job != (job_id, attempt) or not is_free:
                return None
            self._owner, self._heard = owner, time.monotonic()
            return self._n_stops

    def poll(self, owner: str, n_taken: int, n_written: int, seconds: float) -> list[Report] | None:
        """Return messages, once there are any or the time is over; None if another server follows the task now.

        :param n_taken: Return those after this number.
        :param n_written: Forget those up to this number.
        """
        with self._news:
            if owner != self._owner:
                return None
            self._heard = time.monotonic()
            while self._entries and self._entries[0].number <= n_written:
                self._entries.popleft()
            self._news.wait_for(lambda: self._entries and self._entries[-1].number > n_taken, seconds)
            new = list(islice((entry for entry in self._entries if entry.number > n_taken), _MAX_ANSWERED))
            if new:
                self._n_told = max(self._n_told, new[-1].number)
            now = time.monotonic()
            return [Report(*entry[:-1], now - entry.came) for entry in new]

    def stop(self, owner: str, n_stops: int) -> None:
        """Bring the number of stops sent to the task to a total, unless another server follows it now."""
        with self._news:
            while owner == self._owner and self._run is not None and self._n_stops < n_stops:
                self._n_stops += 1
                self._run.stop()

    def kill(self, owner: str) -> bool | None:
        """Kill the task's process.

        :return: Whether the slot is free for another one; None if another server follows the task now.
        """
        with self._news:
            if owner != self._owner:
                return None
            run, watcher = self._run, self._watcher
        if run is not None:
            run.send_kill()
        if watcher is not None:
            watcher.join(_KILL_SECONDS)
        self.release(owner)
        return watcher is None or not watcher.is_alive()

    def release(self, owner: str) -> bool:
        """Note that the server has taken all of the task; return False if another one follows it now."""
        with self._news:
            if owner != self._owner:
                return False
            self._run, self._job, self._heard = None, (None, 0), time.monotonic()
            self._entries.clear()
            return True

    def end_if_left(self, owner: str, end: Callable[[int], object] = os._exit) -> None:
        """End this process, and its worker with it, if an earlier server than the owner has left it behind."""
        with self._news:
            if owner != self._owner and self._is_left:
                end(0)

    @property
    def _is_left(self) -> bool:
        """Whether the server that has asked last may be taken for gone."""
        return time.monotonic() - self._heard > OWNER_SECONDS

    def _add(self, kind: str, value: Any, content: bytes) -> None:
        with self._news:
            if kind == "checkpoint":  # only the last one counts
                self._entries = deque(entry for entry in self._entries if entry.kind != kind)
            if kind == "progress" and self._entries and self._entries[-1].number > self._n_told:
                if _says_only_steps(self._entries[-1]):
                    self._entries.pop()  # no server was told, and this one has more steps
            self._n_entries += 1
            self._entries.append(Entry(self._n_entries, kind, value, content, time.monotonic()))
            if len(self._entries) > _MAX_KEPT:
                self._entries.popleft()
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

    def _end_without_server(self, lease_seconds: float, end: Callable[[int], object] = os._exit) -> None:
        """End this process once no server has asked for it for too long; its worker ends with it."""
        while not self._is_lease_over(lease_seconds):
            time.sleep(_WATCH_SECONDS)
        end(0)

    def _is_lease_over(self, lease_seconds: float) -> bool:
        with self._news:
            limit = min(_UNCLAIMED_SECONDS, lease_seconds) if self._job[0] is None else lease_seconds
            return time.monotonic() - self._heard > limit


def _says_only_steps(entry: Entry) -> bool:
    return entry.kind == "progress" and not any(metrics for _, metrics in entry.value)


def _cut_build(version: str) -> str:
    """Cut off what tells builds of one version apart, such as ``+cpu``."""
    return re.sub(r"\+.*", "", version)
