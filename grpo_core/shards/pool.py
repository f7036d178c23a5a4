"""Hand the shards of a rollout to workers, and the steps back in the order of the shards.

``WorkerPool`` does it for workers of any kind; what a kind adds is how one is started, asked and ended. A shard whose
worker dies is played again by another, with the same steps.
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Self

# After this many dead workers the shard is to blame.
_MAX_DEATHS = 3
# How often a wait looks at whether it is still wanted.
_LOOK_SECONDS = 0.1


# Yields the replies; closing it gives up what is still to come.
Replies = Generator[bytes, None, None]


class WorkerDiedError(RuntimeError):
    """A worker has ended, or cannot be reached any more; the message says how."""


class RolloutWorkersError(RuntimeError):
    """The workers of a rollout cannot be kept alive."""


def describe_stall(stall_seconds: float) -> str:
    """Say of a worker why it was given up."""
    return (
        f"it took no step of the environment for {stall_seconds:g} s, the limit that rollout_stall_seconds sets "
        "(GRPO_STALL_SECONDS on a server), and was killed; reward functions count as part of the last step"
    )


class RolloutPool(ABC):
    """Plays the shards of rollouts."""

    #: A worker that takes no step for this long, in seconds, hangs: it is killed, and counts as one that died. The
    #: first step includes making the environments, and the last one the reward functions. ``math.inf`` waits for ever.
    stall_seconds = 300.0

    @abstractmethod
    def open(self, setup: bytes) -> AbstractContextManager[object]:
        """Play the shards of one training inside the block.

        :param setup: A packed ``ShardSetup``.
        """

    @abstractmethod
    def play(self, policy: bytes, orders: Sequence[bytes], should_stop: Callable[[], bool]) -> Replies:
        """Yield each shard's packed reply, in order, as soon as it and those before it are there.

        :param policy: A packed actor.
        :param orders: Packed ``ShardOrder``.
        :param should_stop: Asked while waiting; True ends it early, as closing the iterator does.
        :raises RolloutWorkersError: If workers keep dying.
        """


class Worker(ABC):
    """One worker. All but ``kill`` are called by one thread at a time."""

    @abstractmethod
    def play(self, setup: bytes, policy: bytes, order: bytes, stall_seconds: float) -> bytes:
        """Let it play a shard, see ``ShardPlayer``.

        :param setup: The same object for all rollouts of a training, so that it need not be sent again.
        :param policy: The same object for all shards of a rollout.
        :param stall_seconds: Longest time without a step.
        :raises WorkerDiedError: If it dies, or takes no step for ``stall_seconds``.
        """

    @abstractmethod
    def close(self) -> None:
        """End it while it has nothing to do."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once, from any thread; ``play`` then raises."""


class WorkerPool(RolloutPool):
    """Workers that play shards, and start with the first rollout.

    They end with the training, or serve several of them one after the other inside ``with pool:``.

    :param n_workers: Workers at once, at least 1.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._setup = b""
        # Guards the workers, which threads start while another may end them.
        self._lock = threading.Lock()
        self._workers: dict[int, Worker] = {}
        self._is_kept = False

    def __enter__(self) -> Self:
        self._is_kept = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_kept = False
        self._end()

    @abstractmethod
    def _start(self) -> Worker:
        """Start a worker.

        :raises WorkerDiedError: If it does not start.
        """

    @contextmanager
    def open(self, setup: bytes) -> Iterator[None]:
        self._setup = setup
        try:
            yield
        finally:
            if not self._is_kept:
                self._end()

    def play(self, policy: bytes, orders: Sequence[bytes], should_stop: Callable[[], bool]) -> Replies:
        rollout = _Rollout(orders)
        threads = [
            threading.Thread(target=self._serve, args=(slot, policy, rollout), name=f"rollout-worker-{slot}")
            for slot in range(min(self.n_workers, len(orders)))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from rollout.list_replies(should_stop)
        finally:
            if not rollout.close():
                self._give_up()
            for thread in threads:
                thread.join()

    def _serve(self, slot: int, policy: bytes, rollout: "_Rollout") -> None:
        """Let one worker play shards until none is left."""
        while (number := rollout.take()) is not None:
            try:
                worker = self._get_worker(slot, rollout)
                reply = worker.play(self._setup, policy, rollout.orders[number], self.stall_seconds)
                rollout.finish(number, reply)
            except WorkerDiedError as error:
                with self._lock:
                    dead = self._workers.pop(slot, None)
                if dead is not None:
                    dead.kill()
                rollout.give_back(number, error)
            except BaseException as error:  # for the thread that waits
                rollout.fail(error)

    def _get_worker(self, slot: int, rollout: "_Rollout") -> Worker:
        worker = self._workers.get(slot)
        if worker is None:
            worker = self._start()
            with self._lock:
                self._workers[slot] = worker
            if rollout.is_closed:  # meanwhile, by one who did not see this worker
                raise WorkerDiedError("it was ended")
        return worker

    def _give_up(self) -> None:
        """End all workers at once, whatever they do, so that no thread waits for one to start."""
        for worker in self._take_workers():
            worker.kill()

    def _end(self) -> None:
        """End all workers, which have nothing to do."""
        for worker in self._take_workers():
            worker.close()

    def _take_workers(self) -> list[Worker]:
        with self._lock:
            workers, self._workers = list(self._workers.values()), {}
        return workers


class _Rollout:
    """The shards of one rollout: which are waiting, and what has come back."""

    def __init__(self, orders: Sequence[bytes]) -> None:
        self.orders = orders
        self._changed = threading.Condition()
        self._waiting = deque(range(len(orders)))
        self._replies: dict[int, bytes] = {}
        self._n_deaths: Counter[int] = Counter()
        self._n_under_way = 0
        self._failure: BaseException | None = None
        self.is_closed = False

    def take(self) -> int | None:
        """Return the number of a shard to play; None once all have been played, or none is wanted any more."""
        with self._changed:
            # Another worker may return its shard to the queue.
            while not self._waiting and self._n_under_way and not self.is_closed:
                self._changed.wait()
            if self.is_closed or not self._waiting:
                return None
            self._n_under_way += 1
            return self._waiting.popleft()

    def finish(self, number: int, reply: bytes) -> None:
        """Take what a shard came to."""
        with self._changed:
            self._replies[number] = reply
            self._n_under_way -= 1
            self._changed.notify_all()

    def give_back(self, number: int, error: WorkerDiedError) -> None:
        """Let a shard be played again, unless it has ended too many workers."""
        with self._changed:
            self._n_deaths[number] += 1
            self._waiting.appendleft(number)
            self._n_under_way -= 1
            if self._n_deaths[number] == _MAX_DEATHS and self._failure is None:
                self._failure = RolloutWorkersError(
                    f"shard {number} of a rollout has ended {_MAX_DEATHS} rollout workers; of the last, {error}. The "
                    "environment, a reward function or one of their libraries may crash or hang, or memory be short: "
                    "lower n_rollout_workers or n_envs, or train with n_rollout_workers=1 and n_rollout_shards=1 to "
                    "see it."
                )
                self.is_closed = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Let the thread that waits raise an error."""
        with self._changed:
            self._failure, self.is_closed = self._failure or error, True
            self._changed.notify_all()

    def list_replies(self, should_stop: Callable[[], bool]) -> Iterator[bytes]:
        """Yield the replies in the order of the shards."""
        for number in range(len(self.orders)):
            while (reply := self._wait_for(number)) is None:
                if should_stop():
                    return
            yield reply

    def _wait_for(self, number: int) -> bytes | None:
        with self._changed:
            if number not in self._replies and self._failure is None:
                self._changed.wait(_LOOK_SECONDS)
            if self._failure is not None:
                raise self._failure
            return self._replies.pop(number, None)

    def close(self) -> bool:
        """Request no more shards; return whether none is waiting or under way."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
            return not self._waiting and not self._n_under_way
