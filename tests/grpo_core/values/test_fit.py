"""Values fitted to finished policies, and how they are checked."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from grpo import GRPO
from grpo_core.values.fit import ValueCheck, check_values, fit_values
from grpo_core.values.trajectories import Trajectory, TrajectoryPlayer
from tests.walk import cartpole_model


class Line(gym.Env[Any, Any]):
    """A walk along a line at a speed of its own, which costs the distance left; every action is the same."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.left, self.speed = self.np_random.uniform(500.0, 1000.0), self.np_random.uniform(40.0, 80.0)
        return np.array([self.left, self.speed], np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= self.speed
        observation = np.array([self.left, self.speed], np.float32)
        return observation, -max(self.left, 0.0), self.left <= 0, False, {}


def make_model(**arguments: Any) -> GRPO:
    return GRPO("MlpPolicy", Line(), n_steps=64, seed=0, group_mode="episode", **arguments)


def play(model: GRPO, first_seed: int, n: int) -> list[Trajectory]:
    player = TrajectoryPlayer(Line(), model.make_numpy_actor())
    return [player.play_episode(first_seed + i) for i in range(n)]


def trajectory(values: list[float], rewards: list[float], terminated: bool = True) -> Trajectory:
    """A trajectory whose only observation is the value that ``Echo`` gives."""
    return Trajectory(np.array(values)[:, None], np.array(rewards), np.zeros((1, 1)), terminated)


class Echo:
    """An actor that takes the observation for the value."""

    def values(self, observations: Any) -> Any:
        return observations[:, 0]


ECHO: Any = Echo()


def check(actor: Any, trajectories: list[Trajectory], gamma: float, reward_scale: float = 1.0) -> ValueCheck:
    checked = check_values(actor, trajectories, gamma, reward_scale)
    assert checked is not None
    return checked


def test_values_fitted_to_some_episodes_foretell_others() -> None:
    model = make_model()
    held_out = play(model, 1000, 10)
    before = check(model.make_numpy_actor(), held_out, 0.9)
    fit_values(model.policy, model.make_numpy_actor(), play(model, 0, 60), 0.9, np.random.default_rng(0))
    after = check(model.make_numpy_actor(), held_out, 0.9)
    assert not before.is_meaningful
    assert after.is_meaningful
    assert after.correlation == pytest.approx(1.0, abs=0.01)
    assert after.error == pytest.approx(0.0, abs=0.1)


def test_only_the_value_networks_own_layers_change() -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    fit_values(model.policy, model.make_numpy_actor(), play(model, 0, 3), 0.9, np.random.default_rng(0))
    changed = {name for name, tensor in model.policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith(("mlp_extractor.value_net", "value_net"))}


def test_the_same_generator_gives_the_same_values() -> None:
    fitted = []
    for _ in range(2):
        model = make_model()
        torch.rand(1)  # torch's own generator must not matter
        fit_values(model.policy, model.make_numpy_actor(), play(model, 0, 3), 0.9, np.random.default_rng(7))
        fitted.append(model.make_numpy_actor().values(np.array([[700.0, 50.0]], np.float32)))
    assert fitted[0] == fitted[1]


def test_a_saturated_value_network_learns_again() -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.policy.mlp_extractor.value_net.parameters():
            parameter.fill_(9.0)
    fit_values(model.policy, model.make_numpy_actor(), play(model, 0, 30), 0.9, np.random.default_rng(0))
    assert check(model.make_numpy_actor(), play(model, 1000, 5), 0.9).is_meaningful


def test_cut_episodes_are_worth_what_would_have_followed() -> None:
    class Endless(Line):
        def step(self, action: Any) -> Any:
            return np.array([self.left, self.speed], np.float32), self.speed, False, False, {}

    model = make_model()
    player = TrajectoryPlayer(Endless(), model.make_numpy_actor(), max_steps=5)
    played = [player.play_episode(seed) for seed in range(40)]
    fit_values(model.policy, model.make_numpy_actor(), played, 0.9, np.random.default_rng(0))
    seen = np.array([[700.0, 50.0], [700.0, 70.0]], np.float32)
    # speed / (1 - gamma)
    assert model.make_numpy_actor().values(seen) == pytest.approx([500.0, 700.0], rel=0.05)


def test_scaled_rewards_scale_the_values() -> None:
    model = make_model()
    fit_values(
        model.policy, model.make_numpy_actor(), play(model, 0, 30), 0.9, np.random.default_rng(0), reward_scale=100.0
    )
    held_out = play(model, 1000, 5)
    assert check(model.make_numpy_actor(), held_out, 0.9, reward_scale=100.0).is_meaningful
    assert not check(model.make_numpy_actor(), held_out, 0.9).is_meaningful


@pytest.mark.parametrize(
    ("env_id", "policy_kwargs"),
    [("CartPole-v1", {"net_arch": []}), ("FrozenLake-v1", {}), ("CartPole-v1", {"share_features_extractor": False})],
)
def test_every_kind_of_network_can_be_fitted(env_id: str, policy_kwargs: Any) -> None:
    model = cartpole_model(env=env_id, policy_kwargs=policy_kwargs)
    player = TrajectoryPlayer(gym.make(env_id), model.make_numpy_actor())
    fit_values(model.policy, model.make_numpy_actor(), [player.play_episode(0)], 0.9, np.random.default_rng(0))
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_a_check_measures_correlation_and_error() -> None:
    # Returns 4 and 3, values 2 and 2.
    measured = check(ECHO, [trajectory([2.0, 2.0], [1.0, 3.0])], 1.0)
    assert measured == ValueCheck(2, correlation=None, error=1.5 / 3.5, spread=0.5 / 3.5, lowest=2.0, highest=4.0)
    measured = check(ECHO, [trajectory([4.4, 3.3], [1.0, 3.0])], 1.0)
    assert measured.correlation == pytest.approx(1.0)
    assert measured.error == pytest.approx(0.1)


def test_what_overflows_in_shares_of_tiny_returns_is_not_known() -> None:
    measured = check(ECHO, [trajectory([2.0, 2.0], [1e-320, 1e-320])], 1.0)
    assert measured.error is None
    assert not measured.is_meaningful


def test_states_whose_return_was_cut_do_not_count() -> None:
    # 0.5 ** 5 is the first power below 5 %: of seven rewards, those before the last five count.
    values, rewards = [9.0] * 7, [1.0] * 7
    assert check(ECHO, [trajectory(values, rewards, terminated=False)], 0.5).n_states == 2
    assert check_values(ECHO, [trajectory(values, rewards, terminated=False)], 1.0) is None
    assert check_values(ECHO, [], 0.5) is None


@pytest.mark.parametrize(
    ("correlation", "error", "spread", "is_meaningful"),
    [
        (0.8, 0.2, 1.0, True),
        (0.79, 0.2, 1.0, False),
        (0.9, 0.21, 1.0, False),
        (None, 0.01, 0.04, True),  # a policy that always earns the same
        (None, 0.1, 0.06, False),
        (None, None, None, False),
    ],
)
def test_values_are_meaningful_if_they_follow_the_returns(
    correlation: float | None, error: float | None, spread: float | None, is_meaningful: bool
) -> None:
    assert ValueCheck(10, correlation, error, spread, 0.0, 1.0).is_meaningful is is_meaningful


def test_rewards_that_are_all_zero_say_nothing() -> None:
    assert not check(ECHO, [trajectory([0.0, 0.0], [0.0, 0.0])], 0.9).is_meaningful
