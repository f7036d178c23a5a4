"""Evaluates a policy while it learns."""

import time
from typing import Any

import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.evaluation import Policy, evaluate
from benchmarks.tasks import N_CURVE_POINTS, Task

# Training seeds are below 10,000 and their environments take the few seeds that follow. These lie apart from them, and
# from the next run's too.
_FIRST_FINAL_SEED = 10_000_000
_FIRST_CURVE_SEED = 20_000_000
_SEEDS_PER_RUN = 1000


class LearningCurve:
    """Judges a policy at evenly spaced numbers of simulator steps, and at the end.

    :param task: Says how many episodes.
    :param budget: Simulator steps of the training.
    :param seed: Of the training; the evaluation's are derived from it.
    """

    def __init__(self, task: Task, budget: int, seed: int) -> None:
        self.points: list[list[float]] = []
        self.evaluation_seconds = 0.0
        self._task = task
        self._seed = seed
        self._interval = budget / N_CURVE_POINTS
        self._next_due = self._interval

    def is_due(self, n_timesteps: int) -> bool:
        """Whether the next point is to be added; the last is the final score's."""
        return self._next_due <= n_timesteps and len(self.points) < N_CURVE_POINTS - 1

    def add(self, n_timesteps: int, policy: Policy) -> None:
        """Judge the policy of this moment."""
        self._next_due = (n_timesteps // self._interval + 1) * self._interval
        self._add(n_timesteps, policy, _FIRST_CURVE_SEED, self._task.n_curve_episodes)

    def finish(self, n_timesteps: int, policy: Policy) -> float:
        """Judge the final policy and return its score."""
        self._add(n_timesteps, policy, _FIRST_FINAL_SEED, self._task.n_episodes)
        return self.points[-1][1]

    def _add(self, n_timesteps: int, policy: Policy, first_seed: int, n_episodes: int) -> None:
        started_at = time.monotonic()
        score = evaluate(self._task.env_name, policy, first_seed + _SEEDS_PER_RUN * self._seed, n_episodes)
        self.points.append([n_timesteps, score])
        self.evaluation_seconds += time.monotonic() - started_at


class CurveCallback(BaseCallback):
    """Adds the curve's points while an SB3 algorithm learns."""

    def __init__(self, curve: LearningCurve) -> None:
        super().__init__()
        self._curve = curve

    def _on_step(self) -> bool:
        if self._curve.is_due(self.num_timesteps):
            self._curve.add(self.num_timesteps, make_policy(self.model))
        return True


def make_policy(model: BaseAlgorithm) -> Policy:
    """Make the deterministic policy of a model, with the observation normalisation that it is trained behind."""
    normalizer = model.get_vec_normalize_env()

    def policy(observations: npt.NDArray[Any]) -> npt.NDArray[Any]:
        normalized: Any = observations if normalizer is None else normalizer.normalize_obs(observations)
        actions: npt.NDArray[Any] = model.predict(normalized, deterministic=True)[0]
        return actions

    return policy
