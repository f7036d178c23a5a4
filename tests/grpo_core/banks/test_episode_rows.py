"""Rows of monitors' files hold true episodes, and together no more steps than were taken."""

import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from grpo import GRPO, RestorableWrapper
from grpo_core.banks.episode_rows import EpisodeRows


class CountingEnv(gym.Env[Any, Any]):
    """Pays the number of the step, so that an episode of l steps earns l * (l + 1) / 2; action 1 may end it."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n = 0
        return self.observation_space.low, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n += 1
        is_over = action == 1 and self.n % 7 == 0
        return self.observation_space.low, float(self.n), is_over, False, {"even": self.n % 2 == 0}


def make_env() -> gym.Env[Any, Any]:
    return TimeLimit(CountingEnv(), 60)


def build(env: Any, **changes: Any) -> GRPO:
    arguments: dict[str, Any] = {"n_steps": 64, "horizon": 16, "seed": 0, "device": "cpu", "n_epochs": 1, **changes}
    return GRPO("MlpPolicy", env, **arguments)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        file.readline()
        return list(csv.DictReader(file))


def test_an_episode_waits_until_enough_steps_were_taken() -> None:
    rows = EpisodeRows()
    written = [
        [row["l"] for row in rows.choose({"l": length}, n_steps_taken)]
        for length, n_steps_taken in ((5, 5), (9, 7), (1, 8), (2, 14), (3, 17), (4, 30))
    ]
    # 9 waits for 14 steps, and 1 is left out meanwhile; 2 waits for 16 and is written before 3, which waits for 19.
    assert written == [[5], [], [], [9], [2], [3, 4]]


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("mode", ["branch", "action", "episode"])
def test_rows_of_monitor_are_episodes_and_count_no_step_twice(mode: str, n_envs: int, tmp_path: Path) -> None:
    env = make_vec_env(make_env, n_envs, monitor_dir=str(tmp_path))
    model = build(env, group_mode=mode, horizon=None if mode == "episode" else 16)
    model.learn(1000)
    model.learn(500)
    n_steps, files = 0, sorted(tmp_path.glob("*.monitor.csv"))
    assert len(files) == n_envs
    for file in files:
        rows = read_rows(file)
        assert rows
        for row in rows:
            assert float(row["r"]) == int(row["l"]) * (int(row["l"]) + 1) / 2
        n_steps += sum(int(row["l"]) for row in rows)
    n_taken = sum(env.get_attr("total_steps"))
    env.close()
    if mode == "episode":
        assert n_steps == n_taken, "nothing is shared"
    assert n_taken - n_envs * (8 * 60) < n_steps <= n_taken


def test_rows_in_workers_are_counted_alike(tmp_path: Path) -> None:
    env = make_vec_env(
        make_env,
        1,
        monitor_dir=str(tmp_path),
        vec_env_cls=SubprocVecEnv,
        wrapper_class=RestorableWrapper,
    )
    model = build(env)
    model.learn(400)
    env.close()
    assert 0 < sum(int(row["l"]) for row in read_rows(tmp_path / "0.monitor.csv")) <= model.num_timesteps


@pytest.mark.parametrize("use_fast_path", [True, False])
@pytest.mark.parametrize("mode", ["branch", "episode"])
def test_vec_monitor_is_told_of_every_end(
    mode: str, use_fast_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GRPO, "use_fast_path", use_fast_path)
    env = VecMonitor(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2), str(tmp_path / "m"))
    model = build(env, group_mode=mode)
    model.learn(600)
    env.close()
    assert model.ep_info_buffer
    assert env.episode_count >= len(model.ep_info_buffer)
    assert all(episode["r"] == episode["l"] for episode in model.ep_info_buffer), "each step pays 1"
    rows = read_rows(tmp_path / "m.monitor.csv")
    assert rows
    assert sum(int(row["l"]) for row in rows) <= model.num_timesteps


def test_vec_monitor_adds_up_what_branches_before_it_earned(tmp_path: Path) -> None:
    env = VecMonitor(DummyVecEnv([make_env]), str(tmp_path / "m"), info_keywords=("even",))
    model = build(env, reward_function=lambda state, action, next_state: next_state[:, :1])
    model.learn(600)
    env.close()
    assert model.ep_info_buffer
    assert any(episode["l"] > 16 for episode in model.ep_info_buffer), "longer than a branch"
    for episode in model.ep_info_buffer:
        assert episode["r"] == episode["l"] * (episode["l"] + 1) / 2, "the environment's own reward"
        assert episode["even"] == (episode["l"] % 2 == 0)


def test_a_monitor_writes_as_before_after_training(tmp_path: Path) -> None:
    env = Monitor(make_env(), str(tmp_path / "m"))
    build(env).learn(64)
    n_rows = len(read_rows(tmp_path / "m.monitor.csv"))
    for _ in range(5):
        env.reset()
        while not any(env.step(0)[2:4]):
            pass
    assert len(read_rows(tmp_path / "m.monitor.csv")) in (n_rows + 4, n_rows + 5, n_rows + 6)
    env.close()
