"""The arguments of GRPO: PPO's order, defaults that work together, and what is refused with a reason."""

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.dqn.policies import DQNPolicy

from grpo import GRPO
from grpo_core.options.rewards import optimized_cartpole
from grpo_core.restoring.errors import NotBranchableError
from tests.grpo.small_models import NoRestore, Stateless, build


def test_arguments_stand_in_the_order_of_ppos() -> None:
    ppo, ours = (list(inspect.signature(algorithm.__init__).parameters) for algorithm in (PPO, GRPO))
    common = [name for name in ppo if name in ours]
    assert [name for name in ours if name in ppo] == common
    assert len(common) > 18
    assert ours[: len(common)] == common, "what PPO does not have comes after"


def test_only_policy_and_env_have_no_default_and_what_is_new_is_a_keyword() -> None:
    parameters = inspect.signature(GRPO).parameters
    assert [name for name, one in parameters.items() if one.default is one.empty] == ["policy", "env"]
    new = set(parameters) - set(inspect.signature(PPO).parameters)
    assert {"reward_function", "group_size", "horizon", "baseline", "advantage_scaling", "bootstrap_value"} <= new
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in new)


def test_every_default_works_together() -> None:
    model = GRPO("MlpPolicy", "CartPole-v1")
    assert model.horizon is None, "it reads back as it was given"
    assert model.rollout_buffer.shape == (32, model.n_steps // (model.group_size * 32), model.group_size)
    assert model.policy.mlp_extractor.latent_dim_pi == 64


def test_hyperparameters_read_back_as_they_were_given() -> None:
    schedule = LinearSchedule(1e-3, 1e-4, 1.0)
    given: dict[str, Any] = {
        "learning_rate": schedule,
        "n_steps": 48,
        "batch_size": 7,
        "n_epochs": 3,
        "gamma": 0.9,
        "gae_lambda": 0.5,
        "clip_range": 0.3,
        "ent_coef": 0.01,
        "vf_coef": 0.25,
        "max_grad_norm": 1.5,
        "target_kl": 0.02,
        "verbose": 0,
        "seed": 5,
        "group_size": 3,
        "horizon": 8,
        "baseline": "group",
        "advantage_scaling": "none",
        "bootstrap_value": False,
        "vf_lr_factor": 3.0,
        "reward_function": optimized_cartpole,
        "policy_kwargs": {"net_arch": [4]},
    }
    model = build(**given)
    model.learn(48)
    assert {name: getattr(model, name) for name in given} == given


@pytest.mark.parametrize("name", ["CnnPolicy", "MultiInputPolicy"])
def test_policies_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        GRPO(name, "CartPole-v1")


@pytest.mark.parametrize("mode", ["branch", "action"])
def test_an_environment_that_cannot_be_restored_is_refused_at_once(mode: str) -> None:
    with pytest.raises(NotBranchableError, match=r"NoRestore cannot be restored.*capture_state\(\)"):
        build(NoRestore(), group_mode=mode)


def test_an_environment_that_cannot_be_restored_plays_whole_episodes_and_says_why() -> None:
    short = gym.wrappers.TimeLimit(NoRestore(), 5)
    with pytest.warns(UserWarning, match=r"NoRestore cannot be restored.*Groups are whole episodes.*silences") as said:
        model = build(short, horizon=None)
    assert said[0].filename == inspect.getfile(build), "it points at the line that makes the model"
    model.learn(40)
    assert model.group_mode == "auto", "it reads back as it was given"
    assert (model.rollout_buffer.step_mask.sum(axis=0) == 5).all()
    build(short, horizon=None, group_mode="episode").learn(40)  # any warning is an error here


def test_box2d_plays_whole_episodes() -> None:
    pytest.importorskip("Box2D")
    with pytest.warns(UserWarning, match=r"Box2D's contacts.*group_mode='episode'"):
        build("LunarLander-v3")
    model = build("LunarLander-v3", group_mode="episode", horizon=None)
    model.learn(64)
    assert model.num_timesteps >= 64
    ended = model.rollout_buffer.terminated | model.rollout_buffer.truncated
    assert ended.any(axis=0).all()


def test_an_action_space_that_is_not_supported_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="use Discrete or one-dimensional MultiDiscrete starting at 0"):
        build(Stateless(spaces.Discrete(2, start=1)))


def test_a_policy_class_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="policy=DQNPolicy is not supported"):
        GRPO(DQNPolicy, "CartPole-v1")  # type: ignore[arg-type]


def test_the_clip_range_can_be_changed_between_two_trainings() -> None:
    model = build()
    model.clip_range = 0.01
    model.learn(32)
    assert model.logger.name_to_value["train/clip_range"] == 0.01


def test_numpy_floats_among_the_arguments_leave_the_rollout_in_float32() -> None:
    model = build(gamma=np.float64(0.9), gae_lambda=np.float64(0.8), horizon=16, n_steps=64)
    model.learn(1)
    batch = model._batch
    assert batch.advantages.dtype == batch.value_targets.dtype == batch.weights.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"group_size": 4}, (16, 1, 4)),
        ({"horizon": 32}, (32, 1, 2)),
        ({"n_steps": 128}, (16, 4, 2)),
        ({"anchor_selection": "archive"}, (16, 2, 2)),
        ({"group_mode": "action"}, (16, 2, 2)),
        ({"n_rollout_shards": 2}, (16, 2, 2)),
        ({"n_steps": 96, "group_size": 3, "horizon": 8}, (8, 4, 3)),
    ],
)
def test_what_is_set_on_a_model_holds_from_the_next_learn_on(changes: dict[str, Any], shape: tuple[int, ...]) -> None:
    settings: dict[str, Any] = {"n_steps": 64, "group_size": 2, "horizon": 16, "n_epochs": 1, "seed": 0}
    model = GRPO("MlpPolicy", "CartPole-v1", **settings)
    for name, value in changes.items():
        setattr(model, name, value)
    model.learn(1)
    assert model.rollout_buffer.shape == shape
    again = GRPO("MlpPolicy", "CartPole-v1", **settings | changes).learn(1)
    for parameter, twin in zip(model.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(parameter, twin)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss_type", "q"), ("gamma", 1.5), ("n_epochs", 0), ("baseline", "foo"), ("n_steps", 65), ("group_size", 1)],
)
def test_what_is_set_on_a_model_is_checked_by_learn(name: str, value: Any) -> None:
    model = GRPO("MlpPolicy", "CartPole-v1", n_steps=64, horizon=16, n_epochs=1)
    setattr(model, name, value)
    with pytest.raises(ValueError, match=rf"{name}='?{value}'? is not allowed"):
        model.learn(1)


def test_what_the_group_mode_rules_out_cannot_be_assigned_either() -> None:
    model = build(group_mode="episode", horizon=None)
    model.loss_normalization = "horizon"
    with pytest.raises(ValueError, match="whole episodes have no constant horizon to divide by"):
        model.learn(32)
