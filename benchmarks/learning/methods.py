"""The methods of the comparison, in the order of the tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature

from stable_baselines3 import PPO

from benchmarks.learning.grpo_settings import (
    get_action_settings,
    get_general_name,
    get_general_settings,
    get_grpo_settings,
)
from benchmarks.learning.peer_settings import ARS_ZOO, PPO_NORMALIZED, PPO_SHORT, PPO_ZOO, TRPO_ZOO
from benchmarks.learning.zero_advantage import ZERO_ADVANTAGE
from benchmarks.lib.runs import RunSpec, Settings
from benchmarks.lib.tasks import Task

# Methods that only say how hard a task is, or take a part of ours away, run where a training takes minutes.
_SMALL_ENVS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "FrozenLake-v1", "LunarLander-v3")
# On Hopper and Walker2d it is "defaults, falling rate, normalised" to the letter.
_SHARED_ENVS = (
    *_SMALL_ENVS,
    "MountainCarContinuous-v0",
    "InvertedDoublePendulum-v5",
    "HalfCheetah-v5",
    "Swimmer-v5",
    "Ant-v5",
    "MiniGrid-DoorKey-6x6-flat-v0",
    "MiniGrid-MultiRoom-N2-S4-flat-v0",
    "MinAtar-Breakout-flat-v1",
)


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    :param label: Label of the row.
    :param algorithm: Key of ``benchmarks.learning.trainers.TRAINERS``.
    :param get_settings: Returns the settings for a task; None where the method does not run.
    :param get_first_seed: Returns the first seed on a task, where that is not the task's: the settings were changed
        after others.
    """

    label: str
    algorithm: str
    get_settings: Callable[[Task], Settings | None]
    get_first_seed: Callable[[Task], int] | None = None


def _list(settings: Mapping[str, Settings]) -> Callable[[Task], Settings | None]:
    """Take the settings from a table by environment."""
    return lambda task: settings.get(task.env_name)


def _get_episode_settings(task: Task) -> Settings | None:
    settings = get_grpo_settings(task.env_name) if task.env_name in _SMALL_ENVS else None
    return settings and settings | {"group_mode": "episode", "horizon": None}


def _get_general_seed(task: Task) -> int:
    return 16_000 if get_general_name(task).endswith("-long") else 10_000


def _get_shared_settings(task: Task) -> Settings | None:
    """Return what PPO shares with GRPO's preset, where the preset's groups are branches."""
    settings = get_grpo_settings(task.env_name) if task.env_name in _SHARED_ENVS else None
    if settings is None or "group_mode" in settings:
        return None
    shared = {
        name: value for name, value in settings.items() if name in (*signature(PPO).parameters, "normalize", "n_envs")
    }
    return {"source": "GRPO's preset"} | shared


METHODS = {
    "grpo": Method("GRPO, preset", "GRPO", lambda task: get_grpo_settings(task.env_name)),
    "grpo_general": Method("GRPO, general preset", "GRPO", get_general_settings, _get_general_seed),
    "grpo_episode": Method("GRPO, episode groups", "GRPO", _get_episode_settings),
    "grpo_action": Method("GRPO, action groups", "GRPO", lambda task: get_action_settings(task.env_name)),
    "ppo_zoo": Method("SB3 PPO, zoo settings", "PPO", _list(PPO_ZOO)),
    "ppo_default": Method("SB3 PPO, defaults", "PPO", lambda task: {"source": "SB3's defaults"}),
    "ppo_normalized": Method("SB3 PPO, defaults, falling rate, normalised", "PPO", _list(PPO_NORMALIZED)),
    "ppo_shared": Method("SB3 PPO, what it shares with GRPO's preset", "PPO", _get_shared_settings),
    "ppo_short": Method("SB3 PPO, shorter rollouts, more entropy", "PPO", _list(PPO_SHORT)),
    "trpo_zoo": Method("sb3-contrib TRPO, zoo settings", "TRPO", _list(TRPO_ZOO)),
    "ars_zoo": Method("sb3-contrib ARS, zoo settings", "ARS", _list(ARS_ZOO)),
    "linear_search": Method(
        "random linear search",
        "linear_search",
        lambda task: {"source": "weights ~ N(0, 1)"} if task.env_name in _SMALL_ENVS else None,
    ),
    "zero_advantage": Method("zero-advantage port", "zero_advantage", _list(ZERO_ADVANTAGE)),
}
PPO_METHODS = ("ppo_zoo", "ppo_default", "ppo_normalized", "ppo_shared", "ppo_short")


def make_specs(task: Task, method: str, n_seeds: int) -> list[RunSpec]:
    """Return the runs of one method on one task; none where it has no settings.

    :param n_seeds: Number of seeds, at most the task's own.
    """
    settings = METHODS[method].get_settings(task)
    if settings is None:
        return []
    algorithm, get_first_seed = METHODS[method].algorithm, METHODS[method].get_first_seed
    seeds = task.own_seeds if algorithm == "GRPO" else task.seeds
    if get_first_seed is not None:
        seeds = range(get_first_seed(task), get_first_seed(task) + task.n_seeds)
    return [RunSpec(task.env_name, method, algorithm, seed, task.total_timesteps, settings) for seed in seeds[:n_seeds]]
