"""Where the episodes of an environment without a time limit are cut, since a policy may never end one."""

from collections.abc import Sequence

from grpo_core.evaluation import Episode

# Of a job's evaluations, which take time from its training; the limit of most other environments is at most this.
MAX_STEPS_WITHOUT_LIMIT = 1000


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
