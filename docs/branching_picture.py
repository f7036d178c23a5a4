"""Draw the groups of one rollout in docs/images/branching.png: ``python -m docs.branching_picture``."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from grpo import GRPO
from grpo_core.groups.rollout import GroupRollout

PICTURE = Path(__file__).parent / "images" / "branching.png"
_FLAG_POSITION = 0.5  # where an episode ends
_MORE, _LESS, _ALIKE = "#1a7f5a", "#c2571a", "#9aa4ad"
_N_ROLLOUTS = 40  # by then some branches reach the flag, and others still do not


def play_rollout() -> GroupRollout:
    """Train for a while, and return the last rollout."""
    model = GRPO(
        *("MlpPolicy", "MountainCar-v0"),
        n_steps=4096,
        group_size=4,
        horizon=64,
        gae_lambda=0.98,
        n_epochs=4,
        learning_rate=0.001,
        baseline="residual",
        restart_probability=0.3,
        seed=1,
        device="cpu",
    )
    model.learn(_N_ROLLOUTS * model.n_steps)
    return model.rollout_buffer


def draw_group(axes: Axes, rollout: GroupRollout, group: int) -> None:
    """Draw the branches of a group, coloured by what they earned beside the others, and the anchor on top."""
    for branch in range(rollout.step_mask.shape[2]):
        steps = rollout.step_mask[:, group, branch]
        states, after = rollout.observations[steps, group, branch], rollout.next_observations[steps, group, branch]
        path = np.vstack((states, after[-1:]))
        axes.plot(path[:, 0], path[:, 1], color=_choose_color(rollout.advantages[steps, group, branch]), linewidth=1.1)
        if rollout.terminated[:, group, branch].any():
            axes.plot(path[-1, 0], path[-1, 1], marker=".", color="black", markersize=3)
    axes.plot(*rollout.observations[0, group, 0], marker="o", color="black", markersize=6, zorder=3)


def _choose_color(advantages: Any) -> str:
    mean = advantages.mean()
    return _ALIKE if abs(mean) < 0.05 else _MORE if mean > 0 else _LESS


def main() -> None:
    """Write the picture."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rollout = play_rollout()
    figure, axes = plt.subplots(figsize=(9, 4.8), layout="constrained")
    for group in range(rollout.step_mask.shape[1]):
        draw_group(axes, rollout, group)
    axes.plot([_FLAG_POSITION] * 2, [-0.01, 0.062], color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="position of the car (the flag is at the dotted line)", ylabel="velocity, per step")
    axes.spines[["top", "right"]].set_visible(False)
    marks = [
        Line2D([], [], marker="o", color="black", linestyle="", label="anchor state, from which four branches start"),
        Line2D([], [], color=_MORE, label="branch with a positive mean advantage"),
        Line2D([], [], color=_LESS, label="with a negative one"),
        Line2D([], [], color=_ALIKE, label="near 0: the group earned alike"),
    ]
    axes.legend(handles=marks, loc="lower right", frameon=False, fontsize=9)
    figure.savefig(PICTURE, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
