"""GRPO's arguments survive a model file."""

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
from grpo_core.options.hyperparameters import SAVED_HYPERPARAMETERS
from grpo_core.options.hyperparameters_json import hyperparameters_from_json, hyperparameters_to_json
from grpo_core.options.rewards import optimized_cartpole
from tests.models import change_hyperparameters

CHANGED: dict[str, Any] = {
    **change_hyperparameters(),
    "tensorboard_log": None,
    "verbose": 0,
    "seed": 5,
    "reward_weights": [2.0, -0.5],
}
REWARDS = [None, optimized_cartpole]


def build(**changes: Any) -> GRPO:
    return GRPO("MlpPolicy", "CartPole-v1", **{"n_steps": 32, "group_size": 2, "horizon": 16, "seed": 0, **changes})


def test_hyperparameters_return_unchanged_from_json() -> None:
    assert set(CHANGED) == set(SAVED_HYPERPARAMETERS)
    defaults = {name: one.default for name, one in inspect.signature(GRPO).parameters.items()}
    same = {name for name, value in CHANGED.items() if value == defaults[name]}
    assert same == {"tensorboard_log", "verbose", "antithetic_actions"}, "what writes files or talks, or needs a Box"
    described = json.loads(
        json.dumps(hyperparameters_to_json(build(reward_function=REWARDS, **CHANGED)), allow_nan=False)
    )
    assert hyperparameters_from_json(described) == CHANGED


def test_hyperparameters_return_unchanged_from_a_model_file() -> None:
    loaded = GRPO.load(io.BytesIO(build(reward_function=REWARDS, **CHANGED).to_bytes()))
    assert {name: getattr(loaded, name) for name in CHANGED} == CHANGED
    assert loaded.reward_function == REWARDS


def test_what_needs_continuous_actions_returns_from_a_model_file() -> None:
    model = GRPO("MlpPolicy", "Pendulum-v1", antithetic_actions=True, seed=0)
    assert GRPO.load(io.BytesIO(model.to_bytes())).antithetic_actions is True


def test_weights_may_be_numpy_or_whole_numbers() -> None:
    for weights in (np.array([1.0, 2.0]), [np.float32(1), 2]):
        loaded = GRPO.load(io.BytesIO(build(reward_function=REWARDS, reward_weights=weights).to_bytes()))
        assert loaded.reward_weights == [1.0, 2.0]


def test_a_linear_schedule_returns_from_json() -> None:
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


def test_a_function_is_saved_as_its_first_value_with_a_warning() -> None:
    # Its current value may already be 0, with which no model can be built.
    model = build(learning_rate=lambda progress_remaining: 0.5 * progress_remaining)
    model.learn(64)
    with pytest.warns(UserWarning, match=r"learning_rate is a function.*0\.5 is saved.*pass learning_rate again"):
        described = hyperparameters_to_json(model)
    assert described["learning_rate"] == 0.5


def test_an_argument_that_a_file_lacks_keeps_its_default() -> None:
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
