"""Rollouts whose branches are stepped at once against those of environments that are stepped one by one."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from grpo import GRPO
from grpo_core.fast.batched_collector import BatchedCollector, make_batched_collector
from grpo_core.groups.collector import GroupCollector
from grpo_core.groups.rollout import GroupRollout

ENVIRONMENTS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0")


class Seen(BaseCallback):
    """Keeps what callbacks are shown, and every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.vec_steps: list[Any] = []
        self.rollouts: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        infos = [dict(info) for info in self.locals["infos"]]
        for info in infos:
            if "episode" in info:
                info["episode"] = {key: value for key, value in info["episode"].items() if key != "t"}
            if "terminal_observation" in info:
                info["terminal_observation"] = info["terminal_observation"].tolist()
        shown = (infos, self.locals["dones"].tolist(), self.locals["rewards"].tolist(), self.num_timesteps)
        self.vec_steps.append(shown)
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, GRPO)
        rollout = self.model.rollout_buffer
        self.rollouts.append({name: array.copy() for name, array in vars(rollout).items() if hasattr(array, "copy")})


class Noisy(Seen):
    """Switches noise on after the model was built."""

    def _on_rollout_start(self) -> None:
        self.training_env.env_method("set_wrapper_attr", "torque_noise_max", 5.0)


def train(
    env: VecEnv, is_batched: bool, total_timesteps: int = 700, kind: type[Seen] = Seen, **changes: Any
) -> tuple[GRPO, Seen]:
    settings: dict[str, Any] = {"n_steps": 64, "horizon": 16, "n_epochs": 2, "learning_rate": 3e-3, "seed": 7}
    model = GRPO("MlpPolicy", env, device="cpu", **settings | changes)
    assert isinstance(model._collector, BatchedCollector)
    if not is_batched:
        model._collector = GroupCollector(model._collector._bank, model.observation_space, model._collector._plan)
    seen = kind()
    model.learn(total_timesteps, callback=seen)
    return model, seen


def assert_same_training(make_env: Callable[[], VecEnv], **changes: Any) -> None:
    (batched, batched_saw), (single, single_saw) = (train(make_env(), flag, **changes) for flag in (True, False))
    assert batched_saw.vec_steps == single_saw.vec_steps
    assert len(batched_saw.rollouts) == len(single_saw.rollouts) > 2
    for rollout, expected in zip(batched_saw.rollouts, single_saw.rollouts, strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(rollout[name], array, err_msg=name)
            assert rollout[name].dtype == array.dtype
    for parameter, twin in zip(batched.policy.parameters(), single.policy.parameters(), strict=True):
        assert torch.equal(parameter, twin)
    assert batched.num_timesteps == single.num_timesteps


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_training_is_the_same_to_the_bit(name: str, n_envs: int) -> None:
    assert_same_training(lambda: make_vec_env(name, n_envs))


@pytest.mark.parametrize(
    "changes",
    [
        {"group_size": 4, "horizon": 8},
        {"group_mode": "action", "group_size": 2, "horizon": 16},
        {"group_mode": "action", "group_size": 2, "horizon": 1},
        {"restart_probability": 0.5},
        {"fill_rollouts": True, "horizon": 32},
        {"fill_rollouts": True, "horizon": 32, "group_mode": "action", "anchor_selection": "archive"},
        {"anchor_selection": "archive"},
        {"anchor_selection": "archive", "group_mode": "action", "restart_probability": 0.5},
        {"baseline": "group", "gamma": 0.9},
        {"n_steps": 256, "horizon": 128},
    ],
    ids=str,
)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_so_it_is_in_every_mode_that_branches(changes: dict[str, Any], n_envs: int) -> None:
    assert_same_training(lambda: make_vec_env("CartPole-v1", n_envs), **changes)


def test_episodes_that_a_time_limit_cuts_are_cut_alike() -> None:
    def make_short() -> VecEnv:
        return make_vec_env("Pendulum-v1", 2, env_kwargs={"max_episode_steps": 9})

    assert_same_training(make_short)
    _, seen = train(make_short(), is_batched=True)
    assert any(rollout["truncated"].any() for rollout in seen.rollouts)
    assert any("episode" in info for infos, *_ in seen.vec_steps for info in infos)


def test_normalised_observations_and_rewards_are_the_same() -> None:
    assert_same_training(lambda: VecNormalize(make_vec_env("CartPole-v1", 2)))
    assert_same_training(lambda: VecNormalize(make_vec_env("Pendulum-v1", 2)), anchor_selection="archive")


def test_opposite_noise_is_the_same() -> None:
    assert_same_training(lambda: make_vec_env("Pendulum-v1", 2), antithetic_actions=True, group_size=4, horizon=8)


def test_each_environment_keeps_its_own_physics() -> None:
    def make_two_gravities() -> VecEnv:
        env = make_vec_env("CartPole-v1", 2)
        env.env_method("set_wrapper_attr", "gravity", 3.0, indices=[1])
        return env

    assert make_two_gravities().get_attr("gravity") == [9.8, 3.0]
    assert_same_training(make_two_gravities)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_noise_that_is_switched_on_later_is_drawn_alike(n_envs: int) -> None:
    def make() -> VecEnv:
        return make_vec_env("Acrobot-v1", n_envs)

    assert_same_training(make, kind=Noisy)
    (_, noisy), (_, plain) = train(make(), True, kind=Noisy), train(make(), True)
    assert (noisy.rollouts[0]["observations"] != plain.rollouts[0]["observations"]).any()


def test_what_shows_steps_or_replaces_them_on_the_class_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own: Callable[..., Any] = CartPoleEnv.step

    def step(env: CartPoleEnv, action: Any) -> Any:
        observation, reward, *rest = own(env, action)
        return observation, 9.0 * reward, *rest

    model, _ = train(make_vec_env("CartPole-v1", 2), True, 64)
    with monkeypatch.context() as patch:
        patch.setattr(CartPoleEnv, "step", step)
        model.learn(64)
        assert type(model._collector) is GroupCollector
        assert model.rollout_buffer.rewards.max() == 9.0
    model, _ = train(make_vec_env("CartPole-v1", 2), True, 64)
    assert not model._collector.is_outdated()
    model.get_env().envs[1].unwrapped.render_mode = "human"  # type: ignore[union-attr]
    assert model._collector.is_outdated()


class Heavier(gym.Wrapper[Any, Any, Any, Any]):
    """Some wrapper."""


@pytest.mark.parametrize(
    ("make_env", "changes"),
    [
        (lambda: make_vec_env("CartPole-v1", 1, wrapper_class=Heavier), {}),
        (lambda: make_vec_env("FrozenLake-v1", 1), {}),
        (lambda: VecFrameStack(make_vec_env("CartPole-v1", 1), 2), {}),
        (lambda: make_vec_env("CartPole-v1", 1), {"common_random_numbers": True}),
        (lambda: make_vec_env("CartPole-v1", 1), {"group_mode": "episode", "horizon": None}),
    ],
)
def test_all_others_are_stepped_one_by_one(make_env: Callable[[], VecEnv], changes: dict[str, Any]) -> None:
    model = GRPO("MlpPolicy", make_env(), n_steps=64, **{"horizon": 16} | changes)
    assert type(model._collector) is GroupCollector


def test_a_stop_ends_a_rollout_in_the_middle() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 21

    model = GRPO("MlpPolicy", "CartPole-v1", n_steps=64, horizon=16, seed=0)
    model.learn(1000, callback=Stop())
    assert model.num_timesteps == 21


def test_the_storage_holds_the_mask_of_live_steps_only() -> None:
    model, _ = train(make_vec_env("CartPole-v1", 1), is_batched=True, total_timesteps=1, n_steps=256, horizon=64)
    rollout = model.rollout_buffer
    assert isinstance(rollout, GroupRollout)
    ends = rollout.terminated | rollout.truncated
    assert ends.any()
    for group, branch in np.ndindex(rollout.shape[1:]):
        length = int(rollout.step_mask[:, group, branch].sum())
        assert rollout.step_mask[:length, group, branch].all()
        assert not ends[: length - 1, group, branch].any()
        assert length == rollout.shape[0] or ends[length - 1, group, branch]


def test_an_anchor_holds_its_own_numbers_alone() -> None:
    model, _ = train(make_vec_env("CartPole-v1", 2), is_batched=True, anchor_selection="archive")
    anchors = model._collector.anchors
    assert anchors.archive is not None
    archived = [anchor for shelf in anchors.archive.to_state()[0] for _, anchor, _, _ in shelf]
    assert len(archived) > 10
    for anchor in (*anchors.starts, *archived):
        assert anchor is not None
        assert anchor.observed.observation.base is None
        assert anchor.simulator_state.base is None


def test_one_environment_that_cannot_be_batched_leaves_all_to_the_slow_way() -> None:
    model = GRPO("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=64, horizon=16)
    bank, plan = model._collector._bank, model._collector._plan
    assert make_batched_collector(bank, model.observation_space, plan) is not None
    bank.plain_envs = [bank.plain_envs[0], Heavier(bank.plain_envs[1])]
    assert make_batched_collector(bank, model.observation_space, plan) is None
