"""Where the episodes of an environment without a time limit are cut, since a policy may never end one."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from grpo_core.environments.registered_limits import get_time_limit
from grpo_core.evaluation import Episode

# Of a job's evaluations, which take time from its training; the limit of most other environments is at most this.
MAX_STEPS_WITHOUT_LIMIT = 1000


def find_max_steps(env: gym.Env[Any, Any], without_limit: int) -> float:
    """Return after how many steps an evaluation cuts an episode; infinite where the environment has a time limit.

    :param without_limit: Where it has none, or one that it does not declare.
    """
    return without_limit if get_time_limit(env.spec) is None else math.inf


def warn_of_cuts(episodes: Sequence[Episode], max_steps: float, of_what: str, remedy: str) -> list[str]:
    """Say how many episodes reached the limit, in at most one sentence; some may have ended with that step.

    :param of_what: Whose episodes they are.
    :param remedy: How to have longer ones played.
    """
    n_long = sum(episode.n_steps >= max_steps for episode in episodes)
    if n_long == 0:
        return []
    return [
        f"{n_long} of {len(episodes)} episodes of {of_what} lasted for {max_steps:,} steps, after which one is cut "
        f"where the environment declares no time limit, and the figures are of these steps; {remedy}."
    ]
