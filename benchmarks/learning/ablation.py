"""Make the missing runs of the ablation: one part of GRPO changed at a time, at equal steps.

``python -m benchmarks.learning.ablation --envs Acrobot-v1 --tables baseline --jobs 1``; ``python -m benchmarks.report``
writes the tables into RESULTS.md.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from itertools import product

# One thread per training; several trainings share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.learning.grpo_settings import get_grpo_settings
from benchmarks.learning.suite import run_missing
from benchmarks.learning.trainers import train
from benchmarks.lib.runs import RESULTS_FOLDER, RunSpec, Settings
from benchmarks.lib.tasks import Task, get_task

ABLATION_PATH = RESULTS_FOLDER / "ablation.jsonl"
_METHOD = "ablation"  # runs differ by their settings; two tables share a run
_FIRST_SEED = 4000  # others than the comparison's, since these runs may decide on settings
ABLATION_TASKS = (
    get_task("CartPole-v1", 20_000),
    get_task("Acrobot-v1", 15_000),
    get_task("Pendulum-v1", 30_000),
    get_task("MountainCar-v0", 120_000),
    get_task("InvertedDoublePendulum-v5", 100_000),
    get_task("Hopper-v5", 300_000),
    get_task("MiniGrid-DoorKey-6x6-flat-v0", 300_000),
)
# What differs between tables is named by all of them, so that a run with a preset's own settings is the same in each.
_NAMED: Settings = {"group_mode": "branch", "baseline": "residual", "anchor_selection": "continue"}
# Presets that have changed since the tables were made, as they were.
_FORMER: dict[str, Settings] = {
    "Pendulum-v1": {
        "n_envs": 1,
        "n_steps": 1024,
        "group_size": 2,
        "horizon": 32,
        "n_epochs": 15,
        "gamma": 0.95,
        "baseline": "adaptive",
        "learning_rate": "lin_0.003",
        "restart_probability": 0.7,
    }
}


@dataclass(frozen=True)
class Ablation:
    """One table.

    :param title: Heading.
    :param variants: Label of a row to the settings that replace those of the task.
    :param env_names: Environments that it is made for.
    :param n_seeds: Runs per row.
    """

    title: str
    variants: dict[str, Settings]
    env_names: tuple[str, ...] = tuple(task.env_name for task in ABLATION_TASKS)
    n_seeds: int = 10


def _vary(name: str, values: tuple[object, ...]) -> dict[str, Settings]:
    """Make a row of each value of one argument."""
    return {f"{name} {value}": {name: value} for value in values}


def _vary_baselines() -> dict[str, Settings]:
    """Make a row of each baseline, with groups of branches, the same from an archive of anchors, and of episodes."""
    groups: dict[str, Settings] = {
        "branches": {"group_mode": "branch"},
        "branches from an archive": {"group_mode": "branch", "anchor_selection": "archive"},
        "episodes": {"group_mode": "episode", "horizon": None},
    }
    baselines = ("none", "batch", "value", "group", "residual", "adaptive")
    return {
        f"{baseline}, {label}": {"baseline": baseline, **settings}
        for (label, settings), baseline in product(groups.items(), baselines)
    }


def _vary_branching() -> dict[str, Settings]:
    """Make a row of each combination of where groups start and what is subtracted.

    Groups that all start at a reset need no simulator put back in mid-episode, only one that repeats its reset. They
    never see a goal that is further away than the horizon, as on Acrobot.
    """
    starts: dict[str, Settings] = {"reset": {"restart_probability": 1.0}, "mid-episode": {"restart_probability": 0.0}}
    return {
        f"{baseline}, starts {start}": {"baseline": baseline, **settings}
        for (start, settings), baseline in product(starts.items(), ("value", "residual", "adaptive"))
    }


def _vary_starts() -> dict[str, Settings]:
    """Make the same rows with a fast and a slow value network."""
    value_steps: dict[str, Settings] = {"10": {"vf_lr_factor": 10.0}, "1": {"vf_lr_factor": 1.0}}
    return {
        f"{label}, value step x {factor}": start | value_step
        for factor, value_step in value_steps.items()
        for label, start in _vary_branching().items()
    }


def _vary_flag(name: str, labels: dict[str, bool]) -> dict[str, Settings]:
    """Make a row of each baseline that solves tasks, with and without something.

    :param labels: What a row is called beside its baseline, and the flag's value there.
    """
    return {
        f"{baseline}, {label}": {"baseline": baseline, name: labels[label]}
        for label, baseline in product(labels, ("value", "residual", "adaptive"))
    }


ABLATIONS = {
    "baseline": Ablation("what is subtracted, and where groups start", _vary_baselines()),
    "starts": Ablation(
        "where groups start, what is subtracted, how fast the value network learns",
        _vary_starts(),
        env_names=("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "InvertedDoublePendulum-v5"),
    ),
    "branching": Ablation(
        "where groups start, what is subtracted",
        _vary_branching(),
        env_names=("MountainCar-v0", "Hopper-v5", "MiniGrid-DoorKey-6x6-flat-v0"),
    ),
    "filling": Ablation(
        "whether new episodes fill the rollouts, and what is subtracted",
        _vary_flag("fill_rollouts", {"rollouts filled": True, "rollouts as they end": False}),
        env_names=("InvertedDoublePendulum-v5", "Hopper-v5", "MountainCar-v0"),
    ),
    "noise": Ablation(
        "whether the branches of a pair draw opposite noise, and what is subtracted",
        _vary_flag("antithetic_actions", {"independent noise": False, "opposite noise": True}),
        env_names=("Pendulum-v1", "InvertedDoublePendulum-v5", "Hopper-v5"),
    ),
    "group_size": Ablation("group size, the same steps per rollout", _vary("group_size", (2, 4, 8, 16))),
    "horizon": Ablation("horizon, the same steps per rollout", _vary("horizon", (8, 16, 32, 64, 128, 256))),
}


def make_rows(task: Task, ablation: Ablation) -> dict[str, list[RunSpec]]:
    """Return the runs of one table by the labels of its rows, without rows whose groups do not fill a rollout."""
    base = _NAMED | (_FORMER.get(task.env_name) or get_grpo_settings(task.env_name) or {})
    rows = {}
    for label, variant in ablation.variants.items():
        settings = base | variant
        for name in ("fill_rollouts", "antithetic_actions"):
            if not settings.get(name) and name not in base:
                settings.pop(name, None)  # the default, which runs of other tables do not name
        if _holds_whole_groups(settings):
            rows[label] = [
                RunSpec(task.env_name, _METHOD, "GRPO", seed, task.total_timesteps, settings)
                for seed in range(_FIRST_SEED, _FIRST_SEED + ablation.n_seeds)
            ]
    return rows


def _holds_whole_groups(settings: Settings) -> bool:
    if settings["group_mode"] == "episode":
        return True
    is_whole: bool = settings["n_steps"] % (settings["group_size"] * settings["horizon"]) == 0
    return is_whole


def main() -> None:
    """Make the missing runs."""
    env_names = [task.env_name for task in ABLATION_TASKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=env_names, default=env_names)
    parser.add_argument("--tables", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument(
        "--n-seeds", type=int, help="seeds of each row, at most (and by default) the table's own number"
    )
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows whose labels begin with one of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that share the runs")
    arguments = parser.parse_args()
    specs = [
        spec
        for task in ABLATION_TASKS
        for name in arguments.tables
        for label, row in make_rows(task, ABLATIONS[name]).items()
        if label.startswith(tuple(arguments.rows))
        for spec in row[: arguments.n_seeds]
        if task.env_name in arguments.envs and task.env_name in ABLATIONS[name].env_names
    ]
    sys.exit(1 if run_missing(specs, lambda env_name: ABLATION_PATH, arguments.jobs, train) else 0)


if __name__ == "__main__":
    main()
