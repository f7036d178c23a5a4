"""What an environment is like, found out by building it: a task, for it runs code of the environment."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.simulators.bank import find_obstacle
from grpo_core.spaces import UnsupportedSpaceError, check_action_space, check_observation_space
from service.environments.build import build_env
from service.schemas.environments import EnvironmentFacts
from service.spaces import describe_space
from service.workers.task import Progress

_MAX_RENDER_MODES = 16
_MAX_MODE_CHARS = 64


def inspect_environment(env_name: str, progress: Progress) -> bytes:
    """Build an environment, try out whether it can be put back into earlier states, and describe it.

    :return: ``EnvironmentFacts`` in JSON.
    :raises InvalidRequestError: If it cannot be created.
    """
    env = build_env(env_name)
    try:
        facts = EnvironmentFacts(
            observation_space=describe_space(env.observation_space),
            action_space=describe_space(env.action_space),
            render_modes=list_render_modes(env),
            **_judge(env),
        )
    finally:
        env.close()
    return facts.model_dump_json().encode()


def list_render_modes(env: gym.Env[Any, Any]) -> list[str]:
    """List how an environment says that it can be drawn."""
    modes = (env.metadata or {}).get("render_modes") or []
    texts = [mode for mode in modes if isinstance(mode, str) and len(mode) <= _MAX_MODE_CHARS and mode.isprintable()]
    return texts[:_MAX_RENDER_MODES]


def _judge(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Say whether policies can be trained in an environment and groups start on the way, and if not, why."""
    try:
        check_observation_space(env.observation_space)
        check_action_space(env.action_space)
    except UnsupportedSpaceError as error:
        return {"is_trainable": False, "obstacle": str(error)}
    return {"is_trainable": True, "obstacle": find_obstacle(DummyVecEnv([lambda: env]))}
