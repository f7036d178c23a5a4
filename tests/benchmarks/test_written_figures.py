"""Figures that people wrote into documents are those of the stored runs, and the tables are today's."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks import report
from benchmarks.learning import significance
from benchmarks.lib.evaluation import SCORES_FOLDER, format_table
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
LANDER = ("LunarLander-v3", 300_000)
DOUBLE, DOOR = ("InvertedDoublePendulum-v5", 100_000), ("MiniGrid-DoorKey-6x6-flat-v0", 300_000)
ROOMS, BREAKOUT = ("MiniGrid-MultiRoom-N2-S4-flat-v0", 300_000), ("MinAtar-Breakout-flat-v1", 500_000)
EARLY_HOPPER, HOPPER = ("Hopper-v5", 300_000), ("Hopper-v5", MILLION)
WALKER, CHEETAH, SWIMMER, ANT = ((f"{name}-v5", MILLION) for name in ("Walker2d", "HalfCheetah", "Swimmer", "Ant"))

# Document, a sentence with a group for each number, and what the numbers are.
WRITTEN: list[tuple[str, str, list[Figure]]] = [
    *(
        (
            "from-ppo",
            rf"\| {name}, {n_steps:,} \| (\S+) \| (\S+), ",
            [Figure(name, n_steps), Figure(name, n_steps, ppo)],
        )
        for (name, n_steps), ppo in {
            ("CartPole-v1", 20_000): "ppo_default",
            PENDULUM: "ppo_zoo",
            EARLY_HOPPER: "ppo_default",
            HOPPER: "ppo_normalized",
            WALKER: "ppo_normalized",
            CHEETAH: "ppo_shared",
            SWIMMER: "ppo_zoo",
            ANT: "ppo_shared",
        }.items()
    ),
    *(
        ("from-ppo", rf"\| {name}, {n_steps:,} \| \S+ \| [^|]*\| (\S+?),? ", [Figure(name, n_steps, "trpo_zoo")])
        for name, n_steps in (("CartPole-v1", 20_000), PENDULUM, EARLY_HOPPER, WALKER, CHEETAH)
    ),
    (
        "figures",
        r"LunarLander \((\S+) PPO's defaults (\S+)\), DoorKey and MultiRoom, and Hopper reaches (\S+) after "
        r"300,000 steps \(PPO's defaults (\S+)\)",
        [Figure(*task, method) for task in (LANDER, EARLY_HOPPER) for method in ("grpo_general", "ppo_default")],
    ),
    (
        "figures",
        r"do not solve Pendulum \((\S+)\), and fail on",
        [Figure(*PENDULUM, "grpo_general")],
    ),
    (
        "figures",
        r"Walker2d ends anywhere from (\S+) to (\S+) Ant from (\S+) to (\S+) No seed of Swimmer's gets beyond (\S+)\.",
        [
            *(Figure(*task, "grpo_general", statistic) for task in (WALKER, ANT) for statistic in (np.min, np.max)),
            Figure(*SWIMMER, "grpo_general", np.max),
        ],
    ),
    (
        "figures",
        r"HalfCheetah ends at (\S+) \(PPO's defaults (\S+)\), Ant at (\S+) \((\S+)\), Hopper at (\S+) \((\S+)\)",
        [Figure(*task, method) for task in (CHEETAH, ANT, HOPPER) for method in ("grpo_general", "ppo_default")],
    ),
    (
        "figures",
        r"and Walker2d at (\S+) Swimmer stays at (\S+) far",
        [Figure(*task, "grpo_general") for task in (WALKER, SWIMMER)],
    ),
    (
        "figures",
        r"where PPO's defaults end at (\S+) to (\S+) on five seeds",
        [Figure(*DOOR, "ppo_default", statistic) for statistic in (np.min, np.max)],
    ),
    (
        "figures",
        r"our training ends at (\S+) PPO with the same settings at (\S+) and with its defaults at (\S+)\. "
        r"The general .* at 8.3 and (\S+) on ten",
        [Figure(*BREAKOUT, method) for method in ("grpo", "ppo_shared", "ppo_default", "grpo_general")],
    ),
    ("figures", r"CartPole: one seed of twenty ends at (\S+)\. One", [Figure("CartPole-v1", 20_000, statistic=np.min)]),
    ("figures", r"MountainCar: (\S+) on these seeds", [Figure(*CAR)]),
    (
        "figures",
        r"with a falling rate and VecNormalize end at (\S+) and (\S+) and with these settings it ends at (\S+)\. -",
        [
            *(Figure(*ANT, "ppo_normalized", statistic) for statistic in (np.min, np.max)),
            Figure(*ANT, "ppo_shared"),
        ],
    ),
    (
        "figures",
        r"one of our five seeds fails, at (\S+) so that the mean is (\S+) \(",
        [Figure(*SWIMMER, statistic=statistic) for statistic in (np.min, np.mean)],
    ),
    (
        "figures",
        r"Hopper in the mean at (\S+) instead of .* at (\S+) instead of .* Walker2d at (\S+) instead",
        [Figure(*task, statistic=np.mean) for task in (EARLY_HOPPER, HOPPER, WALKER)],
    ),
    (
        "figures",
        r"solves InvertedDoublePendulum \((\S+); PPO's defaults (\S+)\)\.",
        [Figure(*DOUBLE, "grpo_general"), Figure(*DOUBLE, "ppo_default")],
    ),
    (
        "from-ppo",
        r"each has one seed below 400 \((\S+) and (\S+)\)",
        [Figure("CartPole-v1", 20_000, method, np.min) for method in ("grpo", "ppo_default")],
    ),
    (
        "figures",
        r"On FrozenLake it ends at (\S+) higher than PPO's defaults \((\S+)\),",
        [Figure(*FROZEN_LAKE, "grpo_general"), Figure(*FROZEN_LAKE, "ppo_default")],
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
    page = (ROOT / "docs" / "figures.md").read_text()
    assert report.fill_in(page) == page
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    for task in TASKS:
        assert report.make_comparison(task) in results, task


@pytest.mark.parametrize("file", sorted(SCORES_FOLDER.iterdir()), ids=lambda file: file.stem)
def test_the_tables_of_scores_are_those_that_were_stored(file: Path) -> None:
    kept = json.loads(file.read_text())
    assert format_table(kept["scores"], kept["solved_score"]) in (ROOT / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/figures.md"])
def test_the_first_table_is_the_stored_one(page: str) -> None:
    kept = json.loads((SCORES_FOLDER / "cartpole-api.json").read_text())["scores"]
    rows = re.findall(r"\| ((?:GRPO|SB3 PPO), .*?) \| (\d+) of 20 \| (\S+) \| (\S+) \|", (ROOT / page).read_text())
    assert len(rows) >= 3
    for method, n_solved, mean, worst in rows:
        scores = np.array(kept[method.replace("`", "")])
        assert (n_solved, mean, worst) == (f"{(scores >= 475).sum()}", f"{scores.mean():.1f}", f"{scores.min():.1f}")


@pytest.mark.parametrize("question", significance.ON_ABLATION + significance.ON_FIGURES, ids=lambda asked: asked.sides)
def test_a_p_value_is_that_of_the_runs(question: significance.Question) -> None:
    n_decimals = len(question.quoted.partition(".")[2])
    assert f"{question.compute():.{n_decimals}f}" == question.quoted


def test_the_p_values_of_the_pages_are_those_that_are_computed() -> None:
    quoted = {
        name: set(re.findall(r"p = (0\.\d+)", " ".join((ROOT / "docs" / f"{name}.md").read_text().split())))
        for name in ("ablation", "figures", "method")
    }
    on_ablation, on_figures = (
        {question.quoted for question in questions} for questions in (significance.ON_ABLATION, significance.ON_FIGURES)
    )
    assert quoted["ablation"] == on_ablation
    assert on_figures <= quoted["figures"] <= on_figures | on_ablation
    assert quoted["method"] <= on_ablation
