"""The NumPy actor against SB3's own policy, and its promise never to change."""

import copy
import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo import GRPO
from grpo_core.actor.actor import ACTIVATIONS, Actor, Decision
from grpo_core.actor.distributions import Gaussian
from grpo_core.actor.normalization import ObservationStatistics
from grpo_core.actor.single import SingleActor
from grpo_core.options.policies import POLICIES, get_policy_name
from grpo_core.saving.model_state import get_weights
from grpo_core.spaces import UnsupportedSpaceError, pack

BOX = spaces.Box(-2.0, 2.0, (3,))
WIDE_BOX = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
INTEGER_BOX = spaces.Box(0, 9, (4,), np.int64)
STATES = spaces.Discrete(5)
DIALS = spaces.MultiDiscrete([3, 2, 4])
FLAGS = spaces.MultiBinary(4)
FLAG_GRID = spaces.MultiBinary((2, 3))
SMALL_IMAGE = spaces.Box(0, 255, (2, 3, 4), np.uint8)  # too small for convolutions
IMAGE = spaces.Box(0, 255, (2, 37, 44), np.uint8)
FLOAT_IMAGE = spaces.Box(-1.0, 1.0, (1, 40, 36))
EVERYTHING = spaces.Dict(
    {"pixels": IMAGE, "speed": WIDE_BOX, "place": STATES, "dials": DIALS, "flags": FLAG_GRID, "camera": FLOAT_IMAGE}
)
CHOICE = spaces.Discrete(4)
KNOBS = spaces.MultiDiscrete([3, 2, 4])
SWITCHES = spaces.MultiBinary(3)
TORQUE = spaces.Box(np.array([-0.5, -1.0], np.float32), np.array([0.5, 2.0], np.float32))
GRID = spaces.Box(-1.0, 1.0, (2, 2))
SCALAR = spaces.Box(np.float32(-1.0), np.float32(1.0), ())
ACTION_SPACES = [CHOICE, KNOBS, SWITCHES, TORQUE, GRID, SCALAR]

NET_ARCHS: list[Any] = [[16], [8, 4], {"pi": [8, 4], "vf": [5]}, {"pi": [], "vf": [3, 3, 3]}, []]


def build_policy(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    net_arch: Any = None,
    activation: str = "Tanh",
    policy: str = "MlpPolicy",
    **policy_kwargs: Any,
) -> ActorCriticPolicy:
    """An SB3 policy with large random weights: its initial ones are too small to tell mistakes apart."""
    policy_kwargs |= {
        "net_arch": [8] if net_arch is None else net_arch,
        "activation_fn": getattr(torch.nn, activation),
    }
    built = POLICIES[policy](observation_space, action_space, lambda _: 1e-3, **policy_kwargs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            # The more inputs a unit has, the smaller its weights, or its outputs would be too large to compare.
            n_inputs = max(1, parameter[0].numel())
            scale = 0.7 if n_inputs < 32 else 2.0 / np.sqrt(n_inputs)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return built


def to_actor(policy: ActorCriticPolicy, normalization: ObservationStatistics | None = None) -> Actor:
    network = {
        "policy": get_policy_name(type(policy)),
        "activation": policy.activation_fn.__name__,
        "share_features_extractor": policy.share_features_extractor,
        "normalize_images": policy.normalize_images,
        "features_extractor_kwargs": policy.features_extractor_kwargs,
    }
    return Actor.from_weights(
        policy.observation_space, policy.action_space, network, get_weights(policy), normalization
    )


def draw_observations(space: spaces.Space[Any], n: int = 32) -> Any:
    space.seed(1)
    samples: Any = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def to_tensor(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: torch.as_tensor(array) for key, array in observations.items()}
    return torch.as_tensor(observations)


def list_distributions(policy: ActorCriticPolicy, observations: Any) -> list[Any]:
    """Torch's own distributions: one, or one per component of a MultiDiscrete action."""
    with torch.no_grad():
        distribution: Any = policy.get_distribution(to_tensor(observations)).distribution
    return distribution if isinstance(distribution, list) else [distribution]


def assert_same_probs(policy: ActorCriticPolicy, probs: Any, observations: Any) -> None:
    if isinstance(policy.action_space, spaces.Box):
        assert probs is None
        return
    components = probs if isinstance(policy.action_space, spaces.MultiDiscrete) else [probs]
    for component, distribution in zip(components, list_distributions(policy, observations), strict=True):
        np.testing.assert_allclose(component, distribution.probs.numpy(), atol=1e-5)


def assert_same_policy(policy: ActorCriticPolicy, n: int = 32) -> None:
    """Compare most likely actions, distributions, log probabilities and values on random observations."""
    actor, observations = to_actor(policy), draw_observations(policy.observation_space, n)
    with torch.no_grad():
        values = policy.predict_values(to_tensor(observations)).flatten().numpy()
        distribution: Any = policy.get_distribution(to_tensor(observations))
    predicted, _ = policy.predict(observations, deterministic=True)
    best = actor.best_actions(observations)
    np.testing.assert_allclose(actor.clip_actions(best), predicted, atol=1e-5)
    np.testing.assert_allclose(actor.values(observations), values, rtol=1e-5, atol=1e-5)
    assert_same_probs(policy, actor.action_probs(observations), observations)
    if isinstance(policy.action_space, spaces.Box):
        np.testing.assert_allclose(best.reshape(n, -1), distribution.distribution.mean.numpy(), rtol=1e-5, atol=1e-5)
    actions, log_prob = actor.sample_actions(observations, np.random.default_rng(0))
    # SB3 sees the actions of a batch as one row of numbers each.
    rows = (
        torch.as_tensor(actions)
        if isinstance(policy.action_space, spaces.Discrete)
        else torch.as_tensor(actions.reshape(n, -1))
    )
    with torch.no_grad():
        expected_log_prob = distribution.log_prob(
            rows.float() if isinstance(policy.action_space, spaces.MultiBinary) else rows
        )
    assert actions.shape == (n, *(policy.action_space.shape or ()))
    np.testing.assert_allclose(log_prob, expected_log_prob.numpy(), rtol=1e-5, atol=2e-5)
    decision = actor.act(observations, True, np.random.default_rng(0))
    np.testing.assert_allclose(decision.actions, predicted, atol=1e-5)
    np.testing.assert_allclose(decision.values, values, rtol=1e-5, atol=1e-5)
    assert_same_probs(policy, decision.probs, observations)
    drawn = actor.act(observations, False, np.random.default_rng(0)).actions
    np.testing.assert_array_equal(drawn, actor.clip_actions(actions))


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


@pytest.mark.parametrize(
    "observation_space", [BOX, WIDE_BOX, INTEGER_BOX, STATES, DIALS, FLAGS, FLAG_GRID, SMALL_IMAGE], ids=str
)
@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
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


@pytest.mark.parametrize(
    ("probs", "listed", "is_finite"),
    [
        (None, [None, None], [True, True]),
        (
            np.array([[0.25, 0.75], [np.nan, 1.0]]),
            [[0.25, 0.75], [pytest.approx(np.nan, nan_ok=True), 1.0]],
            [True, False],
        ),
        (
            [np.array([[1.0], [0.5]]), np.array([[0.5, 0.5], [np.inf, 0.0]])],
            [[[1.0], [0.5, 0.5]], [[0.5], [np.inf, 0.0]]],
            [True, False],
        ),
    ],
)
def test_a_decision_lists_its_probabilities_and_its_finite_choices(probs: Any, listed: Any, is_finite: Any) -> None:
    decision = Decision(np.array([[0], [1]]), probs, np.array([np.nan, 0.0], np.float32))  # whatever its values
    assert decision.list_probs() == listed
    assert decision.find_finite_choices().tolist() == is_finite


def test_an_action_that_is_not_finite_is_found() -> None:
    decision = Decision(np.array([[0.0, np.inf], [1.0, 2.0]]), None, np.zeros(2, np.float32))
    assert decision.find_finite_choices().tolist() == [False, True]


def test_parameters_are_counted() -> None:
    actor = to_actor(build_policy(spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(2), [2]))
    # Policy 4 -> 2 -> 2 and value network 4 -> 2 -> 1, weights and biases.
    assert actor.n_parameters == (8 + 2) + (4 + 2) + (8 + 2) + (2 + 1)


def test_the_deviations_of_continuous_actions_count_as_parameters() -> None:
    policy = build_policy(spaces.Box(-1.0, 1.0, (4,)), spaces.Box(-1.0, 1.0, (3,)), [2])
    assert to_actor(policy).n_parameters == sum(parameter.numel() for parameter in policy.parameters())


def test_every_array_is_read_only_and_every_attribute_fixed() -> None:
    actor = to_actor(build_policy(IMAGE, TORQUE, policy="CnnPolicy"))
    assert isinstance(actor.distribution, Gaussian)
    arrays = [actor.distribution.log_std, *actor.policy_extractor.arrays]
    arrays += [array for layer in actor.policy_layers + actor.value_layers for array in layer]
    assert len(arrays) == 9 + 8
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


POLICIES_AND_SPACES: dict[str, tuple[str, spaces.Space[Any], dict[str, Any]]] = {
    "cnn": ("CnnPolicy", IMAGE, {}),
    "cnn of 7 features": ("CnnPolicy", IMAGE, {"features_extractor_kwargs": {"features_dim": 7}}),
    "cnn, unscaled": ("CnnPolicy", IMAGE, {"normalize_images": False}),
    "cnn on floats": ("CnnPolicy", FLOAT_IMAGE, {"normalize_images": False}),
    "cnn on floats, scaled if they were not": (
        "CnnPolicy",
        FLOAT_IMAGE,
        {"features_extractor_kwargs": {"normalized_image": True}},
    ),
    "dict": ("MultiInputPolicy", EVERYTHING, {}),
    "dict, every image convolved": ("MultiInputPolicy", EVERYTHING, {"normalize_images": False}),
    "dict of 5 features": ("MultiInputPolicy", EVERYTHING, {"features_extractor_kwargs": {"cnn_output_dim": 5}}),
    "dict without images": ("MultiInputPolicy", spaces.Dict({"b": BOX, "a": STATES}), {}),
    "image in a row": ("MlpPolicy", SMALL_IMAGE, {"normalize_images": False}),
}


@pytest.mark.parametrize("name", POLICIES_AND_SPACES)
@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_every_policy_equals_sb3s(name: str, share_features_extractor: bool) -> None:
    policy, space, policy_kwargs = POLICIES_AND_SPACES[name]
    kwargs = copy.deepcopy(policy_kwargs) | {"share_features_extractor": share_features_extractor}
    assert_same_policy(build_policy(space, CHOICE, policy=policy, **kwargs), n=6)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
@pytest.mark.parametrize("net_arch", [[], {"pi": [6], "vf": [5, 4]}], ids=str)
def test_every_action_space_and_net_arch_equal_sb3s_after_convolutions(
    action_space: spaces.Space[Any], net_arch: Any
) -> None:
    assert_same_policy(build_policy(IMAGE, action_space, net_arch, "ReLU", policy="CnnPolicy"), n=6)
    assert_same_policy(build_policy(EVERYTHING, action_space, net_arch, "ELU", policy="MultiInputPolicy"), n=6)


def test_the_usual_image_is_84_pixels_wide_and_has_four_channels() -> None:
    policy = build_policy(spaces.Box(0, 255, (4, 84, 84), np.uint8), CHOICE, [], policy="CnnPolicy")
    assert_same_policy(policy, n=5)
    # Convolutions of 4*32 8x8, 32*64 4x4 and 64*64 3x3 filters, 7*7 pixels of 64 features to 512, and the two heads.
    n_parameters = (8192 + 32) + (32_768 + 64) + (36_864 + 64) + (1_605_632 + 512) + (2048 + 4) + (512 + 1)
    assert to_actor(policy).n_parameters == n_parameters


def test_an_extractor_of_the_value_networks_own_is_counted() -> None:
    shared, apart = (
        to_actor(build_policy(IMAGE, CHOICE, [], policy="CnnPolicy", share_features_extractor=share))
        for share in (True, False)
    )
    assert apart.n_parameters - shared.n_parameters == sum(array.size for array in shared.policy_extractor.arrays)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 9])
def test_images_are_answered_alike_whatever_their_number(batch_size: int) -> None:
    actor = to_actor(build_policy(IMAGE, CHOICE, [], policy="CnnPolicy"))
    images = draw_observations(IMAGE, 9)
    together = actor.action_probs(images)
    np.testing.assert_allclose(actor.action_probs(images[:batch_size]), together[:batch_size], atol=1e-6)


def test_packed_observations_are_taken_like_a_dict_of_arrays() -> None:
    actor = to_actor(build_policy(EVERYTHING, CHOICE, policy="MultiInputPolicy"))
    observations = draw_observations(EVERYTHING, 6)
    packed = pack(EVERYTHING, observations)
    assert packed.shape == (6,)
    np.testing.assert_array_equal(actor.action_probs(packed), actor.action_probs(observations))
    np.testing.assert_allclose(actor.values(packed[2:4]), actor.values(observations)[2:4], atol=1e-6)


@pytest.mark.parametrize(("space", "observation"), [(STATES, 5), (STATES, -1), (DIALS, [0, 2, 0]), (DIALS, [-1, 0, 0])])
def test_an_observation_outside_its_choices_is_refused(space: spaces.Space[Any], observation: Any) -> None:
    with pytest.raises(ValueError, match="lies outside them"):
        to_actor(build_policy(space, CHOICE)).values(np.array([observation]))


def draw_masks(space: spaces.Space[Any], n: int, seed: int) -> Any:
    """Random masks that leave every choice something."""
    rng = np.random.default_rng(seed)
    groups = {"Discrete": [4], "MultiDiscrete": [3, 2, 4], "MultiBinary": [2, 2, 2]}[type(space).__name__]
    columns = []
    for n_choices in groups:
        mask = rng.random((n, n_choices)) < 0.5
        mask[np.arange(n), rng.integers(n_choices, size=n)] = True
        columns.append(mask)
    return np.concatenate(columns, axis=1)


def compute_masked_probs(space: spaces.Space[Any], probs: Any, masks: Any) -> list[Any]:
    """Leave out what is masked and divide by what is left, one row and choice at a time."""
    if isinstance(space, spaces.MultiBinary):
        components = [np.stack([1 - probs[:, i], probs[:, i]], axis=1) for i in range(probs.shape[1])]
    else:
        components = probs if isinstance(space, spaces.MultiDiscrete) else [probs]
    masked, start = [], 0
    for component in components:
        width = component.shape[1]
        rows = []
        for row, flags in zip(component, masks[:, start : start + width], strict=True):
            allowed = [float(p) if flag else 0.0 for p, flag in zip(row, flags, strict=True)]
            rows.append([p / sum(allowed) for p in allowed])
        masked.append(np.array(rows))
        start += width
    return masked


@pytest.mark.parametrize("space", [CHOICE, KNOBS, SWITCHES], ids=str)
def test_masked_actions_are_impossible_and_the_others_keep_their_proportions(space: spaces.Space[Any]) -> None:
    actor, n = to_actor(build_policy(BOX, space)), 64
    observations, masks = draw_observations(BOX, n), draw_masks(space, n, 0)
    expected = compute_masked_probs(space, actor.action_probs(observations), masks)
    probs = actor.action_probs(observations, masks)
    if isinstance(space, spaces.MultiBinary):
        components = [np.stack([1 - probs[:, i], probs[:, i]], axis=1) for i in range(3)]
    else:
        components = probs if isinstance(space, spaces.MultiDiscrete) else [probs]
    best = actor.best_actions(observations, masks).reshape(n, -1)
    for i, (component, right) in enumerate(zip(components, expected, strict=True)):
        np.testing.assert_allclose(component, right, atol=1e-5)
        assert ((component == 0) == (right == 0)).all()
        assert (best[:, i] == right.argmax(axis=1)).all()
    for seed in range(20):
        actions, log_prob = actor.sample_actions(observations, np.random.default_rng(seed), masks)
        chosen = [right[np.arange(n), actions.reshape(n, -1)[:, i]] for i, right in enumerate(expected)]
        np.testing.assert_allclose(log_prob, np.log(np.prod(chosen, axis=0)), atol=1e-4)
    decision = actor.act(observations, True, np.random.default_rng(0), masks)
    np.testing.assert_array_equal(decision.actions.reshape(n, -1), best)


@pytest.mark.parametrize(("space", "only"), [(CHOICE, 2), (KNOBS, [1, 0, 3]), (SWITCHES, [1, 0, 1])], ids=str)
def test_the_only_action_left_is_taken_for_certain(space: spaces.Space[Any], only: Any) -> None:
    actor = to_actor(build_policy(BOX, space))
    sizes = {"Discrete": [4], "MultiDiscrete": [3, 2, 4], "MultiBinary": [2, 2, 2]}[type(space).__name__]
    mask = np.concatenate([np.arange(n) == i for n, i in zip(sizes, np.atleast_1d(only), strict=True)])
    observations = draw_observations(BOX, 200)
    actions, log_prob = actor.sample_actions(observations, np.random.default_rng(0), np.tile(mask, (200, 1)))
    assert (actions == only).all()
    assert (log_prob == 0).all()


@pytest.mark.parametrize("space", [CHOICE, KNOBS, SWITCHES], ids=str)
def test_a_mask_that_leaves_nothing_is_refused_with_its_row(space: spaces.Space[Any]) -> None:
    actor, masks = to_actor(build_policy(BOX, space)), draw_masks(space, 5, 0)
    masks[3, -4 if space is not SWITCHES else -2 :] = False
    with pytest.raises(ValueError, match=r"action_masks row 3 .* allows no action: every choice must leave one open"):
        actor.sample_actions(draw_observations(BOX, 5), np.random.default_rng(0), masks)


def test_a_mask_of_another_shape_or_for_a_box_is_refused() -> None:
    actor, observations = to_actor(build_policy(BOX, SWITCHES)), draw_observations(BOX, 5)
    with pytest.raises(ValueError, match=r"shape \(5, 3\) do not fit MultiBinary\(3\): .* need shape \(5, 6\)"):
        actor.best_actions(observations, np.ones((5, 3)))
    with pytest.raises(UnsupportedSpaceError, match="only discrete choices can be masked"):
        to_actor(build_policy(BOX, TORQUE)).best_actions(observations, np.ones((5, 2)))


def test_switches_are_drawn_as_often_as_their_probabilities_say() -> None:
    actor, n_draws = to_actor(build_policy(BOX, SWITCHES)), 40_000
    observations = np.repeat(draw_observations(BOX, 1), n_draws, axis=0)
    actions, _ = actor.sample_actions(observations, np.random.default_rng(0))
    probs = actor.action_probs(observations[:1])[0]
    assert (np.abs(actions.mean(axis=0) - probs) < 5 * np.sqrt(probs * (1 - probs) / n_draws)).all()
    np.testing.assert_allclose(np.corrcoef(actions.T), np.eye(3), atol=0.03)


def test_an_actor_with_statistics_takes_raw_observations() -> None:
    rng = np.random.default_rng(0)
    statistics = ObservationStatistics(rng.normal(size=3), rng.uniform(1, 2, 3), clip_obs=1.0, epsilon=0.1)
    policy = build_policy(BOX, CHOICE)
    raw = draw_observations(BOX)
    normalized = np.clip((raw - statistics.mean) / np.sqrt(statistics.var + 0.1), -1, 1).astype(np.float32)  # type: ignore[operator]  # no Dict
    assert (np.abs(normalized) == 1).any()
    np.testing.assert_array_equal(
        to_actor(policy, statistics).action_probs(raw), to_actor(policy).action_probs(normalized)
    )
    np.testing.assert_array_equal(to_actor(policy, statistics).values(raw), to_actor(policy).values(normalized))


def test_a_policy_is_served_without_torch() -> None:
    code = "import sys, grpo_core.saving.model_file, grpo_core.spaces; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_log_probabilities_are_those_of_the_probabilities_and_exact_where_these_are_0() -> None:
    model = GRPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, seed=0)
    observations = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    actor = model.make_actor()
    np.testing.assert_allclose(np.exp(actor.log_probs(observations)), actor.action_probs(observations), rtol=1e-6)
    masks = np.array([[True, False]] * 8)
    assert (actor.log_probs(observations, masks) == [0.0, -np.inf]).all()
    assert isinstance(model.policy.action_net, torch.nn.Linear)
    with torch.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(torch.tensor([0.0, 300.0]))
    assert model.make_actor().log_probs(observations).tolist() == [[-300.0, 0.0]] * 8


def test_observations_of_the_wrong_kind_are_refused_with_the_remedy() -> None:
    batch = draw_observations(BOX)
    plain, combined = (
        to_actor(build_policy(BOX, CHOICE)),
        to_actor(build_policy(EVERYTHING, CHOICE, policy="MultiInputPolicy")),
    )
    images = to_actor(build_policy(IMAGE, CHOICE, policy="CnnPolicy"))
    for actor in (plain, images):
        with pytest.raises(TypeError, match=r"a dict with keys \['speed'\], .* pass an array"):
            actor.values({"speed": batch})
    with pytest.raises(TypeError, match=r"one array of shape .* pass a dict of arrays with the keys \['camera'"):
        combined.values(batch)


def test_statistics_of_another_kind_than_the_observations_are_refused() -> None:
    moment = np.ones(3)
    with pytest.raises(TypeError, match=r"a dict with keys \['speed'\], .* pass an array"):
        ObservationStatistics(moment, moment, 10.0, 1e-8).apply({"speed": moment})
    with pytest.raises(TypeError, match=r"one array of shape \(3,\), .* pass a dict"):
        ObservationStatistics({"speed": moment}, {"speed": moment}, 10.0, 1e-8).apply(moment)


def test_only_single_choices_have_a_log_probability_each() -> None:
    with pytest.raises(ValueError, match=r"is not Discrete, .* take action_probs"):
        to_actor(build_policy(BOX, KNOBS)).log_probs(draw_observations(BOX))


def test_one_observation_of_large_numbers_is_normalised_before_it_is_rounded() -> None:
    space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    policy = build_policy(space, CHOICE)
    moments = np.array([1.7e9, 0.0]), np.array([100.0, 1.0])  # a time in seconds, whose float32 neighbours are 128 away
    actor = to_actor(policy, ObservationStatistics(*moments, clip_obs=10.0, epsilon=0.0))
    single = SingleActor(actor)
    for seconds in (1.7e9 - 15.0, 1.7e9 + 15.0):
        choice = single.act([seconds, 0.5], True, np.random.default_rng(0))
        assert choice is not None
        expected = actor.action_probs(np.array([[seconds, 0.5]]))
        np.testing.assert_allclose(np.array(choice.probs), expected[0], rtol=1e-4)


def test_a_policy_that_is_sure_acts_where_numpy_raises_errors() -> None:
    model = GRPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    weights = model.policy.state_dict()
    model.policy.load_state_dict({**weights, "action_net.weight": 1e7 * weights["action_net.weight"]})
    observations = np.eye(4, dtype=np.float32)
    with np.errstate(all="raise"):
        model.make_actor().sample_actions(observations, np.random.default_rng(0))
        assert set(np.ravel(model.make_actor().action_probs(observations))) == {0.0, 1.0}
