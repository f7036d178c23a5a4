"""Faster implementations of other packages' code; tests prove them equivalent.

Only ``grpo.py`` and the service's evaluator use them.

- ``StepThreads``: the threads that ``find_batched_simulator`` spreads long steps over.
- ``make_batched_collector``: the rollouts of ``GroupCollector``, to the bit.
- ``MlpLearner``: the steps of ``GRPO.train``, to rounding.
- ``step_episodes``: the episodes of ``grpo_core.evaluation``, to rounding.
- ``compute_values``: the values of ``grpo_core.update.policies.compute_values``, to rounding.

``GRPO.use_fast_path = False`` switches them all off.
"""

from grpo_core.fast.batched_collector import make_batched_collector
from grpo_core.fast.episodes import step_episodes
from grpo_core.fast.learner import MlpLearner, UpdateRule, compute_values, is_plain_mlp
from grpo_core.fast.physics import BatchedSimulator, find_batched_simulator
from grpo_core.fast.step_threads import StepThreads

__all__ = [
    "BatchedSimulator",
    "MlpLearner",
    "StepThreads",
    "UpdateRule",
    "compute_values",
    "find_batched_simulator",
    "is_plain_mlp",
    "make_batched_collector",
    "step_episodes",
]
