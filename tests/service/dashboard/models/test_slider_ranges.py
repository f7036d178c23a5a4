"""Slider ranges for every kind of observation."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from service.dashboard.models.slider_ranges import Range, complete_angle, join_numbers, list_ranges
from service.spaces import count_numbers

BOUNDED = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))
HALF_OPEN = spaces.Box(np.array([5, -np.inf], np.float32), np.array([np.inf, -5], np.float32))


@pytest.mark.parametrize(
    ("space", "ranges"),
    [
        (BOUNDED, [(-1, 1, False), (0, 4, False)]),
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), [(-3, 3, False)]),
        (HALF_OPEN, [(5, 8, False), (-8, -5, False)]),
        (spaces.Box(0, 255, (2,), np.uint8), [(0, 255, True)] * 2),
        (spaces.Discrete(16), [(0, 15, True)]),
        (spaces.MultiDiscrete([2, 5]), [(0, 1, True), (0, 4, True)]),
        (spaces.MultiBinary(3), [(0, 1, True)] * 3),
    ],
    ids=str,
)
def test_every_number_has_a_range(space: spaces.Space[Any], ranges: list[Any]) -> None:
    assert [tuple(span) for span in list_ranges(space)] == ranges
    assert count_numbers(space) == len(ranges)


@pytest.mark.parametrize(
    ("space", "numbers", "observation"),
    [
        (BOUNDED, [0.5, 2.0], [0.5, 2.0]),
        (spaces.Box(0, 255, (2, 1), np.uint8), [7.0, 8.0], [[7], [8]]),
        (spaces.Discrete(16), [3.0], 3),
        (spaces.MultiDiscrete([2, 5]), [1.0, 4.0], [1, 4]),
        (spaces.MultiBinary(3), [0.0, 1.0, 1.0], [0, 1, 1]),
    ],
    ids=str,
)
def test_numbers_become_an_observation_of_a_request(
    space: spaces.Space[Any], numbers: list[float], observation: Any
) -> None:
    joined = join_numbers(space, numbers)
    assert joined == observation
    assert str(joined) == str(observation)  # integers where integers are asked for


@pytest.mark.parametrize(
    ("text", "number", "message"),
    [
        ("0.123456", 0.123456, ""),
        (" -1e-1 ", -0.1, ""),
        ("3", 0.5, "The maximum here is 0.5."),
        ("-3", -0.25, "The minimum here is -0.25."),
        ("abc", None, "“abc” is not a number."),
        ("inf", None, "“inf” is not a number."),
        ("", None, ""),
    ],
)
def test_a_typed_number_is_kept_in_the_range_and_that_is_said(text: str, number: float | None, message: str) -> None:
    assert Range(-0.25, 0.5, False).read(text) == (number, message)


def test_a_typed_number_of_whole_ones_is_whole() -> None:
    assert Range(0, 3, True).read("2.6") == (3, "Only whole numbers are possible here.")
    number, message = Range(0, 3, True).read("2.0")
    assert (str(number), message) == ("2", "")


def test_a_slider_stops_at_numbers_that_can_be_read_out_exactly() -> None:
    assert Range(-1, 1, False).round(0.0837758) == 0.0838
    # Rounded up, the end would lie outside.
    assert Range(-0.41887903, 0.41887903, False).round(0.41887903) == 0.41887903
    assert Range(0, 5000, True).round(1234) == 1234


def test_a_sine_fits_its_cosine_and_stays_on_its_side() -> None:
    assert (complete_angle(0.6, 0.1), complete_angle(-0.6, -0.1)) == (0.8, -0.8)
    assert str(complete_angle(1.0, -0.5)) == "0.0"
    assert complete_angle(1.00001, 0.5) == 0.0  # a 32-bit bound may lie above 1


def test_the_middle_and_random_numbers_lie_in_the_range() -> None:
    assert Range(-1, 2, False).middle == 0.5
    assert Range(0, 3, True).middle in (1, 2)
    rng = np.random.default_rng(0)
    assert {Range(0, 2, True).draw(rng) for _ in range(99)} == {0, 1, 2}
    assert all(5 <= Range(5, 6, False).draw(rng) <= 6 for _ in range(99))
