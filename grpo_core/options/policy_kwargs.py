"""Check the ``policy_kwargs`` of a policy."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from grpo_core.actor.actor import ACTIVATIONS
from grpo_core.actor.extractors import EXTRACTOR_ARGUMENTS, ExtractorPlan, list_shapes
from grpo_core.options.checks import is_real, is_whole, refuse
from grpo_core.options.network_json import network_to_json
from grpo_core.options.policies import EXTRACTORS, OPTIMIZERS, POLICIES, get_policy_name, needs_closure
from grpo_core.spaces import is_image_space

_POLICY_KWARGS = (
    "net_arch",
    "activation_fn",
    "ortho_init",
    "log_std_init",
    "normalize_images",
    "share_features_extractor",
    "features_extractor_class",
    "features_extractor_kwargs",
    "optimizer_class",
    "optimizer_kwargs",
)
# Arguments of gSDE, which SB3's policies take too.
_SDE_KWARGS = ("use_sde", "full_std", "use_expln", "squash_output")
_NET_ARCH_RULE = "it must list positive layer sizes, like [64, 64] or dict(pi=[64], vf=[64])."


def check_policy_kwargs(policy_kwargs: Mapping[str, Any], policy_class: type[ActorCriticPolicy]) -> None:
    """Check the arguments of a policy. What a class of the user's own makes of its arguments is left to that class.

    :raises ValueError: If one is refused; the message names the value, the rule and the remedy.
    """
    name = get_policy_name(policy_class)
    if policy_kwargs.get("use_sde"):
        refuse("policy_kwargs", "use_sde", "GRPO has no state-dependent exploration; leave it out.")
    _check_optimizer(policy_kwargs.get("optimizer_class", torch.optim.Adam), policy_kwargs.get("optimizer_kwargs"))
    if policy_class is not POLICIES[name]:
        return
    for key in policy_kwargs:
        if key not in _POLICY_KWARGS and (key not in _SDE_KWARGS or policy_kwargs[key]):
            refuse("policy_kwargs", key, f"known keys are {', '.join(_POLICY_KWARGS)}.")
    _check_activation(policy_kwargs.get("activation_fn", torch.nn.Tanh))
    log_std_init = policy_kwargs.get("log_std_init", 0.0)
    if not (is_real(log_std_init) and math.isfinite(log_std_init)):
        refuse("log_std_init", log_std_init, "it must be a finite number.")
    for key in ("normalize_images", "share_features_extractor"):
        if not isinstance(policy_kwargs.get(key, True), bool | np.bool_):
            refuse(key, policy_kwargs[key], "it must be True or False.")
    _check_net_arch(policy_kwargs.get("net_arch"))
    _check_extractor(policy_kwargs, name)


def check_built_policy(policy: ActorCriticPolicy) -> None:
    """Check what only a policy of the user's own shows once it is built.

    :raises ValueError: If it explores in a way that groups cannot.
    """
    if policy.use_sde:
        refuse("use_sde", True, f"GRPO has no state-dependent exploration; build {type(policy).__name__} without it.")


def check_policy_fits(
    policy_class: type[ActorCriticPolicy], policy_kwargs: Mapping[str, Any], observation_space: spaces.Space[Any]
) -> None:
    """Check that a policy's features extractor accepts the observations, if it is one of SB3's.

    :param observation_space: A space that ``check_observation_space`` has accepted.
    :raises ValueError: If not; the message names the value, the rule and the remedy.
    """
    name = get_policy_name(policy_class)
    if policy_class is not POLICIES[name]:
        return
    if isinstance(observation_space, spaces.Dict) != (name == "MultiInputPolicy"):
        remedy = "'MultiInputPolicy'" if name != "MultiInputPolicy" else "'MlpPolicy', or 'CnnPolicy' for images"
        refuse("policy", name, f"it does not accept observations of {observation_space}; use {remedy}.")
    if policy_kwargs.get("features_extractor_class", EXTRACTORS[name]) is not EXTRACTORS[name]:
        return
    standard = {key: value for key, value in policy_kwargs.items() if key != "activation_fn"}
    plan = ExtractorPlan.from_json(network_to_json(standard, policy_class))
    if name == "CnnPolicy" and not is_image_space(observation_space, plan.normalized_image):
        refuse(
            "policy",
            name,
            f"it accepts images, a Box of shape (n_channels, height, width) of uint8 from 0 to 255, not "
            f"{observation_space}; use 'MlpPolicy', or policy_kwargs=dict(normalize_images=False) for images of "
            "other numbers.",
        )
    if isinstance(observation_space, spaces.Dict):
        for key in observation_space.spaces:
            if hasattr(torch.nn.ModuleDict, key) or key in ("training",):
                refuse("observation_space key", key, "torch reserves this name; rename it.")
    list_shapes(observation_space, plan, "")  # raises on an image that is too small


def _check_net_arch(net_arch: Any) -> None:
    if not isinstance(net_arch, dict | list | tuple | None):
        refuse("net_arch", net_arch, _NET_ARCH_RULE)
    parts = net_arch.values() if isinstance(net_arch, dict) else [net_arch or []]
    if isinstance(net_arch, dict) and set(net_arch) - {"pi", "vf"}:
        refuse("net_arch", net_arch, "its keys must be pi and vf.")
    if not all(isinstance(part, list | tuple) for part in parts):
        refuse("net_arch", net_arch, _NET_ARCH_RULE)
    if not all(is_whole(n_units) and n_units > 0 for part in parts for n_units in part):
        refuse("net_arch", net_arch, _NET_ARCH_RULE)


def _check_activation(activation: Any) -> None:
    is_class = isinstance(activation, type) and issubclass(activation, torch.nn.Module)
    is_factory = callable(activation) and not isinstance(activation, type | torch.nn.Module)
    if not (is_class or is_factory):
        refuse(
            "activation_fn",
            activation,
            f"use one of torch.nn.{', torch.nn.'.join(ACTIVATIONS)}, another class of torch modules, or a function "
            "that makes one, such as functools.partial(torch.nn.LeakyReLU, 0.2).",
        )


def _check_extractor(policy_kwargs: Mapping[str, Any], policy: str) -> None:
    extractor_class = policy_kwargs.get("features_extractor_class", EXTRACTORS[policy])
    extractor_kwargs = policy_kwargs.get("features_extractor_kwargs")
    if not (isinstance(extractor_class, type) and issubclass(extractor_class, BaseFeaturesExtractor)):
        refuse(
            "features_extractor_class",
            extractor_class,
            "it must be a subclass of stable_baselines3.common.torch_layers.BaseFeaturesExtractor.",
        )
    if not isinstance(extractor_kwargs, dict | None):
        refuse("features_extractor_kwargs", extractor_kwargs, "it must be a dict.")
    if extractor_class is not EXTRACTORS[policy]:
        return
    known = EXTRACTOR_ARGUMENTS[policy]
    for name, value in (extractor_kwargs or {}).items():
        if name not in known:
            allowed = f"known keys are {', '.join(known)}." if known else f"{policy}'s features extractor has none."
            refuse("features_extractor_kwargs", name, allowed)
        if name == "normalized_image" and not isinstance(value, bool):
            refuse(name, value, "it must be True or False.")
        if name != "normalized_image" and not (is_whole(value) and value > 0):
            refuse(name, value, "it must be a whole number of at least 1.")


def _check_optimizer(optimizer_class: Any, optimizer_kwargs: Any) -> None:
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
        refuse(
            "optimizer_class",
            optimizer_class,
            f"use one of torch.optim.{', torch.optim.'.join(OPTIMIZERS)}, or another subclass of "
            "torch.optim.Optimizer.",
        )
    if needs_closure(optimizer_class):
        rule = "it evaluates the loss several times per step, and GRPO once per minibatch; use one of torch.optim."
        refuse("optimizer_class", optimizer_class, rule + ", torch.optim.".join(OPTIMIZERS) + ".")
    if issubclass(optimizer_class, torch.optim.SparseAdam):
        rule = "it takes sparse gradients, and a policy has none; use one of torch.optim."
        refuse("optimizer_class", optimizer_class, rule + ", torch.optim.".join(OPTIMIZERS) + ".")
    if not isinstance(optimizer_kwargs, dict | None):
        refuse("optimizer_kwargs", optimizer_kwargs, "it must be a dict.")
    known = set(inspect.signature(optimizer_class).parameters) - {"params", "lr"}
    is_torchs = any(optimizer_class is of_torch for of_torch in OPTIMIZERS.values())
    for name, value in (optimizer_kwargs or {}).items():
        if name == "lr" or (is_torchs and name not in known):
            rule = f"known keys are {', '.join(sorted(known))}; the step size is GRPO's learning_rate."
            refuse("optimizer_kwargs", name, rule)
        numbers = value if isinstance(value, tuple | list) else (value,)
        if is_torchs and not all(isinstance(x, bool) or (is_real(x) and math.isfinite(x)) for x in numbers):
            refuse(name, value, "it must be a finite number, True or False, or a tuple of finite numbers.")
