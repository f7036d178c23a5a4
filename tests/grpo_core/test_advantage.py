"""Group-relative advantages against hand arithmetic and against plain loops over ragged branches."""

import itertools
import math
import random
from typing import Literal, NamedTuple

import gymnasium as gym
import pytest
import torch

from grpo_core.advantage import (
    AdvantageScaling,
    Baseline,
    BranchSteps,
    compute_approx_kl,
    compute_clipped_surrogate,
    compute_gae,
    compute_group_advantages,
    compute_group_deviation,
    compute_group_members,
    compute_returns,
    scale_advantages,
)
from grpo_core.rewards import optimized_cartpole

Ending = Literal["terminated", "truncated", "horizon"]
EPSILON = 1e-4


class Branch(NamedTuple):
    rewards: list[float]
    ending: Ending
    values: list[float]
    next_values: list[float]


Rollout = list[list[Branch]]  # groups of branches


def branch(rewards: list[float], ending: Ending) -> Branch:
    nothing = [0.0] * len(rewards)
    return Branch(rewards, ending, nothing, nothing)


def pad(rollout: Rollout, horizon: int, field: Literal["rewards", "values", "next_values"]) -> torch.Tensor:
    rows = [[getattr(b, field) + [0.0] * (horizon - len(b.rewards)) for b in group] for group in rollout]
    return torch.tensor(rows, dtype=torch.float64).permute(2, 0, 1).contiguous()


def to_steps(rollout: Rollout, horizon: int) -> BranchSteps:
    step_mask = torch.zeros(horizon, len(rollout), len(rollout[0]), dtype=torch.bool)
    terminated, truncated = step_mask.clone(), step_mask.clone()
    for a, group in enumerate(rollout):
        for b, one in enumerate(group):
            last = len(one.rewards) - 1
            step_mask[: last + 1, a, b] = True
            if one.ending == "terminated":
                terminated[last, a, b] = True
            elif one.ending == "truncated":
                truncated[last, a, b] = True
    return BranchSteps(pad(rollout, horizon, "rewards"), step_mask, terminated, truncated)


def draw_rollout(rng: random.Random, horizon: int, n_anchors: int, group_size: int) -> Rollout:
    """Ragged branches: some terminate early, some are truncated early, some reach the horizon."""

    def draw_branch() -> Branch:
        ending: Ending = rng.choice(["terminated", "truncated", "horizon"])
        n_steps = horizon if ending == "horizon" else rng.randint(1, horizon)
        rewards, values, next_values = ([rng.uniform(-2, 2) for _ in range(n_steps)] for _ in range(3))
        return Branch(rewards, ending, values, next_values)

    return [[draw_branch() for _ in range(group_size)] for _ in range(n_anchors)]


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


def loop_judge(one: Branch, gamma: float, gae_lambda: float, baseline: Baseline, bootstrap_value: bool) -> list[float]:
    """What a baseline compares over the group: GAE, the plain return, or the lambda-return."""
    gae = loop_gae(one, gamma, gae_lambda)
    if baseline != "group":
        return gae
    if not bootstrap_value:
        return loop_returns(one, gamma)
    return [g + v for g, v in zip(gae, one.values, strict=True)]


def loop_members(group: list[Branch], judged: list[list[float]], t: int, baseline: Baseline) -> list[float]:
    members = []
    for one, numbers in zip(group, judged, strict=True):
        if t < len(numbers):
            members.append(numbers[t])
        elif baseline == "group" and one.ending == "terminated":
            members.append(0.0)
    return members


def loop_advantages(
    rollout: Rollout,
    gamma: float,
    gae_lambda: float,
    baseline: Baseline,
    bootstrap_value: bool,
    scaling: AdvantageScaling,
) -> dict[tuple[int, int, int], float]:
    """Advantage of every live step, by (step, anchor, branch), one number at a time."""
    advantages: dict[tuple[int, int, int], float] = {}
    for a, group in enumerate(rollout):
        judged = [loop_judge(one, gamma, gae_lambda, baseline, bootstrap_value) for one in group]
        for b, numbers in enumerate(judged):
            for t, number in enumerate(numbers):
                members = loop_members(group, judged, t, baseline)
                centre = 0.0 if baseline == "value" else mean(members)
                size = spread(members) + EPSILON
                advantages[t, a, b] = (number - centre) / (size if scaling == "group" else 1.0)
    if scaling == "batch":
        if baseline == "value":
            centre = mean(list(advantages.values()))
            advantages = {at: advantage - centre for at, advantage in advantages.items()}
        size = spread(list(advantages.values())) + EPSILON
        advantages = {at: advantage / size for at, advantage in advantages.items()}
    return advantages


def compute(
    rollout: Rollout,
    horizon: int,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
    baseline: Baseline = "group",
    bootstrap_value: bool = False,
    scaling: AdvantageScaling = "none",
) -> tuple[torch.Tensor, torch.Tensor, float]:
    return compute_group_advantages(
        to_steps(rollout, horizon),
        pad(rollout, horizon, "values"),
        pad(rollout, horizon, "next_values"),
        gamma=gamma,
        gae_lambda=gae_lambda,
        baseline=baseline,
        bootstrap_value=bootstrap_value,
        scaling=scaling,
    )


def assert_close(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=0, atol=1e-12)


def test_returns_add_up_discounted_rewards_to_the_end_of_the_branch() -> None:
    steps = to_steps([[branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")]], 3)
    returns = compute_returns(steps, gamma=0.5)
    assert_close(returns[:, 0, 0], [1 + 1 + 1, 2 + 2, 4])
    assert_close(returns[:, 0, 1], [1.5, 1, 0])


@pytest.mark.parametrize("seed", range(5))
def test_returns_match_a_plain_loop_on_ragged_branches(seed: int) -> None:
    rollout = draw_rollout(random.Random(seed), horizon=6, n_anchors=3, group_size=4)
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
    rollout = draw_rollout(random.Random(seed), horizon=6, n_anchors=3, group_size=4)
    gae = compute_gae(to_steps(rollout, 6), pad(rollout, 6, "values"), pad(rollout, 6, "next_values"), 0.95, 0.8)
    for (a, group), b in itertools.product(enumerate(rollout), range(4)):
        expected = loop_gae(group[b], 0.95, 0.8)
        assert_close(gae[:, a, b], expected + [0.0] * (6 - len(expected)))


def test_deviation_is_measured_from_the_mean_of_the_members_only() -> None:
    quantity = torch.tensor([[[1.0, 3.0, 100.0], [2.0, 2.0, 2.0]]], dtype=torch.float64)
    members = torch.tensor([[[True, True, False], [True, True, True]]])
    deviation = compute_group_deviation(quantity, members)
    assert_close(deviation[0, 0, :2], [-1, 1])
    assert_close(deviation[0, 1], [0, 0, 0])


@pytest.mark.parametrize("group_size", [2, 3, 5, 7])
def test_deviation_of_equal_members_is_exactly_zero_in_float32(group_size: int) -> None:
    generator = torch.Generator().manual_seed(group_size)
    quantity = (torch.rand(50, 4, 1, generator=generator) * 1e3).expand(50, 4, group_size)
    assert (compute_group_deviation(quantity, torch.ones_like(quantity, dtype=torch.bool)) == 0).all()


def test_members_are_the_living_and_those_that_terminated_before() -> None:
    endings = [branch([1], "terminated"), branch([1], "truncated"), branch([1, 1, 1], "horizon")]
    members = compute_group_members(to_steps([endings], 3))
    assert members[:, 0].tolist() == [[True, True, True], [True, False, True], [True, False, True]]


def test_a_terminated_branch_counts_as_return_zero_in_its_groups_mean() -> None:
    rollout = [[branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")]]
    advantages, _, _ = compute(rollout, 3, gamma=0.5)
    # returns 3, 4, 4 and 1.5, 1, (0): means 2.25, 2.5, 2
    assert_close(advantages[:, 0, 0], [0.75, 1.5, 2])
    assert_close(advantages[:, 0, 1], [-0.75, -1.5, 0])


def test_a_truncated_branch_is_left_out_of_its_groups_mean() -> None:
    rollout = [[branch([1, 2, 4], "horizon"), branch([1, 1], "truncated")]]
    advantages, _, _ = compute(rollout, 3, gamma=0.5)
    assert_close(advantages[:, 0, 0], [0.75, 1.5, 0])
    assert_close(advantages[:, 0, 1], [-0.75, -1.5, 0])


def test_group_baseline_with_bootstrap_adds_the_value_of_where_the_horizon_cut() -> None:
    rollout = [
        [
            Branch([1], "horizon", values=[7], next_values=[10]),
            Branch([3], "terminated", values=[7], next_values=[10]),
        ]
    ]
    advantages, returns, _ = compute(rollout, 1, gamma=0.5, bootstrap_value=True)
    assert_close(returns[0, 0], [1 + 5, 3])
    assert_close(advantages[0, 0], [1.5, -1.5])


def test_residual_baseline_subtracts_the_mean_gae_of_the_living() -> None:
    rollout = [
        [
            Branch([1, 2], "horizon", values=[0.5, 1], next_values=[1, 3]),
            Branch([2], "terminated", values=[0.5], next_values=[9]),
        ]
    ]
    advantages, _, _ = compute(rollout, 2, gamma=0.5, gae_lambda=0.5, baseline="residual", bootstrap_value=True)
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
    advantages, returns, _ = compute(rollout, 2, gamma=0.5, gae_lambda=0.5, baseline="value", bootstrap_value=True)
    assert_close(advantages[:, 0, 0], [1.625, 2.5])
    assert_close(advantages[:, 0, 1], [1.5, 0])
    assert_close(returns[:, 0, 0], [2.125, 3.5])
    assert_close(returns[:, 0, 1], [2, 0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
@pytest.mark.parametrize(
    ("baseline", "bootstrap_value"), [("group", False), ("group", True), ("residual", True), ("value", True)]
)
@pytest.mark.parametrize("group_size", [2, 4])
def test_advantages_match_a_plain_loop_on_ragged_branches(
    seed: int, scaling: AdvantageScaling, baseline: Baseline, bootstrap_value: bool, group_size: int
) -> None:
    rollout = draw_rollout(random.Random(seed), horizon=5, n_anchors=6, group_size=group_size)
    advantages, returns, _ = compute(
        rollout,
        5,
        gamma=0.9,
        gae_lambda=0.8,
        baseline=baseline,
        bootstrap_value=bootstrap_value,
        scaling=scaling,
    )
    expected = loop_advantages(rollout, 0.9, 0.8, baseline, bootstrap_value, scaling)
    for at in itertools.product(range(5), range(6), range(group_size)):
        assert advantages[at].item() == pytest.approx(expected.get(at, 0.0), abs=1e-9), at
    for a, b in itertools.product(range(6), range(group_size)):
        one = rollout[a][b]
        targets = [g + v for g, v in zip(loop_gae(one, 0.9, 0.8), one.values, strict=True)]
        assert_close(returns[:, a, b], targets + [0.0] * (5 - len(targets)))


def test_group_scaling_divides_by_the_spread_of_all_members_the_terminated_too() -> None:
    rollout = [[branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")]]
    advantages, _, _ = compute(rollout, 3, gamma=0.5, scaling="group")
    # Deviations are +-0.75, +-1.5 and +-2, so the population's spread is 0.75, 1.5 and 2.
    assert_close(advantages[:, 0, 0], [0.75 / 0.7501, 1.5 / 1.5001, 2 / 2.0001])


def test_batch_scaling_divides_by_one_spread_over_the_live_steps() -> None:
    rollout = [[branch([1, 2, 4], "horizon"), branch([1, 1], "terminated")]]
    advantages, _, _ = compute(rollout, 3, gamma=0.5, scaling="batch")
    live = [0.75, 1.5, 2.0, -0.75, -1.5]
    centre = sum(live) / 5
    size = math.sqrt(sum((x - centre) ** 2 for x in live) / 5) + EPSILON
    assert_close(advantages[:, 0, 0], [0.75 / size, 1.5 / size, 2 / size])


def test_no_scaling_returns_advantages_as_they_are() -> None:
    advantages = torch.tensor([[[3.0, -3.0]]])
    everyone = torch.ones(1, 1, 2, dtype=torch.bool)
    assert scale_advantages(advantages, everyone, everyone, "none").tolist() == [[[3.0, -3.0]]]


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_a_group_of_equal_rewards_has_exactly_zero_advantage_and_is_counted(scaling: AdvantageScaling) -> None:
    equal = [branch([0.1, 0.3, 0.7], "horizon")] * 3
    unequal = [branch([1.0], "terminated"), branch([2.0], "terminated"), branch([3.0], "terminated")]
    steps = to_steps([equal, unequal], 3)
    nothing = torch.zeros(3, 2, 3)
    advantages, _, zero_std_group_fraction = compute_group_advantages(
        steps._replace(rewards=steps.rewards.float()),  # as the rollout stores them
        nothing,
        nothing,
        gamma=0.99,
        gae_lambda=1.0,
        baseline="group",
        bootstrap_value=False,
        scaling=scaling,
    )
    assert (advantages[:, 0] == 0).all()
    assert (advantages[0, 1] != 0).sum() == 2
    assert zero_std_group_fraction == 0.5


def test_groups_whose_branches_differ_are_not_counted_as_silent() -> None:
    _, _, zero_std_group_fraction = compute([[branch([1], "horizon"), branch([2], "horizon")]], 1)
    assert zero_std_group_fraction == 0.0


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["group", "residual", "value"])
def test_a_group_without_a_live_step_stays_zero_and_finite(scaling: AdvantageScaling, baseline: Baseline) -> None:
    steps = to_steps([[branch([1], "terminated"), branch([4], "horizon")]] * 2, 2)
    steps.step_mask[:, 1] = False  # the second group is dead from the start
    steps.rewards[:, 1] = 0.0
    nothing = torch.zeros(2, 2, 2)
    advantages, returns, zero_std_group_fraction = compute_group_advantages(
        steps,
        nothing,
        nothing,
        gamma=0.99,
        gae_lambda=0.95,
        baseline=baseline,
        bootstrap_value=True,
        scaling=scaling,
    )
    assert (advantages[:, 1] == 0).all()
    assert (returns[:, 1] == 0).all()
    assert torch.isfinite(advantages).all()
    assert zero_std_group_fraction == 0.5


def test_a_group_that_dies_on_its_first_step_is_judged_on_that_step_alone() -> None:
    rollout = [[branch([1], "terminated"), branch([4], "terminated")]]
    advantages, _, _ = compute(rollout, 3, scaling="group")
    assert_close(advantages[:, 0, 0], [-1.5 / 1.5001, 0, 0])
    assert_close(advantages[:, 0, 1], [1.5 / 1.5001, 0, 0])


def test_numbers_outside_the_step_mask_change_nothing() -> None:
    rollout = draw_rollout(random.Random(7), horizon=5, n_anchors=4, group_size=3)
    steps = to_steps(rollout, 5)
    values, next_values = pad(rollout, 5, "values"), pad(rollout, 5, "next_values")
    noise = torch.where(steps.step_mask, 0.0, 1e3)
    baselines: list[Baseline] = ["group", "residual", "value"]
    for baseline in baselines:
        clean, noisy = (
            compute_group_advantages(
                steps,
                values + extra,
                next_values + extra,
                gamma=0.9,
                gae_lambda=0.8,
                baseline=baseline,
                bootstrap_value=True,
                scaling="batch",
            )
            for extra in (torch.zeros_like(noise), noise)
        )
        assert torch.equal(clean.advantages, noisy.advantages)
        assert torch.equal(clean.returns, noisy.returns)


@pytest.mark.parametrize("scaling", ["group", "batch"])
def test_float_noise_in_a_near_constant_group_is_not_blown_up(scaling: AdvantageScaling) -> None:
    rollout = [[branch([1.0], "horizon"), branch([1.0 + 1e-7], "horizon")]]
    advantages, _, _ = compute(rollout, 1, scaling=scaling)
    assert advantages.abs().max() < 1e-3


def test_clipped_surrogate_has_its_values_on_both_sides_of_the_interval() -> None:
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    # The smaller of each pair: 1.2, 0.5, -1.5, -0.8; the loss is minus their mean.
    assert compute_clipped_surrogate(ratio, advantages, 0.2).item() == pytest.approx(0.15)


def test_clipped_surrogate_at_ratio_one_is_minus_the_mean_advantage() -> None:
    assert compute_clipped_surrogate(torch.ones(3), torch.tensor([1.0, 2.0, 6.0]), 0.2).item() == pytest.approx(-3)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_descending_the_surrogate_moves_the_probability_with_the_advantage(advantage: float) -> None:
    logits = torch.zeros(3, requires_grad=True)
    old_log_prob = torch.log_softmax(logits, 0)[1].detach()
    ratio = (torch.log_softmax(logits, 0)[1] - old_log_prob).exp().reshape(1)
    (gradient,) = torch.autograd.grad(compute_clipped_surrogate(ratio, torch.tensor([advantage]), 0.2), logits)
    stepped = torch.softmax(logits.detach() - 0.1 * gradient, 0)
    assert (stepped[1].item() - 1 / 3) * advantage > 0.01


@pytest.mark.parametrize(("ratio", "advantage", "is_flat"), [(1.5, 1, True), (0.5, -1, True), (0.5, 1, False)])
def test_the_surrogate_pulls_no_further_once_the_ratio_left_the_interval(
    ratio: float, advantage: float, is_flat: bool
) -> None:
    ratios = torch.tensor([ratio], requires_grad=True)
    (gradient,) = torch.autograd.grad(compute_clipped_surrogate(ratios, torch.tensor([float(advantage)]), 0.2), ratios)
    assert (gradient.item() == 0) == is_flat


def test_approx_kl_has_its_hand_value() -> None:
    # exp(x) - 1 - x is 0 at x = 0 and 2 - 1 - ln 2 at x = ln 2.
    log_ratio = torch.tensor([0.0, math.log(2)])
    assert compute_approx_kl(log_ratio).item() == pytest.approx((1 - math.log(2)) / 2)


def test_approx_kl_of_every_outcome_in_proportion_is_the_exact_kl() -> None:
    old, new = [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]
    samples = [0] * 5 + [1] * 3 + [2] * 2  # ten draws of the old policy, exactly in proportion
    log_ratio = torch.tensor([math.log(new[i] / old[i]) for i in samples])
    exact = sum(p * math.log(p / q) for p, q in zip(old, new, strict=True))
    assert compute_approx_kl(log_ratio).item() == pytest.approx(exact, abs=1e-6)


def test_approx_kl_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        assert compute_approx_kl(torch.randn(8, generator=generator, dtype=torch.float64)) >= 0


def test_a_value_baseline_that_is_wrong_by_a_constant_does_not_move_the_policy() -> None:
    rollout = [[Branch([1], "terminated", values=[100.0], next_values=[0.0]) for _ in range(4)]]
    advantages, _, _ = compute(rollout, 1, baseline="value", bootstrap_value=True, scaling="batch")
    assert advantages.abs().max() < 1e-3


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_pairing_every_action_with_the_one_next_state_that_followed_tells_nothing_apart(
    scaling: AdvantageScaling,
) -> None:
    # The plain port of GRPO to a task: no branches, only the rewards of all actions for one observed step.
    env = gym.make("CartPole-v1")
    state, _ = env.reset(seed=0)
    observed = torch.as_tensor(env.step(0)[0]).repeat(2, 1)
    rewards = optimized_cartpole(torch.as_tensor(state).repeat(2, 1), torch.tensor([[0.0], [1.0]]), observed)
    rollout = [[Branch([reward], "horizon", values=[0], next_values=[0]) for reward in rewards.flatten().tolist()]]
    advantages, _, zero_std_group_fraction = compute(rollout, 1, scaling=scaling)
    assert (advantages == 0).all()
    assert zero_std_group_fraction == 1.0
