"""``VecNormalize`` is trained through, kept in step with the evaluation's, and saved."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from grpo import GRPO
from grpo_core.saving import model_file
from tests.sb3.environments import MatchEnv
from tests.sb3.small_models import MODES, build
from tests.suites import DEVICE
from tests.weights import copy_weights, is_same

WIDE = spaces.Box(np.array([0.0, -500.0], np.float32), np.array([1000.0, -400.0], np.float32))


def make_env() -> MatchEnv:
    return MatchEnv(WIDE)


def make_normalized(n_envs: int = 1, **arguments: Any) -> VecNormalize:
    return VecNormalize(make_vec_env(make_env, n_envs), **arguments)


def get_mean(env: VecNormalize) -> Any:
    assert isinstance(env.obs_rms, RunningMeanStd)
    return env.obs_rms.mean


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_statistics_are_those_of_the_steps_that_were_learnt_from(mode: str, n_envs: int) -> None:
    env = make_normalized(n_envs)
    model = build(env, mode=mode)
    before = float(env.ret_rms.count)
    model.learn(1)  # one rollout
    assert float(env.ret_rms.count) == pytest.approx(before + model.num_timesteps)
    rollout = model.rollout_buffer
    seen = rollout.observations[rollout.step_mask]
    # The first reset, which SB3 does, and the prior of epsilon samples of mean 0 are in it, too.
    assert np.allclose(get_mean(env), seen.mean(axis=0), rtol=0.35)
    assert not np.allclose(get_mean(env), 0.0)


@pytest.mark.parametrize("mode", MODES)
def test_training_moves_the_policy_and_predictions_take_normalised_observations(mode: str) -> None:
    env = make_normalized()
    model = build(env, mode=mode)
    before = copy_weights(model)
    model.learn(48)
    assert not is_same(before, copy_weights(model))
    shown, _ = make_env().reset(seed=1)
    expected = model.predict(env.normalize_obs(shown[None]), deterministic=True)[0]
    np.testing.assert_array_equal(model.make_actor().best_actions(shown[None]), expected)


@pytest.mark.parametrize(("norm_obs", "norm_reward"), [(True, True), (True, False), (False, True), (False, False)])
def test_what_is_not_to_be_normalised_is_left_as_it_is(norm_obs: bool, norm_reward: bool) -> None:
    env = make_normalized(norm_obs=norm_obs, norm_reward=norm_reward)
    model = build(env)
    model.learn(16)
    model.learn(1, reset_num_timesteps=False)  # one rollout
    variance = float(env.ret_rms.var)  # its own rewards included
    rollout = model.rollout_buffer
    rewards = rollout.rewards[rollout.step_mask]
    paid = {1.0, 0.0, -1.0}  # one minus the distance between choices 0, 1 and 2
    scale = np.sqrt(variance + env.epsilon) if norm_reward else 1.0
    assert {round(float(reward * scale), 4) for reward in rewards} <= paid
    if not norm_obs:
        assert not hasattr(env, "obs_rms") or np.allclose(np.asarray(get_mean(env)), 0.0)


def test_frozen_statistics_stay_as_they_are() -> None:
    env = make_normalized()
    build(env).learn(16)
    env.training = False
    mean, count = np.array(get_mean(env)), float(env.ret_rms.count)
    build(env).learn(32)
    np.testing.assert_array_equal(get_mean(env), mean)
    assert float(env.ret_rms.count) == count


def test_frozen_statistics_are_frozen_in_the_file_too() -> None:
    env = make_normalized()
    build(env).learn(16)
    env.training = False
    loaded = GRPO.load(io.BytesIO(build(env).to_bytes()), env=make_vec_env(make_env, 1), device=DEVICE)
    loaded.learn(32)
    restored = loaded.get_vec_normalize_env()
    assert restored is not None
    np.testing.assert_array_equal(get_mean(restored), get_mean(env))


def test_eval_callback_keeps_the_evaluations_statistics_in_step(tmp_path: Path) -> None:
    env, evaluated = make_normalized(), make_normalized(training=False, norm_reward=False)
    model = build(env)
    callback = EvalCallback(evaluated, eval_freq=8, n_eval_episodes=1, best_model_save_path=str(tmp_path), verbose=0)
    model.learn(24, callback)
    assert not np.allclose(get_mean(evaluated), 0.0)
    sync_envs_normalization(env, evaluated)
    np.testing.assert_array_equal(get_mean(evaluated), get_mean(env))
    best = GRPO.load(tmp_path / "best_model", env=make_vec_env(make_env, 1), device=DEVICE)
    assert best.get_vec_normalize_env() is not None


def test_an_evaluation_without_vec_normalize_is_refused_by_sb3() -> None:
    callback = EvalCallback(make_vec_env(make_env, 1), eval_freq=8, verbose=0)
    with (
        pytest.warns(UserWarning, match="not of the same type"),
        pytest.raises(AssertionError, match="expected the eval env to be a VecEnvWrapper"),
    ):
        build(make_normalized()).learn(16, callback)


def test_the_file_holds_statistics_and_settings() -> None:
    env = make_normalized(2, clip_obs=3.0, clip_reward=4.0, gamma=0.5, epsilon=1e-3)
    model = build(env)
    model.learn(64)
    content = model.to_bytes()
    loaded = GRPO.load(io.BytesIO(content), env=make_vec_env(make_env, 2), device=DEVICE)
    restored = loaded.get_vec_normalize_env()
    assert restored is not None
    np.testing.assert_array_equal(get_mean(restored), get_mean(env))
    assert (restored.clip_obs, restored.clip_reward, restored.gamma, restored.epsilon) == (3.0, 4.0, 0.5, 1e-3)
    shown, _ = make_env().reset(seed=1)
    without_env = GRPO.load(io.BytesIO(content), device=DEVICE)
    for one in (loaded, without_env):
        np.testing.assert_array_equal(
            one.make_actor().best_actions(shown[None]), model.make_actor().best_actions(shown[None])
        )


def test_predicting_without_the_environment_that_normalises_is_warned_of_once() -> None:
    model = build(make_normalized())
    shown, _ = make_env().reset(seed=1)
    model.predict(shown)
    loaded = GRPO.load(io.BytesIO(model.to_bytes()), device=DEVICE)
    with pytest.warns(UserWarning, match=r"takes normalised observations.*env=env.*model\.make_actor\(\)") as warned:
        loaded.predict(shown)
    loaded.predict(shown)
    assert [warning.filename for warning in warned] == [__file__]
    loaded = GRPO.load(io.BytesIO(model.to_bytes()), device=DEVICE)
    loaded.set_env(make_vec_env(make_env, 1))
    loaded.predict(shown)


@pytest.mark.parametrize("wrapped", [False, True])
def test_predicting_without_statistics_of_observations_is_not_warned_of(wrapped: bool) -> None:
    env = make_normalized(norm_obs=False) if wrapped else make_vec_env(make_env, 1)
    loaded = GRPO.load(io.BytesIO(build(env).to_bytes()), device=DEVICE)
    loaded.predict(make_env().reset(seed=1)[0])


def test_sb3_evaluates_a_loaded_model_in_its_environment_without_a_warning() -> None:
    loaded = GRPO.load(io.BytesIO(build(make_normalized()).to_bytes()), env=make_vec_env(make_env, 1), device=DEVICE)
    evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=1)  # type: ignore[arg-type]


def test_an_environment_normalised_otherwise_is_refused_on_load() -> None:
    content = build(make_normalized()).to_bytes()
    with pytest.raises(ValueError, match="norm_obs=True"):
        GRPO.load(io.BytesIO(content), env=make_normalized(norm_obs=False), device=DEVICE)


def test_set_env_takes_another_normalisation_over() -> None:
    first, second = make_normalized(), make_normalized()
    model = build(first)
    model.learn(16)
    count = float(first.ret_rms.count)
    model.set_env(second)
    model.learn(16, reset_num_timesteps=False)
    assert float(first.ret_rms.count) == count
    assert float(second.ret_rms.count) > 10
    assert model.get_vec_normalize_env() is second


@pytest.mark.parametrize("is_loaded", [False, True])
def test_set_env_keeps_the_normalisation_of_an_environment_that_has_none(is_loaded: bool) -> None:
    model = build(make_normalized(gamma=0.5, clip_obs=5.0))
    model.learn(16)
    if is_loaded:
        model = GRPO.load(io.BytesIO(model.to_bytes()), env=make_vec_env(make_env), device=DEVICE)
    first = model.get_vec_normalize_env()
    assert first is not None
    observation = np.array([[500.0, -450.0]], np.float32)
    with pytest.warns(UserWarning, match="has no VecNormalize, but the model was trained with one; .* same settings"):
        model.set_env(make_vec_env(make_env))
    second = model.get_vec_normalize_env()
    assert second is not None
    assert second is not first
    assert (second.gamma, second.clip_obs, second.ret_rms.var) == (0.5, 5.0, first.ret_rms.var)
    np.testing.assert_array_equal(second.normalize_obs(observation), first.normalize_obs(observation))
    count = float(first.ret_rms.count)
    model.learn(16, reset_num_timesteps=False)
    assert (float(first.ret_rms.count), float(second.ret_rms.count) > count) == (count, True)
    assert model_file.from_bytes(model.to_bytes()).meta["normalization"]["clip_obs"] == 5.0


def test_set_env_goes_on_without_normalisation_where_it_is_told_to() -> None:
    model = build(make_normalized())
    own = make_normalized(norm_obs=False, norm_reward=False)
    model.set_env(own)
    assert model.get_vec_normalize_env() is own
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.set_env(make_vec_env(make_env))


def test_two_of_them_are_refused() -> None:
    with pytest.raises(ValueError, match="two VecNormalize"):
        build(VecNormalize(make_normalized()))


def test_one_that_clips_nothing_is_saved() -> None:
    env = VecNormalize(make_vec_env(MatchEnv), clip_obs=np.inf, clip_reward=np.inf)
    model = build(env)
    model.learn(32)
    file = io.BytesIO()
    model.save(file)
    loaded = GRPO.load(file, env=make_vec_env(MatchEnv))
    normalize = loaded.get_vec_normalize_env()
    assert normalize is not None
    assert (normalize.clip_obs, normalize.clip_reward) == (np.inf, np.inf)
    observation = env.reset()
    np.testing.assert_array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )
