"""Schemas are strict: they refuse unknown fields, wrong types and values out of range."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from grpo_core.options import choices
from grpo_core.options.hyperparameters import HYPERPARAMETERS
from service.schemas.inference import InferenceRequest
from service.schemas.jobs import JobStatus
from service.schemas.training import Normalization, TrainRequest

# Smallest and largest value of each integer.
RANGES: dict[str, tuple[float, float]] = {
    "total_timesteps": (1, 10_000_000),
    "n_steps": (2, 16_384),
    "batch_size": (1, 65_536),
    "n_epochs": (1, 100),
    "seed": (0, 2**32 - 1),
    "n_envs": (1, 64),
    "group_size": (2, 256),
    "horizon": (1, 16_384),
    "ref_sync_steps": (1, 10_000_000),
    "n_rollout_workers": (1, 64),
    "n_rollout_shards": (1, 1024),
}
# The same for real numbers.
REAL_RANGES: dict[str, tuple[float, float]] = {
    "gamma": (0, 1),
    "gae_lambda": (0, 1),
    "ent_coef": (0, 10),
    "vf_coef": (0, 100),
    "vf_lr_factor": (0, 1000),
    "max_grad_norm": (0, 1e6),
    "kl_coef": (0, 100),
    "restart_probability": (0, 1),
    "log_std_init": (-10, 5),
}
# Above 0, up to this.
POSITIVE_RANGES: dict[str, float] = {"learning_rate": 1, "clip_range": 10, "clip_range_high": 10, "target_kl": 100}
CHOICES = {
    "group_mode": ["auto", "branch", "episode", "action"],
    "baseline": ["group", "leave_one_out", "residual", "adaptive", "value", "timestep", "batch", "none"],
    "supervision": ["process", "outcome"],
    "anchor_selection": ["continue", "archive"],
    "advantage_scaling": ["group", "batch", "none"],
    "loss_type": ["clip", "cispo"],
    "importance_level": ["step", "branch"],
    "loss_normalization": ["step", "branch", "horizon"],
    "lr_schedule": ["linear", "constant"],
    "device": ["auto", "cpu", "cuda"],
    "activation": ["tanh", "relu", "elu", "leakyrelu"],
}
FLAGS = ["antithetic_actions", "bootstrap_value", "common_random_numbers", "filter_zero_std_groups"]
# Decided by a preset, the environment or another field, or drawn at random.
LEFT_OPEN = HYPERPARAMETERS.keys() - {"learning_rate", "n_steps", "batch_size", "n_epochs", "group_size", "gamma"} | {
    "env_kwargs",
    "wrappers",
    "preset",
    "reward_function_type",
    "reward_functions",
    "model_name",
    "seed",
    "normalize",
    "lr_schedule",
    "activation",
    "log_std_init",
    "eval_freq",
    "keep_best",
    "stop_reward",
    "patience",
    "max_seconds",
    "checkpoint_every",
    "init_model",
}


def list_refused_fields(request: dict[str, Any]) -> set[str]:
    with pytest.raises(ValidationError) as refusal:
        TrainRequest.model_validate(request)
    return {str(error["loc"][0]) for error in refusal.value.errors()}


def accepts_observation(observation: Any) -> bool:
    try:
        InferenceRequest(model_name="m", observation=observation)
    except ValidationError:
        return False
    return True


def test_an_empty_training_request_has_the_documented_defaults() -> None:
    assert TrainRequest().model_dump() == {
        "checkpoint_every": None,
        "max_restarts": 1,
        "init_model": None,
        "replace": True,
        "env_name": "CartPole-v1",
        "total_timesteps": 10_000,
        "learning_rate": 3e-4,
        "n_steps": 32,
        "batch_size": 64,
        "n_epochs": 10,
        "n_envs": 1,
        "group_size": 2,
        "gamma": 0.99,
        "device": "auto",
        "net_arch": [64, 64],
        "n_eval_episodes": 10,
        "tensorboard_log": False,
        **dict.fromkeys(LEFT_OPEN),
    }


@pytest.mark.parametrize(("name", "smallest", "largest"), [(name, *limits) for name, limits in RANGES.items()])
def test_whole_numbers_are_taken_up_to_their_limits_and_no_further(name: str, smallest: int, largest: int) -> None:
    for value in (smallest, largest):
        assert getattr(TrainRequest.model_validate({name: value}), name) == value
    for refused in (smallest - 1, largest + 1, -(10**18), 10**400):
        assert list_refused_fields({name: refused}) == {name}


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [True, "3", 3.0, [3], {}, float("nan")])
def test_whole_numbers_are_not_converted_from_anything_else(name: str, value: object) -> None:
    assert list_refused_fields({name: value}) == {name}


@pytest.mark.parametrize(("name", "smallest", "largest"), [(name, *limits) for name, limits in REAL_RANGES.items()])
def test_real_numbers_are_taken_up_to_their_limits_and_no_further(name: str, smallest: float, largest: float) -> None:
    for value in (smallest, largest, (smallest + largest) / 2):
        assert getattr(TrainRequest.model_validate({name: value}), name) == value
    refusals: list[Any] = [smallest - 1e-6, largest * (1 + 1e-6), 10**400, float("nan"), float("-inf"), "1", True]
    for refused in refusals:
        assert list_refused_fields({name: refused}) == {name}


@pytest.mark.parametrize(("name", "largest"), POSITIVE_RANGES.items())
def test_sizes_of_steps_are_above_zero(name: str, largest: float) -> None:
    for value in (1e-8, largest, float(largest)):
        assert getattr(TrainRequest.model_validate({name: value}), name) == value
    refusals: list[Any] = [0, -1e-3, largest + 0.1, "0.1", True, float("nan"), float("inf"), 10**400]
    for refused in refusals:
        assert list_refused_fields({name: refused}) == {name}


@pytest.mark.parametrize(("name", "values"), CHOICES.items())
def test_choices_are_those_of_the_algorithm(name: str, values: list[str]) -> None:
    for value in values:
        assert getattr(TrainRequest.model_validate({name: value}), name) == value
    refusals: list[Any] = ["", values[0].upper(), "tpu", 0, True, [values[0]]]
    for refused in refusals:
        assert list_refused_fields({name: refused}) == {name}


@pytest.mark.parametrize(
    ("name", "allowed"),
    {
        "baseline": choices.Baseline,
        "supervision": choices.Supervision,
        "anchor_selection": choices.AnchorSelection,
        "advantage_scaling": choices.AdvantageScaling,
        "loss_type": choices.LossType,
        "importance_level": choices.ImportanceLevel,
        "loss_normalization": choices.LossNormalization,
    }.items(),
)
def test_no_choice_of_the_algorithm_is_missing(name: str, allowed: Any) -> None:
    assert set(CHOICES[name]) == set(get_args(allowed))


def test_no_group_mode_of_the_algorithm_is_missing() -> None:
    assert set(CHOICES["group_mode"]) == {"auto", *get_args(choices.GroupMode)}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_true_or_false(name: str) -> None:
    for value in (True, False):
        assert getattr(TrainRequest.model_validate({name: value}), name) is value
    refusals: list[Any] = [1, 0, "true", []]
    for refused in refusals:
        assert list_refused_fields({name: refused}) == {name}


def test_only_fields_with_a_drawn_or_derived_default_may_be_null() -> None:
    for name in TrainRequest.model_fields:
        if name in LEFT_OPEN:
            TrainRequest.model_validate({name: None})
        else:
            assert list_refused_fields({name: None}) == {name}


def test_the_documentation_lists_the_fields_that_refuse_null() -> None:
    text = (Path(__file__).parents[2] / "API.md").read_text()
    listed = set(re.findall(r"`(\w+)`", text.partition("which refuse it:")[2].partition(".\n")[0]))
    assert listed == TrainRequest.model_fields.keys() - LEFT_OPEN


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        (
            "net_arch",
            [[], [1], [1024] * 4],
            [[0], [1025], [64] * 5, [64.0], [True], ["64"], 64, "64", {"pi": [64]}, [[64]]],
        ),
        (
            "env_name",
            ["CartPole-v1", "ALE/Pong-v5", "a" * 128],
            ["", "a" * 129, "module:Env-v0", "a b", "Env\n", "Env\x00", "\ud800", "Énv-v0", 3, []],
        ),
        ("preset", ["none", "Pendulum-v1", "ALE/Pong-v5"], ["", "a" * 129, "module:Env-v0", True, ["none"]]),
        (
            "reward_functions",
            [{"environment": 1}, {"a.b": -1e6, "c": 0.5}, dict.fromkeys(map(str, range(16)), 1.0)],
            [
                {},
                {"": 1.0},
                {"a b": 1.0},
                {"a": "1"},
                {"a": True},
                {"a": None},
                {"a": float("nan")},
                {"a": 1e7},
                ["a"],
                "a",
                dict.fromkeys(map(str, range(17)), 1.0),
            ],
        ),
        ("reward_function_type", ["environment", "my_reward.v2"], ["", "a" * 65, "a b", "a/b", "a:b", "a\n", 1]),
    ],
)
def test_each_field_takes_what_its_limits_allow(name: str, accepted: list[Any], refused: list[Any]) -> None:
    for value in accepted:
        assert getattr(TrainRequest.model_validate({name: value}), name) == value
    for value in refused:
        assert list_refused_fields({name: value}) == {name}, value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (False, False),
        ({}, Normalization(norm_obs=True, norm_reward=True)),
        ({"norm_reward": False}, Normalization(norm_obs=True, norm_reward=False)),
    ],
    ids=str,
)
def test_normalisation_is_switched_or_chosen_part_by_part(value: Any, expected: bool | Normalization) -> None:
    assert TrainRequest.model_validate({"normalize": value}).normalize == expected


@pytest.mark.parametrize("value", [1, "true", [], {"norm_obs": 1}, {"clip_obs": 5.0}], ids=str)
def test_no_other_normalisation_is_taken(value: Any) -> None:
    assert list_refused_fields({"normalize": value}) == {"normalize"}


@pytest.mark.parametrize("name", ["a", "7", "my_model", "m.v1", "A-b_c.d", "console", "a" * 100])
def test_ordinary_model_names_are_accepted(name: str) -> None:
    assert TrainRequest(model_name=name).model_name == name
    assert InferenceRequest(model_name=name, observation=[0.0]).model_name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "C:x",
        ".hidden",
        "-rf",
        "_x",
        "trailing.",
        "a b",
        "a\n",
        "a\x00",
        "%2e%2e",
        "é",
        "\u202egpj",
        "\ud800",
        "a" * 101,
        "CON",
        "nul.txt",
        "Com1",
        "lpt9.v2",
        3,
        None,
        ["a"],
    ],
)
def test_names_that_could_be_anything_but_a_file_of_our_own_are_refused(name: Any) -> None:
    if name is not None:
        assert list_refused_fields({"model_name": name}) == {"model_name"}
    with pytest.raises(ValidationError):
        InferenceRequest(model_name=name, observation=[0.0])


def test_unknown_fields_are_refused() -> None:
    assert list_refused_fields({"learning_rates": 0.1, "Seed": 1}) == {"learning_rates", "Seed"}
    with pytest.raises(ValidationError):
        InferenceRequest.model_validate({"model_name": "m", "observation": [0.0], "obs": 1})


@pytest.mark.parametrize(
    "observation",
    [
        0,
        3,
        -1.5,
        [0.1, 0.0, 0.05, 0.0],
        [[1, 2], [3, 4]],
        [[[[1]]]],
        [],
        [[], []],
        [3.4e38],
        [10**38, 2**63, -(2**64)],
        {"a": [1], "b": 2},
        [[[255] * 4] * 84] * 84,
    ],
    ids=lambda observation: repr(observation)[:20],
)
def test_finite_rectangular_numbers_are_an_observation(observation: Any) -> None:
    assert accepts_observation(observation)


@pytest.mark.parametrize(
    "observation",
    [
        None,
        True,
        "1",
        {},
        [True, 1.0],
        ["1.0"],
        [None],
        [{}],
        {"a": {"b": 1}},
        {"a": 1, "b": None},
        {"a": [0] * 65_536, "b": 1},
        {str(i): [] for i in range(65_537)},
        [float("nan")],
        [float("inf")],
        float("-inf"),
        [1e39],
        [-1e39],
        [10**39],
        [10**400],
        10**4000,
        [[1, 2], [3]],
        [1, [2]],
        [[], 1],
        [[[[[1]]]]],
        [0] * 65_537,
        [[0] * 257] * 257,
    ],
    ids=lambda observation: repr(observation)[:20],
)
def test_anything_else_is_not_an_observation(observation: Any) -> None:
    assert not accepts_observation(observation)


def accepts_masks(masks: Any) -> bool:
    try:
        InferenceRequest(model_name="m", observation=0, action_masks=masks)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("masks", [None, [], [True], [1, 0, True], [[1, 0], [True, False, 1]], [0] * 65_536])
def test_flags_in_a_list_or_a_list_per_component_are_masks(masks: Any) -> None:
    assert accepts_masks(masks)


@pytest.mark.parametrize(
    "masks",
    [True, 1, "10", {}, [2], [-1], [1.0], ["1"], [None], [1, [1]], [[1], 1], [[[1]]], [0] * 65_537, [[]] * 65_537],
    ids=lambda masks: repr(masks)[:20],
)
def test_anything_else_is_no_mask(masks: Any) -> None:
    assert not accepts_masks(masks)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**320) | st.floats() | st.text(max_size=3),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=2), children, max_size=2),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_no_observation_and_no_mask_breaks_the_check(value: Any) -> None:
    accepts_observation(value)
    accepts_masks(value)


@given(st.dictionaries(st.sampled_from([*TrainRequest.model_fields, "unknown"]), JSON_VALUES, max_size=4))
def test_no_training_request_breaks_the_check(request: dict[str, Any]) -> None:
    try:
        accepted = TrainRequest.model_validate(request)
    except ValidationError:
        return
    # Accepted values are kept unconverted; only objects may be completed with defaults.
    for name, value in request.items():
        assert isinstance(getattr(accepted, name), Normalization) or getattr(accepted, name) == value


def test_only_the_last_three_job_states_are_final() -> None:
    assert [(str(status), status.is_final) for status in JobStatus] == [
        ("queued", False),
        ("running", False),
        ("completed", True),
        ("failed", True),
        ("stopped", True),
    ]


def test_every_limit_stands_in_the_published_schema() -> None:
    properties = TrainRequest.model_json_schema()["properties"]
    for name, (smallest, largest) in RANGES.items():
        schema = next(choice for choice in properties[name].get("anyOf", [properties[name]]) if "minimum" in choice)
        assert (schema["minimum"], schema["maximum"]) == (smallest, largest)
    for name, (least, most) in REAL_RANGES.items():
        schema = next(choice for choice in properties[name].get("anyOf", [properties[name]]) if "minimum" in choice)
        assert (schema["minimum"], schema["maximum"]) == (least, most)
    for name, most in POSITIVE_RANGES.items():
        schema = next(choice for choice in properties[name].get("anyOf", [properties[name]]) if "maximum" in choice)
        assert (schema["exclusiveMinimum"], schema["maximum"]) == (0, most)
    assert properties["net_arch"]["maxItems"] == 4
    assert properties["env_name"]["maxLength"] == 128
    assert "pattern" in json.dumps(properties["model_name"])
    assert all("description" in schema for schema in properties.values())
