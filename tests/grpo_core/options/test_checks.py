"""GRPO's arguments are checked, and refusals help."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo import GRPO, check_branchable
from grpo_core.options.checks import check_arguments, get_horizon
from grpo_core.options.choices import GroupMode
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
        ({"target_kl": float("inf")}, "target_kl=inf is not allowed"),  # JSON has no such number
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
            "adaptive, value",
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
            "use n_steps=96 or change group_size or horizon",
        ),
        ({"n_steps": 8}, "n_steps=8 is not allowed: a rollout holds whole groups"),
        (
            {"baseline": "residual", "bootstrap_value": False},
            "bootstrap_value=False is not allowed: baseline='residual' needs the value network; use "
            "bootstrap_value=True or baseline='group'",
        ),
        (
            {"baseline": "value", "advantage_scaling": "group"},
            "advantage_scaling='group' is not allowed: baseline='value' leaves in an advantage what all ... Use "
            "advantage_scaling='batch'",
        ),
        ({"baseline": "value", "bootstrap_value": False}, "bootstrap_value=False is not allowed: baseline='value'"),
        (
            {"supervision": "outcome"},
            "supervision='outcome' is not allowed: baseline='adaptive' judges single steps; use "
            "supervision='process' or baseline='group'",
        ),
        ({"supervision": "outcome", "baseline": "value"}, "supervision='outcome' is not allowed: baseline='value'"),
        (
            {"ref_sync_steps": 100},
            "ref_sync_steps=100 is not allowed: with kl_coef=0 there is no reference policy; set kl_coef",
        ),
        (
            {"group_mode": "action", "group_size": 4},
            "group_size=4 is not allowed: group_mode='action' needs group_size=2",
        ),
        ({"anchor_selection": "oldest"}, "anchor_selection='oldest' is not allowed: choose one of continue, archive"),
        (
            {"group_mode": "episode", "anchor_selection": "archive"},
            "anchor_selection='archive' is not allowed: whole episodes start from seeded resets ... use 'continue'",
        ),
        ({"group_mode": "action", "n_steps": 33}, "n_steps=33 is not allowed: a rollout holds whole groups"),
        ({"group_mode": "branch", "n_steps": 33}, "n_steps=33 is not allowed: a rollout holds whole groups"),
        (
            {"horizon": None, "n_steps": 32},
            "n_steps=32 is not allowed: a rollout holds whole groups of group_size * horizon = 2 * 32 = 64 steps; use "
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
        with pytest.raises(ValueError, match=r"use n_steps=\d+ or") as refusal:
            build(n_steps=n_steps)
        proposed = int(str(refusal.value).split("use n_steps=")[1].split()[0])
        assert build(n_steps=proposed).n_steps == proposed


def test_only_discrete_actions_can_be_enumerated() -> None:
    with pytest.raises(
        ValueError, match="group_mode='action' is not allowed: only a Discrete action space can be enumerated, not Box"
    ):
        GRPO("MlpPolicy", "Pendulum-v1", group_mode="action")


@pytest.mark.parametrize("horizon", [None, 7])
def test_whole_episodes_allow_any_number_of_steps(horizon: int | None) -> None:
    for n_steps in (1, 33, 100):
        assert build(group_mode="episode", n_steps=n_steps, horizon=horizon).n_steps == n_steps


@pytest.mark.parametrize(
    ("horizon", "mode", "expected"),
    [(None, "branch", 32), (None, "action", 32), (None, "episode", None), (5, "branch", 5), (5, "episode", 5)],
)
def test_the_default_horizon_is_32_and_unlimited_for_episodes(
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
        {"anchor_selection": "archive", "group_mode": "action"},
        {"kl_coef": 0.1, "ref_sync_steps": 1},
        {"supervision": "outcome", "baseline": "leave_one_out"},
        {"supervision": "outcome", "baseline": "group", "bootstrap_value": False},
    ],
    ids=spell,
)
def test_allowed_arguments_read_back_as_given(changes: dict[str, Any]) -> None:
    model = build(**changes)
    assert all(getattr(model, name) is value for name, value in changes.items())


@pytest.mark.parametrize("size", [0, -1, 2.5, "100", True])
def test_a_stats_window_that_is_not_a_whole_number_is_refused_by_name(size: Any) -> None:
    with pytest.raises(ValueError, match=f"stats_window_size={size!r} is not allowed"):
        build(stats_window_size=size)


@pytest.mark.parametrize("seed", [-1, 1.5, "7"])
def test_a_seed_that_is_not_a_whole_number_is_refused_by_name(seed: Any) -> None:
    with pytest.raises(ValueError, match=rf"seed={seed!r} is not allowed"):
        build(seed=seed)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"policy_kwargs": 5}, "it must be a dict, or None"),
        ({"tensorboard_log": 5}, "it must be a folder's path"),
        ({"verbose": "x"}, "it must be 0 for silence"),
        ({"device": None}, 'it must be "auto"'),
        ({"device": "foo"}, 'it must be "auto"'),
        ({"policy_kwargs": {"optimizer_class": torch.optim.SparseAdam}}, "it takes sparse gradients"),
    ],
    ids=spell,
)
def test_arguments_that_are_sb3s_are_checked_too(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=f" is not allowed: {rule}"):
        build(**changes)


def test_a_policy_of_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="policy='mlp' is not allowed: use one of MlpPolicy, CnnPolicy"):
        GRPO("mlp", "CartPole-v1")


@pytest.mark.parametrize("steps", ["5", None, float("nan")])
def test_steps_that_are_no_number_are_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match=r"total_timesteps=.* is not allowed: it must be a number"):
        build().learn(steps)


def test_a_log_interval_of_0_is_refused_and_none_logs_nothing() -> None:
    with pytest.raises(ValueError, match="log_interval=0 is not allowed"):
        build().learn(32, log_interval=0)
    build().learn(32, log_interval=None)  # type: ignore[arg-type]  # SB3 takes it


def test_numbers_of_any_type_are_taken_as_sb3_takes_them() -> None:
    model = build(verbose=0.0)
    for steps, interval in ((torch.tensor(32), 1.0), (np.float32(32), -1)):
        model.learn(steps, log_interval=interval)  # type: ignore[arg-type]  # not what SB3's annotations say
    assert model.num_timesteps >= 32
    check_arguments(device=0)  # torch knows whether there is one


def test_a_schedule_shows_its_value() -> None:
    assert repr(build(learning_rate=1e-3).lr_schedule) == "CheckedSchedule(learning_rate=0.001)"


@pytest.mark.parametrize("path", [None, 5, ""])
def test_what_names_no_model_file_is_refused(path: Any) -> None:
    for take in (GRPO.load, build().set_parameters):
        with pytest.raises(ValueError, match=r"path=.* is not allowed: it must be the name of a model file"):
            take(path)


@pytest.mark.parametrize(
    "env", [None, 5, "CartPole-v1", DummyVecEnv([CartPoleEnv])], ids=["None", "5", "an id", "a VecEnv"]
)
def test_what_is_no_environment_is_refused_before_it_is_tried_out(env: Any) -> None:
    with pytest.raises(ValueError, match="env is "):
        check_branchable(env)


def test_a_callback_that_trains_within_a_rollout_is_told_so() -> None:
    model = build()
    with pytest.raises(RuntimeError, match="learn\\(\\) is running already"):
        model.learn(32, lambda _locals, _globals: bool(model.learn(32)))
