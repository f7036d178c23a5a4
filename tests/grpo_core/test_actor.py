"""The NumPy actor against SB3's own policy, and its promise never to change."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo import GRPO
from grpo_core.actor import ACTIVATIONS, Actor, UnsupportedSpaceError, count_inputs, count_outputs

BOX = spaces.Box(-2.0, 2.0, (3,))
WIDE_BOX = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
INTEGER_BOX = spaces.Box(0, 9, (4,), np.int64)
STATES = spaces.Discrete(5)
CHOICE = spaces.Discrete(4)
TORQUE = spaces.Box(np.array([-0.5, -1.0], np.float32), np.array([0.5, 2.0], np.float32))
GRID = spaces.Box(-1.0, 1.0, (2, 2))

NET_ARCHS: list[Any] = [[16], [8, 4], {"pi": [8, 4], "vf": [5]}, {"pi": [], "vf": [3, 3, 3]}, []]


def build_policy(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    net_arch: Any = None,
    activation: str = "Tanh",
) -> ActorCriticPolicy:
    """An SB3 policy with large random weights: its initial ones are too small to tell mistakes apart."""
    policy = ActorCriticPolicy(
        observation_space,
        action_space,
        lambda _: 1e-3,
        net_arch=[8] if net_arch is None else net_arch,
        activation_fn=getattr(torch.nn, activation),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return policy


def to_actor(policy: ActorCriticPolicy) -> Actor:
    weights = {name: tensor.detach().numpy() for name, tensor in policy.state_dict().items()}
    return Actor.from_weights(policy.observation_space, policy.action_space, policy.activation_fn.__name__, weights)


def draw_observations(space: spaces.Space[Any], n: int = 32) -> Any:
    space.seed(1)
    return np.stack([space.sample() for _ in range(n)])


def to_tensor(observations: Any) -> torch.Tensor:
    return torch.as_tensor(observations)


def assert_same_policy(policy: ActorCriticPolicy) -> None:
    """Compare most likely actions, distributions, log probabilities and values on random observations."""
    actor, observations = to_actor(policy), draw_observations(policy.observation_space)
    with torch.no_grad():
        distribution: Any = policy.get_distribution(to_tensor(observations)).distribution
        values = policy.predict_values(to_tensor(observations)).flatten().numpy()
    predicted, _ = policy.predict(observations, deterministic=True)
    np.testing.assert_allclose(actor.clip_actions(actor.best_actions(observations)), predicted, atol=1e-5)
    np.testing.assert_allclose(actor.values(observations), values, atol=1e-5)
    probs = actor.action_probs(observations)
    rows_shape: tuple[int, ...] = (len(observations),)
    if isinstance(policy.action_space, spaces.Discrete):
        assert probs is not None
        np.testing.assert_allclose(probs, distribution.probs.numpy(), atol=1e-6)
    else:
        assert probs is None
        rows_shape = (len(observations), -1)
        np.testing.assert_allclose(
            actor.best_actions(observations).reshape(len(observations), -1), distribution.mean.numpy(), atol=1e-5
        )
    actions, log_prob = actor.sample_actions(observations, np.random.default_rng(0))
    with torch.no_grad():
        distribution = policy.get_distribution(to_tensor(observations))
        # SB3 sees the actions of a batch as one row of numbers each.
        expected_log_prob = distribution.log_prob(torch.as_tensor(actions).reshape(rows_shape))
    assert actions.shape == (len(observations), *(policy.action_space.shape or ()))
    np.testing.assert_allclose(log_prob, expected_log_prob.numpy(), atol=1e-4)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("action_space", [CHOICE, TORQUE], ids=["Discrete", "Box"])
def test_every_activation_equals_torchs(activation: str, action_space: spaces.Space[Any]) -> None:
    assert_same_policy(build_policy(BOX, action_space, [16, 16], activation))


def test_the_four_activations_are_supported() -> None:
    assert set(ACTIVATIONS) == {"Tanh", "ReLU", "ELU", "LeakyReLU"}


@pytest.mark.parametrize("net_arch", NET_ARCHS, ids=str)
@pytest.mark.parametrize("action_space", [CHOICE, TORQUE], ids=["Discrete", "Box"])
def test_every_net_arch_equals_sb3s_policy(net_arch: Any, action_space: spaces.Space[Any]) -> None:
    assert_same_policy(build_policy(BOX, action_space, net_arch))


@pytest.mark.parametrize("observation_space", [BOX, WIDE_BOX, INTEGER_BOX, STATES], ids=str)
@pytest.mark.parametrize("action_space", [CHOICE, TORQUE, GRID], ids=str)
def test_every_pair_of_spaces_equals_sb3s_policy(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> None:
    assert_same_policy(build_policy(observation_space, action_space))


def test_actions_are_clipped_to_the_bounds_of_each_dimension() -> None:
    actor = to_actor(build_policy(BOX, TORQUE))
    clipped = actor.clip_actions(np.array([[9.0, 9.0], [-9.0, -9.0], [0.1, 0.2]], np.float32))
    np.testing.assert_array_equal(clipped, np.array([[0.5, 2.0], [-0.5, -1.0], [0.1, 0.2]], np.float32))


def test_discrete_actions_are_drawn_as_often_as_their_probabilities_say() -> None:
    actor, n_draws = to_actor(build_policy(BOX, CHOICE)), 40_000
    observations = np.repeat(draw_observations(BOX, 1), n_draws, axis=0)
    actions, _ = actor.sample_actions(observations, np.random.default_rng(0))
    probs = actor.action_probs(observations[:1])
    assert probs is not None
    frequencies = np.bincount(actions, minlength=4) / n_draws
    assert probs.min() > 0.001, "an action too rare to be counted"
    five_sigma = 5 * np.sqrt(probs[0] * (1 - probs[0]) / n_draws)
    assert (np.abs(frequencies - probs[0]) < five_sigma).all()


def test_box_actions_are_drawn_from_the_gaussian_of_the_policy() -> None:
    policy = build_policy(BOX, TORQUE)
    actor, n_draws = to_actor(policy), 40_000
    observations = np.repeat(draw_observations(BOX, 1), n_draws, axis=0)
    actions, _ = actor.sample_actions(observations, np.random.default_rng(0))
    std = policy.log_std.detach().exp().numpy()
    assert (np.abs(actions.mean(axis=0) - actor.best_actions(observations)[0]) < 5 * std / np.sqrt(n_draws)).all()
    np.testing.assert_allclose(actions.std(axis=0), std, rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(actions.T)[0, 1], 0.0, atol=0.03)


def test_each_observation_of_a_batch_gets_its_own_draw() -> None:
    actor = to_actor(build_policy(BOX, TORQUE))
    actions, _ = actor.sample_actions(np.zeros((5, 3), np.float32), np.random.default_rng(0))
    assert len(np.unique(actions[:, 0])) == 5


def test_draws_are_those_of_the_generator_that_is_handed_in() -> None:
    actor, observations = to_actor(build_policy(BOX, CHOICE)), draw_observations(BOX)
    first, again, other = (actor.sample_actions(observations, np.random.default_rng(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_policy_that_is_certain_neither_overflows_nor_draws_what_it_rules_out() -> None:
    policy = build_policy(BOX, CHOICE, [])
    with torch.no_grad():
        output = policy.action_net
        assert isinstance(output, torch.nn.Linear)
        output.weight.zero_()
        output.bias.copy_(torch.tensor([-1e4, 1e4, -1e4, -1e4]))
    actor, observations = to_actor(policy), draw_observations(BOX, 1000)
    actions, log_prob = actor.sample_actions(observations, np.random.default_rng(0))
    assert (actions == 1).all()
    assert (log_prob == 0).all()
    probs = actor.action_probs(observations)
    assert probs is not None
    assert (probs == np.array([0, 1, 0, 0])).all()


def test_parameters_are_counted() -> None:
    actor = to_actor(build_policy(spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(2), [2]))
    # Policy 4 -> 2 -> 2 and value network 4 -> 2 -> 1, weights and biases.
    assert actor.n_parameters == (8 + 2) + (4 + 2) + (8 + 2) + (2 + 1)


def test_every_array_is_read_only_and_every_attribute_fixed() -> None:
    actor = to_actor(build_policy(BOX, TORQUE))
    assert actor.log_std is not None
    arrays = [actor.log_std, *(array for layer in actor.policy_layers + actor.value_layers for array in layer)]
    assert len(arrays) == 9
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        actor.activation = "ReLU"  # type: ignore[misc]  # what is being tested


def test_training_on_leaves_an_actor_as_it_was() -> None:
    model = GRPO("MlpPolicy", "CartPole-v1", n_steps=32, group_size=2, horizon=16, learning_rate=0.01, seed=0)
    observations = draw_observations(spaces.Box(-1.0, 1.0, (4,)))
    before = model.make_actor()
    probs, values = before.action_probs(observations), before.values(observations)
    assert probs is not None
    model.learn(32)
    np.testing.assert_array_equal(before.action_probs(observations), probs)
    np.testing.assert_array_equal(before.values(observations), values)
    trained = model.make_actor().action_probs(observations)
    assert trained is not None
    assert np.abs(trained - probs).max() > 1e-3


def test_sixteen_threads_get_the_answers_one_thread_gets() -> None:
    actor = to_actor(build_policy(BOX, CHOICE, [64, 64]))
    observations = draw_observations(BOX, 64)

    def answer(i: int) -> tuple[list[float], float, list[int]]:
        one = observations[i : i + 1]
        probs = actor.action_probs(one)
        assert probs is not None
        drawn = actor.sample_actions(np.repeat(one, 20, axis=0), np.random.default_rng(i))[0]
        return probs[0].tolist(), float(actor.values(one)[0]), drawn.tolist()

    alone = [answer(i) for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(answer, list(range(64)) * 5))
    assert together == alone * 5


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a": BOX}),
        spaces.Tuple((STATES, STATES)),
        spaces.MultiDiscrete([2, 2]),
        spaces.MultiBinary(3),
        spaces.Discrete(3, start=1),
    ],
    ids=str,
)
def test_other_observation_spaces_are_refused_with_the_remedy(space: spaces.Space[Any]) -> None:
    with pytest.raises(UnsupportedSpaceError) as refusal:
        count_inputs(space)
    assert str(space) in str(refusal.value)
    assert "use Box, or Discrete starting at 0" in str(refusal.value)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a": TORQUE}),
        spaces.MultiDiscrete([2, 2]),
        spaces.MultiBinary(3),
        spaces.Discrete(3, start=1),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0, 3, (2,), np.int64),
    ],
    ids=str,
)
def test_other_action_spaces_are_refused_with_the_remedy(space: spaces.Space[Any]) -> None:
    with pytest.raises(UnsupportedSpaceError) as refusal:
        count_outputs(space)
    assert str(space) in str(refusal.value)
    assert "use Discrete starting at 0, or a Box of floats with finite bounds" in str(refusal.value)


def test_images_are_refused_because_sb3_scales_them_before_its_network() -> None:
    image = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    with pytest.raises(UnsupportedSpaceError, match="not supported"):
        count_inputs(image)


def test_inputs_and_outputs_are_counted() -> None:
    assert [count_inputs(space) for space in (BOX, WIDE_BOX, STATES)] == [3, 6, 5]
    assert [count_outputs(space) for space in (CHOICE, TORQUE, GRID)] == [4, 2, 4]
