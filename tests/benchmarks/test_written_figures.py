"""Figures that people wrote into documents are those of the stored runs, and the tables are today's."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks import report
from benchmarks.lib.runs import Run
from benchmarks.lib.tables import compute_iqm, get_scores
from benchmarks.lib.tasks import TASKS, get_task

ROOT = Path(__file__).parents[2]
MILLION = 1_000_000


class Figure(NamedTuple):
    """One number of a document: what of which runs."""

    env_name: str
    n_steps: int
    method: str = "grpo"
    statistic: Callable[[np.ndarray], float] = compute_iqm  # type: ignore[assignment]  # of scores


@cache
def read(env_name: str, n_steps: int) -> dict[str, list[Run]]:
    return report.read_comparison(get_task(env_name, n_steps))


ACROBOT, PENDULUM, FROZEN_LAKE = ("Acrobot-v1", 15_000), ("Pendulum-v1", 30_000), ("FrozenLake-v1", 50_000)
CAR, CONTINUOUS_CAR = ("MountainCar-v0", 120_000), ("MountainCarContinuous-v0", 60_000)
DOUBLE, DOOR = ("InvertedDoublePendulum-v5", 100_000), ("MiniGrid-DoorKey-6x6-flat-v0", 300_000)
ROOMS, BREAKOUT = ("MiniGrid-MultiRoom-N2-S4-flat-v0", 300_000), ("MinAtar-Breakout-flat-v1", 500_000)
EARLY_HOPPER, HOPPER = ("Hopper-v5", 300_000), ("Hopper-v5", MILLION)
WALKER, CHEETAH, SWIMMER, ANT = ((f"{name}-v5", MILLION) for name in ("Walker2d", "HalfCheetah", "Swimmer", "Ant"))

# Document, a sentence with a group for each number, and what the numbers are.
WRITTEN: list[tuple[str, str, list[Figure]]] = [
    ("from-ppo", r"ahead: (\S+) against (\S+)\. On Hopper", [Figure(*PENDULUM), Figure(*PENDULUM, "ppo_zoo")]),
    (
        "from-ppo",
        r"GRPO reaches (\S+) after 300,000 .* VecNormalize (\S+), ",
        [Figure(*EARLY_HOPPER), Figure(*EARLY_HOPPER, "ppo_normalized")],
    ),
    (
        "from-ppo",
        r"PPO is level, at (\S+) beside (\S+) and on Swimmer the zoo's, at (\S+) beside (\S+) With",
        [Figure(*WALKER, "ppo_normalized"), Figure(*WALKER), Figure(*SWIMMER, "ppo_zoo"), Figure(*SWIMMER)],
    ),
    (
        "from-ppo",
        r"HalfCheetah, at (\S+) beside (\S+) \(the zoo's (\S+)\), and better on Ant, at (\S+) beside (\S+) ",
        [
            *(Figure(*CHEETAH, method) for method in ("ppo_shared", "grpo", "ppo_zoo")),
            *(Figure(*ANT, method) for method in ("ppo_shared", "grpo")),
        ],
    ),
    *(
        ("figures", rf"\b{name} \((\S+?)(?: on \w+ seeds)?, ours (\S+)\)", [Figure(*task, "ppo_shared"), Figure(*task)])
        for name, task in {
            "Pendulum": PENDULUM,
            "InvertedDoublePendulum": DOUBLE,
            "Acrobot": ACROBOT,
            "FrozenLake": FROZEN_LAKE,
            "Breakout": BREAKOUT,
            "MountainCarContinuous": CONTINUOUS_CAR,
            "MountainCar": CAR,
            "MultiRoom": ROOMS,
            "Ant": ANT,
            "HalfCheetah": CHEETAH,
        }.items()
    ),
    (
        "figures",
        r"InvertedDoublePendulum: ahead by far\. All .* at (\S+) or more; PPO at (\S+) with its defaults, at (\S+) ",
        [Figure(*DOUBLE, statistic=np.min), Figure(*DOUBLE, "ppo_normalized"), Figure(*DOUBLE, "ppo_zoo")],
    ),
    (
        "figures",
        r"HalfCheetah: about even\. Ours ends at (\S+) on five seeds, from (\S+) to (\S+), PPO",
        [Figure(*CHEETAH, statistic=statistic) for statistic in (compute_iqm, np.min, np.max)],  # type: ignore[arg-type]
    ),
    (
        "figures",
        r"Hopper: ahead in the mean\. After 300,000 steps, at (\S+) on ten, from (\S+) to (\S+), beside (\S+) on five",
        [
            *(Figure(*EARLY_HOPPER, statistic=statistic) for statistic in (compute_iqm, np.min, np.max)),  # type: ignore[arg-type]
            Figure(*EARLY_HOPPER, "ppo_normalized"),
        ],
    ),
    (
        "figures",
        r"After a million, at (\S+) on five, from (\S+) to (\S+), beside (\S+), \S+ and (\S+) too few",
        [
            *(Figure(*HOPPER, statistic=statistic) for statistic in (compute_iqm, np.min, np.max)),  # type: ignore[arg-type]
            *(Figure(*HOPPER, "ppo_normalized", statistic) for statistic in (np.min, np.max)),
        ],
    ),
    (
        "figures",
        r"after 300,000 steps: it ends at (\S+) on ten, from (\S+) to (\S+) It was not run",
        [Figure(*EARLY_HOPPER, "trpo_zoo", statistic) for statistic in (compute_iqm, np.min, np.max)],  # type: ignore[arg-type]
    ),
    (
        "figures",
        r"TRPO ends higher on three seeds of four, at \S+ to (\S+) and hardly walks on the fourth, at (\S+)",
        [Figure(*WALKER, "trpo_zoo", statistic) for statistic in (np.max, np.min)],
    ),
    (
        "figures",
        r"TRPO is behind, at (\S+) to (\S+) on four",
        [Figure(*CHEETAH, "trpo_zoo", statistic) for statistic in (np.min, np.max)],
    ),
    (
        "from-ppo",
        r"TRPO is at (\S+) on Walker2d, on four seeds",
        [Figure(*WALKER, "trpo_zoo")],
    ),
    (
        "from-ppo",
        r"after a million they are at (\S+) and (\S+) TRPO is at (\S+) after 300,000",
        [Figure(*HOPPER), Figure(*HOPPER, "ppo_normalized"), Figure(*EARLY_HOPPER, "trpo_zoo")],
    ),
    (
        "figures",
        r"Walker2d: level, at (\S+) .* on ten, from (\S+) to (\S+), beside (\S+) .* on five .* from (\S+) to (\S+) Wi",
        [
            Figure(*WALKER, method, statistic)  # type: ignore[arg-type]
            for method in ("grpo", "ppo_normalized")
            for statistic in (compute_iqm, np.min, np.max)
        ],
    ),
]


@pytest.mark.parametrize(("name", "pattern", "figures"), WRITTEN, ids=[f"{row[0]}: {row[1][:40]}" for row in WRITTEN])
def test_a_sentence_has_the_figures_of_the_runs(name: str, pattern: str, figures: list[Figure]) -> None:
    text = " ".join((ROOT / "docs" / f"{name}.md").read_text().split())
    found = re.findall(pattern, text)
    assert len(found) == 1, found
    groups = found[0] if isinstance(found[0], tuple) else (found[0],)
    for written, (env_name, n_steps, method, statistic) in zip(groups, figures, strict=True):
        number = written.rstrip(",.")
        score = float(statistic(get_scores(read(env_name, n_steps)[method])))
        n_decimals = len(number.partition(".")[2])
        assert number == f"{score:,.{n_decimals}f}", (env_name, method)


def test_the_tables_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plot_curves", lambda *_: None)
    assert report.make_summary() in (ROOT / "docs" / "figures.md").read_text()
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    for task in TASKS:
        assert report.make_comparison(task) in results, task
