"""Describe a policy's networks and their optimizer in a model file, and build them again from it."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo_core.actor.actor import ACTIVATIONS
from grpo_core.options.checks import is_real, is_whole, refuse
from grpo_core.options.policies import (
    EXTRACTORS,
    OPTIMIZERS,
    POLICIES,
    TORCH_ACTIVATIONS,
    get_policy_name,
    resolve_net_arch,
)


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
    network["optimizer_kwargs"] = {  # whose lists are read as tuples, as torch's optimizers take them
        name: [*map(_to_plain_value, value)] if isinstance(value, tuple) else _to_plain_value(value)
        for name, value in optimizer_kwargs.items()
        if _is_plain(value)
    }
    if lost := sorted(optimizer_kwargs.keys() - network["optimizer_kwargs"].keys()):
        network["lost_optimizer_kwargs"] = lost
    return network


def list_own_parts(policy_kwargs: Mapping[str, Any], policy_class: type[ActorCriticPolicy]) -> dict[str, str]:
    """List the parts of a network that SB3's own three policies do not have, and that only torch can run.

    :return: From the argument of ``GRPO.load`` that brings each part back, ``policy`` or a key of ``policy_kwargs``, to
        its name; empty if there is none.
    """
    name = get_policy_name(policy_class)
    parts: dict[str, str] = {}
    if policy_class is not POLICIES[name]:
        parts["policy"] = policy_class.__name__
    if policy_kwargs.get("features_extractor_class", EXTRACTORS[name]) is not EXTRACTORS[name]:
        parts["features_extractor_class"] = policy_kwargs["features_extractor_class"].__name__
    activation = policy_kwargs.get("activation_fn", torch.nn.Tanh)
    if not any(activation is getattr(torch.nn, known) for known in ACTIVATIONS):
        parts["activation_fn"] = name = _get_name(activation)
        if TORCH_ACTIVATIONS.get(name, activation) is not activation:
            parts["activation_fn"] = f"another {name}"  # or loading would take torch's for it
    if not parts:
        return {}
    for key in policy_kwargs.keys() - {"optimizer_class", "optimizer_kwargs", *parts}:
        if not _is_plain(policy_kwargs[key]):
            parts[key] = _get_name(policy_kwargs[key])
    return parts


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
            for name, value in _from_plain(network["optimizer_kwargs"]).items()
        },
    }
    if "own_parts" in network:
        return {**_from_plain(network["policy_kwargs"]), **optimizer}
    return {
        "net_arch": network["net_arch"],
        "activation_fn": getattr(torch.nn, network["activation"]),  # the reader has checked it against ACTIVATIONS
        "ortho_init": bool(network["ortho_init"]),
        "log_std_init": float(network["log_std_init"]),
        "normalize_images": network["normalize_images"],
        "share_features_extractor": network["share_features_extractor"],
        "features_extractor_kwargs": _from_plain(network["features_extractor_kwargs"]),
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
    if (activation := own_parts.get("activation_fn", "")) in TORCH_ACTIVATIONS:
        given.setdefault("activation_fn", TORCH_ACTIVATIONS[activation])
    if network["optimizer_class"] not in OPTIMIZERS:
        own_parts["optimizer_class"] = network["optimizer_class"]
    if lost := network.get("lost_optimizer_kwargs"):
        own_parts["optimizer_kwargs"] = f"dict({', '.join(f'{name}=...' for name in lost)})"
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
    if strip_implied(described) != strip_implied(network):
        raise ValueError(
            f"the specified policy or policy_kwargs are not those of the model. Stored: {strip_implied(network)}. "
            f"Specified: {strip_implied(described)}. Pass those that it was built with, or leave them out."
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


def strip_implied(network: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what SB3 adds on its own where images are not scaled, and what earlier versions did not say."""
    said = {key: value for key, value in network.items() if key != "lost_optimizer_kwargs"}
    stripped: dict[str, Any] = json.loads(json.dumps(_from_plain(said)))  # which takes tuples for lists
    if stripped.get("normalize_images") is False:
        kwargs = stripped["features_extractor_kwargs"]
        stripped["features_extractor_kwargs"] = {k: v for k, v in kwargs.items() if k != "normalized_image"}
    return stripped


def _get_name(value: Any) -> str:
    return getattr(value, "__name__", None) or f"{type(value).__name__}(...)"


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        is_taken_for_tuple = value.keys() == {"tuple"}
        return not is_taken_for_tuple and all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | np.bool_) or (is_real(value) and math.isfinite(value))


def _to_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert arguments to JSON's own types; a tuple becomes ``{"tuple": [...]}``."""
    return {name: _to_plain_value(value) for name, value in arguments.items()}


def _to_plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return _to_plain(value)
    if isinstance(value, tuple | list):
        items = [_to_plain_value(x) for x in value]
        return items if isinstance(value, list) else {"tuple": items}
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return int(value) if is_whole(value) else float(value)


def _from_plain(described: Any) -> Any:
    """Return what ``_to_plain_value`` was given."""
    if isinstance(described, list):
        return [*map(_from_plain, described)]
    if not isinstance(described, dict):
        return described
    if described.keys() == {"tuple"}:
        return tuple(map(_from_plain, described["tuple"]))
    return {key: _from_plain(value) for key, value in described.items()}
