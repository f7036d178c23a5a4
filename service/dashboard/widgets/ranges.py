"""Where the sliders of an observation begin and end, and how their numbers become an observation again."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

# Where a space has no bounds, or some that nothing ever reaches.
_REACH = 3.0
_MAX_BOUND = 1e4


class Range(NamedTuple):
    """The ends of a slider.

    :param is_whole: Whether only whole numbers lie between them.
    """

    low: float
    high: float
    is_whole: bool

    @property
    def middle(self) -> float:
        """The number halfway; of whole ones, the one closest to it."""
        middle = (self.low + self.high) / 2
        return round(middle) if self.is_whole else middle

    def draw(self, rng: np.random.Generator) -> float:
        """Draw a number uniformly."""
        if self.is_whole:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        return float(rng.uniform(self.low, self.high))


def count_numbers(space: spaces.Space[Any]) -> int:
    """Count the numbers of an observation without keys."""
    return math.prod(space.shape or ())


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
    """Return an observation without keys as a request would have it."""
    if isinstance(space, spaces.Discrete):
        return int(numbers[0])
    is_real = isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f"
    return np.array(numbers, np.float64 if is_real else np.int64).reshape(space.shape or ()).tolist()


def _limit(low: float, high: float) -> tuple[float, float]:
    """Replace what is out of reach by something near the other end."""
    if low < -_MAX_BOUND and high > _MAX_BOUND:
        return -_REACH, _REACH
    if low < -_MAX_BOUND:
        return min(high, 0.0) - _REACH, high
    return (low, max(low, 0.0) + _REACH) if high > _MAX_BOUND else (low, high)
