"""The form: every field of a request, read from its schema."""

import pytest
from nicegui import Client, ui

from service.dashboard.new_job.fields import (
    COMMON,
    GROUPS,
    FieldInput,
    describe_default,
    list_fields,
    read_number,
)
from service.schemas.training import TrainRequest

FIELDS = list_fields(TrainRequest.model_json_schema())


def test_every_field_of_a_request_is_in_the_form_once() -> None:
    names = [*COMMON, *(name for _, names in GROUPS.values() for name in names)]
    assert sorted(names) == sorted(TrainRequest.model_fields)


def test_kinds_come_from_the_schema() -> None:
    kinds = {name: field.kind for name, field in FIELDS.items()}
    assert kinds["env_name"] == "text"
    assert kinds["total_timesteps"] == "integer"
    assert kinds["learning_rate"] == "number"
    assert kinds["group_mode"] == "choice"
    assert kinds["bootstrap_value"] == kinds["normalize"] == "flag"
    assert kinds["net_arch"] == "sizes"
    assert kinds["reward_functions"] == "weights"
    assert kinds["env_kwargs"] == kinds["wrappers"] == "json"
    assert set(kinds.values()) == {"text", "integer", "number", "choice", "flag", "sizes", "weights", "json"}


def test_ranges_defaults_and_choices_come_from_the_schema() -> None:
    assert FIELDS["total_timesteps"].rule == "1 to 10,000,000"
    assert FIELDS["clip_range"].rule == "above 0, up to 10"
    assert FIELDS["model_name"].rule == ""
    assert FIELDS["n_steps"].default == 32
    assert FIELDS["device"].choices == ("auto", "cpu", "cuda")
    assert FIELDS["stop_reward"].rule == "-1,000,000,000 to 1,000,000,000"


def test_what_is_left_out_says_what_comes_instead() -> None:
    words = {name: describe_default(FIELDS[name]) for name in ("seed", "model_name", "n_steps", "target_kl")}
    assert words == {"seed": "random", "model_name": "generated", "n_steps": "32", "target_kl": "by default"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10000", 10_000),
        ("10,000", 10_000),
        ("1e4", 10_000),
        ("-1", -1),
        ("1.5", 1.5),
        ("1e", "1e"),
        ("1,5", "1,5"),
        ("nan", "nan"),
        ("inf", "inf"),
    ],
)
def test_whole_numbers_are_read_as_people_write_them(text: str, number: float | str) -> None:
    assert repr(read_number(text, is_whole=True)) == repr(number)


@pytest.mark.parametrize(("text", "number"), [("0.5", 0.5), ("1e-3", 0.001), ("0,001", "0,001"), ("1,000", "1,000")])
def test_a_comma_in_a_fraction_is_never_left_out(text: str, number: float | str) -> None:
    assert read_number(text, is_whole=False) == number


@pytest.mark.parametrize("sizes", [[], [64], [64, 32]])
def test_the_sizes_of_a_job_are_filled_in_as_they_are_read(sizes: list[int]) -> None:
    with Client(ui.page("/new")):
        field_input = FieldInput(FIELDS["net_arch"], lambda: None)
    assert field_input.value is None
    field_input.fill(sizes)
    assert field_input.value == sizes
