"""Policies are chosen and checked, and survive a model file."""

import copy
import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.dqn.policies import DQNPolicy

from grpo import GRPO
from grpo_core.options.network_json import list_own_parts, network_from_json, network_to_json, rebuild_policy
from grpo_core.options.policies import OPTIMIZERS, POLICIES, get_policy_name, resolve_net_arch
from grpo_core.options.policy_kwargs import check_policy_fits, check_policy_kwargs
from grpo_core.saving.model_state import get_weights
from grpo_core.saving.optimizer_state import describe_optimizer

BOX = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (2, 36, 40), np.uint8)
FLOAT_IMAGE = spaces.Box(-1.0, 1.0, (2, 36, 40))
SMALL_IMAGE = spaces.Box(0, 255, (2, 35, 40), np.uint8)
CAR = spaces.Dict({"camera": IMAGE, "speed": BOX})


class Tanh(torch.nn.Tanh):
    """Has the name of torch's class."""


def build(**changes: Any) -> GRPO:
    return GRPO("MlpPolicy", "CartPole-v1", **{"n_steps": 32, "group_size": 2, "horizon": 16, "seed": 0, **changes})


@pytest.mark.parametrize(
    ("policy_kwargs", "said"),
    [
        ({"features_dim": 3}, "known keys are net_arch, activation_fn, ortho_init, log_std_init"),
        ({"activation_fn": torch.nn.Tanh()}, "use one of torch.nn.Tanh, torch.nn.ReLU, torch.nn.ELU"),
        ({"activation_fn": int}, "another class of torch modules, or a function that makes one"),
        ({"activation_fn": None}, "activation_fn=None is not allowed: use one of torch.nn.Tanh"),
        ({"activation_fn": "Tanh"}, "activation_fn='Tanh' is not allowed: use one of torch.nn.Tanh"),
        ({"net_arch": [64, 0]}, "net_arch=[64, 0] is not allowed: it must list positive layer sizes"),
        ({"net_arch": [64.0]}, "net_arch=[64.0] is not allowed: it must list positive layer sizes"),
        ({"net_arch": 64}, "net_arch=64 is not allowed: it must list positive layer sizes"),
        ({"net_arch": [{"pi": [64]}]}, "it must list positive layer sizes, like [64, 64] or dict(pi=[64], vf=[64])"),
        ({"net_arch": {"qf": [64]}}, "its keys must be pi and vf"),
        ({"net_arch": {"pi": 64}}, "net_arch={'pi': 64} is not allowed: it must list positive layer sizes"),
        ({"log_std_init": float("inf")}, "log_std_init=inf is not allowed: it must be a finite number"),
        ({"features_extractor_class": torch.nn.Flatten}, "it must be a subclass of stable_baselines3.common.torch_lay"),
        ({"use_sde": True}, "policy_kwargs='use_sde' is not allowed"),
        ({"normalize_images": "no"}, "normalize_images='no' is not allowed: it must be True or False"),
        ({"share_features_extractor": 1}, "share_features_extractor=1 is not allowed: it must be True or False"),
        ({"features_extractor_kwargs": {"features_dim": 3}}, "MlpPolicy's features extractor has none"),
        ({"features_extractor_kwargs": [3]}, "features_extractor_kwargs=[3] is not allowed: it must be a dict"),
        ({"optimizer_class": torch.optim.LBFGS}, "use one of torch.optim.Adam, torch.optim.AdamW"),
        ({"optimizer_class": torch.nn.Linear}, "or another subclass of torch.optim.Optimizer"),
        ({"optimizer_class": "Adam"}, "optimizer_class='Adam' is not allowed"),
        ({"optimizer_kwargs": {"lr": 0.1}}, "the step size is GRPO's learning_rate"),
        ({"optimizer_kwargs": {"momentum": 0.1}}, "optimizer_kwargs='momentum' is not allowed: known keys are amsgrad"),
        ({"optimizer_kwargs": {"eps": float("nan")}}, "eps=nan is not allowed: it must be a finite number"),
        ({"optimizer_kwargs": {"eps": "1e-8"}}, "eps='1e-8' is not allowed: it must be a finite number"),
        ({"optimizer_kwargs": {"betas": (0.9, None)}}, "or a tuple of finite numbers"),
        ({"optimizer_kwargs": 0.1}, "optimizer_kwargs=0.1 is not allowed: it must be a dict"),
    ],
    ids=str,
)
def test_a_policy_that_the_actor_cannot_run_is_refused(policy_kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"is not allowed") as refusal:
        check_policy_kwargs(policy_kwargs, ActorCriticPolicy)
    assert said in str(refusal.value)
    with pytest.raises(ValueError, match=r"is not allowed"):
        build(policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {},
        {"net_arch": []},
        {"net_arch": [8, 4]},
        {"net_arch": {"pi": [8]}},
        {"net_arch": {"pi": [8], "vf": [4, 4]}, "activation_fn": torch.nn.ELU, "ortho_init": False},
        {"log_std_init": -1.0, "activation_fn": torch.nn.LeakyReLU},
        {"share_features_extractor": False, "normalize_images": False},
        {"optimizer_kwargs": {}},
        {"optimizer_kwargs": {"betas": (0.8, np.float64(0.95)), "amsgrad": True}},
        {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}},
        {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9, "eps": 1e-5}},
        {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9, "nesterov": True}},
    ],
    ids=str,
)
def test_a_network_comes_back_from_json_with_the_same_shapes(policy_kwargs: dict[str, Any]) -> None:
    rebuilt = network_from_json(json.loads(json.dumps(network_to_json(policy_kwargs, ActorCriticPolicy))))
    check_policy_kwargs(rebuilt, ActorCriticPolicy)
    first, second = (build(policy_kwargs=kwargs).policy for kwargs in (policy_kwargs, rebuilt))
    shapes, rebuilt_shapes = (
        {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()} for policy in (first, second)
    )
    assert shapes == rebuilt_shapes
    assert type(first.mlp_extractor.policy_net) is type(second.mlp_extractor.policy_net)
    assert first.activation_fn is second.activation_fn
    assert first.ortho_init == second.ortho_init
    assert first.log_std_init == second.log_std_init
    assert type(first.optimizer) is type(second.optimizer)
    assert first.optimizer.defaults == second.optimizer.defaults
    assert first.share_features_extractor == second.share_features_extractor
    assert first.normalize_images == second.normalize_images


def test_net_arch_is_spelled_out_per_network() -> None:
    assert resolve_net_arch({}, ActorCriticPolicy) == {"pi": [64, 64], "vf": [64, 64]}
    assert resolve_net_arch({"net_arch": [3]}, ActorCriticPolicy) == {"pi": [3], "vf": [3]}
    assert resolve_net_arch({"net_arch": {"pi": [8]}}, ActorCriticPolicy) == {"pi": [8], "vf": []}
    assert resolve_net_arch({}, ActorCriticCnnPolicy) == {"pi": [], "vf": []}
    assert resolve_net_arch({}, MultiInputActorCriticPolicy) == {"pi": [64, 64], "vf": [64, 64]}


@pytest.mark.parametrize(
    ("policy", "extractor_kwargs", "said"),
    [
        ("CnnPolicy", {"cnn_output_dim": 3}, "known keys are features_dim, normalized_image"),
        ("MultiInputPolicy", {"features_dim": 3}, "known keys are cnn_output_dim, normalized_image"),
        ("CnnPolicy", {"features_dim": 0}, "features_dim=0 is not allowed: it must be a whole number of at least 1"),
        ("CnnPolicy", {"features_dim": 2.0}, "features_dim=2.0 is not allowed: it must be a whole number"),
        ("MultiInputPolicy", {"normalized_image": 1}, "normalized_image=1 is not allowed: it must be True or False"),
    ],
    ids=str,
)
def test_an_unknown_argument_of_a_features_extractor_is_refused(
    policy: str, extractor_kwargs: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match="is not allowed") as refusal:
        check_policy_kwargs({"features_extractor_kwargs": extractor_kwargs}, POLICIES[policy])
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("policy", "space", "policy_kwargs"),
    [
        ("MlpPolicy", BOX, {}),
        ("MlpPolicy", SMALL_IMAGE, {}),
        ("MlpPolicy", BOX, {"net_arch": {"pi": [np.int64(3)], "vf": (5, np.int32(4))}}),
        ("CnnPolicy", IMAGE, {}),
        ("CnnPolicy", IMAGE, {"features_extractor_kwargs": {"features_dim": np.int64(7)}}),
        ("CnnPolicy", FLOAT_IMAGE, {"normalize_images": False}),
        ("CnnPolicy", FLOAT_IMAGE, {"features_extractor_kwargs": {"normalized_image": True}}),
        ("MultiInputPolicy", CAR, {}),
        ("MultiInputPolicy", CAR, {"features_extractor_kwargs": {"cnn_output_dim": 7}, "net_arch": [3]}),
        ("MultiInputPolicy", spaces.Dict({"a": BOX, "b": FLOAT_IMAGE}), {"normalize_images": False}),
    ],
    ids=str,
)
def test_a_policy_comes_back_from_json(policy: str, space: spaces.Space[Any], policy_kwargs: dict[str, Any]) -> None:
    policy_class = POLICIES[policy]
    check_policy_kwargs(policy_kwargs, policy_class)
    check_policy_fits(policy_class, policy_kwargs, space)
    first = policy_class(space, spaces.Discrete(2), lambda _: 1e-3, **copy.deepcopy(policy_kwargs))
    network = json.loads(json.dumps(network_to_json(policy_kwargs, policy_class), allow_nan=False))
    assert POLICIES[network["policy"]] is policy_class
    rebuilt = network_from_json(network)
    check_policy_kwargs(rebuilt, policy_class)
    second = policy_class(space, spaces.Discrete(2), lambda _: 1e-3, **rebuilt)
    assert str(second) == str(first)
    assert second.normalize_images == first.normalize_images
    assert network_to_json(first_kwargs_after(first, policy_kwargs), policy_class).keys() == network.keys()


def first_kwargs_after(policy: ActorCriticPolicy, policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as SB3 leaves them: it adds normalized_image if images are not scaled."""
    return {**policy_kwargs, "features_extractor_kwargs": policy.features_extractor_kwargs}


@pytest.mark.parametrize(
    ("policy", "space", "said"),
    [
        ("MlpPolicy", CAR, "it does not accept observations of Dict"),
        ("CnnPolicy", CAR, "use 'MultiInputPolicy'"),
        ("MultiInputPolicy", BOX, "use 'MlpPolicy', or 'CnnPolicy' for images"),
        ("CnnPolicy", BOX, "it accepts images"),
        ("CnnPolicy", FLOAT_IMAGE, "policy_kwargs=dict(normalize_images=False) for images of other numbers"),
        ("CnnPolicy", SMALL_IMAGE, "at least 36 x 36 pixels; enlarge it with gymnasium.wrappers.ResizeObservation"),
        ("MultiInputPolicy", spaces.Dict({"a": SMALL_IMAGE}), "at least 36 x 36 pixels"),
        ("MultiInputPolicy", spaces.Dict({"values": BOX}), "'values' is not allowed: torch reserves this name"),
        ("MultiInputPolicy", spaces.Dict({"training": BOX}), "torch reserves this name; rename it"),
    ],
    ids=str,
)
def test_observations_that_do_not_suit_a_policy_are_refused(policy: str, space: spaces.Space[Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"is not (allowed|supported)") as refusal:
        check_policy_fits(POLICIES[policy], {}, space)
    assert said in str(refusal.value)


class Louder(ActorCriticPolicy):
    """A policy class of a user's own."""


class Remembering(ActorCriticPolicy):
    """Needs a state, as those with an LSTM do."""

    def forward(self, obs: Any, lstm_states: Any, deterministic: bool = False) -> Any:  # type: ignore[override]
        return super().forward(obs, deterministic)


def test_policies_derived_from_sb3s_have_the_name_of_theirs() -> None:
    assert get_policy_name(Louder) == get_policy_name(ActorCriticPolicy) == "MlpPolicy"
    assert get_policy_name(type("Seeing", (ActorCriticCnnPolicy,), {})) == "CnnPolicy"
    with pytest.raises(ValueError, match=r"policy=DQNPolicy is not supported.* 'MlpPolicy', .* or a subclass of"):
        get_policy_name(DQNPolicy)
    with pytest.raises(ValueError, match=r"policy=Remembering is not supported: its forward pass needs lstm_states"):
        get_policy_name(Remembering)


@pytest.mark.parametrize(
    ("policy_kwargs", "policy_class", "own_parts"),
    [
        ({"features_extractor_class": FlattenExtractor, "activation_fn": torch.nn.ReLU}, ActorCriticPolicy, {}),
        ({"optimizer_class": torch.optim.Adafactor}, ActorCriticPolicy, {}),
        ({}, Louder, {"policy": "Louder"}),
        ({"activation_fn": Tanh}, ActorCriticPolicy, {"activation_fn": "another Tanh"}),
        (
            {"activation_fn": functools.partial(torch.nn.ELU, 0.5)},
            ActorCriticPolicy,
            {"activation_fn": "partial(...)"},
        ),
        (
            {"features_extractor_class": NatureCNN, "features_extractor_kwargs": {"act": torch.nn.SiLU, "n": 3}},
            ActorCriticPolicy,
            {"features_extractor_class": "NatureCNN", "features_extractor_kwargs": "dict(...)"},
        ),
    ],
    ids=str,
)
def test_parts_that_a_file_cannot_hold_are_listed_by_name(
    policy_kwargs: dict[str, Any], policy_class: type[ActorCriticPolicy], own_parts: dict[str, str]
) -> None:
    assert list_own_parts(policy_kwargs, policy_class) == own_parts
    network = json.loads(json.dumps(network_to_json(policy_kwargs, policy_class), allow_nan=False))
    assert network.get("own_parts", {}) == own_parts
    rebuilt_class, rebuilt = rebuild_policy(network, policy_class, policy_kwargs)
    assert rebuilt_class is policy_class
    assert {name: rebuilt[name] for name in policy_kwargs} == policy_kwargs


def test_an_unknown_optimizer_in_a_file_is_refused() -> None:
    network = {**network_to_json({}, ActorCriticPolicy), "optimizer_class": "Lion"}
    with pytest.raises(ValueError, match="optimizer_class='Lion' is not allowed: known are Adam"):
        network_from_json(network)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizers_state_consists_of_arrays(name: str) -> None:
    kwargs: dict[str, dict[str, Any]] = {
        "SGD": {"momentum": 0.5},
        "RMSprop": {"centered": True, "momentum": 0.5},
        "Adam": {"amsgrad": True},
    }
    policy = ActorCriticPolicy(
        BOX, spaces.Discrete(2), lambda _: 1e-3, optimizer_class=OPTIMIZERS[name], optimizer_kwargs=kwargs.get(name)
    )
    torch.autograd.backward(policy.predict_values(torch.ones(1, 3)).sum())
    policy.optimizer.step()
    state = describe_optimizer(policy.optimizer, policy)[1]
    assert state
    assert all(array.dtype == np.float32 for array in state.values())


def test_a_shared_extractor_is_saved_once_and_separate_ones_twice() -> None:
    for share, n_extractors in ((True, 1), (False, 2)):
        policy = ActorCriticCnnPolicy(IMAGE, spaces.Discrete(2), lambda _: 1e-3, share_features_extractor=share)
        weights = get_weights(policy)
        assert sum(name.endswith("cnn.0.weight") for name in weights) == n_extractors
        assert sum(array.size for array in weights.values()) == sum(p.numel() for p in policy.parameters())


def test_a_list_of_numbers_means_the_tuple() -> None:
    given, meant = ({"optimizer_kwargs": {"betas": betas}} for betas in ([0.8, 0.95], (0.8, 0.95)))
    first, second = (build(policy_kwargs=kwargs).learn(64) for kwargs in (given, meant))
    assert network_to_json(given, ActorCriticPolicy) == network_to_json(meant, ActorCriticPolicy)
    for weights, same in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(weights, same)
