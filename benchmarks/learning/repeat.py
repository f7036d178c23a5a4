"""Repeat stored runs of our own methods, and say whether today's code still gives the same.

``python -m benchmarks.learning.repeat --envs CartPole-v1 Acrobot-v1`` repeats three runs of each method and three of
the ablation. Where all points of the learning curve but the last are equal, to the last bit, the rows belong to this
code; the last is of as many episodes as the task has now. The exit status is 1 where a run differs.

A difference may also come from another processor, or another kernel of NumPy's OpenBLAS, which rounds otherwise:
``OPENBLAS_CORETYPE=Haswell`` in front of the command makes it take that of older ones.
"""

import argparse
import os
import sys
from collections.abc import Iterator

# As the runs were made.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.learning.ablation import ABLATION_PATH, ABLATION_TASKS, ABLATIONS, make_rows
from benchmarks.learning.methods import METHODS, make_specs
from benchmarks.learning.suite import get_path
from benchmarks.learning.trainers import train
from benchmarks.lib.runs import Run, read_runs, select_runs
from benchmarks.lib.tasks import ENV_NAMES, Task, select_tasks

_OWN_METHODS = [name for name, method in METHODS.items() if method.algorithm == "GRPO"]


def list_stored(task: Task, methods: list[str]) -> Iterator[tuple[str, list[Run]]]:
    """Yield the stored runs that the tables of a task show: those of each method, then those of its ablation."""
    finished = read_runs(get_path(task.env_name))
    for method in methods:
        yield method, select_runs(make_specs(task, method, task.n_seeds), finished)
    if task in ABLATION_TASKS:
        tables = [table for table in ABLATIONS.values() if task.env_name in table.env_names]
        specs = [spec for table in tables for row in make_rows(task, table).values() for spec in row]
        yield "ablation", select_runs(specs, read_runs(ABLATION_PATH))


def spread(runs: list[Run], n_runs: int) -> list[Run]:
    """Choose runs evenly from the first to the last."""
    if len(runs) <= n_runs:
        return runs
    return [runs[index * (len(runs) - 1) // max(n_runs - 1, 1)] for index in range(n_runs)]


def main() -> None:
    """Repeat runs and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=ENV_NAMES, default=list(ENV_NAMES))
    parser.add_argument("--methods", nargs="+", choices=_OWN_METHODS, default=["grpo", "grpo_general"])
    parser.add_argument("--max-steps", type=int, help="leave out tasks of more steps than these")
    parser.add_argument("--n-runs", type=int, default=3, help="runs of each method, and of each task's ablation")
    arguments = parser.parse_args()
    n_different = 0
    for task in select_tasks(arguments.envs, arguments.max_steps):
        for method, stored in list_stored(task, arguments.methods):
            for run in spread(stored, arguments.n_runs):
                again = train(run.spec)
                is_equal = again.curve[:-1] == run.curve[:-1]
                n_different += not is_equal
                verdict = "equal" if is_equal else "DIFFERS"
                print(
                    f"{task.title}, {method}, seed {run.seed}: {run.score:.3f}, now {again.score:.3f}: {verdict}",
                    flush=True,
                )
    sys.exit(1 if n_different else 0)


if __name__ == "__main__":
    main()
