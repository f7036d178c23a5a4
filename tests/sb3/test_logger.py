"""SB3's loggers are handed the keys that PPO has, and the ones of groups."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from tests.sb3.environments import ACTION_SPACES, MatchEnv
from tests.sb3.small_models import MODES, build

ROLLOUT_KEYS = {
    "rollout/ep_len_mean",
    "rollout/ep_rew_mean",
    "rollout/group_coefficient",
    "rollout/group_variance_saved",
    "rollout/reward_mean",
    "rollout/zero_std_group_fraction",
}
TIME_KEYS = {"time/fps"}
TABLE_KEYS = {"time/iterations", "time/time_elapsed", "time/total_timesteps", "train/n_updates"}
TRAIN_KEYS = {
    "train/approx_kl",
    "train/clip_fraction",
    "train/clip_range",
    "train/entropy_loss",
    "train/explained_variance",
    "train/learning_rate",
    "train/loss",
    "train/policy_gradient_loss",
    "train/value_loss",
}


def train_with_csv(folder: Path, n_steps: int = 60, log_interval: int = 1, **changes: Any) -> list[dict[str, str]]:
    model, logger = build(**changes), configure(str(folder), ["csv"])
    model.set_logger(logger)
    assert model.learn(n_steps, log_interval=log_interval).logger is logger
    logger.close()
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mode", MODES)
def test_every_key_is_in_the_table(mode: str, tmp_path: Path) -> None:
    rows = train_with_csv(tmp_path, mode=mode)
    assert ROLLOUT_KEYS | TIME_KEYS | TABLE_KEYS | TRAIN_KEYS == set(rows[-1])
    assert [int(row["time/iterations"]) for row in rows] == list(range(1, len(rows) + 1))
    assert int(rows[-1]["time/total_timesteps"]) >= 60
    for key in ROLLOUT_KEYS | TRAIN_KEYS:
        assert np.isfinite(float(rows[-1][key])), key
    assert 0.0 <= float(rows[-1]["rollout/zero_std_group_fraction"]) <= 1.0


def test_options_log_what_they_add(tmp_path: Path) -> None:
    env = MatchEnv(action_space=ACTION_SPACES["box"])
    (*_, row) = train_with_csv(tmp_path, env=env, kl_coef=0.1)
    assert float(row["train/kl_ref"]) >= 0.0
    assert float(row["train/std"]) == pytest.approx(1.0, abs=0.1)


def test_episode_statistics_are_of_whole_episodes(tmp_path: Path) -> None:
    (*_, row) = train_with_csv(tmp_path, env=MatchEnv(episode_length=5), mode="episode")
    assert float(row["rollout/ep_len_mean"]) == 5.0
    assert float(row["rollout/ep_rew_mean"]) <= 5.0


def test_successes_are_counted(tmp_path: Path) -> None:
    class SucceedingEnv(MatchEnv):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, _ = super().step(action)
            return observation, reward, terminated, truncated, {"is_success": terminated}

    (*_, row) = train_with_csv(tmp_path, env=SucceedingEnv(), mode="episode")
    assert float(row["rollout/success_rate"]) == 1.0


def test_log_interval_leaves_rollouts_out(tmp_path: Path) -> None:
    rows = train_with_csv(tmp_path, 64, log_interval=2, env=MatchEnv(episode_length=1000))
    assert [row["time/iterations"] for row in rows] == ["2", "4"]


def test_a_table_is_printed_when_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    build(verbose=1).learn(32)
    printed = capsys.readouterr().out
    for name in ("ep_rew_mean", "total_timesteps", "zero_std_group_fraction", "policy_gradient_loss"):
        assert name in printed
    build(verbose=0).learn(32)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def read_tensorboard(folder: Path) -> dict[str, list[int]]:
    """Read the steps at which each scalar was written."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {key: [event.step for event in events.Scalars(key)] for key in events.Tags()["scalars"]}


def test_tensorboard_files_hold_the_keys_of_ppo(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = build(make_vec_env(lambda: MatchEnv(episode_length=4), 2), tensorboard_log=str(tmp_path))
    model.learn(64)
    model.logger.close()
    scalars = read_tensorboard(tmp_path / "GRPO_1")
    assert set(scalars) == ROLLOUT_KEYS | TIME_KEYS | TRAIN_KEYS
    assert scalars["rollout/ep_rew_mean"] == sorted(scalars["rollout/ep_rew_mean"])


def test_runs_are_numbered_and_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = build(tensorboard_log=str(tmp_path))
    changes: list[dict[str, Any]] = [{}, {}, {"reset_num_timesteps": False}, {"tb_log_name": "other"}]
    for arguments in changes:
        model.learn(16, **arguments)
        model.logger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GRPO_1", "GRPO_2", "other_1"]
