"""Tasks on a Ray cluster: each in a worker process on some node, as ``service.workers.processes`` runs it here.

A slot is a Ray actor on a node that forks workers there (``service.workers.cluster.ray_slot``). It declares what its
task needs, so Ray finds the node. Slots are kept for a while after a task: a new one has to import torch.

On a cluster that the server has not started itself, slots of jobs outlive it: they have names that begin with the
server's own, under which its next process finds them.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from typing import Any, NamedTuple

from service.logs import LogStyle
from service.workers.cluster import ray_slot
from service.workers.cluster.ray_connection import RayConnection, RayOptions
from service.workers.cluster.ray_run import RayRun, cut
from service.workers.processes import list_paths, pack
from service.workers.receipts import Receipts
from service.workers.task import (
    ClusterLostError,
    NodeLostError,
    Progress,
    Task,
    TaskDrainedError,
    TaskFailedError,
    WorkerLostError,
)

logger = logging.getLogger("grpo.service")

#: Where slots that outlive their server have their names.
NAMESPACE = "grpo"
# Packages that decide what a training ends with.
_SAME_VERSIONS = ("torch", "stable-baselines3", "gymnasium", "numpy")
_WATCH_SECONDS = 0.1
_ANSWER_SECONDS = 10.0
# An idle slot keeps its processor from other users of the cluster.
_IDLE_SECONDS = 30.0
# After this long a job says that it is waiting.
_SILENT_SECONDS = 10.0
# Longest time that a task which asks for nothing may wait for a node.
_SHORT_SECONDS = 60.0
# Shortest time in which a slot may still take another server for alive, and pauses before it or the cluster is asked
# again.
_CLAIM_SECONDS = 30.0
_CLAIM_PAUSE_SECONDS = 1.0
_RETRY_SECONDS = 5.0
# A stop, a poll and a kill may come at the same time, and another server's.
_N_THREADS = 8


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


class RayExecutor:
    """Runs tasks on the nodes of a Ray cluster. A ``Keeper`` on one that it has not started itself.

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
        # Held while the slots of an earlier server are asked what they run.
        self._searching = threading.Lock()
        self._abandoned: dict[tuple[str | None, int], tuple[Any, ray_slot.Described]] = {}
        self._has_asked_all = False
        # Names of slots that this process has made.
        self._own_names: set[str] = set()
        # Guards everything below, and announces idle slots.
        self._changed = threading.Condition()
        self._idle: list[tuple[SlotHandle, float]] = []
        self._slots: dict[str, SlotHandle] = {}
        self._retiring: threading.Thread | None = None
        self._n_running = 0

    @property
    def is_busy(self) -> bool:
        """Whether any task is running."""
        return self._n_running > 0

    @property
    def can_keep(self) -> bool:
        """Whether jobs can outlive the server, and be found again by the next one."""
        return self._options.address is not None and bool(self._options.server_id)

    def warm_up(self) -> None:
        """Connect to the cluster in the background, and make a slot for short tasks ready."""
        threading.Thread(target=self._warm_up, name="grpo-ray", daemon=True).start()

    def start(self, task: Task, progress: Progress) -> RayRun:
        """Start a task on a node that has room for it, which may take a while."""
        return self._start(task, progress, None)

    def start_lasting(self, task: Task, progress: Progress, receipts: Receipts) -> RayRun:
        """Start a job's task in the same way, in a slot that outlives the server."""
        return self._start(task, progress, receipts)

    def _start(self, task: Task, progress: Progress, receipts: Receipts | None) -> RayRun:
        run, packed = RayRun(self, progress, receipts), pack(task)
        progress.attach_stop(run.stop)
        needs, wait_seconds = self._list_needs(task, receipts is not None)
        run.begin(needs, wait_seconds, packed)
        return run

    def adopt(self, job_id: str, progress: Progress, receipts: Receipts) -> RayRun | None:
        """Go on following a job's task that an earlier server has started; None if it is gone.

        A stop of the job does not end the search, and is sent once the task is found.

        :raises ClusterLostError: If the cluster or the task's slot does not answer for as long as a job may wait for a
            node.
        :raises TaskDrainedError: If the server ends before the task is found.
        """
        run = RayRun(self, progress, receipts)
        progress.attach_stop(run.stop)
        deadline = time.monotonic() + self._options.wait_seconds
        found = self._find_abandoned(job_id, receipts.attempt, deadline, progress.publish_warning)
        if found is None:
            return None
        actor, described = found
        n_stops = self._claim(actor, job_id, receipts.attempt, deadline)
        if n_stops is None:
            return None
        self.check()  # the next server finds it
        slot = SlotHandle(actor, Needs(0.0, 0.0, True), described.node_id, described.node, is_adopted=True)
        self._note(slot)
        run.follow(slot, n_stops)
        return run

    def end_left(self) -> None:
        """End the slots, in the background, that earlier servers have left behind and no server follows."""
        threading.Thread(target=self._end_left, name="grpo-ray-slots", daemon=True).start()

    def _end_left(self) -> None:
        try:
            ray = self.connect(self.check)
            _pause(ray_slot.OWNER_SECONDS, self.check)  # until then a slot may take a killed server for alive
            for actor in self._list_left(ray):
                actor.end_if_left.remote(self.owner)
        except TaskDrainedError:
            return
        except TaskFailedError as error:
            logger.warning("what earlier servers have left on the cluster ends with its lease: %s", error)

    def drain(self) -> None:
        """Start no more tasks; whoever waits for a node is told."""
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

    def _warm_up(self) -> None:
        with suppress(TaskFailedError):
            self.release(self.acquire(Needs(0.0, 0.0), _SHORT_SECONDS, lambda warning: None, self.check))

    def _list_needs(self, task: Task, is_lasting: bool) -> tuple[Needs, float]:
        if task.device is None:
            return Needs(0.0, 0.0), _SHORT_SECONDS
        n_gpus = self._options.gpus_per_job if task.device == "cuda" else 0.0
        return Needs(float(task.n_cpus), n_gpus, is_lasting), self._options.wait_seconds

    def check(self) -> None:
        """Look whether the server ends.

        :raises TaskDrainedError: If it does.
        """
        if self._draining.is_set():
            raise TaskDrainedError("the server ended before it was started.")

    def connect(self, check: Callable[[], None]) -> Any:
        """Return the module ``ray``, connected to the cluster.

        :param check: Called while that takes long; what it raises ends the waiting.
        :raises ClusterLostError: If the cluster cannot be reached.
        """
        self._ray = self._connection.open(check)
        return self._ray

    def acquire(
        self, needs: Needs, wait_seconds: float, warn: Callable[[str], None], check: Callable[[], None]
    ) -> SlotHandle:
        """Return a slot that nobody uses.

        :param wait_seconds: Longest time to wait for a node with room.
        :param warn: Called once with what people should know if that takes long.
        :param check: Called again and again; what it raises ends the waiting.
        :raises TaskFailedError: If no node has room in time, or the node lacks something.
        """
        ray = self.connect(check)
        while (slot := self._take_idle(needs)) is not None:
            with suppress(ray.exceptions.RayError):
                if self._has_answered(slot.actor.release.remote(self.owner), _ANSWER_SECONDS, check):
                    return slot
            self.discard(slot)  # its node is gone
        actor = self._make_actor(needs)
        try:
            described = self._prepare(actor, needs, wait_seconds, warn, check)
        except BaseException:
            with suppress(Exception):  # the cluster may be gone
                ray.kill(actor)
            raise
        slot = SlotHandle(actor, needs, described.node_id, described.node)
        self._note(slot)
        return slot

    def _prepare(
        self, actor: Any, needs: Needs, wait_seconds: float, warn: Callable[[str], None], check: Callable[[], None]
    ) -> ray_slot.Described:
        versions = {name: metadata.version(name) for name in _SAME_VERSIONS}
        is_here = self._options.address is None
        paths, folder = (list_paths(), os.getcwd()) if is_here else ([], None)
        answer = actor.prepare.remote(paths, folder, versions, tuple(self._log_style))
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

    def _has_answered(self, answer: Any, seconds: float, check: Callable[[], None]) -> bool:
        """Wait for an answer; return whether it came in time."""
        deadline = time.monotonic() + seconds
        while not self._ray.wait([answer], timeout=_WATCH_SECONDS)[0]:
            check()
            if time.monotonic() > deadline:
                return False
        self._ray.get(answer)
        return True

    def _note(self, slot: SlotHandle) -> None:
        with self._changed:
            self._slots[slot.actor._actor_id.hex()] = slot

    def _take_idle(self, needs: Needs) -> SlotHandle | None:
        with self._changed:
            fitting = [one for one in self._idle if one[0].needs == needs]
            if fitting:
                self._idle.remove(fitting[-1])
                return fitting[-1][0]
            others = [] if needs.num_cpus == 0 else [slot for slot, _ in self._idle if slot.needs.num_cpus > 0]
            self._idle = [one for one in self._idle if one[0] not in others]
        for slot in others:  # they may have what is missing
            self.discard(slot)
        return None

    def _make_actor(self, needs: Needs) -> Any:
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": _N_THREADS}
        lease_seconds = None
        if needs.is_lasting:
            lease_seconds = self._options.lease_seconds
            name = f"{self._options.server_id}-{uuid.uuid4().hex}"
            self._own_names.add(name)
            options |= {"name": name, "namespace": NAMESPACE, "lifetime": "detached"}
        remote = self._ray.remote(ray_slot.Slot)
        actor = remote.options(num_cpus=needs.num_cpus, num_gpus=needs.num_gpus, **options)
        return actor.remote(self.owner, lease_seconds)

    def _describe_room(self, needs: Needs) -> str:
        wanted = f"{needs.num_cpus:g} CPU" + (f" and {needs.num_gpus:g} GPU" if needs.num_gpus else "")
        with suppress(self._ray.exceptions.RayError):
            total, free = self._ray.cluster_resources(), self._ray.available_resources()
            rooms = [f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in ("CPU", "GPU")]
            n_nodes = sum(node["Alive"] for node in self._ray.nodes())
            return f"it needs {wanted}, and the cluster has {' and '.join(rooms)} on {n_nodes} nodes"
        return f"it needs {wanted}"

    def _find_abandoned(
        self, job_id: str, attempt: int, deadline: float, warn: Callable[[str], None]
    ) -> tuple[Any, ray_slot.Described] | None:
        """Return the slot that runs a job for an earlier server; None if there is none."""
        has_warned = False
        while True:
            try:
                with self._searching:
                    if (job_id, attempt) not in self._abandoned and not self._has_asked_all:
                        self._ask_abandoned(self.connect(self.check))
                return self._abandoned.get((job_id, attempt))
            except ClusterLostError as error:
                if (job_id, attempt) in self._abandoned:
                    continue
                if time.monotonic() > deadline:
                    raise
                if not has_warned:
                    has_warned = True
                    warn(f"nobody knows how the job is, until the cluster answers: {error}")
                _pause(_RETRY_SECONDS, self.check)

    def _ask_abandoned(self, ray: Any) -> None:
        """Ask the slots that this server has left behind what they run.

        :raises ClusterLostError: If not all of them answer, or say that they are gone.
        """
        actors = self._list_left(ray)
        try:
            asked = {actor.describe.remote(): actor for actor in actors}
            ready = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)[0] if asked else []
        except Exception as error:  # Ray raises what it likes
            raise ClusterLostError(f"the Ray cluster does not say what runs there ({cut(error)}).") from error
        n_silent = 0
        for answer in asked.keys() - set(ready):
            if _waits_for_room(ray, asked[answer]):  # its server was killed before it could begin anything
                with suppress(Exception):  # it is gone
                    ray.kill(asked[answer])
            else:
                n_silent += 1
        for answer in ready:
            try:
                described = ray.get(answer)
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):  # it may be there again
                n_silent += 1
            except ray.exceptions.RayError:  # it, or its node, is gone
                continue
            else:
                self._abandoned[described.job_id, described.attempt] = asked[answer], described
        if n_silent:
            raise ClusterLostError(
                f"{n_silent} of the server's {len(asked)} processes on the Ray cluster do not answer; their nodes may "
                "be busy or cut off."
            )
        self._has_asked_all = True

    def _list_left(self, ray: Any) -> list[Any]:
        """List the slots that earlier servers have made and that have outlived them.

        :raises ClusterLostError: If the cluster does not say.
        """
        prefix, found = f"{self._options.server_id}-", []
        try:
            for named in ray.util.list_named_actors(all_namespaces=True):
                name = named["name"]
                if named["namespace"] == NAMESPACE and name.startswith(prefix) and name not in self._own_names:
                    with suppress(ValueError):  # it has ended just now
                        found.append(ray.get_actor(name, namespace=NAMESPACE))
        except Exception as error:  # Ray raises what it likes
            raise ClusterLostError(f"the Ray cluster does not say what runs there ({cut(error)}).") from error
        return found

    def _claim(self, actor: Any, job_id: str, attempt: int, deadline: float) -> int | None:
        """Have a slot answer this server, once it takes the one before for gone.

        :return: How often the task was stopped; None if the slot is gone, or has another task.
        :raises ClusterLostError: If the slot does not answer, or another server follows the task until the deadline.
        """
        deadline = max(deadline, time.monotonic() + _CLAIM_SECONDS)
        exceptions = self._ray.exceptions
        reason = "another server follows it"
        while time.monotonic() < deadline:
            try:
                answer = actor.attach.remote(self.owner, job_id, attempt)
                n_stops: int | None = self._ray.get(answer, timeout=_ANSWER_SECONDS)
                if n_stops is not None:
                    return n_stops
                described = self._ray.get(actor.describe.remote(), timeout=_ANSWER_SECONDS)
                if (described.job_id, described.attempt) != (job_id, attempt):
                    return None
                reason = "another server follows it"
            except (exceptions.ActorUnavailableError, exceptions.GetTimeoutError) as error:
                reason = f"its process on the Ray cluster does not answer ({cut(error)})"
            except exceptions.RayError:  # it, or its node, is gone
                return None
            _pause(_CLAIM_PAUSE_SECONDS, self.check)
        raise ClusterLostError(f"the job may go on, but {reason}.")

    def release(self, slot: SlotHandle) -> None:
        """Keep a slot for the next task, for a while."""
        if slot.is_adopted:
            is_ours = True
            with suppress(Exception):  # it may be gone
                is_ours = self._ray.get(slot.actor.release.remote(self.owner), timeout=_ANSWER_SECONDS)
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
                old = [slot for slot, since in self._idle if now - since >= _IDLE_SECONDS]
                # Before they are killed: a job might take one in between.
                self._idle = [one for one in self._idle if one[0] not in old]
                if not old:
                    self._changed.wait(max(0.0, self._idle[0][1] + _IDLE_SECONDS - now))
            for slot in old:
                self.discard(slot)

    def discard(self, slot: SlotHandle) -> None:
        """Kill a slot, and whatever it runs."""
        self.forget(slot)
        with suppress(Exception):  # the cluster may be gone
            self._ray.kill(slot.actor)

    def forget(self, slot: SlotHandle) -> None:
        """Leave a slot to whoever uses it."""
        with self._changed:
            self._idle = [one for one in self._idle if one[0] != slot]
            self._slots.pop(slot.actor._actor_id.hex(), None)

    def wait_for_start(self, begun: Any, check: Callable[[], None]) -> None:
        """Wait until a slot has started a task.

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

    def count(self, n_more: int) -> None:
        """Count the running tasks."""
        with self._changed:
            self._n_running += n_more

    def describe_loss(self, slot: SlotHandle) -> str:
        """Say what has become of a slot that does not answer."""
        with suppress(self._ray.exceptions.RayError):
            if not any(node["Alive"] for node in self._ray.nodes() if node["NodeID"] == slot.node_id):
                return f"the node {slot.node} was lost while it worked on this."
        return f"the node {slot.node}, or the process on it that starts workers, was lost."


def _waits_for_room(ray: Any, actor: Any) -> bool:
    """Return whether Ray has found no node for a slot yet, so that nothing runs in it."""
    with suppress(Exception):  # Ray promises nobody that it can be asked
        return ray._private.state.actors(actor._actor_id.hex())["State"] in ("DEPENDENCIES_UNREADY", "PENDING_CREATION")
    return False


def _pause(seconds: float, check: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        check()
        time.sleep(_WATCH_SECONDS)
