"""The value beside the sliders, which is shown only where it was tested."""

import pytest

from service.dashboard.models.observation_sliders import describe_value
from service.schemas.models import ValueFigures

CHECK = ValueFigures(
    is_meaningful=True, gamma=0.99, n_states=9, correlation=0.9, error=0.1, spread=0.5, lowest=2.0, highest=550.0
)


@pytest.mark.parametrize("value", [2.0, 100.0, 550.0, 555.4, -3.4])
def test_a_value_among_those_that_were_tested_is_a_figure(value: float) -> None:
    figure, meaning = describe_value(value, "what is earned", CHECK)
    assert (float(figure), meaning) == (value, "what is earned")


@pytest.mark.parametrize(("value", "check"), [(555.6, CHECK), (-3.6, CHECK)])
def test_a_value_beyond_what_was_tested_is_none(value: float, check: ValueFigures) -> None:
    assert describe_value(value, "what is earned", check) == ("", "value: outside the tested range")


def test_a_value_is_not_shown_where_it_is_not_known_what_was_tested() -> None:
    figure, meaning = describe_value(100.0, "what is earned", None)
    assert not figure
    assert "range is unknown" in meaning


def test_no_value_needs_no_words() -> None:
    assert describe_value(None, "what is earned", CHECK) == ("", "")
