"""Plan training jobs: the server looks up the names in a request, and a worker checks the rest."""

import hashlib
import json
import secrets
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
from cachetools import LRUCache
from gymnasium.envs.registration import EnvSpec

from grpo_core.options.rewards import ENVIRONMENT_REWARD, Reward, RewardFunction
from service.errors import ConflictError, InvalidRequestError, TooLargeError
from service.schemas.fields import MAX_NAME_STEM_CHARS, MAX_SEED
from service.schemas.training import ConfigOrigins, TrainConfig, TrainRequest
from service.training.order import MEMORY_REMEDY
from service.training.planning.names import NamedRequest, resolve_names
from service.training.planning.plan import FilledRequest, TrainingPlan
from service.workers.short_tasks import ShortTasks
from service.workers.task import Task

_MAX_CACHED = 256


class _CachedPlan(NamedTuple):
    """A filled-in request, and what its names meant at that time: they may be registered again later."""

    spec: EnvSpec
    functions: Reward | None
    filled: FilledRequest


class Planner:
    """Plans jobs, and remembers the plans. Safe to use from any thread.

    :param short_tasks: Runs the tasks that build environments.
    :param reward_functions: The known reward functions by name; read again for every job.
    """

    def __init__(self, short_tasks: ShortTasks, reward_functions: Mapping[str, RewardFunction]) -> None:
        self._short_tasks = short_tasks
        self._reward_functions = reward_functions
        self._lock = threading.Lock()
        # By the request's JSON without model_name and seed, on which nothing else depends, and init_model's metadata.
        self._cache: LRUCache[str, _CachedPlan] = LRUCache(_MAX_CACHED)

    def plan(self, request: TrainRequest, init_meta: Mapping[str, Any] | None = None) -> TrainingPlan:
        """Fill in every default and check everything that can be checked before training.

        :param init_meta: What the model says of itself that ``init_model`` names; None without one.
        :raises InvalidRequestError: If the request names what does not exist or combines what does not fit, or if the
            environment fails.
        :raises ServiceError: Whatever ``ShortTasks.run`` raises.
        """
        named = resolve_names(request, self._reward_functions, init_meta)
        filled = self._fill_in(named)
        config = TrainConfig(
            **filled.settings,
            model_name=request.model_name or _generate_model_name(request.env_name),
            seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        )
        return TrainingPlan(
            config=config,
            reward=named.rewards.functions,
            warnings=tuple(filled.warnings),
            reward_threshold=filled.reward_threshold,
            config_origins={**filled.config_origins, **_find_origins(request)},
        )

    def find_rewards(self, config: TrainConfig) -> Reward | None:
        """Find the reward functions that a job was planned with, by their names.

        :raises ConflictError: If one of them, or the environment, is no longer there.
        """
        if config.env_name not in gym.registry:
            raise ConflictError(
                f"env_name '{config.env_name}' is no longer registered; start the server with the --env-module that "
                "registers it."
            )
        names = list(config.reward_functions or [config.reward_function_type or ENVIRONMENT_REWARD])
        for name in names:
            if name != ENVIRONMENT_REWARD and name not in self._reward_functions:
                raise ConflictError(
                    f"the reward function '{name}' is no longer registered; start the server with the --env-module "
                    "that registers it."
                )
        functions = [self._reward_functions.get(name) for name in names]
        return functions if config.reward_functions else functions[0]

    def _fill_in(self, named: NamedRequest) -> FilledRequest:
        env_name, functions = named.request.env_name, named.rewards.functions
        key = named.request.model_dump_json(exclude_unset=True, exclude={"model_name", "seed"})
        if named.init_meta is not None:  # hashed, since a file may have a mebibyte of it
            key += hashlib.sha256(json.dumps(named.init_meta).encode()).hexdigest()
        spec = gym.registry[env_name]
        with self._lock:
            cached = self._cache.get(key)
        if cached is not None and cached.spec is spec and _are_same(cached.functions, functions):
            return cached.filled
        try:
            content = self._short_tasks.run(
                Task("service.training.planning.fill_in:fill_in_request", (named,), env_name),
                memory_remedy=MEMORY_REMEDY,
            )
        except TooLargeError as error:  # the environment is slow; the request itself is not too large
            raise InvalidRequestError(error.detail) from error
        filled = FilledRequest.model_validate_json(content)
        with self._lock:
            self._cache[key] = _CachedPlan(spec, functions, filled)
        return filled


def _are_same(before: Reward | None, now: Reward | None) -> bool:
    if isinstance(before, list) and isinstance(now, list):
        return all(one is other for one, other in zip(before, now, strict=True))
    return before is now


def _find_origins(request: TrainRequest) -> ConfigOrigins:
    """Say who chose the fields on which no plan depends."""
    return {name: "default" if getattr(request, name) is None else "request" for name in ("model_name", "seed")}


def _generate_model_name(env_name: str) -> str:
    # An environment's id may start with a dot or an underscore; a model's name must not.
    stem = env_name.replace("/", "-").lstrip("._-")[:MAX_NAME_STEM_CHARS]
    return f"{stem or 'model'}-{secrets.token_hex(4)}"
