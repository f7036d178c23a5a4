"""Tasks on a Ray cluster: each in a worker process on some node, as ``service.workers.processes`` runs it here."""

import threading
import time
from contextlib import suppress

from service.logs import LogStyle
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_run import RayRun
from service.workers.cluster.ray_search import RaySearch
from service.workers.cluster.slot_pool import Needs, SlotPool
from service.workers.processes import pack
from service.workers.receipts import Receipts
from service.workers.task import Progress, Task, TaskFailedError

# Longest time that a task which asks for nothing may wait for a node.
_SHORT_SECONDS = 60.0


class RayExecutor:
    """Runs tasks on the nodes of a Ray cluster. A ``Keeper`` on one that it has not started itself.

    :param log_style: How workers write their logs.
    :param options: Which cluster, and how.
    """

    def __init__(self, log_style: LogStyle, options: RayOptions) -> None:
        self._options = options
        self._pool = SlotPool(log_style, options)
        self._search = RaySearch(self._pool, options.server_id)

    @property
    def is_busy(self) -> bool:
        """Whether any task is running."""
        return self._pool.n_running > 0

    @property
    def can_keep(self) -> bool:
        """Whether jobs can outlive the server, and be found again by the next one."""
        return self._options.address is not None and bool(self._options.server_id)

    def warm_up(self) -> None:
        """Connect to the cluster in the background, and make a slot for short tasks ready."""
        threading.Thread(target=self._warm_up, name="grpo-ray", daemon=True).start()

    def _warm_up(self) -> None:
        with suppress(TaskFailedError):
            slot = self._pool.acquire(Needs(0.0, 0.0), _SHORT_SECONDS, lambda warning: None, self._pool.check)
            self._pool.release(slot)

    def start(self, task: Task, progress: Progress) -> RayRun:
        """Start a task on a node that has room for it, which may take a while."""
        return self._start(task, progress, None)

    def start_lasting(self, task: Task, progress: Progress, receipts: Receipts) -> RayRun:
        """Start a job's task in the same way, in a slot that outlives the server."""
        return self._start(task, progress, receipts)

    def _start(self, task: Task, progress: Progress, receipts: Receipts | None) -> RayRun:
        run, packed = RayRun(self._pool, progress, receipts), pack(task)
        progress.attach_stop(run.stop)
        needs, wait_seconds = self._list_needs(task, receipts is not None)
        run.begin(needs, wait_seconds, packed, has_learned=task.goes_on)
        return run

    def _list_needs(self, task: Task, is_lasting: bool) -> tuple[Needs, float]:
        if task.device is None:
            return Needs(0.0, 0.0), _SHORT_SECONDS
        n_gpus = self._options.gpus_per_job if task.device == "cuda" else 0.0
        return Needs(float(task.n_cpus), n_gpus, is_lasting), self._options.wait_seconds

    def adopt(self, job_id: str, progress: Progress, receipts: Receipts) -> RayRun | None:
        """Go on following a job's task that an earlier server has started; None if it is gone.

        A stop of the job does not end the search, and is sent once the task is found.

        :raises ClusterLostError: If the cluster or the task's slot does not answer for as long as a job may wait for a
            node.
        :raises TaskDrainedError: If the server ends before the task is found.
        """
        run = RayRun(self._pool, progress, receipts)
        progress.attach_stop(run.stop)
        deadline = time.monotonic() + self._options.wait_seconds
        found = self._search.find(job_id, receipts.attempt, deadline, progress.publish_warning)
        if found is None:
            return None
        self._pool.check()  # the next server finds it
        slot, n_stops = found
        self._pool.keep(slot)
        run.follow(slot, n_stops)
        return run

    def end_left(self) -> None:
        """End, in the background, the slots that earlier servers have left and no server follows."""
        threading.Thread(target=self._search.end_left, name="grpo-ray-slots", daemon=True).start()

    def drain(self) -> None:
        """Start no more tasks; those that wait for a node are refused."""
        self._pool.drain()

    def close(self) -> None:
        """Kill all slots, and leave the cluster."""
        self._pool.close()
