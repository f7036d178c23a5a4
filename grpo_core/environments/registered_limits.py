"""The numbers of an environment's registration, in which Gymnasium takes anything."""

import math
from numbers import Real
from typing import Any

from gymnasium.envs.registration import EnvSpec


def get_time_limit(spec: EnvSpec | None) -> int | None:
    """Return after how many steps an episode is cut; None where it never is, or the registration says no number."""
    limit = None if spec is None else to_finite(spec.max_episode_steps)
    return None if limit is None or limit < 1 else int(limit)


def find_max_steps(spec: EnvSpec | None, without_limit: int) -> float:
    """Return after how many steps an evaluation cuts an episode; infinite where the environment has a time limit.

    :param without_limit: Where it has none, or one that it does not declare.
    """
    return without_limit if get_time_limit(spec) is None else math.inf


def get_reward_threshold(spec: EnvSpec | None) -> float | None:
    """Return from which reward an episode counts as solved; None where the registration says no finite number."""
    return None if spec is None else to_finite(spec.reward_threshold)


def to_finite(value: Any) -> float | None:
    """Return a number as a float; None if it is no number, infinite, or more than a float can hold."""
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
