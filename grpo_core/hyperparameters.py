"""What the arguments of GRPO may be, and how they are written into a model file."""

import math
import os
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NoReturn, get_args

import numpy as np
import torch
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from grpo_core.actor import ACTIVATIONS
from grpo_core.advantage import AdvantageScaling, Baseline

# Constructor arguments that a model file keeps, by the attribute that holds them.
SAVED_HYPERPARAMETERS = (
    "learning_rate",
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "clip_range",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "target_kl",
    "tensorboard_log",
    "verbose",
    "seed",
    "group_size",
    "horizon",
    "baseline",
    "advantage_scaling",
    "bootstrap_value",
    "vf_lr_factor",
)
_SCHEDULES = ("learning_rate", "clip_range")
_NET_ARCH_RULE = "it must list positive layer sizes, like [64, 64] or dict(pi=[64], vf=[64])."
_POLICY_KWARGS = ("net_arch", "activation_fn", "ortho_init", "log_std_init")


def _refuse(name: str, value: object, rule: str) -> NoReturn:
    raise ValueError(f"{name}={value!r} is not allowed: {rule}")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_hyperparameters(model: Any) -> None:
    """Check the arguments of a ``GRPO`` against their ranges and against each other.

    :raises ValueError: With the value, the rule and the remedy.
    """
    _check_ranges(model)
    _check_choices(model)
    _check_combinations(model)


def _check_ranges(model: Any) -> None:
    for name, smallest in (("n_steps", 1), ("batch_size", 1), ("n_epochs", 1), ("group_size", 2), ("horizon", 1)):
        value = getattr(model, name)
        if not _is_whole(value) or value < smallest:
            _refuse(name, value, f"it must be a whole number of at least {smallest}.")
    for name in ("gamma", "gae_lambda"):
        value = getattr(model, name)
        if not (_is_real(value) and 0.0 <= value <= 1.0):
            _refuse(name, value, "it must lie in [0, 1].")
    for name in ("ent_coef", "vf_coef", "max_grad_norm", "vf_lr_factor"):
        value = getattr(model, name)
        if not (_is_real(value) and 0.0 <= value < math.inf):
            _refuse(name, value, "it must be finite and at least 0.")
    for name in _SCHEDULES:
        value = getattr(model, name)
        if not callable(value) and not (_is_real(value) and 0.0 < value < math.inf):
            _refuse(name, value, "it must be finite and above 0, or a function of the remaining progress.")
    if model.target_kl is not None and not (_is_real(model.target_kl) and 0.0 < model.target_kl < math.inf):
        _refuse("target_kl", model.target_kl, "it must be finite and above 0, or None for no limit.")


def _check_choices(model: Any) -> None:
    if not isinstance(model.bootstrap_value, bool | np.bool_):
        _refuse("bootstrap_value", model.bootstrap_value, "it must be True or False.")
    for name, choice in (("baseline", Baseline), ("advantage_scaling", AdvantageScaling)):
        if getattr(model, name) not in get_args(choice):
            _refuse(name, getattr(model, name), f"choose one of {', '.join(get_args(choice))}.")
    if model.reward_function is not None and not callable(model.reward_function):
        _refuse("reward_function", model.reward_function, "it must be a function, or None for the environment's own.")
    if model.seed is not None and not (_is_whole(model.seed) and model.seed >= 0):
        _refuse("seed", model.seed, "it must be a whole number of at least 0, or None for a fresh one.")


def _check_combinations(model: Any) -> None:
    if model.n_steps % (model.group_size * model.horizon) != 0:
        group_steps = model.group_size * model.horizon
        nearest = max(1, round(model.n_steps / group_steps)) * group_steps
        _refuse(
            "n_steps",
            model.n_steps,
            f"a rollout holds whole groups of group_size * horizon = {model.group_size} * {model.horizon} = "
            f"{group_steps} steps; take n_steps={nearest} or change group_size or horizon.",
        )
    if model.baseline != "group" and not model.bootstrap_value:
        _refuse(
            "bootstrap_value",
            model.bootstrap_value,
            f"baseline='{model.baseline}' judges steps by the value network; take bootstrap_value=True or "
            "baseline='group'.",
        )


def check_policy_kwargs(policy_kwargs: Mapping[str, Any]) -> None:
    """Check that the policy is one that the NumPy actor can run and a model file can hold.

    :raises ValueError: With the value, the rule and the remedy.
    """
    for name in policy_kwargs:
        if name not in _POLICY_KWARGS:
            _refuse("policy_kwargs", name, f"known keys are {', '.join(_POLICY_KWARGS)}.")
    activation = policy_kwargs.get("activation_fn", torch.nn.Tanh)
    if getattr(activation, "__name__", None) not in ACTIVATIONS:
        _refuse("activation_fn", activation, f"use one of torch.nn.{', torch.nn.'.join(ACTIVATIONS)}.")
    log_std_init = policy_kwargs.get("log_std_init", 0.0)
    if not (_is_real(log_std_init) and math.isfinite(log_std_init)):
        _refuse("log_std_init", log_std_init, "it must be a finite number.")
    net_arch = policy_kwargs.get("net_arch")
    if not isinstance(net_arch, dict | list | tuple | None):
        _refuse("net_arch", net_arch, _NET_ARCH_RULE)
    parts = net_arch.values() if isinstance(net_arch, dict) else [net_arch or []]
    if isinstance(net_arch, dict) and set(net_arch) - {"pi", "vf"}:
        _refuse("net_arch", net_arch, "its keys are pi and vf.")
    if not all(isinstance(n_units, int) and n_units > 0 for part in parts for n_units in part):
        _refuse("net_arch", net_arch, _NET_ARCH_RULE)


def resolve_net_arch(policy_kwargs: Mapping[str, Any]) -> dict[str, list[int]]:
    """Spell out the layer sizes of the policy (``pi``) and the value network (``vf``); 64, 64 unless given."""
    net_arch = policy_kwargs.get("net_arch")
    if net_arch is None:
        net_arch = [64, 64]
    if isinstance(net_arch, dict):
        return {part: list(net_arch.get(part, [])) for part in ("pi", "vf")}
    return {"pi": list(net_arch), "vf": list(net_arch)}


def network_to_json(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the network for a model file."""
    return {
        "net_arch": resolve_net_arch(policy_kwargs),
        "activation": policy_kwargs.get("activation_fn", torch.nn.Tanh).__name__,
        "ortho_init": bool(policy_kwargs.get("ortho_init", True)),
        "log_std_init": float(policy_kwargs.get("log_std_init", 0.0)),
    }


def network_from_json(network: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild ``policy_kwargs`` from ``network_to_json``."""
    return {
        "net_arch": network["net_arch"],
        "activation_fn": getattr(torch.nn, network["activation"]),  # checked against ACTIVATIONS by the reader
        "ortho_init": bool(network["ortho_init"]),
        "log_std_init": float(network["log_std_init"]),
    }


def hyperparameters_to_json(model: Any) -> dict[str, Any]:
    """Describe the arguments of a ``GRPO`` for a model file, without pickling anything.

    SB3's constant and linear schedules are kept. Of any other function only its first value can be: a warning
    says so, and ``GRPO.load(path, learning_rate=...)`` takes the function again.
    """
    described = {name: getattr(model, name) for name in SAVED_HYPERPARAMETERS}
    described = {name: x.item() if isinstance(x, np.generic) else x for name, x in described.items()}
    for name in _SCHEDULES:
        described[name] = _schedule_to_json(name, described[name])
    if described["tensorboard_log"] is not None:
        described["tensorboard_log"] = os.fspath(described["tensorboard_log"])
    return described


def hyperparameters_from_json(described: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild the arguments from ``hyperparameters_to_json``; one that an older file lacks keeps its default."""
    arguments = {name: described[name] for name in SAVED_HYPERPARAMETERS if name in described}
    for name in _SCHEDULES:
        value = arguments.get(name)
        if isinstance(value, dict):
            arguments[name] = LinearSchedule(*value["linear"])
    return arguments


def _schedule_to_json(name: str, schedule: Any) -> Any:
    if isinstance(schedule, FloatSchedule):
        schedule = schedule.value_schedule
    if isinstance(schedule, LinearSchedule):
        return {"linear": [schedule.start, schedule.end, schedule.end_fraction]}
    if isinstance(schedule, ConstantSchedule):
        return schedule.val
    if callable(schedule):
        value = float(schedule(1.0))
        warnings.warn(
            f"{name} is a function, which a model file does not hold; its first value {value} is saved. "
            f"Use LinearSchedule, or pass {name} again to GRPO.load.",
            stacklevel=5,
        )
        return value
    return schedule
