"""What breaks the schema is told in words: the field, the rule, the value."""

from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from service.schemas.fields import ALIAS_PATTERN
from service.schemas.jobs import LabelRequest
from service.schemas.sweeps import SweepRequest
from service.schemas.training import TrainRequest
from service.schemas.violations import summarize_violations
from service.settings import Settings


@pytest.mark.parametrize(
    ("request_body", "detail"),
    [
        ({"total_timesteps": "100"}, "total_timesteps: must be a whole number, not a string"),
        ({"total_timesteps": 1e4}, "total_timesteps: must be a whole number, not 10000.0"),
        ({"seed": -3}, "seed: must be at least 0, not -3"),
        ({"gamma": 2.0}, "gamma: must be at most 1.0, not 2.0"),
        ({"gamma": [0.9]}, "gamma: must be a number"),
        ({"bootstrap_value": 1}, "bootstrap_value: must be true or false, not 1"),
        ({"device": "gpu"}, "device: must be 'auto', 'cpu' or 'cuda'; did you mean 'cuda'?"),
        ({"gamma": "9" * 100}, "gamma: must be a number, not a string"),
        ({"normalize": {"x": 1}}, "normalize.x: unknown field"),
        ({"normalize": 5}, 'normalize: it must be true, false or an object such as {"norm_reward": false}'),
        (
            {"reward_functions": {"environment": 0, "survival": -0.0}},
            "reward_functions: all weights are 0, so there is nothing to learn from; give one another weight",
        ),
        ({"steps": 100}, "steps: unknown field; did you mean total_timesteps?"),
    ],
)
def test_the_rule_and_the_value_are_named(request_body: dict[str, Any], detail: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainRequest.model_validate(request_body)
    assert summarize_violations(caught.value.errors())[0] == detail


NEVER_SEEN = "\u115f\u1160\uffa0\u3164\u2800\u17b4\u17b5\u034f\u00ad\u180e\u2060\ufeff\U000e0041"
INVISIBLE = [*NEVER_SEEN, "\u180b", "\ufe0f", "\U000e0100"]


@pytest.mark.parametrize(
    ("request_body", "detail"),
    [
        ({"tags": ["a,b"]}, "tags.0: a tag has no comma, since lists of tags are written with commas"),
        ({"tags": [""]}, "tags.0: must have 1 or more characters"),
        ({"tags": ["a"] * 17}, "tags: must have at most 16 entries"),
        ({"display_name": "a" * 101}, "display_name: must have at most 100 characters"),
        ({"note": "\ud800"}, "note: must be a text without halves of surrogate pairs"),
        ({"note": "a\0b"}, "note: it has the character U+0000, which cannot be seen; leave it out"),
        (
            {"note": "\u202ea"},
            "note: it has the character U+202E (RIGHT-TO-LEFT OVERRIDE), which cannot be seen",
        ),
        ({"tags": ["a\u2028b"]}, "tags.0: it has the character U+2028 (LINE SEPARATOR), which cannot be seen"),
        ({"display_name": "a\nb"}, "display_name: it has a line break; write it in one line"),
        ({"display_name": "\u200d"}, "display_name: it has no character that can be seen; write some"),
        ({"display_name": "\u200d \u200d"}, "display_name: it has no character that can be seen; write some"),
        *[({"display_name": text}, "display_name: it has no character that can be seen") for text in INVISIBLE],
        *[({"tags": [f"a{text}"]}, f"tags.0: it has the character U+{ord(text):04X}") for text in NEVER_SEEN],
        ({"note": "a \ufe0f"}, "note: it has the character U+FE0F (VARIATION SELECTOR-16), which cannot be seen"),
        ({"note": "a\ufe0f\ufe0f"}, "note: it has the character U+FE0F"),
        ({"note": "a\u200d\u200d"}, "note: it has the character U+200D"),
        ({"note": "\u200da"}, "note: it has the character U+200D"),
    ],
)
def test_a_label_is_refused_with_its_rule(request_body: dict[str, Any], detail: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LabelRequest.model_validate(request_body)
    assert summarize_violations(caught.value.errors())[0].startswith(detail)


@pytest.mark.parametrize(
    "text",
    [
        *("Zeit\u00a0: 5\u202fs", "\N{WOMAN}\u200d\N{PERSONAL COMPUTER} run", "\u06a9\u200c\u06a9"),
        *("\N{HEAVY BLACK HEART}\ufe0f\u200d\N{FIRE}", "1\ufe0f\u20e3", "\u845b\U000e0100"),
    ],
)
def test_spaces_that_do_not_break_and_joined_characters_are_taken(text: str) -> None:
    request = LabelRequest.model_validate({"display_name": text, "tags": [text], "note": text})
    assert (request.display_name, request.tags, request.note) == (text, [text], text)


def test_what_looks_the_same_is_the_same() -> None:
    request = LabelRequest.model_validate(
        {"display_name": "e\u0301te\u0301", "tags": ["\u00e9", "e\u0301", "\u00c9", "x"]}
    )
    assert (request.display_name, request.tags) == ("\u00e9t\u00e9", ["\u00e9", "x"])


def test_line_breaks_of_all_systems_are_taken_in_a_note() -> None:
    assert LabelRequest.model_validate({"note": "a\r\nb\rc\n\td"}).note == "a\nb\nc\n\td"
    assert LabelRequest.model_validate({"note": "a" + "\r\n" * 3998 + "b"}).note == "a" + "\n" * 3998 + "b"


def test_a_name_that_is_too_long_has_characters() -> None:
    with pytest.raises(ValidationError) as caught:
        SweepRequest.model_validate({"name": "a" * 71})
    assert summarize_violations(caught.value.errors())[0] == "name: must have at most 70 characters"


def test_an_empty_object_is_refused_with_its_rule() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainRequest.model_validate({"reward_functions": {}})
    assert summarize_violations(caught.value.errors())[0] == "reward_functions: must have 1 or more entries"


def test_an_alias_is_refused_with_its_rule() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Annotated[str, Field(pattern=ALIAS_PATTERN)]).validate_python("x y")
    assert summarize_violations(caught.value.errors())[0].startswith("an alias consists of at most 32 letters")


def test_a_number_out_of_range_in_a_variable_is_no_wrong_kind_of_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"port": "70000"})
    assert summarize_violations(caught.value.errors())[0] == "port: must be at most 65535"
