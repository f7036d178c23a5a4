"""Spaces as clients see them: numbers for programs, Gymnasium's own words for people."""

import math
from typing import Any

import numpy.typing as npt
from gymnasium import spaces

from service.errors import printable
from service.schemas.spaces import SpaceDescription

_MAX_TEXT_CHARS = 500
# Maximum number of bounds or choices to list.
_MAX_LISTED = 1024


def describe_space(space: spaces.Space[Any]) -> SpaceDescription:
    """Describe a space of any kind.

    Bounds are listed in the order of the flattened numbers, or once if all are equal; None means unbounded.
    """
    described: dict[str, Any] = {}
    if isinstance(space, spaces.Dict):
        described["spaces"] = {str(key): describe_space(part) for key, part in space.spaces.items()}
    elif isinstance(space, spaces.Box):
        described = {"low": _list_bounds(space.low), "high": _list_bounds(space.high)}
    elif isinstance(space, spaces.MultiDiscrete):
        described["nvec"] = space.nvec.reshape(-1).tolist() if space.nvec.size <= _MAX_LISTED else None
    elif isinstance(space, spaces.Discrete | spaces.MultiBinary):
        described["n"] = int(space.n) if isinstance(space, spaces.Discrete) else math.prod(space.shape)
    return SpaceDescription(
        type=type(space).__name__,
        text=printable(" ".join(str(space).split()), _MAX_TEXT_CHARS),
        shape=None if space.shape is None else list(space.shape),
        dtype=None if space.dtype is None else str(space.dtype),
        **described,
    )


def count_numbers(space: spaces.Space[Any]) -> int:
    """Count the numbers of one observation in a request."""
    if isinstance(space, spaces.Dict):
        return sum(map(count_numbers, space.spaces.values()))
    return math.prod(space.shape or ())


def _list_bounds(bounds: npt.NDArray[Any]) -> list[float | None] | None:
    numbers = bounds.reshape(-1)
    if numbers.size and (numbers == numbers[0]).all():
        numbers = numbers[:1]
    if numbers.size > _MAX_LISTED:
        return None
    return [number if math.isfinite(number) else None for number in numbers.tolist()]
