"""Choose a policy, check its ``policy_kwargs``, and describe both in a model file."""

import inspect
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)

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
        "Adadelta": torch.optim.Adadelta,
        "Adagrad": torch.optim.Adagrad,
        "Adamax": torch.optim.Adamax,
        "ASGD": torch.optim.ASGD,
        "NAdam": torch.optim.NAdam,
        "RAdam": torch.optim.RAdam,
        "Rprop": torch.optim.Rprop,
    }
)
#: Activations of torch's that need no arguments. A model file names them, though only torch runs them.
_TORCH_ACTIVATIONS: Mapping[str, type[torch.nn.Module]] = MappingProxyType(
    {
        "CELU": torch.nn.CELU,
        "GELU": torch.nn.GELU,
        "Hardshrink": torch.nn.Hardshrink,
        "Hardsigmoid": torch.nn.Hardsigmoid,
        "Hardswish": torch.nn.Hardswish,
        "Hardtanh": torch.nn.Hardtanh,
        "LogSigmoid": torch.nn.LogSigmoid,
        "Mish": torch.nn.Mish,
        "PReLU": torch.nn.PReLU,
        "ReLU6": torch.nn.ReLU6,
        "SELU": torch.nn.SELU,
        "SiLU": torch.nn.SiLU,
        "Sigmoid": torch.nn.Sigmoid,
        "Softplus": torch.nn.Softplus,
        "Softshrink": torch.nn.Softshrink,
        "Softsign": torch.nn.Softsign,
        "Tanhshrink": torch.nn.Tanhshrink,
    }
)
#: The features extractors that the actor in NumPy knows.
_EXTRACTORS: Mapping[str, type[BaseFeaturesExtractor]] = MappingProxyType(
    {"MlpPolicy": FlattenExtractor, "CnnPolicy": NatureCNN, "MultiInputPolicy": CombinedExtractor}
)
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


def list_own_parts(policy_kwargs: Mapping[str, Any], policy_class: type[ActorCriticPolicy]) -> dict[str, str]:
    """List the parts of a network that SB3's own three policies do not have, and that only torch can run.

    :return: From the argument of ``GRPO.load`` that brings each part back, ``policy`` or a key of ``policy_kwargs``, to
        its name; empty if there is none.
    """
    name = get_policy_name(policy_class)
    parts: dict[str, str] = {}
    if policy_class is not POLICIES[name]:
        parts["policy"] = policy_class.__name__
    if policy_kwargs.get("features_extractor_class", _EXTRACTORS[name]) is not _EXTRACTORS[name]:
        parts["features_extractor_class"] = policy_kwargs["features_extractor_class"].__name__
    activation = policy_kwargs.get("activation_fn", torch.nn.Tanh)
    if not any(activation is getattr(torch.nn, known) for known in ACTIVATIONS):
        parts["activation_fn"] = name = _get_name(activation)
        if _TORCH_ACTIVATIONS.get(name, activation) is not activation:
            parts["activation_fn"] = f"another {name}"  # or loading would take torch's for it
    if not parts:
        return {}
    for key in policy_kwargs.keys() - {"optimizer_class", "optimizer_kwargs", *parts}:
        if not _is_plain(policy_kwargs[key]):
            parts[key] = _get_name(policy_kwargs[key])
    return parts


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
    if policy_kwargs.get("features_extractor_class", _EXTRACTORS[name]) is not _EXTRACTORS[name]:
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
    """Describe the network and its optimizer for a model file.

    A network with parts of the user's own has their names under ``own_parts``, and beside these only the arguments that
    JSON holds, in ``policy_kwargs``.
    """
    optimizer_class = policy_kwargs.get("optimizer_class", torch.optim.Adam)
    optimizer_kwargs = policy_kwargs.get("optimizer_kwargs")
    if optimizer_kwargs is None:  # SB3's defaults
        optimizer_kwargs = {"eps": 1e-5} if optimizer_class is torch.optim.Adam else {}
    network: dict[str, Any] = {"policy": get_policy_name(policy_class)}
    if own_parts := list_own_parts(policy_kwargs, policy_class):
        plain = policy_kwargs.keys() - {"optimizer_class", "optimizer_kwargs", *own_parts}
        network["own_parts"] = own_parts
        network["policy_kwargs"] = {key: _to_plain_value(policy_kwargs[key]) for key in sorted(plain)}
    else:
        network |= {
            "net_arch": resolve_net_arch(policy_kwargs, policy_class),
            "activation": policy_kwargs.get("activation_fn", torch.nn.Tanh).__name__,
            "ortho_init": bool(policy_kwargs.get("ortho_init", True)),
            "log_std_init": float(policy_kwargs.get("log_std_init", 0.0)),
            "normalize_images": bool(policy_kwargs.get("normalize_images", True)),
            "share_features_extractor": bool(policy_kwargs.get("share_features_extractor", True)),
            "features_extractor_kwargs": _to_plain(policy_kwargs.get("features_extractor_kwargs") or {}),
        }
    network["optimizer_class"] = optimizer_class.__name__
    # An optimizer of the user's own may take anything; what JSON does not hold has to be given again.
    network["optimizer_kwargs"] = _to_plain({k: v for k, v in optimizer_kwargs.items() if _is_plain(v)})
    return network


def network_from_json(network: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild ``policy_kwargs`` from the output of ``network_to_json``, without parts of the user's own.

    :raises ValueError: If the optimizer is unknown.
    """
    if network["optimizer_class"] not in OPTIMIZERS:
        refuse(
            "optimizer_class",
            network["optimizer_class"],
            f"known are {', '.join(OPTIMIZERS)}. Pass any other to load, as in GRPO.load(path, "
            f"policy_kwargs=dict(optimizer_class={network['optimizer_class']})).",
        )
    optimizer = {
        "optimizer_class": OPTIMIZERS[network["optimizer_class"]],
        "optimizer_kwargs": {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in network["optimizer_kwargs"].items()
        },
    }
    if "own_parts" in network:
        return {**network["policy_kwargs"], **optimizer}
    return {
        "net_arch": network["net_arch"],
        "activation_fn": getattr(torch.nn, network["activation"]),  # the reader has checked it against ACTIVATIONS
        "ortho_init": bool(network["ortho_init"]),
        "log_std_init": float(network["log_std_init"]),
        "normalize_images": network["normalize_images"],
        "share_features_extractor": network["share_features_extractor"],
        "features_extractor_kwargs": network["features_extractor_kwargs"],
        **optimizer,
    }


def rebuild_policy(
    network: Mapping[str, Any], policy_class: type[ActorCriticPolicy] | None, policy_kwargs: Mapping[str, Any] | None
) -> tuple[type[ActorCriticPolicy], dict[str, Any]]:
    """Return the policy class and its arguments from the output of ``network_to_json`` and what a caller adds to it.

    :param policy_class: The class that was saved; None takes SB3's.
    :param policy_kwargs: The arguments that were saved, or, where the network has parts of the user's own or an
        optimizer that is not torch's, these parts alone; None takes all that the file holds.
    :raises ValueError: If a part is missing, or the arguments are not those that were saved.
    """
    given, own_parts = dict(policy_kwargs or {}), dict(network.get("own_parts", {}))
    if (activation := own_parts.get("activation_fn", "")) in _TORCH_ACTIVATIONS:
        given.setdefault("activation_fn", _TORCH_ACTIVATIONS[activation])
    if network["optimizer_class"] not in OPTIMIZERS:
        own_parts["optimizer_class"] = network["optimizer_class"]
    if "layers" in own_parts:
        raise ValueError(_describe_changed_layers(own_parts))
    found = {*given, *(["policy"] if policy_class is not None else [])}
    if missing := {part: name for part, name in own_parts.items() if part not in found}:
        raise ValueError(
            f"this model's policy has parts that a model file does not hold: {', '.join(missing.values())}. Pass them "
            f"to load: GRPO.load(path{_spell_arguments(missing)})."
        )
    policy_class = policy_class or POLICIES[network["policy"]]
    if own_parts:
        is_torchs = network["optimizer_class"] in OPTIMIZERS
        stored = network_from_json(network if is_torchs else {**network, "optimizer_class": "Adam"})
        given = {**stored, **given}
    elif policy_kwargs is None:
        given = network_from_json(network)
    described = json.loads(json.dumps(network_to_json(given, policy_class)))
    if _strip_implied(described) != _strip_implied(network):
        raise ValueError(
            f"the specified policy or policy_kwargs are not those of the model. Stored: {_strip_implied(network)}. "
            f"Specified: {_strip_implied(described)}. Pass those that it was built with, or leave them out."
        )
    return policy_class, given


def _describe_changed_layers(own_parts: Mapping[str, str]) -> str:
    built_with = {part: name for part, name in own_parts.items() if part != "layers"}
    return (
        "the layers of this model's policy were replaced or changed after it had been built, which a model file does "
        f"not hold. Build it again, GRPO(policy, env{_spell_arguments(built_with)}), change its layers as before, and "
        "call model.set_parameters(path)."
    )


def _spell_arguments(own_parts: Mapping[str, str]) -> str:
    keywords = ", ".join(f"{part}={name}" for part, name in own_parts.items() if part != "policy")
    policy = f", policy={own_parts['policy']}" if "policy" in own_parts else ""
    return policy + (f", policy_kwargs=dict({keywords})" if keywords else "")


def _strip_implied(network: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what SB3 adds by itself where images are not scaled."""
    stripped = dict(network)
    if stripped.get("normalize_images") is False:
        kwargs = stripped["features_extractor_kwargs"]
        stripped["features_extractor_kwargs"] = {k: v for k, v in kwargs.items() if k != "normalized_image"}
    return stripped


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
    extractor_class = policy_kwargs.get("features_extractor_class", _EXTRACTORS[policy])
    extractor_kwargs = policy_kwargs.get("features_extractor_kwargs")
    if not (isinstance(extractor_class, type) and issubclass(extractor_class, BaseFeaturesExtractor)):
        refuse(
            "features_extractor_class",
            extractor_class,
            "it must be a subclass of stable_baselines3.common.torch_layers.BaseFeaturesExtractor.",
        )
    if not isinstance(extractor_kwargs, dict | None):
        refuse("features_extractor_kwargs", extractor_kwargs, "it must be a dict.")
    if extractor_class is not _EXTRACTORS[policy]:
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
        rule = "its step evaluates the loss several times, GRPO's once per minibatch; use one of torch.optim."
        refuse("optimizer_class", optimizer_class, rule + ", torch.optim.".join(OPTIMIZERS) + ".")
    if not isinstance(optimizer_kwargs, dict | None):
        refuse("optimizer_kwargs", optimizer_kwargs, "it must be a dict.")
    known = set(inspect.signature(optimizer_class).parameters) - {"params", "lr"}
    is_torchs = any(optimizer_class is of_torch for of_torch in OPTIMIZERS.values())
    for name, value in (optimizer_kwargs or {}).items():
        if name == "lr" or (is_torchs and name not in known):
            rule = f"known keys are {', '.join(sorted(known))}; the step size is GRPO's learning_rate."
            refuse("optimizer_kwargs", name, rule)
        numbers = value if isinstance(value, tuple) else (value,)
        if is_torchs and not all(isinstance(x, bool) or (is_real(x) and math.isfinite(x)) for x in numbers):
            refuse(name, value, "it must be a finite number, True or False, or a tuple of finite numbers.")


def needs_closure(optimizer_class: type[torch.optim.Optimizer]) -> bool:
    """Tell whether an optimizer's step calls back for the loss, as that of ``torch.optim.LBFGS`` does."""
    closure = inspect.signature(optimizer_class.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def _get_name(value: Any) -> str:
    return getattr(value, "__name__", None) or f"{type(value).__name__}(...)"


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | np.bool_) or (is_real(value) and math.isfinite(value))


def _to_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert arguments to JSON's own types."""
    return {name: _to_plain_value(value) for name, value in arguments.items()}


def _to_plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return _to_plain(value)
    if isinstance(value, tuple | list):
        return [_to_plain_value(x) for x in value]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return int(value) if is_whole(value) else float(value)
