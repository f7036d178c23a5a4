"""Choose who plays the shards of a rollout: this thread, processes of this machine, or a Ray cluster."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from grpo_core.shards.pool import Replies, RolloutPool
from grpo_core.shards.shard_player import ShardPlayer


class InProcessPool(RolloutPool):
    """Plays shards in the caller's own thread, one after the other: what every other pool is to match."""

    @contextmanager
    def open(self, setup: bytes) -> Iterator[None]:
        self._player = ShardPlayer(setup, has_company=True)
        try:
            yield
        finally:
            self._player.close()

    def play(self, policy: bytes, orders: Sequence[bytes], should_stop: Callable[[], bool]) -> Replies:
        self._player.set_policy(policy)
        for order in orders:
            reply = self._player.play(order, should_stop)
            if should_stop():
                return
            yield reply


def choose_pool(n_workers: int, stall_seconds: float) -> RolloutPool:
    """Make the pool that fits where the training runs: on Ray where this process is connected to it, else processes.

    :param stall_seconds: See ``RolloutPool.stall_seconds``.
    """
    pool = _make_pool(n_workers)
    pool.stall_seconds = stall_seconds
    return pool


def _make_pool(n_workers: int) -> RolloutPool:
    if n_workers == 1:
        return InProcessPool()
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        from grpo_core.shards.ray_pool import RayPool

        return RayPool(n_workers)
    from grpo_core.shards.process_pool import ProcessPool

    return ProcessPool(n_workers)
