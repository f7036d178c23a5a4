"""The observation statistics of a ``VecNormalize``, frozen, so that a policy can be used without it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grpo_core.spaces import Array, Observations, unpack

Moments = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ObservationStatistics:
    """Mean and variance of observations, and what is done with them.

    :param mean: Mean of every number observed, in the observation's shape; per key where a Dict is observed.
    :param var: Variance, likewise. Keys without statistics are left as they are.
    :param clip_obs: Largest size of a normalised number.
    :param epsilon: Added to the variance.
    """

    mean: Moments | Mapping[str, Moments]
    var: Moments | Mapping[str, Moments]
    clip_obs: float
    epsilon: float

    def apply(self, observations: Observations) -> Observations:
        """Normalise observations as ``VecNormalize.normalize_obs`` does.

        :param observations: Raw ones, shape ``(..., *observation_shape)``; a dict or structured array of such.
        :return: float32 where they are normalised, in a dict where there are keys.
        """
        observations = unpack(observations)
        if not isinstance(observations, dict):
            assert not isinstance(self.mean, Mapping)
            assert not isinstance(self.var, Mapping)
            return self._normalize(observations, self.mean, self.var)
        assert isinstance(self.mean, Mapping)
        assert isinstance(self.var, Mapping)
        return {
            key: self._normalize(array, self.mean[key], self.var[key]) if key in self.mean else array
            for key, array in observations.items()
        }

    def _normalize(self, array: Array, mean: Moments, var: Moments) -> Array:
        normalized = np.clip((array - mean) / np.sqrt(var + self.epsilon), -self.clip_obs, self.clip_obs)
        return np.asarray(normalized, np.float32)
