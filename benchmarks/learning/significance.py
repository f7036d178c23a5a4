"""Print the tests whose p-values the pages quote, computed from the stored runs.

``python -m benchmarks.learning.significance``. None is corrected for how many there are.
"""

import argparse
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.learning.ablation import ABLATION_PATH, ABLATIONS, make_rows
from benchmarks.learning.methods import make_specs
from benchmarks.learning.suite import get_path
from benchmarks.lib.runs import Run, read_runs, select_runs
from benchmarks.lib.tables import Scores, get_scores
from benchmarks.lib.tasks import Task, get_task

_PENDULUM, _ACROBOT, _CARTPOLE = ("Pendulum-v1", 30_000), ("Acrobot-v1", 15_000), ("CartPole-v1", 20_000)
_CAR, _DOUBLE = ("MountainCar-v0", 120_000), ("InvertedDoublePendulum-v5", 100_000)
_DOOR = ("MiniGrid-DoorKey-6x6-flat-v0", 300_000)
_EARLY_HOPPER, _HOPPER, _WALKER = ("Hopper-v5", 300_000), ("Hopper-v5", 1_000_000), ("Walker2d-v5", 1_000_000)
_KEEN = ("value", "residual", "adaptive")  # the baselines that solve tasks
_SOLVED = 0.9  # DoorKey's aim

_Name = tuple[str, int]


class Question(NamedTuple):
    """Whether two sides differ, answered by a p-value that a page quotes.

    :param sides: What is compared, on which task.
    :param quoted: The p-value as it is quoted.
    :param compute: Computes it.
    """

    sides: str
    quoted: str
    compute: Callable[[], float]


def flip_signs(first: list[Scores], second: list[Scores]) -> float:
    """Test whether the mean difference over seeds is 0, by flipping its signs in every way.

    :param first: Scores of some rows, shape ``(n_seeds,)`` each.
    :param second: Those of the rows that they are compared with, on the same seeds.
    """
    differences = (np.array(first) - np.array(second)).mean(axis=0)
    return float(_permute((differences,), np.mean, "samples"))


def swap_runs(first: Scores, second: Scores) -> float:
    """Test whether the means of two rows on different seeds differ, by sharing the runs out anew."""
    return float(_permute((first, second), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), "independent"))


def _permute(data: tuple[Scores, ...], statistic: Callable[..., Any], kind: str) -> float:
    # All ways where they are fewer than that.
    rng = np.random.default_rng(0)
    result = stats.permutation_test(
        data, statistic, permutation_type=kind, n_resamples=200_000, vectorized=True, rng=rng
    )
    return float(result.pvalue)


def count_solved(first: Scores, second: Scores, score: float = _SOLVED) -> float:
    """Test whether as many runs of each end at a score or above (Fisher's exact test)."""
    table = [[int((scores >= score).sum()), int((scores < score).sum())] for scores in (first, second)]
    return float(stats.fisher_exact(table).pvalue)


@cache
def _read_ablation() -> list[Run]:
    return read_runs(ABLATION_PATH)


def _row(name: _Name, table: str, label: str) -> Scores:
    """Return a row of an ablation's table."""
    return get_scores(select_runs(make_rows(get_task(*name), ABLATIONS[table])[label], _read_ablation()))


def _compare_endings(name: _Name, table: str, first: str, second: str, baselines: tuple[str, ...] = _KEEN) -> float:
    return flip_signs(*(_rows(name, table, ending, baselines) for ending in (first, second)))


def _rows(name: _Name, table: str, ending: str, baselines: tuple[str, ...] = _KEEN) -> list[Scores]:
    return [_row(name, table, f"{baseline}, {ending}") for baseline in baselines]


def _run(name: _Name, method: str = "grpo") -> Scores:
    """Return a row of the comparison."""
    task: Task = get_task(*name)
    return get_scores(select_runs(make_specs(task, method, task.n_seeds), read_runs(get_path(task.env_name))))


def _former(name: _Name, is_filled: bool) -> Scores:
    """Return what an earlier preset of Hopper or Walker2d reached, before pairs drew opposite noise."""
    env_name, budget = name
    return get_scores([
        run
        for run in read_runs(get_path(env_name))
        if (run.method, run.budget, run.settings.get("horizon")) == ("grpo", budget, 256)
        and "antithetic_actions" not in run.settings
        and run.settings.get("fill_rollouts", False) == is_filled
    ])  # fmt: skip


def _branches() -> Scores:
    return np.concatenate(_rows(_DOOR, "baseline", "branches"))


def _test_starts() -> float:
    """Test where MountainCar's branches start against where the preset's do; the smallest of three p-values."""
    preset = _rows(_CAR, "baseline", "branches")
    others = (
        ("baseline", "branches from an archive"),
        ("branching", "starts reset"),
        ("branching", "starts mid-episode"),
    )
    return min(flip_signs(_rows(_CAR, table, ending), preset) for table, ending in others)


def _subtracting(
    name: _Name, ending: str, other: str = "value", table: str = "starts", with_: str = "residual"
) -> float:
    """Test a baseline that subtracts the others against another one."""
    return flip_signs([_row(name, table, f"{with_}, {ending}")], [_row(name, table, f"{other}, {ending}")])


def _everywhere(*baselines: str) -> Scores:
    """Return all runs of DoorKey with some baselines, wherever their groups start."""
    rows = [
        row
        for table, ending in (
            ("baseline", "branches"),
            ("baseline", "branches from an archive"),
            ("branching", "starts reset"),
            ("baseline", "episodes"),
        )
        for row in _rows(_DOOR, table, ending, baselines)
    ]
    return np.concatenate(rows)


ON_ABLATION = [
    Question("Acrobot, mid-episode, slow value network: residual, value", "0.03",
             lambda: _subtracting(_ACROBOT, "starts mid-episode, value step x 1")),
    Question("CartPole, resets, slow value network: residual, value", "0.002",
             lambda: _subtracting(_CARTPOLE, "starts reset, value step x 1")),
    Question("CartPole, resets, slow value network: adaptive, residual", "0.004",
             lambda: _subtracting(_CARTPOLE, "starts reset, value step x 1", "adaptive")),
    Question("CartPole, resets, slow value network: adaptive, value", "0.51",
             lambda: _subtracting(_CARTPOLE, "starts reset, value step x 1", with_="adaptive")),
    Question("Acrobot, mid-episode, slow value network: adaptive, value", "0.06",
             lambda: _subtracting(_ACROBOT, "starts mid-episode, value step x 1", with_="adaptive")),
    Question("InvertedDoublePendulum, filled: residual, adaptive", "0.002",
             lambda: _subtracting(_DOUBLE, "rollouts filled", "adaptive", "filling")),
    Question("InvertedDoublePendulum, mid-episode: residual, value", "0.01",
             lambda: _subtracting(_DOUBLE, "starts mid-episode, value step x 10")),
    Question("InvertedDoublePendulum, resets: residual, value", "0.03",
             lambda: _subtracting(_DOUBLE, "starts reset, value step x 10")),
    Question("Pendulum: opposite noise, independent noise", "0.03",
             lambda: _compare_endings(_PENDULUM, "noise", "opposite noise", "independent noise")),
    Question("Hopper, 300,000 steps, adaptive: opposite noise, independent noise", "0.6",
             lambda: _compare_endings(_EARLY_HOPPER, "noise", "opposite noise", "independent noise", ("adaptive",))),
    Question("Hopper, 300,000 steps: opposite noise, filled", "0.005",
             lambda: swap_runs(_run(_EARLY_HOPPER), _former(_EARLY_HOPPER, is_filled=True))),
    Question("Hopper, 300,000 steps: opposite noise, before filling", "0.13",
             lambda: swap_runs(_run(_EARLY_HOPPER), _former(_EARLY_HOPPER, is_filled=False))),
    Question("Hopper, 300,000 steps: filled, before filling", "0.06",
             lambda: swap_runs(_former(_EARLY_HOPPER, is_filled=True), _former(_EARLY_HOPPER, is_filled=False))),
    Question("Walker2d: opposite noise, filled", "0.16",
             lambda: swap_runs(_run(_WALKER), _former(_WALKER, is_filled=True))),
    Question("Pendulum: branches, whole episodes", "0.002",
             lambda: _compare_endings(_PENDULUM, "baseline", "branches", "episodes")),
    Question("Acrobot: branches, whole episodes", "0.9",
             lambda: _compare_endings(_ACROBOT, "baseline", "branches", "episodes")),
    Question("MountainCar: branches, whole episodes", "0.04",
             lambda: _compare_endings(_CAR, "baseline", "branches", "episodes")),
    Question("MountainCar: starts elsewhere, the preset's", "0.28", _test_starts),
    Question("DoorKey: branches, whole episodes", "0.006",
             lambda: count_solved(_branches(), np.concatenate(_rows(_DOOR, "baseline", "episodes")))),
    Question("DoorKey: the same with 0.5 as the mark", "0.03",
             lambda: count_solved(_branches(), np.concatenate(_rows(_DOOR, "baseline", "episodes")), 0.5)),
    Question("DoorKey: branches, resets alone", "0.23",
             lambda: count_solved(_branches(), np.concatenate(_rows(_DOOR, "branching", "starts reset")))),
    Question("DoorKey: residual and adaptive, value", "0.06",
             lambda: count_solved(_everywhere("residual", "adaptive"), _everywhere("value"))),
    Question("DoorKey: the preset, PPO with the same settings", "0.21",
             lambda: count_solved(_run(_DOOR), _run(_DOOR, "ppo_shared"))),
    Question("DoorKey: the preset's twenty runs, PPO with the same settings", "0.03",
             lambda: count_solved(np.concatenate([_run(_DOOR), _row(_DOOR, "baseline", "residual, branches")]),
                                     _run(_DOOR, "ppo_shared"))),
]  # fmt: skip
ON_FIGURES = [
    Question("Hopper, 300,000 steps: the preset, TRPO", "0.06",
             lambda: swap_runs(_run(_EARLY_HOPPER), _run(_EARLY_HOPPER, "trpo_zoo"))),
    Question("MountainCar: the preset, TRPO", "0.05", lambda: swap_runs(_run(_CAR), _run(_CAR, "trpo_zoo"))),
    Question("Hopper, a million steps: opposite noise, filled", "0.04",
             lambda: swap_runs(_run(_HOPPER), _former(_HOPPER, is_filled=True))),
]  # fmt: skip


def main() -> None:
    """Print all tests."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for question in ON_ABLATION + ON_FIGURES:
        print(f"p = {question.compute():.3g}, quoted as {question.quoted}: {question.sides}")


if __name__ == "__main__":
    main()
