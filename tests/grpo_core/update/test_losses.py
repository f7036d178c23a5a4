"""Losses, divergences and step weights against hand arithmetic, plain loops and the gradients they stand for."""

import itertools
import math
import random
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from grpo_core.options.choices import LossNormalization
from grpo_core.update.losses import (
    compute_cispo_loss,
    compute_clipped_surrogate,
    compute_filter_weights,
    compute_kl,
    compute_sequence_ratio,
    compute_step_weights,
    compute_weighted_mean,
    measure_move,
)

N_ACTIONS = 3


def assert_close(actual: torch.Tensor | npt.NDArray[np.float32], expected: list[float]) -> None:
    actual = torch.as_tensor(actual)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=1e-6, atol=1e-6)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_weighted_mean_is_one_whatever_the_weights_add_up_to() -> None:
    numbers = torch.tensor([1.0, 5.0, 3.0])
    for weights in ([1.0, 2.0, 1.0], [0.1, 0.2, 0.1]):
        assert float(compute_weighted_mean(numbers, torch.tensor(weights))) == pytest.approx(3.5)  # (1 + 10 + 3) / 4
    assert float(compute_weighted_mean(numbers > 2.0, torch.tensor([1.0, 2.0, 1.0]))) == 0.75
    assert float(compute_weighted_mean(numbers, torch.zeros(3))) == 0.0


def get_log_prob(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, dim=-1).gather(-1, actions[:, None])[:, 0]


def get_gradient(of: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(of, by)
    return gradient


def to_mask(lengths: list[list[int]], horizon: int) -> npt.NDArray[np.bool_]:
    """Branches of given lengths, by group."""
    return np.array([[[t < length for length in group] for group in lengths] for t in range(horizon)])


def test_clipped_surrogate_has_its_values_on_both_sides_of_the_interval() -> None:
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert_close(compute_clipped_surrogate(ratio, advantages, 0.2, 0.2), [-1.2, -0.5, 1.5, 0.8])


def test_clip_range_high_moves_the_upper_bound_alone() -> None:
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert_close(compute_clipped_surrogate(ratio, advantages, 0.2, 0.4), [-1.4, -0.5, 1.5, 0.8])
    assert_close(compute_clipped_surrogate(ratio, advantages, 0.2, 0.0), [-1.0, -0.5, 1.5, 0.8])


def test_clipped_surrogate_at_ratio_one_is_minus_the_advantage() -> None:
    assert_close(compute_clipped_surrogate(torch.ones(3), torch.tensor([1.0, -2.0, 6.0]), 0.2, 0.2), [-1, 2, -6])


@pytest.mark.parametrize(
    ("ratio", "advantage", "is_flat"),
    [(1.5, 1, True), (0.5, -1, True), (0.5, 1, False), (1.5, -1, False), (1.3, 1, False), (0.75, -1, True)],
)
def test_the_surrogate_pulls_no_further_once_the_ratio_left_the_interval(
    ratio: float, advantage: float, is_flat: bool
) -> None:
    ratios = torch.tensor([ratio], requires_grad=True)
    losses = compute_clipped_surrogate(ratios, torch.tensor([float(advantage)]), 0.2, 0.4)
    assert (get_gradient(losses.sum(), ratios).item() == 0) == is_flat


def test_cispo_bounds_the_weight_from_above_only() -> None:
    log_prob = torch.tensor([-1.0, -2.0, -3.0, -1.0])
    ratio = torch.tensor([1.0, 5.0, 0.01, 5.0])
    advantages = torch.tensor([1.0, 1.0, 2.0, -1.0])
    # -weight * advantage * log_prob with weights 1, 1.5, 0.01, 1.5
    assert_close(compute_cispo_loss(log_prob, ratio, advantages, 0.5), [1, 3, 0.06, -1.5])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(("log_ratio", "weight"), [(0.0, 1.0), (math.log(3), 1.5), (math.log(0.1), 0.1)])
def test_cispo_keeps_the_gradient_of_steps_that_left_the_interval(
    log_ratio: float, weight: float, advantage: float
) -> None:
    log_prob = torch.tensor([-1.0], requires_grad=True)
    ratio = (log_prob - (-1.0 - log_ratio)).exp()
    losses = compute_cispo_loss(log_prob, ratio, torch.tensor([advantage]), 0.5)
    assert get_gradient(losses.sum(), log_prob).item() == pytest.approx(-weight * advantage)


def compute_losses_at_ratio_one(log_prob: torch.Tensor, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
    log_ratio = log_prob - log_prob.detach()
    one_branch = torch.zeros(len(log_prob), dtype=torch.long)
    sequence_ratio = compute_sequence_ratio(log_ratio, one_branch, 1)
    return {
        "clipped": compute_clipped_surrogate(log_ratio.exp(), advantages, 0.2, 0.2),
        "clipped higher": compute_clipped_surrogate(log_ratio.exp(), advantages, 0.2, 0.28),
        "cispo": compute_cispo_loss(log_prob, log_ratio.exp(), advantages, 0.2),
        "sequence": compute_clipped_surrogate(sequence_ratio, advantages, 0.2, 0.2),
    }


@pytest.mark.parametrize("name", ["clipped", "clipped higher", "cispo", "sequence"])
def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient(name: str) -> None:
    logits = draw(0, 8, N_ACTIONS).requires_grad_()
    actions, advantages = torch.arange(8) % N_ACTIONS, draw(1, 8)
    loss = compute_losses_at_ratio_one(get_log_prob(logits, actions), advantages)[name].mean()
    gradient = get_gradient(loss, logits)
    probabilities = torch.softmax(logits.detach(), dim=-1)
    for i, k in itertools.product(range(8), range(N_ACTIONS)):
        score = float(k == actions[i]) - probabilities[i, k].item()  # of log_softmax at the taken action
        assert gradient[i, k].item() == pytest.approx(-advantages[i].item() * score / 8, abs=1e-12), (i, k)


@pytest.mark.parametrize("name", ["clipped", "clipped higher", "cispo", "sequence"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_descending_a_policy_loss_moves_the_probability_with_the_advantage(name: str, advantage: float) -> None:
    logits = torch.zeros(1, N_ACTIONS, requires_grad=True)
    log_prob = get_log_prob(logits, torch.tensor([1]))
    loss = compute_losses_at_ratio_one(log_prob, torch.tensor([advantage]))[name].mean()
    stepped = torch.softmax(logits.detach() - 0.1 * get_gradient(loss, logits), dim=-1)
    assert (stepped[0, 1].item() - 1 / N_ACTIONS) * advantage > 0.01


def test_sequence_ratio_is_the_geometric_mean_of_the_branch() -> None:
    log_ratio = torch.tensor([2.0, 8.0, 3.0, 0.5, 1.0]).log()
    branch_index = torch.tensor([0, 0, 2, 0, 2])  # branch 1 took no step
    # (2 * 8 * 0.5)^(1/3) = 2 and (3 * 1)^(1/2)
    expected = [2, 2, math.sqrt(3), 2, math.sqrt(3)]
    assert_close(compute_sequence_ratio(log_ratio, branch_index, 3), expected)


def test_sequence_ratio_of_a_branch_of_one_step_is_the_steps_own() -> None:
    assert_close(compute_sequence_ratio(torch.tensor([3.0]).log(), torch.tensor([0]), 1), [3])


def test_sequence_ratio_before_the_first_update_is_exactly_one() -> None:
    assert (compute_sequence_ratio(torch.zeros(7), torch.arange(7) % 3, 3) == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_through_the_sequence_ratio_is_that_of_gspo(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 5) for _ in range(6)]
    branch_index = torch.tensor([b for b, length in enumerate(lengths) for _ in range(length)])
    order = torch.randperm(len(branch_index), generator=torch.Generator().manual_seed(seed))
    branch_index = branch_index[order]
    log_ratio = (0.3 * draw(seed, len(branch_index))).requires_grad_()
    outcomes = draw(seed + 100, 6)

    # GSPO as written: one clipped surrogate per branch, with the advantage of the branch, then the mean of branches.
    objective = torch.zeros((), dtype=torch.float64)
    for b in range(6):
        ratio = log_ratio[branch_index == b].mean().exp()
        objective = objective + torch.minimum(ratio * outcomes[b], ratio.clamp(0.8, 1.25) * outcomes[b]) / 6

    weights = compute_step_weights(to_mask([lengths], max(lengths)), "branch")
    step_weights = torch.from_numpy(weights[0, 0])[branch_index].double()
    losses = compute_clipped_surrogate(
        compute_sequence_ratio(log_ratio, branch_index, 6), outcomes[branch_index], 0.2, 0.25
    )
    loss = (step_weights * losses).mean()
    assert loss.item() == pytest.approx(-objective.item())
    torch.testing.assert_close(get_gradient(loss, log_ratio), -get_gradient(objective, log_ratio))


def loop_loss(losses: npt.NDArray[np.float64], lengths: list[list[int]], normalization: LossNormalization) -> float:
    horizon = len(losses)
    n_branches = sum(len(group) for group in lengths)
    sums = [
        (sum(float(losses[t, a, b]) for t in range(length)), length)
        for a, group in enumerate(lengths)
        for b, length in enumerate(group)
    ]
    if normalization == "step":
        return sum(total for total, _ in sums) / sum(length for _, length in sums)
    if normalization == "branch":
        means = [total / length for total, length in sums if length > 0]
        return sum(means) / len(means)
    return sum(total for total, _ in sums) / (n_branches * horizon)


@pytest.mark.parametrize("normalization", get_args(LossNormalization))
@pytest.mark.parametrize("seed", range(5))
def test_weighted_losses_average_to_the_loss_a_plain_loop_gives(normalization: LossNormalization, seed: int) -> None:
    rng = random.Random(seed)
    lengths = [[rng.randint(0, 6) for _ in range(4)] for _ in range(3)]  # 0: dead from the start
    mask = to_mask(lengths, 6)
    losses = draw(seed, 6, 3, 4).numpy()
    weights = compute_step_weights(mask, normalization)
    assert weights.shape == mask.shape
    assert (weights[~mask] == 0).all()
    assert (weights * losses)[mask].mean().item() == pytest.approx(loop_loss(losses, lengths, normalization), abs=1e-6)


def test_step_weights_have_their_hand_values() -> None:
    mask = to_mask([[3, 1]], 4)
    # Four live steps, two branches: branch weights are 4 / (2 * length), horizon weights 4 / (2 * 4).
    assert_close(compute_step_weights(mask, "step")[:, 0].T.flatten(), [1, 1, 1, 0, 1, 0, 0, 0])
    assert_close(compute_step_weights(mask, "branch")[:, 0].T.flatten(), [2 / 3, 2 / 3, 2 / 3, 0, 2, 0, 0, 0])
    assert_close(compute_step_weights(mask, "horizon")[:, 0].T.flatten(), [0.5, 0.5, 0.5, 0, 0.5, 0, 0, 0])


@pytest.mark.parametrize("normalization", get_args(LossNormalization))
def test_step_weights_are_float32(normalization: LossNormalization) -> None:
    assert compute_step_weights(to_mask([[3, 1], [2, 4]], 4), normalization).dtype == np.float32


@pytest.mark.parametrize("normalization", get_args(LossNormalization))
def test_branches_that_all_reach_the_horizon_count_alike(normalization: LossNormalization) -> None:
    assert (compute_step_weights(to_mask([[3, 3], [3, 3]], 3), normalization) == 1).all()


@pytest.mark.parametrize("normalization", get_args(LossNormalization))
def test_one_branch_alive_carries_the_whole_loss(normalization: LossNormalization) -> None:
    mask = to_mask([[2, 0]], 2)
    total = compute_step_weights(mask, normalization)[mask].mean().item()
    assert total == (0.5 if normalization == "horizon" else 1.0)  # half of the horizon's constant went unused


@pytest.mark.parametrize("normalization", get_args(LossNormalization))
def test_without_a_live_step_nothing_counts(normalization: LossNormalization) -> None:
    assert (compute_step_weights(to_mask([[0, 0]], 2), normalization) == 0).all()


def test_kl_has_its_hand_values() -> None:
    # exp(x) - 1 - x is 0 at x = 0 and 2 - 1 - ln 2 at x = ln 2.
    assert_close(compute_kl(torch.tensor([0.0, math.log(2)])), [0, 1 - math.log(2)])


def test_kl_of_every_outcome_in_proportion_is_the_exact_kl() -> None:
    old, new = [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]
    samples = [0] * 5 + [1] * 3 + [2] * 2  # ten draws of the old policy, exactly in proportion
    log_ratio = torch.tensor([math.log(new[i] / old[i]) for i in samples])
    exact = sum(p * math.log(p / q) for p, q in zip(old, new, strict=True))
    assert compute_kl(log_ratio).mean().item() == pytest.approx(exact, abs=1e-6)


def test_kl_is_never_negative_and_keeps_the_digits_of_small_ratios() -> None:
    assert (compute_kl(draw(0, 1000)) >= 0).all()
    # In float32, exp(1e-3) - 1 - 1e-3 = 5.0017e-7 would be off by a tenth.
    assert compute_kl(torch.tensor([1e-3])).item() == pytest.approx(0.5e-6 + 1e-9 / 6, rel=1e-3)


def test_the_penalty_pulls_the_policy_to_its_reference() -> None:
    ref_logits, logits = draw(0, 1, N_ACTIONS), draw(1, 1, N_ACTIONS).requires_grad_()
    every_action = torch.arange(N_ACTIONS)
    log_prob = get_log_prob(logits.expand(N_ACTIONS, -1), every_action)
    ref_log_prob = get_log_prob(ref_logits.expand(N_ACTIONS, -1), every_action)
    # All actions, each as often as the policy draws it.
    penalty = (log_prob.detach().exp() * compute_kl(ref_log_prob - log_prob)).sum()
    exact = (log_prob.exp() * (log_prob - ref_log_prob)).sum()
    assert penalty.item() == pytest.approx(exact.item())
    gradient = get_gradient(penalty, logits)
    pulled = torch.softmax(logits.detach(), -1) - torch.softmax(ref_logits, -1)  # gradient of KL(ref || policy)
    torch.testing.assert_close(gradient, pulled)


def test_the_penalty_is_flat_where_the_policy_is_its_reference() -> None:
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    penalty = compute_kl(log_prob.detach() - log_prob)
    assert_close(penalty.detach(), [0, 0])
    assert_close(get_gradient(penalty.sum(), log_prob), [0, 0])


@pytest.mark.parametrize("normalization", ["step", "branch", "horizon"])
def test_a_filtered_rollout_weighs_as_if_the_others_were_not_there(normalization: LossNormalization) -> None:
    step_mask = np.zeros((10, 2, 2), np.bool_)
    step_mask[:, 0], step_mask[0, 1] = True, True  # groups of 10 steps and of 1 step per branch
    weights = compute_step_weights(step_mask, normalization)
    for group in range(2):
        informative = np.array([group == 0, group == 1])
        kept = weights * compute_filter_weights(informative, step_mask, normalization)
        assert (kept[:, 1 - group] == 0).all()
        alone = compute_step_weights(step_mask[:, [group]], normalization)
        # The loss is the sum of weighted losses over the number of live steps.
        np.testing.assert_allclose(kept[:, [group]] / step_mask.sum(), alone / step_mask[:, [group]].sum(), rtol=1e-6)


def test_a_group_of_fewer_branches_weighs_less_where_branches_count_alike() -> None:
    step_mask = np.ones((4, 2, 3), np.bool_)
    step_mask[:, 1, 1:] = False  # two of its three actions were illegal
    kept = compute_step_weights(step_mask, "branch")
    kept *= compute_filter_weights(np.array([True, False]), step_mask, "branch")
    alone = compute_step_weights(step_mask[:, [0]], "branch")
    np.testing.assert_allclose(kept[:, [0]] / step_mask.sum(), alone / step_mask[:, [0]].sum(), rtol=1e-6)


def test_a_rollout_without_an_informative_group_weighs_nothing() -> None:
    step_mask = np.ones((3, 2, 2), np.bool_)
    assert (compute_filter_weights(np.zeros(2, np.bool_), step_mask, "step") == 0).all()


def test_a_move_is_measured_by_the_weights_of_the_steps_and_has_no_gradient() -> None:
    log_ratio = torch.tensor([0.0, 0.5, -0.5], requires_grad=True)
    ratio = log_ratio.exp()  # 1, 1.65 and 0.61
    moved = measure_move(log_ratio, ratio, torch.tensor([1.0, 2.0, 1.0]), 0.0, 1.2)
    assert moved["approx_kl"].item() == pytest.approx((2.0 * (math.e**0.5 - 1.5) + (math.e**-0.5 - 0.5)) / 4.0)
    assert moved["clip_fraction"].item() == pytest.approx(2.0 / 4.0), "only above"
    assert not moved["approx_kl"].requires_grad
    both = measure_move(log_ratio, ratio, torch.ones(3), 0.8, 1.2)
    assert both["clip_fraction"].item() == pytest.approx(2.0 / 3.0), "below, too"
