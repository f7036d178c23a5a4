"""Make the missing runs of the comparison, those that take the least time first.

Some of them: ``python -m benchmarks.learning.suite --envs CartPole-v1 --methods ppo_zoo trpo_zoo --n-seeds 3``.
Those of short tasks, on one core and behind all other work:
``nice -n 10 python -m benchmarks.learning.suite --max-steps 120000 --jobs 1``.
It may be interrupted and started again at any time: a run is stored as soon as it is finished, and not repeated.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

# One thread per training; several trainings share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.learning.methods import METHODS, make_specs
from benchmarks.learning.trainers import train
from benchmarks.lib.durations import estimate_seconds, format_duration
from benchmarks.lib.runs import RESULTS_FOLDER, Run, RunSpec, append_run, find_missing, read_runs
from benchmarks.lib.tasks import ENV_NAMES, select_tasks


def get_path(env_name: str) -> Path:
    """Return the file with the runs of an environment, whatever their budget."""
    return RESULTS_FOLDER / f"{env_name}.jsonl"


def plan_runs(specs: Sequence[RunSpec], finished: Sequence[Run]) -> list[tuple[float, RunSpec]]:
    """Return the missing runs and their expected seconds, the quickest first."""
    planned = [(estimate_seconds(spec, finished), spec) for spec in find_missing(specs, finished)]
    return sorted(planned, key=lambda pair: pair[0])


def run_missing(
    specs: Sequence[RunSpec], get_path: Callable[[str], Path], n_jobs: int, train: Callable[[RunSpec], Run]
) -> int:
    """Make the runs that the files lack, and return how many failed.

    :param get_path: Returns the file for an environment's runs.
    :param n_jobs: Processes to share the runs.
    """
    finished = [run for path in {get_path(spec.env) for spec in specs} for run in read_runs(path)]
    missing = plan_runs(specs, finished)
    total = left = sum(expected for expected, _ in missing)
    print(f"{len(missing)} of {len(specs)} runs are missing: about {format_duration(total / n_jobs)}", flush=True)
    started, n_failed = time.monotonic(), 0
    with ProcessPoolExecutor(n_jobs, mp_context=get_context("spawn")) as executor:
        futures = {executor.submit(train, spec): (expected, spec) for expected, spec in missing}
        for n_done, future in enumerate(as_completed(futures), 1):
            expected, spec = futures[future]
            left -= expected
            error = future.exception()
            if error is not None:
                n_failed += 1
                print(f"FAILED {spec.env} {spec.method} seed {spec.seed}: {error!r}", file=sys.stderr, flush=True)
                continue
            run = future.result()
            append_run(get_path(run.env), run)
            # What has gone by scales the estimate: to this machine, and to what else it does.
            remaining = format_duration((time.monotonic() - started) * left / (total - left))
            print(
                f"{n_done}/{len(missing)} {run.env} {run.method} seed {run.seed}: {run.score:.2f} "
                f"in {run.wall_seconds:.0f} s; about {remaining} left",
                flush=True,
            )
    return n_failed


def main() -> None:
    """Make the missing runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=ENV_NAMES, default=list(ENV_NAMES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--max-steps", type=int, help="leave out tasks of more steps than these")
    parser.add_argument(
        "--n-seeds", type=int, help="seeds of each method, at most (and by default) the task's own number"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that share the runs")
    arguments = parser.parse_args()
    specs = [
        spec
        for task in select_tasks(arguments.envs, arguments.max_steps)
        for method in arguments.methods
        for spec in make_specs(task, method, arguments.n_seeds or task.n_seeds)
    ]
    sys.exit(1 if run_missing(specs, get_path, arguments.jobs, train) else 0)


if __name__ == "__main__":
    main()
