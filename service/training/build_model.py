"""Build the model that a configuration describes."""

from typing import Any

import torch
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from grpo import GRPO
from grpo_core.actor.actor import ACTIVATIONS
from grpo_core.environments.wrappers import make_normalized
from grpo_core.options.hyperparameters import HYPERPARAMETERS
from grpo_core.options.policies import choose_policy
from grpo_core.options.rewards import ENVIRONMENT_REWARD, Reward, name_reward_function
from grpo_core.spaces import list_normalizable
from service.schemas.training import TrainConfig

# Fields of a configuration that are arguments of GRPO of the same name and meaning.
_ARGUMENTS = (*HYPERPARAMETERS, "seed", "device")


def use_one_thread() -> None:
    """Let torch compute in one thread.

    Starting a second one costs more than it saves on such small networks, and jobs would compete for cores.
    """
    torch.set_num_threads(1)


def build_model(config: TrainConfig, env: VecEnv, reward: Reward | None, **arguments: Any) -> GRPO:
    """Build the ``GRPO`` that a configuration describes.

    :param env: The environments, without ``VecNormalize``.
    :param reward: The reward functions that the configuration names.
    :param arguments: Arguments of ``GRPO`` that replace those of the configuration.
    :raises ValueError: If settings do not fit each other or the environment.
    """
    policy_kwargs: dict[str, Any] = {
        "net_arch": config.net_arch,
        "activation_fn": getattr(torch.nn, {name.lower(): name for name in ACTIVATIONS}[config.activation]),
        "log_std_init": config.log_std_init,
    }
    rate = config.learning_rate
    settings: dict[str, Any] = {name: getattr(config, name) for name in _ARGUMENTS} | {
        "learning_rate": LinearSchedule(rate, 0.0, 1.0) if config.lr_schedule == "linear" else rate,
        "policy_kwargs": policy_kwargs | arguments.pop("policy_kwargs", {}),
        "reward_function": _name_rewards(config, reward),
        "reward_weights": list(config.reward_functions.values()) if config.reward_functions else None,
    }
    return GRPO(choose_policy(env.observation_space), _normalize(config, env), **settings | arguments)


def _name_rewards(config: TrainConfig, reward: Reward | None) -> Reward | None:
    """Call the reward functions as the configuration does, in errors, metrics and the model file."""
    if reward is None or callable(reward):
        return name_reward_function(reward, config.reward_function_type or ENVIRONMENT_REWARD)
    return [name_reward_function(each, name) for name, each in zip(config.reward_functions or (), reward, strict=True)]


def _normalize(config: TrainConfig, env: VecEnv) -> VecEnv:
    if config.normalize is False:
        return env
    if config.normalize.norm_obs and not list_normalizable(env.observation_space):
        raise ValueError(
            f"normalize is not allowed for observations of {env.observation_space}: only a Box that is not an image "
            'can be normalised; send {"norm_obs": false} or false.'
        )
    return make_normalized(env, config.normalize.model_dump(), config.gamma)
