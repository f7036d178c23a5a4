"""Make registered environments, with arguments of their constructor and named wrappers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from grpo_core.environments.packages import explain_missing_packages
from grpo_core.environments.wrappers import SetupError, Wrapper, apply_wrappers, choose_env_kwargs


class EnvSetup(NamedTuple):
    """An environment to make.

    :param env_name: Id of a registered environment.
    :param env_kwargs: Arguments of its constructor.
    :param wrappers: Wrappers to put around it, the innermost first, as ``parse_wrappers`` returns it.
    """

    env_name: str
    env_kwargs: Mapping[str, Any] = {}  # never changed
    wrappers: Sequence[Wrapper] = ()


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
    spec = gym.registry.get(setup.env_name)
    if spec is not None:
        arguments = {**choose_env_kwargs(setup.wrappers, spec.kwargs), **setup.env_kwargs, **arguments}
    with explain_missing_packages(setup.env_name, option=option):
        # The checker warns about harmless things, and makes a step take half as long again.
        env = gym.make(setup.env_name, disable_env_checker=True, **arguments)
    try:
        return apply_wrappers(env, setup.wrappers, is_training)
    except SetupError:
        env.close()
        raise
