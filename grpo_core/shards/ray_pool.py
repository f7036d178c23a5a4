"""Rollout workers as actors of a Ray cluster.

Only this file imports Ray. The policy goes into Ray's object store once per rollout, from where each machine takes it
once.
"""

import time
from typing import Any

import ray
import ray.exceptions
import torch

from grpo_core.shards.pool import Worker, WorkerDiedError, WorkerPool, describe_stall
from grpo_core.shards.shard_player import ShardPlayer

# Methods that an actor answers while it plays.
_SIGNS = "signs"
# How often a wait for an actor looks at whether it was given up.
_LOOK_SECONDS = 0.5
# Longest wait for a place in the cluster.
_PLACE_SECONDS = 120.0


class RayPool(WorkerPool):
    """Workers on a Ray cluster that this process is connected to.

    :param n_workers: Actors, at least 1.
    :param num_cpus: Cores that each reserves.
    """

    def __init__(self, n_workers: int, num_cpus: float = 1) -> None:
        super().__init__(n_workers)
        self._num_cpus = num_cpus
        # The setup and the policy in use, and where they are in the object store.
        self._shared: list[tuple[bytes, Any]] = []

    def _start(self) -> "_RayWorker":
        # A group of their own lets signs of life through while a shard is played.
        actor = ray.remote(concurrency_groups={_SIGNS: 1})(_ShardActor)
        return _RayWorker(self, actor.options(num_cpus=self._num_cpus, max_restarts=0).remote())

    def share(self, *messages: bytes) -> list[Any]:
        """Put messages into the object store, unless they are there, and take earlier ones out."""
        with self._lock:
            known = self._shared
            self._shared = [
                next((one for one in known if one[0] is message), None) or (message, ray.put(message))
                for message in messages
            ]
            return [reference for _, reference in self._shared]


class _ShardActor:
    """A ``ShardPlayer`` in a process of Ray's."""

    def __init__(self) -> None:
        self._n_steps = 0
        self._setup = self._policy = b""
        self._player: ShardPlayer

    def is_there(self) -> bool:
        """Answer once it has been placed."""
        return True

    def play(self, setup: bytes, policy: bytes, order: bytes) -> bytes:
        """Play a shard; Ray has fetched the rest."""
        torch.set_num_threads(1)  # of this thread: with groups of methods, it is not the one that made the actor
        if setup != self._setup:
            self._player, self._setup, self._policy = ShardPlayer(setup), setup, b""
        if policy != self._policy:
            self._player.set_policy(policy)
            self._policy = policy
        return self._player.play(order, self._count_step)

    @ray.method(concurrency_group=_SIGNS)  # type: ignore[untyped-decorator]  # Ray has no types here
    def count_steps(self) -> int:
        """Return how many steps it has taken."""
        return self._n_steps

    def _count_step(self) -> bool:
        self._n_steps += 1
        return False  # it does not stop


class _RayWorker(Worker):
    def __init__(self, pool: RayPool, actor: Any) -> None:
        self._pool, self._actor = pool, actor
        self._is_killed = False
        self._is_placed = False

    def play(self, setup: bytes, policy: bytes, order: bytes, stall_seconds: float) -> bytes:
        if not self._is_placed:
            self._wait_for_place()
        reply = self._actor.play.remote(*self._pool.share(setup, policy), order)
        sign, n_steps = self._actor.count_steps.remote(), -1
        deadline = time.monotonic() + stall_seconds
        while not self._is_ready(reply, min(_LOOK_SECONDS, stall_seconds)):
            if self._is_ready(sign, 0.0):
                latest = self._get(sign)
                if latest != n_steps:
                    n_steps, deadline = latest, time.monotonic() + stall_seconds
                sign = self._actor.count_steps.remote()
            if time.monotonic() >= deadline:
                raise WorkerDiedError(describe_stall(stall_seconds))
        steps: bytes = self._get(reply)
        return steps

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self._is_killed = True
        ray.kill(self._actor)

    def _wait_for_place(self) -> None:
        reference = self._actor.is_there.remote()
        deadline = time.monotonic() + _PLACE_SECONDS
        while not self._is_ready(reference, _LOOK_SECONDS):
            if time.monotonic() >= deadline:
                raise RuntimeError(
                    f"the Ray cluster had no free place for a rollout worker in {_PLACE_SECONDS:.0f} s; lower "
                    "n_rollout_workers, or add nodes."
                )
        self._get(reference)
        self._is_placed = True

    def _is_ready(self, reference: Any, max_seconds: float) -> bool:
        """Wait until the actor has answered, or has died; return whether it has.

        :raises WorkerDiedError: If it was given up.
        """
        if self._is_killed:
            raise WorkerDiedError("it was ended")
        return bool(ray.wait([reference], timeout=max_seconds)[0])

    def _get(self, reference: Any) -> Any:
        """Return an answer that is ready.

        :raises WorkerDiedError: If the actor has died instead.
        """
        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:
            raise WorkerDiedError(str(error).strip().partition("\n")[0]) from None
