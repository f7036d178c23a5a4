"""The page of capacities is what the kept figures come to."""

import pytest

pytest.importorskip("simpy", reason="simpy is in requirements-dev.txt")

from benchmarks.capacity import figures, page
from benchmarks.capacity.figures import Check


def test_the_page_is_up_to_date() -> None:
    assert page.PATH.read_text() == page.write_page(figures.read()), "run python -m benchmarks.capacity"


def test_a_deviation_is_a_share_of_what_was_measured() -> None:
    assert Check("", measured=10.0, simulated=8.0).deviation == pytest.approx(-0.2)
    assert Check("", measured=8.0, simulated=10.0).deviation == pytest.approx(0.25)


def test_the_simulation_that_the_page_shows_was_near_what_was_measured() -> None:
    assert {
        check.what: check.deviation for check in figures.read().checks if abs(check.deviation) > page.TOLERANCE
    } == {}
