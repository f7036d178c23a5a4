"""GRPO can be built from every preset."""

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core.options.presets import (
    Preset,
    choose_general_preset,
    choose_preset_name,
    fit_horizon,
    fit_n_steps,
    fit_sizes,
    get_preset,
    list_presets,
)
from grpo_core.options.rewards import Reward, optimized_cartpole, simple_cartpole

ENV_IDS = list_presets()
# Optional packages.
NEEDS = {
    "LunarLander-v3": "Box2D",
    **dict.fromkeys(
        ("InvertedDoublePendulum-v5", "Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Swimmer-v5", "Ant-v5"), "mujoco"
    ),
}


def own(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return next_state[:, 0]


def get(env_id: str) -> Preset:
    preset = get_preset(env_id)
    assert preset is not None
    return preset


def test_the_list_is_in_order_and_has_the_classics() -> None:
    assert sorted(ENV_IDS) == ENV_IDS
    assert {"CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "FrozenLake-v1"} <= set(ENV_IDS)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_every_preset_can_be_read(env_id: str) -> None:
    preset = get(env_id)
    assert preset.n_timesteps >= 1000
    assert preset.n_envs >= 1
    assert preset.policy in GRPO.policy_aliases
    known = set(inspect.signature(GRPO).parameters) - {"policy", "env"}
    arguments = preset.make_arguments()
    assert set(arguments) == set(preset.arguments) <= known
    assert set(preset.normalize or {}) <= set(inspect.signature(VecNormalize).parameters)
    assert not any(isinstance(value, str) and value.startswith("lin") for value in arguments.values())
    assert env_id in gym.registry


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_every_preset_builds_a_model_without_a_warning(env_id: str) -> None:
    preset = get(env_id)
    if env_id in NEEDS:
        pytest.importorskip(NEEDS[env_id])
    env: Any = make_vec_env(env_id, preset.n_envs, seed=0, vec_env_cls=DummyVecEnv)
    if preset.normalize is not None:
        env = VecNormalize(env, **preset.normalize)
    arguments = preset.make_arguments()
    model = GRPO(preset.policy, env, **arguments)
    assert {name: getattr(model, name) for name in arguments} == arguments
    env.close()


def test_a_schedule_falls_linearly_from_its_number_to_0() -> None:
    schedule = Preset(1000, "MlpPolicy", 1, None, {"learning_rate": "lin_0.002", "clip_range": 0.1}).make_arguments()
    assert schedule["clip_range"] == 0.1
    assert isinstance(schedule["learning_rate"], LinearSchedule)
    assert [schedule["learning_rate"](x) for x in (1.0, 0.5, 0.0)] == pytest.approx([0.002, 0.001, 0.0])


def test_normalize_keeps_its_options() -> None:
    assert get("MountainCar-v0").normalize == {"norm_reward": False}
    assert get("Hopper-v5").normalize == {}
    assert get("CartPole-v1").normalize is None


def test_an_environment_without_a_preset_has_none() -> None:
    assert get_preset("Nowhere-v0") is None


@pytest.mark.parametrize("reward", [None, own, [None], [None, own]])
def test_an_environment_takes_its_preset_whatever_is_rewarded(reward: Reward | None) -> None:
    assert choose_preset_name("Pendulum-v1", reward) == "Pendulum-v1"
    assert choose_preset_name("CliffWalking-v1", reward) == "general"


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (None, "CartPole-v1"),
        (own, "CartPole-v1"),
        ([None, own], "CartPole-v1"),
        ([simple_cartpole, own], "CartPole-v1"),
        (optimized_cartpole, "none"),
        (simple_cartpole, "none"),
        ([None], "none"),
        ([None, simple_cartpole], "none"),
    ],
)
def test_rewards_shipped_for_cartpole_take_the_defaults_of_the_contract(reward: Reward | None, name: str) -> None:
    assert choose_preset_name("CartPole-v1", reward) == name
    # It has no preset of its own.
    assert choose_preset_name("CartPole-v0", reward) == ("none" if name == "none" else "general")


@pytest.mark.parametrize(
    ("n_steps", "group_size", "target", "horizon"),
    [
        (500, 2, 32, 25),  # 250 = 2 * 5 * 5 * 5: 25 * 1.28 = 32, and 50 / 32 is more
        (512, 2, 32, 32),
        (64, 2, 128, 32),
        (33, 2, 32, 1),  # no whole group
        (2, 4, 32, 1),
    ],
)
def test_the_horizon_is_the_closest_one_that_fills_a_rollout(
    n_steps: int, group_size: int, target: int, horizon: int
) -> None:
    assert fit_horizon(n_steps, group_size, target) == horizon


@pytest.mark.parametrize(
    ("group_size", "horizon", "n_steps"), [(2, None, 512), (3, None, 480), (2, 24, 528), (2, 16, 512), (100, 10, 1000)]
)
def test_a_rollout_is_changed_to_the_closest_whole_groups(group_size: int, horizon: int | None, n_steps: int) -> None:
    assert fit_n_steps(512, group_size, horizon, target=32) == n_steps


@pytest.mark.parametrize(
    ("n_timesteps", "variant"), [(None, ""), (10_000, ""), (499_999, ""), (500_000, "-long"), (10_000_000, "-long")]
)
def test_a_long_training_with_continuous_actions_has_a_general_preset_of_its_own(
    n_timesteps: int | None, variant: str
) -> None:
    box, image, torque = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Box(-1.0, 1.0)

    def choose(observed: spaces.Space[Any], acted: spaces.Space[Any], is_restorable: bool = True) -> str:
        return choose_general_preset(observed, acted, is_restorable, n_timesteps)

    assert choose(box, torque) == f"general-continuous{variant}"
    assert choose(box, torque, is_restorable=False) == "general-continuous-episodes"
    assert choose(box, spaces.Discrete(2)) == "general-discrete"
    assert choose(image, torque) == "general-image"


def test_the_general_preset_for_long_trainings_takes_smaller_steps_with_less_noise() -> None:
    short, long = get("general-continuous"), get("general-continuous-long")
    assert long.n_timesteps >= 500_000
    assert long.normalize == short.normalize
    changed = {"learning_rate": "lin_0.0003", "gae_lambda": 0.9, "policy_kwargs": {"log_std_init": -1.0}}
    assert long.arguments == {**short.arguments, **changed}


BRANCHES = {"n_steps": 512, "group_size": 2, "horizon": 32}
EPISODES = {"n_steps": 512, "group_size": 2, "horizon": None, "group_mode": "episode"}


@pytest.mark.parametrize(
    ("defaults", "given", "mode", "fitted"),
    [
        (BRANCHES, {}, "branch", (512, 2, 32)),
        (BRANCHES, {"group_size": 3}, "branch", (480, 3, 32)),
        (BRANCHES, {"n_steps": 500}, "branch", (500, 2, 25)),
        (BRANCHES, {"n_steps": 500, "horizon": 30}, "branch", (500, 2, 30)),  # nothing left to choose
        (BRANCHES, {"horizon": 400}, "branch", (800, 2, 400)),
        (BRANCHES, {"horizon": 600}, "branch", (512, 2, 600)),  # a group would take more than the most steps, 1000
        # One branch for each of six actions: 3 * 6 * 32 = 576 is closest to 512.
        (BRANCHES, {}, "action", (576, 6, 32)),
        (BRANCHES, {"group_size": 2}, "action", (512, 2, 32)),
        (BRANCHES, {"n_steps": 500}, "action", (500, 6, 1)),
        (BRANCHES, {}, "episode", (512, 2, None)),
        (BRANCHES, {"horizon": 7, "n_steps": 33}, "episode", (33, 2, 7)),
        (EPISODES, {}, "episode", (512, 2, None)),
        ({**EPISODES, "horizon": 50}, {}, "episode", (512, 2, 50)),
        (EPISODES, {}, "branch", (512, 2, 32)),
    ],
    ids=str,
)
def test_sizes_are_fitted_to_the_given_ones(
    defaults: dict[str, Any], given: dict[str, Any], mode: str, fitted: tuple[int, int, int | None]
) -> None:
    assert fit_sizes(defaults, given, mode, spaces.Discrete(6), most_steps=1000) == fitted


def test_only_discrete_actions_are_counted() -> None:
    assert fit_sizes(BRANCHES, {}, "action", spaces.Box(-1.0, 1.0)).group_size == 2
