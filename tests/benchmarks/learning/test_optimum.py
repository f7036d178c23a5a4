"""The best that can be earned, on a task whose answer is known."""

import numpy as np

from benchmarks.learning.optimum import Grid, Problem, find_values, play
from grpo_core.fast.dynamics import Dynamics, Motion


class _Line(Dynamics):
    """Steps of 0.25 along a line, each of which costs 1 until 1 is reached; the second number stays."""

    size = 2

    def __init__(self) -> None:
        super().__init__(None)

    def advance(self, states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> Motion:
        next_states[:] = states
        next_states[:, 0] += np.where(actions == 1, 0.25, -0.25)
        return Motion(next_states, np.full(len(states), -1.0), next_states[:, 0] >= 1.0)


def test_the_shortest_way_is_found() -> None:
    problem = Problem("Line", Grid((-1.0, 0.0), (1.0, 1.0), (9, 2), is_angle=False), [0, 1])
    starts = np.array([[0.0, 0.5], [0.5, 0.0], [-1.0, 1.0]])
    for discount in (1.0, 0.9):
        values = find_values(problem, _Line(), 10, discount)
        assert len(values) == 10
        assert play(problem, _Line(), values, starts, discount).tolist() == [-4.0, -2.0, -8.0]


def test_states_lie_between_those_of_the_grid() -> None:
    grid = Grid((-np.pi, 0.0), (np.pi, 1.0), (4, 3), is_angle=True)
    states = np.array([[0.1, 0.3], [3.0, 1.0], [-3.5, 0.0]])
    corners, weights = grid.locate(states)
    assert np.allclose(weights.sum(axis=0), 1.0)
    points = grid.list_states()[corners]  # (corner, state, number)
    assert np.allclose((weights * points[..., 1]).sum(axis=0), states[:, 1], atol=1e-6)
    assert np.allclose((weights * points[..., 0]).sum(axis=0)[0], 0.1, atol=1e-6)
    assert set(points[:, 1, 0]) == {np.pi / 2, -np.pi}  # beyond the last angle comes the first
    assert set(points[:, 2, 0]) == {np.pi / 2, -np.pi}
