"""Tell whether an episode succeeded: as its environment says, or as the environment's specification does."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import (
    FrameStackObservation,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    RecordVideo,
    TimeLimit,
)

from grpo_core.environments.flags import read_success

# Takes the environment itself, whether its last step terminated the episode, and the sum of its rewards.
Goal = Callable[[Any, bool, float], bool]


def _is_reached_by_terminating(core: Any, terminated: bool, reward: float) -> bool:
    return terminated


def _is_on_a_goal_tile(core: Any, terminated: bool, reward: float) -> bool:
    return terminated and bool(core.desc[divmod(int(core.s), core.ncol)] == b"G")


def _earns_at_least(score: float) -> Goal:
    return lambda core, terminated, reward: reward >= score


# What the documentation of Gymnasium 1.4 calls the goal of an episode, by the environment's class. These terminate only
# there, or say which score makes an episode a solution. For others an episode has no outcome: CartPole's
# reward_threshold, for one, is a mean over many.
_GOALS: Mapping[str, Goal] = MappingProxyType(
    {
        "classic_control.mountain_car:MountainCarEnv": _is_reached_by_terminating,
        "classic_control.continuous_mountain_car:Continuous_MountainCarEnv": _is_reached_by_terminating,
        "classic_control.acrobot:AcrobotEnv": _is_reached_by_terminating,
        "toy_text.cliffwalking:CliffWalkingEnv": _is_reached_by_terminating,
        "toy_text.taxi:TaxiEnv": _is_reached_by_terminating,
        "toy_text.frozen_lake:FrozenLakeEnv": _is_on_a_goal_tile,
        "box2d.lunar_lander:LunarLander": _earns_at_least(200.0),
        "box2d.bipedal_walker:BipedalWalker": _earns_at_least(300.0),
    }
)
_MODULES = "gymnasium.envs."
# Neither rewards nor ends change in these, nor in wrappers of observations or actions.
_NEUTRAL_WRAPPERS = (
    *(TimeLimit, OrderEnforcing, PassiveEnvChecker, FrameStackObservation, RecordEpisodeStatistics, RecordVideo),
    *(gym.ObservationWrapper, gym.ActionWrapper),
)


def judge_success(env: gym.Env[Any, Any], info: Mapping[str, Any], terminated: bool, reward: float) -> bool | None:
    """Say whether an episode that has just ended succeeded.

    :param info: What its last step reported; a flag under ``is_success`` decides.
    :param terminated: Whether that step terminated it.
    :param reward: Sum of its rewards.
    :raises InvalidEnvironmentError: If ``is_success`` is there but says neither yes nor no.
    :return: None if neither the environment nor its specification says what success is.
    """
    if (flag := read_success(info)) is not None:
        return flag
    while isinstance(env, _NEUTRAL_WRAPPERS):
        env = env.env
    goal = _GOALS.get(f"{type(env).__module__}:{type(env).__qualname__}".removeprefix(_MODULES))
    return None if goal is None else goal(env, terminated, reward)
