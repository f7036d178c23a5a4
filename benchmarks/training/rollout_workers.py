"""Measure what rollout workers bring: steps per second with 1, 2 and 4 of them beside one process alone.

``python -m benchmarks.training.rollout_workers`` prints Markdown tables within four minutes, of Hopper-v5, where
physics takes the time, of CartPole-v1, where nothing takes long, and of an environment that computes for a millisecond
per step. Ways that are compared take turns, and each worker has a core at most: trust the ratios more than the rates,
and no ratio beyond the number of cores. What does not depend on their number is how many steps a second of processor
time brings, over all processes. Starting the workers, seconds once per training, is not counted.
"""

import argparse
import os
import time
from contextlib import ExitStack, suppress
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import psutil
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from benchmarks.lib.timing import Case, Comparison, format_comparison, take_turns
from benchmarks.training.rollout_timer import RolloutTimer
from grpo import GRPO
from grpo_core.shards.pool import Worker
from grpo_core.shards.process_pool import ProcessPool

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


class _CountingPool(ProcessPool):
    """Counts the bytes that go to workers and come back, without what it sends once per training."""

    def __init__(self, n_workers: int) -> None:
        super().__init__(n_workers)
        self._started: list[_CountingWorker] = []

    def _start(self) -> Worker:
        worker = _CountingWorker(super()._start())
        self._started.append(worker)
        return worker

    def count_bytes(self) -> tuple[int, int]:
        """Return how many were sent and received so far."""
        return sum(worker.n_sent for worker in self._started), sum(worker.n_received for worker in self._started)


class _CountingWorker(Worker):
    def __init__(self, worker: Worker) -> None:
        self._worker, self._policy = worker, b""
        self.n_sent = self.n_received = 0

    def play(self, setup: bytes, policy: bytes, order: bytes, stall_seconds: float) -> bytes:
        reply = self._worker.play(setup, policy, order, stall_seconds)
        self.n_sent += len(order) + (0 if policy is self._policy else len(policy))
        self.n_received += len(reply)
        self._policy = policy
        return reply

    def close(self) -> None:
        self._worker.close()

    def kill(self) -> None:
        self._worker.kill()


class _CpuTimer(RolloutTimer):
    """Adds up the processor time of rollouts as well, of all processes."""

    cpu_seconds = 0.0

    def _on_rollout_start(self) -> None:
        self._cpu_before = _measure_cpu()
        super()._on_rollout_start()

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        self.cpu_seconds += _measure_cpu() - self._cpu_before


def _measure_cpu() -> float:
    """Return the processor time of this process and of its workers, in seconds."""
    own = psutil.Process()
    seconds = 0.0
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _make_case(model: GRPO, n_steps: int, is_whole: bool, per_cpu_second: list[float]) -> Case:
    """Make what measures steps per second.

    :param is_whole: Whether learning counts, or collecting alone.
    :param per_cpu_second: Receives steps per second of processor time.
    """

    def run() -> float:
        timer, n_before = _CpuTimer(), model.num_timesteps
        began, cpu_before = time.perf_counter(), _measure_cpu()
        model.learn(n_steps, callback=timer, reset_num_timesteps=False)
        seconds, cpu_seconds = timer.seconds, timer.cpu_seconds
        if is_whole:
            seconds, cpu_seconds = time.perf_counter() - began, _measure_cpu() - cpu_before
        n_taken = model.num_timesteps - n_before
        per_cpu_second.append(n_taken / cpu_seconds)
        return float(n_taken / seconds)

    return run


def _compare(
    name: str, pools: dict[str, _CountingPool], n_repetitions: int, n_steps: int, is_whole: bool, max_seconds: float
) -> str:
    """Measure one environment, and return its tables and what travelled."""
    # Policies that only collect stay untrained, so that episodes stay as long as they are.
    learning: dict[str, Any] = {} if is_whole else {"learning_rate": 1e-9, "n_epochs": 1}
    cases, per_cpu_second = dict[str, Case](), dict[str, list[float]]()
    for label in (_ALONE, _CUT, *pools):
        n_shards = 1 if label == _ALONE else 8
        model = GRPO("MlpPolicy", _make_env(name), n_rollout_shards=n_shards, **_ROLLOUT, **learning)
        model.rollout_pool = pools.get(label)
        per_cpu_second[label] = []
        cases[label] = _make_case(model, n_steps, is_whole, per_cpu_second[label])
    before = {label: pool.count_bytes() for label, pool in pools.items()}
    measured = take_turns(cases, n_repetitions, max_seconds)
    n_rollouts = len(per_cpu_second[_ALONE]) * -(-n_steps // int(_ROLLOUT["n_steps"]))
    of_cpu = {label: rates[1:] for label, rates in per_cpu_second.items()}  # the first round warms up
    tables = []
    for what, rates in (("second", measured), ("CPU second", of_cpu)):
        title = f"{name}: steps per {what}, {'collecting and learning' if is_whole else 'collecting'}"
        tables.append(format_comparison(Comparison(title, rates, [_ALONE, _CUT], is_rate=True, n_decimals=0)))
    return "\n\n".join([*tables, _describe_bytes(pools, before, n_rollouts)])


def _describe_bytes(pools: dict[str, _CountingPool], before: dict[str, tuple[int, int]], n_rollouts: int) -> str:
    parts = []
    for label, pool in pools.items():
        sent, received = (
            (now - earlier) / n_rollouts / 1024 for now, earlier in zip(pool.count_bytes(), before[label], strict=True)
        )
        parts.append(f"{label} {sent:,.0f} KiB out and {received:,.0f} KiB back")
    return f"Per rollout of {_ROLLOUT['n_steps']} steps: {'; '.join(parts)}."


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-repetitions", type=int, default=5)
    parser.add_argument("--n-timesteps", type=int, default=4096, help="per measurement")
    parser.add_argument("--seconds", type=float, default=150.0, help="no more rounds begin after this long, all in all")
    parser.add_argument("--environments", nargs="+", default=["Hopper-v5", "CartPole-v1", "1 ms per step"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = [(name, is_whole) for name in arguments.environments for is_whole in (False, True)]
    deadline = time.perf_counter() + arguments.seconds
    with ExitStack() as opened:
        pools = {f"{n} worker{'s' * (n > 1)}": opened.enter_context(_CountingPool(n)) for n in _N_WORKERS}
        for i, (name, is_whole) in enumerate(kinds):
            max_seconds = (deadline - time.perf_counter()) / (len(kinds) - i)  # what one leaves is for the others
            table = _compare(name, pools, arguments.n_repetitions, arguments.n_timesteps, is_whole, max_seconds)
            print(table + "\n", flush=True)


if __name__ == "__main__":
    main()
