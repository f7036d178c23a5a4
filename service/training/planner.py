"""From a request to a job that can be queued: names are checked here, and a worker does the rest."""

import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
from cachetools import LRUCache
from gymnasium.envs.registration import EnvSpec
from pydantic import BaseModel

from grpo_core.options.rewards import RewardFunction
from service.errors import InvalidRequestError, TooLargeError
from service.schemas.fields import MAX_SEED
from service.schemas.training import TrainConfig, TrainRequest
from service.training.names import NamedRequest, Reward, resolve_names
from service.workers.short_tasks import ShortTasks
from service.workers.task import Task

_MAX_KEPT = 256


class Settled(BaseModel):
    """What a worker has settled of a request.

    :param config: What to train with; its ``model_name`` and ``seed`` stand for any.
    :param warnings: What the client should know of it.
    :param reward_threshold: What an episode earns where the environment counts as solved; None if it does not say.
    """

    config: TrainConfig
    warnings: list[str]
    reward_threshold: float | None


class TrainingPlan(NamedTuple):
    """A job that can be started.

    :param config: What it trains with.
    :param reward: The reward functions that the configuration names.
    :param warnings: What the client should know of it.
    :param reward_threshold: What an episode earns where the environment counts as solved; None if it does not say.
    """

    config: TrainConfig
    reward: Reward
    warnings: tuple[str, ...] = ()
    reward_threshold: float | None = None

    def make_task(self, run_dir: Path | None = None) -> Task:
        """Make what an executor runs.

        :param run_dir: Folder to write for TensorBoard; None writes none.
        """
        return Task("service.training.train:train_policy", (self.config, self.reward, run_dir), self.config.env_name)


class _Kept(NamedTuple):
    """What a request was settled to, and what its names stood for then: somebody may register others."""

    spec: EnvSpec
    functions: Reward
    settled: Settled


class Planner:
    """Plans jobs. Safe to use from any thread.

    :param short_tasks: Run what builds environments.
    :param reward_functions: The reward functions known by name; read anew for every job.
    """

    def __init__(self, short_tasks: ShortTasks, reward_functions: Mapping[str, RewardFunction]) -> None:
        self._short_tasks = short_tasks
        self._reward_functions = reward_functions
        self._lock = threading.Lock()
        # By the request's JSON, without the names and seeds of models, which settle nothing.
        self._kept: LRUCache[str, _Kept] = LRUCache(_MAX_KEPT)

    def plan(self, request: TrainRequest) -> TrainingPlan:
        """Fill in every default and check everything that can be checked before training.

        :raises InvalidRequestError: If the request names what does not exist or combines what does not fit, or if the
            environment fails.
        :raises ServiceError: If the server has no time for it; see ``ShortTasks.run``.
        """
        named = resolve_names(request, self._reward_functions)
        settled = self._settle(named)
        identity = {
            "model_name": request.model_name or _generate_model_name(request.env_name),
            "seed": secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        }
        config = settled.config.model_copy(update=identity)
        return TrainingPlan(config, named.rewards.functions, tuple(settled.warnings), settled.reward_threshold)

    def _settle(self, named: NamedRequest) -> Settled:
        env_name, functions = named.request.env_name, named.rewards.functions
        key = named.request.model_dump_json(exclude_unset=True, exclude={"model_name", "seed"})
        spec = gym.registry[env_name]
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and kept.spec is spec and _are_same(kept.functions, functions):
            return kept.settled
        try:
            content = self._short_tasks.run(
                Task("service.training.plan:settle_request", (named,), env_name),
                "the environment may hang while it is built; fix it.",
            )
        except TooLargeError as error:  # here it is not the request that is too large
            raise InvalidRequestError(error.detail) from error
        settled = Settled.model_validate_json(content)
        with self._lock:
            self._kept[key] = _Kept(spec, functions, settled)
        return settled


def _are_same(kept: Reward, now: Reward) -> bool:
    if isinstance(kept, list) and isinstance(now, list):
        return all(one is other for one, other in zip(kept, now, strict=True))
    return kept is now


def _generate_model_name(env_name: str) -> str:
    # Registered ids may start with a dot or an underscore, which model names may not.
    stem = env_name.replace("/", "-").lstrip("._-")[:80]
    return f"{stem or 'model'}-{secrets.token_hex(4)}"
