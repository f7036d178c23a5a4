"""Success is what an environment reports, or what its documentation calls the goal; otherwise it is unknown."""

import pkgutil
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FlattenObservation, FrameStackObservation, TransformReward

from grpo_core.environments.errors import InvalidEnvironmentError
from grpo_core.evaluation import play_episode
from grpo_core.success import _GOALS, _MODULES, judge_success
from tests.environments import LineEnv


class StandInLander(LineEnv):
    """Bears the name of a class that needs a package of its own."""

    __module__ = "gymnasium.envs.box2d.lunar_lander"
    __qualname__ = "LunarLander"


def act(actions: Mapping[int, int] | int) -> Any:
    """Make a policy that always takes one action, or one by the observation."""
    return lambda observation, masks: actions if isinstance(actions, int) else actions[int(observation)]


@pytest.mark.parametrize("flag", [True, 1, 1.0, np.True_, np.float32(1), np.array(True), np.array([1.0])])
def test_a_flag_is_read_in_every_spelling(flag: Any) -> None:
    assert judge_success(LineEnv(), {"is_success": flag}, False, 0.0) is True
    assert judge_success(LineEnv(), {"is_success": flag ^ flag if flag is True else flag * 0}, False, 0.0) is False


@pytest.mark.parametrize("value", [None, float("nan"), np.float32("nan")])
def test_what_was_not_measured_says_nothing(value: Any) -> None:
    assert judge_success(LineEnv(), {"is_success": value}, True, 1.0) is None


@pytest.mark.parametrize("value", ["no", "", -1, 0.5, 2, [], {}, np.array([True, False])])
def test_what_is_no_flag_is_refused(value: Any) -> None:
    with pytest.raises(InvalidEnvironmentError, match=r"info\['is_success'\] of step\(\) is .* True or False"):
        judge_success(LineEnv(), {"is_success": value}, True, 1.0)


class TestGoals:
    def test_each_is_that_of_a_class_of_gymnasium(self) -> None:
        for name in _GOALS:
            if not name.startswith("box2d."):  # not always installed
                assert issubclass(pkgutil.resolve_name(_MODULES + name), gym.Env)

    def test_a_car_that_is_still_in_the_valley_has_failed(self) -> None:
        env = gym.make("MountainCar-v0")
        assert play_episode(env, act(1), seed=0).is_success is False
        rocking = play_episode(env, lambda observation, masks: 2 if observation[1] >= 0 else 0, seed=0)
        assert rocking.is_success is True
        assert rocking.n_steps < 200

    def test_on_the_lake_it_is_the_goal_and_not_a_hole(self) -> None:
        env = gym.make("FrozenLake-v1", is_slippery=False)
        around = {0: 1, 4: 1, 8: 2, 9: 1, 13: 2, 14: 2}
        assert play_episode(env, act(around), seed=0).is_success is True
        assert play_episode(env, act({0: 1, 4: 2}), seed=0) == (0.0, 2, False)
        assert play_episode(env, act(0), seed=0).is_success is False

    def test_it_does_not_depend_on_the_lakes_rewards(self) -> None:
        env = gym.make("FrozenLake-v1", is_slippery=False, reward_schedule=(-1, 5, 0))
        assert play_episode(env, act({0: 1, 4: 2}), seed=0) == (5.0, 2, False)

    def test_behind_the_cliff_it_is_the_far_corner(self) -> None:
        env = gym.make("CliffWalking-v1")
        along = {36: 0, **dict.fromkeys(range(24, 35), 1), 35: 2}
        assert play_episode(env, act(along), seed=0) == (-13.0, 13, True)
        assert play_episode(env, act(0), seed=0, max_steps=20).is_success is False

    def test_a_score_counts_only_where_rewards_are_the_environments_own(self) -> None:
        lander = StandInLander()
        assert judge_success(lander, {}, True, 200.0) is True
        assert judge_success(FlattenObservation(lander), {}, False, 200.0) is True
        assert judge_success(lander, {}, True, 199.0) is False
        assert judge_success(TransformReward(lander, lambda reward: reward), {}, True, 200.0) is None

    def test_stacked_frames_hide_no_goal(self) -> None:
        assert judge_success(FrameStackObservation(gym.make("Acrobot-v1"), 2), {}, True, -80.0) is True

    @pytest.mark.parametrize("env_name", ["CartPole-v1", "Pendulum-v1"])
    def test_where_an_episode_has_no_outcome_there_is_none(self, env_name: str) -> None:
        assert judge_success(gym.make(env_name), {}, True, 500.0) is None

    def test_a_subclass_may_end_for_other_reasons(self) -> None:
        class Tired(type(gym.make("Acrobot-v1").unwrapped)):  # type: ignore[misc]  # as others may derive theirs
            pass

        assert judge_success(gym.make("Acrobot-v1"), {}, True, -80.0) is True
        assert judge_success(Tired(), {}, True, -80.0) is None
