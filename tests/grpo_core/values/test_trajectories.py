"""Trajectories of a policy, and what their states were worth."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from grpo import GRPO
from grpo_core.actor.actor import PolicyActor
from grpo_core.values.trajectories import Trajectory, TrajectoryPlayer
from tests.walk import cartpole_model


class Countdown(gym.Env[Any, Any]):
    """Counts down from a number of the seed, shows it in an array that it reuses, and pays it."""

    observation_space = spaces.Box(0.0, 99.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.shown = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.shown[0] = (seed or 0) % 7 + 3
        return self.shown, {}

    def step(self, action: Any) -> Any:
        self.shown[0] -= 1
        return self.shown, float(self.shown[0]), bool(self.shown[0] <= 0), False, {}


@pytest.fixture(scope="module")
def actor() -> PolicyActor:
    return GRPO("MlpPolicy", Countdown(), n_steps=64, seed=0, group_mode="episode").make_actor()


def make_trajectory(rewards: list[float], terminated: bool) -> Trajectory:
    n = len(rewards)
    return Trajectory(np.zeros((n, 1), np.float32), np.array(rewards), np.zeros((1, 1), np.float32), terminated)


def test_returns_discount_what_follows_and_what_a_cut_end_is_worth() -> None:
    ended = make_trajectory([1.0, 2.0, 4.0], terminated=True)
    assert ended.compute_returns(0.5, end_value=100.0).tolist() == [3.0, 4.0, 4.0]
    cut = make_trajectory([1.0, 2.0, 4.0], terminated=False)
    assert cut.compute_returns(0.5, end_value=8.0).tolist() == [4.0, 6.0, 8.0]


def test_an_episode_keeps_every_observation_although_the_environment_reuses_its_array(actor: PolicyActor) -> None:
    player = TrajectoryPlayer(Countdown(), actor)
    played = player.play_episode(seed=2)
    assert played.observations.tolist() == [[5.0], [4.0], [3.0], [2.0], [1.0]]
    assert played.last_observation.tolist() == [[0.0]]
    assert played.rewards.tolist() == [4.0, 3.0, 2.0, 1.0, 0.0]
    assert played.terminated
    assert player.n_steps == 5


def test_rewards_are_those_that_the_policy_is_trained_on(actor: PolicyActor) -> None:
    def double(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return 2 * state - next_state

    played = TrajectoryPlayer(Countdown(), actor, [double, None], [10.0, 1.0]).play_episode(seed=0)
    assert played.rewards.tolist() == [10 * (6 - 2) + 2, 10 * (4 - 1) + 1, 10 * (2 - 0) + 0]


def test_a_long_episode_is_cut_and_says_so(actor: PolicyActor) -> None:
    played = TrajectoryPlayer(Countdown(), actor, max_steps=2).play_episode(seed=0)
    assert played.rewards.tolist() == [2.0, 1.0]
    assert not played.terminated
    assert played.last_observation.tolist() == [[1.0]]


def test_excursions_take_over_at_points_all_along_the_way(actor: PolicyActor) -> None:
    player, rng = TrajectoryPlayer(Countdown(), actor), np.random.default_rng(0)
    starts = set()
    for _ in range(60):
        played = player.play_excursion(2, rng)
        assert played is not None
        starts.add(float(played.observations[0, 0]))
    assert starts == {5.0, 4.0, 3.0, 2.0, 1.0}


def test_an_excursion_reaches_states_that_a_good_policy_does_not() -> None:
    env = gym.make("CartPole-v1")
    player, rng = TrajectoryPlayer(env, cartpole_model(seed=0).make_actor()), np.random.default_rng(0)
    excursions = [player.play_excursion(seed, rng) for seed in range(40)]
    tilts = [abs(float(played.observations[0, 2])) for played in excursions if played is not None]
    assert max(tilts) > 0.15  # a reset is within 0.05
    assert min(tilts) < 0.05


def test_an_excursion_into_an_end_that_comes_sooner_the_second_time_is_dropped(actor: PolicyActor) -> None:
    class Fickle(Countdown):
        n_resets = 0

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed=seed)
            self.n_resets += 1
            self.shown[0] = 9 if self.n_resets % 2 else 1
            return self.shown, {}

    player, rng = TrajectoryPlayer(Fickle(), actor), np.random.default_rng(0)
    played = [player.play_excursion(0, rng) for _ in range(20)]
    assert None in played
    assert all(one is None or one.observations[0, 0] == 1 for one in played)


def test_every_step_is_told_and_may_end_it(actor: PolicyActor) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        TrajectoryPlayer(Countdown(), actor, on_step=stop).play_episode(seed=0)
