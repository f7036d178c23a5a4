"""The same seed gives the same weights, whatever else happens in the process."""

import io
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo import GRPO
from tests.grpo.small_models import build
from tests.support import wait_until
from tests.weights import Weights, copy_weights, is_same


def train_to_weights(seed: int | None, **changes: Any) -> Weights:
    env = make_vec_env("FrozenLake-v1", n_envs=2, vec_env_cls=DummyVecEnv)  # slippery: the environment draws too
    model = build(env, seed=seed, learning_rate=0.01, **changes)
    model.learn(192)
    return copy_weights(model)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"group_mode": "action", "group_size": 4},
        {"group_mode": "episode"},
        {"importance_level": "branch", "kl_coef": 0.1, "common_random_numbers": True, "restart_probability": 0.5},
        {"anchor_selection": "archive"},
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_weights_bit_by_bit(changes: dict[str, Any]) -> None:
    first = train_to_weights(3, **changes)
    assert is_same(first, train_to_weights(3, **changes))
    assert not is_same(first, train_to_weights(4, **changes))


def test_without_a_seed_every_model_is_another() -> None:
    assert not is_same(train_to_weights(None), train_to_weights(None))


def test_the_same_seed_gives_the_same_weights_while_another_model_trains() -> None:
    alone = train_to_weights(seed=3)
    is_over, n_trained = threading.Event(), [0]

    def disturb() -> None:
        while not is_over.is_set():
            train_to_weights(seed=n_trained[0])
            n_trained[0] += 1

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    try:
        wait_until(lambda: n_trained[0] > 0)
        for _ in range(3):
            assert is_same(alone, train_to_weights(seed=3))
        wait_until(lambda: n_trained[0] > 2)
    finally:
        is_over.set()
        thread.join()  # else it would draw from the generators that other tests look at


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Let threads take turns so often that they meet wherever they can."""
    interval_seconds = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_seconds)


@pytest.mark.usefixtures("hasty_threads")
def test_models_built_at_the_same_time_get_the_weights_of_their_own_seed() -> None:
    def build_weights(seed: int) -> Weights:
        return copy_weights(build(seed=seed))

    alone = [build_weights(seed) for seed in range(4)]
    before = read_global_generators()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(build_weights, list(range(4)) * 10))
    assert all(is_same(alone[i % 4], weights) for i, weights in enumerate(together))
    assert read_global_generators() == before


def read_global_generators() -> tuple[Any, ...]:
    numpy_state: Any = np.random.get_state(legacy=False)
    return (
        random.getstate(),
        numpy_state["state"]["key"].tolist(),
        numpy_state["state"]["pos"],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("changes", [{}, {"group_mode": "action"}, {"group_mode": "episode", "kl_coef": 0.1}], ids=str)
@pytest.mark.parametrize("seed", [0, None])
def test_no_process_wide_generator_is_touched(seed: int | None, changes: dict[str, Any]) -> None:
    before = read_global_generators()
    model = build(seed=seed, **changes)
    model.learn(64)
    content = model.to_bytes()
    assert read_global_generators() == before
    loaded = GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"))
    loaded.learn(64)
    assert read_global_generators() == before


def test_process_wide_generators_do_not_matter() -> None:
    first = train_to_weights(seed=3)
    state, torch_state = np.random.get_state(), torch.get_rng_state()
    try:
        np.random.seed(99)
        torch.manual_seed(99)
        assert is_same(first, train_to_weights(seed=3))
    finally:
        np.random.set_state(state)
        torch.set_rng_state(torch_state)


def test_drawn_actions_are_those_of_the_models_own_seed() -> None:
    observations = np.zeros((64, 4), np.float32)
    draws = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        draws.append(build(seed=7).predict(observations)[0])
        assert torch.equal(before, torch.get_rng_state())
    assert (draws[0] == draws[1]).all()
    assert 0 < draws[0].sum() < 64


def test_shared_noise_does_not_bring_the_same_episodes_back() -> None:
    starts: list[tuple[float, ...]] = []

    class Remembering(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            starts.append(tuple(observation.tolist()))
            return observation, info

    env = Remembering(gym.make("CartPole-v1"))
    model = GRPO("MlpPolicy", env, n_steps=256, horizon=16, seed=0, common_random_numbers=True)
    starts.clear()  # of the trial, which repeats itself
    model.learn(4_000)
    assert len(starts) > 16
    assert len(set(starts)) == len(starts)


def test_a_loaded_model_begins_other_episodes_than_it_was_trained_on() -> None:
    model = build(seed=3)
    model.learn(64)
    env = make_vec_env("CartPole-v1", 1, vec_env_cls=DummyVecEnv)
    GRPO.load(io.BytesIO(model.to_bytes()), env=env)
    fresh = make_vec_env("CartPole-v1", 1, vec_env_cls=DummyVecEnv)
    fresh.seed(3 + model.num_timesteps)
    np.testing.assert_array_equal(np.asarray(env.reset()), np.asarray(fresh.reset()))
    fresh.seed(3)
    assert not np.array_equal(np.asarray(env.reset()), np.asarray(fresh.reset()))
