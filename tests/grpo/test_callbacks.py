"""Callbacks, what is logged for them, and stopping from one or from another thread."""

import math
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo import GRPO
from tests.grpo.small_models import Record, Stateless, build
from tests.models import with_either_path
from tests.support import PATIENCE_SECONDS
from tests.weights import copy_weights, is_same


def test_the_keys_of_ppo_are_logged() -> None:
    model = build("Pendulum-v1")
    record = Record()
    model.learn(32, callback=record)
    assert {"rollout/reward_mean", "rollout/zero_std_group_fraction", "train/explained_variance"} <= set(
        record.logged[0]
    )
    assert {
        "train/learning_rate",
        "train/loss",
        "train/policy_gradient_loss",
        "train/value_loss",
        "train/approx_kl",
        "train/clip_fraction",
        "train/entropy_loss",
        "train/std",
        "train/n_updates",
        "train/clip_range",
    } <= set(model.logger.name_to_value)


@pytest.mark.parametrize("is_constant", [True, False])
def test_where_returns_differ_by_rounding_alone_nothing_of_them_is_explained(is_constant: bool) -> None:
    def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return torch.full((len(state), 1), 0.1) if is_constant else action

    # With gamma=0 nothing but the reward is left of a return, and the rounding of the values that cancel in it.
    model, record = build("Pendulum-v1", gamma=0.0, reward_function=reward), Record()
    model.learn(1, callback=record)
    assert math.isnan(record.logged[0]["train/explained_variance"]) == is_constant
    assert len(set(model.rollout_buffer.value_targets.flat)) > 1


def test_without_a_log_folder_none_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(tensorboard_log=None).learn(32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["branch", "action", "episode"])
def test_a_callback_that_returns_false_ends_it_on_that_step(mode: str) -> None:
    model = build(n_steps=64, group_mode=mode)
    untouched = copy_weights(model)
    model.learn(256, callback=Record(on_step=lambda model: model.num_timesteps < 5))
    assert model.num_timesteps == 5
    assert is_same(copy_weights(model), untouched)


def test_a_plain_function_is_a_callback_too() -> None:
    seen: list[int] = []

    def callback(local_variables: dict[str, Any], global_variables: dict[str, Any]) -> bool:
        assert local_variables["self"] is model
        assert local_variables["env"] is model.get_env()
        assert local_variables["rewards"].tolist() == [1.0, 1.0]
        assert local_variables["dones"].tolist() == [False, False]
        seen.append(len(local_variables["infos"]))
        return len(seen) < 7

    model = build(make_vec_env("CartPole-v1", n_envs=2, seed=0, vec_env_cls=DummyVecEnv))
    model.learn(256, callback=callback)
    assert seen == [2] * 7


def test_checkpoint_callback_writes_models_that_load(tmp_path: Path) -> None:
    build().learn(64, callback=CheckpointCallback(save_freq=20, save_path=str(tmp_path), name_prefix="m"))
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert saved[:2] == ["m_20_steps.zip", "m_40_steps.zip"]
    assert GRPO.load(tmp_path / "m_40_steps").num_timesteps == 40


def test_stop_training_on_max_episodes_counts_episodes() -> None:
    callback = StopTrainingOnMaxEpisodes(max_episodes=3)
    model = build(horizon=16, n_steps=64)
    model.learn(2000, callback=CallbackList([callback]))
    assert callback.n_episodes == 3
    assert model.num_timesteps < 500


@with_either_path
@pytest.mark.parametrize("mode", ["branch", "action", "episode"])
def test_stop_from_a_callback_ends_the_rollout_at_that_step(mode: str, algorithm: type[GRPO]) -> None:
    model = build(algorithm=algorithm, n_steps=128, group_mode=mode)
    untouched = copy_weights(model)

    def stop(model: GRPO) -> bool:
        if model.num_timesteps == 10:
            model.stop()
        return True

    model.learn(256, callback=Record(on_step=stop))
    assert model.num_timesteps == 10
    assert is_same(copy_weights(model), untouched)


@with_either_path
def test_stop_between_rollout_and_update_leaves_the_policy_as_it_was(algorithm: type[GRPO]) -> None:
    model = build("Pendulum-v1", algorithm)
    untouched = copy_weights(model)
    model.learn(256, callback=Record(on_end=lambda model: model.stop()))
    assert model.num_timesteps <= 33
    assert is_same(copy_weights(model), untouched)


def test_stop_from_another_thread_ends_the_rollout_phase() -> None:
    has_stepped, is_stopped = threading.Event(), threading.Event()

    class Waiting(Stateless):
        """Takes a hundred steps, and the next one when the training was told to stop."""

        n_steps = -math.inf  # for it is tried out first

        def step(self, action: Any) -> Any:
            self.n_steps += 1
            if self.n_steps > 100:
                has_stepped.set()
                assert is_stopped.wait(PATIENCE_SECONDS)
            return super().step(action)

    env = Waiting(spaces.Discrete(2))
    model = build(env, n_steps=200_000, horizon=50_000)
    env.n_steps = 0

    def stop() -> None:
        assert has_stepped.wait(PATIENCE_SECONDS)
        model.stop()
        is_stopped.set()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    model.learn(200_000)
    thread.join()
    assert 100 <= model.num_timesteps <= 101, "at most one step more"
    assert model._n_updates == 0


@with_either_path
def test_stop_from_another_thread_ends_the_update_phase(algorithm: type[GRPO]) -> None:
    model = build("Pendulum-v1", algorithm, n_epochs=20_000)
    has_updated, is_stopped = threading.Event(), threading.Event()

    def wait_after_some() -> None:
        if model._n_updates > 10:
            has_updated.set()
            assert is_stopped.wait(PATIENCE_SECONDS)

    def stop() -> None:
        assert has_updated.wait(PATIENCE_SECONDS)
        model.stop()
        is_stopped.set()

    model.after_minibatch = wait_after_some
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    model.learn(64)
    thread.join()
    assert 11 <= model._n_updates <= 12, "at most one pass more"
    assert 32 <= model.num_timesteps <= 33, "at most one vectorised step more"


def test_a_stopped_model_can_learn_on() -> None:
    model = build(n_steps=64)
    model.learn(256, callback=Record(on_end=lambda model: model.stop()))
    stopped_at = model.num_timesteps
    untouched = copy_weights(model)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps >= stopped_at + 64
    assert not is_same(copy_weights(model), untouched)


def test_stop_is_heard_between_the_resets_of_new_anchors() -> None:
    n_resets = 0
    model: GRPO

    class Slow(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, **kwargs: Any) -> Any:
            nonlocal n_resets
            n_resets += 1
            if n_resets == 140:  # 128 first anchors, then the 12th of the next ones
                model.stop()
            return super().reset(**kwargs)

    model = GRPO("MlpPolicy", Slow(gym.make("CartPole-v1")), n_steps=256, horizon=1, restart_probability=1.0, seed=0)
    model.learn(10_000)
    assert n_resets == 140


class Writer(BaseCallback):
    """Writes to what a callback finds."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _on_step(self) -> bool:
        if self.name == "rewards":
            self.locals["rewards"][:] = 7.0
        return True

    def _on_rollout_end(self) -> None:
        if self.name != "rewards":
            getattr(self.locals["rollout_buffer"], self.name)[:] = 0.0


@pytest.mark.parametrize("name", ["rewards", "advantages", "returns"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_what_a_callback_cannot_change_it_cannot_write_to(name: str, env_id: str) -> None:
    model = GRPO("MlpPolicy", env_id, n_steps=64, horizon=16, n_epochs=1)
    with pytest.raises(ValueError, match="read-only"):
        model.learn(64, Writer(name))


def test_stop_is_heard_while_learn_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    monkeypatch.setattr(model, "_prepare_groups", model.stop)  # where environments are tried out, for seconds at most
    model.learn(10_000)
    assert model.num_timesteps <= 1
