"""Observations that are a Dict reach the policy key by key, whatever wraps the environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from grpo import GRPO, RestorableWrapper
from tests.sb3.environments import ACTION_SPACES, MatchEnv
from tests.sb3.small_models import FORKED, MODES, build
from tests.weights import copy_weights, is_same

PLACE, ROOM = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(3)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
DICTS: dict[str, spaces.Dict] = {
    "one key": spaces.Dict({"place": PLACE}),
    "vectors": spaces.Dict({"place": PLACE, "speed": spaces.Box(-5.0, 5.0, (1,), np.float64)}),
    "choices": spaces.Dict(
        {"room": ROOM, "doors": spaces.MultiDiscrete([2, 3]), "lights": spaces.MultiBinary(2), "place": PLACE}
    ),
    "image and vector": spaces.Dict({"image": IMAGE, "place": PLACE}),
    "two images": spaces.Dict({"left": IMAGE, "right": IMAGE}),
    "channels first": spaces.Dict({"image": spaces.Box(0, 255, (1, 36, 36), np.uint8), "place": PLACE}),
}
STACKABLE = spaces.Dict({"image": IMAGE, "place": PLACE})


def make_dict_env(space: spaces.Dict = STACKABLE) -> MatchEnv:
    return MatchEnv(space)


def train_over_dict(env: gym.Env[Any, Any] | VecEnv, mode: str = "branch", **changes: Any) -> GRPO:
    """Train, and expect the policy to move and to act in the environment it was trained in."""
    model = build(env, "MultiInputPolicy", mode, **changes)
    before = copy_weights(model)
    model.learn(24)
    assert not is_same(before, copy_weights(model))
    assert model.env is not None
    observations = model.env.reset()
    assert isinstance(observations, dict)
    actions, _ = model.predict(observations)
    assert len(actions) == model.n_envs
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DICTS)
def test_dicts_train_in_every_mode(name: str, mode: str) -> None:
    train_over_dict(MatchEnv(DICTS[name]), mode)


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_dicts_train_with_every_action_space(action: str) -> None:
    train_over_dict(MatchEnv(DICTS["choices"], ACTION_SPACES[action]))


def test_dicts_train_in_worker_processes() -> None:
    env = make_vec_env(
        make_dict_env, 1, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs=FORKED, wrapper_class=RestorableWrapper
    )
    try:
        train_over_dict(env)
    finally:
        env.close()


@pytest.mark.parametrize("order", ["first", "last"])
def test_stacked_dicts_are_transposed_and_trained(order: str) -> None:
    env = VecFrameStack(DummyVecEnv([make_dict_env]), n_stack=3, channels_order={"image": order, "place": "last"})
    if order == "first":  # stacked along the height, a higher image of as many channels
        assert isinstance(env.observation_space, spaces.Dict)
        assert env.observation_space["image"].shape == (108, 36, 1)
    model = train_over_dict(env)
    assert isinstance(model.observation_space, spaces.Dict)
    assert model.observation_space["place"].shape == (6,)


@pytest.mark.parametrize("keys", [["place"], ["place", "speed"]])
def test_only_the_keys_asked_for_are_normalised(keys: list[str]) -> None:
    env = VecNormalize(DummyVecEnv([lambda: MatchEnv(DICTS["vectors"])]), norm_obs_keys=keys)
    model = train_over_dict(env)
    assert isinstance(env.obs_rms, dict)
    assert list(env.obs_rms) == keys
    assert all(float(rms.count) > 20 for rms in env.obs_rms.values())
    shown = MatchEnv(DICTS["vectors"]).reset(seed=0)[0]
    expected = model.predict(env.normalize_obs(shown), deterministic=True)[0]
    batch = {key: array[None] for key, array in shown.items()}
    np.testing.assert_array_equal(model.make_actor().best_actions(batch)[0], expected)


def test_images_normalised_with_the_other_keys_are_flattened_as_in_sb3() -> None:
    every_key = train_over_dict(VecNormalize(DummyVecEnv([make_dict_env])))
    assert every_key.policy.features_dim == 36 * 36 + 2
    without_images = train_over_dict(VecNormalize(DummyVecEnv([make_dict_env]), norm_obs_keys=["place"]))
    assert without_images.policy.features_dim == 8 + 2


def test_the_order_of_the_keys_does_not_matter() -> None:
    model = train_over_dict(MatchEnv(DICTS["choices"]))
    shown, _ = MatchEnv(DICTS["choices"]).reset(seed=0)
    turned = dict(reversed(shown.items()))
    first, second = (model.predict(one, deterministic=True)[0] for one in (shown, turned))
    np.testing.assert_array_equal(first, second)


def test_every_key_matters() -> None:
    model = build(MatchEnv(DICTS["choices"]), "MultiInputPolicy")
    shown = [MatchEnv(DICTS["choices"]).reset(seed=seed)[0] for seed in range(2)]
    values = []
    for key in ("", *shown[0]):
        changed = {**shown[0]}
        if key:
            changed[key] = (shown[0][key] + 1) % 2 if key != "place" else -shown[0][key]
        tensors, _ = model.policy.obs_to_tensor(changed)
        with torch.no_grad():
            values.append(float(model.policy.predict_values(tensors)))
    assert len(set(values)) == len(values)


def test_reward_functions_are_given_dicts() -> None:
    seen: list[set[str]] = []

    def pay(state: Any, action: torch.Tensor, next_state: Any) -> torch.Tensor:
        seen.append(set(state))
        assert state["place"].shape == next_state["place"].shape == (len(action), 2)
        assert action.shape == (len(action), 1)
        reward: torch.Tensor = next_state["place"][:, :1]
        return reward

    train_over_dict(MatchEnv(DICTS["choices"]), reward_function=pay)
    assert seen
    assert all(keys == set(DICTS["choices"].spaces) for keys in seen)


def test_policies_over_dicts_are_evaluated() -> None:
    env = make_vec_env(make_dict_env, 1)
    model = train_over_dict(env)
    rewards, lengths = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True)
    assert lengths == [6, 6]
    assert np.isfinite(rewards).all()
