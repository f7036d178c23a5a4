"""The tasks of the comparison: their budgets, seeds, evaluations and aims."""

from dataclasses import dataclass

FIRST_SEED = 3000  # never used while a method was tuned
N_CURVE_POINTS = 10


@dataclass(frozen=True)
class Task:
    """One environment with a budget.

    :param env_name: Gymnasium id.
    :param total_timesteps: Budget in simulator steps; evaluation is not counted.
    :param n_seeds: Runs per method, seeded from ``FIRST_SEED`` upwards.
    :param aim: Interquartile mean that GRPO should reach.
    :param n_episodes: Episodes per final score.
    :param n_curve_episodes: Episodes per earlier point of the learning curve.
    """

    env_name: str
    total_timesteps: int
    n_seeds: int
    aim: float
    n_episodes: int = 100
    n_curve_episodes: int = 20

    @property
    def seeds(self) -> range:
        """The seeds of the comparison."""
        return range(FIRST_SEED, FIRST_SEED + self.n_seeds)


_TASKS = (
    Task("CartPole-v1", 20_000, n_seeds=10, aim=490),
    Task("Acrobot-v1", 15_000, n_seeds=10, aim=-88),
    Task("Pendulum-v1", 30_000, n_seeds=10, aim=-170),
    Task("MountainCar-v0", 120_000, n_seeds=10, aim=-110),
    # An episode succeeds by chance: it takes many to tell 0.70 from 0.74.
    Task("FrozenLake-v1", 50_000, n_seeds=10, aim=0.70, n_episodes=1000, n_curve_episodes=200),
    Task("LunarLander-v3", 300_000, n_seeds=3, aim=200, n_episodes=50, n_curve_episodes=5),
    Task("Hopper-v5", 300_000, n_seeds=3, aim=2000, n_episodes=30, n_curve_episodes=5),
)
TASKS = {task.env_name: task for task in _TASKS}
