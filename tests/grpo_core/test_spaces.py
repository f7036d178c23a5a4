"""Spaces are checked and measured, and their observations stored."""

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common import preprocessing

from grpo import GRPO
from grpo_core.spaces import (
    UnsupportedSpaceError,
    check_action_space,
    check_observation_space,
    check_spaces,
    count_inputs,
    count_mask_bits,
    count_outputs,
    is_image_space,
    observation_dtype,
    pack,
    unpack,
)

BOX = spaces.Box(-2.0, 2.0, (3,))
WIDE_BOX = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
STATES = spaces.Discrete(5)
DIALS = spaces.MultiDiscrete([3, 2, 4])
FLAGS = spaces.MultiBinary((2, 3))
IMAGE = spaces.Box(0, 255, (3, 8, 8), np.uint8)
BITS = spaces.Box(0, 1, (2,), np.bool_)  # type: ignore[arg-type]  # Gymnasium takes it
TORQUE = spaces.Box(-1.0, 1.0, (2, 2))
PARTS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "wide": WIDE_BOX,
    "states": STATES,
    "dials": DIALS,
    "flags": FLAGS,
    "image": IMAGE,
}
CAR = spaces.Dict(PARTS)


@pytest.mark.parametrize(
    ("space", "n_inputs"),
    [(BOX, 3), (WIDE_BOX, 6), (STATES, 5), (DIALS, 9), (FLAGS, 6), (IMAGE, 192), (CAR, 3 + 6 + 5 + 9 + 6 + 192)],
    ids=str,
)
def test_inputs_are_counted_as_sb3_counts_them(space: spaces.Space[Any], n_inputs: int) -> None:
    check_observation_space(space)
    assert count_inputs(space) == n_inputs
    if space is not CAR:
        assert preprocessing.get_flattened_obs_dim(space) == n_inputs


@pytest.mark.parametrize(
    ("space", "n_outputs", "n_mask_bits"),
    [(STATES, 5, 5), (DIALS, 9, 9), (spaces.MultiBinary(4), 4, 8), (spaces.MultiBinary((4,)), 4, 8)],
    ids=str,
)
def test_outputs_and_mask_bits_are_counted(space: spaces.Space[Any], n_outputs: int, n_mask_bits: int) -> None:
    check_action_space(space)
    assert count_outputs(space) == n_outputs
    assert count_mask_bits(space) == n_mask_bits


def test_a_box_of_actions_has_outputs_but_no_mask() -> None:
    assert count_outputs(TORQUE) == 4
    assert count_outputs(spaces.Box(np.float32(-1), np.float32(1), ())) == 1
    with pytest.raises(UnsupportedSpaceError, match="only discrete choices can be masked; leave action masks out"):
        count_mask_bits(TORQUE)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (spaces.Tuple((STATES, STATES)), "use a Box of numbers, Discrete"),
        (spaces.Text(5), "use a Box of numbers, Discrete"),
        (spaces.Graph(BOX, None), "use a Box of numbers, Discrete"),
        (spaces.Discrete(3, start=1), "Discrete or one-dimensional MultiDiscrete starting at 0"),
        (spaces.MultiDiscrete([3, 2], start=[0, 1]), "Discrete or one-dimensional MultiDiscrete starting at 0"),
        (spaces.MultiDiscrete(np.array([[3, 2], [2, 2]])), "one-dimensional MultiDiscrete"),
        (spaces.Box(np.float32(0), np.float32(1), ()), "at least one axis and one number; reshape it"),
        (spaces.Box(0.0, 1.0, (0, 2)), "at least one axis and one number; reshape it"),
        (spaces.Box(0, 1, (2,), np.longdouble), "use a Box of numbers"),
        (spaces.Dict({}), "it has no keys"),
        (
            spaces.Dict({"a": CAR}),
            "key 'a' is nested; gymnasium.wrappers.FlattenObservation(env) makes one Box of all keys",
        ),
        (spaces.Dict({"a": spaces.Tuple((BOX,))}), "key 'a' is nested"),
        (spaces.Dict({"a": spaces.Text(5)}), "use a Box of numbers, Discrete"),
        (spaces.Dict({"a": spaces.Discrete(3, start=1)}), "starting at 0"),
        (spaces.Dict({"a.b": BOX}), "key 'a.b' must be printable text without dots and slashes; rename it"),
        (spaces.Dict({"../a": BOX}), "must be printable text without dots and slashes"),
        (spaces.Dict({"": BOX}), "must be printable text without dots and slashes"),
        (spaces.Dict({"a\n": BOX}), "must be printable text without dots and slashes"),
    ],
    ids=str,
)
def test_other_observation_spaces_are_refused_with_the_remedy(space: spaces.Space[Any], said: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"(?s)observation space .* is not supported") as refusal:
        check_observation_space(space)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a": TORQUE}),
        spaces.Tuple((STATES, STATES)),
        spaces.Text(3),
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([3, 2], start=[1, 0]),
        spaces.MultiDiscrete(np.array([[3, 2], [2, 2]])),
        spaces.MultiBinary((2, 3)),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(np.array([0, -np.inf], np.float32), np.ones(2, np.float32)),
        spaces.Box(0, 3, (2,), np.int64),
        spaces.Box(0.0, 3.0, (0,)),
    ],
    ids=str,
)
def test_other_action_spaces_are_refused_with_the_remedy(space: spaces.Space[Any]) -> None:
    with pytest.raises(UnsupportedSpaceError) as refusal:
        check_action_space(space)
    assert f"action space {space} is not supported" in str(refusal.value)
    assert re.search("Box of floats|finite bounds", str(refusal.value))


@pytest.mark.parametrize("normalized_image", [True, False])
@pytest.mark.parametrize(
    "space",
    [
        *PARTS.values(),
        spaces.Box(0, 254, (3, 8, 8), np.uint8),
        spaces.Box(0.0, 255.0, (3, 8, 8)),
        spaces.Box(0, 255, (8, 8), np.uint8),
        spaces.Box(1, 255, (3, 8, 8), np.uint8),
    ],
    ids=str,
)
def test_images_are_what_sb3_treats_as_images(space: spaces.Space[Any], normalized_image: bool) -> None:
    expected = preprocessing.is_image_space(space, normalized_image=normalized_image)
    assert is_image_space(space, normalized_image) == bool(expected)


def draw(space: spaces.Space[Any], n: int, seed: int = 0) -> list[Any]:
    space.seed(seed)
    return [space.sample() for _ in range(n)]


@pytest.mark.parametrize("space", [*PARTS.values(), CAR], ids=str)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3))
def test_stored_observations_are_unchanged(space: spaces.Space[Any], seed: int, horizon: int, group_size: int) -> None:
    samples = iter(draw(space, horizon * group_size, seed))
    grid = [[next(samples) for _ in range(group_size)] for _ in range(horizon)]
    stored = np.zeros((horizon, group_size, *(space.shape or ())), observation_dtype(space))
    for t in range(horizon):
        for branch in range(group_size):
            stored[t, branch] = pack(space, grid[t][branch])
    mask = np.random.default_rng(seed).random((horizon, group_size)) < 0.5
    live = unpack(stored[mask])
    expected = [grid[t][branch] for t in range(horizon) for branch in range(group_size) if mask[t, branch]]
    assert len(stored[mask]) == len(expected)
    for i, observation in enumerate(expected):
        for key, part in observation.items() if isinstance(observation, dict) else [(None, observation)]:
            array = live if key is None else live[key]
            np.testing.assert_array_equal(array[i], part)  # type: ignore[index]  # a dict only if there is a key
            assert np.asarray(part).dtype == array.dtype  # type: ignore[union-attr]


def test_several_observations_are_packed_at_once() -> None:
    samples = draw(CAR, 4)
    together = {key: np.stack([sample[key] for sample in samples]) for key in PARTS}
    packed = pack(CAR, together)
    assert packed.shape == (4,)
    assert (packed == np.stack([pack(CAR, sample) for sample in samples])).all()
    assert np.shares_memory(pack(CAR, packed), packed)
    assert (pack(CAR, packed[2]) == packed[2]).all()


def test_unpacked_observations_share_their_memory() -> None:
    stored = np.zeros((2, 3), observation_dtype(CAR))
    parts = unpack(stored)
    assert isinstance(parts, dict)
    assert list(parts) == list(CAR.spaces)
    parts["box"][1, 2] = 7.0
    assert (stored["box"][1, 2] == 7.0).all()
    plain = np.zeros((2, 3))
    assert unpack(plain) is plain
    assert unpack(parts) is parts


def test_stored_observations_are_tensors_by_key() -> None:
    stored = np.stack([pack(CAR, sample) for sample in draw(CAR, 3)])
    for key, subspace in PARTS.items():
        tensor = torch.as_tensor(stored[np.array([True, False, True])][key])
        assert tensor.shape == (2, *(subspace.shape or ()))
        np.testing.assert_array_equal(tensor.numpy(), stored[key][[0, 2]])


@pytest.mark.parametrize(
    ("space", "remedy"),
    [
        (spaces.Dict(a=BOX, b=spaces.Text(5)), "gymnasium.wrappers.FilterObservation(env, ['a'])"),
        (spaces.Text(5), "wrappers.FilterObservation leaves it out of a Dict"),
        (spaces.Sequence(BOX), "its length varies; gymnasium.wrappers.TransformObservation"),
        (spaces.OneOf((BOX, STATES)), "its shape varies; gymnasium.wrappers.TransformObservation"),
        (spaces.Tuple((BOX,)), "gymnasium.wrappers.FlattenObservation(env)"),
        (spaces.Dict(a=spaces.Dict(b=BOX)), "gymnasium.wrappers.FlattenObservation(env)"),
        (spaces.Discrete(3, start=1), "gymnasium.wrappers.TransformObservation subtracts the start"),
        (spaces.MultiDiscrete(np.array([[3, 2]])), "gymnasium.wrappers.FlattenObservation(env)"),
        (spaces.Box(-1.0, 1.0, ()), "gymnasium.wrappers.ReshapeObservation(env, (1,))"),
        (BITS, "gymnasium.wrappers.DtypeObservation(env, np.float32)"),
    ],
    ids=str,
)
def test_every_kind_of_observation_is_refused_with_its_own_wrapper(space: spaces.Space[Any], remedy: str) -> None:
    with pytest.raises(UnsupportedSpaceError) as refusal:
        check_observation_space(space)
    assert remedy in str(refusal.value)


@pytest.mark.parametrize(
    ("space", "remedy"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), "gymnasium.spaces.Box(-1.0, 1.0, (2,))) declares one from -1 to 1"),
        (spaces.Box(-3, 4, (2,), np.int32), "np.rint(action).astype(np.int32), gymnasium.spaces.Box(-3, 4, (2,)))"),
        (spaces.Discrete(3, start=1), "gymnasium.wrappers.TransformAction adds the start"),
        (spaces.MultiDiscrete(np.array([[3, 2]])), "gymnasium.wrappers.TransformAction reshapes actions"),
        (spaces.Box(1.0, 1.0, (2,)), "its lower bounds must be below its upper ones"),
        (BITS, "use a Box of floats with finite bounds"),
    ],
    ids=str,
)
def test_every_kind_of_action_is_refused_with_its_own_remedy(space: spaces.Space[Any], remedy: str) -> None:
    with pytest.raises(UnsupportedSpaceError) as refusal:
        check_action_space(space)
    assert remedy in str(refusal.value)


def test_a_wrapper_that_an_error_names_makes_the_space_fit() -> None:
    class Raw(gym.Env[Any, Any]):
        observation_space = spaces.Dict(image=BOX, mission=spaces.Text(5))
        action_space = spaces.Box(-3, 4, (2,), np.int32)

    env: gym.Env[Any, Any] = gym.wrappers.FilterObservation(Raw(), ["image"])
    env = gym.wrappers.TransformAction(env, lambda action: np.rint(action).astype(np.int32), spaces.Box(-3, 4, (2,)))
    check_spaces(env)


@pytest.mark.parametrize(
    ("observed", "acted", "said"),
    [
        (None, STATES, "observation_space of Raw is missing; set self.observation_space to a space"),
        (BOX, (3,), r"action_space of Raw is \(3,\) of type builtins.tuple"),
    ],
)
def test_a_space_that_is_none_is_refused_by_its_name(observed: Any, acted: Any, said: str) -> None:
    class Raw:
        observation_space, action_space = observed, acted

        def step(self, action: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(UnsupportedSpaceError, match=said):
        check_spaces(Raw())
    with pytest.raises(UnsupportedSpaceError, match=r"env is the class Raw; make an instance of it: Raw\(\)"):
        check_spaces(Raw)


def make_nothing() -> None:
    """Stands for what makes an environment."""


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("CartPole-v1", r"env is 'CartPole-v1', the id of an environment; make it first: gym\.make\(\.\.\.\)\."),
        (lambda: None, r"a function; call it, to pass the environment that it makes: env\(\)\."),
        (make_nothing, r"a function; call it, to pass the environment that it makes: make_nothing\(\)\."),
        ([make_nothing], r"a list; DummyVecEnv\(\[\.\.\.\]\) makes a vectorised"),
        (gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"), r"of Gymnasium's, and SB3 has .*make_vec_env"),
        (5, r"env is 5, of type int, which has no step\(\); pass an environment"),
    ],
)
def test_what_is_no_environment_is_refused_with_what_makes_one(env: Any, said: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=said):
        check_spaces(env)


def test_an_algorithm_needs_an_environment() -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"env is None, .* pass an environment"):
        GRPO("MlpPolicy", None)  # type: ignore[arg-type]  # what a user may pass
