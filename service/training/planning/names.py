"""Look up the names in a training request; the server does this itself, without an environment and without torch."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from grpo_core.options.presets import (
    GENERAL_PRESET,
    NO_PRESET,
    choose_preset_name,
    get_preset,
    list_general_presets,
    list_presets,
)
from grpo_core.options.rewards import (
    ENVIRONMENT_REWARD,
    Reward,
    RewardFunction,
    can_score,
    get_default_reward,
)
from grpo_core.options.rewards import REWARD_FUNCTIONS as CARTPOLE_REWARDS
from grpo_core.suggestions import suggest
from service.environments.catalogue import suggest_environment
from service.errors import InvalidRequestError
from service.schemas.training import TrainRequest


class Rewards(NamedTuple):
    """The rewards to train on.

    :param reward_function_type: Name of a single reward function; None if there is a list.
    :param reward_functions: Weights by name if there is a list; None for a single one.
    :param functions: The functions, as ``GRPO`` takes them.
    :param is_dense: Whether the rewards tell after every step how good it was.
    """

    reward_function_type: str | None
    reward_functions: dict[str, float] | None
    functions: Reward | None
    is_dense: bool


class NamedRequest(NamedTuple):
    """A request whose names have been looked up.

    :param rewards: The rewards it names.
    :param preset: Name of the preset that fills in what is left out, ``NO_PRESET``, or ``GENERAL_PRESET``.
    :param init_meta: What the model says of itself that training begins from; None if it begins anew.
    """

    request: TrainRequest
    rewards: Rewards
    preset: str
    init_meta: Mapping[str, Any] | None = None


def resolve_names(
    request: TrainRequest,
    reward_functions: Mapping[str, RewardFunction],
    init_meta: Mapping[str, Any] | None = None,
) -> NamedRequest:
    """Look up the names in a request.

    :param reward_functions: The known reward functions, by name.
    :param init_meta: What the model says of itself that ``init_model`` names.
    :raises InvalidRequestError: If a name is unknown or does not fit the environment.
    """
    if request.env_name not in gym.registry:
        hint = suggest_environment(request.env_name)
        raise InvalidRequestError(f"env_name '{request.env_name}' is not a registered Gymnasium environment; {hint}")
    if request.tensorboard_log and importlib.util.find_spec("tensorboard") is None:
        raise InvalidRequestError(
            "tensorboard_log=true needs the package tensorboard; send false, or install what is not installed on this "
            "server: pip install tensorboard"
        )
    rewards = _resolve_rewards(request, reward_functions)
    return NamedRequest(request, rewards, _resolve_preset(request, rewards), init_meta)


def _resolve_rewards(request: TrainRequest, reward_functions: Mapping[str, RewardFunction]) -> Rewards:
    field, weights = "reward_function_type", request.reward_functions
    if weights is not None and request.reward_function_type is not None:
        raise InvalidRequestError(
            "reward_functions and reward_function_type exclude each other; send only one of them."
        )
    name = request.reward_function_type
    if name is None:
        name = get_default_reward(request.env_name)
    if weights is not None:
        field = "reward_functions"
    for each in [name] if weights is None else weights:
        _check_reward_name(field, each, request.env_name, reward_functions)
    functions = [reward_functions.get(each) if each != ENVIRONMENT_REWARD else None for each in weights or [name]]
    return Rewards(
        reward_function_type=name if weights is None else None,
        reward_functions=weights,
        functions=functions[0] if weights is None else functions,
        is_dense=all(function in CARTPOLE_REWARDS.values() for function in functions),
    )


def _check_reward_name(field: str, name: str, env_name: str, reward_functions: Mapping[str, RewardFunction]) -> None:
    if name == ENVIRONMENT_REWARD:
        return
    if name not in reward_functions:
        raise _refuse_name(field, name, [ENVIRONMENT_REWARD, *sorted(reward_functions)])
    if not can_score(reward_functions[name], env_name):
        raise InvalidRequestError(
            f"{field} '{name}' reads CartPole's observations and cannot score {env_name}; leave it out or send "
            f"'{ENVIRONMENT_REWARD}' for the environment's own reward."
        )


def _resolve_preset(request: TrainRequest, rewards: Rewards) -> str:
    name = request.preset
    if name is None:
        return choose_preset_name(request.env_name, rewards.functions)
    if name not in (NO_PRESET, GENERAL_PRESET) and get_preset(name) is None:
        raise _refuse_name("preset", name, [NO_PRESET, *list_presets(), GENERAL_PRESET, *list_general_presets()])
    return name


def _refuse_name(field: str, name: str, known: Sequence[str]) -> InvalidRequestError:
    hint = suggest(name, known)
    return InvalidRequestError(
        f"{field} '{name}' is unknown; {hint + ' Choose' if hint else 'choose'} one of {_list(known)}."
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
