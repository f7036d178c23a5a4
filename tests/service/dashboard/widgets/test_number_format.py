"""The format of numbers, durations and sizes."""

import pytest

from service.dashboard.widgets.number_format import (
    format_count,
    format_duration,
    format_interval,
    format_items,
    format_margin,
    format_number,
    format_range,
    format_size,
)


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0"), (0.5, "0.5"), (-1.23456, "-1.23"), (99.96, "100"), (1234.56, "1,234.6"), (0.00012, "1.2e-04")],
)
def test_numbers_have_three_figures(number: float, written: str) -> None:
    assert format_number(number) == written


def test_one_of_a_kind_is_no_plural() -> None:
    assert [format_items(n, "setting") for n in (0, 1, 1200)] == ["0 settings", "1 setting", "1,200 settings"]


def test_a_margin_is_half_of_the_interval() -> None:
    assert (format_margin((494.75, 501.25)), format_margin(None)) == ("± 3.25", "")


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (187, "3:07 min"), (3760, "1:02:40 h")]
)
def test_durations_have_the_unit_that_suits_them(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(
    ("n_bytes", "written"), [(7, "7 bytes"), (130_000, "130 KB"), (1_230_000, "1.23 MB"), (5 * 10**9, "5 GB")]
)
def test_sizes_have_the_unit_that_suits_them(n_bytes: int, written: str) -> None:
    assert format_size(n_bytes) == written


def test_counts_are_grouped_and_intervals_have_two_ends() -> None:
    assert format_count(1_000_000) == "1,000,000"
    assert format_interval((1.0, 22.456)) == "1 to 22.5"
    assert format_interval(None) == ""
    assert format_interval((-200.1, -200.1 + 1e-13)) == format_interval((0.0, 0.0)) == "all episodes alike"
    assert format_range([500.0, 500.0]) == "all seeds alike"
    assert format_interval((499.99, 500.0)) == "500.0 to 500.0"
