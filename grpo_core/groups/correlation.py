"""How alike the members of a group are: estimated from rollouts, for those that follow.

Members share their start, and so the error of ``V`` there and the luck of the anchor. The *intraclass correlation* rho
is the share of GAE's variance that they have in common: ``GAE = common + own``, ``rho = var(common) / var(GAE)``. It
differs between tasks, falls with the steps since the anchor, and changes while training goes on.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from grpo_core.groups.advantage import Bools, Floats

# Steps since the anchor that share an estimate: 0, 1, 2 and 3, 4 to 7, and so on; the last has all later ones.
_N_RANGES = 14
# How much of the sums is left at each rollout: about ten rollouts count.
_DECAY = 0.9
# What an estimate begins with: four pairs of equal members, each counted either way round. Before the value network has
# learned anything, GAEs are returns, and most of a return is common to all members.
_FIRST_SUM = 8.0
# Sums that are smaller weigh nothing, and are left as they are: some processes take numbers below 2.3e-308 for 0.
_LEAST_SUM = 1e-300


class GroupCorrelation:
    """A running estimate of rho in each range of steps since the anchor."""

    def __init__(self) -> None:
        # Each shape ``(n_ranges,)``: products of the deviations of two members, their number, squares of deviations,
        # their number.
        self._sums = np.full((4, _N_RANGES), _FIRST_SUM)

    def estimate(self, horizon: int) -> Floats:
        """Return rho at each step since the anchor, in [0, 1], shape ``(horizon,)``."""
        products, n_products, squares, n_squares = self._sums
        correlations = (products / n_products) / (squares / n_squares)
        return np.asarray(correlations.clip(0.0, 1.0)[_find_ranges(horizon)])

    def update(self, gae: Floats, step_mask: Bools) -> None:
        """Update the estimate with a rollout.

        :param gae: Generalised advantage estimates, shape ``(horizon, n_groups, group_size)``.
        :param step_mask: True where the branch took a step, same shape.
        """
        live = gae[step_mask].astype(np.float64)
        spread = live.std()
        if not 0.0 < spread < np.inf:
            return
        n_members = step_mask.sum(axis=2, dtype=np.float64)
        # Without their unit, or a rollout of large GAEs would outweigh those that follow.
        deviations = np.where(step_mask & (n_members > 1.0)[..., None], (gae - live.mean()) / spread, 0.0)
        squares = np.square(deviations).sum(axis=2)
        products = np.square(deviations.sum(axis=2)) - squares  # of every two different members, either way round
        n_members[n_members == 1.0] = 0.0
        ranges = _find_ranges(len(step_mask))
        added = (products, n_members * (n_members - 1.0), squares, n_members)
        self._sums *= np.where((self._sums[1:] > _LEAST_SUM).all(axis=0), _DECAY, 1.0)
        for sums, of_groups in zip(self._sums, added, strict=True):
            sums += np.bincount(ranges, of_groups.sum(axis=1), minlength=_N_RANGES)

    def to_json(self) -> list[list[float]]:
        """Return what a model file holds of it."""
        return [sums.tolist() for sums in self._sums]

    @classmethod
    def from_json(cls, described: Any) -> Self:
        """Return the estimate that ``to_json`` described.

        :raises ValueError: If it is not such a description.
        """
        correlation = cls()
        try:
            sums = np.array(described, np.float64)
        except (TypeError, ValueError):
            sums = np.empty(0)
        if sums.shape != correlation._sums.shape or not np.isfinite(sums).all() or (sums[1:] < 0.0).any():
            raise ValueError(
                "group_correlation is not four lists of sums, as GRPO saves them; remove it to begin anew."
            )
        sums[:, (sums[1:] == 0.0).any(axis=0)] = _LEAST_SUM  # too small for the process that saved or reads them
        correlation._sums = sums
        return correlation


def _find_ranges(horizon: int) -> npt.NDArray[np.int64]:
    """Return the range that each step belongs to, shape ``(horizon,)``: the number of bits that its number takes."""
    return np.minimum(np.frexp(np.arange(horizon))[1], _N_RANGES - 1).astype(np.int64)
