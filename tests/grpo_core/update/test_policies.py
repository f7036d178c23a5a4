"""Policies under action masks, against hand values; their parameters told apart; and copies that stay as they are."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo import GRPO
from grpo_core.options.policies import POLICIES
from grpo_core.spaces import UnsupportedSpaceError
from grpo_core.update.policies import copy_policy, evaluate_actions, get_distribution, predict_masked, split_parameters

PLACE = spaces.Box(-1.0, 1.0, (2,))
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
CAR = spaces.Dict({"speed": PLACE, "camera": IMAGE})
CHOICE = spaces.Discrete(3)
KNOBS = spaces.MultiDiscrete([3, 2])
SWITCHES = spaces.MultiBinary(2)
NOTHING = torch.zeros(1, 2)
LOG_2 = math.log(2.0)


def build(
    action_space: spaces.Space[Any],
    logits: list[float] | None = None,
    observation_space: spaces.Space[Any] = PLACE,
    name: str = "MlpPolicy",
    **policy_kwargs: Any,
) -> ActorCriticPolicy:
    """A policy that has these logits for the observation 0; by default random weights."""
    policy = POLICIES[name](observation_space, action_space, lambda _: 1e-2, **policy_kwargs)
    if logits is not None:
        assert isinstance(policy.action_net, torch.nn.Linear)
        with torch.no_grad():
            policy.action_net.weight.zero_()
            policy.action_net.bias.copy_(torch.tensor(logits))
    return policy


# Probabilities before masking: 1/6, 2/6, 3/6; for knobs also 1/4, 3/4; for switches 1/2 and 4/5 of being 1.
CHOICE_LOGITS = [0.0, LOG_2, math.log(3.0)]
KNOB_LOGITS = [*CHOICE_LOGITS, 0.0, math.log(3.0)]
SWITCH_LOGITS = [0.0, math.log(4.0)]


def entropy(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


@pytest.mark.parametrize(
    ("mask", "probabilities"),
    [
        ([1, 1, 1], [1 / 6, 2 / 6, 3 / 6]),
        ([1, 0, 1], [1 / 4, 0.0, 3 / 4]),
        ([0, 1, 1], [0.0, 2 / 5, 3 / 5]),
        ([0, 1, 0], [0.0, 1.0, 0.0]),
    ],
)
def test_a_masked_choice_has_probability_0_and_the_others_share_the_rest(
    mask: list[int], probabilities: list[float]
) -> None:
    policy, masks = build(CHOICE, CHOICE_LOGITS), torch.tensor([mask]).bool()
    distribution = get_distribution(policy, NOTHING, masks)
    assert distribution.distribution.probs.tolist() == [pytest.approx(probabilities)]  # type: ignore[union-attr]
    for action, probability in enumerate(probabilities):
        _, log_prob, spread = evaluate_actions(policy, NOTHING, torch.tensor([action]), masks)
        assert spread.item() == pytest.approx(entropy(*probabilities), abs=1e-6)
        if probability > 0:
            assert log_prob.item() == pytest.approx(math.log(probability), abs=1e-6)
        else:
            assert log_prob.exp().item() == 0.0
            assert math.isfinite(log_prob.item())


def test_every_component_is_masked_by_its_own_flags() -> None:
    policy = build(KNOBS, KNOB_LOGITS)
    observations = torch.zeros(2, 2)
    masks = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 0, 1]]).bool()
    values, log_prob, spread = evaluate_actions(policy, observations, torch.tensor([[2, 0], [1, 1]]), masks)
    assert log_prob.tolist() == pytest.approx([math.log(3 / 4) + math.log(1 / 4), math.log(2 / 6)])
    expected = [entropy(1 / 4, 3 / 4) + entropy(1 / 4, 3 / 4), entropy(1 / 6, 2 / 6, 3 / 6)]
    assert spread.tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(values, policy.predict_values(observations).flatten())
    _, ruled_out, _ = evaluate_actions(policy, observations, torch.tensor([[1, 0], [1, 0]]), masks)
    assert ruled_out.exp().tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("mask", "probabilities_of_1"),
    [
        ([1, 1, 1, 1], [1 / 2, 4 / 5]),
        ([1, 0, 1, 1], [0.0, 4 / 5]),
        ([1, 1, 0, 1], [1 / 2, 1.0]),
        ([0, 1, 1, 0], [1.0, 0.0]),
    ],
)
def test_a_digit_is_masked_by_whether_it_may_be_0_and_may_be_1(
    mask: list[int], probabilities_of_1: list[float]
) -> None:
    policy, masks = build(SWITCHES, SWITCH_LOGITS), torch.tensor([mask]).bool()
    spread = sum(entropy(p, 1 - p) for p in probabilities_of_1)
    for action in ([0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]):
        of_digits = [p if digit else 1 - p for p, digit in zip(probabilities_of_1, action, strict=True)]
        _, log_prob, measured = evaluate_actions(policy, NOTHING, torch.tensor([action]), masks)
        assert log_prob.exp().item() == pytest.approx(math.prod(of_digits), abs=1e-6)
        assert measured.item() == pytest.approx(spread, abs=1e-6)


@pytest.mark.parametrize(
    ("action_space", "actions", "n_bits"),
    [
        (CHOICE, torch.tensor([0, 2]), 3),
        (KNOBS, torch.tensor([[0, 1], [2, 0]]), 5),
        (SWITCHES, torch.tensor([[0.0, 1.0], [1.0, 1.0]]), 4),
    ],
    ids=str,
)
def test_without_a_ban_masks_change_nothing(
    action_space: spaces.Space[Any], actions: torch.Tensor, n_bits: int
) -> None:
    policy, observations = build(action_space), torch.randn(2, 2)
    for free, masked in zip(
        evaluate_actions(policy, observations, actions, None),
        evaluate_actions(policy, observations, actions, torch.ones(2, n_bits).bool()),
        strict=True,
    ):
        assert free.shape == (2,)
        torch.testing.assert_close(free, masked)


def test_no_gradient_flows_into_what_is_ruled_out() -> None:
    policy = build(CHOICE, CHOICE_LOGITS)
    _, log_prob, spread = evaluate_actions(policy, NOTHING, torch.tensor([2]), torch.tensor([[True, False, True]]))
    torch.autograd.backward(log_prob + spread)
    assert isinstance(policy.action_net, torch.nn.Linear)
    gradient = policy.action_net.bias.grad
    assert gradient is not None
    assert gradient[1] == 0
    assert (gradient[[0, 2]] != 0).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("action_space", "logits", "masks", "expected"),
    [
        (CHOICE, CHOICE_LOGITS, [1, 1, 0], 1),
        (KNOBS, KNOB_LOGITS, [1, 1, 0, 1, 0], [1, 0]),
        (SWITCHES, SWITCH_LOGITS, [0, 1, 1, 0], [1, 0]),
    ],
    ids=str,
)
def test_prediction_takes_the_likeliest_legal_action_of_one_or_several(
    action_space: spaces.Space[Any], logits: list[float], masks: list[int], expected: Any
) -> None:
    policy = build(action_space, logits)
    one = predict_masked(policy, np.zeros(2, np.float32), np.array(masks), deterministic=True)
    assert one.shape == action_space.shape
    assert one.tolist() == expected
    several = predict_masked(policy, np.zeros((3, 2), np.float32), np.array([masks] * 3), deterministic=True)
    assert several.tolist() == [expected] * 3


@pytest.mark.parametrize(("action_space", "n_bits"), [(CHOICE, 3), (KNOBS, 5), (SWITCHES, 4)], ids=str)
def test_drawn_predictions_are_legal(action_space: spaces.Space[Any], n_bits: int) -> None:
    policy = build(action_space)
    masks = np.ones((256, n_bits), np.bool_)
    masks[:, 0] = False  # choice 0, or digit 0 being 0
    actions = predict_masked(policy, np.zeros((256, 2), np.float32), masks, deterministic=False)
    assert (actions.reshape(256, -1)[:, 0] > 0).all()
    assert all(action_space.contains(action) for action in actions.astype(action_space.dtype or np.int64))
    assert len(np.unique(actions, axis=0)) > 1


def test_masks_of_the_wrong_shape_or_of_a_box_are_refused() -> None:
    with pytest.raises(ValueError, match=r"action_masks of shape \(1, 4\) do not fit Discrete\(3\)"):
        predict_masked(build(CHOICE), np.zeros(2, np.float32), np.ones(4), deterministic=True)
    with pytest.raises(UnsupportedSpaceError, match="only discrete choices can be masked"):
        predict_masked(build(PLACE), np.zeros(2, np.float32), np.ones(4), deterministic=True)


NETWORKS: list[tuple[str, spaces.Space[Any], spaces.Space[Any], dict[str, Any]]] = [
    ("MlpPolicy", PLACE, CHOICE, {}),
    ("MlpPolicy", PLACE, PLACE, {"net_arch": []}),
    ("MlpPolicy", PLACE, KNOBS, {"net_arch": {"pi": [3], "vf": [4, 5]}, "share_features_extractor": False}),
    ("CnnPolicy", IMAGE, CHOICE, {}),
    ("CnnPolicy", IMAGE, SWITCHES, {"share_features_extractor": False}),
    ("MultiInputPolicy", CAR, CHOICE, {}),
    ("MultiInputPolicy", CAR, PLACE, {"share_features_extractor": False}),
]


@pytest.mark.parametrize(("name", "observation_space", "action_space", "policy_kwargs"), NETWORKS)
def test_every_parameter_is_the_policys_or_the_value_networks(
    name: str, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], policy_kwargs: dict[str, Any]
) -> None:
    policy = build(action_space, None, observation_space, name, **policy_kwargs)
    own, of_value = split_parameters(policy)
    ids = [id(parameter) for parameter in [*own, *of_value]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in policy.parameters()}
    # What the value depends on and the distribution does not, by gradients.
    observation = policy.obs_to_tensor(observation_space.sample())[0]
    action = torch.as_tensor(action_space.sample())[None]
    action = action.float() if isinstance(action_space, spaces.MultiBinary | spaces.Box) else action
    _, log_prob, spread = evaluate_actions(policy, observation, action, None)
    torch.autograd.backward((log_prob + spread).sum())
    assert all(parameter.grad is None for parameter in of_value)
    assert all(parameter.grad is not None for parameter in own)
    policy.zero_grad()
    torch.autograd.backward(policy.predict_values(observation).sum())
    assert all(parameter.grad is not None for parameter in of_value)


@pytest.mark.parametrize(("name", "observation_space", "action_space", "policy_kwargs"), NETWORKS)
def test_a_copy_acts_as_the_policy_did_and_stays_so(
    name: str, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], policy_kwargs: dict[str, Any]
) -> None:
    policy = build(action_space, None, observation_space, name, **policy_kwargs)
    observation = policy.obs_to_tensor(observation_space.sample())[0]
    action = torch.as_tensor(action_space.sample())[None]
    action = action.float() if isinstance(action_space, spaces.MultiBinary | spaces.Box) else action

    def step() -> None:
        values, log_prob, _ = evaluate_actions(policy, observation, action, None)
        policy.optimizer.zero_grad()
        torch.autograd.backward(values.sum() + log_prob.sum())
        policy.optimizer.step()

    step()  # leaves a graph in the policy's distribution
    expected = [x.detach().clone() for x in evaluate_actions(policy, observation, action, None)]
    copied = copy_policy(policy)
    for _ in range(2):
        for actual, before in zip(evaluate_actions(copied, observation, action, None), expected, strict=True):
            assert torch.equal(actual, before)
        step()
    _, moved, _ = evaluate_actions(policy, observation, action, None)
    assert not torch.equal(moved, expected[1])
    memory = {parameter.data_ptr() for parameter in policy.parameters()}
    assert not any(parameter.data_ptr() in memory for parameter in copied.parameters())
    assert copied.optimizer is None


def test_a_copy_is_not_in_training() -> None:
    policy = build(spaces.Discrete(2))
    policy.set_training_mode(True)
    assert not any(module.training for module in copy_policy(policy).modules())
    assert policy.training


def test_predict_takes_masks_of_a_model() -> None:
    model = GRPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, seed=0)
    observations = np.zeros((64, 4), np.float32)
    for allowed in (0, 1):
        masks = np.zeros((64, 2), np.bool_)
        masks[:, allowed] = True
        for deterministic in (False, True):
            actions, _ = model.predict(observations, deterministic=deterministic, action_masks=masks)
            assert (actions == allowed).all()
    action, _ = model.predict(observations[0], deterministic=True, action_masks=np.array([False, True]))
    assert action == 1
