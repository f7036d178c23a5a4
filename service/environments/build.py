"""Build environments, in one way for planning, training, evaluating, filming and inspecting.

A job therefore trains in exactly what was checked before.
"""

from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.simulators.first_calls import InvalidEnvironmentError, try_out
from grpo_core.spaces import UnsupportedSpaceError, check_spaces
from service.errors import InvalidRequestError, describe_error, printable


def build_env(env_name: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build a registered environment.

    :param render_mode: Only needed for a film; some environments cannot be built or stepped with one.
    :raises InvalidRequestError: If its own code fails.
    """
    # Not every environment takes the argument.
    arguments: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        # The checker warns about harmless things, and makes a step take half as long again.
        return gym.make(env_name, disable_env_checker=True, **arguments)
    except (Exception, SystemExit) as error:  # a foreign constructor may raise anything
        raise InvalidRequestError(
            f"env_name '{env_name}' cannot be created on this server ({describe_error(error)}); fix its constructor, "
            "or install the packages it needs."
        ) from error


def build_vec_env(env_name: str, n_envs: int) -> DummyVecEnv:
    """Build copies of a registered environment to train in; each records its episodes' rewards and lengths.

    :raises InvalidRequestError: If the environment's own code fails, or no policy can be trained in its spaces.
    """
    return DummyVecEnv([partial(_build_monitored_env, env_name)] * n_envs)


def _build_monitored_env(env_name: str) -> Monitor[Any, Any]:
    env = build_env(env_name)
    try:
        check_spaces(env)
    except UnsupportedSpaceError as error:
        env.close()
        raise InvalidRequestError(f"env_name '{env_name}' cannot be trained: {error}") from error
    return Monitor(env)


def try_methods(env_name: str, env: gym.Env[Any, Any]) -> None:
    """Reset an environment and take a step, to check what its methods return; it must be reset afterwards.

    :raises InvalidRequestError: If one fails, or returns what it must not.
    """
    try:
        try_out(env)
    except InvalidEnvironmentError as error:
        raise InvalidRequestError(f"env_name '{env_name}' cannot be trained: {error}") from error
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        notes = " ".join(getattr(error, "__notes__", []))
        raise InvalidRequestError(
            f"env_name '{env_name}' failed when it was tried out ({describe_error(error)}). {printable(notes)} Fix it, "
            "and start the server anew if it has imported the module."
        ) from error
