"""Plots of learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

from benchmarks.lib.runs import Run
from benchmarks.lib.tables import MIN_SEEDS_OF_INTERVAL, compute_interval, compute_iqm
from benchmarks.lib.tasks import Task

matplotlib.use("Agg")
from matplotlib import pyplot


class Style(NamedTuple):
    """The line of a method in every plot."""

    color: str
    line: str
    width: float = 1.4


# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow, which is faint on white.
STYLES = {
    "grpo": Style("#D55E00", "-", 2.6),
    "grpo_general": Style("#882255", "-", 2.0),
    "grpo_episode": Style("#E69F00", "-"),
    "grpo_action": Style("#CC79A7", "-"),
    "ppo_zoo": Style("#0072B2", "-", 2.0),
    "ppo_default": Style("#56B4E9", "-"),
    "ppo_normalized": Style("#0072B2", "--"),
    "ppo_shared": Style("#56B4E9", "--"),
    "ppo_short": Style("#0072B2", ":"),
    "trpo_zoo": Style("#009E73", "--"),
    "ars_zoo": Style("#000000", "--"),
    "linear_search": Style("#808080", ":"),
    "zero_advantage": Style("#808080", "-."),
}


def plot_curves(
    task: Task, rows: Mapping[str, tuple[str, Sequence[Run]]], marks: Mapping[str, float], path: Path
) -> None:
    """Plot the interquartile mean over seeds against simulator steps, with its 95 % interval, as PNG.

    :param rows: Method to its label and runs; a method without runs is left out.
    :param marks: Label to a score that a level line marks.
    :param path: File to write.
    """
    figure, axes = pyplot.subplots(figsize=(9.5, 4.8), layout="constrained")
    for method, (label, runs) in rows.items():
        if not runs:
            continue
        n_points = min(len(run.curve) for run in runs)
        curves = np.array([run.curve[-n_points:] for run in runs])  # (n_seeds, n_points, 2)
        steps, scores = curves[..., 0].mean(axis=0), curves[..., 1]
        style = STYLES[method]
        axes.plot(steps, compute_iqm(scores), style.line, color=style.color, linewidth=style.width, label=label)
        if len(runs) >= MIN_SEEDS_OF_INTERVAL:
            axes.fill_between(steps, *compute_interval(scores), color=style.color, alpha=0.13, linewidth=0)
    for (label, score), line in zip(marks.items(), ((0, (1, 3)), (0, (5, 5))), strict=False):
        axes.axhline(score, color="#404040", linewidth=0.8, linestyle=line, label=label)
    axes.set(
        title=f"{task.title}: IQM over seeds, 95 % interval",
        xlabel="simulator steps (all counted)",
        ylabel="own reward per episode, deterministic policy",
    )
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
