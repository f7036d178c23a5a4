"""What GRPO's arguments may be, what a refusal says, and how they survive a model file."""

import inspect
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from grpo import GRPO
from grpo_core.hyperparameters import (
    SAVED_HYPERPARAMETERS,
    check_policy_kwargs,
    hyperparameters_from_json,
    hyperparameters_to_json,
    network_from_json,
    network_to_json,
    resolve_net_arch,
)

WHOLE = "it must be a whole number of at least"
FINITE = "it must be finite and at least 0"
POSITIVE = "it must be finite and above 0, or a function of the remaining progress"


def build(**changes: Any) -> GRPO:
    return GRPO("MlpPolicy", "CartPole-v1", **{"n_steps": 32, "group_size": 2, "horizon": 16, "seed": 0, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_steps": 0}, f"n_steps=0 is not allowed: {WHOLE} 1"),
        ({"n_steps": 32.0}, f"n_steps=32.0 is not allowed: {WHOLE} 1"),
        ({"batch_size": 0}, f"batch_size=0 is not allowed: {WHOLE} 1"),
        ({"batch_size": True}, f"batch_size=True is not allowed: {WHOLE} 1"),
        ({"n_epochs": -1}, f"n_epochs=-1 is not allowed: {WHOLE} 1"),
        ({"group_size": 1}, f"group_size=1 is not allowed: {WHOLE} 2"),
        ({"horizon": 0}, f"horizon=0 is not allowed: {WHOLE} 1"),
        ({"gamma": 1.1}, "gamma=1.1 is not allowed: it must lie in [0, 1]"),
        ({"gamma": float("nan")}, "gamma=nan is not allowed: it must lie in [0, 1]"),
        ({"gae_lambda": -0.1}, "gae_lambda=-0.1 is not allowed: it must lie in [0, 1]"),
        ({"ent_coef": -1.0}, f"ent_coef=-1.0 is not allowed: {FINITE}"),
        ({"vf_coef": float("inf")}, f"vf_coef=inf is not allowed: {FINITE}"),
        ({"max_grad_norm": float("nan")}, f"max_grad_norm=nan is not allowed: {FINITE}"),
        ({"vf_lr_factor": -1.0}, f"vf_lr_factor=-1.0 is not allowed: {FINITE}"),
        ({"learning_rate": 0.0}, f"learning_rate=0.0 is not allowed: {POSITIVE}"),
        ({"learning_rate": float("inf")}, f"learning_rate=inf is not allowed: {POSITIVE}"),
        ({"clip_range": -0.2}, f"clip_range=-0.2 is not allowed: {POSITIVE}"),
        ({"target_kl": 0.0}, "target_kl=0.0 is not allowed ... above 0, or None for no limit"),
        ({"target_kl": float("nan")}, "target_kl=nan is not allowed ... above 0, or None for no limit"),
        ({"target_kl": float("inf")}, "target_kl=inf is not allowed"),  # JSON cannot spell it
        ({"baseline": "mean"}, "baseline='mean' is not allowed: choose one of group, residual, value"),
        ({"advantage_scaling": True}, "advantage_scaling=True is not allowed: choose one of group, batch, none"),
        (
            {"reward_function": "optimized_cartpole"},
            "reward_function='optimized_cartpole' is not allowed: it must be a function, or None for the "
            "environment's own",
        ),
        (
            {"n_steps": 100},
            "n_steps=100 is not allowed: a rollout holds whole groups of group_size * horizon = 2 * 16 = 32 steps; "
            "take n_steps=96 or change group_size or horizon",
        ),
        ({"n_steps": 8}, "n_steps=8 is not allowed: a rollout holds whole groups"),
        (
            {"baseline": "residual", "bootstrap_value": False},
            "bootstrap_value=False is not allowed: baseline='residual' judges steps by the value network; take "
            "bootstrap_value=True or baseline='group'",
        ),
        ({"baseline": "value", "bootstrap_value": False}, "bootstrap_value=False is not allowed: baseline='value'"),
    ],
    ids=lambda case: str(case) if isinstance(case, dict) else "",
)
def test_a_refusal_names_the_value_the_rule_and_the_remedy(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"is not allowed") as refusal:
        build(**changes)
    assert all(part in str(refusal.value) for part in said.split(" ... ")), str(refusal.value)


def test_the_proposed_n_steps_is_accepted_as_it_stands() -> None:
    for n_steps in (1, 31, 33, 100, 1000):
        with pytest.raises(ValueError, match=r"take n_steps=\d+ or") as refusal:
            build(n_steps=n_steps)
        proposed = int(str(refusal.value).split("take n_steps=")[1].split()[0])
        assert build(n_steps=proposed).n_steps == proposed


@pytest.mark.parametrize(
    ("policy_kwargs", "said"),
    [
        ({"features_dim": 3}, "known keys are net_arch, activation_fn, ortho_init, log_std_init"),
        ({"activation_fn": torch.nn.Softmax}, "use one of torch.nn.Tanh, torch.nn.ReLU, torch.nn.ELU"),
        ({"activation_fn": None}, "activation_fn=None is not allowed: use one of torch.nn.Tanh"),
        ({"activation_fn": "Tanh"}, "activation_fn='Tanh' is not allowed: use one of torch.nn.Tanh"),
        ({"net_arch": [64, 0]}, "net_arch=[64, 0] is not allowed: it must list positive layer sizes"),
        ({"net_arch": [64.0]}, "net_arch=[64.0] is not allowed: it must list positive layer sizes"),
        ({"net_arch": 64}, "net_arch=64 is not allowed: it must list positive layer sizes"),
        ({"net_arch": [{"pi": [64]}]}, "it must list positive layer sizes, like [64, 64] or dict(pi=[64], vf=[64])"),
        ({"net_arch": {"qf": [64]}}, "its keys are pi and vf"),
    ],
    ids=str,
)
def test_a_policy_that_the_actor_cannot_run_is_refused(policy_kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"is not allowed") as refusal:
        check_policy_kwargs(policy_kwargs)
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
    ],
    ids=str,
)
def test_a_network_comes_back_from_json_with_the_same_shapes(policy_kwargs: dict[str, Any]) -> None:
    rebuilt = network_from_json(json.loads(json.dumps(network_to_json(policy_kwargs))))
    check_policy_kwargs(rebuilt)
    first, second = (build(policy_kwargs=kwargs).policy for kwargs in (policy_kwargs, rebuilt))
    shapes, rebuilt_shapes = (
        {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()} for policy in (first, second)
    )
    assert shapes == rebuilt_shapes
    assert type(first.mlp_extractor.policy_net) is type(second.mlp_extractor.policy_net)
    assert first.activation_fn is second.activation_fn
    assert first.ortho_init == second.ortho_init
    assert first.log_std_init == second.log_std_init


def test_net_arch_is_spelled_out_per_network() -> None:
    assert resolve_net_arch({}) == {"pi": [64, 64], "vf": [64, 64]}
    assert resolve_net_arch({"net_arch": [3]}) == {"pi": [3], "vf": [3]}
    assert resolve_net_arch({"net_arch": {"pi": [8]}}) == {"pi": [8], "vf": []}


def test_a_model_file_keeps_every_argument_that_is_plain_data() -> None:
    elsewhere = {"self", "policy", "env", "policy_kwargs", "stats_window_size", "reward_function"}
    not_kept = {"device", "_init_setup_model"}
    arguments = set(inspect.signature(GRPO.__init__).parameters) - elsewhere - not_kept
    assert arguments == set(SAVED_HYPERPARAMETERS)


CHANGED: dict[str, Any] = {
    "learning_rate": 0.0123,
    "n_steps": 48,
    "batch_size": 7,
    "n_epochs": 3,
    "gamma": 0.9,
    "gae_lambda": 0.5,
    "clip_range": 0.3,
    "ent_coef": 0.01,
    "vf_coef": 0.25,
    "max_grad_norm": 1.5,
    "target_kl": 0.02,
    "tensorboard_log": None,
    "verbose": 0,
    "seed": 5,
    "group_size": 3,
    "horizon": 8,
    "baseline": "group",
    "advantage_scaling": "none",
    "bootstrap_value": False,
    "vf_lr_factor": 2.5,
}


def test_hyperparameters_come_back_from_json_as_they_were() -> None:
    assert set(CHANGED) == set(SAVED_HYPERPARAMETERS)
    described = json.loads(json.dumps(hyperparameters_to_json(build(**CHANGED)), allow_nan=False))
    assert hyperparameters_from_json(described) == CHANGED


def test_a_linear_schedule_comes_back_from_json() -> None:
    schedule = LinearSchedule(1e-2, 1e-4, 0.8)
    model = build(learning_rate=schedule, clip_range=FloatSchedule(LinearSchedule(0.3, 0.1, 1.0)))
    arguments = hyperparameters_from_json(json.loads(json.dumps(hyperparameters_to_json(model))))
    for progress_remaining in (1.0, 0.7, 0.3, 0.1, 0.0):
        assert arguments["learning_rate"](progress_remaining) == schedule(progress_remaining)
        assert arguments["clip_range"](progress_remaining) == pytest.approx(0.1 + 0.2 * progress_remaining)


def test_a_constant_schedule_is_kept_as_its_number() -> None:
    model = build(learning_rate=ConstantSchedule(0.02), clip_range=FloatSchedule(0.4))
    arguments = hyperparameters_from_json(json.loads(json.dumps(hyperparameters_to_json(model))))
    assert (arguments["learning_rate"], arguments["clip_range"]) == (0.02, 0.4)


def test_a_function_is_kept_as_its_first_value_and_says_so() -> None:
    # Its present value may be 0 by now, which no model could be built with.
    model = build(learning_rate=lambda progress_remaining: 0.5 * progress_remaining)
    model.learn(64)
    with pytest.warns(UserWarning, match=r"learning_rate is a function.*0\.5 is saved.*pass learning_rate again"):
        described = hyperparameters_to_json(model)
    assert described["learning_rate"] == 0.5


def test_an_argument_that_an_older_file_lacks_keeps_its_default() -> None:
    described = hyperparameters_to_json(build())
    del described["vf_lr_factor"]
    assert "vf_lr_factor" not in hyperparameters_from_json(described)


def test_a_path_and_numpy_flags_can_be_saved(tmp_path: Path) -> None:
    network = {"net_arch": [2], "log_std_init": np.float32(-1), "ortho_init": np.bool_(True)}
    model = build(tensorboard_log=tmp_path, policy_kwargs=network)
    loaded = GRPO.load(io.BytesIO(model.to_bytes()))
    assert loaded.tensorboard_log == str(tmp_path)
    assert loaded.policy_kwargs["log_std_init"] == -1.0


def test_numbers_and_known_schedules_are_kept_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hyperparameters_to_json(build(learning_rate=LinearSchedule(1e-3, 0.0, 1.0)))


def test_a_numpy_number_is_kept_like_a_plain_one() -> None:
    loaded = GRPO.load(io.BytesIO(build(gamma=np.float32(0.5), n_epochs=3).to_bytes()))
    assert loaded.gamma == 0.5


@pytest.mark.parametrize("seed", [-1, 1.5, "7"])
def test_a_seed_that_is_no_whole_number_is_refused_by_name(seed: Any) -> None:
    with pytest.raises(ValueError, match=rf"seed={seed!r} is not allowed"):
        build(seed=seed)
