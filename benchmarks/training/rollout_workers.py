"""Measure what rollout workers bring: steps per second with 1, 2 and 4 of them beside one process alone.

``python -m benchmarks.training.rollout_workers`` prints Markdown tables in some minutes, of Hopper-v5, where physics
takes the time, of CartPole-v1, where nothing takes long, and of an environment that computes for a millisecond per
step. Ways that are compared take turns, and each worker has a core at most: trust the ratios more than the rates, and
no ratio beyond the number of cores. Starting the workers, seconds once per training, is not counted.
"""

import argparse
import os
import time
from contextlib import ExitStack
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from benchmarks.lib.timing import Case, Comparison, format_comparison, take_turns
from benchmarks.training.step_speed import _RolloutTimer
from grpo import GRPO
from grpo_core.shards.processes import ProcessPool

_ALONE, _CUT = "one process", "one process, 8 shards"
_N_WORKERS = (1, 2, 4)
_ROLLOUT: dict[str, Any] = {"n_steps": 2048, "group_size": 4, "horizon": 64, "seed": 0, "device": "cpu"}
_LOOPS_PER_MS = 50_000


class SlowCartPole(CartPoleEnv):
    """Works about a millisecond per step, on its core and not by the clock."""

    def step(self, action: Any) -> Any:
        for _ in range(_LOOPS_PER_MS):
            pass
        return super().step(action)  # type: ignore[no-untyped-call]  # Gymnasium has no types here


def _make_env(name: str) -> Any:
    return gym.wrappers.TimeLimit(SlowCartPole(), 500) if name == "1 ms per step" else gym.make(name)


def _make_case(model: GRPO, n_steps: int, is_whole: bool) -> Case:
    def run() -> float:
        timer, n_before, began = _RolloutTimer(), model.num_timesteps, time.perf_counter()
        model.learn(n_steps, callback=timer, reset_num_timesteps=False)
        seconds = time.perf_counter() - began if is_whole else timer.seconds
        return float((model.num_timesteps - n_before) / seconds)

    return run


def _compare(name: str, n_repetitions: int, n_steps: int, is_whole: bool) -> str:
    """Measure one environment, and return its table and what travelled."""
    # Policies that only collect stay untrained, so that episodes stay as long as they are.
    learning: dict[str, Any] = {} if is_whole else {"learning_rate": 1e-9, "n_epochs": 1}
    cases, pools = dict[str, Case](), dict[str, ProcessPool]()
    with ExitStack() as opened:
        for label, n_shards in ((_ALONE, 1), (_CUT, 8)):
            model = GRPO("MlpPolicy", _make_env(name), n_rollout_shards=n_shards, **_ROLLOUT, **learning)
            cases[label] = _make_case(model, n_steps, is_whole)
        for n_workers in _N_WORKERS:
            label = f"{n_workers} worker{'s' * (n_workers > 1)}"
            model = GRPO("MlpPolicy", _make_env(name), n_rollout_shards=8, **_ROLLOUT, **learning)
            model.rollout_pool = pools[label] = opened.enter_context(ProcessPool(n_workers))
            cases[label] = _make_case(model, n_steps, is_whole)
        measured = take_turns(cases, n_repetitions)
    title = f"{name}: steps per second, {'collecting and learning' if is_whole else 'collecting'}"
    table = format_comparison(Comparison(title, measured, [_ALONE, _CUT], is_rate=True, n_decimals=0))
    n_rollouts = (1 + n_repetitions) * -(-n_steps // int(_ROLLOUT["n_steps"]))
    return f"{table}\n\n{_describe_bytes(pools, n_rollouts)}"


def _describe_bytes(pools: dict[str, ProcessPool], n_rollouts: int) -> str:
    parts = [
        f"{label} {pool.n_bytes_sent / n_rollouts / 1024:,.0f} KiB out and "
        f"{pool.n_bytes_received / n_rollouts / 1024:,.0f} KiB back"
        for label, pool in pools.items()
    ]
    return f"Per rollout of {_ROLLOUT['n_steps']} steps: {'; '.join(parts)}."


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-repetitions", type=int, default=5)
    parser.add_argument("--n-timesteps", type=int, default=4096, help="per measurement")
    parser.add_argument("--environments", nargs="+", default=["Hopper-v5", "CartPole-v1", "1 ms per step"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.environments:
        for is_whole in (False, True):
            print(_compare(name, arguments.n_repetitions, arguments.n_timesteps, is_whole) + "\n", flush=True)


if __name__ == "__main__":
    main()
