"""What evaluations of jobs and of models share: where they cut an episode, and figures that do not overflow."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from grpo_core.evaluation import Episode, Evaluation, summarize_episodes

# Where there is no time limit, for a policy may never end an episode; the limit of most environments is at most this.
MAX_STEPS_WITHOUT_LIMIT = 1000


class FiguresOverflowError(ArithmeticError):
    """Rewards are finite, and figures of them are not."""


def compute_figures(episodes: Sequence[Episode]) -> Evaluation:
    """Compute the statistics of episodes whose rewards are finite.

    :raises FiguresOverflowError: If one of the figures is not.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        figures = summarize_episodes(episodes)
    numbers = (figures.mean_reward, figures.std_reward, *(figures.mean_reward_ci95 or ()))
    if not all(map(math.isfinite, numbers)):
        largest = max(abs(episode.reward) for episode in episodes)
        raise FiguresOverflowError(
            f"rewards of up to {largest:.0e} are too large for a mean and a standard deviation; scale them down in the "
            "environment"
        )
    return figures


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
