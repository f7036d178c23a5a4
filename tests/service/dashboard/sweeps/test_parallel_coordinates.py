"""Where values lie on the axes of parallel coordinates, and what is drawn."""

from typing import Any
from xml.etree import ElementTree

import pytest

from service.dashboard.sweeps.parallel_coordinates import draw_parallel_coordinates, make_axis
from service.schemas.sweeps import SettingRow


def make_row(number: int, mean_reward: float | None, **values: Any) -> SettingRow:
    return SettingRow(
        number=number,
        values=values,
        rung=0,
        total_timesteps=100,
        n_seeds=0 if mean_reward is None else 1,
        mean_reward=mean_reward,
        mean_reward_ci95=None,
        ci95_over=None,
        rewards=[],
        trials=[],
    )


def test_numbers_lie_by_their_size() -> None:
    axis = make_axis("gamma", [0.9, 0.95, 1.0])
    assert list(axis.places.values()) == pytest.approx([0.0, 0.5, 1.0])
    assert axis.labels == [("0.9", 0.0), ("0.95", pytest.approx(0.5)), ("1", 1.0)]


def test_numbers_that_range_far_lie_by_their_logarithms() -> None:
    axis = make_axis("learning_rate", [1e-4, 1e-3, 1e-2])
    assert list(axis.places.values()) == pytest.approx([0.0, 0.5, 1.0])


def test_a_number_just_below_another_has_no_label() -> None:
    axis = make_axis("x", [177.0, 185.0, 278.0, 426.0])
    assert [text for text, _ in axis.labels] == ["185", "278", "426"]


@pytest.mark.parametrize("values", [[True, False], [[8], [8, 8]], [None, 0.1], ["linear", "constant"]])
def test_what_is_no_number_lies_in_the_order_of_the_sweep(values: list[Any]) -> None:
    assert list(make_axis("x", values).places.values()) == [0.0, 1.0]


def test_a_single_value_lies_in_the_middle() -> None:
    assert list(make_axis("x", [5]).places.values()) == [0.5]
    assert list(make_axis("x", ["a"]).places.values()) == [0.5]


def test_every_measured_setting_has_a_line_and_the_best_is_on_top() -> None:
    rows = [make_row(2, 9.0, loss="<b>"), make_row(4, 5.0, loss="a"), make_row(1, 1.0, loss="a")]
    rows.append(make_row(3, None, loss="c"))
    svg = ElementTree.fromstring(draw_parallel_coordinates(rows))
    lines = svg.findall("polyline")
    assert [line.findtext("title") for line in lines] == ["Setting 1: 1", "Setting 4: 5", "Setting 2: 9"]
    assert [line.get("class") for line in lines] == ["", "", "best"]
    # The first value of three at the bottom, the best reward at the top.
    assert lines[2].get("points") == "80.0,288.0 920.0,44.0"
    assert "<b>" in {text.text for text in svg.findall("text")}


def test_two_figures_make_no_drawing() -> None:
    rows = [make_row(1, 9.0, a=1), make_row(2, 8.0, a=2), make_row(3, None, a=3)]
    assert draw_parallel_coordinates(rows) == ""
    assert draw_parallel_coordinates([]) == ""
