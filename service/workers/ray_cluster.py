"""Tasks on a Ray cluster: each in a worker process on some node, as ``service.workers.processes`` runs it here.

A slot is a Ray actor on a node that forks workers there (``service.workers.ray_slot``). It declares what its task
needs, so Ray finds the node. Slots are kept for a while after a task: a new one has to import torch.
"""

import importlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

from service.context import JOB_ID, REQUEST_ID
from service.errors import ServiceError
from service.logs import LogStyle
from service.workers import ray_slot
from service.workers.messages import Outcome, deliver, read_outcome
from service.workers.processes import list_paths, pack
from service.workers.task import Progress, Task, TaskDrainedError, TaskFailedError, WorkerLostError

logger = logging.getLogger("grpo.service")

# With which Ray takes the address of this machine for 127.0.0.1, and all that it starts listens there alone.
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost")
# What the server's own code is made of; it is sent to nodes of other machines.
_OWN_MODULES = ("grpo", "grpo_core", "service")
# Packages that decide what a training ends with.
_SAME_VERSIONS = ("torch", "stable-baselines3", "gymnasium", "numpy")
# On one machine, the memory that objects on their way between processes may take.
_LOCAL_STORE_BYTES = 256 * 2**20
_PROBE_SECONDS = 5.0
_WATCH_SECONDS = 0.1
_POLL_SECONDS = 5.0
_KILL_SECONDS = 10.0
# Ray may take a minute to say that a node is gone; a job that waited for that would count as stalled.
_SILENCE_SECONDS = 30.0
# An idle slot keeps its processor from other users of the cluster.
_IDLE_SECONDS = 30.0
# After this long a job says that it is waiting.
_SILENT_SECONDS = 10.0
# Longest time that a task which asks for nothing may wait for a node.
_SHORT_SECONDS = 60.0
# A stop, a poll and a kill may come at the same time, and another server's.
_N_THREADS = 8
# Ray is one per process. Guards it, and the executors that use what they have connected it to.
_RAY_LOCK = threading.Lock()
_users: set[int] = set()


class RayOptions(NamedTuple):
    """How to use a cluster.

    :param address: ``host:port`` of a running cluster; None starts one on this machine, which ends with the server.
    :param gpus_per_job: GPUs that a job on ``cuda`` asks for; a part lets several share one.
    :param wait_seconds: Longest time that a job waits for a node with room.
    :param env_modules: The operator's modules, which travel to the nodes unless they are installed packages.
    """

    address: str | None = None
    gpus_per_job: float = 1.0
    wait_seconds: float = 600.0
    env_modules: tuple[str, ...] = ()


class _Needs(NamedTuple):
    num_cpus: float
    num_gpus: float


class _SlotHandle(NamedTuple):
    """A slot, as the server knows it.

    :param actor: Ray's handle of it.
    :param node: Name of its node for people.
    """

    actor: Any
    needs: _Needs
    node_id: str
    node: str


class RayExecutor:
    """Runs tasks on the nodes of a Ray cluster.

    :param log_style: How workers write their logs.
    :param options: Which cluster, and how.
    """

    def __init__(self, log_style: LogStyle, options: RayOptions) -> None:
        self._log_style, self._options = log_style, options
        self._draining = threading.Event()
        # Held while the cluster is connected to.
        self._connecting = threading.Lock()
        self._ray: Any = None
        # Guards everything below.
        self._lock = threading.Lock()
        self._idle: list[tuple[_SlotHandle, float]] = []
        self._slots: dict[str, _SlotHandle] = {}
        self._n_running = 0

    @property
    def is_busy(self) -> bool:
        """Whether any task is running."""
        return self._n_running > 0

    def warm_up(self) -> None:
        """Connect to the cluster in the background, and make a slot for short tasks ready."""
        threading.Thread(target=self._warm_up, name="grpo-ray", daemon=True).start()

    def start(self, task: Task, progress: Progress) -> "_RayRun":
        """Start a task on a node that has room for it, which may take a while."""
        run = _RayRun(self, progress, pack(task))
        progress.attach_stop(run.stop)
        needs, wait_seconds = self._list_needs(task)
        run.begin(needs, wait_seconds)
        return run

    def drain(self) -> None:
        """Start no more tasks; whoever waits for a node is told."""
        self._draining.set()

    def close(self) -> None:
        """Kill all slots, and leave the cluster."""
        self._draining.set()
        with self._lock:
            slots = list(self._slots.values())
        for slot in slots:
            self.discard(slot)
        with _RAY_LOCK:
            if id(self) in _users:
                _users.discard(id(self))
                if not _users:
                    importlib.import_module("ray").shutdown()

    def _warm_up(self) -> None:
        with suppress(TaskFailedError):
            self.release(self.acquire(_Needs(0.0, 0.0), _SHORT_SECONDS, lambda warning: None, threading.Event()))

    def _list_needs(self, task: Task) -> tuple[_Needs, float]:
        if task.device is None:
            return _Needs(0.0, 0.0), _SHORT_SECONDS
        n_gpus = self._options.gpus_per_job if task.device == "cuda" else 0.0
        return _Needs(1.0, n_gpus), self._options.wait_seconds

    def connect(self) -> Any:
        """Return the module ``ray``, connected to the cluster.

        :raises TaskFailedError: If the cluster cannot be reached.
        """
        with self._connecting:
            if self._ray is None:
                try:
                    self._ray = _connect(self, self._options)
                except Exception as error:  # Ray raises what it likes
                    logger.warning("the Ray cluster cannot be used", exc_info=True)
                    reason = " ".join(str(error).split())[:300]
                    where = self._options.address or "of this machine"
                    raise TaskFailedError(
                        f"the Ray cluster {where} cannot be used ({reason}); see docs/cluster.md."
                    ) from error
        return self._ray

    def acquire(self, needs: _Needs, wait_seconds: float, warn: Any, is_stopped: threading.Event) -> _SlotHandle:
        """Return a slot that nobody uses.

        :param wait_seconds: Longest time to wait for a node with room.
        :param warn: Called once with what people should know if that takes long.
        :param is_stopped: Ends the waiting.
        :raises TaskFailedError: If no node has room in time, or the node lacks something.
        :raises TaskDrainedError: If the server ends before, or the task is stopped.
        """
        ray = self.connect()
        while (slot := self._take_idle(needs)) is not None:
            with suppress(ray.exceptions.RayError):
                ray.get(slot.actor.release.remote(), timeout=_KILL_SECONDS)
                return slot
            self.discard(slot)  # its node is gone
        actor = self._make_actor(needs)
        versions = {name: metadata.version(name) for name in _SAME_VERSIONS}
        is_here = self._options.address is None
        paths, folder = (list_paths(), os.getcwd()) if is_here else ([], None)
        answer = actor.prepare.remote(paths, folder, versions, tuple(self._log_style))
        try:
            self._wait_for(answer, needs, wait_seconds, warn, is_stopped)
            place = ray.get(actor.__ray_call__.remote(_find_place))
            lack = ray.get(answer)
        except TaskFailedError:
            ray.kill(actor)
            raise
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            raise WorkerLostError(f"the node that was to run it was lost ({_cut(error)}).") from error
        slot = _SlotHandle(actor, needs, *place)
        if lack is not None:
            ray.kill(actor)
            raise TaskFailedError(
                f"the node {slot.node} cannot run it: {lack}; install there what the server has "
                "(pip install -r requirements.txt)."
            )
        with self._lock:
            self._slots[actor._actor_id.hex()] = slot
        return slot

    def _take_idle(self, needs: _Needs) -> _SlotHandle | None:
        with self._lock:
            fitting = [one for one in self._idle if one[0].needs == needs]
            if fitting:
                self._idle.remove(fitting[-1])
                return fitting[-1][0]
            others = [] if needs.num_cpus == 0 else [slot for slot, _ in self._idle if slot.needs.num_cpus > 0]
            self._idle = [one for one in self._idle if one[0] not in others]
        for slot in others:  # they may have what is missing
            self.discard(slot)
        return None

    def _make_actor(self, needs: _Needs) -> Any:
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": _N_THREADS}
        return self._ray.remote(ray_slot.Slot).options(**needs._asdict(), **options).remote()

    def _wait_for(
        self, answer: Any, needs: _Needs, wait_seconds: float, warn: Any, is_stopped: threading.Event
    ) -> None:
        begun, has_warned = time.monotonic(), False
        while not self._ray.wait([answer], timeout=_WATCH_SECONDS)[0]:
            seconds = time.monotonic() - begun
            if self._draining.is_set():
                raise TaskDrainedError("the server ended before a node had room.")
            if is_stopped.is_set():
                raise TaskDrainedError("the job was stopped before a node had room.")
            if seconds > wait_seconds:
                raise TaskFailedError(
                    f"no node had room for it within {wait_seconds:g} s, the limit that GRPO_RAY_WAIT_SECONDS sets: "
                    f"{self._describe_room(needs)}; add a node, or ask for less."
                )
            if seconds > _SILENT_SECONDS and not has_warned and needs.num_cpus:
                has_warned = True
                warn(f"the job waits for a node with room: {self._describe_room(needs)}.")

    def _describe_room(self, needs: _Needs) -> str:
        wanted = f"{needs.num_cpus:g} CPU" + (f" and {needs.num_gpus:g} GPU" if needs.num_gpus else "")
        with suppress(self._ray.exceptions.RayError):
            total, free = self._ray.cluster_resources(), self._ray.available_resources()
            rooms = [f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in ("CPU", "GPU")]
            n_nodes = sum(node["Alive"] for node in self._ray.nodes())
            return f"it needs {wanted}, and the cluster has {' and '.join(rooms)} on {n_nodes} nodes"
        return f"it needs {wanted}"

    def release(self, slot: _SlotHandle) -> None:
        """Keep a slot for the next task, for a while."""
        with self._lock:
            self._idle.append((slot, time.monotonic()))
        timer = threading.Timer(_IDLE_SECONDS, self._retire)
        timer.daemon = True
        timer.start()

    def _retire(self) -> None:
        with self._lock:
            now = time.monotonic()
            old = [slot for slot, since in self._idle if now - since >= _IDLE_SECONDS]
            # Before they are killed: a job might take one in between.
            self._idle = [one for one in self._idle if one[0] not in old]
        for slot in old:
            self.discard(slot)

    def discard(self, slot: _SlotHandle) -> None:
        """Kill a slot, and whatever it runs."""
        with self._lock:
            self._idle = [one for one in self._idle if one[0] != slot]
            self._slots.pop(slot.actor._actor_id.hex(), None)
        with suppress(Exception):  # the cluster may be gone
            self._ray.kill(slot.actor)

    def wait_for_start(self, begun: Any) -> int:
        """Wait until a slot has started a task, and return what ``Slot.begin`` returns.

        :raises TaskDrainedError: If the server ends before.
        :raises WorkerLostError: If the slot is lost.
        """
        while not self._ray.wait([begun], timeout=_WATCH_SECONDS)[0]:
            if self._draining.is_set():
                raise TaskDrainedError("the server ended before a worker process was ready.")
        try:
            n_before: int = self._ray.get(begun)
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(_cut(error)) from error
        return n_before

    def count(self, n_more: int) -> None:
        """Count the running tasks."""
        with self._lock:
            self._n_running += n_more

    def describe_loss(self, slot: _SlotHandle) -> str:
        """Say what has become of a slot that does not answer."""
        with suppress(self._ray.exceptions.RayError):
            if not any(node["Alive"] for node in self._ray.nodes() if node["NodeID"] == slot.node_id):
                return f"the node {slot.node} was lost while it worked on this."
        return f"the node {slot.node}, or the process on it that starts workers, was lost."


class _RayRun:
    def __init__(self, executor: RayExecutor, progress: Progress, packed: bytes) -> None:
        self._executor, self._progress, self._packed = executor, progress, packed
        self._outcome: Outcome | None = None
        self._n_seen = 0
        # The messages that Ray is asked for now, and since when.
        self._asked_at = 0.0
        self._asked: Any = None
        self._has_begun = False
        self._is_stopped = threading.Event()
        # Guards the two below.
        self._lock = threading.Lock()
        self._n_stops = 0
        self._slot: _SlotHandle | None = None

    def begin(self, needs: _Needs, wait_seconds: float) -> None:
        """Have a slot start the task."""
        warn = self._progress.publish_warning
        try:
            slot = self._executor.acquire(needs, wait_seconds, warn, self._is_stopped)
        except WorkerLostError as error:
            self._outcome = error
            return
        self._executor.count(1)
        with self._lock:
            self._slot = slot
        # Its first worker waits for imports, which must not count as a stall of the task.
        begun = slot.actor.begin.remote(JOB_ID.get(), REQUEST_ID.get(), self._packed)
        self._packed = b""
        try:
            self._n_seen = self._executor.wait_for_start(begun)
        except WorkerLostError as error:
            self._lose(slot, error)
            return
        except TaskFailedError:
            self._leave(is_free=False)
            raise
        with self._lock:
            self._has_begun = True
            self._send_stops()
        self._asked = slot.actor.poll.remote(self._n_seen, _POLL_SECONDS)
        self._asked_at = time.monotonic()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the task has ended, at most for a time; return whether it has."""
        deadline = time.monotonic() + timeout_seconds
        while self._outcome is None:
            ray, slot = self._executor.connect(), self._slot
            assert slot is not None, "without one there is an outcome"
            try:
                if not ray.wait([self._asked], timeout=max(0.0, deadline - time.monotonic()))[0]:
                    if time.monotonic() - self._asked_at < _SILENCE_SECONDS:
                        return False
                    self._lose(slot, TimeoutError("it does not answer"))
                    break
                self._take(ray.get(self._asked), slot)
            except ray.exceptions.RayError as error:
                self._lose(slot, error)
        return True

    def get_content(self) -> bytes:
        """Return what the ended task returned, or raise what it raised."""
        assert self._outcome is not None, "called after the end"
        self._leave(is_free=True)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def kill(self) -> None:
        """End the task without a result."""
        with self._lock:
            slot = self._slot
        if slot is None:
            return
        ray = self._executor.connect()
        is_free = False
        with suppress(ray.exceptions.RayError):  # a node that does not answer loses the slot
            is_free = ray.get(slot.actor.kill.remote(), timeout=_KILL_SECONDS)
        self._leave(is_free)

    def stop(self) -> None:
        """Ask the task to stop, from any thread; a second time, to skip what would follow."""
        self._is_stopped.set()
        with self._lock:
            self._n_stops += 1
            self._send_stops()

    def _send_stops(self) -> None:
        if self._slot is not None and self._has_begun and self._n_stops:
            with suppress(Exception):  # its loss shows elsewhere
                self._slot.actor.stop.remote(self._n_stops)

    def _lose(self, slot: _SlotHandle, error: Exception) -> None:
        logger.warning("a slot on the node %s was lost: %s", slot.node, _cut(error))
        self._outcome = WorkerLostError(self._executor.describe_loss(slot))
        self._leave(is_free=False)

    def _take(self, answer: Any, slot: _SlotHandle) -> None:
        for number, kind, value, content in answer:
            self._n_seen = number
            self._outcome = self._place(read_outcome(kind, value, content), slot)
            if self._outcome is None:
                deliver(self._progress, kind, value, content)
        if self._outcome is None:
            self._asked = slot.actor.poll.remote(self._n_seen, _POLL_SECONDS)
            self._asked_at = time.monotonic()

    def _place(self, outcome: Outcome | None, slot: _SlotHandle) -> Outcome | None:
        """Say of an error where it happened, if that may be why."""
        if isinstance(outcome, WorkerLostError):
            return WorkerLostError(f"on the node {slot.node}, {outcome}")
        if isinstance(outcome, ServiceError | TaskFailedError) and "No module named" in str(outcome):
            remedy = f"(on the node {slot.node}: every node needs the packages of the environments)"
            return type(outcome)(f"{str(outcome).rstrip('.')} {remedy}.")
        return outcome

    def _leave(self, is_free: bool) -> None:
        """Give the slot back, once."""
        with self._lock:
            slot, self._slot = self._slot, None
        if slot is None:
            return
        self._executor.count(-1)
        if is_free:
            self._executor.release(slot)
        else:
            self._executor.discard(slot)


def _connect(user: RayExecutor, options: RayOptions) -> Any:
    """Import Ray, and connect it to the cluster if that has not happened."""
    with _RAY_LOCK:
        if options.address is None or options.address.rpartition(":")[0] in _LOOPBACK_HOSTS:
            os.environ.setdefault(_LOOPBACK_VARIABLE, "0")  # Ray reads it when it is imported
        # Else a job's thread that ends after the server has left the cluster would start another one.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        ray = importlib.import_module("ray")
        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns of much that is as it should be
        if not ray.is_initialized():
            if options.address is None:
                local = {"include_dashboard": False, "object_store_memory": _LOCAL_STORE_BYTES}
                ray.init(address="local", configure_logging=False, **local)
            else:
                _probe(options.address)
                runtime_env = {"py_modules": _list_modules(options.env_modules), "excludes": ["__pycache__"]}
                ray.init(address=options.address, configure_logging=False, runtime_env=runtime_env)
            _print_plainly()
            _users.add(id(user))
        elif _users:  # otherwise somebody else has connected it, who also ends that
            _users.add(id(user))
        ray.cloudpickle.register_pickle_by_value(ray_slot)
        return ray


def _print_plainly() -> None:
    """Have what workers print come out here as it is, without Ray's colours, prefixes and own news."""
    dispatcher = importlib.import_module("ray._private.ray_logging").global_worker_stdstream_dispatcher
    dispatcher.remove_handler("ray_print_logs")
    dispatcher.add_handler("grpo", _print)


def _print(printed: Mapping[str, Any]) -> None:
    """Write lines that a process of the cluster has printed."""
    if str(printed.get("actor_name", "")).startswith("Slot"):
        sink = sys.stderr if printed["is_err"] else sys.stdout
        sink.write("".join(f"{line}\n" for line in printed["lines"]))
        sink.flush()


def _probe(address: str) -> None:
    """Notice at once what Ray would look for for minutes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS):
        pass


def _list_modules(env_modules: Sequence[str]) -> list[str]:
    """List the files and folders of the server's own modules and of the operator's that are no installed packages."""
    found = []
    for name in dict.fromkeys([*_OWN_MODULES, *(name.partition(".")[0] for name in env_modules)]):
        spec = util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        path = Path(spec.origin)
        path = path.parent if path.name == "__init__.py" else path
        if name in _OWN_MODULES or "site-packages" not in path.parts:
            found.append(str(path))
    return found


def _find_place(slot: Any) -> tuple[str, str]:
    """Return the id and the name of the node that runs a slot."""
    context = importlib.import_module("ray").get_runtime_context()
    address = importlib.import_module("ray").util.get_node_ip_address()
    node_id: str = context.get_node_id()
    return node_id, f"{address} ({node_id[:8]})"


def _cut(error: Exception) -> str:
    """Return the first line of what Ray says of an error, which may go on for pages."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
