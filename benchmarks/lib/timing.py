"""Measurements of several ways to do the same, taken in turns, and their table."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

# Takes one measurement, and returns it.
Case = Callable[[], float]


class Comparison(NamedTuple):
    """Measurements of several ways to do the same.

    :param title: Quantity and unit.
    :param timings: Label of a way to its measurements; infinite for a goal not reached.
    :param references: Labels of the ways to compare the others with.
    :param is_rate: Whether more is better, as with steps per second.
    :param n_decimals: Decimals to print.
    """

    title: str
    timings: Mapping[str, Sequence[float]]
    references: Sequence[str]
    is_rate: bool = False
    n_decimals: int = 1


def take_turns(cases: Mapping[str, Case], n_repetitions: int, max_seconds: float = math.inf) -> dict[str, list[float]]:
    """Measure every case once per repetition, so that a slow moment of the machine affects all of them.

    The first round is thrown away: it fills caches and imports modules.

    :param max_seconds: After this long no more rounds begin, but for one that counts.
    """
    rounds: list[dict[str, float]] = []
    deadline = time.perf_counter() + max_seconds
    while len(rounds) < 2 or (len(rounds) <= n_repetitions and time.perf_counter() < deadline):
        rounds.append({label: case() for label, case in cases.items()})
    return {label: [measured[label] for measured in rounds[1:]] for label in cases}


def format_comparison(comparison: Comparison) -> str:
    """Format one row per way as Markdown.

    A row has the median, the range, the number of measurements (and how many reached the goal), and how many times as
    fast as each reference the median is.
    """
    columns = "".join(f" x {label} |" for label in comparison.references)
    rows = [_format_row(comparison, label) for label in comparison.timings]
    return "\n".join(
        [
            f"| {comparison.title} | median | min - max | n |{columns}",
            "|---" * columns.count("|") + "|---" * 4 + "|",
            *rows,
        ]
    )


def _format_row(comparison: Comparison, label: str) -> str:
    timings, n_decimals = comparison.timings, comparison.n_decimals
    median = statistics.median(timings[label])
    shown = [_format_number(number, n_decimals) for number in (median, min(timings[label]), max(timings[label]))]
    ratios = [
        compute_speedup(median, statistics.median(timings[other]), comparison.is_rate)
        for other in comparison.references
    ]
    n, n_arrived = len(timings[label]), sum(map(math.isfinite, timings[label]))
    count = f"{n}" if n == n_arrived else f"{n_arrived} of {n}"
    cells = "".join(f" {ratio:,.2f} |" for ratio in ratios)
    return f"| {label} | {shown[0]} | {shown[1]} - {shown[2]} | {count} |{cells}"


def compute_speedup(measured: float, reference: float, is_rate: bool) -> float:
    """Return how many times as fast as the reference a measurement is; NaN if neither reached the goal."""
    fast, slow = (measured, reference) if is_rate else (reference, measured)
    return math.nan if math.isinf(slow) and math.isinf(fast) else fast / slow


def _format_number(number: float, n_decimals: int) -> str:
    return f"{number:,.{n_decimals}f}" if math.isfinite(number) else "never"
