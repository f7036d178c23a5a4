"""The search for the slots of a server that was killed: by its next process, which goes on with their tasks."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from service.workers.cluster import ray_slot
from service.workers.cluster.ray_connection import cut
from service.workers.cluster.slot_pool import ANSWER_SECONDS, NAMESPACE, Check, Needs, SlotHandle, SlotPool
from service.workers.task import ClusterLostError, TaskDrainedError, TaskFailedError

logger = logging.getLogger("grpo.service")

# How late the end of the server may end a pause.
_WATCH_SECONDS = 0.1
# Shortest time in which a slot may still take another server for alive, and pauses before it or the cluster is asked
# again.
_CLAIM_SECONDS = 30.0
_CLAIM_PAUSE_SECONDS = 1.0
_RETRY_SECONDS = 5.0


class RaySearch:
    """Finds slots that earlier processes of this server have made. Safe to use from any thread.

    :param pool: The slots of this process.
    :param server_id: What the names of the server's slots begin with.
    """

    def __init__(self, pool: SlotPool, server_id: str) -> None:
        self._pool, self._prefix = pool, f"{server_id}-"
        # Held while slots are asked what they run. Guards the two below.
        self._asking = threading.Lock()
        # By job and attempt.
        self._found: dict[tuple[str | None, int], tuple[Any, ray_slot.Described]] = {}
        self._has_asked_all = False

    def find(
        self, job_id: str, attempt: int, deadline: float, warn: Callable[[str], None]
    ) -> tuple[SlotHandle, int] | None:
        """Find the slot that runs a job, and have it answer this server; None without one.

        :param deadline: Until when the cluster and the slot may be silent, on the monotonic clock.
        :param warn: Called once with what people should know if the cluster does not answer.
        :return: The slot, and how often its task was stopped.
        :raises ClusterLostError: If one of them is silent for longer.
        :raises TaskDrainedError: If the server ends.
        """
        found = self._find(job_id, attempt, deadline, warn)
        if found is None:
            return None
        actor, described = found
        n_stops = self._claim(actor, job_id, attempt, deadline)
        if n_stops is None:
            return None
        return SlotHandle(actor, Needs(0.0, 0.0, True), described.node_id, described.node, is_adopted=True), n_stops

    def _find(
        self, job_id: str, attempt: int, deadline: float, warn: Callable[[str], None]
    ) -> tuple[Any, ray_slot.Described] | None:
        has_warned = False
        while True:
            try:
                with self._asking:
                    if (job_id, attempt) not in self._found and not self._has_asked_all:
                        self._ask()
                return self._found.get((job_id, attempt))
            except ClusterLostError as error:
                if (job_id, attempt) in self._found:
                    continue
                if time.monotonic() > deadline:
                    raise
                if not has_warned:
                    has_warned = True
                    warn(f"nobody knows how the job is, until the cluster answers: {error}")
                _pause(_RETRY_SECONDS, self._pool.check)

    def _ask(self) -> None:
        """Ask all slots what they run.

        :raises ClusterLostError: If not all of them answer, or say that they are gone.
        """
        ray = self._pool.connect(self._pool.check)
        actors = self._list_left(ray)
        try:
            asked = {actor.describe.remote(): actor for actor in actors}
            ready = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)[0] if asked else []
        except Exception as error:  # Ray documents no base class for its errors
            raise ClusterLostError(f"the Ray cluster does not say what runs there ({cut(error)}).") from error
        silent = [actor for answer, actor in asked.items() if answer not in ready]
        n_silent = sum(not _end_if_waiting(ray, actor) for actor in silent)
        n_silent += sum(not self._note_answer(ray, answer, asked[answer]) for answer in ready)
        if n_silent:
            raise ClusterLostError(
                f"{n_silent} of the server's {len(asked)} processes on the Ray cluster do not answer; their nodes may "
                "be busy or cut off."
            )
        self._has_asked_all = True

    def _note_answer(self, ray: Any, answer: Any, actor: Any) -> bool:
        """Note what a slot runs; return False if it may be there and does not say."""
        try:
            described = ray.get(answer)
        except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):  # it may be there again
            return False
        except ray.exceptions.RayError:  # it, or its node, is gone
            return True
        self._found[described.job_id, described.attempt] = actor, described
        return True

    def _list_left(self, ray: Any) -> list[Any]:
        """List the slots that earlier processes have made and that have outlived them.

        :raises ClusterLostError: If the cluster does not say.
        """
        found = []
        try:
            for named in ray.util.list_named_actors(all_namespaces=True):
                is_ours = named["namespace"] == NAMESPACE and named["name"].startswith(self._prefix)
                if is_ours and named["name"] not in self._pool.own_names:
                    with suppress(ValueError):  # it has ended just now
                        found.append(ray.get_actor(named["name"], namespace=NAMESPACE))
        except Exception as error:  # Ray documents no base class for its errors
            raise ClusterLostError(f"the Ray cluster does not say what runs there ({cut(error)}).") from error
        return found

    def _claim(self, actor: Any, job_id: str, attempt: int, deadline: float) -> int | None:
        """Have a slot answer this server, once it takes the one before for gone.

        :return: How often the task was stopped; None if the slot is gone, or has another task.
        :raises ClusterLostError: If the slot does not answer, or another server follows the task until the deadline.
        """
        deadline = max(deadline, time.monotonic() + _CLAIM_SECONDS)
        ray = self._pool.connect(self._pool.check)
        reason = "another server follows it"
        while time.monotonic() < deadline:
            try:
                answer = actor.attach.remote(self._pool.owner, job_id, attempt)
                n_stops: int | None = ray.get(answer, timeout=ANSWER_SECONDS)
                if n_stops is not None:
                    return n_stops
                described = ray.get(actor.describe.remote(), timeout=ANSWER_SECONDS)
                if (described.job_id, described.attempt) != (job_id, attempt):
                    return None
                reason = "another server follows it"
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError) as error:
                reason = f"its process on the Ray cluster does not answer ({cut(error)})"
            except ray.exceptions.RayError:  # it, or its node, is gone
                return None
            _pause(_CLAIM_PAUSE_SECONDS, self._pool.check)
        raise ClusterLostError(f"the job may go on, but {reason}.")

    def end_left(self) -> None:
        """End the slots that no server follows, as far as they can be reached now; others end with their leases."""
        try:
            ray = self._pool.connect(self._pool.check)
            _pause(ray_slot.OWNER_SECONDS, self._pool.check)  # until then a slot may take a killed server for alive
            for actor in self._list_left(ray):
                actor.end_if_left.remote(self._pool.owner)
        except TaskDrainedError:
            return
        except TaskFailedError as error:
            logger.warning("what earlier servers have left on the cluster ends with its lease: %s", error)


def _end_if_waiting(ray: Any, actor: Any) -> bool:
    """End a silent slot if Ray has found no node for it yet; return whether that was so.

    Its server was killed before it could begin anything there.
    """
    # Only Ray's private state tells such a slot from one whose node is cut off: the public ray.util.state asks the
    # dashboard, which many clusters do not run.
    with suppress(Exception):
        state = ray._private.state.actors(actor._actor_id.hex())["State"]
        if state in ("DEPENDENCIES_UNREADY", "PENDING_CREATION"):
            with suppress(Exception):  # it is gone
                ray.kill(actor)
            return True
    return False


def _pause(seconds: float, check: Check) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        check()
        time.sleep(_WATCH_SECONDS)
