"""GRPO as a whole: it learns, and only from what the reward says; it stops, saves, resumes and repeats itself."""

import functools
import inspect
import io
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core import model_file
from grpo_core.branching import NotBranchableError
from grpo_core.model_file import ForeignModelError, ModelFileError
from grpo_core.rewards import RewardFunction, optimized_cartpole
from tests.support import wait_until

ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {"net_arch": [8]}


def build(env: Any = "CartPole-v1", **changes: Any) -> GRPO:
    arguments = {"n_steps": 32, "group_size": 2, "horizon": 8, "n_epochs": 2, "seed": 0, "policy_kwargs": SMALL}
    return GRPO("MlpPolicy", env, **{**arguments, **changes})


def copy_weights(model: GRPO) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def is_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def score(model: GRPO, n_episodes: int = 5) -> float:
    """Mean return of the deterministic policy by CartPole's own reward, from fixed starts; at most 500."""
    env = Monitor(gym.make("CartPole-v1"))
    env.reset(seed=100)
    mean_reward, _ = evaluate_policy(model, env, n_episodes)
    assert isinstance(mean_reward, float | np.floating)
    return float(mean_reward)


class Record(BaseCallback):
    """Keeps what each rollout logged and the advantages it learnt from; may act on steps and around rollouts."""

    def __init__(
        self,
        on_step: Callable[[GRPO], bool] = lambda model: True,
        on_start: Callable[[GRPO], None] = lambda model: None,
        on_end: Callable[[GRPO], None] = lambda model: None,
    ) -> None:
        super().__init__()
        self.step, self.start, self.end = on_step, on_start, on_end
        self.advantages: list[torch.Tensor] = []
        self.logged: list[dict[str, float]] = []
        self.n_rollouts_started = 0

    @property
    def grpo(self) -> GRPO:
        assert isinstance(self.model, GRPO)
        return self.model

    def _on_rollout_start(self) -> None:
        self.n_rollouts_started += 1
        self.start(self.grpo)

    def _on_step(self) -> bool:
        return self.step(self.grpo)

    def _on_rollout_end(self) -> None:
        self.advantages.append(self.grpo.rollout_buffer.advantages.clone())
        self.logged.append(dict(self.grpo.logger.name_to_value))
        self.end(self.grpo)


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
    assert model.n_steps % (model.group_size * model.horizon) == 0
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


class NoRestore(gym.Env[Any, Any]):
    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), float(np.sum(action)), False, False, {}


class Stateless(NoRestore):
    """Every step is like the first; rewards are the sum of the action."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def capture_state(self) -> None:
        return None

    def restore_state(self, state: None) -> None:
        return None


def test_an_environment_that_cannot_be_restored_is_refused_at_once() -> None:
    with pytest.raises(NotBranchableError, match=r"NoRestore cannot be restored.*capture_state\(\)"):
        build(NoRestore())


def test_an_action_space_that_is_not_supported_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="use Discrete starting at 0, or a Box"):
        build(Stateless(spaces.MultiDiscrete([2, 2])))


def train_short(reward_function: RewardFunction | None, n_rollouts: int = 4, **changes: Any) -> tuple[GRPO, Record]:
    """A few rollouts on CartPole in which nothing but the advantages can move the policy."""
    model = build(
        **{
            "n_steps": 64,
            "horizon": 16,
            "baseline": "group",
            "bootstrap_value": False,
            "vf_coef": 0.0,
            "reward_function": reward_function,
            **changes,
        }
    )
    record = Record()
    while record.n_rollouts_started < n_rollouts:
        model.learn(1, callback=record, reset_num_timesteps=False)
    return model, record


def constant(value: float) -> RewardFunction:
    return lambda state, action, next_state: torch.full((len(state), 1), value)


def test_it_learns_to_balance_the_pole() -> None:
    # 4,000 simulator steps. Seeds 0, 1 and 2 go from 9, 29 and 9 to 468, 473 and 500.
    model = GRPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=32,
        group_size=2,
        horizon=16,
        baseline="group",
        bootstrap_value=False,
        reward_function=optimized_cartpole,
        seed=0,
    )
    untrained = score(model)
    model.learn(4000)
    assert untrained < 60
    assert score(model) > 200


def test_with_a_reward_of_zero_nothing_is_learnt_at_all() -> None:
    untouched = copy_weights(build(n_steps=64, horizon=16, baseline="group", bootstrap_value=False))
    model, record = train_short(constant(0.0))
    assert is_same(copy_weights(model), untouched)
    assert len(record.advantages) == 4
    assert all((advantages == 0).all() for advantages in record.advantages)
    assert all(logged["rollout/zero_std_group_fraction"] == 1.0 for logged in record.logged)


def test_with_a_constant_reward_it_learns_to_survive() -> None:
    untouched = copy_weights(build(n_steps=64, horizon=16, baseline="group", bootstrap_value=False))
    model, record = train_short(constant(1.0))
    assert not is_same(copy_weights(model), untouched)
    assert any((advantages != 0).any() for advantages in record.advantages)
    assert any(logged["rollout/zero_std_group_fraction"] < 1.0 for logged in record.logged)


def test_one_step_branches_tell_nothing_apart_where_the_next_position_ignores_the_action() -> None:
    # CartPole moves its positions with the old velocities, so one step cannot show what an action did.
    untouched = copy_weights(build(n_steps=64, horizon=1, group_size=4, baseline="group", bootstrap_value=False))
    model, record = train_short(optimized_cartpole, horizon=1, group_size=4)
    assert is_same(copy_weights(model), untouched)
    assert all((advantages == 0).all() for advantages in record.advantages)
    assert [logged["rollout/zero_std_group_fraction"] for logged in record.logged] == [1.0] * 4


def test_two_step_branches_do_tell_them_apart() -> None:
    _, record = train_short(optimized_cartpole, horizon=2, group_size=4)
    assert all((advantages != 0).any() for advantages in record.advantages)


def test_an_action_that_pays_is_taken_more_often() -> None:
    for paid in (0, 1):
        model, _ = train_short(
            lambda state, action, next_state, paid=paid: (action == paid).float(),  # type: ignore[misc]
            n_rollouts=12,
            learning_rate=0.03,
        )
        probs = model.make_actor().action_probs(np.zeros((1, 4), np.float32))
        assert probs is not None
        assert probs[0, paid] > 0.6  # 0.72 to 0.97 with seeds 0 to 7; half at first


@pytest.mark.parametrize("baseline", ["group", "residual", "value"])
@pytest.mark.parametrize("advantage_scaling", ["group", "batch", "none"])
def test_every_baseline_and_scaling_moves_policy_and_value_network(baseline: str, advantage_scaling: str) -> None:
    model = build(baseline=baseline, advantage_scaling=advantage_scaling)
    untouched = copy_weights(model)
    model.learn(64)
    assert all(not torch.equal(a, b) for a, b in zip(untouched, copy_weights(model), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_the_value_network_is_fitted_to_what_is_earned() -> None:
    model = build(Stateless(spaces.Discrete(2)), reward_function=constant(1.0), gamma=0.5, n_epochs=10, n_steps=64)
    model.learning_rate = 0.02
    model._setup_lr_schedule()
    model.learn(1024)  # a step costs next to nothing here
    value = model.make_actor().values(np.zeros((1, 2), np.float32))[0]
    assert value == pytest.approx(2.0, abs=0.2)  # 1 / (1 - gamma)


def test_the_entropy_bonus_alone_makes_the_policy_more_even() -> None:
    model = build(reward_function=constant(0.0), baseline="group", bootstrap_value=False, vf_coef=0.0, ent_coef=1.0)
    with torch.no_grad():
        assert isinstance(model.policy.action_net, torch.nn.Linear)
        model.policy.action_net.bias.copy_(torch.tensor([1.0, -1.0]))
    before = model.make_actor().action_probs(np.zeros((1, 4), np.float32))
    model.learn(64)
    after = model.make_actor().action_probs(np.zeros((1, 4), np.float32))
    assert before is not None
    assert after is not None
    assert after[0, 0] < before[0, 0]


def test_no_step_is_larger_than_the_gradient_norms_allow() -> None:
    model = build(max_grad_norm=0.0)
    untouched = copy_weights(model)
    model.learn(32)
    assert is_same(copy_weights(model), untouched)


def split_weights(model: GRPO) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The policy's own parameters, and the value network's."""
    named = list(model.policy.named_parameters())
    value = [tensor.detach().clone() for name, tensor in named if "value_net" in name]
    return [tensor.detach().clone() for name, tensor in named if "value_net" not in name], value


def test_the_value_networks_gradient_leaves_the_policys_step_alone() -> None:
    steps = [split_weights(build())]
    for vf_coef in (0.0, 0.5, 1e6):
        model = build(vf_coef=vf_coef, baseline="group", bootstrap_value=False, reward_function=optimized_cartpole)
        model.learn(96)
        steps.append(split_weights(model))
    untouched = steps.pop(0)
    assert not is_same(steps[0][0], untouched[0])
    assert is_same(steps[0][0], steps[1][0])
    assert is_same(steps[0][0], steps[2][0])
    assert not is_same(steps[0][1], steps[1][1])


def test_the_value_network_takes_steps_of_its_own_size() -> None:
    model = build(learning_rate=0.002, vf_lr_factor=7.0)
    model.learn(64)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == pytest.approx([0.002, 0.014])
    frozen = build(vf_lr_factor=0.0)
    policy, value = split_weights(frozen)
    frozen.learn(64)
    assert not is_same(policy, split_weights(frozen)[0])
    assert is_same(value, split_weights(frozen)[1])


def test_target_kl_skips_the_updates_that_go_too_far() -> None:
    steps: dict[float | None, int] = {}
    for target_kl in (1e-9, None):
        model = build(target_kl=target_kl, learning_rate=0.05, n_epochs=5, batch_size=64)
        model.learn(1)
        steps[target_kl] = int(model.policy.optimizer.state_dict()["state"][0]["step"].item())
    # At the first minibatch old and new policy are one; from the second on they differ by more than 1e-9.
    assert steps == {1e-9: 1, None: 5}


def test_schedules_follow_the_remaining_progress() -> None:
    model = build(
        Stateless(spaces.Discrete(2)),  # its branches never end early: a rollout is a third of the way
        learning_rate=lambda progress: 0.1 * progress + 0.01,
        clip_range=LinearSchedule(0.4, 0.1, 1.0),
    )
    used: list[tuple[float, float]] = []

    def read(model: GRPO) -> None:
        used.append((model.policy.optimizer.param_groups[0]["lr"], model.logger.name_to_value["train/clip_range"]))

    model.learn(96, callback=Record(on_start=read))
    read(model)
    assert used[1:] == [
        pytest.approx((0.1 * 2 / 3 + 0.01, 0.3)),
        pytest.approx((0.1 / 3 + 0.01, 0.2)),
        pytest.approx((0.01, 0.1)),
    ]


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


@pytest.mark.parametrize(
    ("env_id", "n_envs"),
    [
        ("CartPole-v1", 3),
        ("Acrobot-v1", 1),
        ("MountainCar-v0", 1),
        ("MountainCarContinuous-v0", 1),
        ("Pendulum-v1", 2),
        ("FrozenLake-v1", 1),
        ("FrozenLake-v1", 3),
        ("CliffWalking-v1", 1),
        ("Taxi-v4", 1),
    ],
)
def test_every_supported_environment_trains_predicts_and_reloads(env_id: str, n_envs: int) -> None:
    env = make_vec_env(env_id, n_envs=n_envs, seed=0, vec_env_cls=DummyVecEnv)
    model = build(env)
    model.learn(1)
    assert 0 < model.num_timesteps <= n_envs * 32
    observations: Any = env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    assert all(env.action_space.contains(action) for action in actions)
    loaded = GRPO.load(io.BytesIO(model.to_bytes()), env=env)
    again, _ = loaded.predict(observations, deterministic=True)
    assert (actions == again).all()
    loaded.learn(1)


def test_actions_that_are_matrices_are_trained_too() -> None:
    model = build(Stateless(spaces.Box(-1.0, 1.0, (2, 2))), learning_rate=0.01)
    model.learn(64)
    action, _ = model.predict(np.zeros(2, np.float32), deterministic=True)
    assert action.shape == (2, 2)


def test_several_environments_share_the_groups_evenly() -> None:
    model = build(make_vec_env("Pendulum-v1", n_envs=3, seed=0, vec_env_cls=DummyVecEnv), n_steps=64)
    model.learn(1)
    assert model.num_timesteps == 3 * 64
    assert model.rollout_buffer.step_mask.shape == (8, 12, 2)


def test_vec_normalize_is_trained_through_and_its_statistics_move() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0, vec_env_cls=DummyVecEnv))
    model = build(env)
    model.learn(128)
    assert env.ret_rms.count > 100
    rewards = model.rollout_buffer.rewards
    assert 0.01 < np.abs(rewards).mean() < 10
    action, _ = model.predict(env.normalize_obs(np.zeros((1, 3), np.float32)))
    assert action.shape == (1, 1)


def test_episode_statistics_are_those_of_whole_episodes_not_of_branches() -> None:
    model = build(gym.wrappers.TimeLimit(gym.make("MountainCar-v0").unwrapped, 11), horizon=4)
    model.learn(256)
    assert model.ep_info_buffer is not None
    assert len(model.ep_info_buffer) > 3
    for episode in model.ep_info_buffer:
        assert episode["l"] == 11
        assert episode["r"] == -11


def test_episode_rewards_are_the_environments_own_whatever_it_learns_from() -> None:
    model = build(reward_function=constant(-7.0), horizon=16)
    model.learn(128)
    assert model.ep_info_buffer is not None
    assert len(model.ep_info_buffer) > 0
    assert all(episode["r"] == episode["l"] for episode in model.ep_info_buffer)
    assert (model.rollout_buffer.rewards[model.rollout_buffer.step_mask] == -7).all()


def test_set_env_moves_training_to_the_new_environment() -> None:
    model = build()
    model.learn(32)
    short = gym.wrappers.TimeLimit(gym.make("CartPole-v1").unwrapped, 3)
    model.set_env(short)
    model.learn(32, reset_num_timesteps=False)
    assert model.rollout_buffer.step_mask.sum(axis=0).max() <= 3
    assert model.get_env() is not None


def test_set_env_refuses_another_number_of_environments_and_other_spaces() -> None:
    model = build()
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=DummyVecEnv))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(gym.make("Pendulum-v1"))


def test_a_refused_environment_leaves_the_old_one_in_place() -> None:
    class CartPoleOfOnesOwn(gym.envs.classic_control.cartpole.CartPoleEnv):
        pass

    model = build()
    before = model.get_env()
    with pytest.raises(NotBranchableError):
        model.set_env(gym.wrappers.TimeLimit(CartPoleOfOnesOwn(), 500))
    assert model.get_env() is before


def test_without_a_log_folder_none_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(tensorboard_log=None).learn(32)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_printed_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    build().learn(32)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    build(verbose=1).learn(32)
    assert "rollout/" in capsys.readouterr().out


def test_a_callback_that_returns_false_ends_it_on_that_step() -> None:
    model = build(n_steps=64)
    untouched = copy_weights(model)
    model.learn(256, callback=Record(on_step=lambda model: model.num_timesteps < 5))
    assert model.num_timesteps == 5
    assert is_same(copy_weights(model), untouched)


def test_a_plain_function_is_a_callback_too() -> None:
    seen: list[int] = []

    def callback(local_variables: dict[str, Any], global_variables: dict[str, Any]) -> bool:
        seen.append(len(local_variables["infos"]))
        return len(seen) < 7

    model = build(make_vec_env("CartPole-v1", n_envs=2, seed=0, vec_env_cls=DummyVecEnv))
    model.learn(256, callback=callback)
    assert seen == [2] * 7


def test_eval_callback_evaluates_and_keeps_the_best_model(tmp_path: Path) -> None:
    callback = EvalCallback(
        Monitor(gym.make("CartPole-v1")),
        n_eval_episodes=1,
        eval_freq=20,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    build().learn(64, callback=callback)
    assert callback.n_calls >= 60
    assert callback.best_mean_reward > 0
    best = GRPO.load(tmp_path / "best_model")
    assert best.predict(np.zeros(4, np.float32), deterministic=True)[0] in (0, 1)
    assert len(np.load(tmp_path / "evaluations.npz")["timesteps"]) >= 3


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


def test_stop_from_a_callback_ends_the_rollout_at_that_step() -> None:
    model = build(n_steps=128)
    untouched = copy_weights(model)

    def stop(model: GRPO) -> bool:
        if model.num_timesteps == 10:
            model.stop()
        return True

    model.learn(256, callback=Record(on_step=stop))
    assert model.num_timesteps == 10
    assert is_same(copy_weights(model), untouched)


def test_stop_between_rollout_and_update_leaves_the_policy_as_it_was() -> None:
    model = build("Pendulum-v1")
    untouched = copy_weights(model)
    model.learn(256, callback=Record(on_end=lambda model: model.stop()))
    assert model.num_timesteps <= 33
    assert is_same(copy_weights(model), untouched)


def test_stop_from_another_thread_ends_the_rollout_phase() -> None:
    # One rollout that takes many seconds, so that stop comes while it is under way.
    model = build(Stateless(spaces.Discrete(2)), n_steps=200_000, horizon=50_000)

    def stop_soon() -> None:
        wait_until(lambda: model.num_timesteps > 100, 30)
        model.stop()

    thread = threading.Thread(target=stop_soon, daemon=True)
    thread.start()
    model.learn(200_000)
    thread.join(30)
    assert 100 < model.num_timesteps < 190_000
    assert model._n_updates == 0


def test_stop_from_another_thread_ends_the_update_phase() -> None:
    n_epochs = 20_000
    model = build("Pendulum-v1", n_epochs=n_epochs)

    def stop_soon() -> None:
        wait_until(lambda: model._n_updates > 10, 30)
        model.stop()

    thread = threading.Thread(target=stop_soon, daemon=True)
    thread.start()
    model.learn(64)
    thread.join(30)
    assert 10 < model._n_updates < n_epochs
    assert 32 <= model.num_timesteps <= 33, "at most one sweep more"


def test_a_stopped_model_can_learn_on() -> None:
    model = build(n_steps=64)
    model.learn(256, callback=Record(on_end=lambda model: model.stop()))
    stopped_at = model.num_timesteps
    untouched = copy_weights(model)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps >= stopped_at + 64
    assert not is_same(copy_weights(model), untouched)


def train_to_weights(seed: int | None) -> list[torch.Tensor]:
    env = make_vec_env("FrozenLake-v1", n_envs=2, vec_env_cls=DummyVecEnv)  # slippery: the environment draws too
    model = build(env, seed=seed, learning_rate=0.01)
    model.learn(192)
    return copy_weights(model)


def test_the_same_seed_gives_the_same_weights_bit_by_bit() -> None:
    first = train_to_weights(seed=3)
    assert is_same(first, train_to_weights(seed=3))
    assert not is_same(first, train_to_weights(seed=4))


def test_without_a_seed_every_model_is_another() -> None:
    assert not is_same(train_to_weights(None), train_to_weights(None))


def test_the_same_seed_gives_the_same_weights_while_another_model_trains() -> None:
    alone = train_to_weights(seed=3)
    is_over, n_trained = threading.Event(), [0]

    def disturb() -> None:
        while not is_over.is_set():
            train_to_weights(seed=n_trained[0])
            n_trained[0] += 1

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    try:
        wait_until(lambda: n_trained[0] > 0, 30)
        for _ in range(3):
            assert is_same(alone, train_to_weights(seed=3))
        wait_until(lambda: n_trained[0] > 2, 30)
    finally:
        is_over.set()
        thread.join(30)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Let threads take turns so often that they meet wherever they can."""
    interval_seconds = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_seconds)


@pytest.mark.usefixtures("hasty_threads")
def test_models_built_at_the_same_time_get_the_weights_of_their_own_seed() -> None:
    def build_weights(seed: int) -> list[torch.Tensor]:
        return copy_weights(build(seed=seed))

    alone = [build_weights(seed) for seed in range(4)]
    before = read_global_generators()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(build_weights, list(range(4)) * 10))
    assert all(is_same(alone[i % 4], weights) for i, weights in enumerate(together))
    assert read_global_generators() == before


def read_global_generators() -> tuple[Any, ...]:
    numpy_state: Any = np.random.get_state(legacy=False)
    return (
        random.getstate(),
        numpy_state["state"]["key"].tolist(),
        numpy_state["state"]["pos"],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("seed", [0, None])
def test_no_process_wide_generator_is_touched(seed: int | None) -> None:
    before = read_global_generators()
    model = build(seed=seed)
    model.learn(64)
    content = model.to_bytes()
    assert read_global_generators() == before
    loaded = GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"))
    loaded.learn(64)
    assert read_global_generators() == before


def test_process_wide_generators_do_not_matter() -> None:
    first = train_to_weights(seed=3)
    state, torch_state = np.random.get_state(), torch.get_rng_state()
    try:
        np.random.seed(99)
        torch.manual_seed(99)
        assert is_same(first, train_to_weights(seed=3))
    finally:
        np.random.set_state(state)
        torch.set_rng_state(torch_state)


def test_save_appends_zip_makes_folders_and_replaces(tmp_path: Path) -> None:
    model = build()
    for _ in range(2):
        model.save(tmp_path / "new" / "model")
    model.save(str(tmp_path / "other.zip"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.zip"]
    assert (tmp_path / "other.zip").exists()
    for path in (tmp_path / "new" / "model", str(tmp_path / "new" / "model.zip")):
        assert is_same(copy_weights(GRPO.load(path)), copy_weights(model))


def test_a_model_can_be_saved_to_an_open_file_and_loaded_from_one() -> None:
    model, file = build(), io.BytesIO()
    model.save(file)
    file.seek(0)
    assert is_same(copy_weights(GRPO.load(file)), copy_weights(model))


@pytest.mark.parametrize("option", ["exclude", "include"])
def test_exclude_and_include_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not supported"):
        build().save(tmp_path / "model", **{option: ["policy"]})
    assert list(tmp_path.iterdir()) == []


def my_reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return next_state[:, :1]


FRESH_PROCESS = """
import json, sys
import numpy as np
from grpo import GRPO
model = GRPO.load(sys.argv[1])
observations = np.array(json.loads(sys.argv[2]), dtype=np.float32)
actions, _ = model.predict(observations, deterministic=True)
probs = model.make_actor().action_probs(observations)
print(json.dumps({"actions": actions.tolist(), "probs": probs.tolist(), "env": model.get_env() is not None}))
"""


def test_a_fresh_process_loads_it_without_environment_or_reward_function(tmp_path: Path) -> None:
    model = build(reward_function=my_reward, learning_rate=0.01)
    model.learn(64)
    model.save(tmp_path / "model")
    observations = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    run = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "model"), json.dumps(observations.tolist())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    expected, _ = model.predict(observations, deterministic=True)
    probs = model.make_actor().action_probs(observations)
    assert probs is not None
    assert len(set(answer["actions"])) == 2, "observations that tell the actions apart"
    assert answer == {"actions": expected.tolist(), "probs": probs.tolist(), "env": False}


def test_loading_restores_counters_hyperparameters_optimizer_and_weights() -> None:
    model = build(learning_rate=LinearSchedule(0.01, 0.001, 1.0), ent_coef=0.01)
    model.learn(64)
    loaded = GRPO.load(io.BytesIO(model.to_bytes()))
    assert is_same(copy_weights(model), copy_weights(loaded))
    assert (loaded.num_timesteps, loaded._n_updates) == (model.num_timesteps, model._n_updates)
    assert loaded.rng.bit_generator.state == model.rng.bit_generator.state
    names = ("n_steps", "batch_size", "n_epochs", "ent_coef", "group_size", "horizon", "baseline", "seed")
    assert {name: getattr(loaded, name) for name in names} == {name: getattr(model, name) for name in names}
    assert loaded.lr_schedule(0.5) == model.lr_schedule(0.5)


def test_loading_restores_the_optimizers_state_exactly() -> None:
    model = build()
    model.learn(64)
    state: Any = model.get_parameters()["policy.optimizer"]["state"]
    loaded: Any = GRPO.load(io.BytesIO(model.to_bytes())).get_parameters()["policy.optimizer"]["state"]
    assert loaded.keys() == state.keys()
    assert len(state) == len(list(model.policy.parameters()))
    for index, tensors in state.items():
        assert loaded[index].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[index][name].shape == tensor.shape, name
            assert torch.equal(loaded[index][name], tensor), name


def test_training_goes_on_from_a_file_and_twice_the_same_way() -> None:
    model = build(learning_rate=0.01)
    model.learn(64)
    content = model.to_bytes()
    weights = []
    for _ in range(2):
        loaded = GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"))
        loaded.learn(64, reset_num_timesteps=False)
        assert loaded.num_timesteps >= model.num_timesteps + 64
        weights.append(copy_weights(loaded))
    assert is_same(*weights)
    assert not is_same(weights[0], copy_weights(model))


def test_a_restored_optimizer_steps_as_the_original_does() -> None:
    model = build()
    model.learn(64)
    loaded = GRPO.load(io.BytesIO(model.to_bytes()))
    for one in (model, loaded):
        for group in one.policy.optimizer.param_groups:
            group["lr"] = 0.01  # train() sets it anew before every update
        one.policy.optimizer.zero_grad()
        values, log_prob, _ = one.policy.evaluate_actions(torch.ones(3, 4), torch.tensor([0, 1, 1]))
        torch.autograd.backward(values.sum() + log_prob.sum())
        one.policy.optimizer.step()
    assert is_same(copy_weights(model), copy_weights(loaded))


def test_what_is_passed_to_load_replaces_what_was_saved() -> None:
    content = build().to_bytes()
    loaded = GRPO.load(io.BytesIO(content), learning_rate=0.5, custom_objects={"clip_range": 0.4})
    assert (loaded.learning_rate, loaded.clip_range) == (0.5, 0.4)
    assert loaded.lr_schedule(1.0) == 0.5


def test_a_seed_passed_to_load_decides_what_follows() -> None:
    content = build().to_bytes()
    draws = [GRPO.load(io.BytesIO(content), seed=seed).rng.random() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_an_unknown_argument_of_load_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\['policy_kwargs'\] cannot be changed on load"):
        GRPO.load(io.BytesIO(build().to_bytes()), policy_kwargs={})


def test_an_environment_with_other_spaces_is_refused_on_load() -> None:
    with pytest.raises(ValueError, match="spaces do not match"):
        GRPO.load(io.BytesIO(build().to_bytes()), env=gym.make("Pendulum-v1"))


def test_loading_into_another_number_of_environments_is_allowed() -> None:
    env = make_vec_env("CartPole-v1", n_envs=3, vec_env_cls=DummyVecEnv)
    loaded = GRPO.load(io.BytesIO(build().to_bytes()), env=env)
    loaded.learn(1)
    assert loaded.n_envs == 3
    assert loaded.rollout_buffer.step_mask.shape[1] == 3 * 2


class MyReward:
    def __call__(self, state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return my_reward(state, action, next_state)


@pytest.mark.parametrize(
    "reward_function", [my_reward, MyReward(), functools.partial(my_reward)], ids=["function", "object", "partial"]
)
def test_a_model_that_lost_its_reward_function_does_not_learn_from_another(reward_function: RewardFunction) -> None:
    content = build(reward_function=reward_function).to_bytes()
    loaded = GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"reward_function '\w+', which a model file does not hold; pass it to"):
        loaded.learn(32)
    loaded.reward_function = my_reward
    loaded.learn(32)
    GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"), reward_function=my_reward).learn(32)


def test_a_lost_reward_function_is_still_lost_after_the_next_save() -> None:
    content = GRPO.load(io.BytesIO(build(reward_function=my_reward).to_bytes())).to_bytes()
    loaded = GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="my_reward"):
        loaded.learn(32)


def test_a_shipped_reward_function_is_found_again_by_its_name() -> None:
    content = build(reward_function=optimized_cartpole).to_bytes()
    assert GRPO.load(io.BytesIO(content)).reward_function is optimized_cartpole


def test_parameters_are_handed_out_and_taken_back() -> None:
    model, other = build(learning_rate=0.01), build(seed=1)
    model.learn(64)
    parameters: Any = model.get_parameters()
    other.set_parameters(parameters)
    assert is_same(copy_weights(model), copy_weights(other))


def test_parameters_are_taken_from_a_model_file(tmp_path: Path) -> None:
    model, other = build(learning_rate=0.01), build(seed=1)
    model.learn(64)
    model.save(tmp_path / "model")
    other.set_parameters(str(tmp_path / "model"))
    assert is_same(copy_weights(model), copy_weights(other))
    other.learn(32)


def test_a_model_of_another_algorithm_is_not_loaded(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs=SMALL, device="cpu").save(tmp_path / "ppo")
    with pytest.raises(ForeignModelError, match="pickles"):
        GRPO.load(tmp_path / "ppo")


def test_a_damaged_file_is_not_loaded(tmp_path: Path) -> None:
    content = build().to_bytes()
    (tmp_path / "model.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError):
        GRPO.load(tmp_path / "model.zip")


@pytest.mark.parametrize("lost", ["hyperparameters", "rng_state", "stats_window_size", "reward_function"])
def test_a_file_whose_metadata_lacks_a_part_is_not_loaded(lost: str) -> None:
    content = model_file.from_bytes(build().to_bytes())
    meta = {name: value for name, value in content.meta.items() if name != lost}
    with pytest.raises(ModelFileError):
        GRPO.load(io.BytesIO(model_file.to_bytes(meta, content.weights, {})))


def test_a_model_without_an_environment_says_what_is_missing() -> None:
    loaded = GRPO.load(io.BytesIO(build().to_bytes()))
    with pytest.raises(ValueError, match=r"no environment to train in; call set_env\(env\)"):
        loaded.learn(32)
    loaded.set_env(gym.make("CartPole-v1"))
    loaded.learn(32)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.zip"):
        GRPO.load(tmp_path / "nowhere")


def test_provenance_is_kept_in_the_file() -> None:
    with pytest.raises(TypeError):
        build().to_bytes(env=object())  # what JSON cannot spell
    assert b'"env_id": "CartPole-v1"' in build().to_bytes(env_id="CartPole-v1")


def test_a_policy_class_of_another_kind_is_refused() -> None:
    class Louder(ActorCriticPolicy):
        pass

    with pytest.raises(ValueError, match="policy=Louder is not supported"):
        GRPO(Louder, "CartPole-v1")


def test_drawn_actions_are_those_of_the_models_own_seed() -> None:
    observations = np.zeros((64, 4), np.float32)
    draws = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        draws.append(build(seed=7).predict(observations)[0])
        assert torch.equal(before, torch.get_rng_state())
    assert (draws[0] == draws[1]).all()
    assert 0 < draws[0].sum() < 64


def test_schedules_never_see_less_than_no_progress() -> None:
    seen = []

    def schedule(progress_remaining: float) -> float:
        seen.append(progress_remaining)
        return 1e-3 + progress_remaining

    build(learning_rate=schedule).learn(100)
    assert min(seen) == 0.0


def test_the_clip_range_can_be_changed_between_two_trainings() -> None:
    model = build()
    model.clip_range = 0.01
    model.learn(32)
    assert model.logger.name_to_value["train/clip_range"] == 0.01


def test_a_reward_function_that_borrows_a_shipped_name_is_not_taken_for_it() -> None:
    def simple_cartpole(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return -torch.ones(len(state), 1)

    loaded = GRPO.load(io.BytesIO(build(reward_function=simple_cartpole).to_bytes()), env=gym.make("CartPole-v1"))
    assert loaded.reward_function is None
    with pytest.raises(ValueError, match="another simple_cartpole"):
        loaded.learn(32)
