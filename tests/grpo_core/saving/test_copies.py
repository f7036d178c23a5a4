"""A model that was pickled or copied goes on as the one it was made from."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from grpo import GRPO, RestorableWrapper
from grpo_core.banks.choose_bank import make_bank
from grpo_core.restoring.proving.report import RestoringReport
from tests.sb3.environments import OBSERVATION_SPACES, MatchEnv
from tests.sb3.small_models import MODES, build
from tests.weights import copy_weights, is_same

Copy = Callable[[GRPO], GRPO]


def pickle_and_back(model: GRPO) -> GRPO:
    restored: GRPO = pickle.loads(pickle.dumps(model))
    return restored


BY = pytest.mark.parametrize("copy_model", [pickle_and_back, copy.deepcopy])


@BY
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_copy_goes_on_as_the_model_does(mode: str, reset: bool, copy_model: Copy) -> None:
    model = build(make_vec_env(MatchEnv, 2), mode=mode, kl_coef=0.1)
    model.learn(40)
    twin = copy_model(model)
    assert is_same(copy_weights(model), copy_weights(twin))
    for one in (model, twin):
        one.learn(40, reset_num_timesteps=reset)
    assert model.num_timesteps == twin.num_timesteps
    assert is_same(copy_weights(model), copy_weights(twin))
    before = copy_weights(twin)
    model.learn(40)
    assert is_same(before, copy_weights(twin)), "they share nothing"


@BY
@pytest.mark.parametrize("anchor_selection", ["continue", "archive"])
@pytest.mark.parametrize("use_fast_path", [True, False])
def test_so_it_does_on_either_path(
    use_fast_path: bool, anchor_selection: str, copy_model: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GRPO, "use_fast_path", use_fast_path)
    model = build("CartPole-v1", n_steps=64, horizon=16, anchor_selection=anchor_selection)
    model.learn(128)
    twin = copy_model(model)
    for one in (model, twin):
        one.learn(64, reset_num_timesteps=False)
    assert is_same(copy_weights(model), copy_weights(twin))


@BY
def test_wrappers_that_sb3_cannot_pickle_come_along(copy_model: Copy) -> None:
    image = OBSERVATION_SPACES["image"]
    envs: dict[str, Any] = {
        "MlpPolicy": VecMonitor(VecNormalize(VecFrameStack(DummyVecEnv([MatchEnv] * 2), 2), gamma=0.9)),
        "CnnPolicy": make_vec_env(lambda: MatchEnv(image), 1),  # SB3 transposes the images
    }
    for policy, env in envs.items():
        model = build(env, policy)
        model.learn(32)
        twin = copy_model(model)
        assert type(twin.get_env()) is type(model.get_env())
        ours, theirs = model.get_vec_normalize_env(), twin.get_vec_normalize_env()
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert (theirs.ret_rms.var, theirs.gamma) == (ours.ret_rms.var, 0.9)
        for one in (model, twin):
            one.learn(32, reset_num_timesteps=False)
        assert is_same(copy_weights(model), copy_weights(twin))
        observation: Any = model.observation_space.sample()
        first, second = (one.predict(observation, deterministic=True)[0] for one in (model, twin))
        np.testing.assert_array_equal(first, second)


def test_a_model_without_an_environment_and_one_with_a_logger_are_copied(tmp_path: Any) -> None:
    model = build()
    model.save(tmp_path / "model")
    loaded = pickle_and_back(GRPO.load(tmp_path / "model", device="cpu"))
    assert loaded.get_env() is None
    loaded.set_env(MatchEnv())
    loaded.learn(16)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(16)
    copy.deepcopy(model).learn(16)
    model.logger.close()


def test_environments_in_processes_are_not_copied() -> None:
    env = make_vec_env("CartPole-v1", 1, vec_env_cls=SubprocVecEnv, wrapper_class=RestorableWrapper)
    model = GRPO("MlpPolicy", env, n_steps=64)
    for copy_model in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"SubprocVecEnv, can be neither copied nor pickled; use model\.save"):
            copy_model(model)
    env.close()


def test_an_environment_that_branches_by_deep_copies_is_copied_too() -> None:
    model = GRPO("MlpPolicy", gym.wrappers.TimeLimit(Drifting(), 30), n_steps=32, horizon=8, seed=0, n_epochs=1)
    model.learn(32)
    for twin in (pickle_and_back(model), copy.deepcopy(model)):
        twin.learn(32, reset_num_timesteps=False)


@BY
def test_what_restoring_costs_is_not_measured_anew(copy_model: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(MatchEnv(), horizon=8, n_steps=32)
    model.learn(32)
    assert model._collector.findings.is_cheap
    monkeypatch.setattr(RestoringReport, "pays", False)  # as a busy machine may make it seem
    assert not make_bank(make_vec_env(MatchEnv, 1), needs_restore=True).findings.is_cheap
    twin = copy_model(model)
    assert twin._collector.findings == model._collector.findings


def test_a_copy_finds_out_about_an_environment_that_no_group_was_played_in() -> None:
    model = build(MatchEnv(), horizon=8, n_steps=32)
    model.learn(32)
    model.env = DummyVecEnv([MatchEnv])
    assert copy.deepcopy(model)._collector.anchors.starts == []


class Drifting(gym.Env[Any, Any]):
    """Keeps its state in a dict, which only a deep copy holds."""

    observation_space = gym.spaces.Box(-9.0, 9.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.inner = {"x": 0.0}
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.inner["x"] += float(action) - 0.5
        return np.clip(np.array([self.inner["x"]], np.float32), -9, 9), -abs(self.inner["x"]), False, False, {}
