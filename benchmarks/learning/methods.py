"""The methods of the comparison, in the order of the tables."""

from dataclasses import dataclass

from benchmarks.learning.grpo_settings import get_action_settings, get_grpo_settings
from benchmarks.learning.peer_settings import ARS_ZOO, PPO_ZOO, TRPO_ZOO
from benchmarks.learning.zero_advantage import ZERO_ADVANTAGE
from benchmarks.lib.runs import RunSpec, Settings
from benchmarks.lib.tasks import TASKS, Task


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    :param label: Label of the row.
    :param algorithm: Key of ``benchmarks.learning.trainers.TRAINERS``.
    :param settings: Settings by environment; the method runs only where it has some.
    """

    label: str
    algorithm: str
    settings: dict[str, Settings]


def _grpo(**overrides: object) -> dict[str, Settings]:
    return {env_name: get_grpo_settings(env_name) | overrides for env_name in TASKS}


METHODS = {
    "grpo": Method("GRPO", "GRPO", _grpo()),
    "grpo_episode": Method("GRPO, episode groups", "GRPO", _grpo(group_mode="episode", horizon=None)),
    "grpo_action": Method(
        "GRPO, action groups",
        "GRPO",
        {env_name: settings for env_name in TASKS if (settings := get_action_settings(env_name)) is not None},
    ),
    "ppo_zoo": Method("SB3 PPO, zoo settings", "PPO", PPO_ZOO),
    "ppo_default": Method("SB3 PPO, defaults", "PPO", {env_name: {"source": "SB3's defaults"} for env_name in TASKS}),
    "trpo_zoo": Method("sb3-contrib TRPO, zoo settings", "TRPO", TRPO_ZOO),
    "ars_zoo": Method("sb3-contrib ARS, zoo settings", "ARS", ARS_ZOO),
    "linear_search": Method(
        "random linear search", "linear_search", {env_name: {"source": "weights ~ N(0, 1)"} for env_name in TASKS}
    ),
    "zero_advantage": Method("zero-advantage port", "zero_advantage", ZERO_ADVANTAGE),
}


def make_specs(task: Task, method: str, n_seeds: int) -> list[RunSpec]:
    """Return the runs of one method on one task; none without settings.

    :param n_seeds: Number of seeds, at most the task's own.
    """
    settings = METHODS[method].settings.get(task.env_name)
    if settings is None:
        return []
    algorithm = METHODS[method].algorithm
    return [
        RunSpec(task.env_name, method, algorithm, seed, task.total_timesteps, settings) for seed in task.seeds[:n_seeds]
    ]
