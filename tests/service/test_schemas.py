"""Requests are strict: what is unknown, of the wrong type or out of range is refused by the schema."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.schemas import InferenceRequest, JobStatus, TrainRequest

# The smallest and largest value that each number may have.
RANGES: dict[str, tuple[float, float]] = {
    "total_timesteps": (1, 10_000_000),
    "n_steps": (2, 16_384),
    "batch_size": (1, 65_536),
    "n_epochs": (1, 100),
    "seed": (0, 2**32 - 1),
    "n_envs": (1, 64),
    "group_size": (2, 256),
    "horizon": (1, 16_384),
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
        "env_name": "CartPole-v1",
        "total_timesteps": 10_000,
        "learning_rate": 3e-4,
        "n_steps": 32,
        "batch_size": 64,
        "n_epochs": 10,
        "reward_function_type": None,
        "model_name": None,
        "seed": None,
        "n_envs": 1,
        "group_size": 2,
        "horizon": None,
        "gamma": 0.99,
        "device": "auto",
        "net_arch": [64, 64],
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


def test_only_fields_with_a_drawn_or_derived_default_may_be_null() -> None:
    nullable = {"reward_function_type", "model_name", "seed", "horizon"}
    for name in TrainRequest.model_fields:
        if name in nullable:
            TrainRequest.model_validate({name: None})
        else:
            assert list_refused_fields({name: None}) == {name}


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("learning_rate", [1e-8, 1, 1.0], [0, -1e-3, 1.1, "0.1", True, float("nan"), float("inf"), 10**400]),
        ("gamma", [0, 0.5, 1], [-0.1, 1.01, "1", False, float("nan"), float("-inf"), 10**400]),
        ("device", ["auto", "cpu", "cuda"], ["tpu", "cuda:0", "", 0]),
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
        ("reward_function_type", ["environment", "my_reward.v2"], ["", "a" * 65, "a b", "a/b", "a:b", "a\n", 1]),
    ],
)
def test_each_field_takes_what_its_limits_allow(name: str, accepted: list[Any], refused: list[Any]) -> None:
    for value in accepted:
        assert getattr(TrainRequest.model_validate({name: value}), name) == value
    for value in refused:
        assert list_refused_fields({name: value}) == {name}, value


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
    [0, 3, -1.5, [0.1, 0.0, 0.05, 0.0], [[1, 2], [3, 4]], [[[[1]]]], [], [[], []], [3.4e38], [10**38, 2**63, -(2**64)]],
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


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**320) | st.floats() | st.text(max_size=3),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=2), children, max_size=2),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_no_observation_breaks_the_check(observation: Any) -> None:
    accepts_observation(observation)


@given(st.dictionaries(st.sampled_from([*TrainRequest.model_fields, "unknown"]), JSON_VALUES, max_size=4))
def test_no_training_request_breaks_the_check(request: dict[str, Any]) -> None:
    try:
        accepted = TrainRequest.model_validate(request)
    except ValidationError:
        return
    # What was accepted has the values that were sent, unconverted.
    assert {name: getattr(accepted, name) for name in request} == request


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
    assert properties["learning_rate"]["exclusiveMinimum"] == 0
    assert properties["net_arch"]["maxItems"] == 4
    assert properties["env_name"]["maxLength"] == 128
    assert "pattern" in json.dumps(properties["model_name"])
    assert all("description" in schema for schema in properties.values())
