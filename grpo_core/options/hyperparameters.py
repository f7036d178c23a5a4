"""What the arguments of GRPO may be, and how they are written into a model file."""

import math
import os
import warnings
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from grpo_core.groups.advantage import COMPARES_IN_GROUPS, NEEDS_VALUES
from grpo_core.options.checks import is_real, is_whole, refuse
from grpo_core.options.choices import (
    AdvantageScaling,
    Baseline,
    GroupMode,
    ImportanceLevel,
    LossNormalization,
    LossType,
    Supervision,
)

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
    "reward_weights",
    "group_mode",
    "group_size",
    "horizon",
    "supervision",
    "baseline",
    "advantage_scaling",
    "bootstrap_value",
    "vf_lr_factor",
    "restart_probability",
    "common_random_numbers",
    "filter_zero_std_groups",
    "clip_range_high",
    "loss_type",
    "importance_level",
    "loss_normalization",
    "kl_coef",
    "ref_sync_steps",
)
_SCHEDULES = ("learning_rate", "clip_range", "clip_range_high")
# What may be None has a meaning without a value.
_OPTIONAL = frozenset({"horizon", "clip_range_high", "ref_sync_steps", "target_kl"})
_CHOICES: dict[str, Any] = {
    "group_mode": ("auto", *get_args(GroupMode)),
    "supervision": get_args(Supervision),
    "baseline": get_args(Baseline),
    "advantage_scaling": get_args(AdvantageScaling),
    "loss_type": get_args(LossType),
    "importance_level": get_args(ImportanceLevel),
    "loss_normalization": get_args(LossNormalization),
}
_FLAGS = ("bootstrap_value", "common_random_numbers", "filter_zero_std_groups")
# Long enough for an action to show in what follows, short enough to keep the noise of returns low.
_DEFAULT_HORIZON = 32


def check_hyperparameters(model: Any) -> None:
    """Check the arguments of a ``GRPO`` against their ranges and against each other.

    :raises ValueError: With the value, the rule and the remedy.
    """
    _check_ranges(model)
    _check_choices(model)
    _check_combinations(model)


def _check_ranges(model: Any) -> None:
    smallest_counts = {"n_steps": 1, "batch_size": 1, "n_epochs": 1, "group_size": 2, "horizon": 1, "ref_sync_steps": 1}
    for name, smallest in smallest_counts.items():
        value = getattr(model, name)
        if not (is_whole(value) and value >= smallest) and not _may_be_none(name, value):
            refuse(name, value, f"it must be a whole number of at least {smallest}.")
    for name in ("gamma", "gae_lambda", "restart_probability"):
        value = getattr(model, name)
        if not (is_real(value) and 0.0 <= value <= 1.0):
            refuse(name, value, "it must lie in [0, 1].")
    for name in ("ent_coef", "vf_coef", "max_grad_norm", "vf_lr_factor", "kl_coef"):
        value = getattr(model, name)
        if not (is_real(value) and 0.0 <= value < math.inf):
            refuse(name, value, "it must be finite and at least 0.")
    for name in _SCHEDULES:
        value = getattr(model, name)
        if not callable(value) and not _is_positive(value) and not _may_be_none(name, value):
            refuse(name, value, "it must be finite and above 0, or a function of the remaining progress.")
    if model.target_kl is not None and not _is_positive(model.target_kl):
        refuse("target_kl", model.target_kl, "it must be finite and above 0, or None for no limit.")


def _may_be_none(name: str, value: object) -> bool:
    return value is None and name in _OPTIONAL


def _is_positive(value: Any) -> bool:
    return is_real(value) and 0.0 < value < math.inf


def _check_choices(model: Any) -> None:
    for name in _FLAGS:
        if not isinstance(getattr(model, name), bool | np.bool_):
            refuse(name, getattr(model, name), "it must be True or False.")
    for name, choices in _CHOICES.items():
        if getattr(model, name) not in choices:
            refuse(name, getattr(model, name), f"choose one of {', '.join(choices)}.")
    if model.seed is not None and not (is_whole(model.seed) and model.seed >= 0):
        refuse("seed", model.seed, "it must be a whole number of at least 0, or None for a fresh one.")
    check_rewards(model)


def check_rewards(model: Any) -> None:
    """Check the reward functions of a ``GRPO`` and their weights.

    :raises ValueError: With the value, the rule and the remedy.
    """
    _check_reward_function(model.reward_function)
    # Of functions that a model file does not hold, the names and weights are still there.
    weighed = model._lost_reward_function if model.reward_function is None else model.reward_function
    _check_reward_weights(model.reward_weights, weighed)


def _check_reward_function(reward_function: Any) -> None:
    several = isinstance(reward_function, list | tuple)
    ones = reward_function if several else [reward_function]
    if not ones or not all(one is None or callable(one) for one in ones):
        refuse(
            "reward_function",
            reward_function,
            "it must be a function, a list of functions, or None for the environment's own.",
        )


def _check_reward_weights(weights: Any, weighed: Any) -> None:
    if weights is None:
        return
    if not isinstance(weighed, list | tuple):
        refuse("reward_weights", weights, "weights need a list of reward functions; leave them out.")
    if (
        not isinstance(weights, list | tuple | np.ndarray)
        or len(weights) != len(weighed)
        or not all(is_real(weight) and math.isfinite(weight) for weight in weights)
    ):
        refuse("reward_weights", weights, f"give one finite number for each of the {len(weighed)} reward functions.")


def _check_combinations(model: Any) -> None:
    if model.advantage_scaling == "group" and model.baseline not in COMPARES_IN_GROUPS:
        refuse(
            "advantage_scaling",
            model.advantage_scaling,
            f"baseline='{model.baseline}' leaves advantages where a group has no spread to divide by; take "
            "advantage_scaling='batch' or baseline='group'.",
        )
    if model.baseline in NEEDS_VALUES:
        if not model.bootstrap_value:
            refuse(
                "bootstrap_value",
                model.bootstrap_value,
                f"baseline='{model.baseline}' judges steps by the value network; take bootstrap_value=True or "
                "baseline='group'.",
            )
        if model.supervision == "outcome":
            refuse(
                "supervision",
                model.supervision,
                f"baseline='{model.baseline}' judges single steps; take supervision='process' or baseline='group'.",
            )
    if model.ref_sync_steps is not None and model.kl_coef == 0:
        refuse("ref_sync_steps", model.ref_sync_steps, "without kl_coef there is no reference policy; set kl_coef.")


def get_horizon(horizon: int | None, mode: GroupMode) -> int | None:
    """Return the most steps of a branch; None where only the episode ends it."""
    return _DEFAULT_HORIZON if horizon is None and mode != "episode" else horizon


def check_group_mode(model: Any, mode: GroupMode) -> None:
    """Check the arguments of a ``GRPO`` that depend on how groups are played, and on the action space.

    :param mode: What ``group_mode`` came to.
    :raises ValueError: With the value, the rule and the remedy.
    """
    if mode == "action":
        if not isinstance(model.action_space, spaces.Discrete):
            refuse("group_mode", mode, f"only a Discrete action space can be enumerated, not {model.action_space}.")
        if model.group_size != model.action_space.n:
            refuse("group_size", model.group_size, f"group_mode='action' takes group_size={model.action_space.n}.")
    horizon = get_horizon(model.horizon, mode)
    if horizon is None and model.loss_normalization == "horizon":
        refuse(
            "loss_normalization",
            model.loss_normalization,
            "whole episodes have no constant horizon to divide by; set horizon, or take 'step' or 'branch'.",
        )
    if mode == "episode" or horizon is None:
        return
    group_steps = model.group_size * horizon
    if model.n_steps % group_steps != 0:
        nearest = max(1, round(model.n_steps / group_steps)) * group_steps
        refuse(
            "n_steps",
            model.n_steps,
            f"a rollout holds whole groups of group_size * horizon = {model.group_size} * {horizon} = "
            f"{group_steps} steps; take n_steps={nearest} or change group_size or horizon.",
        )


def hyperparameters_to_json(model: Any) -> dict[str, Any]:
    """Describe the arguments of a ``GRPO`` for a model file, without pickling anything.

    SB3's constant and linear schedules are kept. Of any other function only its first value can be: a warning
    says so, and ``GRPO.load(path, learning_rate=...)`` takes the function again.
    """
    described = {name: getattr(model, name) for name in SAVED_HYPERPARAMETERS}
    described = {name: x.item() if isinstance(x, np.generic) else x for name, x in described.items()}
    for name in _SCHEDULES:
        described[name] = _schedule_to_json(name, described[name])
    if described["reward_weights"] is not None:
        described["reward_weights"] = [float(weight) for weight in described["reward_weights"]]
    if described["tensorboard_log"] is not None:
        described["tensorboard_log"] = os.fspath(described["tensorboard_log"])
    return described


def hyperparameters_from_json(described: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild the arguments from ``hyperparameters_to_json``; one that an older file lacks keeps its default."""
    arguments = {name: described[name] for name in SAVED_HYPERPARAMETERS if name in described}
    return _revive_schedules(arguments)


def custom_objects_to_arguments(custom_objects: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the arguments out of SB3's ``custom_objects``; what a model file does not hold is passed over, as in SB3.

    A step size of 0, which recipes for models that only predict contain, is taken.
    """
    names = {*SAVED_HYPERPARAMETERS, "reward_function"}
    return _revive_schedules({name: value for name, value in custom_objects.items() if name in names})


def _revive_schedules(arguments: dict[str, Any]) -> dict[str, Any]:
    for name in _SCHEDULES:
        value = arguments.get(name)
        if isinstance(value, dict):
            arguments[name] = LinearSchedule(*value["linear"])
        # A constant of 0 is refused as a slip, but schedules may start there, and a file then holds that.
        elif not callable(value) and value == 0.0:
            arguments[name] = ConstantSchedule(0.0)
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
