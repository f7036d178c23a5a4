"""Check the arguments of ``GRPO``, one by one and together."""

import math
import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces

from grpo_core.options.choices import COMPARES_IN_GROUPS, NEEDS_VALUES, GroupMode
from grpo_core.options.hyperparameters import HYPERPARAMETERS, Row

# Four groups of two branches fit a rollout of the default length. On Acrobot horizons from 8 to 64 end alike, and 128,
# one group, ends worse (benchmarks/RESULTS.md); presets have their own.
DEFAULT_HORIZON = 32
# Whole episodes without a horizon are cut here, or a task that goes on for ever would fill the memory. Longer than any
# episode of Gymnasium's own environments but Atari's, and a matter of seconds.
MAX_EPISODE_STEPS = 10_000


def refuse(name: str, value: object, rule: str) -> NoReturn:
    """Refuse an argument.

    :param rule: The rule and the remedy.
    :raises ValueError: Always.
    """
    raise ValueError(f"{name}={value!r} is not allowed: {rule}")


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, NumPy's included; booleans are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Return whether a value is a real number, NumPy's included; booleans are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_device(value: object) -> bool:
    import torch  # here: the server, which reads this module, does without

    if type(value) is int:  # of an accelerator, which torch knows
        return True
    if not isinstance(value, str | torch.device):
        return False
    try:
        torch.device("cpu" if value == "auto" else value)
    except RuntimeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, str | bytes | bool):
        return False
    try:
        return not math.isnan(float(value))  # torch's numbers, too
    except (TypeError, ValueError, RuntimeError):
        return False


# Arguments of SB3's that no row of the table describes: what is allowed, and the rule.
_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "policy_kwargs": (lambda value: isinstance(value, Mapping | None), "it must be a dict, or None."),
    "tensorboard_log": (
        lambda value: isinstance(value, str | os.PathLike | None),
        "it must be a folder's path, or None to write no files.",
    ),
    "verbose": (
        lambda value: isinstance(value, Real),
        "it must be 0 for silence, 1 for tables or 2 for debugging.",
    ),
    "device": (_is_device, 'it must be "auto", "cpu", "cuda" or another device of torch\'s.'),
    "total_timesteps": (_is_number, "it must be a number of simulator steps."),
    "log_interval": (
        lambda value: value is None or (isinstance(value, Real) and value != 0),
        "it must be a whole number of at least 1, or None to write no tables.",
    ),
}


def check_arguments(**arguments: object) -> None:
    """Check arguments of SB3's before SB3 stumbles over them.

    :raises ValueError: If one is refused; the message names the value, the rule and the remedy.
    """
    for name, value in arguments.items():
        is_allowed, rule = _ARGUMENTS[name]
        if not is_allowed(value):
            refuse(name, value, rule)


def check_hyperparameters(model: Any) -> None:
    """Check the arguments of a ``GRPO`` against the table and against each other.

    Those that may be schedules become Python's floats, for SB3 takes no others.

    :raises ValueError: If one is refused; the message names the value, the rule and the remedy.
    """
    for name, row in HYPERPARAMETERS.items():
        value = getattr(model, name)
        _check_row(row, value)
        if row.is_schedule and is_real(value) and not isinstance(value, float | int):
            setattr(model, name, float(value))
    if model.seed is not None and not (is_whole(model.seed) and model.seed >= 0):
        refuse("seed", model.seed, "it must be a whole number of at least 0, or None for a fresh one.")
    if not (is_whole(model._stats_window_size) and model._stats_window_size >= 1):
        refuse("stats_window_size", model._stats_window_size, "it must be a whole number of at least 1.")
    model._stats_window_size = int(model._stats_window_size)  # a deque takes no number of NumPy's
    check_rewards(model)
    _check_combinations(model)


def _check_row(row: Row, value: Any) -> None:
    if (value is None and row.none_means) or (row.is_schedule and callable(value)):
        return
    if row.choices:
        if value not in row.choices:
            refuse(row.name, value, f"choose one of {', '.join(row.choices)}.")
    elif row.kind is bool:
        if not isinstance(value, bool | np.bool_):
            refuse(row.name, value, "it must be True or False.")
    elif not _is_in_range(row, value):
        refuse(row.name, value, _describe_rule(row))


def _is_in_range(row: Row, value: Any) -> bool:
    is_number = is_whole(value) if row.kind is int else is_real(value)
    return is_number and row.at_least <= value <= row.at_most and row.above < value < math.inf


def _describe_rule(row: Row) -> str:
    low = f"at least {row.at_least:g}" if row.above == -math.inf else f"above {row.above:g}"
    if row.at_most < math.inf:
        rule = f"it must lie in [{row.at_least:g}, {row.at_most:g}]"
    elif row.kind is int:
        rule = f"it must be a whole number of {low}"
    else:
        rule = f"it must be finite and {low}"
    if row.is_schedule:
        rule += ", or a function of the remaining progress"
    if row.none_means:
        rule += f", or None for {row.none_means.replace('`', '')}"
    return f"{rule}."


class CheckedSchedule:
    """A hyperparameter that may follow the remaining progress, with a check of what its function returns.

    :param name: Its name in the table.
    :param value: A number that ``check_hyperparameters`` has accepted, or a function.
    """

    def __init__(self, name: str, value: float | Callable[[float], float]) -> None:
        self._name, self._value = name, value

    def __repr__(self) -> str:
        return f"CheckedSchedule({self._name}={self._value!r})"

    def __call__(self, progress_remaining: float) -> float:
        """Return the number at a remaining progress, from 1 to 0.

        :raises ValueError: If the function returns another; the message names the value, the rule and the remedy.
        """
        if not callable(self._value):
            return float(self._value)
        returned: Any = self._value(progress_remaining)
        try:
            number = float(returned)
        except (TypeError, ValueError, RuntimeError):  # the last is torch's
            number = math.nan
        if not 0 <= number < math.inf:  # 0 is where SB3's linear schedule ends and a warm-up begins
            name = f"{self._name}(progress_remaining={progress_remaining:g})"
            refuse(name, returned, "the function must return a finite number of at least 0; correct it.")
        return number


def check_rewards(model: Any) -> None:
    """Check the reward functions of a ``GRPO`` and their weights.

    :raises ValueError: If one is refused; the message names the value, the rule and the remedy.
    """
    _check_reward_function(model.reward_function)
    # A model file holds names and weights even of functions that it cannot hold.
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
            f"baseline='{model.baseline}' leaves in an advantage what all members of the group share; the group's "
            "spread does not measure that, and may divide it by almost nothing. Use advantage_scaling='batch' or "
            "baseline='group'.",
        )
    if model.baseline in NEEDS_VALUES:
        if not model.bootstrap_value:
            refuse(
                "bootstrap_value",
                model.bootstrap_value,
                f"baseline='{model.baseline}' needs the value network; use bootstrap_value=True or baseline='group'.",
            )
        if model.supervision == "outcome":
            refuse(
                "supervision",
                model.supervision,
                f"baseline='{model.baseline}' judges single steps; use supervision='process' or baseline='group'.",
            )
    if model.antithetic_actions and not isinstance(model.action_space, spaces.Box):
        refuse(
            "antithetic_actions",
            model.antithetic_actions,
            f"only the noise of continuous actions has an opposite, and {model.action_space} has none; use False.",
        )
    if model.ref_sync_steps is not None and model.kl_coef == 0:
        refuse("ref_sync_steps", model.ref_sync_steps, "with kl_coef=0 there is no reference policy; set kl_coef.")


def check_noise(model: Any) -> None:
    """Check that the policy of a ``GRPO``, as it is now, can draw opposite noise if that is asked for.

    :raises ValueError: If it has layers that are not SB3's own, or hooks watch it.
    """
    if model.antithetic_actions and not model._plays_by_numpy():
        refuse("antithetic_actions", True, "torch draws the actions of networks that are not SB3's own; use False.")


def get_horizon(horizon: int | None, mode: GroupMode) -> int | None:
    """Return the largest number of steps in a branch; None if only the episode's end and its cap limit it."""
    return DEFAULT_HORIZON if horizon is None and mode != "episode" else horizon


def check_group_mode(model: Any, mode: GroupMode) -> None:
    """Check the arguments of a ``GRPO`` that depend on the group mode and the action space.

    :param mode: The group mode in use, never ``"auto"``.
    :raises ValueError: If one is refused; the message names the value, the rule and the remedy.
    """
    if mode == "action":
        if not isinstance(model.action_space, spaces.Discrete):
            refuse("group_mode", mode, f"only a Discrete action space can be enumerated, not {model.action_space}.")
        if model.group_size != model.action_space.n:
            refuse("group_size", model.group_size, f"group_mode='action' needs group_size={model.action_space.n}.")
    horizon = get_horizon(model.horizon, mode)
    if horizon is None and model.loss_normalization == "horizon":
        refuse(
            "loss_normalization",
            model.loss_normalization,
            "whole episodes have no constant horizon to divide by; set horizon, or use 'step' or 'branch'.",
        )
    if mode == "episode" and model.anchor_selection == "archive":
        refuse(
            "anchor_selection",
            model.anchor_selection,
            "whole episodes start from seeded resets and never from a captured state; use 'continue', or "
            "group_mode='branch' where the environment can be restored.",
        )
    if mode == "episode" or horizon is None:
        return
    group_steps = model.group_size * horizon
    if model.n_steps % group_steps != 0:
        nearest = max(1, round(model.n_steps / group_steps)) * group_steps
        # At a horizon of 1, which is also what fit_horizon() returns where none fits, another one is of no help.
        sizes, others = f"group_size={group_steps}", "group_size"
        if horizon > 1:
            sizes = f"group_size * horizon = {model.group_size} * {horizon} = {group_steps}"
            others = "group_size or horizon"
        rule = f"a rollout holds whole groups of {sizes} steps; use n_steps={nearest} or change {others}."
        refuse("n_steps", model.n_steps, rule)
