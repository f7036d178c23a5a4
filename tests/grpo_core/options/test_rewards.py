"""The named reward functions agree with their formulas in plain ``math``."""

import math
import random
from collections.abc import Callable

import gymnasium as gym
import pytest
import torch

from grpo_core.options.rewards import (
    CARTPOLE_ENVIRONMENTS,
    REWARD_FUNCTIONS,
    RewardFunction,
    get_reward_name,
    name_reward_function,
    optimized_cartpole,
    simple_cartpole,
)


def plain_optimized(x: float, angle: float) -> float:
    reward = 1.5 + 3 * math.exp(-8 * abs(angle)) + math.exp(-1.5 * x**2) - 2 * max(abs(x) - 2, 0)
    return min(max(reward, 0.1), 6.0)


def plain_simple(x: float, angle: float) -> float:
    return min(max(1 - abs(angle) / 0.2095, 0.1), 1.0)


def reward_of(function: RewardFunction, x: float, angle: float) -> float:
    """Return the reward of one step; all other numbers must not matter."""
    next_state = torch.tensor([[x, 50.0, angle, -50.0]])
    return function(torch.full((1, 4), 9.0), torch.ones(1, 1), next_state).item()


@pytest.mark.parametrize(
    ("x", "angle", "expected"),
    [
        (0.0, 0.0, 5.5),
        (1.0, 0.0, 4.5 + math.exp(-1.5)),
        (-1.0, 0.0, 4.5 + math.exp(-1.5)),
        (0.0, 0.125, 2.5 + 3 / math.e),
        (0.0, -0.125, 2.5 + 3 / math.e),
        (2.0, 0.0, 4.5 + math.exp(-6)),
        (2.4, 0.0, 3.7 + math.exp(-8.64)),
        (5.0, 0.2, 0.1),  # 1.5 + 0.6 - 6 is below the lower bound
    ],
)
def test_optimized_cartpole_has_its_hand_values(x: float, angle: float, expected: float) -> None:
    assert reward_of(optimized_cartpole, x, angle) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("angle", "expected"), [(0.0, 1.0), (0.10475, 0.5), (-0.10475, 0.5), (0.2095, 0.1), (-3.0, 0.1)]
)
def test_simple_cartpole_has_its_hand_values(angle: float, expected: float) -> None:
    assert reward_of(simple_cartpole, 1.7, angle) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("function", "plain"), [(optimized_cartpole, plain_optimized), (simple_cartpole, plain_simple)]
)
def test_a_batch_is_rewarded_step_by_step(function: RewardFunction, plain: Callable[[float, float], float]) -> None:
    rng = random.Random(0)
    rows = [[rng.uniform(-3, 3), rng.uniform(-9, 9), rng.uniform(-0.3, 0.3), rng.uniform(-9, 9)] for _ in range(64)]
    rewards = function(torch.zeros(64, 4), torch.zeros(64, 1), torch.tensor(rows))
    assert rewards.shape == (64, 1)
    for row, reward in zip(rows, rewards.flatten().tolist(), strict=True):
        assert reward == pytest.approx(plain(row[0], row[2]), rel=1e-5)


@pytest.mark.parametrize("name", sorted(REWARD_FUNCTIONS))
def test_every_shipped_function_takes_a_real_step_of_the_environments_it_is_for(name: str) -> None:
    assert "CartPole-v1" in CARTPOLE_ENVIRONMENTS
    env = gym.make("CartPole-v1")
    state, _ = env.reset(seed=0)
    next_state = env.step(0)[0]
    reward = REWARD_FUNCTIONS[name](
        torch.as_tensor(state).unsqueeze(0), torch.zeros(1, 1), torch.as_tensor(next_state).unsqueeze(0)
    )
    assert reward.shape == (1, 1)
    assert 0.1 <= reward.item() <= 6.0


def test_the_shipped_functions_are_found_by_their_names() -> None:
    assert {name: function.__name__ for name, function in REWARD_FUNCTIONS.items()} == {
        "optimized_cartpole": "optimized_cartpole",
        "simple_cartpole": "simple_cartpole",
    }


def test_functions_are_given_names_of_their_own_except_those_shipped() -> None:
    def mine(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return action

    named = name_reward_function(mine, "registered")
    assert (get_reward_name(named), get_reward_name(mine)) == ("registered", "mine")
    assert named == name_reward_function(named, "registered")
    assert name_reward_function(optimized_cartpole, "registered") is optimized_cartpole
    assert name_reward_function(None, "environment") is None
