"""The observation statistics of a ``VecNormalize``, frozen, so that a policy can be used without it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grpo_core.spaces import Array, Observations, unpack

Moments = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ObservationStatistics:
    """Mean and variance of observations, and the way they are applied.

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
        :raises TypeError: If observations come as a dict and the statistics do not, or the other way round.
        """
        observations = unpack(observations)
        mean, var = self.mean, self.var
        if not isinstance(observations, dict):
            if isinstance(mean, Mapping) or isinstance(var, Mapping):
                raise TypeError(
                    f"observations are one array of shape {observations.shape}, but the statistics are of a Dict; pass "
                    "a dict of arrays by key."
                )
            return self._normalize(observations, mean, var)
        if not isinstance(mean, Mapping) or not isinstance(var, Mapping):
            raise TypeError(
                f"observations are a dict with keys {list(observations)}, but the statistics are of one array; pass an "
                "array (batch_size, *observation_shape)."
            )
        return {
            key: self._normalize(array, mean[key], var[key]) if key in mean else array
            for key, array in observations.items()
        }

    def _normalize(self, array: Array, mean: Moments, var: Moments) -> Array:
        normalized = np.clip((array - mean) / np.sqrt(var + self.epsilon), -self.clip_obs, self.clip_obs)
        return np.asarray(normalized, np.float32)
