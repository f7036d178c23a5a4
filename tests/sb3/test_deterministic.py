"""A seed decides everything, also beside other models that train at the same time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from grpo import RestorableWrapper
from tests.sb3.environments import ACTION_SPACES, OBSERVATION_SPACES, MaskedMatchEnv, MatchEnv
from tests.sb3.small_models import FORKED, MODES, build, build_over
from tests.weights import Weights, copy_weights, is_same


def train(seed: int, mode: str = "branch", n_envs: int = 1, make_env: Callable[[], Any] = MatchEnv) -> Weights:
    model = build(make_vec_env(make_env, n_envs), mode=mode, seed=seed)
    model.learn(40)
    return copy_weights(model)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_weights_and_another_one_others(mode: str, n_envs: int) -> None:
    first = train(3, mode, n_envs)
    assert is_same(first, train(3, mode, n_envs))
    assert not is_same(first, train(4, mode, n_envs))


def test_numpys_integers_are_seeds_and_layer_sizes() -> None:
    seed, n_units = np.random.default_rng(0).integers(1, 9, 2)
    drawn, given = (
        build(seed=seed, policy_kwargs={"net_arch": [n_units]}),
        build(seed=int(seed), policy_kwargs={"net_arch": [int(n_units)]}),
    )
    assert is_same(copy_weights(drawn), copy_weights(given))
    assert drawn.to_bytes() == given.to_bytes()


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_every_space_repeats_itself(observation: str, action: str) -> None:
    first, second = (build_over(observation, action).learn(16) for _ in range(2))
    assert is_same(copy_weights(first), copy_weights(second))


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_coef": 0.1, "ref_sync_steps": 16},
        {"common_random_numbers": True},
        {"restart_probability": 0.5},
        {"importance_level": "branch"},
        {"loss_type": "cispo"},
        {"filter_zero_std_groups": True, "baseline": "group"},
    ],
    ids=str,
)
def test_options_repeat_themselves(changes: dict[str, Any]) -> None:
    first, second = (build(**changes).learn(48) for _ in range(2))
    assert is_same(copy_weights(first), copy_weights(second))


def test_masked_environments_repeat_themselves() -> None:
    assert is_same(train(1, make_env=MaskedMatchEnv), train(1, make_env=MaskedMatchEnv))


def test_normalised_environments_repeat_themselves() -> None:
    first, second = (build(VecNormalize(make_vec_env(MatchEnv, 2))).learn(48) for _ in range(2))
    assert is_same(copy_weights(first), copy_weights(second))


def test_worker_processes_repeat_themselves() -> None:
    env = make_vec_env(MatchEnv, 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=FORKED, wrapper_class=RestorableWrapper)
    try:
        first, second = (copy_weights(build(env).learn(32)) for _ in range(2))
    finally:
        env.close()
    assert is_same(first, second)


@pytest.mark.parametrize("mode", MODES)
def test_four_models_in_four_threads_are_as_each_alone(mode: str) -> None:
    alone = [train(seed, mode) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: train(seed, mode), range(4)))
    assert all(is_same(one, other) for one, other in zip(alone, together, strict=True))


def test_learning_in_parts_with_one_seed_repeats_itself() -> None:
    models = [build() for _ in range(2)]
    for model in models:
        for _ in range(2):
            model.learn(16, reset_num_timesteps=False)
            model.set_random_seed(7)
    assert is_same(*map(copy_weights, models))


def test_asking_for_actions_changes_nothing_that_is_learnt() -> None:
    first, second = build(), build()
    first.learn(16)
    second.learn(16)
    for _ in range(3):
        second.predict(MatchEnv().reset(seed=0)[0])
    first.learn(16, reset_num_timesteps=False)
    second.learn(16, reset_num_timesteps=False)
    assert is_same(copy_weights(first), copy_weights(second))
