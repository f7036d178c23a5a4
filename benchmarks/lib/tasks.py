"""The tasks of the comparison: their budgets, seeds, evaluations and aims."""

from dataclasses import dataclass

FIRST_SEED = 3000  # none from here on was used while a method was tuned
N_CURVE_POINTS = 10


@dataclass(frozen=True)
class Task:
    """One environment with a budget.

    :param env_name: Gymnasium id.
    :param total_timesteps: Budget in simulator steps; evaluation is not counted.
    :param aim: Interquartile mean that GRPO should reach; None asks for no less than PPO's alone.
    :param worst_aim: Score that every seed of GRPO should reach.
    :param n_seeds: Runs per method, seeded from ``FIRST_SEED`` upwards.
    :param first_own_seed: First seed of this project's methods: another one where a preset was changed after it had
        been run on the others' seeds.
    :param n_episodes: Episodes per final score.
    :param n_curve_episodes: Episodes per earlier point of the learning curve.
    :param n_decimals: Decimals of a score in the tables.
    """

    env_name: str
    total_timesteps: int
    aim: float | None = None
    worst_aim: float | None = None
    n_seeds: int = 10
    first_own_seed: int = FIRST_SEED
    n_episodes: int = 100
    n_curve_episodes: int = 20
    n_decimals: int = 1

    @property
    def seeds(self) -> range:
        """The seeds of the methods that the project is compared with."""
        return range(FIRST_SEED, FIRST_SEED + self.n_seeds)

    @property
    def own_seeds(self) -> range:
        """The seeds of the project's own methods."""
        return range(self.first_own_seed, self.first_own_seed + self.n_seeds)

    @property
    def title(self) -> str:
        """The environment and the budget, which together are unique."""
        return f"{self.env_name}, {self.total_timesteps:,} steps"

    @property
    def file_name(self) -> str:
        """The title in a form for files."""
        return f"{self.env_name}-{self.total_timesteps}"


# A million steps takes a seed a quarter of an hour or more.
_MILLION = {"total_timesteps": 1_000_000, "n_seeds": 5, "n_episodes": 30, "n_curve_episodes": 5}

TASKS = (
    Task("CartPole-v1", 20_000, aim=499, worst_aim=499, n_seeds=20, first_own_seed=6000),
    Task("Acrobot-v1", 15_000, aim=-82, first_own_seed=6000),
    # Two episodes differ by 75 points, so that a mean of 100 is known to 8 only.
    Task("Pendulum-v1", 30_000, aim=-155, worst_aim=-180, first_own_seed=11000, n_episodes=1000),
    Task("MountainCar-v0", 120_000, aim=-108),
    Task("MountainCarContinuous-v0", 60_000, aim=93),
    # An episode succeeds by chance: it takes many to tell 0.70 from 0.74.
    Task("FrozenLake-v1", 50_000, aim=0.73, n_episodes=1000, n_curve_episodes=200, n_decimals=3),
    Task("LunarLander-v3", 300_000, aim=220, n_episodes=50, n_curve_episodes=5),
    Task("InvertedDoublePendulum-v5", 100_000, aim=9_000, n_episodes=50, n_curve_episodes=5),
    Task("Hopper-v5", 300_000, aim=2_000, first_own_seed=9000, n_episodes=30, n_curve_episodes=5),
    # No seed below 60 % of the aim.
    Task("Hopper-v5", aim=2_600, worst_aim=1_560, first_own_seed=9000, **_MILLION),
    Task("Walker2d-v5", aim=3_000, worst_aim=1_800, first_own_seed=13000, **_MILLION | {"n_seeds": 10}),
    Task("HalfCheetah-v5", aim=4_500, worst_aim=2_700, first_own_seed=8000, **_MILLION),
    Task("Swimmer-v5", first_own_seed=9000, **_MILLION),
    Task("Ant-v5", **_MILLION),
    Task("MiniGrid-DoorKey-6x6-flat-v0", 300_000, aim=0.9, first_own_seed=8000, n_decimals=3),
    # Its reward falls by 0.0225 a step: the shortest paths of 30 layouts earn 0.835.
    Task("MiniGrid-MultiRoom-N2-S4-flat-v0", 300_000, aim=0.8, first_own_seed=12000, n_decimals=3),
    Task("MinAtar-Breakout-flat-v1", 500_000, first_own_seed=15000),
)
ENV_NAMES = tuple(dict.fromkeys(task.env_name for task in TASKS))


def get_task(env_name: str, total_timesteps: int) -> Task:
    """Return a task by its environment and budget.

    :raises KeyError: If there is none.
    """
    for task in TASKS:
        if (task.env_name, task.total_timesteps) == (env_name, total_timesteps):
            return task
    raise KeyError(f"no task has {env_name} with {total_timesteps:,} steps; benchmarks/lib/tasks.py lists them.")


def select_tasks(env_names: list[str], max_steps: int | None = None) -> list[Task]:
    """Return the tasks of some environments, without those of more than ``max_steps`` steps."""
    return [
        task
        for task in TASKS
        if task.env_name in env_names and (max_steps is None or task.total_timesteps <= max_steps)
    ]
