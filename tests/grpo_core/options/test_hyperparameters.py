"""What GRPO's arguments may be, what a refusal says, and how they survive a model file."""

import inspect
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from grpo import GRPO
from grpo_core.options.choices import GroupMode
from grpo_core.options.hyperparameters import (
    SAVED_HYPERPARAMETERS,
    get_horizon,
    hyperparameters_from_json,
    hyperparameters_to_json,
)
from grpo_core.options.rewards import optimized_cartpole, simple_cartpole
from tests.support import spell

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
        ({"ref_sync_steps": 0, "kl_coef": 0.1}, f"ref_sync_steps=0 is not allowed: {WHOLE} 1"),
        ({"ref_sync_steps": 1.5, "kl_coef": 0.1}, f"ref_sync_steps=1.5 is not allowed: {WHOLE} 1"),
        ({"horizon": 2.5}, f"horizon=2.5 is not allowed: {WHOLE} 1"),
        ({"restart_probability": 1.5}, "restart_probability=1.5 is not allowed: it must lie in [0, 1]"),
        ({"restart_probability": float("nan")}, "restart_probability=nan is not allowed: it must lie in [0, 1]"),
        ({"kl_coef": -0.1}, f"kl_coef=-0.1 is not allowed: {FINITE}"),
        ({"kl_coef": float("inf")}, f"kl_coef=inf is not allowed: {FINITE}"),
        ({"clip_range_high": 0.0}, f"clip_range_high=0.0 is not allowed: {POSITIVE}"),
        ({"clip_range_high": float("nan")}, f"clip_range_high=nan is not allowed: {POSITIVE}"),
        (
            {"baseline": "mean"},
            "baseline='mean' is not allowed: choose one of none, batch, timestep, group, leave_one_out, residual, "
            "value",
        ),
        ({"advantage_scaling": True}, "advantage_scaling=True is not allowed: choose one of group, batch, none"),
        ({"group_mode": "tree"}, "group_mode='tree' is not allowed: choose one of auto, branch, episode, action"),
        ({"supervision": "result"}, "supervision='result' is not allowed: choose one of process, outcome"),
        ({"loss_type": "ppo"}, "loss_type='ppo' is not allowed: choose one of clip, cispo"),
        ({"importance_level": "token"}, "importance_level='token' is not allowed: choose one of step, branch"),
        ({"loss_normalization": None}, "loss_normalization=None is not allowed: choose one of step, branch, horizon"),
        ({"bootstrap_value": 1}, "bootstrap_value=1 is not allowed: it must be True or False"),
        ({"common_random_numbers": "no"}, "common_random_numbers='no' is not allowed: it must be True or False"),
        ({"filter_zero_std_groups": None}, "filter_zero_std_groups=None is not allowed: it must be True or False"),
        (
            {"reward_function": "optimized_cartpole"},
            "reward_function='optimized_cartpole' is not allowed: it must be a function, a list of functions, or None "
            "for the environment's own",
        ),
        ({"reward_function": []}, "reward_function=[] is not allowed: it must be a function, a list of functions"),
        ({"reward_function": [None, 1.0]}, "reward_function=[None, 1.0] is not allowed: it must be a function"),
        (
            {"reward_weights": [1.0]},
            "reward_weights=[1.0] is not allowed: weights need a list of reward functions; leave them out",
        ),
        ({"reward_function": optimized_cartpole, "reward_weights": [1.0]}, "weights need a list of reward functions"),
        (
            {"reward_function": [None, optimized_cartpole], "reward_weights": [1.0]},
            "reward_weights=[1.0] is not allowed: give one finite number for each of the 2 reward functions",
        ),
        (
            {"reward_function": [None], "reward_weights": 1.0},
            "reward_weights=1.0 is not allowed: give one finite number",
        ),
        (
            {"reward_function": [None], "reward_weights": [float("nan")]},
            "reward_weights=[nan] is not allowed: give one finite number",
        ),
        ({"reward_function": [None], "reward_weights": ["1"]}, "reward_weights=['1'] is not allowed"),
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
        (
            {"baseline": "value", "advantage_scaling": "group"},
            "advantage_scaling='group' is not allowed: baseline='value' ... take advantage_scaling='batch'",
        ),
        ({"baseline": "value", "bootstrap_value": False}, "bootstrap_value=False is not allowed: baseline='value'"),
        (
            {"supervision": "outcome"},
            "supervision='outcome' is not allowed: baseline='residual' judges single steps; take "
            "supervision='process' or baseline='group'",
        ),
        ({"supervision": "outcome", "baseline": "value"}, "supervision='outcome' is not allowed: baseline='value'"),
        (
            {"ref_sync_steps": 100},
            "ref_sync_steps=100 is not allowed: without kl_coef there is no reference policy; set kl_coef",
        ),
        (
            {"group_mode": "action", "group_size": 4},
            "group_size=4 is not allowed: group_mode='action' takes group_size=2",
        ),
        ({"group_mode": "action", "n_steps": 33}, "n_steps=33 is not allowed: a rollout holds whole groups"),
        ({"group_mode": "branch", "n_steps": 33}, "n_steps=33 is not allowed: a rollout holds whole groups"),
        (
            {"horizon": None, "n_steps": 32},
            "n_steps=32 is not allowed: a rollout holds whole groups of group_size * horizon = 2 * 32 = 64 steps; take "
            "n_steps=64 or change",
        ),
    ],
    ids=lambda case: spell(case) if isinstance(case, dict) else "",
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


def test_only_discrete_actions_can_be_enumerated() -> None:
    with pytest.raises(
        ValueError, match="group_mode='action' is not allowed: only a Discrete action space can be enumerated, not Box"
    ):
        GRPO("MlpPolicy", "Pendulum-v1", group_mode="action")


@pytest.mark.parametrize("horizon", [None, 7])
def test_whole_episodes_may_take_any_number_of_steps(horizon: int | None) -> None:
    for n_steps in (1, 33, 100):
        assert build(group_mode="episode", n_steps=n_steps, horizon=horizon).n_steps == n_steps


@pytest.mark.parametrize(
    ("horizon", "mode", "expected"),
    [(None, "branch", 32), (None, "action", 32), (None, "episode", None), (5, "branch", 5), (5, "episode", 5)],
)
def test_a_horizon_that_is_left_out_is_32_and_in_episodes_their_end(
    horizon: int | None, mode: GroupMode, expected: int | None
) -> None:
    assert get_horizon(horizon, mode) == expected
    model = build(horizon=horizon, group_mode=mode, n_steps=320)
    assert model.horizon == horizon, "it reads back as it was given"


@pytest.mark.parametrize(
    "changes",
    [
        {"bootstrap_value": np.bool_(True)},
        {"reward_function": [optimized_cartpole, None]},
        {"reward_function": (optimized_cartpole,), "reward_weights": (2,)},
        {"reward_function": [None, simple_cartpole], "reward_weights": np.array([0.5, -1.0])},
        {"clip_range_high": lambda progress_remaining: 0.3},
        {"clip_range_high": 0.1, "clip_range": 0.2},
        {"restart_probability": 1},
        {"kl_coef": 0.1, "ref_sync_steps": 1},
        {"supervision": "outcome", "baseline": "leave_one_out"},
        {"supervision": "outcome", "baseline": "group", "bootstrap_value": False},
    ],
    ids=spell,
)
def test_what_is_allowed_reads_back_as_it_was_given(changes: dict[str, Any]) -> None:
    model = build(**changes)
    assert all(getattr(model, name) is value for name, value in changes.items())


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
    "reward_weights": [2.0, -0.5],
    "group_mode": "branch",
    "group_size": 3,
    "horizon": 8,
    "supervision": "outcome",
    "baseline": "group",
    "advantage_scaling": "none",
    "bootstrap_value": False,
    "vf_lr_factor": 2.5,
    "restart_probability": 0.25,
    "common_random_numbers": True,
    "filter_zero_std_groups": True,
    "clip_range_high": 0.28,
    "loss_type": "cispo",
    "importance_level": "branch",
    "loss_normalization": "horizon",
    "kl_coef": 0.04,
    "ref_sync_steps": 512,
}
REWARDS = [None, optimized_cartpole]


def test_hyperparameters_come_back_from_json_as_they_were() -> None:
    assert set(CHANGED) == set(SAVED_HYPERPARAMETERS)
    defaults = {name: one.default for name, one in inspect.signature(GRPO).parameters.items()}
    same = {name for name, value in CHANGED.items() if value == defaults[name]}
    assert same == {"tensorboard_log", "verbose"}, "what writes files or talks"
    described = json.loads(
        json.dumps(hyperparameters_to_json(build(reward_function=REWARDS, **CHANGED)), allow_nan=False)
    )
    assert hyperparameters_from_json(described) == CHANGED


def test_hyperparameters_come_back_from_a_model_file_as_they_were() -> None:
    loaded = GRPO.load(io.BytesIO(build(reward_function=REWARDS, **CHANGED).to_bytes()))
    assert {name: getattr(loaded, name) for name in CHANGED} == CHANGED
    assert loaded.reward_function == REWARDS


def test_weights_may_be_numpys_and_whole_numbers() -> None:
    for weights in (np.array([1.0, 2.0]), [np.float32(1), 2]):
        loaded = GRPO.load(io.BytesIO(build(reward_function=REWARDS, reward_weights=weights).to_bytes()))
        assert loaded.reward_weights == [1.0, 2.0]


def test_a_linear_schedule_comes_back_from_json() -> None:
    schedule = LinearSchedule(1e-2, 1e-4, 0.8)
    model = build(
        learning_rate=schedule, clip_range=FloatSchedule(LinearSchedule(0.3, 0.1, 1.0)), clip_range_high=schedule
    )
    arguments = hyperparameters_from_json(json.loads(json.dumps(hyperparameters_to_json(model))))
    for progress_remaining in (1.0, 0.7, 0.3, 0.1, 0.0):
        assert arguments["learning_rate"](progress_remaining) == schedule(progress_remaining)
        assert arguments["clip_range_high"](progress_remaining) == schedule(progress_remaining)
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
