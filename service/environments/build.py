"""Building environments: one way for planning, training, evaluating, filming and describing alike.

What is checked before a job is then what it trains in.
"""

from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.spaces import UnsupportedSpaceError, check_action_space, check_observation_space
from service.errors import InvalidRequestError, describe_error


def build_env(env_name: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build a registered environment.

    :param render_mode: Only for a film: some environments can be built, or stepped, without one alone.
    :raises InvalidRequestError: If its own code fails.
    """
    # Not every environment knows the argument.
    arguments: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        # The checker warns about environments in general, and a step through it takes half as long again.
        return gym.make(env_name, disable_env_checker=True, **arguments)
    except (Exception, SystemExit) as error:  # constructors are foreign code, and a missing extra shows in many ways
        raise InvalidRequestError(
            f"env_name '{env_name}' cannot be created here ({describe_error(error)}); its optional dependencies may be "
            "missing on the server."
        ) from error


def build_vec_env(env_name: str, n_envs: int) -> DummyVecEnv:
    """Build registered environments to train in, each of which notes the rewards and lengths of its episodes.

    :raises InvalidRequestError: If their own code fails, or no policy can be trained in their spaces.
    """
    return DummyVecEnv([partial(_build_monitored_env, env_name)] * n_envs)


def _build_monitored_env(env_name: str) -> Monitor[Any, Any]:
    env = build_env(env_name)
    try:
        check_observation_space(env.observation_space)
        check_action_space(env.action_space)
    except UnsupportedSpaceError as error:
        env.close()
        raise InvalidRequestError(f"env_name '{env_name}' cannot be trained: {error}") from error
    return Monitor(env)
