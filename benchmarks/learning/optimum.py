"""What the best policies earn where that can be computed: ``python -m benchmarks.learning.optimum``, three minutes.

Pendulum-v1 and MountainCar-v0 have states of two numbers, so dynamic programming on a grid of states finds how to act
well: from the last step of the time limit backwards, the best action of each state, and what is earned from there on.
The policy that looks one step ahead with these values then plays whole episodes of the real motion, so what it earns is
within reach. A discount says how much less a policy earns that is the best for somebody who discounts.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from grpo_core.fast.dynamics import DYNAMICS, Dynamics

Array = npt.NDArray[Any]

N_EPISODES = 10_000
_FIRST_SEED = 50_000_000


class Grid(NamedTuple):
    """Evenly spaced states of two numbers.

    :param low: The least of each.
    :param high: The greatest of each; of an angle, the same as the least.
    :param shape: How many there are of each.
    :param is_angle: Whether the first is an angle.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    shape: tuple[int, int]
    is_angle: bool

    def list_states(self) -> Array:
        """Return all states, ``(n_states, 2)``."""
        axes = [
            np.linspace(low, high, n, endpoint=not (self.is_angle and i == 0))
            for i, (low, high, n) in enumerate(zip(self.low, self.high, self.shape, strict=True))
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)

    def locate(self, states: Array) -> tuple[Array, Array]:
        """Return the four states of the grid around each state, and their weights, both ``(4, n_states)``."""
        rows, columns = self.shape
        n_gaps = np.array([rows if self.is_angle else rows - 1, columns - 1])
        place = (states - self.low) / (np.subtract(self.high, self.low) / n_gaps)
        place = np.clip(place, 0, n_gaps) if not self.is_angle else place
        first = np.floor(place).astype(np.int64)
        first[:, 1] = np.clip(first[:, 1], 0, columns - 2)
        if not self.is_angle:
            first[:, 0] = np.clip(first[:, 0], 0, rows - 2)
        x, y = (place - first).T
        corners = [((first[:, 0] + i) % rows) * columns + first[:, 1] + j for i in (0, 1) for j in (0, 1)]
        return np.stack(corners), np.stack([(1 - x) * (1 - y), (1 - x) * y, x * (1 - y), x * y]).astype(np.float32)


class Problem(NamedTuple):
    """A task that is solved backwards.

    :param env_name: Gymnasium id.
    :param grid: Its states.
    :param actions: Those that are tried.
    :param discounts: What to discount by; 1 is what counts.
    """

    env_name: str
    grid: Grid
    actions: Sequence[Any]
    discounts: tuple[float, ...] = (1.0,)


_TORQUES = np.linspace(-2.0, 2.0, 41, dtype=np.float32)
PROBLEMS = (
    Problem(
        "Pendulum-v1",
        Grid((-math.pi, -8.0), (math.pi, 8.0), (600, 321), is_angle=True),
        [[torque] for torque in _TORQUES],
        (1.0, 0.98, 0.95),
    ),
    Problem("MountainCar-v0", Grid((-1.2, -0.07), (0.6, 0.07), (721, 561), is_angle=False), [0, 1, 2]),
)


def _move(dynamics: Dynamics, states: Array, action: Any) -> tuple[Array, Array, Array]:
    """Return the next states, the rewards and which have reached the end."""
    after = np.empty_like(states)
    motion = dynamics.advance(states, np.array([action] * len(states)), after)
    return after, motion.rewards, motion.terminated


def find_values(problem: Problem, dynamics: Dynamics, n_steps: int, discount: float = 1.0) -> list[Array]:
    """Return what each state of the grid earns at best with 0, 1, ... ``n_steps - 1`` steps left.

    With a discount there is no end: all are as many steps before it as there are.
    """
    states = problem.grid.list_states()
    moves = []
    for action in problem.actions:
        after, rewards, terminated = _move(dynamics, states, action)
        corners, weights = problem.grid.locate(after)
        moves.append((corners, np.float32(discount) * weights * ~terminated, rewards.astype(np.float32)))
    values = [np.zeros(len(states), np.float32)]
    for _ in range(n_steps - 1):
        left = values[-1]
        earned = [rewards + (left[corners] * weights).sum(axis=0) for corners, weights, rewards in moves]
        values.append(np.max(earned, axis=0))
    return values if discount == 1.0 else values[-1:] * n_steps


def play(problem: Problem, dynamics: Dynamics, values: list[Array], starts: Array, discount: float = 1.0) -> Array:
    """Play an episode from each start by looking one step ahead; return what they earn."""
    states, live, returns = starts, np.arange(len(starts)), np.zeros(len(starts))
    for left in reversed(values):
        tried = [_move(dynamics, states, action) for action in problem.actions]
        earned = []
        for after, rewards, terminated in tried:
            corners, weights = problem.grid.locate(after)
            earned.append(rewards + discount * (left[corners] * weights).sum(axis=0) * ~terminated)
        best, rows = np.argmax(earned, axis=0), np.arange(len(states))
        after, rewards, terminated = (np.stack(parts)[best, rows] for parts in zip(*tried, strict=True))
        returns[live] += rewards
        states, live = after[~terminated], live[~terminated]
        if len(live) == 0:
            break
    return returns


def main() -> None:
    """Solve each task, and print what its best policy earns."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| task | best for a discount of | mean reward | standard error | episodes |\n|---|---|---|---|---|")
    for problem in PROBLEMS:
        env = gym.make(problem.env_name)
        assert env.spec is not None
        n_steps = env.spec.max_episode_steps or 0
        dynamics = DYNAMICS[type(env.unwrapped)](env.unwrapped)
        starts = []
        for seed in range(_FIRST_SEED, _FIRST_SEED + N_EPISODES):
            env.reset(seed=seed)
            starts.append(dynamics.capture())
        for discount in problem.discounts:
            values = find_values(problem, dynamics, n_steps, discount)
            returns = play(problem, dynamics, values, np.array(starts, np.float64), discount)
            error = returns.std() / math.sqrt(N_EPISODES)
            earned = f"{discount:g} | {returns.mean():.2f} | {error:.2f}"
            print(f"| {problem.env_name} | {earned} | {N_EPISODES:,} |", flush=True)


if __name__ == "__main__":
    main()
