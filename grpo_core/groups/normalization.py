"""The running statistics of a ``VecNormalize``, applied to whole groups."""

from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from grpo_core.actor.normalization import Moments, ObservationStatistics
from grpo_core.groups.rollout import GroupRollout
from grpo_core.spaces import Observations, unpack

# Statistics of fewer observations than this, per environment, are of resets alone: those of a model's first rollout.
_FEW_OBSERVATIONS = 10


class Normalizer:
    """The running statistics of a ``VecNormalize``, applied to groups.

    Statistics of observations are frozen while a rollout is collected and updated after it, so that all members of a
    group see the same numbers and the first minibatch has a probability ratio of 1. Rewards are scaled by statistics
    that include them. Without a ``VecNormalize``, everything passes through unchanged.

    :param vec_normalize: The wrapper whose statistics are used and, if it is training, updated.
    """

    def __init__(self, vec_normalize: VecNormalize | None) -> None:
        self._vec_normalize = vec_normalize

    def freeze(self) -> ObservationStatistics | None:
        """Copy the statistics of observations as they are now; None if observations are not normalised.

        As long as they are hardly of more than resets, which lie close together, observations are only divided by
        their size, where that is above 1: with the spread of resets, a whole rollout would lie beyond ``clip_obs``.
        Those that do not train are taken as they are, since they may have been set by hand, which counts nothing.
        """
        vec_normalize = self._vec_normalize
        if vec_normalize is None or not vec_normalize.norm_obs:
            return None
        mean: Any
        var: Any
        rms: Any = vec_normalize.obs_rms
        n_few = _FEW_OBSERVATIONS * vec_normalize.num_envs if vec_normalize.training else 0
        if isinstance(rms, dict):
            pairs = {key: _take_moments(part, n_few) for key, part in rms.items()}
            mean, var = ({key: pair[i] for key, pair in pairs.items()} for i in range(2))
        else:
            mean, var = _take_moments(rms, n_few)
        return ObservationStatistics(mean, var, float(vec_normalize.clip_obs), float(vec_normalize.epsilon))

    def apply(
        self, rollout: GroupRollout, statistics: ObservationStatistics | None
    ) -> tuple[Observations, Observations]:
        """Gather what the policy saw at the live steps, and where they led; ``(n_live_steps, *observation_shape)``.

        :param statistics: What ``freeze`` returned before the rollout was collected.
        """
        mask = rollout.step_mask
        if statistics is None:
            return unpack(rollout.observations[mask]), unpack(rollout.next_observations[mask])
        return statistics.apply(rollout.observations[mask]), statistics.apply(rollout.next_observations[mask])

    def compute_discounted_returns(self, rollout: GroupRollout, start_returns: Moments) -> Moments | None:
        """Discount the rewards of the episodes up to each step, which is what ``VecNormalize`` measures the spread of.

        :param rollout: Its rewards are not scaled yet.
        :param start_returns: Discounted rewards that the groups' episodes earned before, shape ``(n_groups,)``.
        :return: Shape ``(horizon, n_groups, group_size)``; None without a ``VecNormalize``.
        """
        if self._vec_normalize is None:
            return None
        discounted_returns = np.zeros(rollout.shape)
        running = start_returns[:, None]
        for t, rewards in enumerate(rollout.rewards):
            running = running * self._vec_normalize.gamma + rewards
            discounted_returns[t] = running
        return discounted_returns

    def update(self, rollout: GroupRollout, discounted_returns: Moments | None) -> None:
        """Add a rollout's observations and discounted returns to the statistics, unless they are frozen.

        :param discounted_returns: What ``compute_discounted_returns`` returned.
        """
        if self._vec_normalize is None or discounted_returns is None or not self._vec_normalize.training:
            return
        self._vec_normalize.ret_rms.update(discounted_returns[rollout.step_mask])
        if self._vec_normalize.norm_obs:
            self._update_observation_statistics(self._vec_normalize.obs_rms, rollout)

    def scale_rewards(self, rollout: GroupRollout) -> None:
        """Divide a rollout's rewards by the spread of discounted returns, in place."""
        if self._vec_normalize is not None:
            rollout.rewards[:] = self._vec_normalize.normalize_reward(rollout.rewards) * rollout.step_mask

    @staticmethod
    def _update_observation_statistics(statistics: Any, rollout: GroupRollout) -> None:
        observations = unpack(rollout.observations[rollout.step_mask])
        if isinstance(observations, dict):
            for key, running in statistics.items():
                running.update(observations[key])
        else:
            statistics.update(observations)


def _take_moments(rms: RunningMeanStd, n_few: int) -> tuple[Moments, Moments]:
    """Copy the mean and the variance of statistics, or what stands for them while they are of too few observations."""
    if rms.count < n_few:
        return _freeze(np.zeros_like(rms.mean)), _freeze(np.maximum(np.square(rms.mean), 1.0))
    return _freeze(rms.mean), _freeze(rms.var)


def _freeze(array: Any) -> Moments:
    frozen = np.array(array, np.float64)
    frozen.flags.writeable = False
    return frozen
