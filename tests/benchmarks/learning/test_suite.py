"""The comparison suite: what is stored, what is run again, and what the tables say."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from benchmarks.learning.learning_curve import LearningCurve
from benchmarks.learning.linear_search import make_linear_policy, search
from benchmarks.learning.suite import run_missing
from benchmarks.learning.zero_advantage import GroupRewards
from benchmarks.lib.runs import Run, RunSpec, append_run, find_missing, read_runs, select_runs
from benchmarks.lib.tables import compute_interval, compute_iqm, format_aim, format_table
from benchmarks.lib.tasks import TASKS, Task

SPEC = RunSpec("CartPole-v1", "ppo", "PPO", seed=1, budget=64, settings={"n_steps": 32, "policy_kwargs": {"a": [1, 2]}})
TASK = Task("CartPole-v1", 100, n_seeds=4, aim=490)


def make_run(spec: RunSpec = SPEC, score: float = 10.0) -> Run:
    return Run(
        **vars(spec), total_timesteps=64, curve=[[64, score]], score=score, wall_seconds=1.0, versions={"torch": "2"}
    )


def make_runs(*scores: float) -> list[Run]:
    return [make_run(replace(SPEC, seed=seed), score) for seed, score in enumerate(scores)]


def test_a_run_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "results" / "env.jsonl"
    append_run(path, make_run())
    assert read_runs(path) == [make_run()]


def test_no_file_holds_no_runs(tmp_path: Path) -> None:
    assert read_runs(tmp_path / "none.jsonl") == []


def test_a_cut_off_line_costs_only_its_own_run(tmp_path: Path) -> None:
    path = tmp_path / "env.jsonl"
    first, cut_off, last = make_runs(1.0, 2.0, 3.0)
    append_run(path, first)
    append_run(path, cut_off)
    path.write_bytes(path.read_bytes()[:-30])
    assert read_runs(path) == [first]
    append_run(path, last)
    assert read_runs(path) == [first, last]
    assert find_missing([run.spec for run in (first, cut_off, last)], read_runs(path)) == [cut_off.spec]


@pytest.mark.parametrize("change", [{"seed": 2}, {"budget": 65}, {"settings": {}}, {"method": "trpo"}])
def test_a_run_with_other_settings_is_another_run(change: dict[str, Any]) -> None:
    other = replace(SPEC, **change)
    assert find_missing([SPEC, other], [make_run()]) == [other]
    assert select_runs([SPEC, other], [make_run()]) == [make_run()]


def test_the_latest_of_two_equal_runs_counts() -> None:
    assert select_runs([SPEC], [make_run(score=1.0), make_run(score=2.0)]) == [make_run(score=2.0)]


def test_resuming_makes_only_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "env.jsonl"
    finished = make_run(score=77.0)
    append_run(path, finished)
    missing = replace(SPEC, seed=2)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        assert run_missing([SPEC, missing], path, executor, make_run) == 0
        assert run_missing([SPEC, missing], path, executor, make_run) == 0
    assert read_runs(path) == [finished, make_run(missing)]


def test_a_failed_run_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "env.jsonl"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        assert run_missing([SPEC, replace(SPEC, seed=-1)], path, executor, _fail_below_zero) == 1
    assert [run.seed for run in read_runs(path)] == [1]
    assert "FAILED CartPole-v1 ppo seed -1" in capsys.readouterr().err


def _fail_below_zero(spec: RunSpec) -> Run:
    if spec.seed < 0:
        raise ValueError("seed -1")
    return make_run(spec)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0, 1.0, 2.0], 2.0),  # three quarters round down to nothing cut
        ([0.0, 10.0, 20.0, 900.0], 15.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1000.0], 5.5),  # mean of 3 to 8
    ],
)
def test_interquartile_mean(scores: list[float], expected: float) -> None:
    assert compute_iqm(np.array(scores)) == pytest.approx(expected)


def test_interquartile_mean_of_curves_is_taken_point_by_point() -> None:
    curves = np.array([[0.0, 5.0], [10.0, 5.0], [20.0, 5.0], [900.0, 6.0]])
    np.testing.assert_allclose(compute_iqm(curves), [15.0, 5.0])


def test_interval_matches_a_slow_bootstrap_and_repeats() -> None:
    scores = np.array([1.0, 4.0, 6.0, 7.0, 20.0])
    rng = np.random.default_rng(5)
    resampled = [np.sort(rng.choice(scores, 5))[1:4].mean() for _ in range(20_000)]
    lower, upper = compute_interval(scores)
    np.testing.assert_allclose([lower, upper], np.quantile(resampled, [0.025, 0.975]), atol=0.35)
    assert (lower, upper) == compute_interval(scores)


def test_table() -> None:
    # 13 of 256 resamples hold three 4s or more, whose interquartile mean is 4: the upper 2.5 % are among them.
    table = format_table({"one": make_runs(4.0, 2.0, 2.0, 2.0), "none": []}, n_decimals=1)
    assert table.splitlines()[2:] == ["| one | 4 | 2.0 [2.0, 4.0] | 2.5 | 2.0 | 64 | 2, 2, 2, 4 |"]


@pytest.mark.parametrize(
    ("grpo", "ppo", "expected"),
    [
        ([500.0], [[300.0], [499.0]], "Reached: yes; at least the better PPO's: yes."),
        ([492.0], [[300.0], [499.0]], "Reached: yes; at least the better PPO's: no."),
        ([300.0], [[], [299.0]], "Reached: no; at least the better PPO's: yes."),
        ([], [[1.0], []], "and of at least PPO's."),
    ],
)
def test_aim(grpo: list[float], ppo: list[list[float]], expected: str) -> None:
    assert format_aim(TASK, make_runs(*grpo), [make_runs(*scores) for scores in ppo]).endswith(expected)


def test_learning_curve_falls_due_at_tenths_of_the_budget() -> None:
    curve = LearningCurve(replace(TASK, n_episodes=2, n_curve_episodes=1), budget=100, seed=0)
    due = []
    for n_timesteps in range(1, 105):
        if curve.is_due(n_timesteps):
            due.append(n_timesteps)
            curve.add(n_timesteps, lambda observations: np.zeros(len(observations), np.int64))
    assert due == list(range(10, 100, 10))
    score = curve.finish(104, lambda observations: np.zeros(len(observations), np.int64))
    assert len(curve.points) == 10
    assert curve.points[-1] == [104, score]
    assert 8 <= score <= 10  # CartPole falls after 8 to 10 pushes to the left


def test_linear_search_takes_the_whole_budget_and_repeats() -> None:
    task = replace(TASKS["FrozenLake-v1"], n_episodes=2, n_curve_episodes=1)
    curves = [LearningCurve(task, 300, seed=3) for _ in range(2)]
    (first_policy, notes), (second_policy, _) = [search(task.env_name, 300, 3, curve) for curve in curves]
    assert len(curves[0].points) == 9
    assert curves[0].points == curves[1].points
    assert notes["n_candidates"] >= 3  # an episode is at most 100 steps
    states = np.arange(16)
    np.testing.assert_array_equal(first_policy(states), second_policy(states))


def test_linear_policies() -> None:
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    observations = np.array([[1.0, 0.0], [0.4, 0.5]])
    discrete = make_linear_policy(weights, box, spaces.Discrete(3))
    np.testing.assert_array_equal(discrete(observations), [0, 1])
    continuous = make_linear_policy(weights, box, spaces.Box(-0.5, 0.5, (3,), np.float32))
    np.testing.assert_allclose(continuous(observations), [[0.5, 0.0, 0.0], [0.4, 0.5, 0.0]])


def test_the_negative_control_rewards_all_actions_by_the_one_next_state() -> None:
    env = GroupRewards(gym.make("CartPole-v1"))
    env.reset(seed=0)
    for action in (0, 1, 1):
        _, reward, _, _, info = env.step(action)
        assert info["group_rewards"].tolist() == [reward, reward]
    env.close()
