"""Measure where a GPU pays: steps per second of whole trainings on it and on the CPU, and print a Markdown table.

``python -m benchmarks.training.gpu_speed``; for a machine with a GPU. Each size of network and kind of observation is
trained on both, in turns, with the rollouts of the library's defaults. Simulators play on the CPU in any case.
"""

import argparse
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.lib.timing import Case, Comparison, format_comparison, take_turns
from grpo import GRPO

_N_ENVS = 8
_ROLLOUT: dict[str, Any] = {"n_steps": 256, "group_size": 4, "horizon": 32, "seed": 0}


class PixelEnv(gym.Env[Any, Any]):
    """Shows four frames of noise of Atari's size, chosen by a counter: playing it costs next to nothing."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.action_space = spaces.Discrete(6)
        self._frames = np.random.default_rng(0).integers(0, 256, (64, 4, 84, 84), np.uint8)
        self._n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._n_steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._n_steps += 1
        return self._observe(), float(action == self._n_steps % 6), self._n_steps >= 1000, False, {}

    def capture_state(self) -> int:
        """Return all there is to it."""
        return self._n_steps

    def restore_state(self, state: int) -> None:
        """Go back to a captured state."""
        self._n_steps = state

    def _observe(self) -> npt.NDArray[np.uint8]:
        frames: npt.NDArray[np.uint8] = self._frames[self._n_steps % len(self._frames)]
        return frames


class Workload(NamedTuple):
    """What is trained.

    :param make_env: Gymnasium id, or what makes the environment.
    :param policy: Name of the policy.
    :param net_arch: Sizes of the hidden layers of both networks.
    :param batch_size: Steps per minibatch.
    """

    make_env: Any
    policy: str
    net_arch: tuple[int, ...]
    batch_size: int


WORKLOADS = {
    "CartPole-v1, 64 x 64, minibatches of 64": Workload("CartPole-v1", "MlpPolicy", (64, 64), 64),
    "CartPole-v1, 256 x 256, minibatches of 256": Workload("CartPole-v1", "MlpPolicy", (256, 256), 256),
    "CartPole-v1, 1024 x 1024, minibatches of 1024": Workload("CartPole-v1", "MlpPolicy", (1024, 1024), 1024),
    "images of 84 x 84 x 4, minibatches of 64": Workload(PixelEnv, "CnnPolicy", (), 64),
    "images of 84 x 84 x 4, minibatches of 256": Workload(PixelEnv, "CnnPolicy", (), 256),
}


def _make_case(workload: Workload, device: str, n_rollouts: int) -> Case:
    env = make_vec_env(workload.make_env, _N_ENVS, seed=0)
    kwargs = {"net_arch": list(workload.net_arch)}
    model = GRPO(workload.policy, env, batch_size=workload.batch_size, device=device, policy_kwargs=kwargs, **_ROLLOUT)

    def measure() -> float:
        before, started_at = model.num_timesteps, time.perf_counter()
        model.learn(n_rollouts * _N_ENVS * _ROLLOUT["n_steps"], reset_num_timesteps=False)
        if device == "cuda":
            torch.cuda.synchronize()
        return (model.num_timesteps - before) / (time.perf_counter() - started_at)

    return measure


def compare(workloads: list[str], n_threads: int, n_rollouts: int, n_repetitions: int, max_seconds: float) -> list[str]:
    """Train every workload on both devices, and return the tables."""
    torch.set_num_threads(n_threads)
    cpu, tables = f"CPU, torch with {n_threads} threads" if n_threads > 1 else "CPU, one thread", []
    for name in workloads:
        cases = {
            label: _make_case(WORKLOADS[name], device, n_rollouts) for label, device in ((cpu, "cpu"), ("GPU", "cuda"))
        }
        timings = take_turns(cases, n_repetitions, max_seconds)
        tables.append(format_comparison(Comparison(f"{name}: steps/s", timings, [cpu], is_rate=True, n_decimals=0)))
        print(f"\n{tables[-1]}", flush=True)
    return tables


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--threads", type=int, default=1, help="of torch, for the CPU")
    parser.add_argument("--n-rollouts", type=int, default=2, help="per measurement")
    parser.add_argument("--n-repetitions", type=int, default=3)
    parser.add_argument("--max-seconds", type=float, default=60.0, help="per workload, after which no round begins")
    parser.add_argument("--write", type=Path, help="write the Markdown to this file too")
    arguments = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "stable-baselines3", "numpy"))
    title = f"# Training on a GPU\n\n{torch.cuda.get_device_name()}; {os.cpu_count()} cores; {versions}."
    print(title)
    tables = compare(
        arguments.workloads, arguments.threads, arguments.n_rollouts, arguments.n_repetitions, arguments.max_seconds
    )
    if arguments.write is not None:
        arguments.write.write_text("\n\n".join([title, *tables]) + "\n")


if __name__ == "__main__":
    main()
