"""Faster implementations of other packages' code; tests prove them equivalent.

Only ``grpo.py`` and the service's evaluator use them, and ``GRPO.use_fast_path = False`` switches them all off. A model
keeps what its class said when it was built; the evaluator asks ``GRPO`` when it first plays.

- ``batched_collector``: the rollouts of ``GroupCollector``, bit for bit. ``physics`` steps many states of an
  environment, by ``dynamics`` for classic control; for MuJoCo, ``mujoco_physics`` steps and ``mujoco_tasks`` has the
  rewards.
- ``learner``: the steps of ``GRPO.train``, and the values of ``grpo_core.update.policies``, up to rounding.
- ``episodes``: those of ``grpo_core.evaluation``, up to rounding.
- ``step_threads``: the threads that long steps are spread over. ``one_thread``: NumPy's and torch's, kept to one.
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
