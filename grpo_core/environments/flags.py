"""Read flags that environments hand over, such as ``is_success``; needs neither torch nor SB3."""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from grpo_core.environments.errors import InvalidEnvironmentError

shorten = reprlib.Repr()
shorten.maxstring = shorten.maxother = 100


def read_success(info: Mapping[str, Any]) -> bool | None:
    """Read ``is_success`` from the info of an episode's last step.

    :return: None if it is absent, None or NaN: not measured.
    :raises InvalidEnvironmentError: If it is anything else than true, false, 1 or 0.
    """
    success = info.get("is_success")
    if success is None or (isinstance(success, float | np.floating) and math.isnan(success)):
        return None
    flag = read_flag(success)
    if flag is None:
        raise InvalidEnvironmentError(
            f"info['is_success'] of step() is {describe(success)}; it has to be True or False, or left out where "
            "success was not measured."
        )
    return flag


def read_flag(value: Any) -> bool | None:
    """Return the truth value of true, false, 1 or 0, also as an array of one; None for anything else."""
    array = to_array(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        return None
    return bool(array.item())


def to_array(value: Any) -> np.ndarray[Any, Any]:
    """Turn a value into an array, of objects where it is no array, as with lists of different lengths."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        return np.array(None)


def describe(value: Any) -> str:
    """Write a value in one line for an error; a large array by its shape."""
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"an array of shape {value.shape} of {value.dtype}"
    return " ".join(shorten.repr(value).split())
