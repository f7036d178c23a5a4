"""The registered environments and the reward functions."""

import inspect
import math
import re
import threading
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from cachetools import LRUCache
from gymnasium.envs.registration import EnvSpec

from grpo_core.environments.packages import describe_origin
from grpo_core.environments.registered_limits import get_reward_threshold, get_time_limit
from grpo_core.options.presets import get_preset, list_presets
from grpo_core.options.rewards import (
    CARTPOLE_ENVIRONMENTS,
    ENVIRONMENT_REWARD,
    REWARD_FUNCTIONS,
    RewardFunction,
    can_score,
    get_default_reward,
)
from grpo_core.suggestions import suggest
from service.errors import NotFoundError, printable
from service.schemas.environments import (
    EnvironmentDescription,
    EnvironmentFacts,
    EnvironmentSummary,
    RewardFunctionSummary,
)
from service.schemas.fields import ENV_NAME_PATTERN, MAX_ENV_NAME_CHARS
from service.workers.short_tasks import ShortTasks
from service.workers.task import Task

_ENV_NAME = re.compile(ENV_NAME_PATTERN)
_MAX_KEPT = 256
_MAX_DESCRIPTION_CHARS = 1000
_OWN_REWARD = "The environment's own reward."


def find_spec(env_name: str) -> EnvSpec | None:
    """Look up a registered environment without importing anything: ``module:Name-v0`` finds none."""
    fits = len(env_name) <= MAX_ENV_NAME_CHARS and _ENV_NAME.fullmatch(env_name)
    return gym.registry.get(env_name) if fits else None


def suggest_environment(env_name: str) -> str:
    """Say where an environment that is not registered may be found, or which name may be meant."""
    if hint := describe_origin(env_name, "start the server with --env-module"):
        return hint
    return suggest(env_name, gym.registry.copy()) or (
        "GET /environments lists those that are. If a module of yours registers it, start the server with "
        "--env-module and the module's name."
    )


class Catalogue:
    """Lists and describes environments and reward functions. Safe to use from any thread.

    :param short_tasks: Runs the tasks that build environments.
    :param reward_functions: The reward functions by name.
    """

    def __init__(self, short_tasks: ShortTasks, reward_functions: Mapping[str, RewardFunction]) -> None:
        self._short_tasks = short_tasks
        self._reward_functions = reward_functions
        self._lock = threading.Lock()
        # With the registration they belong to, since another environment may be registered under the same name.
        self._facts: LRUCache[str, tuple[EnvSpec, EnvironmentFacts]] = LRUCache(_MAX_KEPT)

    def list_environments(self, search: str = "") -> list[EnvironmentSummary]:
        """List registered environments without building any: latest versions first, then the others, both by name.

        :param search: Part of the name, in any case.
        """
        specs = [spec for name, spec in gym.registry.copy().items() if _ENV_NAME.fullmatch(name)]
        latest: dict[tuple[str | None, str], float] = {}
        for spec in specs:
            key = (spec.namespace, spec.name)
            latest[key] = max(latest.get(key, -math.inf), _get_version(spec))
        presets = set(list_presets())
        summaries = [
            EnvironmentSummary(
                env_name=spec.id,
                is_latest=_get_version(spec) == latest[spec.namespace, spec.name],
                has_preset=spec.id in presets,
                **_describe_limits(spec),
            )
            for spec in specs
            if search.casefold() in spec.id.casefold()
        ]
        return sorted(summaries, key=lambda summary: (not summary.is_latest, summary.env_name.casefold()))

    def describe_environment(self, env_name: str) -> EnvironmentDescription:
        """Describe an environment; the first call builds it.

        :raises NotFoundError: If it is not registered.
        :raises InvalidRequestError: If it cannot be created or tried out here.
        :raises ServiceError: As ``ShortTasks.run`` does.
        """
        spec, facts = self.inspect(env_name)
        preset = get_preset(env_name)
        mode = "branch" if facts.obstacle is None else "episode"
        own = {} if preset is None else {"n_timesteps": preset.n_timesteps, "n_envs": preset.n_envs}
        return EnvironmentDescription(
            env_name=env_name,
            observation_space=facts.observation_space,
            action_space=facts.action_space,
            restorable=facts.is_trainable and facts.obstacle is None,
            obstacle=facts.obstacle,
            group_mode=mode if facts.is_trainable else None,
            env_kwargs=facts.env_kwargs,
            wrappers=facts.wrappers,
            preset_name=facts.general_preset if preset is None else env_name,
            preset=None if preset is None else {**own, "normalize": preset.normalize, **preset.arguments},
            default_reward_function=get_default_reward(env_name),
            reward_functions=[ENVIRONMENT_REWARD, *self._list_fitting(env_name)],
            render_modes=facts.render_modes,
            **_describe_limits(spec),
        )

    def inspect(self, env_name: str) -> tuple[EnvSpec, EnvironmentFacts]:
        """Return an environment's registration, and what building it tells.

        :raises ServiceError: What ``describe_environment`` raises.
        """
        spec = find_spec(env_name)
        if spec is None:
            name = printable(env_name)
            raise NotFoundError(f"there is no registered environment '{name}'; {suggest_environment(env_name)}")
        return spec, self._get_facts(env_name, spec)

    def list_reward_functions(self) -> list[RewardFunctionSummary]:
        """List the reward functions, the environment's own first."""
        summaries = [RewardFunctionSummary(name=ENVIRONMENT_REWARD, description=_OWN_REWARD, environments=None)]
        for name, function in sorted(dict(self._reward_functions).items()):
            environments = sorted(CARTPOLE_ENVIRONMENTS) if function in REWARD_FUNCTIONS.values() else None
            description = _describe_function(function)
            summaries.append(RewardFunctionSummary(name=name, description=description, environments=environments))
        return summaries

    def _list_fitting(self, env_name: str) -> list[str]:
        functions = sorted(dict(self._reward_functions).items())
        return [name for name, function in functions if can_score(function, env_name)]

    def _get_facts(self, env_name: str, spec: EnvSpec) -> EnvironmentFacts:
        with self._lock:
            kept = self._facts.get(env_name)
        if kept is not None and kept[0] is spec:
            return kept[1]
        task = Task("service.environments.inspection:inspect_environment", (env_name,), env_name)
        content = self._short_tasks.run(task)
        facts = EnvironmentFacts.model_validate_json(content)
        with self._lock:
            self._facts[env_name] = (spec, facts)
        return facts


def _get_version(spec: EnvSpec) -> float:
    return -1 if spec.version is None else spec.version


def _describe_limits(spec: EnvSpec) -> dict[str, Any]:
    return {"max_episode_steps": get_time_limit(spec), "reward_threshold": get_reward_threshold(spec)}


def _describe_function(function: RewardFunction) -> str | None:
    """Return the first paragraph of a function's docstring, in one line."""
    paragraph = (inspect.getdoc(function) or "").strip().split("\n\n")[0]
    text = " ".join(paragraph.split()).replace("``", "`")
    return printable(text, _MAX_DESCRIPTION_CHARS) or None
