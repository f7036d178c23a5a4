"""Rollout workers as actors of a Ray cluster.

Only this file imports Ray. The policy goes into Ray's object store once per rollout, from where each machine takes it
once.
"""

import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions
import torch

from grpo_core.shards.player import ShardPlayer
from grpo_core.shards.pool import RolloutPool, Worker, WorkerDiedError

# How often a wait for an actor looks at whether it was given up.
_LOOK_SECONDS = 0.5
# Longest wait for a place in the cluster.
_PLACE_SECONDS = 120.0


class RayPool(RolloutPool):
    """Workers on a Ray cluster that this process is connected to.

    :param n_workers: Actors, at least 1.
    :param num_cpus: Cores that each reserves.
    :param actor_options: More of Ray's options for an actor, such as ``resources`` or ``runtime_env``.
    """

    def __init__(self, n_workers: int, num_cpus: float = 1, actor_options: Mapping[str, Any] | None = None) -> None:
        super().__init__(n_workers)
        self._options = {"num_cpus": num_cpus, "max_restarts": 0, **(actor_options or {})}
        # The setup and the policy in use, and where they are in the object store.
        self._shared: list[tuple[bytes, Any]] = []

    def _start(self) -> "_RayWorker":
        return _RayWorker(self, ray.remote(_ShardActor).options(**self._options).remote())

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
        torch.set_num_threads(1)
        self._setup = self._policy = b""
        self._player: ShardPlayer

    def is_there(self) -> bool:
        """Answer once it has been placed."""
        return True

    def play(self, setup: bytes, policy: bytes, order: bytes) -> bytes:
        """Play a shard; Ray has fetched the rest."""
        if setup != self._setup:
            self._player, self._setup, self._policy = ShardPlayer(setup), setup, b""
        if policy != self._policy:
            self._player.set_policy(policy)
            self._policy = policy
        return self._player.play(order)


class _RayWorker(Worker):
    def __init__(self, pool: RayPool, actor: Any) -> None:
        self._pool, self._actor = pool, actor
        self._is_killed = False
        self._is_placed = False

    def play(self, setup: bytes, policy: bytes, order: bytes) -> bytes:
        if not self._is_placed:
            self._get(self._actor.is_there.remote(), _PLACE_SECONDS)
            self._is_placed = True
        reply: bytes = self._get(self._actor.play.remote(*self._pool.share(setup, policy), order))
        return reply

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self._is_killed = True
        ray.kill(self._actor)

    def _get(self, reference: Any, max_seconds: float = float("inf")) -> Any:
        deadline = time.monotonic() + max_seconds
        while not self._is_killed:
            try:
                return ray.get(reference, timeout=_LOOK_SECONDS)
            except ray.exceptions.GetTimeoutError:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the Ray cluster had no free place for a rollout worker in {max_seconds:.0f} s; lower "
                        "n_rollout_workers, or add nodes."
                    ) from None
            except ray.exceptions.RayError as error:
                raise WorkerDiedError(str(error).strip().partition("\n")[0]) from None
        raise WorkerDiedError("it was ended")
