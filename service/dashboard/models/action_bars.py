"""Bars for a policy's answer: the probabilities of actions, or the components of a continuous one."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from service.dashboard.widgets.number_format import format_number
from service.inference.infer import Answer


class Bar(NamedTuple):
    """One bar.

    :param name: Name of the action or component.
    :param share: Filled part, in [0, 1].
    :param text: Probability or value, to show beside the bar.
    :param is_chosen: Whether the policy takes this action.
    """

    name: str
    share: float
    text: str
    is_chosen: bool


def list_bars(answer: Answer, space: spaces.Space[Any], names: tuple[str, ...]) -> list[Bar]:
    """List a bar per discrete action, or per component of a continuous one.

    :param space: Action space of the policy.
    :param names: Known names of the first discrete actions.
    """
    action: Any = answer.action
    probs: Any = answer.action_probs
    if isinstance(space, spaces.Box):
        return [*_list_components(action, space)]
    if isinstance(space, spaces.Discrete):
        chosen = action - int(space.start)
        return [_make_choice(_name(names, i), share, i == chosen) for i, share in enumerate(probs)]
    if isinstance(space, spaces.MultiBinary):
        digits = np.ravel(action).tolist()
        return [_make_choice(f"digit {i} is 1", share, digits[i] == 1) for i, share in enumerate(probs)]
    chosen = np.ravel(action).tolist()
    return [
        _make_choice(f"component {part}: {i}", share, chosen[part] == i)
        for part, shares in enumerate(probs)
        for i, share in enumerate(shares)
    ]


def _make_choice(name: str, share: float, is_chosen: bool) -> Bar:
    return Bar(name, share, f"{share:.1%}", is_chosen)


def _list_components(action: Any, space: spaces.Box) -> Iterator[Bar]:
    numbers, lows, highs = (np.ravel(array).tolist() for array in (action, space.low, space.high))
    for i, (number, low, high) in enumerate(zip(numbers, lows, highs, strict=True)):
        is_bounded = math.isfinite(low) and math.isfinite(high) and high > low
        share = (number - low) / (high - low) if is_bounded else 0.5 + math.atan(number) / math.pi
        yield Bar(f"action {i}", min(1.0, max(0.0, share)), format_number(number), True)


def _name(names: tuple[str, ...], action: int) -> str:
    return names[action] if action < len(names) else f"action {action}"
