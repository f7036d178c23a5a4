"""The score of a policy, and a table of scores that is kept."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

N_EPISODES = 100
SCORES_FOLDER = Path(__file__).parent.parent / "results" / "scores"

Policy = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def evaluate(env_name: str, policy: Policy, seed: int, n_episodes: int = N_EPISODES) -> float:
    """Return the mean of the environment's own reward over whole episodes.

    :param env_name: Gymnasium id.
    :param policy: Maps observations ``(n_episodes, ...)`` to actions ``(n_episodes, ...)``.
    :param seed: Seed of the first episode; the others follow it.
    :param n_episodes: Number of episodes, each in an environment of its own.
    """
    envs = gym.make_vec(env_name, num_envs=n_episodes, vectorization_mode="sync")
    observations, _ = envs.reset(seed=seed)
    returns, live = np.zeros(n_episodes), np.ones(n_episodes, np.bool_)
    while live.any():
        observations, rewards, terminated, truncated, _ = envs.step(policy(observations))
        returns += rewards * live
        live &= ~(terminated | truncated)
    envs.close()
    return float(returns.mean())


def format_table(scores: dict[str, list[float]], solved_score: float) -> str:
    """Format one row per method as Markdown.

    :param scores: Method to one score per seed.
    :param solved_score: Score from which the task counts as solved.
    """
    lines = [
        f"| method | seeds >= {solved_score:g} | mean | median | worst | scores, sorted |",
        "|---|---|---|---|---|---|",
    ]
    for method, values in scores.items():
        n_solved = sum(value >= solved_score for value in values)
        listed = ", ".join(f"{value:.0f}" for value in sorted(values))
        mean, median = statistics.mean(values), statistics.median(values)
        lines.append(
            f"| {method} | {n_solved} of {len(values)} | {mean:.1f} | {median:.1f} | {min(values):.1f} | {listed} |"
        )
    return "\n".join(lines)


def store_scores(
    name: str, seeds: range, solved_score: float, scores: dict[str, list[float]], versions: dict[str, str]
) -> None:
    """Keep a table's scores in ``results/scores``.

    :param versions: ``read_versions``, from before the first training.
    """
    kept = {"seeds": [seeds[0], seeds[-1]], "solved_score": solved_score, "scores": scores, "versions": versions}
    SCORES_FOLDER.mkdir(exist_ok=True)
    (SCORES_FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
