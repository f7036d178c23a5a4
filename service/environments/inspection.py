"""Build an environment and describe it: a task, since it runs the environment's code."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.banks.choose_bank import find_obstacle
from grpo_core.environments.env_kwargs import list_env_kwargs, to_plain
from grpo_core.environments.making import EnvSetup
from grpo_core.environments.wrappers import parse_wrappers, suggest_wrappers
from grpo_core.options.presets import choose_general_preset
from grpo_core.spaces import UnsupportedSpaceError, check_spaces
from service.environments.build import build_env, describe_wrappers, try_methods
from service.schemas.environments import EnvironmentFacts
from service.spaces import describe_space
from service.workers.task import Progress

_MAX_RENDER_MODES = 16
_MAX_NAMES = 64
_MAX_NAME_CHARS = 64


def inspect_environment(env_name: str, progress: Progress) -> bytes:
    """Build an environment, test whether its states can be restored, and describe it.

    :return: ``EnvironmentFacts`` in JSON.
    :raises InvalidRequestError: If it cannot be created, or a method fails or returns what it must not.
    """
    env = build_env(EnvSetup(env_name))
    try:
        facts = EnvironmentFacts(
            observation_space=describe_space(env.observation_space),
            action_space=describe_space(env.action_space),
            env_kwargs=_list_env_kwargs(env_name),
            wrappers=parse_wrappers(suggest_wrappers(env)),
            render_modes=list_render_modes(env),
            observation_names=_list_names(env, "observation_names"),
            action_names=_list_names(env, "action_names"),
            **_check_training(env_name, env),
        )
    finally:
        env.close()
    return facts.model_dump_json().encode()


def list_render_modes(env: gym.Env[Any, Any]) -> list[str]:
    """List the render modes in an environment's metadata: at most 16, of at most 64 printable characters each."""
    modes = (env.metadata or {}).get("render_modes") or []
    return list(filter(_is_name, modes))[:_MAX_RENDER_MODES]


def _list_names(env: gym.Env[Any, Any], key: str) -> list[str]:
    """List the names under a key of an environment's metadata, at most 64; none if any of them is no name."""
    names = (env.metadata or {}).get(key)
    if not isinstance(names, list | tuple) or not all(map(_is_name, names)):
        return []
    return list(names[:_MAX_NAMES])


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and len(text) <= _MAX_NAME_CHARS and text.isprintable()


def _list_env_kwargs(env_name: str) -> dict[str, Any] | None:
    known = list_env_kwargs(gym.spec(env_name))
    return None if known is None else {name: to_plain(default) for name, default in known.items()}


def _check_training(env_name: str, env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Find out whether a policy can be trained in an environment, and what keeps groups from branching in it."""
    try:
        check_spaces(env)
    except UnsupportedSpaceError as error:
        return {"is_trainable": False, "obstacle": f"{error}{describe_wrappers(env)}", "general_preset": None}
    try_methods(env_name, env)
    obstacle = find_obstacle(DummyVecEnv([lambda: env]), must_pay=True)
    preset = choose_general_preset(env.observation_space, env.action_space, obstacle is None)
    return {"is_trainable": True, "obstacle": obstacle, "general_preset": preset}
