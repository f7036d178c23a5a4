"""Slots, the places for tasks on the nodes of a Ray cluster.

A slot is a Ray actor on a node that forks workers there (``service.workers.cluster.ray_slot``). It declares what its
task needs, so Ray finds the node. Slots are kept for a while after a task: a new one has to import torch.

On a cluster that the server has not started itself, slots of jobs outlive it: they have names that begin with the
server's own, under which its next process finds them.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from typing import Any, NamedTuple

from grpo_core.process import list_import_paths
from service.logs import LogStyle
from service.workers.cluster import ray_slot
from service.workers.cluster.ray_connection import RayConnection, RayOptions, cut
from service.workers.task import ClusterLostError, NodeLostError, TaskDrainedError, TaskFailedError, WorkerLostError

#: Where slots that outlive their server have their names.
NAMESPACE = "grpo"
# Packages that decide what a training ends with.
_SAME_VERSIONS = ("torch", "stable-baselines3", "gymnasium", "numpy")
# How late a stop or the end of the server may end a wait for Ray.
_WATCH_SECONDS = 0.1
#: Longest time in which a slot that is there answers.
ANSWER_SECONDS = 10.0
# An idle slot keeps its processor from other users of the cluster.
_KEPT_SECONDS = 30.0
# After this long a job says that it is waiting.
_SILENT_SECONDS = 10.0
# A stop, a poll and a kill may come at the same time, and another server's.
_N_THREADS = 8

Check = Callable[[], None]


class Needs(NamedTuple):
    """What a slot declares, and whether it outlives the server."""

    num_cpus: float
    num_gpus: float
    is_lasting: bool = False


class SlotHandle(NamedTuple):
    """A slot, as the server knows it.

    :param actor: Ray's handle of it.
    :param node: Name of its node for people.
    :param is_adopted: Whether an earlier server has made it, perhaps with other code than this one's.
    """

    actor: Any
    needs: Needs
    node_id: str
    node: str
    is_adopted: bool = False


class SlotPool:
    """The slots of this server. Safe to use from any thread.

    :param log_style: How workers write their logs.
    :param options: Which cluster, and how.
    """

    def __init__(self, log_style: LogStyle, options: RayOptions) -> None:
        self._log_style, self._options = log_style, options
        self._connection = RayConnection(options)
        self._draining = threading.Event()
        self._ray: Any = None
        #: Names this process for slots, which answer one server at a time.
        self.owner = uuid.uuid4().hex
        #: Names of the slots that outlive the server and that this process has made.
        self.own_names: set[str] = set()
        # Guards everything below, and announces idle slots.
        self._changed = threading.Condition()
        self._idle: list[tuple[SlotHandle, float]] = []
        self._slots: dict[str, SlotHandle] = {}
        self._retiring: threading.Thread | None = None
        #: Tasks that run.
        self.n_running = 0

    def connect(self, check: Check) -> Any:
        """Return the module ``ray``, connected to the cluster.

        :param check: Called while that takes long; what it raises ends the waiting.
        :raises ClusterLostError: If the cluster cannot be reached.
        """
        self._ray = self._connection.open(check)
        return self._ray

    def check(self) -> None:
        """Look whether the server ends.

        :raises TaskDrainedError: If it does.
        """
        if self._draining.is_set():
            raise TaskDrainedError("the server ended before it was started.")

    def drain(self) -> None:
        """Have ``check`` raise from now on."""
        self._draining.set()

    def close(self) -> None:
        """Kill all slots, and leave the cluster."""
        self._draining.set()
        with self._changed:
            slots = list(self._slots.values())
            self._changed.notify_all()
        for slot in slots:
            self.discard(slot)
        self._connection.close()

    def acquire(self, needs: Needs, wait_seconds: float, warn: Callable[[str], None], check: Check) -> SlotHandle:
        """Return a free slot.

        :param wait_seconds: Longest time to wait for a node with room.
        :param warn: Called once with what people should know if that takes long.
        :param check: Called again and again; what it raises ends the waiting.
        :raises TaskFailedError: If no node has room in time, or the node lacks something.
        """
        ray = self.connect(check)
        while (slot := self._take_idle(needs)) is not None:
            try:
                if self._has_answered(slot.actor.release.remote(self.owner), ANSWER_SECONDS, check):
                    return slot
            except ray.exceptions.RayError:
                pass
            except BaseException:  # it is no longer waited for
                self.discard(slot)
                raise
            self.discard(slot)  # its node is gone
        actor = self._make_actor(needs)
        try:
            answer = self._prepare(actor)
            self._wait_for_room(answer, needs, wait_seconds, warn, check)
            described = self._read_description(answer)
        except BaseException:
            with suppress(Exception):  # the cluster may be gone
                ray.kill(actor)
            raise
        slot = SlotHandle(actor, needs, described.node_id, described.node)
        self.keep(slot)
        return slot

    def _take_idle(self, needs: Needs) -> SlotHandle | None:
        with self._changed:
            fitting = [one for one in self._idle if one[0].needs == needs]
            if fitting:
                self._idle.remove(fitting[-1])
                return fitting[-1][0]
            others = [] if needs.num_cpus == 0 else [slot for slot, _ in self._idle if slot.needs.num_cpus > 0]
            self._idle = [one for one in self._idle if one[0] not in others]
        for slot in others:  # they may take up the room that is missing
            self.discard(slot)
        return None

    def _make_actor(self, needs: Needs) -> Any:
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": _N_THREADS}
        lease_seconds = None
        if needs.is_lasting:
            lease_seconds = self._options.lease_seconds
            name = f"{self._options.server_id}-{uuid.uuid4().hex}"
            self.own_names.add(name)
            options |= {"name": name, "namespace": NAMESPACE, "lifetime": "detached"}
        remote = self._ray.remote(ray_slot.Slot)
        actor = remote.options(num_cpus=needs.num_cpus, num_gpus=needs.num_gpus, **options)
        return actor.remote(self.owner, lease_seconds)

    def _prepare(self, actor: Any) -> Any:
        """Have a slot get ready as soon as it is on a node; return Ray's promise of its description."""
        versions = {name: metadata.version(name) for name in _SAME_VERSIONS}
        is_here = self._options.address is None
        paths, folder = (list_import_paths(), os.getcwd()) if is_here else ([], None)
        return actor.prepare.remote(paths, folder, versions, tuple(self._log_style))

    def _wait_for_room(
        self, answer: Any, needs: Needs, wait_seconds: float, warn: Callable[[str], None], check: Check
    ) -> None:
        begun, has_warned = time.monotonic(), False
        while not self._ray.wait([answer], timeout=_WATCH_SECONDS)[0]:
            check()
            seconds = time.monotonic() - begun
            if seconds > wait_seconds:
                raise ClusterLostError(
                    f"no node had room for it within {wait_seconds:g} s, the limit that GRPO_RAY_WAIT_SECONDS sets: "
                    f"{self._describe_room(needs)}; add a node, or ask for less."
                )
            if seconds > _SILENT_SECONDS and not has_warned and needs.num_cpus:
                has_warned = True
                warn(f"the job waits for a node with room: {self._describe_room(needs)}.")

    def _read_description(self, answer: Any) -> ray_slot.Described:
        try:
            described: ray_slot.Described = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise TaskFailedError(f"a node could not get ready for it ({cut(error)}); see the server's log.") from error
        except self._ray.exceptions.RayError as error:
            raise NodeLostError(f"the node that was to run it was lost ({cut(error)}).") from error
        if described.lack is not None:
            raise TaskFailedError(
                f"the node {described.node} cannot run it: {described.lack}; install there what the server has "
                "(pip install -r requirements.txt)."
            )
        return described

    def _describe_room(self, needs: Needs) -> str:
        wanted = f"{needs.num_cpus:g} CPU" + (f" and {needs.num_gpus:g} GPU" if needs.num_gpus else "")
        with suppress(self._ray.exceptions.RayError):
            total, free = self._ray.cluster_resources(), self._ray.available_resources()
            rooms = [f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in ("CPU", "GPU")]
            n_nodes = sum(node["Alive"] for node in self._ray.nodes())
            return f"it needs {wanted}, and the cluster has {' and '.join(rooms)} on {n_nodes} nodes"
        return f"it needs {wanted}"

    def wait_for_start(self, begun: Any, check: Check) -> None:
        """Wait until a slot has started a task.

        :param begun: Ray's promise of it.
        :param check: Called again and again; what it raises ends the waiting.
        :raises WorkerLostError: If the slot is lost, or starts none.
        :raises TaskFailedError: If the slot fails.
        """
        try:
            if not self._has_answered(begun, ray_slot.START_SECONDS, check):
                raise WorkerLostError(f"no worker process was ready within {ray_slot.START_SECONDS:g} s.")
        except self._ray.exceptions.RayTaskError as error:
            raise TaskFailedError(f"a node failed to start it ({cut(error)}); see the server's log.") from error
        except self._ray.exceptions.RayError as error:
            raise NodeLostError(cut(error)) from error

    def _has_answered(self, answer: Any, seconds: float, check: Check) -> bool:
        """Wait for an answer; return whether it came in time."""
        deadline = time.monotonic() + seconds
        while not self._ray.wait([answer], timeout=_WATCH_SECONDS)[0]:
            check()
            if time.monotonic() > deadline:
                return False
        self._ray.get(answer)
        return True

    def keep(self, slot: SlotHandle) -> None:
        """Take a slot for one of this server's, which end with it."""
        with self._changed:
            self._slots[slot.actor._actor_id.hex()] = slot

    def release(self, slot: SlotHandle) -> None:
        """Have a slot ready for the next task, for a while."""
        if slot.is_adopted:
            is_ours = True
            with suppress(Exception):  # it may be gone
                is_ours = self._ray.get(slot.actor.release.remote(self.owner), timeout=ANSWER_SECONDS)
            (self.discard if is_ours else self.forget)(slot)
            return
        with suppress(Exception):  # its loss shows when it is used again
            slot.actor.release.remote(self.owner)
        with self._changed:
            self._idle.append((slot, time.monotonic()))
            if self._retiring is None:
                self._retiring = threading.Thread(target=self._retire, name="grpo-ray-slots", daemon=True)
                self._retiring.start()

    def _retire(self) -> None:
        """Discard slots that have been idle for long, until none is idle."""
        while True:
            with self._changed:
                if not self._idle or self._draining.is_set():
                    self._retiring = None
                    return
                now = time.monotonic()
                old = [slot for slot, since in self._idle if now - since >= _KEPT_SECONDS]
                # Before they are killed: a job might take one in between.
                self._idle = [one for one in self._idle if one[0] not in old]
                if not old:
                    self._changed.wait(max(0.0, self._idle[0][1] + _KEPT_SECONDS - now))
            for slot in old:
                self.discard(slot)

    def discard(self, slot: SlotHandle) -> None:
        """Kill a slot, and whatever it runs."""
        self.forget(slot)
        with suppress(Exception):  # the cluster may be gone
            self._ray.kill(slot.actor)

    def forget(self, slot: SlotHandle) -> None:
        """Leave a slot to the server that uses it."""
        with self._changed:
            self._idle = [one for one in self._idle if one[0] != slot]
            self._slots.pop(slot.actor._actor_id.hex(), None)

    def count(self, n_more: int) -> None:
        """Count the running tasks."""
        with self._changed:
            self.n_running += n_more

    def describe_loss(self, slot: SlotHandle) -> str:
        """Say what has become of a slot that does not answer."""
        with suppress(self._ray.exceptions.RayError):
            if not any(node["Alive"] for node in self._ray.nodes() if node["NodeID"] == slot.node_id):
                return f"the node {slot.node} was lost while it worked on this."
        return f"the node {slot.node}, or the process on it that starts workers, was lost."
