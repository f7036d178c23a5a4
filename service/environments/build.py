"""Build environments, in one way for planning, training, evaluating, filming and inspecting.

A job therefore trains in exactly what was checked before.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.environments.env_kwargs import check_known_env_kwargs
from grpo_core.environments.errors import InvalidEnvironmentError
from grpo_core.environments.first_calls import try_out
from grpo_core.environments.making import EnvSetup, make_env
from grpo_core.environments.packages import describe_missing_package
from grpo_core.environments.wrappers import SetupError, suggest_wrappers
from grpo_core.spaces import UnsupportedSpaceError, check_spaces
from service.errors import InvalidRequestError, describe_error, hide_paths, printable

_MAX_REASON_CHARS = 1000
_MAX_KNOWN = 20


def build_env(setup: EnvSetup, render_mode: str | None = None, is_training: bool = False) -> gym.Env[Any, Any]:
    """Build a registered environment.

    :param render_mode: Only needed for a film; some environments cannot be built or stepped with one.
    :param is_training: Whether wrappers may change rewards and end episodes early.
    :raises InvalidRequestError: If its own code fails, it does not take an argument, or a wrapper does not fit it.
    """
    name = setup.env_name
    try:
        check_known_env_kwargs(name, gym.spec(name), setup.env_kwargs)
        return make_env(setup, render_mode, is_training)
    except (Exception, SystemExit) as error:  # a foreign constructor may raise anything
        raise InvalidRequestError(f"env_name '{name}' {_explain(error, setup)}") from error


def _explain(error: BaseException, setup: EnvSetup) -> str:
    missing = describe_missing_package(error)
    if missing is not None:
        return f"cannot be created on this server: {missing}"
    if isinstance(error, SetupError):
        return f"cannot be created as asked: {printable(hide_paths(str(error)), _MAX_REASON_CHARS)}"
    known = _list_known(error)
    if known:
        return (
            f"cannot be created as asked: it does not know {printable(repr(error.args[0]))}, only {', '.join(known)}."
        )
    remedy = "fix its constructor, or install the packages it needs."
    if not setup.env_kwargs:
        return f"cannot be created on this server ({describe_error(error)}); {remedy}"
    return (
        f"cannot be created as asked ({describe_error(error)}), probably because of its env_kwargs "
        f"({', '.join(setup.env_kwargs)}); send other values, or {remedy}"
    )


def _list_known(error: BaseException) -> list[str]:
    """List the names that a constructor knows, if it looked for another one in a table of its module."""
    if not isinstance(error, KeyError) or (trace := error.__traceback__) is None:
        return []
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, variables = trace.tb_frame.f_code, trace.tb_frame.f_globals
    tables = [table for name in code.co_names if isinstance(table := variables.get(name), dict)]
    named = [sorted(table) for table in tables if table and all(isinstance(key, str) for key in table)]
    return [printable(key) for key in named[0][:_MAX_KNOWN]] if len(named) == 1 else []


def build_vec_env(setup: EnvSetup, n_envs: int) -> DummyVecEnv:
    """Build copies of a registered environment to train in; each records its episodes' rewards and lengths.

    :raises InvalidRequestError: If the environment's own code fails, or no policy can be trained in its spaces.
    """
    return DummyVecEnv([partial(_build_monitored_env, setup)] * n_envs)


def _build_monitored_env(setup: EnvSetup) -> Monitor[Any, Any]:
    env = build_env(setup, is_training=True)
    try:
        check_spaces(env)
    except UnsupportedSpaceError as error:
        env.close()
        hint = describe_wrappers(env)
        raise InvalidRequestError(f"env_name '{setup.env_name}' cannot be trained: {error}{hint}") from error
    return Monitor(env)


def describe_wrappers(env: gym.Env[Any, Any]) -> str:
    """Say which wrappers of a request make an environment's spaces fit; empty if none is known."""
    wrappers = suggest_wrappers(env)
    return f" Over HTTP: {json.dumps({'wrappers': wrappers})[1:-1]}." if wrappers else ""


def try_methods(env_name: str, env: gym.Env[Any, Any], env_kwargs: Mapping[str, Any] | None = None) -> None:
    """Reset an environment and take a step, to check what its methods return; it must be reset afterwards.

    :param env_kwargs: What a client has sent for its constructor: values of a wrong kind may show only now.
    :raises InvalidRequestError: If one fails, or returns what it must not.
    """
    try:
        try_out(env)
    except InvalidEnvironmentError as error:
        raise InvalidRequestError(f"env_name '{env_name}' cannot be trained: {error}") from error
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        remedy = "Fix it, and start the server anew if it has imported the module."
        if env_kwargs:
            remedy = f"Probably because of its env_kwargs ({', '.join(env_kwargs)}): send other values, or fix it."
        raise InvalidRequestError(
            f"env_name '{env_name}' failed when it was tried out ({describe_error(error)}). {remedy}"
        ) from error
