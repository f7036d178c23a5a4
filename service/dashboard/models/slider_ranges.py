"""Ranges of sliders for the numbers of an observation, and the observation that they make."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from service.dashboard.widgets.number_format import write_exactly
from service.spaces import count_numbers

# For spaces without bounds, or with bounds that no observation comes near.
_REACH = 3.0
_MAX_BOUND = 1e4


class Range(NamedTuple):
    """The range of a slider.

    :param is_whole: Whether it has whole numbers only.
    """

    low: float
    high: float
    is_whole: bool

    @property
    def middle(self) -> float:
        """The number in the middle, rounded in a range of whole numbers."""
        middle = (self.low + self.high) / 2
        return round(middle) if self.is_whole else middle

    def round(self, number: float) -> float:
        """Round to three figures where that stays in the range."""
        rounded = float(f"{number:.3g}")
        return rounded if not self.is_whole and self.low <= rounded <= self.high else number

    def read(self, text: str) -> tuple[float | None, str]:
        """Read a typed number.

        :return: The closest number in the range, or None if the text is not a number; and a message if they differ.
        """
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            return None, f"“{text}” is not a number." if text.strip() else ""
        if number < self.low:
            return self.low, f"The minimum here is {write_exactly(self.low)}."
        if number > self.high:
            return self.high, f"The maximum here is {write_exactly(self.high)}."
        if self.is_whole and not number.is_integer():
            return round(number), "Only whole numbers are possible here."
        return (int(number) if self.is_whole else number), ""

    def draw(self, rng: np.random.Generator) -> float:
        """Draw a number uniformly."""
        if self.is_whole:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        return float(rng.uniform(self.low, self.high))


def list_ranges(space: spaces.Space[Any]) -> Iterator[Range]:
    """List the range of each number of an observation without keys."""
    if isinstance(space, spaces.Discrete):
        yield Range(0, int(space.n) - 1, True)
    elif isinstance(space, spaces.MultiDiscrete):
        yield from (Range(0, int(n) - 1, True) for n in space.nvec.reshape(-1))
    elif isinstance(space, spaces.Box):
        is_whole = np.dtype(space.dtype).kind != "f"
        ends = zip(space.low.reshape(-1).tolist(), space.high.reshape(-1).tolist(), strict=True)
        yield from (Range(*_limit(low, high), is_whole) for low, high in ends)
    else:
        yield from (Range(0, 1, True) for _ in range(count_numbers(space)))


def join_numbers(space: spaces.Space[Any], numbers: Sequence[float]) -> Any:
    """Return an observation without keys, as in a request."""
    if isinstance(space, spaces.Discrete):
        return int(numbers[0])
    is_real = isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f"
    return np.array(numbers, np.float64 if is_real else np.int64).reshape(space.shape or ()).tolist()


def complete_angle(number: float, before: float) -> float:
    """Return the sine to a cosine, or the reverse, to three digits.

    :param before: What it was: it stays on that side of 0.
    """
    return math.copysign(round(math.sqrt(max(0.0, 1 - number * number)), 3), before) + 0.0  # no -0


def _limit(low: float, high: float) -> tuple[float, float]:
    """Replace bounds that no observation comes near by ones near 0 or the other bound."""
    if low < -_MAX_BOUND and high > _MAX_BOUND:
        return -_REACH, _REACH
    if low < -_MAX_BOUND:
        return min(high, 0.0) - _REACH, high
    return (low, max(low, 0.0) + _REACH) if high > _MAX_BOUND else (low, high)
