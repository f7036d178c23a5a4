"""Choose a policy, check its ``policy_kwargs``, and describe both in a model file."""

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy

from grpo_core.actor.actor import ACTIVATIONS
from grpo_core.actor.extractors import EXTRACTOR_ARGUMENTS, ExtractorPlan, check_image, list_shapes
from grpo_core.options.checks import is_real, is_whole, refuse
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
    }
)
_POLICY_KWARGS = (
    "net_arch",
    "activation_fn",
    "ortho_init",
    "log_std_init",
    "normalize_images",
    "share_features_extractor",
    "features_extractor_kwargs",
    "optimizer_class",
    "optimizer_kwargs",
)
_NET_ARCH_RULE = "it must list positive layer sizes, like [64, 64] or dict(pi=[64], vf=[64])."


def get_policy_name(policy_class: type[Any]) -> str:
    """Return SB3's name of a policy class.

    :raises ValueError: If it is not one of SB3's three actor-critic policies.
    """
    for name, known in POLICIES.items():
        if policy_class is known:
            return name
    raise ValueError(
        f"policy={getattr(policy_class, '__name__', policy_class)} is not supported: rollouts and model files know "
        f"only the layers of {', '.join(repr(name) for name in POLICIES)}; use one of these, with policy_kwargs."
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


def check_policy_kwargs(policy_kwargs: Mapping[str, Any], policy_class: type[ActorCriticPolicy]) -> None:
    """Check that the NumPy actor can run the policy and a model file can hold it.

    :raises ValueError: If not; the message names the value, the rule and the remedy.
    """
    for name in policy_kwargs:
        if name not in _POLICY_KWARGS:
            refuse("policy_kwargs", name, f"known keys are {', '.join(_POLICY_KWARGS)}.")
    activation = policy_kwargs.get("activation_fn", torch.nn.Tanh)
    if not any(activation is getattr(torch.nn, name) for name in ACTIVATIONS):
        refuse("activation_fn", activation, f"use one of torch.nn.{', torch.nn.'.join(ACTIVATIONS)}.")
    log_std_init = policy_kwargs.get("log_std_init", 0.0)
    if not (is_real(log_std_init) and math.isfinite(log_std_init)):
        refuse("log_std_init", log_std_init, "it must be a finite number.")
    for name in ("normalize_images", "share_features_extractor"):
        if not isinstance(policy_kwargs.get(name, True), bool | np.bool_):
            refuse(name, policy_kwargs[name], "it must be True or False.")
    _check_net_arch(policy_kwargs.get("net_arch"))
    _check_extractor_kwargs(policy_kwargs.get("features_extractor_kwargs"), get_policy_name(policy_class))
    _check_optimizer(policy_kwargs.get("optimizer_class", torch.optim.Adam), policy_kwargs.get("optimizer_kwargs"))


def check_policy_fits(
    policy_class: type[ActorCriticPolicy], policy_kwargs: Mapping[str, Any], observation_space: spaces.Space[Any]
) -> None:
    """Check that a policy's features extractor accepts the observations.

    :param observation_space: A space that ``check_observation_space`` has accepted.
    :raises ValueError: If not; the message names the value, the rule and the remedy.
    """
    name = get_policy_name(policy_class)
    if isinstance(observation_space, spaces.Dict) != (name == "MultiInputPolicy"):
        remedy = "'MultiInputPolicy'" if name != "MultiInputPolicy" else "'MlpPolicy', or 'CnnPolicy' for images"
        refuse("policy", name, f"it does not accept observations of {observation_space}; use {remedy}.")
    plan = ExtractorPlan.from_json(network_to_json(policy_kwargs, policy_class))
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


def resolve_net_arch(policy_kwargs: Mapping[str, Any], policy_class: type[ActorCriticPolicy]) -> dict[str, list[int]]:
    """Return the layer sizes of the policy (``pi``) and the value network (``vf``).

    As in SB3, the default is two layers of 64, and no layers after the convolutions of ``CnnPolicy``.
    """
    net_arch = policy_kwargs.get("net_arch")
    if net_arch is None:
        net_arch = [] if policy_class is ActorCriticCnnPolicy else [64, 64]
    if isinstance(net_arch, dict):
        return {part: list(net_arch.get(part, [])) for part in ("pi", "vf")}
    return {"pi": list(net_arch), "vf": list(net_arch)}


def network_to_json(policy_kwargs: Mapping[str, Any], policy_class: type[ActorCriticPolicy]) -> dict[str, Any]:
    """Describe the network and its optimizer for a model file."""
    optimizer_class = policy_kwargs.get("optimizer_class", torch.optim.Adam)
    optimizer_kwargs = policy_kwargs.get("optimizer_kwargs")
    if optimizer_kwargs is None:  # SB3's defaults
        optimizer_kwargs = {"eps": 1e-5} if optimizer_class is torch.optim.Adam else {}
    return {
        "policy": get_policy_name(policy_class),
        "net_arch": resolve_net_arch(policy_kwargs, policy_class),
        "activation": policy_kwargs.get("activation_fn", torch.nn.Tanh).__name__,
        "ortho_init": bool(policy_kwargs.get("ortho_init", True)),
        "log_std_init": float(policy_kwargs.get("log_std_init", 0.0)),
        "normalize_images": bool(policy_kwargs.get("normalize_images", True)),
        "share_features_extractor": bool(policy_kwargs.get("share_features_extractor", True)),
        "features_extractor_kwargs": _to_plain(policy_kwargs.get("features_extractor_kwargs") or {}),
        "optimizer_class": optimizer_class.__name__,
        "optimizer_kwargs": _to_plain(optimizer_kwargs),
    }


def policy_from_json(network: Mapping[str, Any]) -> type[ActorCriticPolicy]:
    """Return the policy class from the output of ``network_to_json``."""
    return POLICIES[network["policy"]]


def network_from_json(network: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild ``policy_kwargs`` from the output of ``network_to_json``.

    :raises ValueError: If the optimizer is unknown.
    """
    if network["optimizer_class"] not in OPTIMIZERS:
        refuse("optimizer_class", network["optimizer_class"], f"known are {', '.join(OPTIMIZERS)}.")
    return {
        "net_arch": network["net_arch"],
        "activation_fn": getattr(torch.nn, network["activation"]),  # the reader has checked it against ACTIVATIONS
        "ortho_init": bool(network["ortho_init"]),
        "log_std_init": float(network["log_std_init"]),
        "normalize_images": network["normalize_images"],
        "share_features_extractor": network["share_features_extractor"],
        "features_extractor_kwargs": network["features_extractor_kwargs"],
        "optimizer_class": OPTIMIZERS[network["optimizer_class"]],
        "optimizer_kwargs": {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in network["optimizer_kwargs"].items()
        },
    }


def _check_net_arch(net_arch: Any) -> None:
    if not isinstance(net_arch, dict | list | tuple | None):
        refuse("net_arch", net_arch, _NET_ARCH_RULE)
    parts = net_arch.values() if isinstance(net_arch, dict) else [net_arch or []]
    if isinstance(net_arch, dict) and set(net_arch) - {"pi", "vf"}:
        refuse("net_arch", net_arch, "its keys must be pi and vf.")
    if not all(isinstance(part, list | tuple) for part in parts):
        refuse("net_arch", net_arch, _NET_ARCH_RULE)
    if not all(isinstance(n_units, int) and n_units > 0 for part in parts for n_units in part):
        refuse("net_arch", net_arch, _NET_ARCH_RULE)


def _check_extractor_kwargs(extractor_kwargs: Any, policy: str) -> None:
    known = EXTRACTOR_ARGUMENTS[policy]
    if not isinstance(extractor_kwargs, dict | None):
        refuse("features_extractor_kwargs", extractor_kwargs, "it must be a dict.")
    for name, value in (extractor_kwargs or {}).items():
        if name not in known:
            allowed = f"known keys are {', '.join(known)}." if known else f"{policy}'s features extractor has none."
            refuse("features_extractor_kwargs", name, allowed)
        if name == "normalized_image" and not isinstance(value, bool):
            refuse(name, value, "it must be True or False.")
        if name != "normalized_image" and not (is_whole(value) and value > 0):
            refuse(name, value, "it must be a whole number of at least 1.")


def _check_optimizer(optimizer_class: Any, optimizer_kwargs: Any) -> None:
    if not any(optimizer_class is known for known in OPTIMIZERS.values()):
        refuse("optimizer_class", optimizer_class, f"use one of torch.optim.{', torch.optim.'.join(OPTIMIZERS)}.")
    if not isinstance(optimizer_kwargs, dict | None):
        refuse("optimizer_kwargs", optimizer_kwargs, "it must be a dict.")
    known = set(inspect.signature(optimizer_class).parameters) - {"params", "lr"}
    for name, value in (optimizer_kwargs or {}).items():
        if name not in known:
            rule = f"known keys are {', '.join(sorted(known))}; the step size is GRPO's learning_rate."
            refuse("optimizer_kwargs", name, rule)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(x, bool) or (is_real(x) and math.isfinite(x)) for x in numbers):
            refuse(name, value, "it must be a finite number, True or False, or a tuple of finite numbers.")


def _to_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert arguments to JSON's own types."""

    def convert(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [convert(x) for x in value]
        if isinstance(value, bool):
            return value
        return int(value) if is_whole(value) else float(value)

    return {name: convert(value) for name, value in arguments.items()}
