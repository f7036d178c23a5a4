"""Parallel coordinates of a sweep's settings, as an SVG: an axis per field, a line per setting, and what it earned."""

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from service.dashboard.widgets.number_format import format_number
from service.schemas.sweeps import SettingRow

_WIDTH, _TOP, _BOTTOM, _HEIGHT = 1000, 44, 288, 316
_MARGIN = 80
# Over more than this, small values of a linear axis would overlap.
_LOG_RATIO = 30.0
_MAX_LABEL_CHARS = 16
# Of more values, only the ends and the middle are written down.
_MAX_LABELS = 4
# Labels closer than this would overlap.
_LABEL_GAP = 0.07
_REWARD = "evaluated reward"
_MIN_LINES = 3


class Axis(NamedTuple):
    """Where the values of a field are.

    :param places: By value in JSON: how high, from 0 to 1.
    :param labels: Some of the values and their places.
    """

    name: str
    places: dict[str, float]
    labels: list[tuple[str, float]]


def draw_parallel_coordinates(rows: Sequence[SettingRow]) -> str:
    """Draw the settings that have a figure, the best one last and so on top; empty without three of them.

    Of two the table says as much.

    :param rows: The best first.
    """
    measured = [row for row in rows if row.mean_reward is not None]
    if len(measured) < _MIN_LINES:
        return ""
    axes = [make_axis(name, [row.values[name] for row in rows]) for name in rows[0].values]
    axes.append(make_axis(_REWARD, [row.mean_reward for row in measured]))
    gap = (_WIDTH - 2 * _MARGIN) / (len(axes) - 1)
    columns = [_MARGIN + gap * index for index in range(len(axes))]
    lines = [_draw_line(row, axes, columns, is_best=row is measured[0]) for row in reversed(measured)]
    sides = ["end", *["start"] * (len(axes) - 1)]  # the labels of the first axis stand before it
    frame = [_draw_axis(axis, x, side) for axis, x, side in zip(axes, columns, sides, strict=True)]
    label = f"Parallel coordinates of {len(measured)} settings; the table below has the same values."
    return (
        f'<svg class="coordinates" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(lines)}{''.join(frame)}</svg>"
    )


def make_axis(name: str, values: Sequence[Any]) -> Axis:
    """Place values: numbers by size, on a logarithmic scale if they range far; all others at even distances."""
    keys = list(dict.fromkeys(map(_spell, values)))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _make_scale(name, [float(value) for value in values], keys)
    places = {key: 0.5 if len(keys) == 1 else index / (len(keys) - 1) for index, key in enumerate(keys)}
    return Axis(name, places, [(_shorten(key), place) for key, place in places.items()])


def _make_scale(name: str, values: list[float], keys: list[str]) -> Axis:
    low, high = min(values), max(values)
    is_log = low > 0 and high / low >= _LOG_RATIO

    def place(value: float) -> float:
        if low == high:
            return 0.5
        if is_log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    middle = math.sqrt(low * high) if is_log else (low + high) / 2
    shown = sorted(set(values)) if len(keys) <= _MAX_LABELS else [low, middle, high]
    labels: list[tuple[str, float]] = []
    for each in reversed(shown):  # from the top, so that the largest always has one
        if not labels or labels[-1][1] - place(each) >= _LABEL_GAP:
            labels.append((f"{each:.3g}", place(each)))
    return Axis(name, {key: place(float(key)) for key in keys}, labels[::-1])


def _draw_axis(axis: Axis, x: float, anchor: str) -> str:
    side = -9 if anchor == "end" else 9
    labels = "".join(
        f'<text x="{x + side:.1f}" y="{_find_height(place) - 5:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        for text, place in axis.labels
    )
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}"/>'
        f'<text class="name" x="{x:.1f}" y="20" text-anchor="middle">{escape(axis.name)}</text>{labels}'
    )


def _draw_line(row: SettingRow, axes: Sequence[Axis], columns: Sequence[float], is_best: bool) -> str:
    values = [*(row.values[axis.name] for axis in axes[:-1]), row.mean_reward]
    points = " ".join(
        f"{x:.1f},{_find_height(axis.places[_spell(value)]):.1f}"
        for axis, x, value in zip(axes, columns, values, strict=True)
    )
    title = f"Setting {row.number}: {format_number(row.mean_reward or 0.0)}"
    return f'<polyline class="{"best" if is_best else ""}" points="{points}"><title>{title}</title></polyline>'


def _find_height(place: float) -> float:
    return _BOTTOM - place * (_BOTTOM - _TOP)


def _spell(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _shorten(text: str) -> str:
    plain = text.strip('"')
    return plain if len(plain) <= _MAX_LABEL_CHARS else f"{plain[: _MAX_LABEL_CHARS - 1]}…"
