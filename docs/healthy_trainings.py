"""Print the table of healthy and spoiled trainings in docs/metrics.md: ``python -m docs.healthy_trainings``."""

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from grpo import GRPO
from grpo_core.options.presets import get_preset

# Environment and what is changed of its preset.
_TRAININGS: list[tuple[str, dict[str, Any]]] = [
    ("CartPole-v1", {}),
    ("Acrobot-v1", {}),
    ("Pendulum-v1", {}),
    ("CartPole-v1", {"learning_rate": 0.03}),
    ("Acrobot-v1", {"learning_rate": 1e-6}),
]
_SEEDS = range(5)


def train(env_name: str, changes: dict[str, Any], seed: int) -> list[dict[str, str]]:
    """Train with a preset, and return a row of metrics per rollout."""
    preset = get_preset(env_name)
    assert preset is not None, "all of the table's environments have one"
    env: VecEnv = make_vec_env(env_name, preset.n_envs, seed=seed)
    arguments = preset.make_arguments() | changes
    if preset.normalize is not None:
        env = VecNormalize(env, gamma=arguments.get("gamma", 0.99), **preset.normalize)
    model = GRPO(preset.policy, env, seed=seed, device="cpu", **arguments)
    with tempfile.TemporaryDirectory() as folder:
        model.set_logger(configure(folder, ["csv"]))
        model.learn(preset.n_timesteps)
        model.logger.close()
        with (Path(folder) / "progress.csv").open() as file:
            return list(csv.DictReader(file))


def summarize(trainings: Iterable[list[dict[str, str]]]) -> list[str]:
    """Return the cells of one row: medians over the seeds of what each training logged."""
    trainings = list(trainings)

    def read(key: str, choose: Callable[[Any], float]) -> float:
        logged = [[float(row[key]) for row in rows if row.get(key)] for rows in trainings]
        return float(np.median([choose(values) if values else np.nan for values in logged]))

    kl = [read("train/approx_kl", partial(np.quantile, q=share)) for share in (0.5, 0.95)]
    cells = [", ".join(f"{each:.4f}" for each in kl)]
    for key in ("train/clip_fraction", "train/explained_variance", "rollout/zero_std_group_fraction"):
        cells.append(f"{read(key, np.median):.2f}")
    cells.append(f"{read('train/entropy_loss', itemgetter(-1)):.2f}")
    rewards = [read("rollout/ep_rew_mean", choose) for choose in (itemgetter(0), max, itemgetter(-1))]
    cells.append("none" if np.isnan(rewards).any() else ", ".join(f"{each:.0f}" for each in rewards))
    return cells


def main() -> None:
    """Print the rows."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for env_name, changes in _TRAININGS:
        change = "".join(f", `{name}={value}`" for name, value in changes.items())
        cells = summarize(train(env_name, changes, seed) for seed in _SEEDS)
        print(f"| {env_name}{change} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
