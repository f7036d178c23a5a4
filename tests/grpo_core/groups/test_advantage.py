"""Advantages against hand arithmetic and against plain loops over ragged branches."""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
import pytest
import torch

from grpo_core.groups.advantage import (
    BranchSteps,
    Floats,
    GroupAdvantages,
    compute_adaptive_deviation,
    compute_deviation,
    compute_gae,
    compute_group_advantages,
    compute_group_members,
    compute_informative,
    compute_leave_one_out_deviation,
    compute_returns,
    describe_adaptive,
    equalize_variance,
    scale_advantages,
)
from grpo_core.options.choices import COMPARES_IN_GROUPS, NEEDS_VALUES, AdvantageScaling, Baseline, Supervision
from grpo_core.options.rewards import optimized_cartpole

Ending = Literal["terminated", "truncated", "horizon"]
EPSILON = 1e-4
CORRELATIONS = np.array([0.9, 0.75, 0.5, 0.2, 0.0])
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
SCALINGS: tuple[AdvantageScaling, ...] = get_args(AdvantageScaling)
# What may be asked for together: a step judged by its GAE has no outcome.
JUDGEMENTS: list[tuple[Baseline, Supervision]] = [
    *((baseline, "process") for baseline in BASELINES),
    *((baseline, "outcome") for baseline in BASELINES if baseline not in NEEDS_VALUES),
]


class Branch(NamedTuple):
    rewards: list[float]
    ending: Ending
    values: list[float]
    next_values: list[float]


Rollout = list[list[Branch]]  # groups of branches


def branch(rewards: list[float], ending: Ending) -> Branch:
    nothing = [0.0] * len(rewards)
    return Branch(rewards, ending, nothing, nothing)


def pad(rollout: Rollout, horizon: int, field: Literal["rewards", "values", "next_values"]) -> Floats:
    rows = [[getattr(b, field) + [0.0] * (horizon - len(b.rewards)) for b in group] for group in rollout]
    return np.array(rows, np.float64).transpose(2, 0, 1)


def to_steps(rollout: Rollout, horizon: int) -> BranchSteps:
    shape = (horizon, len(rollout), len(rollout[0]))
    step_mask, terminated, truncated = (np.zeros(shape, np.bool_) for _ in range(3))
    for a, group in enumerate(rollout):
        for b, one in enumerate(group):
            last = len(one.rewards) - 1
            step_mask[: last + 1, a, b] = True
            if one.ending == "terminated":
                terminated[last, a, b] = True
            elif one.ending == "truncated":
                truncated[last, a, b] = True
    return BranchSteps(pad(rollout, horizon, "rewards"), step_mask, terminated, truncated)


def draw_rollout(rng: random.Random, horizon: int, n_groups: int, group_size: int) -> Rollout:
    """Ragged branches: some terminate early, some are truncated early, some reach the horizon."""

    def draw_branch() -> Branch:
        ending: Ending = rng.choice(["terminated", "truncated", "horizon"])
        n_steps = horizon if ending == "horizon" else rng.randint(1, horizon)
        rewards, values, next_values = ([rng.uniform(-2, 2) for _ in range(n_steps)] for _ in range(3))
        return Branch(rewards, ending, values, next_values)

    return [[draw_branch() for _ in range(group_size)] for _ in range(n_groups)]


def loop_returns(one: Branch, gamma: float) -> list[float]:
    return [
        sum(gamma**k * reward for k, reward in enumerate(one.rewards[t:]))  # to the branch's end
        for t in range(len(one.rewards))
    ]


def loop_gae(one: Branch, gamma: float, gae_lambda: float) -> list[float]:
    n_steps = len(one.rewards)
    deltas = []
    for t in range(n_steps):
        absorbed = one.ending == "terminated" and t == n_steps - 1
        following = 0.0 if absorbed else one.next_values[t]
        deltas.append(one.rewards[t] + gamma * following - one.values[t])
    return [sum((gamma * gae_lambda) ** (k - t) * deltas[k] for k in range(t, n_steps)) for t in range(n_steps)]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def spread(numbers: list[float]) -> float:
    centre = mean(numbers)
    return math.sqrt(mean([(x - centre) ** 2 for x in numbers]))


class Judgement(NamedTuple):
    """How a rollout is judged."""

    baseline: Baseline
    supervision: Supervision
    bootstrap_value: bool
    advantage_scaling: AdvantageScaling


def loop_judge(one: Branch, gamma: float, gae_lambda: float, how: Judgement) -> list[float]:
    """What a baseline compares: GAE, the plain return or the lambda-return, of every step or of the branch."""
    numbers = loop_gae(one, gamma, gae_lambda)
    if how.baseline not in NEEDS_VALUES:
        lambda_returns = [g + v for g, v in zip(numbers, one.values, strict=True)]
        numbers = lambda_returns if how.bootstrap_value else loop_returns(one, gamma)
    return numbers[:1] if how.supervision == "outcome" else numbers


def loop_members(group: list[Branch], judged: list[list[float]], t: int, baseline: Baseline) -> dict[int, float]:
    """What the branches of a group have at step t, by branch."""
    members = {}
    for b, (one, numbers) in enumerate(zip(group, judged, strict=True)):
        if t < len(numbers):
            members[b] = numbers[t]
        elif baseline not in NEEDS_VALUES and one.ending == "terminated":
            members[b] = 0.0
    return members


def loop_baseline(
    rollout: Rollout, judged: list[list[list[float]]], at: tuple[int, int, int], how: Judgement
) -> float | None:
    """What is subtracted at one live step; None where the step has nothing to be compared with."""
    t, a, b = at
    groups = [loop_members(*pair, t, how.baseline) for pair in zip(rollout, judged, strict=True)]
    if how.baseline in ("group", "residual"):
        return mean(list(groups[a].values()))
    if how.baseline == "adaptive":
        others = [number for other, number in groups[a].items() if other != b]
        elsewhere = mean(
            [number for i, group in enumerate(judged) if i != a for numbers in group for number in numbers]
        )
        coefficient = loop_coefficient(len(others), CORRELATIONS[t])
        return elsewhere + (coefficient * (mean(others) - elsewhere) if others else 0.0)
    if how.baseline == "leave_one_out":
        others = [number for other, number in groups[a].items() if other != b]
        return mean(others) if others else None
    if how.baseline == "timestep":
        return mean([number for group in groups for number in group.values()])
    if how.baseline == "batch" or (how.baseline == "value" and how.advantage_scaling == "batch"):
        return mean([number for group in judged for numbers in group for number in numbers])
    return 0.0


def loop_coefficient(n_others: int, correlation: float) -> float:
    """The least squares regression of one member on the mean of n others."""
    variance_of_mean = (1.0 + (n_others - 1) * correlation) / n_others if n_others else 1.0
    return correlation / variance_of_mean if n_others else 0.0


def loop_weight(rollout: Rollout, t: int, a: int) -> float:
    """One over the standard deviation that the others leave of GAE's."""
    n_others = sum(t < len(one.rewards) for one in rollout[a]) - 1
    return float((1.0 - CORRELATIONS[t] * loop_coefficient(n_others, CORRELATIONS[t])) ** -0.5)


def loop_advantages(
    rollout: Rollout, gamma: float, gae_lambda: float, how: Judgement
) -> dict[tuple[int, int, int], float]:
    """Advantage of every live step, by (step, anchor, branch), one number at a time."""
    judged = [[loop_judge(one, gamma, gae_lambda, how) for one in group] for group in rollout]
    advantages: dict[tuple[int, int, int], float] = {}
    for a, group in enumerate(judged):
        for b, numbers in enumerate(group):
            for t, number in enumerate(numbers):
                centre = loop_baseline(rollout, judged, (t, a, b), how)
                weight = loop_weight(rollout, t, a) if how.baseline == "adaptive" else 1.0
                advantages[t, a, b] = 0.0 if centre is None else weight * (number - centre)
    batch_size = spread(list(advantages.values())) + EPSILON
    scaled = {}
    for (t, a, b), advantage in advantages.items():
        members = loop_members(rollout[a], judged[a], t, how.baseline)
        # Leaving oneself out stretches a group, the terminated members too, by n / (n - 1).
        n_others = max(len(members) - 1, 1)
        stretch = len(members) / n_others if how.baseline == "leave_one_out" else 1.0
        if how.baseline == "adaptive":
            coefficient = loop_coefficient(len(members) - 1, CORRELATIONS[t])
            stretch = loop_weight(rollout, t, a) * (1.0 + coefficient / n_others)
        group_size = stretch * spread(list(members.values())) + EPSILON
        scaled[t, a, b] = advantage / {"none": 1.0, "group": group_size, "batch": batch_size}[how.advantage_scaling]
    if how.supervision == "outcome":
        lengths = {(a, b): len(one.rewards) for a, group in enumerate(rollout) for b, one in enumerate(group)}
        return {(t, a, b): scaled[0, a, b] for (a, b), length in lengths.items() for t in range(length)}
    return scaled


def compute(
    rollout: Rollout,
    horizon: int,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
    baseline: Baseline = "group",
    supervision: Supervision = "process",
    bootstrap_value: bool = False,
    advantage_scaling: AdvantageScaling = "none",
) -> GroupAdvantages:
    return compute_group_advantages(
        to_steps(rollout, horizon),
        pad(rollout, horizon, "values"),
        pad(rollout, horizon, "next_values"),
        gamma=gamma,
        gae_lambda=gae_lambda,
        baseline=baseline,
        supervision=supervision,
        bootstrap_value=bootstrap_value,
        advantage_scaling=advantage_scaling,
        correlations=np.resize(CORRELATIONS, horizon),
    )


def assert_close(actual: Floats, expected: Sequence[float] | Sequence[Sequence[float]]) -> None:
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def draw_numbers(seed: int, shape: Sequence[int]) -> Floats:
    """Draw numbers up to 1000, as a rollout stores them."""
    return np.random.default_rng(seed).random(shape, np.float32) * np.float32(1e3)


def test_returns_add_up_discounted_rewards_to_the_end_of_the_branch() -> None:
    steps = to_steps([[branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")]], 3)
    returns = compute_returns(steps, gamma=0.5)
    assert_close(returns[:, 0, 0], [1 + 1 + 1, 2 + 2, 4])
    assert_close(returns[:, 0, 1], [1.5, 1, 0])


@pytest.mark.parametrize("seed", range(5))
def test_returns_match_a_plain_loop_on_ragged_branches(seed: int) -> None:
    rollout = draw_rollout(random.Random(seed), horizon=6, n_groups=3, group_size=4)
    returns = compute_returns(to_steps(rollout, 6), gamma=0.9)
    for (a, group), b in itertools.product(enumerate(rollout), range(4)):
        expected = loop_returns(group[b], 0.9)
        assert_close(returns[:, a, b], expected + [0.0] * (6 - len(expected)))


def test_gae_of_a_cut_branch_ends_in_the_value_of_where_it_was_cut() -> None:
    one = Branch([1, 2], "horizon", values=[0.5, 1], next_values=[1, 3])
    gae = compute_gae(
        to_steps([[one]], 2), pad([[one]], 2, "values"), pad([[one]], 2, "next_values"), gamma=0.5, gae_lambda=0.5
    )
    # deltas: 1 + 0.5 * 1 - 0.5 = 1 and 2 + 0.5 * 3 - 1 = 2.5
    assert_close(gae[:, 0, 0], [1 + 0.25 * 2.5, 2.5])


def test_gae_of_a_terminated_branch_ends_in_nothing() -> None:
    one = Branch([1, 2], "terminated", values=[0.5, 1], next_values=[1, 3])
    gae = compute_gae(
        to_steps([[one]], 2), pad([[one]], 2, "values"), pad([[one]], 2, "next_values"), gamma=0.5, gae_lambda=0.5
    )
    # deltas: 1 and 2 - 1 = 1
    assert_close(gae[:, 0, 0], [1.25, 1])


def test_gae_of_a_truncated_branch_is_bootstrapped_like_a_cut_one() -> None:
    cut = Branch([1, 2], "horizon", values=[0.5, 1], next_values=[1, 3])
    rollout = [[cut, cut._replace(ending="truncated")]]
    gae = compute_gae(to_steps(rollout, 4), pad(rollout, 4, "values"), pad(rollout, 4, "next_values"), 0.5, 0.5)
    assert_close(gae[:, 0, 1], [1.625, 2.5, 0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_gae_matches_a_plain_loop_on_ragged_branches(seed: int) -> None:
    rollout = draw_rollout(random.Random(seed), horizon=6, n_groups=3, group_size=4)
    gae = compute_gae(to_steps(rollout, 6), pad(rollout, 6, "values"), pad(rollout, 6, "next_values"), 0.95, 0.8)
    for (a, group), b in itertools.product(enumerate(rollout), range(4)):
        expected = loop_gae(group[b], 0.95, 0.8)
        assert_close(gae[:, a, b], expected + [0.0] * (6 - len(expected)))


def test_deviation_is_measured_from_the_mean_of_the_members_only() -> None:
    quantity = np.array([[[1.0, 3.0, 100.0], [2.0, 2.0, 2.0]]], dtype=np.float64)
    members = np.array([[[True, True, False], [True, True, True]]])
    deviation = compute_deviation(quantity, members, (2,))
    assert_close(deviation[0, 0, :2], [-1, 1])
    assert_close(deviation[0, 1], [0, 0, 0])


def test_deviation_is_measured_over_the_axes_asked_for() -> None:
    quantity = np.array([[[1.0, 3.0], [5.0, 7.0]], [[0.0, 10.0], [20.0, 50.0]]], dtype=np.float64)
    members = np.ones_like(quantity, np.bool_)
    members[1, 1, 1] = False
    # Means 2, 6, 5, 20; then 4 and 10; then 46 / 7.
    assert_close(compute_deviation(quantity, members, (2,))[members], [-1, 1, -1, 1, -5, 5, 0])
    assert_close(compute_deviation(quantity, members, (1, 2))[members], [-3, -1, 1, 3, -10, 0, 10])
    assert_close(
        compute_deviation(quantity, members, (0, 1, 2))[members], [x - 46 / 7 for x in (1, 3, 5, 7, 0, 10, 20)]
    )


@pytest.mark.parametrize("axis", [(2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("group_size", [2, 3, 5, 7])
def test_deviation_of_equal_members_is_exactly_zero_in_float32(group_size: int, axis: tuple[int, ...]) -> None:
    shape = [50, 4, group_size]
    equal = [1 if dim in axis else size for dim, size in enumerate(shape)]
    quantity = np.broadcast_to(draw_numbers(group_size, equal), shape)
    assert (compute_deviation(quantity, np.ones_like(quantity, np.bool_), axis) == 0).all()


@pytest.mark.parametrize("axis", [(2,), (1, 2), (0, 1, 2)])
def test_deviation_without_members_is_finite(axis: tuple[int, ...]) -> None:
    quantity = np.array([[[1.0, 3.0]]])
    assert np.isfinite(compute_deviation(quantity, np.zeros_like(quantity, np.bool_), axis)).all()


def test_leave_one_out_subtracts_the_mean_of_the_others() -> None:
    quantity = np.array([[[1.0, 2.0, 6.0]]], dtype=np.float64)
    everyone = np.ones_like(quantity, np.bool_)
    # Others' means: (2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2.
    assert_close(compute_leave_one_out_deviation(quantity, everyone)[0, 0], [1 - 4, 2 - 3.5, 6 - 1.5])


def test_leave_one_out_in_a_pair_is_the_difference_to_the_other() -> None:
    quantity = np.array([[[1.0, 4.0]]], dtype=np.float64)
    everyone = np.ones_like(quantity, np.bool_)
    assert_close(compute_leave_one_out_deviation(quantity, everyone)[0, 0], [-3, 3])


def test_leave_one_out_of_a_member_without_others_is_zero() -> None:
    quantity = np.array([[[7.0, 4.0]]], dtype=np.float64)
    deviation = compute_leave_one_out_deviation(quantity, np.array([[[True, False]]]))
    assert_close(deviation[0, 0, :1], [0])


@pytest.mark.parametrize("group_size", [2, 3, 5, 7])
def test_leave_one_out_of_equal_members_is_exactly_zero_in_float32(group_size: int) -> None:
    quantity = np.broadcast_to(draw_numbers(group_size, [50, 4, 1]), (50, 4, group_size))
    assert (compute_leave_one_out_deviation(quantity, np.ones_like(quantity, np.bool_)) == 0).all()


def test_adaptive_subtracts_as_much_of_the_others_as_members_have_in_common() -> None:
    quantity = np.array([[[1.0, 2.0, 6.0], [3.0, 4.0, 5.0]]], dtype=np.float64)
    everyone = np.ones_like(quantity, np.bool_)
    # The other groups' mean is 4. With a correlation of 1/2, c = 2 * 0.5 / (1 + 0.5) = 2/3 of the others' 4 - 4 = 0.
    deviation = compute_adaptive_deviation(quantity, everyone, np.array([0.5]))
    expected = np.array([-3 - 2 / 3 * 0, -2 - 2 / 3 * -0.5, 2 - 2 / 3 * -2.5])
    np.testing.assert_allclose(deviation[0, 0], expected)
    # 1 - 0.5 * 2/3 = 2/3 of the variance is left.
    np.testing.assert_allclose(equalize_variance(deviation, everyone, np.array([0.5])), deviation / math.sqrt(2 / 3))


@pytest.mark.parametrize("group_size", [2, 5])
def test_adaptive_lies_between_gae_and_what_leaving_one_out_leaves(group_size: int) -> None:
    quantity, everyone = draw_numbers(0, (3, 4, group_size)).astype(np.float64), np.ones((3, 4, group_size), np.bool_)
    alike = compute_adaptive_deviation(quantity, everyone, np.ones(3))
    least_left = math.sqrt(0.05)
    np.testing.assert_allclose(equalize_variance(alike, everyone, np.ones(3)), alike / least_left)
    np.testing.assert_allclose(alike, compute_leave_one_out_deviation(quantity, everyone), atol=1e-9)
    elsewhere = (quantity.sum() - quantity.sum(axis=(0, 2))) / (9 * group_size)
    unlike = compute_adaptive_deviation(quantity, everyone, np.zeros(3))
    np.testing.assert_allclose(unlike, quantity - elsewhere[:, None], atol=1e-9)


def test_adaptive_weighs_a_pair_by_the_noise_that_is_left_and_a_survivor_by_all_of_it() -> None:
    quantity = np.array([[[3.0, 9.0], [1.0, 1.0]]], dtype=np.float64)
    alone = np.array([[[True, False], [True, True]]])
    # The other group's means are 1 and 3. A pair leaves 1 - 0.8^2 of the variance, a survivor has all of it.
    correlations = np.array([0.8])
    deviation = equalize_variance(compute_adaptive_deviation(quantity, alone, correlations), alone, correlations)
    np.testing.assert_allclose(deviation[0, 0, 0], 3 - 1)
    np.testing.assert_allclose(deviation[0, 1], (-2 - 0.8 * -2) / 0.6)


@pytest.mark.parametrize(("group_size", "saved"), [(2, 0.8 * 0.8), (4, 0.8 * 2.4 / 2.6)])  # rho c
def test_the_variance_saved_is_what_subtracting_the_others_takes_away(group_size: int, saved: float) -> None:
    rng, shape = np.random.default_rng(0), (1, 20_000, group_size)
    rewards = math.sqrt(0.8) * rng.normal(size=(*shape[:2], 1)) + math.sqrt(0.2) * rng.normal(size=shape)
    everyone, correlations = np.ones(shape, np.bool_), np.array([0.8])
    groups = compute_group_advantages(
        BranchSteps(rewards, everyone, everyone, ~everyone),
        np.zeros(shape),
        np.zeros(shape),
        gamma=1.0,
        gae_lambda=1.0,
        baseline="adaptive",
        supervision="process",
        bootstrap_value=True,
        advantage_scaling="batch",
        correlations=correlations,
    )
    assert describe_adaptive(groups, everyone, correlations)["group_variance_saved"] == pytest.approx(saved, abs=0.02)


def test_of_gaes_that_do_not_vary_no_variance_is_saved() -> None:
    groups = compute([[branch([2.0], "horizon")] * 2] * 2, 1, baseline="adaptive")
    measures = describe_adaptive(groups, np.ones((1, 2, 2), np.bool_), CORRELATIONS[:1])
    assert measures == {"group_coefficient": CORRELATIONS[0], "group_variance_saved": 0.0}


N_DRAWN_GROUPS = 100_000


def estimate_gradients(baseline: Baseline, correlation: float) -> tuple[Floats, float]:
    """Estimate a known gradient from each of many groups: action 1 with probability p earns 1 more, and ends early.

    Members share the luck of their anchor, and have their own. Action 1 terminates a branch before its second step,
    so that what others are alive to be compared with depends on actions too.

    :return: One estimate of d E[return] / d p per group, and its exact value.
    """
    p, shape, rng = 0.3, (2, N_DRAWN_GROUPS, 3), np.random.default_rng(0)
    acts = rng.random(shape) < p
    luck = 3.0 * rng.standard_normal((2, N_DRAWN_GROUPS, 1))
    rewards = 5.0 + luck + acts + 0.5 * rng.standard_normal(shape)
    step_mask = np.ones(shape, np.bool_)
    step_mask[1] = ~acts[0]
    terminated = np.stack([acts[0], step_mask[1]])
    steps = BranchSteps(np.where(step_mask, rewards, 0.0), step_mask, terminated, np.zeros(shape, np.bool_))
    groups = compute_group_advantages(
        steps,
        np.zeros(shape),
        np.zeros(shape),
        gamma=1.0,
        gae_lambda=1.0,
        baseline=baseline,
        supervision="process",
        bootstrap_value=True,
        advantage_scaling="none",
        correlations=np.array([correlation, 0.0]),  # survivors of the second step count in full
    )
    scores = np.where(acts, 1.0 / p, -1.0 / (1.0 - p))
    estimates = (scores * groups.advantages).sum(axis=0).mean(axis=1)
    # d/dp of p (5 + 1) + (1 - p) (5 + 5 + p): the first step's reward and, without action 1, the second's. The first
    # step is weighed by what two others leave of the variance, whatever its actions were.
    coefficient = loop_coefficient(2, correlation)
    weight = (1.0 - correlation * coefficient) ** -0.5 if baseline == "adaptive" else 1.0
    return estimates, weight * (6.0 - 10.0 - p) + (1.0 - p)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.9])
def test_the_adaptive_baseline_leaves_the_expected_gradient_as_it_is(correlation: float) -> None:
    estimates, exact = estimate_gradients("adaptive", correlation)
    assert abs(estimates.mean() - exact) < 4.0 * estimates.std() / math.sqrt(N_DRAWN_GROUPS)


def test_the_adaptive_baseline_makes_the_gradient_less_noisy() -> None:
    noise = {}
    for correlation in (0.0, 0.9):  # with 0 only the mean over the rollout is subtracted
        estimates, exact = estimate_gradients("adaptive", correlation)
        noise[correlation] = estimates.std() / abs(exact)
    assert noise[0.9] < 0.8 * noise[0.0]


def test_members_are_the_living_and_those_that_terminated_before() -> None:
    endings = [branch([1], "terminated"), branch([1], "truncated"), branch([1, 1, 1], "horizon")]
    members = compute_group_members(to_steps([endings], 3))
    assert members[:, 0].tolist() == [[True, True, True], [True, False, True], [True, False, True]]


def test_a_terminated_branch_counts_as_return_zero_in_its_groups_mean() -> None:
    rollout = [[branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")]]
    advantages = compute(rollout, 3, gamma=0.5).advantages
    # returns 3, 4, 4 and 1.5, 1, (0): means 2.25, 2.5, 2
    assert_close(advantages[:, 0, 0], [0.75, 1.5, 2])
    assert_close(advantages[:, 0, 1], [-0.75, -1.5, 0])


def test_a_truncated_branch_is_left_out_of_its_groups_mean() -> None:
    rollout = [[branch([1, 2, 4], "horizon"), branch([1, 1], "truncated")]]
    advantages = compute(rollout, 3, gamma=0.5).advantages
    assert_close(advantages[:, 0, 0], [0.75, 1.5, 0])
    assert_close(advantages[:, 0, 1], [-0.75, -1.5, 0])


def test_group_baseline_with_bootstrap_adds_the_value_of_where_the_horizon_cut() -> None:
    rollout = [
        [
            Branch([1], "horizon", values=[7], next_values=[10]),
            Branch([3], "terminated", values=[7], next_values=[10]),
        ]
    ]
    advantages, value_targets, *_ = compute(rollout, 1, gamma=0.5, bootstrap_value=True)
    assert_close(value_targets[0, 0], [1 + 5, 3])
    assert_close(advantages[0, 0], [1.5, -1.5])


def test_residual_baseline_subtracts_the_mean_gae_of_the_living() -> None:
    rollout = [
        [
            Branch([1, 2], "horizon", values=[0.5, 1], next_values=[1, 3]),
            Branch([2], "terminated", values=[0.5], next_values=[9]),
        ]
    ]
    advantages = compute(rollout, 2, gamma=0.5, gae_lambda=0.5, baseline="residual", bootstrap_value=True).advantages
    # GAE 1.625, 2.5 and 1.5: mean 1.5625 at step 0; at step 1 the first branch is alone.
    assert_close(advantages[:, 0, 0], [0.0625, 0])
    assert_close(advantages[:, 0, 1], [-0.0625, 0])


def test_value_baseline_is_gae_alone() -> None:
    rollout = [
        [
            Branch([1, 2], "horizon", values=[0.5, 1], next_values=[1, 3]),
            Branch([2], "terminated", values=[0.5], next_values=[9]),
        ]
    ]
    advantages, value_targets, *_ = compute(
        rollout, 2, gamma=0.5, gae_lambda=0.5, baseline="value", bootstrap_value=True
    )
    assert_close(advantages[:, 0, 0], [1.625, 2.5])
    assert_close(advantages[:, 0, 1], [1.5, 0])
    assert_close(value_targets[:, 0, 0], [2.125, 3.5])
    assert_close(value_targets[:, 0, 1], [2, 0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("bootstrap_value", [False, True])
@pytest.mark.parametrize(("baseline", "supervision"), JUDGEMENTS)
@pytest.mark.parametrize("group_size", [2, 4])
def test_advantages_match_a_plain_loop_on_ragged_branches(
    seed: int,
    scaling: AdvantageScaling,
    bootstrap_value: bool,
    baseline: Baseline,
    supervision: Supervision,
    group_size: int,
) -> None:
    rollout = draw_rollout(random.Random(seed), horizon=5, n_groups=6, group_size=group_size)
    how = Judgement(baseline, supervision, bootstrap_value, scaling)
    groups = compute(rollout, 5, gamma=0.9, gae_lambda=0.8, **how._asdict())
    expected = loop_advantages(rollout, 0.9, 0.8, how)
    for at in itertools.product(range(5), range(6), range(group_size)):
        assert groups.advantages[at].item() == pytest.approx(expected.get(at, 0.0), abs=1e-9), at
    for a, b in itertools.product(range(6), range(group_size)):
        one = rollout[a][b]
        targets = [g + v for g, v in zip(loop_gae(one, 0.9, 0.8), one.values, strict=True)]
        assert_close(groups.value_targets[:, a, b], targets + [0.0] * (5 - len(targets)))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("bootstrap_value", [False, True])
@pytest.mark.parametrize(("baseline", "supervision"), JUDGEMENTS)
def test_float32_stays_float32(
    scaling: AdvantageScaling, bootstrap_value: bool, baseline: Baseline, supervision: Supervision
) -> None:
    rollout = draw_rollout(random.Random(0), horizon=5, n_groups=3, group_size=2)
    steps = to_steps(rollout, 5)
    how = Judgement(baseline, supervision, bootstrap_value, scaling)
    groups = compute_group_advantages(
        steps._replace(rewards=steps.rewards.astype(np.float32)),
        pad(rollout, 5, "values").astype(np.float32),
        pad(rollout, 5, "next_values").astype(np.float32),
        gamma=0.9,
        gae_lambda=0.8,
        correlations=CORRELATIONS,
        **how._asdict(),
    )
    assert groups.advantages.dtype == groups.value_targets.dtype == np.float32
    exact = compute(rollout, 5, gamma=0.9, gae_lambda=0.8, **how._asdict())
    np.testing.assert_allclose(groups.advantages, exact.advantages, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("baseline", BASELINES)
def test_what_is_judged_is_left_as_it_was(baseline: Baseline) -> None:
    rollout = draw_rollout(random.Random(0), horizon=5, n_groups=3, group_size=2)
    steps, values, next_values = to_steps(rollout, 5), pad(rollout, 5, "values"), pad(rollout, 5, "next_values")
    arrays = [*steps, values, next_values]
    for array in arrays:
        array.flags.writeable = False
    compute_group_advantages(
        steps,
        values,
        next_values,
        gamma=0.9,
        gae_lambda=0.8,
        correlations=CORRELATIONS,
        baseline=baseline,
        supervision="process",
        bootstrap_value=True,
        advantage_scaling="batch",
    )


def test_every_baseline_subtracts_its_own_mean() -> None:
    rollout = [
        [branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")],
        [branch([3, 3], "truncated"), branch([5], "terminated")],
    ]
    # Returns 7, 6, 4 and 2, 1, (0); 6, 3 and 5, (0). The last group is over at step 2: one was cut, the other counts 0.
    expected: dict[Baseline, list[list[float]]] = {
        "none": [[7, 6, 4], [2, 1, 0], [6, 3, 0], [5, 0, 0]],
        "batch": [[7 - 4.25, 6 - 4.25, 4 - 4.25], [-2.25, -3.25, 0], [1.75, -1.25, 0], [0.75, 0, 0]],
        # Means over the four branches: 5 and 2.5; over the three known at step 2: 4 / 3.
        "timestep": [[2, 3.5, 4 - 4 / 3], [-3, -1.5, 0], [1, 0.5, 0], [0, 0, 0]],
        "group": [[2.5, 2.5, 2], [-2.5, -2.5, 0], [0.5, 1.5, 0], [-0.5, 0, 0]],
        "leave_one_out": [[5, 5, 4], [-5, -5, 0], [1, 3, 0], [-1, 0, 0]],
    }
    for baseline, rows in expected.items():
        advantages = compute(rollout, 3, baseline=baseline).advantages
        # 34 / 8 = 4.25 is the mean of the eight live returns.
        assert_close(advantages.transpose(1, 2, 0).flatten(), [x for row in rows for x in row])


def test_outcome_credits_every_live_step_with_the_whole_branch() -> None:
    rollout = [
        [branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")],
        [branch([3, 3], "truncated"), branch([5], "terminated")],
    ]
    # Outcomes with gamma = 0.5: 1 + 1 + 1 = 3 and 1.5; 4.5 and 5. A branch counts once, whatever its length.
    expected: dict[Baseline, list[float]] = {
        "none": [3, 1.5, 4.5, 5],
        "batch": [3 - 3.5, 1.5 - 3.5, 4.5 - 3.5, 5 - 3.5],
        "timestep": [3 - 3.5, 1.5 - 3.5, 4.5 - 3.5, 5 - 3.5],
        "group": [0.75, -0.75, -0.25, 0.25],
        "leave_one_out": [1.5, -1.5, -0.5, 0.5],
    }
    for baseline, (a, b, c, d) in expected.items():
        advantages = compute(rollout, 3, gamma=0.5, baseline=baseline, supervision="outcome").advantages
        assert_close(advantages.transpose(1, 2, 0).flatten(), [a, a, a, b, b, 0, c, c, 0, d, 0, 0])


def test_outcome_of_a_cut_branch_goes_on_with_the_value_of_where_it_was_cut() -> None:
    one = Branch([1, 2], "truncated", values=[7, 7], next_values=[7, 8])
    rollout = [[one, one._replace(ending="terminated")]]
    groups = compute(rollout, 3, gamma=0.5, supervision="outcome", bootstrap_value=True)
    # 1 + 0.5 * 2 + 0.25 * 8 = 4 against 1 + 0.5 * 2 = 2
    assert_close(groups.advantages[:, 0].T.flatten(), [1, 1, 0, -1, -1, 0])


def test_baselines_that_need_values_are_those_that_values_move_without_bootstrapping() -> None:
    rollout = draw_rollout(random.Random(3), horizon=4, n_groups=2, group_size=3)
    valueless = [[branch(one.rewards, one.ending) for one in group] for group in rollout]
    moved = {
        baseline
        for baseline in BASELINES
        if not np.array_equal(
            compute(rollout, 4, baseline=baseline).advantages, compute(valueless, 4, baseline=baseline).advantages
        )
    }
    assert moved == NEEDS_VALUES


def test_baselines_that_compare_in_groups_are_those_that_what_a_group_shares_does_not_move() -> None:
    rollout = [[branch([x], "terminated") for x in group] for group in ([1.0, 2.0], [5.0, 9.0])]
    luckier = [rollout[0], [branch([x], "terminated") for x in (105.0, 109.0)]]
    unmoved = {
        baseline
        for baseline in BASELINES
        if np.allclose(
            compute(rollout, 1, baseline=baseline).advantages, compute(luckier, 1, baseline=baseline).advantages
        )
    }
    assert unmoved == COMPARES_IN_GROUPS


def test_a_group_whose_members_drift_far_apart_in_length_is_judged_step_by_step() -> None:
    # Whole episodes from one start: one falls at once, one is cut by the time limit, one lives on.
    rollout = [[branch([1] * 2, "terminated"), branch([1] * 50, "truncated"), branch([1] * 200, "terminated")]]
    advantages = compute(rollout, 200).advantages[:, 0]
    # Step 0: returns 2, 50 and 200, mean 84. Step 2 to 49: the first counts 0; 48 and 198 remain at step 2, mean 82.
    assert_close(advantages[0], [2 - 84, 50 - 84, 200 - 84])
    assert_close(advantages[2], [0, 48 - 82, 198 - 82])
    # From 50 on the time limit hides what the second would have earned: 150 and 0, mean 75; at the end 1 and 0.
    assert_close(advantages[50], [0, 0, 75])
    assert_close(advantages[199], [0, 0, 0.5])
    left_out = compute(rollout, 200, baseline="leave_one_out").advantages[:, 0]
    assert_close(left_out[2], [0, 48 - 99, 198 - 24])
    assert_close(left_out[50], [0, 0, 150])


def test_the_last_one_alive_has_nobody_to_be_compared_with_where_the_others_were_cut() -> None:
    rollout = [[branch([1, 5], "horizon"), branch([2], "truncated")]]
    for baseline in ("group", "leave_one_out"):
        for scaling in SCALINGS:
            assert compute(rollout, 2, baseline=baseline, advantage_scaling=scaling).advantages[1, 0, 0] == 0


def test_leave_one_out_scaled_by_the_groups_spread_is_the_group_baseline() -> None:
    rollout = draw_rollout(random.Random(5), horizon=4, n_groups=3, group_size=4)
    left_out = compute(rollout, 4, baseline="leave_one_out", advantage_scaling="group").advantages
    np.testing.assert_allclose(left_out, compute(rollout, 4, advantage_scaling="group").advantages, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_outcome_spreads_are_taken_once_per_branch(scaling: AdvantageScaling) -> None:
    rollout = [[branch([1] * 9, "terminated"), branch([1], "terminated")]]
    advantages = compute(rollout, 9, supervision="outcome", advantage_scaling=scaling).advantages[0, 0]
    # Outcomes 9 and 1: mean 5, spread 4, though nine of ten steps belong to the first.
    size = 1.0 if scaling == "none" else 4 + EPSILON
    assert_close(advantages, [4 / size, -4 / size])


def test_group_scaling_divides_by_the_spread_of_all_members_the_terminated_too() -> None:
    rollout = [[branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")]]
    advantages = compute(rollout, 3, gamma=0.5, advantage_scaling="group").advantages
    # Deviations are +-0.75, +-1.5 and +-2, so the population's spread is 0.75, 1.5 and 2.
    assert_close(advantages[:, 0, 0], [0.75 / 0.7501, 1.5 / 1.5001, 2 / 2.0001])


def test_batch_scaling_divides_by_one_spread_over_the_live_steps() -> None:
    rollout = [[branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")]]
    advantages = compute(rollout, 3, gamma=0.5, advantage_scaling="batch").advantages
    live = [0.75, 1.5, 2.0, -0.75, -1.5]
    centre = sum(live) / 5
    size = math.sqrt(sum((x - centre) ** 2 for x in live) / 5) + EPSILON
    assert_close(advantages[:, 0, 0], [0.75 / size, 1.5 / size, 2 / size])


def test_no_scaling_returns_advantages_as_they_are() -> None:
    advantages = np.array([[[3.0, -3.0]]])
    everyone = np.ones((1, 1, 2), np.bool_)
    assert scale_advantages(advantages, everyone, everyone, "none").tolist() == [[[3.0, -3.0]]]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("supervision", get_args(Supervision))
@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
def test_a_group_of_equal_rewards_has_exactly_zero_advantage_and_is_not_informative(
    baseline: Baseline, supervision: Supervision, scaling: AdvantageScaling
) -> None:
    equal = [branch([0.1, 0.3, 0.7], "horizon")] * 3
    unequal = [branch([1.0], "terminated"), branch([2.0], "terminated"), branch([3.0], "terminated")]
    steps = to_steps([equal, unequal], 3)
    nothing = np.zeros((3, 2, 3), np.float32)
    groups = compute_group_advantages(
        steps._replace(rewards=steps.rewards.astype(np.float32)),  # as the rollout stores them
        nothing,
        nothing,
        gamma=0.99,
        gae_lambda=1.0,
        correlations=CORRELATIONS[:3],
        baseline=baseline,
        supervision=supervision,
        bootstrap_value=False,
        advantage_scaling=scaling,
    )
    assert (groups.advantages[:, 0] == 0).all()
    assert (groups.advantages[0, 1] != 0).sum() == 2
    assert groups.informative.tolist() == [False, True]
    assert groups.zero_std_group_fraction == 0.5


def test_groups_whose_branches_differ_are_all_informative() -> None:
    groups = compute([[branch([1], "horizon"), branch([2], "horizon")]], 1)
    assert groups.informative.tolist() == [True]
    assert groups.zero_std_group_fraction == 0.0


def test_branches_that_earn_the_same_in_another_order_differ_only_to_process_supervision() -> None:
    rollout = [[branch([1, 0], "terminated"), branch([0, 1], "terminated")]]
    assert compute(rollout, 2, supervision="process").informative.tolist() == [True]
    outcome = compute(rollout, 2, supervision="outcome")
    assert outcome.informative.tolist() == [False]
    assert (outcome.advantages == 0).all()


@pytest.mark.parametrize("first", [1.0, 1e6])
def test_outcomes_tell_branches_apart_by_the_whole_of_what_they_earned(first: float) -> None:
    """A half counts beside rewards of 1, and is rounding beside those of a million, however small those after."""
    rollout = [
        [branch([first, 0.0], "terminated"), branch([first, 0.5], "terminated")],
        [branch([first, 0.0], "terminated"), branch([2 * first, 0.0], "terminated")],
    ]
    assert compute(rollout, 2, supervision="process").informative.tolist() == [True, True]
    assert compute(rollout, 2, supervision="outcome").informative.tolist() == [first == 1.0, True]


@pytest.mark.parametrize("extra", [0.0, 1e-4])
def test_the_rounding_of_rewards_in_another_order_tells_no_branches_apart(extra: float) -> None:
    rng, rewards = np.random.default_rng(0), np.full((16, 50, 2), -0.1, np.float32)
    for group, branch in np.ndindex(50, 2):
        rewards[rng.integers(16), group, branch] += np.float32(0.5)
    rewards[0, :, 0] += np.float32(extra)
    everyone, nothing = np.ones(rewards.shape, np.bool_), np.zeros_like(rewards)
    groups = compute_group_advantages(
        BranchSteps(rewards, everyone, ~everyone, ~everyone),
        nothing,
        nothing,
        gamma=1.0,
        gae_lambda=1.0,
        baseline="group",
        supervision="outcome",
        bootstrap_value=False,
        advantage_scaling="group",
        correlations=CORRELATIONS[:1],
    )
    assert len(set(rewards.sum(axis=0).flat)) > 2
    assert groups.zero_std_group_fraction == (extra == 0.0)


def test_what_lies_outside_the_members_tells_nothing_apart() -> None:
    returns = np.array([[[1.0, 1.0, 9.0, -9.0], [1.0, 2.0, 9.0, -9.0]]])
    members = np.array([[[True, True, False, False]] * 2])
    assert compute_informative(returns, abs(returns), members).tolist() == [False, True]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("baseline", "supervision"), JUDGEMENTS)
def test_a_group_without_a_live_step_stays_zero_and_finite(
    scaling: AdvantageScaling, baseline: Baseline, supervision: Supervision
) -> None:
    steps = to_steps([[branch([1], "terminated"), branch([4], "horizon")]] * 2, 2)
    steps.step_mask[:, 1] = False  # the second group is dead from the start
    steps.terminated[:, 1] = False
    steps.rewards[:, 1] = 0.0
    nothing = np.zeros((2, 2, 2))
    groups = compute_group_advantages(
        steps,
        nothing,
        nothing,
        gamma=0.99,
        gae_lambda=0.95,
        correlations=CORRELATIONS[:2],
        baseline=baseline,
        supervision=supervision,
        bootstrap_value=True,
        advantage_scaling=scaling,
    )
    assert (groups.advantages[:, 1] == 0).all()
    assert (groups.value_targets[:, 1] == 0).all()
    assert np.isfinite(groups.advantages).all()
    assert groups.informative.tolist() == [True, False]
    assert groups.zero_std_group_fraction == 0.5


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("baseline", "supervision"), JUDGEMENTS)
def test_a_rollout_without_any_live_step_is_zero(
    scaling: AdvantageScaling, baseline: Baseline, supervision: Supervision
) -> None:
    nothing, nowhere = np.zeros((2, 2, 2)), np.zeros((2, 2, 2), np.bool_)
    groups = compute_group_advantages(
        BranchSteps(nothing, nowhere, nowhere, nowhere),
        nothing,
        nothing,
        gamma=0.99,
        gae_lambda=0.95,
        correlations=CORRELATIONS[:2],
        baseline=baseline,
        supervision=supervision,
        bootstrap_value=True,
        advantage_scaling=scaling,
    )
    assert (groups.advantages == 0).all()
    assert groups.zero_std_group_fraction == 1.0


def test_a_group_that_dies_on_its_first_step_is_judged_on_that_step_alone() -> None:
    rollout = [[branch([1], "terminated"), branch([4], "terminated")]]
    advantages = compute(rollout, 3, advantage_scaling="group").advantages
    assert_close(advantages[:, 0, 0], [-1.5 / 1.5001, 0, 0])
    assert_close(advantages[:, 0, 1], [1.5 / 1.5001, 0, 0])


def test_numbers_outside_the_step_mask_change_nothing() -> None:
    rollout = draw_rollout(random.Random(7), horizon=5, n_groups=4, group_size=3)
    steps = to_steps(rollout, 5)
    values, next_values = pad(rollout, 5, "values"), pad(rollout, 5, "next_values")
    noise = np.where(steps.step_mask, 0.0, 1e3)
    for baseline, supervision in JUDGEMENTS:
        clean, noisy = (
            compute_group_advantages(
                steps,
                values + extra,
                next_values + extra,
                gamma=0.9,
                gae_lambda=0.8,
                correlations=CORRELATIONS,
                baseline=baseline,
                supervision=supervision,
                bootstrap_value=True,
                advantage_scaling="batch",
            )
            for extra in (0.0, noise)
        )
        assert np.array_equal(clean.advantages, noisy.advantages)
        assert np.array_equal(clean.value_targets, noisy.value_targets)


@pytest.mark.parametrize("scaling", ["group", "batch"])
def test_float_noise_in_a_near_constant_group_is_not_blown_up(scaling: AdvantageScaling) -> None:
    rollout = [[branch([1.0], "horizon"), branch([1.0 + 1e-7], "horizon")]]
    advantages = compute(rollout, 1, advantage_scaling=scaling).advantages
    assert np.abs(advantages).max() < 1e-3


def test_a_value_baseline_that_is_wrong_by_a_constant_does_not_move_the_policy() -> None:
    rollout = [[Branch([1], "terminated", values=[100.0], next_values=[0.0]) for _ in range(4)]]
    advantages = compute(rollout, 1, baseline="value", bootstrap_value=True, advantage_scaling="batch").advantages
    assert np.abs(advantages).max() < 1e-3


@pytest.mark.parametrize("scaling", SCALINGS)
def test_pairing_every_action_with_the_one_next_state_that_followed_tells_nothing_apart(
    scaling: AdvantageScaling,
) -> None:
    # The plain port of GRPO to a task: no branches, only the rewards of all actions for one observed step.
    env = gym.make("CartPole-v1")
    state, _ = env.reset(seed=0)
    observed = torch.as_tensor(env.step(0)[0]).repeat(2, 1)
    rewards = optimized_cartpole(torch.as_tensor(state).repeat(2, 1), torch.tensor([[0.0], [1.0]]), observed)
    rollout = [[Branch([reward], "horizon", values=[0], next_values=[0]) for reward in rewards.flatten().tolist()]]
    groups = compute(rollout, 1, advantage_scaling=scaling)
    assert (groups.advantages == 0).all()
    assert groups.zero_std_group_fraction == 1.0
