"""Advantages of the steps of whole groups, as pure functions of arrays.

Every array is time-major with the group last: ``(horizon, n_groups, group_size)``. ``step_mask`` is True
where the branch took a step; everything outside it is 0. A branch is *cut* when the horizon or a time limit
ended it while the episode could have gone on, and *terminated* when the episode itself ended.

The return of a step is the plain sum of rewards to the branch's end or, with ``bootstrap_value``, the lambda-return.
An advantage is the return less the *baseline*:

- ``"none"``: nothing, which is REINFORCE.
- ``"batch"``: the mean return of all live steps.
- ``"timestep"``: the mean return at the same step, over the branches of all groups.
- ``"group"``: the mean return at the same step, over the branches of the group, which is GRPO.
- ``"leave_one_out"``: the same over the *other* branches of the group, which is RLOO. Scaled by the group's spread
  it is ``"group"`` again, because the spread stretches alike.
- ``"value"``: GAE takes the place of the return, which is PPO's advantage on branches; like PPO's, it is centred on
  the mean of the rollout where the scaling is ``"batch"``.
- ``"residual"``: GAE minus the group's mean GAE at the same step. Members share their start, so what they have in
  common (the error of ``V``, the luck of the anchor) cancels and what their actions did stays.
- ``"adaptive"``: GAE minus as much of the others' mean GAE as they have in common with it. All of it is
  ``"residual"``, none of it is ``"value"``; see ``compute_adaptive_deviation``.

*Supervision* is ``"process"``: a step is credited with what followed it; or ``"outcome"``: every step is credited
with the return of its whole branch, so that a branch counts once in a mean or a spread, however long it is
(DeepSeekMath, arXiv 2402.03300, sections 4.1.3 and 4.1.2).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from grpo_core.options.choices import NEEDS_VALUES, AdvantageScaling, Baseline, Supervision

# Dividing by a smaller number turns the float noise of a near-constant group into advantages of thousands;
# TRL's GRPOTrainer uses the same 1e-4.
STD_EPSILON = 1e-4

# The rounding of a sum of float32 numbers, in shares of the largest: 6e-8 each time, over hundreds of steps.
ROUNDING = 1e-5
# Returns that differ by a smaller share of the rewards' sizes are the same rewards in another order.
_LEAST_DIFFERENCE = 1e-6

# An estimate that says more than this of members' likeness is not to be trusted with a weight.
_LEAST_VARIANCE_LEFT = 0.05

# A rollout's are float32, and stay so: a NumPy float64 among them, unlike Python's float, would turn all into float64.
Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

_Axes = tuple[int, ...]
_GROUP: _Axes = (2,)
_TIMESTEP: _Axes = (1, 2)
_BATCH: _Axes = (0, 1, 2)


class BranchSteps(NamedTuple):
    """The steps of all branches of a rollout. Every array has shape ``(horizon, n_groups, group_size)``.

    :param rewards: Reward of each step, 0 outside ``step_mask``.
    :param step_mask: True where the branch was alive and took a step.
    :param terminated: True on the step that ended the episode.
    :param truncated: True on the step at which a time limit cut the episode.
    """

    rewards: Floats
    step_mask: Bools
    terminated: Bools
    truncated: Bools


class GroupAdvantages(NamedTuple):
    """The advantages of a rollout, and what the value network is to learn.

    :param advantages: Scaled advantages, shape ``(horizon, n_groups, group_size)``, 0 outside the step mask.
    :param value_targets: Lambda-returns, on which the value network is regressed; same shape, 0 outside the step mask.
    :param informative: Bool, shape ``(n_groups,)``: whether the rewards tell the group's branches apart, see
        ``compute_informative``.
    :param gae: Generalised advantage estimates, shape as ``advantages``, 0 outside the step mask.
    :param unscaled: The advantages before anything was divided, likewise.
    """

    advantages: Floats
    value_targets: Floats
    informative: Bools
    gae: Floats
    unscaled: Floats

    @property
    def zero_std_group_fraction(self) -> float:
        """Share of groups, in [0, 1], that are not informative."""
        return float((~self.informative).mean())


def compute_group_advantages(
    steps: BranchSteps,
    values: Floats,
    next_values: Floats,
    *,
    gamma: float,
    gae_lambda: float,
    baseline: Baseline,
    supervision: Supervision,
    bootstrap_value: bool,
    advantage_scaling: AdvantageScaling,
    correlations: Floats,
) -> GroupAdvantages:
    """Turn the steps of whole groups into advantages; the module says what each baseline and supervision means.

    A baseline that judges steps by their GAE has no outcome: ``GRPO`` refuses the two together.

    :param values: ``V(s_t)``, shape ``(horizon, n_groups, group_size)``.
    :param next_values: ``V(s_{t+1})``, same shape.
    :param gamma: Discount factor in [0, 1].
    :param gae_lambda: Trade-off in [0, 1] between one-step (0) and Monte-Carlo (1) estimates.
    :param bootstrap_value: Whether the return is the lambda-return, which goes on with ``V`` where a branch was cut.
    :param correlations: Intraclass correlation of the group's GAEs at each step, in [0, 1], shape ``(horizon,)``; only
        the baseline ``"adaptive"`` reads it.
    """
    gae = compute_gae(steps, values, next_values, gamma, gae_lambda)
    value_targets = np.where(steps.step_mask, gae + values, 0.0)
    returns = compute_returns(steps, gamma)
    sizes = compute_returns(steps._replace(rewards=np.abs(steps.rewards)), gamma)
    members = compute_group_members(steps)
    judged = _Judged(value_targets if bootstrap_value else returns, steps.step_mask, members, correlations)
    if baseline in NEEDS_VALUES:
        # Members that terminated earlier do not count: what V expected of them is in the GAE of their last step.
        judged = _Judged(gae, steps.step_mask, steps.step_mask, correlations)
    if supervision == "outcome":
        # The return of a whole branch is the one from its first step, which every branch has.
        judged = _Judged(judged.quantity[:1], judged.step_mask[:1], judged.members[:1], correlations)
        returns, sizes, members = returns[:1], sizes[:1], members[:1]
    if baseline == "value" and advantage_scaling == "batch":
        baseline = "batch"  # as PPO does, which centres on the rollout before it scales
    unscaled = weighed = _SUBTRACT_BASELINE[baseline](judged)
    if baseline == "adaptive":  # which makes steps comparable, before all are scaled
        weighed = equalize_variance(unscaled, judged.members, correlations)
    # The spread of a group includes members that ended earlier, so it is measured before they are masked out.
    scaled = scale_advantages(weighed, judged.step_mask, judged.members, advantage_scaling)
    return GroupAdvantages(
        np.where(steps.step_mask, scaled, 0.0),
        value_targets,
        compute_informative(returns, sizes, members),
        gae,
        np.where(steps.step_mask, unscaled, 0.0),
    )


def compute_gae(steps: BranchSteps, values: Floats, next_values: Floats, gamma: float, gae_lambda: float) -> Floats:
    """Compute the generalised advantage estimate along each branch (arXiv 1506.02438, equations 11, 12 and 16).

    ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)``, with ``V(s_{t+1}) = 0`` where the step terminated;
    ``GAE_t = delta_t + gamma lambda GAE_{t+1}``. A cut branch ends in ``V`` of its last next state.

    :param values: ``V(s_t)``, shape ``(horizon, n_groups, group_size)``.
    :param next_values: ``V(s_{t+1})``, same shape.
    :param gamma: Discount factor in [0, 1].
    :param gae_lambda: Trade-off in [0, 1] between one-step (0) and Monte-Carlo (1) estimates.
    :return: Shape ``(horizon, n_groups, group_size)``, 0 outside the step mask.
    """
    bootstrapped = np.where(steps.terminated, 0.0, next_values)
    deltas = np.where(steps.step_mask, steps.rewards + gamma * bootstrapped - values, 0.0)
    return _sum_to_the_end(deltas, gamma * gae_lambda)


def compute_returns(steps: BranchSteps, gamma: float) -> Floats:
    """Sum the discounted rewards from each step to the end of its branch.

    ``R[t, b] = sum_k gamma^k r[t + k, b]`` (return-to-go, the process supervision of DeepSeekMath,
    arXiv 2402.03300, section 4.1.3, with discounting).

    :param gamma: Discount factor in [0, 1].
    :return: Shape ``(horizon, n_groups, group_size)``.
    """
    return _sum_to_the_end(steps.rewards, gamma)


def _sum_to_the_end(quantity: Floats, decay: float) -> Floats:
    """Sum a quantity from each step to the end of its branch: ``S_t = x_t + decay S_{t+1}``.

    :param quantity: Shape ``(horizon, n_groups, group_size)``, 0 outside the step mask, so that nothing flows back
        into the last live step of a branch.
    """
    sums = quantity.copy()
    for now, following in zip(sums[-2::-1], sums[:0:-1], strict=True):  # rows of ``sums``, from the last but one on
        now += decay * following
    return sums


def compute_group_members(steps: BranchSteps) -> Bools:
    """Tell which branches count in the mean return of their group at each step.

    A live branch counts. A branch that *terminated* earlier counts with return 0, which is its true return:
    the absorbing state earns nothing. A branch that a time limit cut earlier is left out: what it would have
    earned is unknown.

    :return: Bool, shape ``(horizon, n_groups, group_size)``.
    """
    return steps.step_mask | np.logical_or.accumulate(steps.terminated, axis=0)


class _Judged(NamedTuple):
    """The quantity to compare and the branches that count; every shape is ``(horizon or 1, n_groups, group_size)``.

    :param correlations: See ``compute_group_advantages``.
    """

    quantity: Floats
    step_mask: Bools
    members: Bools
    correlations: Floats


_SUBTRACT_BASELINE: Mapping[Baseline, Callable[[_Judged], Floats]] = MappingProxyType(
    {
        "none": lambda judged: judged.quantity,
        "batch": lambda judged: compute_deviation(judged.quantity, judged.step_mask, _BATCH),
        "timestep": lambda judged: compute_deviation(judged.quantity, judged.members, _TIMESTEP),
        "group": lambda judged: compute_deviation(judged.quantity, judged.members, _GROUP),
        "leave_one_out": lambda judged: compute_leave_one_out_deviation(judged.quantity, judged.members),
        "residual": lambda judged: compute_deviation(judged.quantity, judged.members, _GROUP),
        "adaptive": lambda judged: compute_adaptive_deviation(judged.quantity, judged.members, judged.correlations),
        "value": lambda judged: judged.quantity,
    }
)


def compute_deviation(quantity: Floats, members: Bools, axis: tuple[int, ...]) -> Floats:
    """Subtract from every branch's step the mean of those it is compared with.

    All are first shifted by the largest, so that equal members give exactly 0 and not the rounding error of a mean.

    :param quantity: Shape ``(horizon, n_groups, group_size)``.
    :param members: Who counts in the mean, bool, same shape.
    :param axis: The axes the mean is taken over: ``(2,)`` the group at the same step, ``(1, 2)`` all groups at the
        same step, ``(0, 1, 2)`` everything.
    :return: Deviations, same shape; meaningless outside ``members``.
    """
    largest = np.where(members, quantity, -np.inf).max(axis=axis, keepdims=True)
    shifted = quantity - np.where(largest > -np.inf, largest, 0.0)
    return shifted - _compute_mean(shifted, members, axis)


def compute_leave_one_out_deviation(quantity: Floats, members: Bools) -> Floats:
    """Subtract from each member the mean of the *other* members of its group at the same step.

    This is RLOO (arXiv 2402.14740, section 3.2). Leaving oneself out of the mean of n members stretches the
    deviation by n / (n - 1). A member that has no other is not judged: it gets 0.

    :param quantity: Shape ``(horizon, n_groups, group_size)``.
    :param members: Who counts, bool, same shape.
    :return: Deviations, same shape; meaningless outside ``members``.
    """
    n_members = members.sum(axis=_GROUP, keepdims=True, dtype=quantity.dtype)
    stretch: Floats = n_members / np.maximum(n_members - 1.0, 1.0)
    return compute_deviation(quantity, members, _GROUP) * stretch


def compute_adaptive_deviation(gae: Floats, step_mask: Bools, correlations: Floats) -> Floats:
    """Subtract from GAE as much of the others' mean at the same step as leaves the least variance.

    ``A_i = (GAE_i - m) - c (mean of the n others' GAE - m)``, where ``m`` is the mean GAE of the *other* groups and
    ``c = n rho / (1 + (n - 1) rho)`` the regression of one member on the mean of n, if two of them correlate by rho
    (Spearman, 1910; Brown, 1910). What is subtracted depends on no action of the branch itself, as long as rho is
    estimated from earlier rollouts: it does not change the expected gradient.

    :param gae: Shape ``(horizon, n_groups, group_size)``.
    :param step_mask: The members that are compared, bool, same shape.
    :param correlations: rho of each step, in [0, 1], shape ``(horizon,)``.
    :return: Deviations, same shape; meaningless outside ``step_mask``.
    """
    n_others = _count_others(step_mask, gae.dtype)
    coefficients = compute_coefficients(n_others, correlations.astype(gae.dtype)[:, None, None])
    deviation = np.where(step_mask, gae - _compute_mean_of_other_groups(gae, step_mask), 0.0)
    mean_of_others = (deviation.sum(axis=_GROUP, keepdims=True) - deviation) / np.maximum(n_others, 1.0)
    return np.asarray(deviation - coefficients * mean_of_others)


def equalize_variance(deviation: Floats, step_mask: Bools, correlations: Floats) -> Floats:
    """Divide adaptive deviations by the square root of the share of GAE's variance that is left in them, ``1 - rho c``.

    It is little where members are alike, and all where a branch has no other left. Steps then have equal variance
    (unless the share is below the least that is allowed); otherwise the noise of the last survivors would drown what
    whole groups tell.

    :param deviation: As ``compute_adaptive_deviation`` returns it, which takes the other parameters likewise.
    :return: Same shape.
    """
    rho = correlations.astype(deviation.dtype)[:, None, None]
    coefficients = compute_coefficients(_count_others(step_mask, deviation.dtype), rho)
    return np.asarray(deviation / np.sqrt(np.maximum(1.0 - rho * coefficients, _LEAST_VARIANCE_LEFT)))


def _count_others(step_mask: Bools, dtype: npt.DTypeLike) -> Floats:
    """Count the members that each one is compared with, ``(horizon, n_groups, 1)``."""
    return np.asarray(np.maximum(step_mask.sum(axis=_GROUP, keepdims=True, dtype=dtype) - 1.0, 0.0))


def compute_coefficients(n_others: Floats, correlations: Floats) -> Floats:
    """Return how much of the mean of ``n_others`` members to subtract, in [0, 1]; the shapes must fit."""
    # Less than 1 is divided by only where there are no others, and then nothing is divided.
    return np.asarray(n_others * correlations / np.maximum(1.0 + (n_others - 1.0) * correlations, 1.0))


def _compute_mean_of_other_groups(gae: Floats, step_mask: Bools) -> Floats:
    """Return the mean GAE of the live steps outside each group, ``(1, n_groups, 1)``; 0 for a single group."""
    sums = np.where(step_mask, gae, 0.0).sum(axis=(0, 2), keepdims=True)
    counts = step_mask.sum(axis=(0, 2), keepdims=True, dtype=gae.dtype)
    return np.asarray((sums.sum() - sums) / np.maximum(counts.sum() - counts, 1.0))


def describe_adaptive(groups: GroupAdvantages, step_mask: Bools, correlations: Floats) -> dict[str, float]:
    """Say what the adaptive baseline did.

    :param correlations: The correlations that the advantages were computed with.
    :return: ``group_coefficient``, how much of the others' mean was subtracted on average, in [0, 1], and
        ``group_variance_saved``, by how much, as a share of GAE's variance, subtracting it made that smaller.
    """
    n_others = _count_others(step_mask, np.float64)
    coefficients = np.broadcast_to(compute_coefficients(n_others, correlations[:, None, None]), step_mask.shape)
    variance = float(groups.gae[step_mask].var())
    saved = 1.0 - float(groups.unscaled[step_mask].var()) / variance if variance > 0.0 else 0.0
    return {"group_coefficient": float(coefficients[step_mask].mean()), "group_variance_saved": saved}


def _compute_mean(quantity: Floats, members: Bools, axis: _Axes) -> Floats:
    n_members: Floats = np.maximum(members.sum(axis=axis, keepdims=True, dtype=quantity.dtype), 1.0)
    return np.asarray(np.where(members, quantity, 0.0).sum(axis=axis, keepdims=True) / n_members)


def scale_advantages(advantages: Floats, step_mask: Bools, members: Bools, scaling: AdvantageScaling) -> Floats:
    """Divide advantages by a standard deviation (the population's, over n).

    :param advantages: Unscaled, shape ``(horizon, n_groups, group_size)``.
    :param step_mask: The steps whose spread is measured when ``scaling`` is ``"batch"``, bool, same shape.
    :param members: The branches whose spread is measured when ``scaling`` is ``"group"``, bool, same shape.
    :param scaling: ``"group"``: the group's own spread at that step (DeepSeekMath, arXiv 2402.03300);
        ``"batch"``: one spread for the whole rollout, which keeps the sizes of groups comparable;
        ``"none"``: leave them (Dr. GRPO, arXiv 2503.20783).
    :return: Shape ``(horizon, n_groups, group_size)``.
    """
    if scaling == "none":
        return advantages
    counted, axis = (members, _GROUP) if scaling == "group" else (step_mask, _BATCH)
    variance = _compute_mean(np.square(compute_deviation(advantages, counted, axis)), counted, axis)
    return advantages / (np.sqrt(variance) + STD_EPSILON)


def compute_informative(returns: Floats, sizes: Floats, members: Bools) -> Bools:
    """Tell which groups have branches that earned differently from some step on.

    If the baseline compares members of a group by their rewards alone, the other groups' advantages are 0, or rounding;
    under any other baseline, only the value network or the rest of the rollout gives them one.

    :param returns: Returns from each step on, without estimates, shape ``(horizon, n_groups, group_size)``.
    :param sizes: The same of the rewards' sizes, whatever their signs, which the returns' rounding grows with.
    :param members: Which branches are compared at each step, bool, same shape.
    :return: Bool, shape ``(n_groups,)``.
    """
    largest = np.where(members, returns, -np.inf).max(axis=_GROUP)
    smallest = np.where(members, returns, np.inf).min(axis=_GROUP)
    return np.asarray((largest - smallest > _LEAST_DIFFERENCE * sizes.max(axis=_GROUP)).any(axis=0))
