"""Answers equal torch's forward pass of the same network."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Normal

from grpo import GRPO
from grpo_core.actor.actor import Actor
from grpo_core.options.network_json import network_to_json
from grpo_core.options.policies import POLICIES
from grpo_core.saving.model_state import get_weights
from grpo_core.spaces import pack
from service.errors import InvalidRequestError
from service.inference.infer import infer
from service.models.served import ServedModel
from tests.models import make_model

CARTPOLE_OBSERVATIONS = [[0.1, 0.0, 0.05, 0.0], [-2.0, 1.5, -0.2, 3.0], [0, 0, 0, 0], [2.4, -3.0, 0.2, -2.0]]


MEANINGFUL = {"value_check": {"is_meaningful": True, "reward_scale": 1.0}}


def serve_model(model: GRPO, meta: dict[str, Any] = MEANINGFUL) -> ServedModel:
    return ServedModel("m", model.make_numpy_actor(), meta, (0, 0, 0), np.random.default_rng(0))


def make_opinionated_model(env_id: str, seed: int = 0) -> GRPO:
    """A policy with weights large enough to tell its outputs apart; a fresh one hardly prefers any action."""
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
    probs: Any = infer(model, [1.0, 0.0, 1.0, 0.0, 0.5, -0.5], deterministic=True).action_probs
    assert probs is not None
    assert len(probs) == 3
    assert sum(probs) == pytest.approx(1.0, abs=1e-6)


def test_drawn_actions_come_as_often_as_their_probabilities_say() -> None:
    model = serve_model(make_opinionated_model("CartPole-v1"))
    observation = [0.5, 0.2, -0.05, 0.1]
    probs: Any = infer(model, observation, deterministic=False).action_probs
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


@pytest.mark.parametrize(
    "check",
    [
        None,
        {},
        "yes",
        {"is_meaningful": False, "reward_scale": 1.0},
        {"is_meaningful": 1, "reward_scale": 1.0},
        {"is_meaningful": True},
        {"is_meaningful": True, "reward_scale": "1"},
        {"is_meaningful": True, "reward_scale": -1.0},
        {"is_meaningful": True, "reward_scale": 1e300},
        {"is_meaningful": True, "reward_scale": float("nan")},
    ],
)
def test_values_that_nobody_found_meaningful_are_not_shown(check: Any) -> None:
    model = make_opinionated_model("CartPole-v1")
    assert infer(serve_model(model, {"value_check": check}), CARTPOLE_OBSERVATIONS[0], True).value is None


def test_values_are_in_the_units_of_the_rewards() -> None:
    model = make_opinionated_model("CartPole-v1")
    scaled = serve_model(model, {"value_check": {"is_meaningful": True, "reward_scale": 2.5}})
    for observation in CARTPOLE_OBSERVATIONS:
        unscaled = infer(serve_model(model), observation, True).value
        assert unscaled is not None
        assert infer(scaled, observation, True).value == 2.5 * unscaled


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
    with pytest.raises(InvalidRequestError, match=rf"of shape \[4\], but got {shape}"):
        infer(serve_model(make_model("CartPole-v1")), observation, deterministic=True)


def test_observations_of_more_dimensions_are_taken_whole() -> None:
    class GridEnv(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1.0, 1.0, (2, 3), np.float32)
        action_space = spaces.Discrete(2)

    model = GRPO("MlpPolicy", GridEnv(), n_steps=64, seed=0, horizon=16, group_mode="episode")
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
    assert answer.value is not None
    assert np.isfinite(answer.value)
    assert answer.action_probs is not None
    assert np.isfinite(answer.action_probs).all()


CAR = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (1, 36, 36), np.uint8),
        "dials": spaces.MultiDiscrete([3, 2]),
        "flags": spaces.MultiBinary(2),
        "gear": spaces.Discrete(4),
        "speed": spaces.Box(-1.0, 1.0, (2,)),
    }
)


def serve_policy(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> ServedModel:
    """An untrained SB3 policy of the class that fits the spaces."""
    name = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    policy = POLICIES[name](observation_space, action_space, lambda _: 1e-3, ortho_init=False)
    network = network_to_json({}, POLICIES[name])
    actor = Actor.from_weights(observation_space, action_space, network, get_weights(policy))
    return ServedModel("m", actor, MEANINGFUL, (0, 0, 0), np.random.default_rng(0))


def to_plain(observation: Any) -> Any:
    """Convert an observation to what a request's JSON would hold."""
    if isinstance(observation, dict):
        return {key: to_plain(part) for key, part in observation.items()}
    return np.asarray(observation).tolist()


@pytest.mark.parametrize("space", [CAR, *CAR.spaces.values()], ids=str)
@pytest.mark.parametrize("deterministic", [True, False])
def test_every_observation_space_is_answered(space: spaces.Space[Any], deterministic: bool) -> None:
    model = serve_policy(space, spaces.Discrete(3))
    space.seed(0)
    observation = space.sample()
    answer = infer(model, to_plain(observation), deterministic)
    probs = model.actor.action_probs(np.array([pack(space, observation)]))
    assert answer.action_probs == pytest.approx(probs[0].tolist(), abs=1e-6)
    assert answer.action in (0, 1, 2)


def test_an_action_of_several_choices_has_probabilities_per_choice() -> None:
    answer = infer(serve_policy(CAR["speed"], spaces.MultiDiscrete([3, 2])), [0.5, -0.5], deterministic=True)
    assert answer.action_probs is not None
    assert isinstance(answer.action, list)
    for choice, probs, n_choices in zip(answer.action, answer.action_probs, (3, 2), strict=True):
        assert isinstance(probs, list)
        assert len(probs) == n_choices
        assert sum(probs) == pytest.approx(1.0, abs=1e-6)
        assert choice == int(np.argmax(probs))


def test_an_action_of_switches_has_the_probability_of_each() -> None:
    answer = infer(serve_policy(CAR["speed"], spaces.MultiBinary(3)), [0.5, -0.5], deterministic=True)
    assert answer.action_probs is not None
    assert answer.action == [int(isinstance(p, float) and p > 0.5) for p in answer.action_probs]
    assert len(answer.action_probs) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gear": 4}, "key 'gear': this model expects one integer from 0 to 3"),
        ({"speed": [0.0]}, r"key 'speed': this model expects an observation of shape \[2\], but got \[1\]"),
        ({"speed": {"x": 1.0}}, "key 'speed': this model expects numbers without keys"),
        ({"dials": [0, 2]}, r"key 'dials': this model expects integers from 0 to \[2, 1\]"),
        ({"dials": [0, -1]}, "key 'dials': this model expects integers"),
        ({"dials": [0, 1.0]}, "key 'dials': this model expects integers"),
        ({"flags": [0, 2]}, "key 'flags': this model expects integers from 0 to 1"),
        ({"flags": [0, 10**30]}, "key 'flags': this model expects integers from 0 to 1"),
        ({"more": 1}, r"an object with the keys \['camera', 'dials', 'flags', 'gear', 'speed'\] as its observation"),
    ],
    ids=str,
)
def test_a_part_that_does_not_fit_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        infer(serve_policy(CAR, spaces.Discrete(2)), {**to_plain(CAR.sample()), **changes}, deterministic=True)


IMAGE = CAR["camera"]


def test_an_image_with_the_channels_last_is_turned_around() -> None:
    model = serve_policy(spaces.Box(0, 255, (3, 4, 5), np.uint8), spaces.Discrete(3))
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 5))
    as_trained = infer(model, image.tolist(), deterministic=True)
    assert infer(model, image.transpose(1, 2, 0).tolist(), deterministic=True) == as_trained
    with pytest.raises(InvalidRequestError, match=r"of shape \[3, 4, 5\], but "):
        infer(model, image.transpose(2, 1, 0).tolist(), deterministic=True)


@pytest.mark.parametrize("pixel", [0.5, -1, 256, 1.0, 10**30])
def test_pixels_are_bytes(pixel: float) -> None:
    image = [[[pixel] * 36] * 36]
    with pytest.raises(InvalidRequestError, match="integers from 0 to 255 as its observation; do not scale them"):
        infer(serve_policy(IMAGE, spaces.Discrete(2)), image, deterministic=True)


def test_numbers_too_large_for_a_small_float_are_refused() -> None:
    model = serve_policy(spaces.Box(-1.0, 1.0, (2,), np.float16), spaces.Discrete(2))
    with pytest.raises(InvalidRequestError, match="too large"):
        infer(model, [1e6, 0.0], deterministic=True)


MASKED = [
    # Space, mask in one list, mask per component, allowed actions.
    (spaces.Discrete(3), [0, 1, 1], [[0, 1, 1]], [{1, 2}]),
    (spaces.MultiDiscrete([3, 2]), [1, 0, 0, 0, 1], [[1, 0, 0], [0, 1]], [{0}, {1}]),
    (spaces.MultiBinary(2), [1, 0, 0, 1], [[1, 0], [0, 1]], [{0}, {1}]),
    (spaces.MultiBinary(1), [True, True], [[True, True]], [{0, 1}]),
]


@pytest.mark.parametrize(("space", "flat", "nested", "allowed"), MASKED, ids=str)
@pytest.mark.parametrize("deterministic", [True, False])
def test_only_allowed_actions_are_chosen(
    space: spaces.Space[Any], flat: list[Any], nested: list[Any], allowed: list[set[int]], deterministic: bool
) -> None:
    model = serve_policy(CAR["speed"], space)
    answers = [infer(model, [0.5, -0.5], deterministic, masks) for masks in (flat, nested)]
    assert answers[0].action_probs == answers[1].action_probs
    for answer in answers:
        for action, choices in zip(np.atleast_1d(np.array(answer.action)).tolist(), allowed, strict=True):
            assert action in choices


@pytest.mark.parametrize(
    ("space", "masks", "said"),
    [
        (spaces.Discrete(3), [1, 1], "action_masks of 3 flags in one list, or of 3 in one list per component"),
        (spaces.Discrete(3), [1, 1, 1, 1], "of 3 flags"),
        (spaces.Discrete(3), [], "of 3 flags"),
        (spaces.Discrete(3), [[1], [1], [1]], "of 3 flags"),
        (spaces.Discrete(3), [0, 0, 0], "allows no action"),
        (spaces.MultiDiscrete([3, 2]), [1, 1, 1, 1, 1, 1], "of 5 flags in one list, or of 3, 2 in one list per"),
        (spaces.MultiDiscrete([3, 2]), [[1, 1], [1, 1, 1]], "of 3, 2 in one list per component"),
        (spaces.MultiDiscrete([3, 2]), [[1, 1, 1]], "of 3, 2 in one list per component"),
        (spaces.MultiDiscrete([3, 2]), [1, 1, 1, 0, 0], "allows no action"),
        (spaces.MultiBinary(9), [1], r"of 18 flags in one list, or of 2, 2, 2, 2, 2, 2, 2, 2, \.\.\. in one list"),
        (spaces.Box(-1.0, 1.0, (2,)), [1, 1], "only discrete choices can be masked; leave action masks out"),
    ],
    ids=str,
)
def test_masks_that_do_not_fit_are_refused(space: spaces.Space[Any], masks: list[Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        infer(serve_policy(CAR["speed"], space), [0.5, -0.5], True, masks)


def test_keys_are_refused_where_there_are_none_and_missed_where_there_are() -> None:
    with pytest.raises(InvalidRequestError, match="numbers without keys"):
        infer(serve_policy(CAR["speed"], spaces.Discrete(2)), {"speed": [0.0, 0.0]}, deterministic=True)
    with pytest.raises(InvalidRequestError, match="an object with the keys"):
        infer(serve_policy(CAR, spaces.Discrete(2)), [0.0, 0.0], deterministic=True)
