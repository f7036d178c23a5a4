"""Every measurement of training speed runs, and the tables follow from the measurements."""

import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.learning.cartpole import OptimizedCartPoleRewards
from benchmarks.lib.http_jobs import make_service_model
from benchmarks.lib.timing import Comparison, compute_speedup, format_comparison, take_turns
from benchmarks.training.speed import PARTS, main
from benchmarks.training.time_to_policy import time_until_solved
from grpo import GRPO
from grpo_core.options.rewards import optimized_cartpole

TINY = (
    "--n-repetitions 1 --n-rollouts 1 --rollout-steps 64 --n-timesteps 64 "
    "--job-timesteps 64 --ppo-timesteps 64 --n-seeds 1"
).split()


@pytest.mark.parametrize(
    ("part", "n_tables", "n_rows"),
    [("A", 3, 9), ("B", 4, 20), ("C", 2, 4), ("D", 2, 6), ("E", 2, 6)],
)
def test_every_part_runs_and_writes_what_it_prints(
    part: str,
    n_tables: int,
    n_rows: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRPO_EXECUTOR", "thread")  # spares the forkserver's imports
    path = tmp_path / "speed.md"
    main(["--parts", part, *TINY, "--write", str(path)])
    assert path.read_text() == capsys.readouterr().out
    lines = path.read_text().splitlines()
    assert f"## {part}. {PARTS[part][0]}" in lines
    assert sum(line.startswith("|---") for line in lines) == n_tables
    assert sum(line.startswith("| ") for line in lines) == n_tables + n_rows


def test_cases_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def make_case(label: str) -> float:
        calls.append(label)
        return float(len(calls))

    timings = take_turns({"one": lambda: make_case("one"), "two": lambda: make_case("two")}, n_repetitions=2)
    assert calls == ["one", "two"] * 3
    assert timings == {"one": [3.0, 5.0], "two": [4.0, 6.0]}


def test_table_of_times() -> None:
    timings = {"ours": [2.0, 1.0, 6.0], "theirs": [5.0, math.inf, 3.0], "lost": [math.inf, math.inf, 1.0]}
    assert format_comparison(Comparison("seconds", timings, ["theirs", "lost"])).splitlines() == [
        "| seconds | median | min - max | n | x theirs | x lost |",
        "|---|---|---|---|---|---|",
        "| ours | 2.0 | 1.0 - 6.0 | 3 | 2.50 | inf |",
        "| theirs | 5.0 | 3.0 - never | 2 of 3 | 1.00 | inf |",
        "| lost | never | 1.0 - never | 1 of 3 | 0.00 | nan |",
    ]


def test_of_rates_more_is_faster() -> None:
    assert compute_speedup(300.0, 100.0, is_rate=True) == 3.0
    assert compute_speedup(300.0, 100.0, is_rate=False) == pytest.approx(1 / 3)


def test_ppo_gets_the_rewards_of_grpo_at_the_end_of_an_episode_too() -> None:
    one_env = gym.make("CartPole-v1")
    all_envs = OptimizedCartPoleRewards(make_vec_env("CartPole-v1", 2, seed=5))
    one_env.reset(seed=5)
    all_envs.reset()
    is_over = False
    while not is_over:
        state, _, is_over, _, _ = one_env.step(1)
        next_state = torch.as_tensor(state).reshape(1, -1)
        _, rewards, dones, _ = all_envs.step(np.array([1, 1]))
        assert rewards[0] == optimized_cartpole(next_state, torch.ones(1, 1), next_state).item()
    assert dones[0]
    all_envs.close()


@pytest.mark.parametrize(("solved_score", "n_timesteps", "is_solved"), [(1.0, 2048, True), (501.0, 2100, False)])
def test_training_ends_with_the_first_check_that_is_good_enough(
    solved_score: float, n_timesteps: int, is_solved: bool
) -> None:
    model = make_service_model({"seed": 1})

    def make_model() -> GRPO:
        return model

    seconds = time_until_solved(make_model, 2100, seed=1, solved_score=solved_score)
    assert math.isfinite(seconds) == is_solved
    assert n_timesteps <= model.num_timesteps < n_timesteps + 64
