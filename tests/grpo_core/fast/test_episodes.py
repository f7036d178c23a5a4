"""Episodes that are played side by side are those that are played one after the other."""

import math
from collections.abc import Generator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from grpo_core import fast
from grpo_core.evaluation import Episode, make_policy, play_episodes
from tests.models import make_model

SEEDS = range(20, 26)


def finish(steps: Generator[None, None, list[Episode]]) -> tuple[list[Episode], int]:
    """Play to the end; return the episodes and the number of pauses."""
    n_pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, n_pauses
        n_pauses += 1


@pytest.mark.parametrize(
    "env_name", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
)
@pytest.mark.parametrize("max_steps", [math.inf, 30])
def test_they_are_the_same(env_name: str, max_steps: float) -> None:
    env, actor = gym.make(env_name, disable_env_checker=True), make_model(env_name, seed=1).make_numpy_actor()
    expected = play_episodes(env, make_policy(actor, True, np.random.default_rng(0)), len(SEEDS), SEEDS[0], max_steps)
    simulator = fast.find_batched_simulator(env)
    assert simulator is not None
    episodes, n_pauses = finish(fast.step_episodes(env, simulator, actor, SEEDS, max_steps))
    assert [episode[1:] for episode in episodes] == [episode[1:] for episode in expected]
    assert [episode.reward for episode in episodes] == pytest.approx([episode.reward for episode in expected], rel=1e-4)
    assert n_pauses == len(SEEDS) + max(episode.n_steps for episode in expected)


def test_success_is_judged_where_the_environment_has_a_goal() -> None:
    env: gym.Env[Any, Any] = gym.make("Acrobot-v1", disable_env_checker=True)
    simulator = fast.find_batched_simulator(env)
    assert simulator is not None
    actor = make_model("Acrobot-v1").make_numpy_actor()
    episodes, _ = finish(fast.step_episodes(env, simulator, actor, SEEDS, 1))
    assert [episode.is_success for episode in episodes] == [False] * len(SEEDS)
