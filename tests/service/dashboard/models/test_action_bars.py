"""The bars of an answer, for every kind of action."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from service.dashboard.models.action_bars import list_bars
from service.inference.infer import Answer

PENDULUM = spaces.Box(-2, 2, (1,), np.float32)
ENDLESS = spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.mark.parametrize(
    ("space", "action", "probs", "bars"),
    [
        (spaces.Discrete(2), 1, [0.25, 0.75], [("left", 0.25, "25.0%", False), ("action 1", 0.75, "75.0%", True)]),
        (spaces.Discrete(2, start=5), 5, [1.0, 0.0], [("left", 1, "100.0%", True), ("action 1", 0, "0.0%", False)]),
        (
            spaces.MultiDiscrete([2, 1]),
            [0, 0],
            [[0.5, 0.5], [1.0]],
            [
                ("component 0: 0", 0.5, "50.0%", True),
                ("component 0: 1", 0.5, "50.0%", False),
                ("component 1: 0", 1.0, "100.0%", True),
            ],
        ),
        (spaces.MultiBinary(1), [1], [0.9], [("digit 0 is 1", 0.9, "90.0%", True)]),
        (PENDULUM, [1.0], None, [("action 0", 0.75, "1", True)]),
        (PENDULUM, [-2.5], None, [("action 0", 0.0, "-2.5", True)]),
        (ENDLESS, [0.0], None, [("action 0", 0.5, "0", True)]),
    ],
    ids=str,
)
def test_every_choice_and_every_component_has_a_bar(
    space: spaces.Space[Any], action: Any, probs: Any, bars: list[Any]
) -> None:
    answer = Answer(action=action, action_probs=probs, value=0.0)
    assert [tuple(bar) for bar in list_bars(answer, space, ("left",))] == bars
