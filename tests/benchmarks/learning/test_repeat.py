"""Repeating stored runs: which are chosen."""

import pytest

from benchmarks.learning.repeat import list_stored, spread
from benchmarks.lib.runs import Run
from benchmarks.lib.tasks import get_task


def make_runs(n_runs: int) -> list[Run]:
    return [Run("CartPole-v1", "grpo", "GRPO", seed, 64, {}, 64, [[64, 1.0]], 1.0, 1.0, {}) for seed in range(n_runs)]


@pytest.mark.parametrize(
    ("n_stored", "n_runs", "seeds"),
    [(20, 3, [0, 9, 19]), (20, 1, [0]), (2, 3, [0, 1]), (0, 3, []), (4, 4, [0, 1, 2, 3])],
)
def test_runs_are_chosen_evenly(n_stored: int, n_runs: int, seeds: list[int]) -> None:
    assert [run.seed for run in spread(make_runs(n_stored), n_runs)] == seeds


def test_the_tables_own_runs_are_listed() -> None:
    stored = dict(list_stored(get_task("CartPole-v1", 20_000), ["grpo", "grpo_general"]))
    assert list(stored) == ["grpo", "grpo_general", "ablation"]
    assert len(stored["grpo"]) == 20
    assert {run.method for run in stored["ablation"]} == {"ablation"}
