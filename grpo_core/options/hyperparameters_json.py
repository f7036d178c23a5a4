"""Write the arguments of ``GRPO`` to a model file and read them from it."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from grpo_core.options.hyperparameters import HYPERPARAMETERS, SAVED_HYPERPARAMETERS

_SCHEDULES = tuple(name for name, row in HYPERPARAMETERS.items() if row.is_schedule)


def hyperparameters_to_json(model: Any) -> dict[str, Any]:
    """Describe the arguments of a ``GRPO`` for a model file, without pickling anything.

    SB3's constant and linear schedules are kept. Any other function is replaced by its first value, with a warning;
    ``GRPO.load(path, learning_rate=...)`` accepts the function again.
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
    """Rebuild the arguments from the output of ``hyperparameters_to_json``.

    Arguments that the file does not contain are left out and so keep their defaults.
    """
    return _revive_schedules({name: described[name] for name in SAVED_HYPERPARAMETERS if name in described})


def custom_objects_to_arguments(custom_objects: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the arguments out of SB3's ``custom_objects``; like SB3, ignore names that a model file does not hold.

    A learning rate of 0 is allowed, since recipes for models that only predict contain it.
    """
    names = {*SAVED_HYPERPARAMETERS, "stats_window_size", "reward_function"}
    return _revive_schedules({name: value for name, value in custom_objects.items() if name in names})


def _revive_schedules(arguments: dict[str, Any]) -> dict[str, Any]:
    for name in _SCHEDULES:
        value = arguments.get(name)
        if isinstance(value, dict):
            arguments[name] = LinearSchedule(*value["linear"])
        # A constant 0 is refused as a mistake, but a schedule may start at 0, and the file then holds 0.
        elif not callable(value) and value == 0.0:
            arguments[name] = ConstantSchedule(0.0)
    return arguments


def _schedule_to_json(name: str, schedule: Any) -> Any:
    if isinstance(schedule, FloatSchedule):
        schedule = schedule.value_schedule
    if type(schedule) is LinearSchedule:  # a subclass may compute anything
        return {"linear": [schedule.start, schedule.end, schedule.end_fraction]}
    if type(schedule) is ConstantSchedule:
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
