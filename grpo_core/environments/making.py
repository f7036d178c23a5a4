"""Make registered environments, with arguments of their constructor and named wrappers."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id

from grpo_core.environments.packages import explain_missing_packages, is_module_name
from grpo_core.environments.wrappers import SetupError, Wrapper, apply_wrappers, choose_env_kwargs


class EnvSetup(NamedTuple):
    """An environment to make.

    :param env_name: Id of a registered environment, as ``gym.make`` takes it.
    :param env_kwargs: Arguments of its constructor.
    :param wrappers: Wrappers to put around it, the innermost first, as ``parse_wrappers`` returns it.
    """

    env_name: str
    env_kwargs: Mapping[str, Any] = {}  # never changed
    wrappers: Sequence[Wrapper] = ()


def resolve_env_name(env_name: str) -> str:
    """Return the full id of an environment, as ``gym.make`` finds it: the newest version, where none is named.

    :param env_name: May begin with a module and a colon; the module is imported.
    :raises ImportError: If there is no such module.
    :raises gymnasium.error.Error: If it is not written as an id.
    """
    module, _, name = env_name.rpartition(":")
    if module and not is_module_name(module):
        raise gym.error.Error(f"{module!r} before the colon is not the name of a module; write it as in an import.")
    if module:
        importlib.import_module(module)
    if name in gym.registry:
        return name
    namespace, base, version = parse_env_id(name)
    return get_env_id(namespace, base, find_highest_version(namespace, base) if version is None else version)


def make_env(
    setup: EnvSetup, render_mode: str | None = None, is_training: bool = False, option: str = "import"
) -> gym.Env[Any, Any]:
    """Make an environment.

    :param render_mode: Only needed for a film; some environments cannot be made or stepped with one.
    :param is_training: Whether wrappers may change rewards and end episodes early.
    :param option: Words that tell people how to import a module that registers environments, for the errors.
    :raises SetupError: If a wrapper does not fit it.
    :raises gymnasium.error.Error: If it is not registered, or a package is missing; the message says which.
    :raises Exception: Whatever its constructor raises.
    """
    # Not every environment takes the argument.
    arguments: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    with explain_missing_packages(setup.env_name, option=option):
        env_name = resolve_env_name(setup.env_name)
        spec_kwargs = gym.registry[env_name].kwargs if env_name in gym.registry else {}
        arguments = {**choose_env_kwargs(setup.wrappers, spec_kwargs), **setup.env_kwargs, **arguments}
        # The checker warns about harmless things, and makes a step take half as long again.
        env = gym.make(env_name, disable_env_checker=True, **arguments)
    try:
        return apply_wrappers(env, setup.wrappers, is_training)
    except SetupError:
        env.close()
        raise
