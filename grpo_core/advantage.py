"""Group-relative advantages and the clipped surrogate, as pure tensor functions.

Every tensor is time-major with the group last: ``(horizon, n_anchors, group_size)``. ``step_mask`` is True
where the branch took a step; everything outside it is 0. A branch is *cut* when the horizon or a time limit
ended it while the episode could have gone on, and *terminated* when the episode itself ended.
"""

from typing import Literal, NamedTuple

import torch

Baseline = Literal["group", "residual", "value"]
AdvantageScaling = Literal["group", "batch", "none"]

# Dividing by a smaller number turns the float noise of a near-constant group into advantages of thousands;
# TRL's GRPOTrainer uses the same 1e-4.
STD_EPSILON = 1e-4


class BranchSteps(NamedTuple):
    """What the branches of a rollout did. Every tensor has shape ``(horizon, n_anchors, group_size)``.

    :param rewards: Reward of each step, 0 outside ``step_mask``.
    :param step_mask: True where the branch was alive and took a step.
    :param terminated: True on the step that ended the episode.
    :param truncated: True on the step at which a time limit cut the episode.
    """

    rewards: torch.Tensor
    step_mask: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor


class GroupAdvantages(NamedTuple):
    """:param advantages: Scaled advantages, shape ``(horizon, n_anchors, group_size)``, 0 outside the step mask.
    :param returns: Regression target of the value network, same shape.
    :param zero_std_group_fraction: Share of groups, in [0, 1], whose branches all earned the same from every step on.
        Under ``baseline="group"`` without bootstrapping their advantages are exactly 0; otherwise nothing but the
        value network tells their branches apart.
    """

    advantages: torch.Tensor
    returns: torch.Tensor
    zero_std_group_fraction: float


def compute_returns(steps: BranchSteps, gamma: float) -> torch.Tensor:
    """Sum the discounted rewards from each step to the end of its branch.

    ``R[t, b] = sum_k gamma^k r[t + k, b]`` (return-to-go, the process supervision of DeepSeekMath,
    arXiv 2402.03300, section 4.1.3, with discounting).

    :param gamma: Discount factor in [0, 1].
    :return: Shape ``(horizon, n_anchors, group_size)``.
    """
    nothing = torch.zeros_like(steps.rewards)
    return compute_gae(steps, values=nothing, next_values=nothing, gamma=gamma, gae_lambda=1.0)


def compute_gae(
    steps: BranchSteps, values: torch.Tensor, next_values: torch.Tensor, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """Compute the generalised advantage estimate along each branch (arXiv 1506.02438, equations 11, 12 and 16).

    ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)``, with ``V(s_{t+1}) = 0`` where the step terminated;
    ``GAE_t = delta_t + gamma lambda GAE_{t+1}``. A cut branch ends in ``V`` of its last next state.

    :param values: ``V(s_t)``, shape ``(horizon, n_anchors, group_size)``.
    :param next_values: ``V(s_{t+1})``, same shape.
    :param gamma: Discount factor in [0, 1].
    :param gae_lambda: Trade-off in [0, 1] between one-step (0) and Monte-Carlo (1) estimates.
    :return: Shape ``(horizon, n_anchors, group_size)``, 0 outside the step mask.
    """
    bootstrapped = torch.where(steps.terminated, 0.0, next_values)
    deltas = torch.where(steps.step_mask, steps.rewards + gamma * bootstrapped - values, 0.0)
    gae = torch.empty_like(deltas)
    following = torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        # A dead step has delta 0, so nothing flows back into the last live step of a branch.
        following = deltas[t] + gamma * gae_lambda * following
        gae[t] = following
    return gae


def compute_group_deviation(quantity: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Subtract from each branch the mean of its group at the same step.

    The group is first shifted by its largest member, so that a group of equal members gives exactly 0
    and not the rounding error of a mean.

    :param quantity: Shape ``(horizon, n_anchors, group_size)``.
    :param members: Which branches the mean is taken over, bool, same shape.
    :return: Deviations, same shape; meaningless outside ``members``.
    """
    largest = quantity.masked_fill(~members, -torch.inf).amax(dim=-1, keepdim=True)
    shifted = quantity - torch.where(members.any(dim=-1, keepdim=True), largest, 0.0)
    n_members = members.sum(dim=-1, keepdim=True).clamp(min=1)
    return shifted - torch.where(members, shifted, 0.0).sum(dim=-1, keepdim=True) / n_members


def compute_group_members(steps: BranchSteps) -> torch.Tensor:
    """Tell which branches count in the mean return of their group at each step.

    A live branch counts. A branch that *terminated* earlier counts with return 0, which is its true return:
    the absorbing state earns nothing. A branch that a time limit cut earlier is left out: what it would have
    earned is unknown.

    :return: Bool, shape ``(horizon, n_anchors, group_size)``.
    """
    ended_before = steps.terminated.cumsum(dim=0).bool() & ~steps.step_mask
    return steps.step_mask | ended_before


def scale_advantages(
    advantages: torch.Tensor, step_mask: torch.Tensor, members: torch.Tensor, scaling: AdvantageScaling
) -> torch.Tensor:
    """Divide advantages by a standard deviation (the population's, over n).

    :param advantages: Unscaled, shape ``(horizon, n_anchors, group_size)``.
    :param members: The branches whose spread is measured when ``scaling`` is ``"group"``.
    :param scaling: ``"group"``: the group's own spread at that step (DeepSeekMath, arXiv 2402.03300);
        ``"batch"``: one spread for the whole rollout, which keeps the sizes of groups comparable;
        ``"none"``: leave them (Dr. GRPO, arXiv 2503.20783).
    :return: Shape ``(horizon, n_anchors, group_size)``.
    """
    if scaling == "none":
        return advantages
    if scaling == "batch":
        return advantages / (advantages[step_mask].std(correction=0) + STD_EPSILON)
    n_members = members.sum(dim=-1, keepdim=True).clamp(min=1)
    squares = compute_group_deviation(advantages, members).square()
    variance = torch.where(members, squares, 0.0).sum(dim=-1, keepdim=True) / n_members
    return advantages / (variance.sqrt() + STD_EPSILON)


def compute_group_advantages(
    steps: BranchSteps,
    values: torch.Tensor,
    next_values: torch.Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    baseline: Baseline,
    bootstrap_value: bool,
    scaling: AdvantageScaling,
) -> GroupAdvantages:
    """Turn the steps of whole groups into advantages.

    - ``"group"``: return minus the group's mean return at the same step, which is GRPO. With
      ``bootstrap_value`` the return is the lambda-return, else the plain sum of rewards to the branch's end.
    - ``"residual"``: GAE minus the group's mean GAE at the same step. Members share their start, so what they
      have in common (the error of ``V``, the luck of the anchor) cancels and what their actions did stays.
    - ``"value"``: GAE without a group's mean, which is PPO's advantage on branches; like PPO's, it is centred on
      the mean of the rollout where ``scaling`` is ``"batch"``.

    :param values: ``V(s_t)``, shape ``(horizon, n_anchors, group_size)``.
    :param next_values: ``V(s_{t+1})``, same shape.
    :return: Scaled advantages, the value network's targets (lambda-returns) and the share of silent groups.
    """
    gae = compute_gae(steps, values, next_values, gamma, gae_lambda)
    lambda_returns = torch.where(steps.step_mask, gae + values, 0.0)
    members = steps.step_mask
    if baseline == "group":
        members = compute_group_members(steps)
        returns = lambda_returns if bootstrap_value else compute_returns(steps, gamma)
        advantages = compute_group_deviation(returns, members)
    elif baseline == "residual":
        # Members that terminated earlier do not count: what V expected of them is in the GAE of their last step.
        advantages = compute_group_deviation(gae, members)
    else:
        advantages = gae - gae[members].mean() if scaling == "batch" else gae
    # The spread of a group includes members that ended earlier, so it is measured before they are masked out.
    scaled = scale_advantages(advantages, steps.step_mask, members, scaling)
    advantages = torch.where(steps.step_mask, scaled, 0.0)
    return GroupAdvantages(advantages, lambda_returns, _compute_zero_std_group_fraction(steps, gamma))


def _compute_zero_std_group_fraction(steps: BranchSteps, gamma: float) -> float:
    members = compute_group_members(steps)
    deviation = torch.where(members, compute_group_deviation(compute_returns(steps, gamma), members), 0.0)
    return (deviation == 0).all(dim=-1).all(dim=0).float().mean().item()


def compute_clipped_surrogate(ratio: torch.Tensor, advantages: torch.Tensor, clip_range: float) -> torch.Tensor:
    """Compute the clipped surrogate loss to minimise (arXiv 1707.06347, equation 7, with the sign turned).

    :param ratio: New over old probability of the taken action, shape ``(batch_size,)``.
    :param advantages: Shape ``(batch_size,)``.
    :param clip_range: Half-width of the trust interval around a ratio of 1.
    :return: Scalar, mean over the batch.
    """
    clipped_ratio = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -torch.min(ratio * advantages, clipped_ratio * advantages).mean()


def compute_approx_kl(log_ratio: torch.Tensor) -> torch.Tensor:
    """Estimate KL(old || new) from samples of the old policy: the mean of ``exp(x) - 1 - x``.

    It is unbiased and never negative (estimator k3 of http://joschu.net/blog/kl-approx.html).

    :param log_ratio: Log of new over old probability, shape ``(batch_size,)``.
    :return: Scalar.
    """
    return (log_ratio.exp() - 1.0 - log_ratio).mean()
