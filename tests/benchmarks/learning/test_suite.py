"""The comparison suite: what is stored, what is run again, and what the tables say."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import ARS, TRPO
from stable_baselines3 import PPO

from benchmarks.learning.ablation import ABLATION_TASKS, ABLATIONS, make_rows
from benchmarks.learning.grpo_settings import get_general_name, get_general_settings
from benchmarks.learning.learning_curve import LearningCurve
from benchmarks.learning.linear_search import make_linear_policy, search
from benchmarks.learning.methods import METHODS, make_specs
from benchmarks.learning.suite import plan_runs, run_missing
from benchmarks.learning.trainers import make_env, to_arguments
from benchmarks.learning.zero_advantage import GroupRewards
from benchmarks.lib.durations import estimate_seconds, format_duration
from benchmarks.lib.grids import register_grids
from benchmarks.lib.runs import Run, RunSpec, append_run, find_missing, read_runs, select_runs
from benchmarks.lib.tables import (
    compute_difference,
    compute_interval,
    compute_iqm,
    format_aims,
    format_difference,
    format_score,
    format_table,
)
from benchmarks.lib.tasks import TASKS, Task, get_task, select_tasks
from grpo_core.options.presets import choose_general_preset
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.simulator import check_branchable

SPEC = RunSpec("CartPole-v1", "ppo", "PPO", seed=1, budget=64, settings={"n_steps": 32, "policy_kwargs": {"a": [1, 2]}})
TASK = Task("CartPole-v1", 100, aim=490, worst_aim=400, n_seeds=4)


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


def test_a_run_that_two_tables_ask_for_is_made_once() -> None:
    assert find_missing([SPEC, replace(SPEC)], []) == [SPEC]


def test_resuming_makes_only_what_is_missing_and_a_failed_run_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "env.jsonl"
    finished = make_run(score=77.0)
    append_run(path, finished)
    failing, missing = replace(SPEC, seed=-1), replace(SPEC, seed=2)
    assert run_missing([SPEC, failing, missing], lambda env_name: path, 1, _fail_below_zero) == 1
    assert read_runs(path) == [finished, make_run(missing)]
    printed = capsys.readouterr()
    assert printed.out.startswith("2 of 3 runs are missing: about 2 s\n")
    assert "2/2 CartPole-v1 ppo seed 2: 10.00 in 1 s; about 0 s left" in printed.out
    assert "FAILED CartPole-v1 ppo seed -1" in printed.err

    assert run_missing([SPEC, missing], lambda env_name: path, 1, _fail_below_zero) == 0
    assert capsys.readouterr().out == "0 of 2 runs are missing: about 0 s\n"


def _fail_below_zero(spec: RunSpec) -> Run:
    if spec.seed < 0:
        raise ValueError("seed -1")
    return make_run(spec)


def test_the_quickest_runs_come_first() -> None:
    slow, quick = replace(SPEC, budget=1000, env="Slow-v0"), replace(SPEC, env="Quick-v0")
    assert plan_runs([slow, SPEC, quick], [make_run()]) == [(1.0, quick), (15.625, slow)]


def test_a_duration_is_estimated_from_the_runs_most_alike() -> None:
    def make(method: str, algorithm: str, wall_seconds: float) -> Run:
        return replace(make_run(), method=method, algorithm=algorithm, wall_seconds=wall_seconds)

    spec = replace(SPEC, budget=128)  # twice the steps of the finished runs
    assert estimate_seconds(spec, []) == pytest.approx(0.128)
    others = [make("trpo", "TRPO", 100.0), make("ppo_other", "PPO", 7.0)]
    assert estimate_seconds(spec, others) == pytest.approx(14.0)
    alike = [make("ppo", "PPO", seconds) for seconds in (1.0, 3.0, 50.0)]
    assert estimate_seconds(spec, [*others, *alike]) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(50.4, "50 s"), (120, "2 min"), (3599, "1 h 0 min"), (12000, "3 h 20 min")]
)
def test_duration(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


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


def test_score_with_its_interval_and_seeds() -> None:
    assert format_score([], 1) == "-"
    assert format_score(make_runs(1000.0), 1) == "1,000.0, 1 seed"
    assert format_score(make_runs(1000.0, 1000.0, 1000.0, 1000.0), 1) == "1,000.0, 4 seeds"  # too few for an interval
    assert format_score(make_runs(*[1000.0] * 5), 1) == "1,000.0 [1,000.0, 1,000.0], 5 seeds"


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


def test_a_difference_has_the_sign_of_ours_minus_theirs_and_an_interval() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(10.0, 1.0, 30), rng.normal(8.0, 1.0, 30)
    difference, low, high = compute_difference(ours, theirs)
    assert difference == compute_iqm(ours) - compute_iqm(theirs)
    assert 1.0 < low < difference < high < 3.0
    assert compute_difference(ours, ours)[0] == 0.0
    assert compute_difference(ours, ours)[1] < -0.1  # of seeds drawn anew on both sides


def test_few_seeds_have_no_difference() -> None:
    runs = make_runs(1.0, 2.0, 3.0, 4.0, 5.0)
    assert format_difference(runs, runs, 1).startswith("+0.0 [")
    assert format_difference(runs, runs[:4], 1) == format_difference([], runs, 1) == "-"


def test_table() -> None:
    # Of five seeds the middle three count. 181 of 3125 resamples hold three 4s or more, 21 of them four: all three are
    # 4s in the latter, and two in the former, whose mean is 10 / 3; the upper 2.5 % are among these.
    table = format_table({"one": make_runs(4.0, 2.0, 2.0, 2.0, 2.0), "none": []}, n_decimals=1)
    assert table.splitlines()[2:] == ["| one | 5 | 2.0 [2.0, 3.3] | 2.4 | 2.0 | 64 | 2, 2, 2, 2, 4 |"]


@pytest.mark.parametrize(
    ("grpo", "ppo", "expected"),
    [
        ([500.0], [[300.0], [499.0]], ["reached", "reached", "reached"]),
        ([492.0], [[300.0], [499.0]], ["reached", "reached", "missed"]),
        # The interquartile mean leaves out the one that fell short.
        ([300.0, 499.0, 499.0, 500.0], [[], [299.0]], ["reached", "missed", "reached"]),
        ([300.0], [[], []], ["missed", "missed"]),
        ([], [[1.0], []], []),
    ],
)
def test_aims(grpo: list[float], ppo: list[list[float]], expected: list[str]) -> None:
    text = format_aims(TASK, make_runs(*grpo), [make_runs(*scores) for scores in ppo])
    assert re.findall(r"reached|missed", text) == expected
    few = f", judged by {len(grpo)} of {TASK.n_seeds} seeds" if 0 < len(grpo) < TASK.n_seeds else ""
    assert text.startswith(f"Aims for GRPO{few}: an IQM of at least 490")


def test_a_task_without_a_figure_to_reach_asks_for_no_less_than_ppo() -> None:
    text = format_aims(Task("Swimmer-v5", 100), make_runs(5.0), [make_runs(4.0)])
    assert text == (
        "Aims for GRPO, judged by 1 of 10 seeds: an IQM of at least the best PPO's: **reached**. "
        "Seeds of each of PPO's settings: 1."
    )


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
    task = replace(get_task("FrozenLake-v1", 50_000), n_episodes=2, n_curve_episodes=1)
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


def test_a_task_is_found_by_its_environment_and_budget() -> None:
    titles = [(task.env_name, task.total_timesteps) for task in TASKS]
    assert len(set(titles)) == len(TASKS)
    assert [get_task(*title) for title in titles] == list(TASKS)
    assert [task.total_timesteps for task in select_tasks(["Hopper-v5"])] == [300_000, 1_000_000]
    assert [task.total_timesteps for task in select_tasks(["Hopper-v5"], 300_000)] == [300_000]
    with pytest.raises(KeyError, match="CartPole-v1 with 7 steps"):
        get_task("CartPole-v1", 7)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.file_name)
def test_every_task_gets_the_general_preset_that_the_service_would_choose(task: Task) -> None:
    env = make_or_skip(task.env_name)
    try:
        check_branchable(env)
        is_restorable = True
    except NotBranchableError:
        is_restorable = False
    spaces = env.observation_space, env.action_space
    assert get_general_name(task) == choose_general_preset(*spaces, is_restorable, task.total_timesteps)
    env.close()


def test_a_general_preset_has_eight_rollouts_or_more() -> None:
    settings = get_general_settings(Task("Pendulum-v1", 15_000))
    assert settings["n_steps"] == 1024  # half of the preset's, of which 15,000 steps hold seven
    assert settings["n_steps"] % (settings["group_size"] * settings["horizon"]) == 0


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")  # as the zoo's do
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.file_name)
def test_every_peer_is_built_from_its_settings(task: Task) -> None:
    make_or_skip(task.env_name).close()
    algorithms: dict[str, Any] = {"PPO": PPO, "TRPO": TRPO, "ARS": ARS}
    for method in METHODS:
        for spec in make_specs(task, method, 1):
            if spec.algorithm in algorithms:
                env = make_env(spec.env, spec.settings, seed=0)
                policy = spec.settings.get("policy", "MlpPolicy")
                algorithms[spec.algorithm](policy, env, device="cpu", **to_arguments(spec.settings))
                env.close()


def make_or_skip(env_name: str) -> gym.Env[Any, Any]:
    """Make an environment; skip the test where its package is not installed."""
    register_grids()
    for prefix, package in (("MiniGrid", "minigrid"), ("MinAtar", "minatar"), ("LunarLander", "Box2D")):
        if env_name.startswith(prefix):
            pytest.importorskip(package)
    return gym.make(env_name)


@pytest.mark.parametrize("task", ABLATION_TASKS, ids=lambda task: task.file_name)
def test_rows_of_the_ablation_differ_in_what_their_labels_say(task: Task) -> None:
    rows = make_rows(task, ABLATIONS["baseline"])
    assert len(rows) == 18
    settings = {label: specs[0].settings for label, specs in rows.items()}
    preset = settings["residual, branches"]
    assert preset["anchor_selection"] == "continue"
    assert settings["none, branches"] == preset | {"baseline": "none"}
    assert settings["adaptive, branches from an archive"] == preset | {
        "baseline": "adaptive",
        "anchor_selection": "archive",
    }
    assert settings["value, episodes"] == preset | {"baseline": "value", "group_mode": "episode", "horizon": None}
    assert {len(specs) for specs in rows.values()} == {10}


def test_a_row_whose_groups_do_not_fill_a_rollout_is_left_out() -> None:
    task = get_task("Acrobot-v1", 15_000)  # 256 steps per rollout, groups of 2
    assert list(make_rows(task, ABLATIONS["horizon"])) == [f"horizon {horizon}" for horizon in (8, 16, 32, 64, 128)]
