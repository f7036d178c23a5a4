"""SB3's callbacks do with GRPO what they do with PPO."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from grpo import GRPO
from tests.sb3.environments import IndifferentEnv, MatchEnv
from tests.sb3.small_models import MODES, build
from tests.suites import DEVICE
from tests.weights import copy_weights, is_same


def make_long_env() -> MatchEnv:
    """An environment whose episodes never end within a test, so that every rollout has as many steps."""
    return MatchEnv(episode_length=10**6)


class Count(BaseCallback):
    """Counts its calls, and stops the training where it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.events: list[str] = []

    def _on_training_start(self) -> None:
        self.events.append("training start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout start")

    def _on_step(self) -> bool:
        self.events.append("step")
        return self.n_calls != self.stop_at

    def _on_rollout_end(self) -> None:
        self.events.append("rollout end")

    def _on_training_end(self) -> None:
        self.events.append("training end")


def test_events_come_in_order() -> None:
    count = Count()
    build(make_long_env()).learn(32, count)
    rollout = ["rollout start", *["step"] * 16, "rollout end"]
    assert count.events == ["training start", *rollout * 2, "training end"]
    assert count.num_timesteps == 32


@pytest.mark.parametrize("mode", MODES)
def test_a_callback_that_returns_false_stops_at_once(mode: str) -> None:
    count, model = Count(stop_at=5), build(mode=mode)
    before = copy_weights(model)
    model.learn(1000, count)
    assert count.events == ["training start", "rollout start", *["step"] * 5, "training end"]
    assert model.num_timesteps == 5
    assert is_same(before, copy_weights(model)), "an incomplete rollout is not learned from"


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_of_a_callback_is_a_vec_step_over_the_environments(mode: str, n_envs: int) -> None:
    seen: list[tuple[int, ...]] = []

    def look(found: dict[str, Any], _: dict[str, Any]) -> bool:
        assert found["self"].num_timesteps >= len(seen) + 1
        assert found["env"].num_envs == n_envs
        seen.append(tuple(len(found[name]) for name in ("infos", "dones", "rewards")))
        return True

    model = build(make_vec_env(MatchEnv, n_envs), mode=mode)
    model.learn(24, look)
    assert set(seen) == {(n_envs, n_envs, n_envs)}
    assert -(-model.num_timesteps // n_envs) <= len(seen) <= model.num_timesteps


def test_locals_of_learn_are_there_too() -> None:
    names: list[str] = []

    class Look(BaseCallback):
        def _on_training_start(self) -> None:
            names.extend(self.locals)
            assert isinstance(self.model, GRPO)
            assert self.training_env is self.model.get_env()

        def _on_step(self) -> bool:
            return True

    build().learn(16, Look())
    assert {"self", "total_timesteps", "callback", "log_interval"} <= set(names)


def test_the_rollout_has_what_ppos_has_or_says_what_to_read_instead() -> None:
    seen: list[Any] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            rollout: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
            seen.append((rollout.buffer_size, rollout.n_envs, rollout.gamma, rollout.gae_lambda, rollout.device))
            seen.append((rollout.size(), rollout.obs_shape, rollout.action_dim))
            for name in ("pos", "full", "get", "episode_starts"):
                with pytest.raises(AttributeError, match=f"no '{name}', for it holds groups .* is True"):
                    getattr(rollout, name)
            with pytest.raises(AttributeError, match="'GroupRollout' object has no attribute 'position'"):
                assert rollout.position

    model = build(make_long_env(), n_steps=16, gamma=0.9)
    model.learn(16, Look())
    shape = model.observation_space.shape
    assert seen == [(16, 1, 0.9, model.gae_lambda, model.device), (16, shape, 1)]


def test_a_list_and_a_function_are_callbacks() -> None:
    counts, n_calls = [Count(), Count()], [0]

    def function(*_: Any) -> bool:
        n_calls[0] += 1
        return True

    build(make_long_env()).learn(16, [*counts, ConvertCallback(function)])
    build(make_long_env()).learn(16, CallbackList([*counts]))
    build(make_long_env()).learn(16, function)
    assert [count.n_calls for count in counts] == [32, 32]
    assert n_calls[0] == 32


def test_every_n_timesteps_triggers_so_often() -> None:
    count, log = Count(), LogEveryNTimesteps(n_steps=8)
    build(make_long_env()).learn(32, [EveryNTimesteps(n_steps=8, callback=count), log])
    assert count.n_calls == 4


@pytest.mark.parametrize("mode", MODES)
def test_eval_callback_evaluates_logs_and_keeps_the_best_model(mode: str, tmp_path: Path) -> None:
    evaluation = EvalCallback(
        Monitor(MatchEnv()),
        eval_freq=8,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        verbose=0,
    )
    model = build(mode=mode)
    model.learn(32, evaluation)
    with np.load(tmp_path / "log" / "evaluations.npz") as saved:
        assert saved["results"].shape == (len(saved["timesteps"]), 2)
        assert saved["timesteps"][:4].tolist() == [8, 16, 24, 32]
        assert saved["results"].mean(axis=1).max() == pytest.approx(evaluation.best_mean_reward)
    best = GRPO.load(tmp_path / "best" / "best_model", env=MatchEnv(), device=DEVICE)
    assert best.num_timesteps in (8, 16, 24, 32)
    best.learn(16)


def test_evaluation_leaves_the_training_as_it_was() -> None:
    alone, evaluated = build(), build()
    alone.learn(48)
    evaluated.learn(48, EvalCallback(Monitor(MatchEnv()), eval_freq=8, n_eval_episodes=2, verbose=0))
    assert is_same(copy_weights(alone), copy_weights(evaluated))


def test_a_reward_threshold_stops_the_training() -> None:
    model, stop = build(), StopTrainingOnRewardThreshold(reward_threshold=-1000.0)
    model.learn(1000, EvalCallback(Monitor(MatchEnv()), eval_freq=10, callback_on_new_best=stop, verbose=0))
    assert model.num_timesteps == 10


def test_no_improvement_stops_the_training() -> None:
    model = build(make_long_env())
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=1)
    env = Monitor(IndifferentEnv())
    model.learn(1000, EvalCallback(env, eval_freq=10, n_eval_episodes=1, callback_after_eval=stop, verbose=0))
    assert model.num_timesteps == 40, "the first two evaluations count as better than none"


def test_a_number_of_episodes_stops_the_training() -> None:
    env = make_vec_env(lambda: MatchEnv(episode_length=2), 2)
    model = build(env, mode="episode")
    model.learn(1000, StopTrainingOnMaxEpisodes(max_episodes=3))
    # Three per environment in the mean; both end theirs in the same vectorised step.
    assert model.num_timesteps == 12


@pytest.mark.parametrize("mode", MODES)
def test_checkpoints_load_and_train_on(mode: str, tmp_path: Path) -> None:
    model = build(mode=mode)
    model.learn(30, CheckpointCallback(save_freq=10, save_path=str(tmp_path), name_prefix="m"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:3] == ["m_10_steps.zip", "m_20_steps.zip", "m_30_steps.zip"]
    loaded = GRPO.load(tmp_path / "m_20_steps", env=MatchEnv(), device=DEVICE)
    assert loaded.num_timesteps == 20
    loaded.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 36


def test_checkpoints_keep_the_statistics_of_vec_normalize_where_asked_to(tmp_path: Path) -> None:
    env = make_vec_env(MatchEnv, 1)
    model = build(VecNormalize(env))
    model.learn(32, CheckpointCallback(save_freq=16, save_path=str(tmp_path), save_vecnormalize=True))
    assert {path.name for path in tmp_path.iterdir()} >= {
        "rl_model_32_steps.zip",
        "rl_model_vecnormalize_32_steps.pkl",
    }
    from_pickle = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_32_steps.pkl"), make_vec_env(MatchEnv, 1))
    loaded = GRPO.load(tmp_path / "rl_model_32_steps", env=make_vec_env(MatchEnv, 1), device=DEVICE)
    from_zip = loaded.get_vec_normalize_env()
    assert from_zip is not None
    for name in ("mean", "var", "count"):
        np.testing.assert_array_equal(getattr(from_zip.obs_rms, name), getattr(from_pickle.obs_rms, name))
    loaded.set_env(from_pickle)
    loaded.learn(16)


def test_the_progress_bar_moves() -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "rich is experimental")
        model = build(make_long_env()).learn(32, progress_bar=True)
    assert model.num_timesteps == 32
