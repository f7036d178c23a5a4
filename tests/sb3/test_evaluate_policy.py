"""``evaluate_policy`` judges a GRPO model like any other, and leaves its training alone."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_with_masks
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from tests.sb3.environments import ACTION_SPACES, OBSERVATION_SPACES, IndifferentEnv, MaskedMatchEnv, MatchEnv
from tests.sb3.small_models import MODES, build, build_over
from tests.weights import copy_weights, is_same


def make_indifferent() -> IndifferentEnv:
    return IndifferentEnv(episode_length=7)


@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_episodes_and_rewards_are_counted(n_envs: int) -> None:
    env = make_vec_env(make_indifferent, n_envs)
    rewards, lengths = evaluate_policy(build(env), env, n_eval_episodes=5, return_episode_rewards=True)
    assert rewards == [7.0] * 5
    assert lengths == [7] * 5
    assert evaluate_policy(build(env), env, n_eval_episodes=5) == (7.0, 0.0)


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
@pytest.mark.parametrize("action", ACTION_SPACES)
def test_every_space_is_evaluated(observation: str, action: str) -> None:
    model = build_over(observation, action)
    env = Monitor(MatchEnv(OBSERVATION_SPACES[observation], ACTION_SPACES[action]))
    # Channels last: predict transposes them itself where the environment is not the model's own.
    mean, _ = evaluate_policy(model, env, n_eval_episodes=1)
    assert isinstance(mean, float | np.floating)
    assert np.isfinite(mean)


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_training_environment_may_be_evaluated_in(deterministic: bool) -> None:
    model = build(make_vec_env(make_indifferent, 2))
    model.learn(32)
    env = model.get_env()
    assert env is not None
    assert evaluate_policy(model, env, n_eval_episodes=2, deterministic=deterministic) == (7.0, 0.0)
    model.learn(16, reset_num_timesteps=False)


@pytest.mark.parametrize("mode", MODES)
def test_evaluating_in_between_changes_nothing_that_is_learnt(mode: str) -> None:
    first, second = build(mode=mode), build(mode=mode)
    for model in (first, second):
        model.learn(24)
    evaluate_policy(second, Monitor(MatchEnv()), n_eval_episodes=2, deterministic=False)
    for model in (first, second):
        model.learn(24, reset_num_timesteps=False)
    assert is_same(copy_weights(first), copy_weights(second))


def test_masks_are_heeded_by_what_sb3_contrib_evaluates_with() -> None:
    model, env = build(MaskedMatchEnv()), Monitor(MaskedMatchEnv())  # they raise where a masked action is taken
    with pytest.raises(ValueError, match="is ruled out"):
        evaluate_policy(model, env, n_eval_episodes=9, deterministic=False)
    evaluate_with_masks(model, env, n_eval_episodes=9, deterministic=False)  # type: ignore[arg-type]
    callback = MaskableEvalCallback(env, eval_freq=8, deterministic=False, verbose=0)
    model.learn(24, callback)
    assert np.isfinite(callback.last_mean_reward)


def test_a_reward_threshold_is_checked() -> None:
    env = Monitor(make_indifferent())
    evaluate_policy(build(env), env, n_eval_episodes=1, reward_threshold=6.0)
    with pytest.raises(AssertionError, match="below threshold"):
        evaluate_policy(build(env), env, n_eval_episodes=1, reward_threshold=8.0)


def test_a_callback_sees_every_step() -> None:
    n_calls = [0]

    def count(found: dict[str, Any], _: dict[str, Any]) -> None:
        assert "actions" in found
        n_calls[0] += 1

    env = Monitor(make_indifferent())
    evaluate_policy(build(env), env, n_eval_episodes=3, callback=count)
    assert n_calls[0] == 21


def test_an_environment_without_a_monitor_is_warned_about() -> None:
    env: gym.Env[Any, Any] = make_indifferent()
    with pytest.warns(UserWarning, match="Monitor"):
        evaluate_policy(build(), env, n_eval_episodes=1)


def test_normalised_environments_report_their_own_rewards_where_rewards_are_left() -> None:
    env: VecEnv = VecNormalize(make_vec_env(make_indifferent, 1), norm_reward=False)
    model = build(env)
    model.learn(32)
    assert evaluate_policy(model, env, n_eval_episodes=2) == (7.0, 0.0)
