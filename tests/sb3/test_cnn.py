"""Images go through convolutions that learn, transposed and stacked as SB3 does it."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
)

from grpo import GRPO
from grpo_core.actor.actor import Actor
from grpo_core.update.torch_actor import TorchActor
from tests.sb3.environments import ACTION_SPACES, OBSERVATION_SPACES, MatchEnv
from tests.sb3.small_models import MODES, POLICY_OF, build
from tests.weights import copy_weights, is_same


def make_image_env() -> MatchEnv:
    return MatchEnv(OBSERVATION_SPACES["image"])


def list_moved(model: GRPO, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in copy_weights(model).items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_convolutions_weights_move(mode: str, share: bool) -> None:
    policy_kwargs = {"features_extractor_kwargs": {"features_dim": 8}, "share_features_extractor": share}
    model = build(make_image_env(), "CnnPolicy", mode, policy_kwargs=policy_kwargs)
    before = copy_weights(model)
    model.learn(24)
    moved = list_moved(model, before)
    for extractor in ("pi_features_extractor", "vf_features_extractor"):
        assert {f"{extractor}.{part}.weight" for part in ("cnn.0", "cnn.2", "cnn.4", "linear.0")} <= moved


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_images_train_with_every_action_space(action: str) -> None:
    model = build(MatchEnv(OBSERVATION_SPACES["image"], ACTION_SPACES[action]), "CnnPolicy")
    before = copy_weights(model)
    model.learn(16)
    assert "features_extractor.cnn.0.weight" in list_moved(model, before)


@pytest.mark.parametrize(
    ("device", "observation", "is_antithetic", "kind"),
    [
        ("cuda", "image", False, TorchActor),
        ("cuda", "image", True, Actor),  # torch draws no opposite noise
        ("cpu", "image", False, Actor),
        ("cuda", "box", False, Actor),
    ],
)
def test_rollouts_of_images_are_played_where_the_policy_is(
    device: str, observation: str, is_antithetic: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = MatchEnv(OBSERVATION_SPACES[observation], ACTION_SPACES["box"])
    model = build(env, POLICY_OF[observation], antithetic_actions=is_antithetic)
    # Machines without a GPU are to say so too; nothing is computed there.
    monkeypatch.setattr(type(model.policy), "device", torch.device(device))
    assert type(model._make_rollout_actor()) is kind


def test_images_are_transposed_once() -> None:
    model = build(make_image_env(), "CnnPolicy")
    assert model.env is not None
    assert is_vecenv_wrapped(model.env, VecTransposeImage)
    assert model.observation_space.shape == (1, 36, 36)
    again = build(VecTransposeImage(DummyVecEnv([make_image_env])), "CnnPolicy")
    assert isinstance(again.env, VecTransposeImage)
    assert not isinstance(again.env.venv, VecTransposeImage)
    for one in (model, again):
        one.learn(16)
    assert is_same(copy_weights(model), copy_weights(again))


def test_images_with_channels_first_are_left_alone() -> None:
    model = build(MatchEnv(spaces.Box(0, 255, (3, 36, 36), np.uint8)), "CnnPolicy")
    assert isinstance(model.env, DummyVecEnv)
    model.learn(16)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_stack", [1, 4])
def test_stacked_frames_train(n_stack: int, mode: str) -> None:
    env = VecFrameStack(make_vec_env(make_image_env, 2), n_stack=n_stack)
    model = build(env, "CnnPolicy", mode)
    assert model.observation_space.shape == (n_stack, 36, 36)
    before = copy_weights(model)
    model.learn(24)
    assert "features_extractor.cnn.0.weight" in list_moved(model, before)
    shown = np.asarray(env.reset())
    np.testing.assert_array_equal(
        model.predict(shown, deterministic=True)[0],
        model.predict(np.moveaxis(shown, -1, 1), deterministic=True)[0],
    )


def test_stacks_of_a_branch_are_those_of_its_own_history() -> None:
    """Frame k of a stack is what was newest k steps before in the same branch, and the anchor's before that."""
    model = build(VecFrameStack(DummyVecEnv([make_image_env]), n_stack=2), "CnnPolicy")
    model.learn(48)
    rollout: Any = model.rollout_buffer
    for t, group, branch in np.argwhere(rollout.step_mask):
        before, after = rollout.observations[t, group, branch], rollout.next_observations[t, group, branch]
        np.testing.assert_array_equal(after[0], before[1])
        if t > 0:
            np.testing.assert_array_equal(before, rollout.next_observations[t - 1, group, branch])


def test_images_of_floats_are_taken_where_they_are_said_to_be_normalised() -> None:
    env = MatchEnv(spaces.Box(0.0, 1.0, (1, 36, 36), np.float32))
    kwargs: dict[str, Any] = {"normalized_image": True, "features_dim": 8}
    policy_kwargs = {"normalize_images": False, "features_extractor_kwargs": kwargs}
    model = build(env, "CnnPolicy", policy_kwargs=policy_kwargs)
    before = copy_weights(model)
    model.learn(16)
    assert "features_extractor.cnn.0.weight" in list_moved(model, before)
    with pytest.raises(ValueError, match="normalize_images=False"):
        build(env, "CnnPolicy")


def test_rewards_are_normalised_around_images() -> None:
    env = VecNormalize(DummyVecEnv([make_image_env]), norm_obs=False)
    model = build(env, "CnnPolicy")
    model.learn(24)
    assert float(env.ret_rms.count) > 20


def test_images_normalised_by_vec_normalize_are_none_for_the_convolutions() -> None:
    with pytest.raises(ValueError, match="it accepts images"):
        build(VecNormalize(DummyVecEnv([make_image_env])), "CnnPolicy")


def test_the_same_pictures_give_the_same_weights() -> None:
    first, second = (build(make_image_env(), "CnnPolicy").learn(32) for _ in range(2))
    assert is_same(copy_weights(first), copy_weights(second))
