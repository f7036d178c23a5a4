"""One task in a slot of a Ray cluster, followed by the server."""

import logging
import threading
import time
from contextlib import nullcontext, suppress
from typing import Any

from service.context import JOB_ID, REQUEST_ID
from service.errors import ServiceError
from service.workers.cluster.ray_connection import cut
from service.workers.cluster.slot_pool import Needs, SlotHandle, SlotPool
from service.workers.messages import Message, Outcome, deliver, read_outcome
from service.workers.receipts import Receipts
from service.workers.task import NodeLostError, Progress, TaskDrainedError, TaskFailedError, WorkerLostError

logger = logging.getLogger("grpo.service")

_POLL_SECONDS = 5.0
_KILL_SECONDS = 10.0
# Ray may take a minute to say that a node is gone; a job that waited for that would count as stalled.
_SILENCE_SECONDS = 30.0


class RayRun:
    """A task in a slot.

    :param pool: Has the slots.
    :param progress: Receives the task's reports.
    :param receipts: Which of them were taken; None of a task that ends with the server.
    """

    #: No node says how long others keep the task from the processor.
    delay_seconds = 0.0

    def __init__(self, pool: SlotPool, progress: Progress, receipts: Receipts | None) -> None:
        self._pool, self._progress, self._receipts = pool, progress, receipts
        #: How often an earlier server has asked the task to stop.
        self.n_earlier_stops = 0
        self._outcome: Outcome | None = None
        self._n_taken = 0 if receipts is None else receipts.n_taken
        # The messages that Ray is asked for now, and since when.
        self._asked_at = 0.0
        self._asked: Any = None
        self._has_begun = False
        self._is_stopped = threading.Event()
        # Guards the two below.
        self._lock = threading.Lock()
        self._n_stops = 0
        self._slot: SlotHandle | None = None

    def check(self) -> None:
        """Look whether the task's start is still waited for.

        :raises TaskDrainedError: If the server ends, or the task is stopped.
        """
        self._pool.check()
        if self._is_stopped.is_set():
            raise TaskDrainedError("the job was stopped before it was started.")

    def begin(self, needs: Needs, wait_seconds: float, packed: bytes, has_learned: bool) -> None:
        """Have a slot start the task.

        :param has_learned: Whether a task that is stopped while its worker starts has something to save. If not, the
            start is given up: imports may take minutes.
        :raises TaskDrainedError: If the server ends before the task is started, or the task is stopped.
        :raises TaskFailedError: If no node has room in time, or the node lacks something.
        """
        warn = self._progress.publish_warning
        try:
            slot = self._pool.acquire(needs, wait_seconds, warn, self.check)
        except WorkerLostError as error:
            self._outcome = error
            return
        self._take_slot(slot)
        # Its first worker waits for imports, which must not count as a stall of the task.
        attempt = 0 if self._receipts is None else self._receipts.attempt
        try:
            begun = slot.actor.begin.remote(JOB_ID.get(), REQUEST_ID.get(), attempt, packed)
            self._pool.wait_for_start(begun, self._pool.check if has_learned else self.check)
        except WorkerLostError as error:
            self._lose(slot, error)
            return
        except BaseException:
            self._leave(is_free=False)
            raise
        self._follow(slot)

    def follow(self, slot: SlotHandle, n_stops: int) -> None:
        """Go on with a task that a slot runs already.

        :param n_stops: How often it was asked to stop.
        """
        self.n_earlier_stops = n_stops
        self._take_slot(slot)
        self._follow(slot)

    def _take_slot(self, slot: SlotHandle) -> None:
        self._pool.count(1)
        with self._lock:
            self._slot = slot

    def _follow(self, slot: SlotHandle) -> None:
        with self._lock:
            self._has_begun = True
            self._send_stops()
        self._ask(slot)

    def _ask(self, slot: SlotHandle) -> None:
        n_written = self._n_taken if self._receipts is None else self._receipts.n_written
        self._asked = slot.actor.poll.remote(self._pool.owner, self._n_taken, n_written, _POLL_SECONDS)
        self._asked_at = time.monotonic()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the task has ended, at most for a time; return whether it has."""
        deadline = time.monotonic() + timeout_seconds
        while self._outcome is None:
            ray, slot = self._pool.connect(self._pool.check), self._slot
            assert slot is not None, "without one there is an outcome"
            try:
                if not ray.wait([self._asked], timeout=max(0.0, deadline - time.monotonic()))[0]:
                    if time.monotonic() - self._asked_at < _SILENCE_SECONDS:
                        return False
                    self._lose(slot, TimeoutError("it does not answer"))
                    break
                self._take(ray.get(self._asked), slot)
            except ray.exceptions.RayTaskError as error:  # nothing has died, but the slot's own code has failed
                logger.warning("a slot on the node %s failed", slot.node, exc_info=True)
                self._outcome = TaskFailedError(f"the node {slot.node} failed: {cut(error)}")
                self._leave(is_free=False)
            except ray.exceptions.RayError as error:
                self._lose(slot, error)
        return True

    def get_content(self) -> bytes:
        """Return what the ended task returned, or raise what it raised."""
        assert self._outcome is not None, "called after the end"
        if self._receipts is None:
            self._leave(is_free=True)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def release(self) -> None:
        """Let go of the task's result; until then another server can ask for it."""
        self._leave(is_free=self._outcome is not None)

    def leave(self) -> None:
        """Leave the task, which goes on, to the next server."""
        self._leave(is_free=False, is_ours=False)

    def kill(self) -> None:
        """End the task without a result."""
        with self._lock:
            slot = self._slot
        if slot is None:
            return
        ray = self._pool.connect(lambda: None)
        is_free: bool | None = False
        with suppress(ray.exceptions.RayError):  # a node that does not answer loses the slot
            is_free = ray.get(slot.actor.kill.remote(self._pool.owner), timeout=_KILL_SECONDS)
        self._leave(bool(is_free), is_ours=is_free is not None)

    def stop(self) -> None:
        """Ask the task to stop, from any thread; a second time, to skip what would follow."""
        self._is_stopped.set()
        with self._lock:
            self._n_stops += 1
            self._send_stops()

    def _send_stops(self) -> None:
        if self._slot is not None and self._has_begun and self._n_stops:
            with suppress(Exception):  # its loss shows elsewhere
                self._slot.actor.stop.remote(self._pool.owner, self._n_stops)

    def _lose(self, slot: SlotHandle, error: Exception) -> None:
        logger.warning("a slot on the node %s was lost: %s", slot.node, cut(error))
        self._outcome = NodeLostError(self._pool.describe_loss(slot))
        self._leave(is_free=False)

    def _take(self, answer: Any, slot: SlotHandle) -> None:
        if answer is None:
            self._outcome = NodeLostError("another server follows it now.")
            self._leave(is_free=False, is_ours=False)
            return
        for number, kind, value, content, age_seconds in answer:
            self._outcome = self._place(read_outcome(kind, value, content), slot)
            if self._outcome is not None:
                if self._receipts is not None:
                    self._receipts.end_age_seconds = age_seconds
                return
            self._take_report(number, kind, value, content, age_seconds)
        self._ask(slot)

    def _take_report(self, number: int, kind: str, value: Any, content: bytes, age_seconds: float) -> None:
        if kind == Message.CHECKPOINT:  # nothing else waits while it is written, and taking it twice does no harm
            deliver(self._progress, kind, value, content)
        with nullcontext() if self._receipts is None else self._receipts.take(number, age_seconds):
            if kind != Message.CHECKPOINT:
                deliver(self._progress, kind, value, content)
        self._n_taken = number

    def _place(self, outcome: Outcome | None, slot: SlotHandle) -> Outcome | None:
        """Add to an error where it happened, if that may be why."""
        if isinstance(outcome, WorkerLostError):
            return WorkerLostError(f"on the node {slot.node}, {outcome}")
        if isinstance(outcome, ServiceError | TaskFailedError) and "No module named" in str(outcome):
            remedy = f"(on the node {slot.node}: every node needs the packages of the environments)"
            return type(outcome)(f"{str(outcome).rstrip('.')} {remedy}.")
        return outcome

    def _leave(self, is_free: bool, is_ours: bool = True) -> None:
        """Give the slot back, once."""
        with self._lock:
            slot, self._slot = self._slot, None
        if slot is None:
            return
        self._pool.count(-1)
        if not is_ours:
            self._pool.forget(slot)
        elif is_free:
            self._pool.release(slot)
        else:
            self._pool.discard(slot)
