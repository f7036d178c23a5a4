"""Policies are evaluated over whole episodes."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from grpo_core.environments.errors import InvalidEnvironmentError
from grpo_core.evaluation import (
    Episode,
    check_spaces,
    compute_mean_interval,
    compute_rate_interval,
    make_policy,
    make_random_policy,
    play_episode,
    play_episodes,
    summarize_episodes,
)
from tests.environments import LineEnv, SpaceEnv
from tests.models import make_model


def go_right(observation: Any, action_masks: Any) -> int:
    return 1


class SuccessfulEnv(LineEnv):
    """A line that reports at each step whether it has arrived at the right."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {"is_success": bool(observation[0] >= 5)}


def test_an_episode_is_played_to_its_end_and_on_step_sees_every_state() -> None:
    seen: list[None] = []
    assert play_episode(LineEnv(), go_right, seed=0, on_step=lambda: seen.append(None)) == Episode(5.0, 5, None)
    assert len(seen) == 6


def test_a_reward_beyond_float32_is_named() -> None:
    class Vast(LineEnv):
        def step(self, action: Any) -> Any:
            observation, _, terminated, truncated, info = super().step(action)
            return observation, 1e200, terminated, truncated, info

    with pytest.raises(InvalidEnvironmentError, match=r"Vast.step\(\) returned 1e\+200 as reward; .* at most 3.4e\+38"):
        play_episode(Vast(), go_right, seed=0)


def test_an_episode_is_cut_after_max_steps() -> None:
    assert play_episode(LineEnv(), go_right, seed=0, max_steps=3) == Episode(3.0, 3, None)


def test_success_is_what_the_environment_reports_at_the_end() -> None:
    assert play_episode(SuccessfulEnv(), go_right, seed=0).is_success is True
    assert play_episode(SuccessfulEnv(), lambda *_: 0, seed=0).is_success is False


def test_episodes_are_seeded_one_after_the_other() -> None:
    first_states: list[float] = []

    def note(observation: Any, action_masks: Any) -> int:
        first_states.append(float(observation[0]))
        return 0

    play_episodes(gym.make("CartPole-v1"), note, n_episodes=3, seed=7, max_steps=1)
    expected = [float(gym.make("CartPole-v1").reset(seed=seed)[0][0]) for seed in (7, 8, 9)]
    assert first_states == expected


def test_a_policy_acts_as_its_model_predicts() -> None:
    model, env = make_model("CartPole-v1"), gym.make("CartPole-v1")
    policy = make_policy(model.make_actor(), True, np.random.default_rng(0))
    observation, _ = env.reset(seed=0)
    for _ in range(8):  # the pole stands that long whatever the actions
        action = policy(observation, None)
        assert action == model.predict(observation, deterministic=True)[0]
        observation, *_ = env.step(action)


def test_actions_are_drawn_only_from_the_given_generator() -> None:
    actor, observation = make_model("CartPole-v1").make_actor(), np.zeros(4, np.float32)

    def draw(seed: int) -> list[int]:
        policy = make_policy(actor, False, np.random.default_rng(seed))
        return [int(policy(observation, None)) for _ in range(50)]

    assert draw(1) == draw(1) != draw(2)
    assert set(draw(1)) == {0, 1}


def test_neither_policy_takes_forbidden_actions() -> None:
    # The environment raises when a forbidden action is taken.
    env = SpaceEnv(spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2), masks=[0, 1])
    actor = make_model("CartPole-v1").make_actor()
    for policy in (make_policy(actor, True, np.random.default_rng(0)), make_random_policy(env.action_space, 0)):
        assert play_episode(env, policy, seed=0).n_steps == 7


def test_a_random_policy_is_reproducible_and_leaves_the_space_alone() -> None:
    space: spaces.Discrete = spaces.Discrete(1000, seed=3)
    other: spaces.Discrete = spaces.Discrete(1000, seed=3)
    drawn = [make_random_policy(space, 5)(None, None) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert space.sample() == other.sample()


def test_images_reach_the_networks_with_their_channels_first() -> None:
    class Channels:
        observation_space = spaces.Box(0, 255, (3, 8, 6), np.uint8)

        def best_actions(self, batch: Any, masks: Any) -> Any:
            return [batch.shape]

        def clip_actions(self, actions: Any) -> Any:
            return actions

    policy = make_policy(Channels(), True, np.random.default_rng(0))  # type: ignore[arg-type]
    assert policy(np.zeros((8, 6, 3), np.uint8), None) == (1, 3, 8, 6)
    assert policy(np.zeros((3, 8, 6), np.uint8), None) == (1, 3, 8, 6)


def test_figures_agree_with_a_plain_calculation() -> None:
    figures = summarize_episodes([Episode(1.0, 3, None), Episode(3.0, 5, None), Episode(8.0, 7, None)])
    assert (figures.n_episodes, figures.mean_reward, figures.min_reward, figures.max_reward) == (3, 4.0, 1.0, 8.0)
    assert figures.std_reward == pytest.approx(math.sqrt((9 + 1 + 16) / 3))
    assert figures.mean_length == 5.0
    assert figures.success_rate is None
    assert figures.success_rate_ci95 is None


@pytest.mark.parametrize(
    ("successes", "rate"),
    [
        ([None, None], None),
        ([True, False], 0.5),
        ([False], 0.0),
        ([True, None, None, None], 0.25),
        ([False, None], 0.0),
    ],
)
def test_where_some_episodes_report_success_the_others_failed(successes: list[bool | None], rate: float | None) -> None:
    figures = summarize_episodes([Episode(9.0, 1, success) for success in successes])
    assert figures.success_rate == rate
    assert (figures.success_rate_ci95 is None) == (rate is None)


def test_the_interval_of_a_mean_is_close_to_theory_and_reproducible() -> None:
    numbers = np.random.default_rng(1).normal(10.0, 2.0, 400)
    low, high = compute_mean_interval(numbers) or (0.0, 0.0)
    half = 1.96 * numbers.std() / 20
    assert low == pytest.approx(numbers.mean() - half, abs=0.02)
    assert high == pytest.approx(numbers.mean() + half, abs=0.02)
    assert compute_mean_interval(numbers) == (low, high)
    assert compute_mean_interval(numbers[:1]) is None
    assert compute_mean_interval(np.array([4.0, 4.0])) == (4.0, 4.0)


@pytest.mark.parametrize(
    ("n_successes", "n", "low", "high"),
    # Roots p of (p - s/n)^2 = z^2 p (1 - p) / n, found by bisection.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (90, 100, 0.8256, 0.9448)],
)
def test_the_interval_of_a_rate_solves_wilsons_equation(n_successes: int, n: int, low: float, high: float) -> None:
    assert compute_rate_interval(n_successes, n) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_a_rate_ends_exactly_where_all_or_none_succeeded() -> None:
    assert {compute_rate_interval(n, n)[1] for n in range(1, 201)} == {1.0}
    assert {compute_rate_interval(0, n)[0] for n in range(1, 201)} == {0.0}


def test_a_policy_of_another_environment_is_refused() -> None:
    actor = make_model("CartPole-v1").make_actor()
    check_spaces(actor, gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="observations"):
        check_spaces(actor, gym.make("Acrobot-v1"))
    with pytest.raises(ValueError, match="actions"):
        check_spaces(actor, SpaceEnv(spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(3)))
