"""Environments are made with named wrappers, the same for training and playing."""

from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.environments.making import EnvSetup, make_env
from grpo_core.environments.wrappers import (
    WRAPPERS,
    SetupError,
    Wrapper,
    apply_wrappers,
    make_normalized,
    parse_wrappers,
    suggest_wrappers,
)
from grpo_core.restoring.simulator import check_branchable
from grpo_core.spaces import check_spaces
from tests.environments import SpaceEnv

BOX = spaces.Box(-1.0, 1.0, (2,))
ROOM = spaces.Dict(image=spaces.Box(0, 255, (4, 4, 3), np.uint8), door=spaces.Discrete(3), mission=spaces.Text(5))


def wrap(env: gym.Env[Any, Any], *wrappers: Any, is_training: bool = False) -> gym.Env[Any, Any]:
    return apply_wrappers(env, parse_wrappers(list(wrappers)), is_training)


@pytest.mark.parametrize("env_name", ["FrozenLake-v1", "FrozenLake", "gymnasium:FrozenLake-v1", "gymnasium:FrozenLake"])
def test_arguments_reach_an_environment_however_its_id_is_written(env_name: str) -> None:
    with closing(make_env(EnvSetup(env_name, {"map_name": "8x8"}))) as env:
        assert env.observation_space == spaces.Discrete(64)


@pytest.mark.parametrize(
    ("wrappers", "said"),
    [
        ("flatten", "it must be a list of names or objects"),
        (["flaten"], "did you mean 'flatten'"),
        ([1], "neither a name nor an object"),
        ([{"n": 4}], "neither a name nor an object"),
        ([{"name": "frame_stack", "k": 4}], "does not take 'k'; its options: n"),
        ([{"name": "frame_stack", "n": 1}], "must be a whole number from 2 to 64"),
        ([{"name": "frame_stack", "n": True}], "must be a whole number"),
        ([{"name": "frame_stack", "n": 2.5}], "must be a whole number"),
        ([{"name": "atari", "clip_reward": 1}], "must be true or false"),
        ([{"name": "clip_reward", "low": 1}], "low must be smaller"),
        ([{"name": "filter"}], "must be a list of 1 to 64 names"),
        ([{"name": "filter", "keys": "image"}], "must be a list of 1 to 64 names"),
        (["normalize", "flatten"], "'normalize' must come last"),
        (["flatten"] * 17, "at most 16"),
        ([{"name": "frame_stack", "n": 8}, {"name": "frame_stack", "n": 9}], "72 observations in all; at most 64"),
        (["frame_stack"] * 16, "4294967296 observations in all"),
    ],
    ids=str,
)
def test_wrappers_that_are_not_there_are_refused(wrappers: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_wrappers(wrappers)


def test_options_are_filled_in() -> None:
    expected: list[Wrapper] = [{"name": "flatten"}, {"name": "clip_reward", "low": -1.0, "high": 5.0}]
    assert parse_wrappers(["flatten", {"name": "clip_reward", "high": 5}]) == expected
    assert parse_wrappers(expected) == expected
    assert {"filter", "flatten", "frame_stack", "atari", "time_aware", "rescale_action", "normalize"} <= WRAPPERS.keys()


def test_text_is_filtered_out_and_the_rest_flattened() -> None:
    env = SpaceEnv(ROOM, spaces.Discrete(2))
    suggested = parse_wrappers(suggest_wrappers(env))
    assert suggested == [{"name": "filter", "keys": ["image", "door"]}, {"name": "flatten"}]
    wrapped = apply_wrappers(env, suggested, is_training=True)
    check_spaces(wrapped)
    assert wrapped.observation_space.shape == (4 * 4 * 3 + 3,)
    with pytest.raises(SetupError, match=r'first \{"name": "filter", "keys": \["image", "door"\]\}'):
        wrap(env, "flatten")
    with pytest.raises(SetupError, match="there is no key 'images'; its keys are image, door, mission"):
        wrap(env, {"name": "filter", "keys": ["images"]})


@pytest.mark.parametrize(
    ("shape", "stacked"),
    [((2,), (6,)), ((4, 5), (3, 4, 5)), ((4, 5, 3), (4, 5, 9)), ((1, 4, 5), (3, 4, 5))],
    ids=str,
)
def test_frames_are_stacked_along_the_channels_oldest_first(shape: tuple[int, ...], stacked: tuple[int, ...]) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    env = wrap(SpaceEnv(space, spaces.Discrete(2)), {"name": "frame_stack", "n": 3})
    assert env.observation_space.shape == stacked
    first, _ = env.reset(seed=0)
    second = env.step(1)[0]
    assert second.shape == stacked
    assert second.dtype == np.uint8
    plain = SpaceEnv(space, spaces.Discrete(2))
    frames = [plain.reset(seed=0)[0], plain.step(1)[0]]
    axis = 0 if len(shape) < 3 or shape[0] == 1 else -1
    join = np.stack if len(shape) == 2 else np.concatenate
    assert np.array_equal(first, join([frames[0]] * 3, axis=axis))
    assert np.array_equal(second, join([frames[0], frames[0], frames[1]], axis=axis))


@pytest.mark.parametrize(
    "wrappers", [["time_aware"], [{"name": "frame_stack", "n": 2}], ["flatten", "clip_reward"]], ids=str
)
def test_wrapped_environments_are_restored_exactly(wrappers: list[Any]) -> None:
    check_branchable(make_env(EnvSetup("CartPole-v1", {}, parse_wrappers(wrappers)), is_training=True))


def test_actions_get_bounds_are_rounded_and_rescaled() -> None:
    taken: list[Any] = []

    class Acts(SpaceEnv):
        def step(self, action: Any) -> Any:
            taken.append(action)
            return super().step(action)

    for space, wrapper, action, expected in (
        (spaces.Box(-np.inf, np.inf, (1,)), {"name": "bound_action", "high": 2}, 1.5, 1.5),
        (spaces.Box(-3, 4, (1,), np.int32), "round_action", 1.6, 2),
        (spaces.Box(-10.0, 10.0, (1,)), "rescale_action", 0.5, 5.0),
    ):
        env = wrap(Acts(BOX, space), wrapper)
        check_spaces(env)
        env.reset()
        env.step(np.array([action], np.float32))
        assert taken[-1] == [expected]
        assert taken[-1].dtype == space.dtype


def test_rewards_are_clipped_in_training_alone() -> None:
    class Pays(SpaceEnv):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, 7.0, *rest

    for is_training, reward in ((True, 1.0), (False, 7.0)):
        env = wrap(Pays(BOX, spaces.Discrete(2)), "clip_reward", is_training=is_training)
        env.reset()
        assert env.step(0)[1] == reward


def test_a_wrapper_that_does_not_fit_is_named_with_the_spaces() -> None:
    with pytest.raises(SetupError, match=r"wrapper 'rescale_action' does not fit .*Discrete\(2\).*leave it out"):
        make_env(EnvSetup("CartPole-v1", {}, parse_wrappers(["rescale_action"])))


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, ["far", "near"]),
        ({"norm_obs": True, "norm_reward": False}, ["far", "near"]),
        ({"norm_obs_keys": ["near"]}, ["near"]),
        ({"norm_obs": False}, None),
    ],
    ids=str,
)
def test_of_a_dict_what_can_be_normalised_is_unless_options_say_less(
    options: dict[str, Any], keys: list[str] | None
) -> None:
    env = DummyVecEnv([lambda: SpaceEnv(spaces.Dict(far=BOX, gear=spaces.Discrete(3), near=BOX), spaces.Discrete(2))])
    assert make_normalized(env, options, gamma=0.9).norm_obs_keys == keys


def test_arguments_reach_the_constructor() -> None:
    env = make_env(EnvSetup("FrozenLake-v1", {"map_name": "8x8", "max_episode_steps": 7}))
    assert env.observation_space == spaces.Discrete(64)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7


def test_an_atari_game_leaves_frames_and_repeats_to_the_wrapper() -> None:
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    wrappers = parse_wrappers(["atari", {"name": "frame_stack", "n": 4}])
    env = make_env(EnvSetup("ALE/Pong-v5", {}, wrappers), is_training=True)
    assert env.observation_space == spaces.Box(0, 255, (84, 84, 4), np.uint8)
    assert env.unwrapped._frameskip == 1  # type: ignore[attr-defined]  # of ale_py
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.0  # type: ignore[attr-defined]  # of ale_py
