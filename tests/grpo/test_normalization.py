"""Statistics of VecNormalize travel in the model file."""

import io
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core.saving import model_file
from tests.grpo.small_models import build, normalized


def train_normalized(**options: Any) -> tuple[GRPO, VecNormalize]:
    env = normalized(gamma=0.9, **options)
    model = build(env)
    model.learn(256)
    return model, env


def is_same_statistics(first: Any, second: Any) -> bool:
    names = ("mean", "var", "count")
    return all(
        np.array_equal(getattr(getattr(first, rms), name), getattr(getattr(second, rms), name))
        for rms in ("obs_rms", "ret_rms")
        for name in names
    )


@pytest.mark.parametrize("is_set_later", [False, True])
def test_statistics_travel_in_the_model_file_and_normalise_a_plain_environment(is_set_later: bool) -> None:
    model, env = train_normalized(clip_obs=3.0)
    plain = make_vec_env("Pendulum-v1", n_envs=2, vec_env_cls=DummyVecEnv)
    content = io.BytesIO(model.to_bytes())
    loaded = GRPO.load(content, env=None if is_set_later else plain, n_epochs=1, batch_size=64, learning_rate=1e-12)
    if is_set_later:
        loaded.set_env(plain)
    wrapped = loaded.get_vec_normalize_env()
    assert wrapped is not None
    assert is_same_statistics(wrapped, env)
    assert (wrapped.clip_obs, wrapped.gamma, wrapped.venv) == (3.0, 0.9, plain)
    loaded.learn(1, reset_num_timesteps=False)
    assert loaded.logger.name_to_value["train/approx_kl"] == pytest.approx(0, abs=1e-7), "it learns from what it saw"
    assert not is_same_statistics(wrapped, env), "training goes on"


def test_an_environment_that_is_normalised_already_gets_the_statistics_of_the_file() -> None:
    model, env = train_normalized()
    own = normalized()
    loaded = GRPO.load(io.BytesIO(model.to_bytes()), env=own)
    assert loaded.get_vec_normalize_env() is own
    assert is_same_statistics(own, env)


def test_statistics_outlive_loading_without_an_environment() -> None:
    model, _ = train_normalized()
    first = model_file.from_bytes(model.to_bytes())
    again = model_file.from_bytes(GRPO.load(io.BytesIO(model.to_bytes())).to_bytes())
    assert first.meta["normalization"] == again.meta["normalization"]
    assert first.normalization.keys() == again.normalization.keys() >= {"obs/mean", "return/var"}
    for name, array in first.normalization.items():
        assert (again.normalization[name] == array).all(), name


@pytest.mark.parametrize("is_loaded", [False, True])
def test_an_actor_takes_observations_as_the_environment_gives_them(is_loaded: bool) -> None:
    model, env = train_normalized()
    raw = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    expected, _ = model.predict(np.asarray(env.normalize_obs(raw)), deterministic=True)
    actor = (GRPO.load(io.BytesIO(model.to_bytes())) if is_loaded else model).make_actor()
    actions = actor.act(raw, True, np.random.default_rng(0)).actions
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    assert not np.allclose(actions, model.predict(raw, deterministic=True)[0])


def test_a_loaded_model_may_go_on_without_normalisation() -> None:
    content = train_normalized()[0].to_bytes()
    bare = VecNormalize(make_vec_env("Pendulum-v1"), norm_obs=False, norm_reward=False)
    model = GRPO.load(io.BytesIO(content))
    model.set_env(bare)
    assert model.get_env() is bare
    assert GRPO.load(io.BytesIO(content), env=bare).get_env() is bare
