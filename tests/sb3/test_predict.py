"""What ``predict`` takes and returns: one observation or several, images as the environment shows them, masks."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from grpo import GRPO
from tests.sb3 import small_models
from tests.sb3.environments import (
    ACTION_SPACES,
    MASKABLE,
    OBSERVATION_SPACES,
    MaskedMatchEnv,
    MatchEnv,
    is_allowed,
    list_components,
    make_masks,
)
from tests.sb3.small_models import sample_observations

# Nothing is trained, so nothing has to be proven of the environments.
build = partial(small_models.build, mode="episode")
build_over = partial(small_models.build_over, mode="episode")


def take(observations: Any, index: Any) -> Any:
    if isinstance(observations, dict):
        return {key: array[index] for key, array in observations.items()}
    return observations[index]


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_one_observation_gives_one_action_and_several_give_several(
    observation: str, action: str, deterministic: bool
) -> None:
    model = build_over(observation, action)
    observations = sample_observations(model, 5)
    one, state = model.predict(take(observations, 0), deterministic=deterministic)
    assert state is None
    assert model.action_space.contains(one if one.shape else one.item())
    several, _ = model.predict(observations, deterministic=deterministic)
    assert several.shape == (5, *(model.action_space.shape or ()))
    assert all(model.action_space.contains(action) for action in several)
    if deterministic:
        alone = np.stack([model.predict(take(observations, i), deterministic=True)[0] for i in range(5)])
        np.testing.assert_allclose(several, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("name", ["image", "dict"])
def test_images_are_taken_channels_last_as_well_as_first(name: str, action: str) -> None:
    model = build_over(name, action)
    shown, _ = MatchEnv(OBSERVATION_SPACES[name]).reset(seed=0)
    transposed = (
        {key: np.moveaxis(array, -1, 0) if key == "image" else array for key, array in shown.items()}
        if isinstance(shown, dict)
        else np.moveaxis(shown, -1, 0)
    )
    expected, _ = model.predict(transposed, deterministic=True)
    np.testing.assert_array_equal(model.predict(shown, deterministic=True)[0], expected)


def test_box_actions_are_clipped_to_their_bounds() -> None:
    space = ACTION_SPACES["box"]
    assert isinstance(space, spaces.Box)
    model = build(MatchEnv(action_space=space), policy_kwargs={"net_arch": [8], "log_std_init": 3.0})
    actions, _ = model.predict(sample_observations(model, 100))
    assert actions.dtype == np.float32
    assert all(space.contains(action) for action in actions)
    assert (actions == space.low).any(axis=0).all(), "some were drawn below"
    assert (actions == space.high).any(axis=0).all(), "and some above"


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_deterministic_predictions_repeat_and_drawn_ones_do_not(action: str) -> None:
    model = build_over("box", action)
    observations = sample_observations(model, 30)
    first, second = (model.predict(observations, deterministic=True)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (model.predict(observations)[0] != model.predict(observations)[0]).any()


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_drawn_predictions_are_those_of_the_seed(action: str) -> None:
    first, second, other = (build_over("box", action, seed=seed) for seed in (3, 3, 4))
    observations = sample_observations(first, 30)
    parameters: dict[str, Any] = first.get_parameters()
    other.set_parameters(parameters)
    drawn = first.predict(observations)[0]
    np.testing.assert_array_equal(drawn, second.predict(observations)[0])
    assert (drawn != other.predict(observations)[0]).any()


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", MASKABLE)
def test_masked_actions_are_never_chosen(name: str, deterministic: bool) -> None:
    space = ACTION_SPACES[name]
    model = build(MaskedMatchEnv(action_space=space))
    observations = sample_observations(model, 200)
    masks = np.stack([make_masks(space, i) for i in range(200)])
    actions, _ = model.predict(observations, deterministic=deterministic, action_masks=masks)
    assert all(is_allowed(space, mask, action) for mask, action in zip(masks, actions, strict=True))
    unmasked, _ = model.predict(observations, deterministic=deterministic)
    assert not all(is_allowed(space, mask, action) for mask, action in zip(masks, unmasked, strict=True))


@pytest.mark.parametrize("name", MASKABLE)
def test_one_observation_takes_one_mask(name: str) -> None:
    env = MaskedMatchEnv(action_space=ACTION_SPACES[name])
    model = build(env)
    observation, _ = env.reset(seed=0)
    for _ in range(50):
        action, state = model.predict(observation, action_masks=env.action_masks())
        assert state is None
        observation, _, terminated, truncated, _ = env.step(action)  # raises if the action is ruled out
        if terminated or truncated:
            observation, _ = env.reset()


@pytest.mark.parametrize("name", MASKABLE)
def test_a_mask_that_allows_everything_changes_no_deterministic_choice(name: str) -> None:
    space = ACTION_SPACES[name]
    model = build(MatchEnv(action_space=space))
    observations = sample_observations(model, 20)
    masks = np.ones((20, sum(list_components(space))), np.bool_)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(model.predict(observations, deterministic=True, action_masks=masks)[0], expected)


@pytest.mark.parametrize("name", MASKABLE)
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_only_allowed_action_is_always_chosen(name: str, deterministic: bool) -> None:
    space = ACTION_SPACES[name]
    model = build(MatchEnv(action_space=space))
    mask = np.concatenate([np.arange(n) == n - 1 for n in list_components(space)])
    actions, _ = model.predict(
        sample_observations(model, 20), deterministic=deterministic, action_masks=np.tile(mask, (20, 1))
    )
    expected = np.array(list_components(space)) - 1
    assert (actions.reshape(20, -1) == expected).all()


def test_masks_that_do_not_fit_are_refused() -> None:
    model = build()
    observations = sample_observations(model, 4)
    for masks in (np.ones(5, np.bool_), np.ones((4, 2), np.bool_), np.ones((3, 3), np.bool_)):
        with pytest.raises(ValueError, match="do not fit"):
            model.predict(observations, action_masks=masks)
    box = build(MatchEnv(action_space=ACTION_SPACES["box"]))
    with pytest.raises(ValueError, match="only discrete choices can be masked"):
        box.predict(observations, action_masks=np.ones((4, 2), np.bool_))


@pytest.mark.parametrize("name", MASKABLE)
def test_a_mask_that_leaves_a_choice_nothing_is_refused(name: str) -> None:
    space = ACTION_SPACES[name]
    model = build(MatchEnv(action_space=space))
    observations = sample_observations(model, 2)
    masks = np.ones((2, sum(list_components(space))), np.bool_)
    masks[1, -list_components(space)[-1] :] = False
    with pytest.raises(ValueError, match=r"row 1 .* allows no action"):
        model.predict(observations, action_masks=masks)


WRONG_SHAPES: list[tuple[str, Any]] = [
    ("box", np.zeros(4, np.float32)),
    ("box", np.zeros((2, 4), np.float32)),
    ("box", np.zeros((1, 1, 3), np.float32)),
    ("discrete", np.zeros((2, 2), np.int64)),
    ("multi-discrete", np.zeros(3, np.int64)),
    ("multi-binary", np.zeros(5, np.int8)),
    ("image", np.zeros((36, 35, 1), np.uint8)),
]


@pytest.mark.parametrize(("name", "observation"), WRONG_SHAPES)
def test_observations_of_another_shape_are_refused(name: str, observation: Any) -> None:
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        build_over(name, "discrete").predict(observation)


def test_a_dict_is_refused_where_an_array_is_observed_and_the_other_way_round() -> None:
    model = build()
    with pytest.raises(AssertionError, match="is a dict"):
        model.predict({"place": np.zeros(3, np.float32)})
    with pytest.raises((KeyError, IndexError)):
        build_over("dict", "discrete").predict(np.zeros(3, np.float32))


def test_what_a_plain_reset_returned_is_refused_with_an_explanation() -> None:
    env = MatchEnv()
    for masks in (None, np.ones(3, np.bool_)):
        with pytest.raises(ValueError, match="reset"):
            build(env).predict(env.reset(), action_masks=masks)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_vectorised_environment_steps_with_what_is_predicted(n_envs: int) -> None:
    env = make_vec_env(MatchEnv, n_envs, seed=0)
    model: GRPO = build(env)
    observations = env.reset()
    for _ in range(10):
        actions, _ = model.predict(observations)  # type: ignore[arg-type]
        observations, rewards, _, _ = env.step(actions)
        assert rewards.shape == (n_envs,)


def test_states_pass_through() -> None:
    model, state = build(), (np.zeros(2),)
    observations = sample_observations(model, 3)
    assert model.predict(observations, state=state)[1] is state
    masks = np.ones((3, 3), np.bool_)
    assert model.predict(observations, state=state, action_masks=masks)[1] is state


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.GELU], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_an_actor_takes_what_predict_takes(name: str, activation: type[torch.nn.Module]) -> None:
    policy_kwargs = {"net_arch": [8], "activation_fn": activation}
    model = build(MatchEnv(OBSERVATION_SPACES[name]), small_models.POLICY_OF[name], policy_kwargs=policy_kwargs)
    shown, _ = MatchEnv(OBSERVATION_SPACES[name]).reset(seed=0)
    batch = {key: [part] for key, part in shown.items()} if isinstance(shown, dict) else [shown]
    expected, _ = model.predict(shown, deterministic=True)
    assert model.make_actor().best_actions(batch) == [expected]  # type: ignore[arg-type]  # a list, here


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.GELU], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("observations", "said"),
    [
        (np.zeros((1, 3)), r"observations have shape \(1, 3\); pass \(batch_size, 2\)\."),
        (np.zeros(2), r"have shape \(2,\); .* observation\[None\] makes a batch of one"),
        (np.array([[0.0, 1.0], [0.0, np.nan]]), r"observations\[1, 1\] is nan; pass finite numbers"),
        ([["a", "b"]], "of type <U1; pass numbers"),
    ],
    ids=["shape", "one", "nan", "text"],
)
def test_an_actor_refuses_what_is_no_observation(
    observations: Any, said: str, activation: type[torch.nn.Module]
) -> None:
    env = MatchEnv(spaces.Box(-1.0, 1.0, (2,)))
    actor = build(env, policy_kwargs={"net_arch": [8], "activation_fn": activation}).make_actor()
    for ask in (actor.best_actions, actor.values, lambda seen: actor.sample_actions(seen, np.random.default_rng(0))):
        with pytest.raises(ValueError, match=said):
            ask(observations)


def test_an_actor_takes_numbers_that_are_objects() -> None:
    actor = build(MatchEnv(spaces.Box(-1.0, 1.0, (2,)))).make_actor()
    seen = np.array([[0.5, -1], [0, 1]], object)
    np.testing.assert_array_equal(actor.values(seen), actor.values(seen.astype(np.float64)))
    with pytest.raises(ValueError, match="of type object; pass numbers"):
        actor.values(np.array([[{}, 1]]))


def test_an_actor_refuses_fractions_of_choices() -> None:
    actor = build(MatchEnv(spaces.Discrete(4))).make_actor()
    with pytest.raises(ValueError, match=r"observations\[1\] is 1.7; pass whole numbers for Discrete\(4\)"):
        actor.best_actions(np.array([1, 1.7]))


def test_an_actor_names_the_keys_that_it_needs() -> None:
    actor = build_over("dict", "discrete").make_actor()
    shown, _ = MatchEnv(OBSERVATION_SPACES["dict"]).reset(seed=0)
    batch = {key: [part] * n for n, (key, part) in enumerate(shown.items(), 1)}
    with pytest.raises(ValueError, match=r"observations are 1 of .*, 2 of .*; pass as many of each"):
        actor.best_actions(batch)  # type: ignore[arg-type]  # lists, here
    with pytest.raises(TypeError, match=r"observations are no dict; pass a dict of arrays with the keys \["):
        actor.best_actions(np.zeros((1, 2)))
