"""The terms of the loss, step by step: surrogates, divergences, and how much every step counts.

The weights are arrays over a whole rollout, ``(horizon, n_groups, group_size)``. All other functions take tensors of
the steps of a minibatch, ``(batch_size,)``. The terms of the loss have one number per step: the loss to minimise is the
mean over the minibatch of such a number times the step's weight.
"""

import numpy as np
import numpy.typing as npt
import torch

from grpo_core.options.choices import LossNormalization

# How many times ``target_kl`` a minibatch's approximate KL may be before updates stop, as in Stable-Baselines3's PPO.
TARGET_KL_TOLERANCE = 1.5
# Smallest divisor of a sum of weights, which might be 0.
TINY = float(np.finfo(np.float32).tiny)


def compute_clipped_surrogate(
    ratio: torch.Tensor, advantages: torch.Tensor, clip_range: float, clip_range_high: float
) -> torch.Tensor:
    """Compute the clipped surrogate loss (arXiv 1707.06347, equation 7, with the sign turned).

    :param ratio: New over old probability of the taken action, shape ``(batch_size,)``.
    :param advantages: Shape ``(batch_size,)``.
    :param clip_range: How far below 1 the ratio may fall before it stops counting, in [0, 1].
    :param clip_range_high: How far above 1 it may rise, at least 0. More than below leaves rare actions room to become
        likely (clip-higher of DAPO, arXiv 2503.14476, section 3.1).
    :return: Shape ``(batch_size,)``.
    """
    clipped_ratio = ratio.clamp(1.0 - clip_range, 1.0 + clip_range_high)
    return -torch.min(ratio * advantages, clipped_ratio * advantages)


def compute_cispo_loss(
    log_prob: torch.Tensor, ratio: torch.Tensor, advantages: torch.Tensor, clip_range_high: float
) -> torch.Tensor:
    """Compute the loss of CISPO: a policy gradient with a bounded importance weight (MiniMax-M1, arXiv 2506.13585).

    Where the clipped surrogate drops the gradient of a step that left the interval, this one only bounds its weight.

    :param log_prob: Log-probability of the taken action under the policy being trained, shape ``(batch_size,)``.
    :param ratio: New over old probability of the taken action, same shape; no gradient flows through it.
    :param advantages: Same shape.
    :param clip_range_high: The weight is at most ``1 + clip_range_high``; at least 0. There is no lower bound.
    :return: Shape ``(batch_size,)``.
    """
    weight = ratio.detach().clamp(max=1.0 + clip_range_high)
    return -weight * advantages * log_prob


def compute_sequence_ratio(log_ratio: torch.Tensor, branch_index: torch.Tensor, n_branches: int) -> torch.Tensor:
    """Give every step the ratio of its whole branch: ``exp`` of the branch's mean log-ratio.

    This is GSPO's ratio in its token form (arXiv 2507.18071, section 4.3): the value is the branch's, the gradient
    runs through the step's own log-probability. Over a branch whose steps share one advantage, the mean gradient is
    that of GSPO.

    :param log_ratio: Log of new over old probability of the taken action, shape ``(batch_size,)``. It must hold the
        branches whole: of a part, the mean is another one.
    :param branch_index: The branch of each step, integers in ``[0, n_branches)``, same shape.
    :param n_branches: Number of branches in the minibatch.
    :return: Shape ``(batch_size,)``.
    """
    constant = log_ratio.detach()
    sums = constant.new_zeros(n_branches).index_add(0, branch_index, constant)
    n_steps = torch.bincount(branch_index, minlength=n_branches)
    return (sums[branch_index] / n_steps[branch_index] + (log_ratio - constant)).exp()


def compute_step_weights(step_mask: npt.NDArray[np.bool_], normalization: LossNormalization) -> npt.NDArray[np.float32]:
    """Compute the weight of every step, so that ``(weights * losses)[step_mask].mean()`` is the loss.

    - ``"step"``: every step alike, so longer branches count for more (DAPO, arXiv 2503.14476, section 3.3).
    - ``"branch"``: every branch that took a step alike, its steps sharing (DeepSeekMath, arXiv 2402.03300,
      equation 3).
    - ``"horizon"``: the sum over the steps, divided by the constant ``n_branches * horizon``, so that a
      step's weight does not depend on the length of any branch (Dr. GRPO, arXiv 2503.20783, section 3.2).

    :param step_mask: True where a branch took a step, shape ``(horizon, n_groups, group_size)``.
    :return: Same shape, 0 outside the step mask.
    """
    weights = step_mask.astype(np.float32)
    if normalization == "step":
        return weights
    n_live = int(np.count_nonzero(step_mask))
    if normalization == "horizon":
        return weights * (n_live / step_mask.size)
    n_live_branches = int(np.count_nonzero(step_mask.any(axis=0)))
    lengths: npt.NDArray[np.float32] = np.maximum(weights.sum(axis=0), 1.0)
    return weights * (n_live / max(n_live_branches, 1)) / lengths


def compute_filter_weights(
    informative: npt.NDArray[np.bool_], step_mask: npt.NDArray[np.bool_], normalization: LossNormalization
) -> npt.NDArray[np.float32]:
    """Compute the factor of every step's weight that makes the loss that of the informative groups alone.

    :param informative: Which groups are kept, shape ``(n_groups,)``.
    :param step_mask: True where a branch took a step, shape ``(horizon, n_groups, group_size)``.
    :return: Same shape as ``step_mask``, 0 in the other groups.
    """
    kept = np.broadcast_to(informative[:, None], step_mask.shape)
    # Units of equal weight: steps, branches (a group has fewer where actions are illegal), or room for steps.
    if normalization == "horizon":
        kept_share = float(informative.mean())
    else:
        counts = step_mask if normalization == "step" else np.logical_or.reduce(step_mask, axis=0, keepdims=True)
        kept_share = float(kept[: len(counts)][counts].mean())
    return kept.astype(np.float32) / (kept_share or 1.0)  # without an informative group, all weights are 0


def compute_weighted_mean(numbers: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Average numbers by the weights of their steps, whatever these add up to, unlike the loss; 0 if all weights are 0.

    :param numbers: Shape ``(batch_size,)``; flags count as 0 and 1.
    :param weights: Same shape, at least 0.
    """
    return (weights * numbers).mean() / weights.mean().clamp(min=TINY)


def compute_kl(log_ratio: torch.Tensor) -> torch.Tensor:
    """Estimate KL(p || q) at each step from actions drawn from p: ``exp(x) - 1 - x`` with ``x = log(q / p)``.

    Its mean is unbiased, and no step's number is negative (estimator k3 of http://joschu.net/blog/kl-approx.html).

    - How far an update went: ``log_prob - old_log_prob``, since the old policy drew the actions.
    - The penalty for leaving a reference policy (DeepSeekMath, arXiv 2402.03300, equation 4):
      ``ref_log_prob - log_prob``. Its gradient is in expectation that of KL(reference || policy).

    :param log_ratio: Log of q over p at the taken action, shape ``(batch_size,)``.
    :return: Shape ``(batch_size,)``.
    """
    # exp(x) - 1 would lose all digits of the small ratios that updates have.
    return torch.expm1(log_ratio) - log_ratio


def measure_move(
    log_ratio: torch.Tensor, ratio: torch.Tensor, weights: torch.Tensor, lowest: float, highest: float
) -> dict[str, torch.Tensor]:
    """Measure how far the policy has moved from the one that acted; no gradient flows through it.

    Steps are weighed as in the loss, since enumerated first actions were not drawn from the old policy; but those of
    groups that are left out of it count, too, for they move with the others.

    :param log_ratio: Log of new over old probability of each step's action, shape ``(batch_size,)``.
    :param ratio: What the loss bounds, of a step or of its whole branch, same shape.
    :param weights: How much each step counts, without the filter, same shape, at least 0.
    :param lowest: Ratios below this are outside the trust interval.
    :param highest: Ratios above this are, too.
    :return: ``approx_kl``, and ``clip_fraction``, the share of steps outside, in [0, 1]; one number each.
    """
    with torch.no_grad():
        is_outside = (ratio < lowest) | (ratio > highest)
        return {
            "approx_kl": compute_weighted_mean(compute_kl(log_ratio), weights),
            "clip_fraction": compute_weighted_mean(is_outside, weights),
        }
