"""The learning curve of a run."""

import time
from typing import Any

import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.lib.evaluation import Policy, evaluate
from benchmarks.lib.tasks import N_CURVE_POINTS, Task

# Trainings take seeds below 10,000 and a few after them. These are apart from those, and from those of other runs.
_FIRST_FINAL_SEED = 10_000_000
_FIRST_CURVE_SEED = 20_000_000
_SEEDS_PER_RUN = 1000


class LearningCurve:
    """Evaluates a policy at evenly spaced numbers of simulator steps, and at the end.

    :param task: Task, with its numbers of episodes.
    :param budget: Simulator steps of the training.
    :param seed: Seed of the training, from which those of the evaluations follow.
    """

    def __init__(self, task: Task, budget: int, seed: int) -> None:
        self.points: list[list[float]] = []
        self.evaluation_seconds = 0.0
        self._task = task
        self._seed = seed
        self._interval = budget / N_CURVE_POINTS
        self._next_due = self._interval

    def is_due(self, n_timesteps: int) -> bool:
        """Return whether to add the next point; the last one is the final score."""
        return self._next_due <= n_timesteps and len(self.points) < N_CURVE_POINTS - 1

    def add(self, n_timesteps: int, policy: Policy) -> None:
        """Evaluate the policy, and add a point."""
        self._next_due = (n_timesteps // self._interval + 1) * self._interval
        self._add(n_timesteps, policy, _FIRST_CURVE_SEED, self._task.n_curve_episodes)

    def finish(self, n_timesteps: int, policy: Policy) -> float:
        """Evaluate the final policy, and return its score."""
        self._add(n_timesteps, policy, _FIRST_FINAL_SEED, self._task.n_episodes)
        return self.points[-1][1]

    def _add(self, n_timesteps: int, policy: Policy, first_seed: int, n_episodes: int) -> None:
        started_at = time.monotonic()
        score = evaluate(self._task.env_name, policy, first_seed + _SEEDS_PER_RUN * self._seed, n_episodes)
        self.points.append([n_timesteps, score])
        self.evaluation_seconds += time.monotonic() - started_at


class CurveCallback(BaseCallback):
    """Adds points to the curve while an SB3 algorithm learns."""

    def __init__(self, curve: LearningCurve) -> None:
        super().__init__()
        self._curve = curve

    def _on_step(self) -> bool:
        if self._curve.is_due(self.num_timesteps):
            self._curve.add(self.num_timesteps, make_policy(self.model))
        return True


def make_policy(model: BaseAlgorithm) -> Policy:
    """Make the deterministic policy of a model, its normalisation of observations included."""
    normalizer = model.get_vec_normalize_env()

    def policy(observations: npt.NDArray[Any]) -> npt.NDArray[Any]:
        normalized: Any = observations if normalizer is None else normalizer.normalize_obs(observations)
        actions: npt.NDArray[Any] = model.predict(normalized, deterministic=True)[0]
        return actions

    return policy
