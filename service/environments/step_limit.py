"""Where the episodes of an environment without a time limit are cut, since a policy may never end one."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from grpo_core.evaluation import Episode

# The limit of most other environments is at most this.
MAX_STEPS_WITHOUT_LIMIT = 1000


def find_max_steps(env: gym.Env[Any, Any]) -> float:
    """Return after how many steps an evaluation cuts an episode; infinite where the environment has a time limit."""
    has_limit = env.spec is not None and env.spec.max_episode_steps is not None
    return math.inf if has_limit else MAX_STEPS_WITHOUT_LIMIT


def warn_of_cuts(episodes: Sequence[Episode], max_steps: float, of_what: str) -> list[str]:
    """Say how many episodes were cut, in at most one sentence.

    :param of_what: Whose episodes they are.
    """
    n_cut = sum(episode.n_steps >= max_steps for episode in episodes)
    if n_cut == 0:
        return []
    return [
        f"{n_cut} of {len(episodes)} episodes of {of_what} were cut after {max_steps:,} steps, since the environment "
        'has no time limit, and its figures are of what came before; send "env_kwargs": {"max_episode_steps": n} for a '
        "limit."
    ]
