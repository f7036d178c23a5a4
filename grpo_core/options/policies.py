"""Which policies there are, what they are made of by default, and which one suits an environment."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)

from grpo_core.actor.extractors import check_image
from grpo_core.spaces import is_image_space

POLICIES: Mapping[str, type[ActorCriticPolicy]] = MappingProxyType(
    {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
)
OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = MappingProxyType(
    {
        "Adam": torch.optim.Adam,
        "AdamW": torch.optim.AdamW,
        "RMSprop": torch.optim.RMSprop,
        "SGD": torch.optim.SGD,
        "Adadelta": torch.optim.Adadelta,
        "Adagrad": torch.optim.Adagrad,
        "Adamax": torch.optim.Adamax,
        "ASGD": torch.optim.ASGD,
        "NAdam": torch.optim.NAdam,
        "RAdam": torch.optim.RAdam,
        "Rprop": torch.optim.Rprop,
    }
)
#: Activations of torch's that need no arguments. A model file names them, also those that only torch runs.
TORCH_ACTIVATIONS: Mapping[str, type[torch.nn.Module]] = MappingProxyType(
    {
        "CELU": torch.nn.CELU,
        "ELU": torch.nn.ELU,
        "GELU": torch.nn.GELU,
        "Hardshrink": torch.nn.Hardshrink,
        "Hardsigmoid": torch.nn.Hardsigmoid,
        "Hardswish": torch.nn.Hardswish,
        "Hardtanh": torch.nn.Hardtanh,
        "Identity": torch.nn.Identity,
        "LeakyReLU": torch.nn.LeakyReLU,
        "LogSigmoid": torch.nn.LogSigmoid,
        "Mish": torch.nn.Mish,
        "PReLU": torch.nn.PReLU,
        "ReLU": torch.nn.ReLU,
        "ReLU6": torch.nn.ReLU6,
        "SELU": torch.nn.SELU,
        "SiLU": torch.nn.SiLU,
        "Sigmoid": torch.nn.Sigmoid,
        "Softplus": torch.nn.Softplus,
        "Softshrink": torch.nn.Softshrink,
        "Softsign": torch.nn.Softsign,
        "Tanh": torch.nn.Tanh,
        "Tanhshrink": torch.nn.Tanhshrink,
    }
)
#: The features extractors that the actor in NumPy knows.
EXTRACTORS: Mapping[str, type[BaseFeaturesExtractor]] = MappingProxyType(
    {"MlpPolicy": FlattenExtractor, "CnnPolicy": NatureCNN, "MultiInputPolicy": CombinedExtractor}
)


def get_policy_name(policy_class: type[Any]) -> str:
    """Return SB3's name of a policy class, or of the one that a class of the user's own is derived from.

    :raises ValueError: If it is not derived from one of SB3's three actor-critic policies, or keeps a recurrent state.
    """
    # The others are derived from MlpPolicy's.
    for name in ("CnnPolicy", "MultiInputPolicy", "MlpPolicy"):
        if isinstance(policy_class, type) and issubclass(policy_class, POLICIES[name]):
            _check_no_state(policy_class)
            return name
    raise ValueError(
        f"policy={getattr(policy_class, '__name__', policy_class)} is not supported: GRPO needs an actor and a value "
        f"network in one policy; use {', '.join(repr(name) for name in POLICIES)}, or a subclass of "
        "stable_baselines3.common.policies.ActorCriticPolicy."
    )


def _check_no_state(policy_class: type[ActorCriticPolicy]) -> None:
    """Refuse policies whose forward pass needs more than observations, as those with an LSTM do."""
    _, *parameters = inspect.signature(policy_class.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(needed) > 1:
        raise ValueError(
            f"policy={policy_class.__name__} is not supported: its forward pass needs {', '.join(needed[1:])}, but "
            "branches that restart keep no recurrent state; use 'MlpPolicy' with VecFrameStack instead."
        )


def choose_policy(observation_space: spaces.Space[Any]) -> str:
    """Return the name of the policy whose networks suit an observation space.

    :param observation_space: The environment's own space; the channels of images may come last.
    """
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if _has_convolutions(observation_space) else "MlpPolicy"


def _has_convolutions(space: spaces.Space[Any]) -> bool:
    """Return whether a space contains images that are large enough for SB3's convolutions."""
    if not is_image_space(space):
        return False
    # Like SB3, assume that the shortest axis holds the channels.
    n_channels, *size = sorted(space.shape or ())
    try:
        check_image(spaces.Box(0, 255, (n_channels, *size)))
    except ValueError:
        return False
    return True


def resolve_net_arch(policy_kwargs: Mapping[str, Any], policy_class: type[ActorCriticPolicy]) -> dict[str, list[int]]:
    """Return the layer sizes of the policy (``pi``) and the value network (``vf``).

    As in SB3, the default is two layers of 64, and no layers after the convolutions of ``CnnPolicy``.
    """
    net_arch = policy_kwargs.get("net_arch")
    if net_arch is None:
        net_arch = [] if policy_class is ActorCriticCnnPolicy else [64, 64]
    parts = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
    return {part: [int(n_units) for n_units in parts.get(part, [])] for part in ("pi", "vf")}


def needs_closure(optimizer_class: type[torch.optim.Optimizer]) -> bool:
    """Tell whether an optimizer's step calls back for the loss, as that of ``torch.optim.LBFGS`` does."""
    closure = inspect.signature(optimizer_class.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty
