"""Sweeps with both clients and on the command line, against a real server."""

import json
from dataclasses import replace
from typing import Any

import pytest

from grpo_client import JobTimeout, NotFound, Sweep
from tests.conftest import RegisterEnv
from tests.environments import LineEnv
from tests.support import PATIENCE_SECONDS

BASE = {"total_timesteps": 64, "n_eval_episodes": 2}
SPACE = {"learning_rate": [0.001, 0.003]}


def test_a_sweep_is_started_waited_for_and_deleted(grpo: Any) -> None:
    started = grpo.start_sweep(SPACE, base=BASE, name="rates", seeds=[0, 1])
    assert (started.name, started.n_settings, started.n_jobs, started.timesteps) == ("rates", 2, 4, 256)
    seen: list[Sweep] = []
    sweep = grpo.wait_for_sweep(timeout_seconds=PATIENCE_SECONDS, on_look=seen.append)
    assert (sweep.sweep_id, sweep.status, sweep.is_active) == (started.sweep_id, "completed", False)
    assert seen[-1] == sweep
    assert grpo.sweep(sweep.sweep_id).best == sweep.best  # others' models may only be deleted now
    assert [row.values for row in sorted(sweep.settings, key=lambda row: row.number)] == [
        {"learning_rate": 0.001},
        {"learning_rate": 0.003},
    ]
    best = sweep.settings[0]
    assert (best.number, best.mean_reward, best.n_seeds) == (sweep.best.setting, sweep.best.mean_reward, 2)
    assert best.trials[0].mean_reward == grpo.status(best.trials[0].job_id).final_evaluation.mean_reward
    assert grpo.status(best.trials[0].job_id).sweep_id == sweep.sweep_id
    assert "best: Setting" in str(sweep)
    assert "best: " not in str(replace(sweep, n_settings=1))
    assert [each.name for each in grpo.sweeps(limit=5)] == ["rates"]
    assert grpo.delete_sweep(sweep.sweep_id).message == "Sweep deleted"
    with pytest.raises(NotFound):
        grpo.sweep(sweep.sweep_id)


def test_a_sweep_is_stopped_and_resumed(grpo: Any) -> None:
    long = {"total_timesteps": 10_000_000, "n_eval_episodes": 1}
    sweep_id = grpo.start_sweep({"gamma": [0.9]}, base=long).sweep_id
    with pytest.raises(JobTimeout, match=f"sweep {sweep_id} is not over"):
        grpo.wait_for_sweep(sweep_id, timeout_seconds=0.01)
    grpo.stop_sweep(sweep_id)
    assert grpo.wait_for_sweep(sweep_id, timeout_seconds=PATIENCE_SECONDS).status == "stopped"
    assert grpo.resume_sweep(sweep_id).message == "Sweep resumed"
    assert grpo.sweep(sweep_id).is_active
    assert grpo.stop_sweep(sweep_id).message == "Sweep stopping"
    assert grpo.wait_for_sweep(sweep_id, timeout_seconds=PATIENCE_SECONDS).status == "stopped"


def test_a_sweep_is_started_and_shown_on_the_command_line(ask: Any) -> None:
    settings = ["n_eval_episodes=2", "gamma=0.9"]
    exit_status, said, _ = ask(
        "sweep", "start", "--try", "learning_rate=0.001,0.003", "net_arch=[[8],[16]]", "-n", "64", "--set", *settings,
        "--name", "rates", "--watch",
    )  # fmt: skip
    assert exit_status == 0
    head, titles, *rows = said.splitlines()
    assert head.startswith("completed: rates in CartPole-v1, 4 completed, sweep ")
    assert titles.split()[:5] == ["setting", "learning_rate", "net_arch", "steps", "reward"]
    assert {row.split()[2] for row in rows[:4]} == {"[8]", "[16]"}
    assert rows[-1].startswith("model: rates-0")
    assert ask("sweep", "list")[1].splitlines()[1].split()[1:4] == ["rates", "completed", "CartPole-v1"]
    assert ask("sweep", "status")[1] == ask("sweep", "wait", "--timeout", str(PATIENCE_SECONDS))[1] == said
    assert ask("sweep", "stop")[0] == 1
    sweep_id = json.loads(ask("sweep", "status", "--json")[1])["sweep_id"]
    assert ask("sweep", "delete", sweep_id)[1] == f"Sweep deleted: rates, {sweep_id}\n"


def test_a_sweep_with_a_failed_job_ends_in_failure(ask: Any, register_env: RegisterEnv) -> None:
    def fail() -> None:
        raise RuntimeError("the motor broke")

    env_name = register_env(lambda: LineEnv(on_step=fail), max_episode_steps=5)
    started = ask(
        "sweep", "start", "--try", "gamma=0.9,0.99", "--env", env_name, "-n", "64",
        "--set", "group_mode=episode", "n_steps=64", "--watch",
    )  # fmt: skip
    assert started[0] == ask("sweep", "wait")[0] == 1
    assert "2 failed" in started[1]


def test_ranges_are_written_in_words(ask: Any) -> None:
    _, said, _ = ask(
        "sweep", "start", "--try", "learning_rate=loguniform(1e-4,1e-2)", "n_steps=integer(32,96,32)", "-n", "64",
        "--method", "random", "--trials", "2", "--seed", "3", "--set", "n_eval_episodes=2", "--json",
    )  # fmt: skip
    assert (json.loads(said)["n_settings"], json.loads(said)["seed"]) == (2, 3)
    request = json.loads(ask("sweep", "status", "--json")[1])["request"]
    assert request["space"] == {
        "learning_rate": {"distribution": "loguniform", "low": 1e-4, "high": 1e-2},
        "n_steps": {"distribution": "integer", "low": 32, "high": 96, "step": 32},
    }
    ask("sweep", "stop")


@pytest.mark.parametrize(
    ("arguments", "exit_status", "said"),
    [
        (["gamma"], 2, "write KEY=VALUES"),
        (["gamma=0.9", "gamma=0.99"], 2, "names gamma twice"),
        (["gamma=0.9", "--try", "gamma=0.99"], 2, "names gamma twice"),
        (["gamma=[0.9"], 2, "is not JSON"),
        (["gama=0.9,0.99"], 1, "did you mean gamma?"),
        (["gamma=normal(0,1)"], 1, "'uniform', 'loguniform' or 'integer'"),
        (["gamma=uniform(0.9)"], 1, "space.gamma.high: must be given"),
    ],
)
def test_what_cannot_be_tried_is_said(ask: Any, arguments: list[str], exit_status: int, said: str) -> None:
    status, _, complaint = ask("sweep", "start", "--try", *arguments)
    assert status == exit_status
    assert said in complaint
