"""Answers are the served policy's own, checked against torch's forward pass of the same network."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Normal

from grpo import GRPO
from service.errors import InvalidRequestError
from service.inference import infer
from service.model_store import ServedModel
from tests.support import make_model

CARTPOLE_OBSERVATIONS = [[0.1, 0.0, 0.05, 0.0], [-2.0, 1.5, -0.2, 3.0], [0, 0, 0, 0], [2.4, -3.0, 0.2, -2.0]]


def serve_model(model: GRPO) -> ServedModel:
    return ServedModel("m", model.make_actor(), {}, (0, 0, 0), np.random.default_rng(0))


def make_opinionated_model(env_id: str, seed: int = 0) -> GRPO:
    """A fresh policy prefers nothing much; this one has weights large enough to tell its outputs apart."""
    model = make_model(env_id, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (*model.policy.action_net.parameters(), *model.policy.value_net.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def compute_torch_probs(model: GRPO, observation: Any) -> list[float]:
    space = model.observation_space
    batch = torch.tensor([observation], dtype=torch.long if isinstance(space, spaces.Discrete) else torch.float32)
    distribution = model.policy.get_distribution(batch).distribution
    assert isinstance(distribution, Categorical)
    probs: list[float] = distribution.probs[0].tolist()
    return probs


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_probabilities_and_value_are_those_of_the_torch_policy(env_id: str) -> None:
    model = make_opinionated_model(env_id)
    model.observation_space.seed(0)
    observations = [model.observation_space.sample().clip(-3, 3).tolist() for _ in range(8)]
    for observation in observations:
        answer = infer(serve_model(model), observation, deterministic=True)
        expected = compute_torch_probs(model, observation)
        assert answer.action_probs == pytest.approx(expected, abs=1e-5)
        assert answer.action == int(np.argmax(expected))
        assert isinstance(answer.action, int)
        value = model.policy.predict_values(torch.tensor([observation], dtype=torch.float32)).item()
        assert answer.value == pytest.approx(value, abs=1e-4)


def test_both_actions_of_cartpole_are_reached() -> None:
    model = serve_model(make_opinionated_model("CartPole-v1"))
    actions = {infer(model, observation, deterministic=True).action for observation in CARTPOLE_OBSERVATIONS}
    assert actions == {0, 1}


def test_probabilities_sum_to_one() -> None:
    model = serve_model(make_opinionated_model("Acrobot-v1"))
    probs = infer(model, [1.0, 0.0, 1.0, 0.0, 0.5, -0.5], deterministic=True).action_probs
    assert probs is not None
    assert len(probs) == 3
    assert sum(probs) == pytest.approx(1.0, abs=1e-6)


def test_drawn_actions_come_as_often_as_their_probabilities_say() -> None:
    model = serve_model(make_opinionated_model("CartPole-v1"))
    observation = [0.5, 0.2, -0.05, 0.1]
    probs = infer(model, observation, deterministic=False).action_probs
    assert probs is not None
    n_draws = 4000
    n_ones = sum(infer(model, observation, deterministic=False).action == 1 for _ in range(n_draws))
    # Five standard deviations of a binomial; the generator is seeded, so the outcome does not change.
    assert abs(n_ones - n_draws * probs[1]) < 5 * np.sqrt(n_draws * probs[0] * probs[1])
    assert 0 < n_ones < n_draws


def test_a_continuous_action_is_the_torch_policys_mean() -> None:
    model = make_model("Pendulum-v1")
    observation = [0.6, 0.8, -1.0]
    answer = infer(serve_model(model), observation, deterministic=True)
    distribution = model.policy.get_distribution(torch.tensor([observation])).distribution
    assert isinstance(distribution, Normal)
    assert answer.action == pytest.approx(distribution.mean[0].tolist(), abs=1e-6)
    assert answer.action_probs is None


@pytest.mark.parametrize(("bias", "bound"), [(100.0, 2.0), (-100.0, -2.0)])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_continuous_action_stays_within_its_bounds(bias: float, bound: float, deterministic: bool) -> None:
    model = make_model("Pendulum-v1")
    with torch.no_grad():
        model.policy.get_parameter("action_net.bias").fill_(bias)
    assert infer(serve_model(model), [1.0, 0.0, 0.0], deterministic).action == [bound]


def test_drawn_continuous_actions_differ() -> None:
    model = serve_model(make_model("Pendulum-v1"))
    actions = [infer(model, [1.0, 0.0, 0.0], deterministic=False).action for _ in range(4)]
    assert len({str(action) for action in actions}) == 4


def test_a_discrete_observation_is_one_integer() -> None:
    model = make_opinionated_model("FrozenLake-v1")
    for state in range(16):
        answer = infer(serve_model(model), state, deterministic=True)
        assert answer.action_probs == pytest.approx(compute_torch_probs(model, state), abs=1e-5)


@pytest.mark.parametrize("observation", [16, -1, 10**30, 3.0, [3], [[3]], []])
def test_a_discrete_observation_out_of_its_space_is_refused_with_the_space(observation: Any) -> None:
    with pytest.raises(InvalidRequestError, match="one integer from 0 to 15"):
        infer(serve_model(make_model("FrozenLake-v1")), observation, deterministic=True)


@pytest.mark.parametrize(
    ("observation", "shape"),
    [
        (0.0, r"\[\]"),
        ([], r"\[0\]"),
        ([0.0] * 3, r"\[3\]"),
        ([0.0] * 5, r"\[5\]"),
        ([[0.0] * 4], r"\[1, 4\]"),
        ([[0.0], [0.0], [0.0], [0.0]], r"\[4, 1\]"),
    ],
)
def test_a_wrong_shape_is_refused_with_both_shapes(observation: Any, shape: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"of shape \[4\], but {shape} was given"):
        infer(serve_model(make_model("CartPole-v1")), observation, deterministic=True)


def test_observations_of_more_dimensions_are_taken_whole() -> None:
    class GridEnv(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1.0, 1.0, (2, 3), np.float32)
        action_space = spaces.Discrete(2)
        capture_state = restore_state = staticmethod(lambda *_: None)

    model = GRPO("MlpPolicy", GridEnv(), n_steps=64, seed=0, horizon=16)
    observation = [[0.1, 0.2, 0.3], [-0.4, -0.5, 0.6]]
    answer = infer(serve_model(model), observation, deterministic=True)
    assert answer.action_probs == pytest.approx(compute_torch_probs(model, observation), abs=1e-5)


def test_numbers_too_large_for_the_network_are_refused_and_never_answered_with_nan() -> None:
    model = make_model("CartPole-v1")
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.fill_(3e38)
    with pytest.raises(InvalidRequestError, match="too large"):
        infer(serve_model(model), [3e38, 3e38, 3e38, 3e38], deterministic=True)


def test_the_largest_finite_observation_is_answered_with_finite_numbers() -> None:
    answer = infer(serve_model(make_model("CartPole-v1")), [3.4e38, -3.4e38, 10**38, 0], deterministic=True)
    assert np.isfinite(answer.value)
    assert answer.action_probs is not None
    assert np.isfinite(answer.action_probs).all()
