"""Make the missing runs of the comparison.

Some of them: ``python -m benchmarks.learning.suite --envs CartPole-v1 --methods ppo_zoo trpo_zoo --n-seeds 3``.
It may be interrupted and started again at any time: a run is stored as soon as it is finished, and not repeated.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

# One thread per training; several trainings share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.learning.methods import METHODS, make_specs
from benchmarks.learning.trainers import train
from benchmarks.lib.runs import RESULTS_FOLDER, Run, RunSpec, append_run, find_missing, read_runs
from benchmarks.lib.tasks import TASKS


def get_path(env_name: str) -> Path:
    """Return the file with the runs of an environment."""
    return RESULTS_FOLDER / f"{env_name}.jsonl"


def run_missing(
    specs: Sequence[RunSpec], path: Path, executor: ProcessPoolExecutor, train: Callable[[RunSpec], Run]
) -> int:
    """Make the runs that the file lacks, and return how many failed."""
    missing = find_missing(specs, read_runs(path))
    futures = {executor.submit(train, spec): spec for spec in missing}
    n_failed = 0
    for future in as_completed(futures):
        spec = futures[future]
        error = future.exception()
        if error is not None:
            n_failed += 1
            print(f"FAILED {spec.env} {spec.method} seed {spec.seed}: {error!r}", file=sys.stderr, flush=True)
            continue
        run = future.result()
        append_run(path, run)
        print(f"{run.env} {run.method} seed {run.seed}: {run.score:.2f} in {run.wall_seconds:.0f} s", flush=True)
    return n_failed


def main() -> None:
    """Make the missing runs, environment by environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--n-seeds", type=int, help="seeds of each method, at most (and by default) the task's own number"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    n_failed = 0
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as executor:
        for env_name in arguments.envs:
            task = TASKS[env_name]
            n_seeds = arguments.n_seeds or task.n_seeds
            specs = [spec for method in arguments.methods for spec in make_specs(task, method, n_seeds)]
            n_failed += run_missing(specs, get_path(env_name), executor, train)
    sys.exit(1 if n_failed else 0)


if __name__ == "__main__":
    main()
