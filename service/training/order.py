"""An order to train, as it is sent to a worker."""

import math
from pathlib import Path
from typing import NamedTuple

from grpo_core.options.rewards import Reward
from service.schemas.training import TrainConfig
from service.workers.task import Task

#: Name of the attachment to a checkpoint that holds the model file of a training that is over.
FINISHED = "finished"
#: Begins the warning of a job that ends without a final evaluation.
UNEVALUATED = "the policy was saved but not evaluated"
#: What helps a training whose worker was killed as memory ran out.
MEMORY_REMEDY = "lower n_envs, n_steps or net_arch, or give the server more memory."


class TrainingOrder(NamedTuple):
    """Train a policy as a configuration says.

    :param config: A planned configuration.
    :param reward: The reward functions that the configuration names.
    :param run_dir: Folder for the TensorBoard log; None writes none.
    :param n_threads: Threads that may step simulators; the policy is the same with any.
    :param checkpoint: A checkpoint of this training to go on from; None begins it.
    :param init: The file of ``init_model``, if the configuration names one and the training begins.
    :param stall_seconds: A rollout worker that takes no step for this long counts as dead.
    """

    config: TrainConfig
    reward: Reward | None
    run_dir: Path | None = None
    n_threads: int = 1
    checkpoint: bytes | None = None
    init: bytes | None = None
    stall_seconds: float = math.inf

    def make_task(self) -> Task:
        """Return the task that carries it out."""
        n_cpus = max(1, self.config.n_rollout_workers)
        return Task(
            "service.training.train:train_in_task",
            (self,),
            self.config.env_name,
            self.config.device,
            n_cpus,
            goes_on=self.checkpoint is not None,
        )
