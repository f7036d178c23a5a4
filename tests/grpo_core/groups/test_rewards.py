"""Reward functions over a whole rollout."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo import GRPO
from grpo_core.groups.rewards import apply_reward_functions
from grpo_core.options.rewards import name_reward_function
from tests.grpo_core.groups.filled import CAR, fill
from tests.walk import Seen, cartpole_model, collect


@pytest.mark.parametrize(
    ("env_id", "n_observations", "n_actions"),
    [("CartPole-v1", 4, 1), ("FrozenLake-v1", 1, 1), ("Pendulum-v1", 3, 1), ("MountainCarContinuous-v0", 2, 1)],
)
def test_a_reward_function_gets_one_row_per_live_step(env_id: str, n_observations: int, n_actions: int) -> None:
    calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        calls.append((state, action, next_state))
        return torch.arange(len(state)).reshape(-1, 1) * 0.5

    model = cartpole_model(env=env_id, reward_function=reward)
    seen = collect(model).rollouts[0]
    assert len(calls) == 1
    state, action, next_state = calls[0]
    n_live = int(seen.step_mask.sum())
    assert state.shape == next_state.shape == (n_live, n_observations)
    assert action.shape == (n_live, n_actions)
    assert (state.numpy() == seen.observations[seen.step_mask].reshape(n_live, -1)).all()
    assert (next_state.numpy() == seen.next_observations[seen.step_mask].reshape(n_live, -1)).all()
    assert (seen.rewards[seen.step_mask] == np.arange(n_live) * 0.5).all()
    assert (seen.rewards[~seen.step_mask] == 0).all()


def test_a_reward_function_gets_dict_observations_key_by_key() -> None:
    rollout = fill([[3, 1], [2, 2]], CAR, spaces.MultiDiscrete([3, 2]))

    def reward(state: Any, action: torch.Tensor, next_state: Any) -> torch.Tensor:
        assert {key: tuple(rows.shape) for key, rows in state.items()} == {
            "speed": (8, 2),
            "gear": (8, 1),
            "lamps": (8, 3),
        }
        assert action.shape == (8, 2)
        rewards: torch.Tensor = state["gear"] * 10.0 + next_state["speed"][:, 1:] + action[:, :1] * 100.0
        return rewards

    apply_reward_functions(rollout, np.asarray, [reward], [1.0])
    for place in zip(*np.nonzero(rollout.step_mask), strict=True):
        expected = (
            10.0 * rollout.observations["gear"][place]
            + rollout.next_observations["speed"][place][1]
            + 100.0 * rollout.actions[place][0]
        )
        assert rollout.rewards[place] == pytest.approx(expected, rel=1e-6)
    assert (rollout.rewards[~rollout.step_mask] == 0).all()


def count_rows(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(state))[:, None].float()


def pay_first_action(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return (action == 0).float()


def test_several_rewards_are_weighed_and_reported_without_their_weights() -> None:
    rollout = fill([[3, 1], [2, 2]])
    mask = rollout.step_mask
    own, is_first = rollout.rewards[mask].astype(np.float64), rollout.actions[mask] == 0
    assert 0 < is_first.sum() < 8
    means = apply_reward_functions(rollout, np.asarray, [count_rows, None, pay_first_action], [2.0, -0.5, 10.0])
    np.testing.assert_allclose(rollout.rewards[mask], 2.0 * np.arange(8) - 0.5 * own + 10.0 * is_first, rtol=1e-6)
    assert (rollout.rewards[~mask] == 0).all()
    assert means == {
        "count_rows": 3.5,
        "environment": pytest.approx(own.mean()),
        "pay_first_action": pytest.approx(is_first.mean()),
    }


def test_reward_functions_of_one_name_are_reported_apart() -> None:
    named = [functools.partial(pay, 1.0), functools.partial(pay, 2.0), lambda *steps: pay(3.0, *steps)]
    functions: list[Any] = [*named, lambda *steps: pay(4.0, *steps), functools.partial(pay, 5.0)]
    means = apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, functions)
    assert means == {"partial": 1.0, "partial_2": 2.0, "<lambda>": 3.0, "<lambda>_2": 4.0, "partial_3": 5.0}


def pay(amount: float, state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return torch.full((len(state), 1), amount)


def test_the_environments_own_reward_alone_stays_as_it_is() -> None:
    rollout = fill([[3, 1], [2, 2]])
    before = rollout.rewards.copy()
    apply_reward_functions(rollout, np.asarray, [None], [1.0])
    assert (rollout.rewards == before).all()


def test_a_reward_function_sees_actions_as_the_simulator_did() -> None:
    actions: list[torch.Tensor] = []

    def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        actions.append(action)
        return torch.zeros(len(action), 1)

    model = cartpole_model(env="Pendulum-v1", reward_function=reward, policy_kwargs={"log_std_init": 2.0})
    seen = collect(model).rollouts[0]
    assert np.abs(seen.actions).max() > 2, "samples leave the bounds of the torque"
    assert actions[0].abs().max() == 2
    assert (actions[0].numpy() == np.clip(seen.actions[seen.step_mask], -2, 2)).all()


class Squashed(ActorCriticPolicy):
    """Draws actions from -1 to 1, which SB3 stretches to the bounds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._squash_output = True


@pytest.mark.parametrize("n_rollout_shards", [None, 2])
def test_a_reward_function_sees_the_stretched_actions_of_a_squashed_policy(n_rollout_shards: int | None) -> None:
    arguments: dict[str, Any] = {"n_steps": 64, "horizon": 8, "n_rollout_shards": n_rollout_shards}
    model = GRPO(Squashed, "Pendulum-v1", reward_function=pay_the_action, seed=0, device="cpu", **arguments)
    model.learn(64)
    rollout = model.rollout_buffer
    np.testing.assert_allclose(rollout.rewards, 2.0 * rollout.actions[..., 0], atol=1e-6)  # torques from -2 to 2


def pay_the_action(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return action


@pytest.mark.parametrize("convert", [lambda r: r, lambda r: r.flatten(), lambda r: r.flatten().tolist()])
def test_a_reward_function_may_return_a_column_a_row_or_a_list(convert: Callable[[torch.Tensor], Any]) -> None:
    model = cartpole_model(reward_function=lambda state, action, next_state: convert(next_state[:, :1]))
    seen = collect(model).rollouts[0]
    assert (seen.rewards[seen.step_mask] == seen.next_observations[seen.step_mask][:, 0]).all()


def scribble(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    for tensor in (state, action, next_state):
        tensor.zero_()
    return torch.ones(len(state), 1)


def test_a_reward_function_that_scribbles_on_its_arguments_changes_no_step() -> None:
    tidy, scribbled = (
        collect(cartpole_model(reward_function=function)).rollouts[0]
        for function in (lambda state, action, next_state: torch.ones(len(state), 1), scribble)
    )
    for name in Seen._fields:
        assert (getattr(tidy, name)[tidy.step_mask] == getattr(scribbled, name)[tidy.step_mask]).all(), name


def test_a_reward_function_that_scribbles_on_its_arguments_leaves_those_of_the_next_alone() -> None:
    def see(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return (state + next_state).sum(dim=1, keepdim=True) + action

    means = apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, [scribble, see], [1.0, 1.0])
    assert means["see"] == apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, [see], [1.0])["see"] != 0


def two_columns(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
    return next_state[:, :2]


def one_number(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
    return torch.ones(1, 1)


def nothing(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
    """It forgets to return."""


@pytest.mark.parametrize("is_one_of_two", [False, True])
@pytest.mark.parametrize("reward_function", [two_columns, one_number, nothing])
def test_a_reward_of_the_wrong_size_is_refused_with_the_remedy(
    reward_function: Callable[..., Any], is_one_of_two: bool
) -> None:
    model = cartpole_model(reward_function=[None, reward_function] if is_one_of_two else reward_function)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match=r"must return one reward per step, shape \(\d+, 1\)") as refusal:
        model.learn(64)
    assert reward_function.__name__ in str(refusal.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize(
    ("returned", "shown"),
    [
        ("1.0", "'1.0' of type str"),
        (["1.0"] * 8, "of type list"),
        ([[1.0], [2.0, 3.0]], "[[1.0], [2.0, 3.0]] of type list"),
        (np.array([None] * 8), "of type ndarray (can't convert"),
        (torch.ones(8, dtype=torch.complex64), "of type Tensor (rewards are real numbers)"),
        (torch.ones(8).to_sparse(), "of type Tensor"),
        ([10**400] * 8, "of type list"),
    ],
    ids=["text", "texts", "ragged", "objects", "complex", "sparse", "huge"],
)
def test_what_is_no_numbers_is_refused_with_the_name(returned: Any, shown: str) -> None:
    def odd(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
        return returned

    with pytest.raises(ValueError, match=r"(?s)^reward function 'odd' returned .* one reward per step") as refusal:
        apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, odd)
    assert shown in str(refusal.value)


def test_a_reward_beyond_float32_is_named() -> None:
    def vast(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
        return torch.full((8, 1), -1e300, dtype=torch.float64)

    with pytest.raises(ValueError, match=r"^reward function 'vast' returned -1e\+300; it must return a size up to 3"):
        apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, vast)


def test_rewards_may_run_backwards_through_an_array() -> None:
    def flip(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
        return np.flip(np.arange(8.0))

    assert apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, flip)["flip"] == 3.5


def test_an_error_of_a_reward_function_says_whose_it_is() -> None:
    def divide(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as refusal:
        apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, divide)
    assert refusal.value.__notes__ == ["Reward function 'divide' raised it."]


def test_one_that_takes_other_arguments_is_told_which_it_gets() -> None:
    with pytest.raises(TypeError) as refusal:
        apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, lambda state, action: state)  # type: ignore[misc, arg-type]
    (note,) = refusal.value.__notes__
    assert note.endswith("cannot be called with three arguments; define it with (state, action, next_state).")


def test_a_reward_function_may_turn_gradients_off_and_return_short_numbers() -> None:
    def turn_off(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(False)
        return torch.full((len(state),), 0.5, dtype=torch.bfloat16)

    assert apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, turn_off) == {"turn_off": 0.5}
    assert torch.is_grad_enabled()


def test_long_names_stay_apart_in_a_table_that_cuts_them() -> None:
    names = ["penalise_energy_of_the_left_leg_a", "penalise_energy_of_the_left_leg_b", "short", "short"]
    functions = [name_reward_function(lambda state, action, next_state: torch.ones(len(state)), name) for name in names]
    means = apply_reward_functions(fill([[3, 1], [2, 2]]), np.asarray, functions)
    assert list(means) == [names[0], "penalise_energy_of_the_lef_2", "short", "short_2"]
