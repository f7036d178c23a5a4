"""Faster implementations of other packages' code; tests prove them equivalent, and only ``grpo.py`` uses them.

- ``make_batched_collector``: the rollouts of ``GroupCollector``, to the bit.
- ``MlpLearner``: the steps of ``GRPO.train``, to rounding.
- ``compute_values``: the values of ``grpo_core.update.policies.compute_values``, to rounding.

``GRPO.use_fast_path = False`` switches them all off.
"""

from grpo_core.fast.collector import make_batched_collector
from grpo_core.fast.learner import MlpLearner, UpdateRule, compute_values, is_plain_mlp

__all__ = ["MlpLearner", "UpdateRule", "compute_values", "is_plain_mlp", "make_batched_collector"]
