"""Make the missing runs of the ablation: one part of GRPO changed at a time, at equal steps.

``python -m benchmarks.learning.ablation --envs Acrobot-v1 --jobs 1``; ``python -m benchmarks.report`` writes the tables
into RESULTS.md.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

# One thread per training; several trainings share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.learning.grpo_settings import get_grpo_settings
from benchmarks.learning.suite import run_missing
from benchmarks.learning.trainers import train
from benchmarks.lib.runs import RESULTS_FOLDER, RunSpec, Settings
from benchmarks.lib.tasks import TASKS, Task

ABLATION_PATH = RESULTS_FOLDER / "ablation.jsonl"
_METHOD = "ablation"  # runs differ by their settings; two tables share a run
_FIRST_SEED = 4000  # others than the comparison's, since these runs may decide on settings
_N_SEEDS = 6
_DEFAULT_ENVS = ("Acrobot-v1", "CartPole-v1")
# All of them, so that a run with an environment's own settings is the same run in every table.
_DEFAULTS: Settings = {
    "group_mode": "branch",
    "baseline": "residual",
    "advantage_scaling": "batch",
    "group_size": 2,
    "horizon": 32,
    "n_steps": 256,
}


@dataclass(frozen=True)
class Ablation:
    """One table.

    :param title: Heading.
    :param variants: Settings that replace those of the environment, one row each.
    """

    title: str
    variants: tuple[Settings, ...]


ABLATIONS = (
    Ablation(
        "baseline",
        (
            *({"baseline": name} for name in ("none", "batch", "timestep", "group", "residual", "value")),
            {"group_mode": "episode", "baseline": "group"},
        ),
    ),
    Ablation("group size, the same steps per rollout", tuple({"group_size": size} for size in (2, 4, 8, 16))),
    Ablation("horizon, the same steps per rollout", tuple({"horizon": horizon} for horizon in (4, 8, 16, 32, 64, 128))),
    Ablation("advantage scaling", tuple({"advantage_scaling": name} for name in ("group", "batch", "none"))),
)


def make_ablation_specs(task: Task, ablation: Ablation) -> list[RunSpec]:
    """Return the runs of one table, without variants whose groups do not fill a rollout."""
    specs = []
    for variant in ablation.variants:
        settings = _DEFAULTS | get_grpo_settings(task.env_name) | variant
        if settings["n_steps"] % (settings["group_size"] * settings["horizon"]) == 0:
            specs += [
                RunSpec(task.env_name, _METHOD, "GRPO", seed, task.total_timesteps, settings)
                for seed in range(_FIRST_SEED, _FIRST_SEED + _N_SEEDS)
            ]
    return specs


def get_label(ablation: Ablation, spec: RunSpec) -> str:
    """Return the label of a run's row: the settings of its variant."""
    variant = next(variant for variant in reversed(ablation.variants) if variant.items() <= spec.settings.items())
    return ", ".join(f"{name} {value}" for name, value in variant.items())


def main() -> None:
    """Make the missing runs, table by table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=TASKS, default=list(_DEFAULT_ENVS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    n_failed = 0
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as executor:
        for env_name in arguments.envs:
            for ablation in ABLATIONS:
                specs = make_ablation_specs(TASKS[env_name], ablation)
                n_failed += run_missing(specs, ABLATION_PATH, executor, train)
    sys.exit(1 if n_failed else 0)


if __name__ == "__main__":
    main()
