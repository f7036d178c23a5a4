"""Measure one step of many states: all at once, and one environment after the other.

``python -m benchmarks.training.batched_physics`` prints a Markdown table in half a minute. Environments are wrapped
like those of SB3's ``make_vec_env``; restoring and capturing single environments is not counted.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor

from grpo_core.fast.physics import find_batched_simulator

_ENV_IDS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0")
_BATCH_SIZES = (2, 8, 64)
_N_ROUNDS = 25
_SECONDS_PER_ROUND = 0.03


def _time_call(call: Callable[[], None]) -> float:
    """Return the mean time of a call over one round, in microseconds."""
    n_calls, started_at = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started_at) < _SECONDS_PER_ROUND:
        call()
        n_calls += 1
    return 1e6 * elapsed / n_calls


def _make_calls(env_id: str, batch_size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Make two functions, early in an episode: one steps a batch, the other as many environments."""
    env: gym.Env[Any, Any] = Monitor(gym.make(env_id))
    env.reset(seed=0)
    env.action_space.seed(0)
    simulator = find_batched_simulator(env)
    assert simulator is not None, f"{env_id} cannot be stepped in batches"
    actions = np.array([env.action_space.sample() for _ in range(batch_size)])
    states = simulator.step(np.stack([simulator.capture()] * batch_size), actions).states
    envs: list[gym.Env[Any, Any]] = [Monitor(gym.make(env_id)) for _ in range(batch_size)]
    for each in envs:
        each.reset(seed=0)

    def step_batch() -> None:
        simulator.step(states, actions)

    def step_envs() -> None:
        for i, each in enumerate(envs):
            _, _, terminated, truncated, _ = each.step(actions[i])
            if terminated or truncated:
                each.reset()

    return step_batch, step_envs


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| environment | states | at once, µs | one by one, µs | ratio |\n|---|---|---|---|---|")
    for env_id in _ENV_IDS:
        for batch_size in _BATCH_SIZES:
            step_batch, step_envs = _make_calls(env_id, batch_size)
            # In turns, so that other work on the machine slows both; the medians leave out its peaks.
            rounds = [(_time_call(step_batch), _time_call(step_envs)) for _ in range(_N_ROUNDS)]
            batch, single = np.median(rounds, axis=0)
            print(f"| {env_id} | {batch_size} | {batch:.1f} | {single:.1f} | {single / batch:.1f} |")


if __name__ == "__main__":
    main()
