"""Take checkpoints of a training, so that it can go on after whatever ends it."""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from grpo import GRPO
from grpo_core.checkpoints import checkpoint
from grpo_core.checkpoints.checkpoint import Checkpoint, CheckpointError
from grpo_core.checkpoints.facts import is_exact
from service.errors import describe_error
from service.schemas.training import TrainConfig
from service.training.evaluation.evaluation_callback import EvaluationCallback
from service.training.evaluation.work_time import WorkTime
from service.training.init_model import Lineage
from service.training.order import FINISHED
from service.training.stop_rules import StopRules
from service.workers.task import Progress

logger = logging.getLogger("grpo.service")

# A stop or an error comes in the middle of a rollout, where no training can go on: what was before it is taken now and
# then, and kept in memory. That may take this share of the time, need not be more often than once a second, and is not
# rarer than what is published: a training that learns slowly has the most to lose.
_SHARE = 0.02
_LEAST_SECONDS = 1.0
# How often one is published where the job does not say so.
_PUBLISH_SECONDS = 60.0
# Names in checkpoints.
_BEST = "best"
_EVALUATIONS = "evaluations"


class CheckpointCallback(BaseCallback):
    """Takes a checkpoint between two rollouts now and then, and publishes some of them.

    It comes last among the callbacks: what others do between two rollouts is done by then.

    :param config: What is trained. It says how many simulator steps are between two that are published.
    :param evaluations: Those on the way; they go on as well.
    :param stop_rules: Know how much of the job's time is spent.
    :param progress: Receives them.
    """

    leaves_environments_alone = True

    model: GRPO

    def __init__(
        self,
        config: TrainConfig,
        evaluations: EvaluationCallback,
        stop_rules: StopRules,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._config, self._every = config, config.checkpoint_every
        self._evaluations, self._stop_rules, self._progress = evaluations, stop_rules, progress
        self._can_take = True
        #: The model that the training began from, if any.
        self.lineage: Lineage | None = None
        self._next_timesteps = 0
        self._taken_at = self._published_at = 0.0
        self._cost_seconds = 0.0
        self._unpublished: tuple[Mapping[str, Any], bytes] | None = None

    def restore(self, model: GRPO, taken: Checkpoint) -> None:
        """Let a new model, its evaluations and its rules go on where a checkpoint was taken.

        The client is warned if training does not go on exactly as it would have.

        :raises CheckpointError: If it is of another training.
        """
        own, rules = _read_own(taken, self._config), self._stop_rules
        caveat = checkpoint.restore(model, taken)
        if caveat is not None and caveat.is_certain:
            self._progress.publish_warning(
                f"training went on from step {taken.timesteps:,}, but not exactly as before: {caveat.reason}."
            )
        rules.spent_seconds_before, rules.ended_by = float(own["seconds"]), own["ended_by"]
        self._evaluations.put_state(own[_EVALUATIONS], taken.attachments.get(_BEST))
        self.lineage = None if own["lineage"] is None else Lineage(*own["lineage"])
        if rules.ended_by not in (None, "stop"):  # a stop counts no more
            self._progress.publish_ended_by(rules.ended_by)

    def _on_training_start(self) -> None:
        self._taken_at = self._published_at = time.monotonic()
        if self._every is not None:
            self._next_timesteps = (self.model.num_timesteps // self._every + 1) * self._every

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._stop_rules.ended_by is not None:
            return  # the update before this may have been cut short
        now = time.monotonic()
        if self._every is None:
            must_publish = now - self._published_at >= _PUBLISH_SECONDS
        elif must_publish := self.model.num_timesteps >= self._next_timesteps:
            self._next_timesteps = (self.model.num_timesteps // self._every + 1) * self._every
        pause = min(max(_LEAST_SECONDS, self._cost_seconds / _SHARE), _PUBLISH_SECONDS)
        if must_publish or now - self._taken_at >= pause:
            self._take()
        if must_publish:
            self.publish()

    def take_finished(self, content: bytes) -> None:
        """Publish that training is over: only evaluations follow.

        :param content: The model file as it would be saved without them.
        """
        self._take({FINISHED: content})
        self.publish()

    def publish(self) -> None:
        """Publish the latest checkpoint, unless it is published or missing."""
        if self._unpublished is not None:
            self._progress.publish_checkpoint(*self._unpublished)
        self._unpublished, self._published_at = None, time.monotonic()

    def _take(self, attachments: Mapping[str, bytes] | None = None) -> None:
        if not self._can_take:
            return
        begun = WorkTime.now()
        try:
            described, content = self._describe(attachments)
        except Exception as error:  # environment code may fail; training goes on without a checkpoint
            logger.warning("no checkpoint can be taken", exc_info=True)
            self._can_take = False
            reason = describe_error(error)
            self._progress.publish_warning(f"no checkpoint can be taken, so an interruption loses the job: {reason}")
            return
        self._unpublished = described, content
        self._taken_at = time.monotonic()
        self._cost_seconds = WorkTime.now().since(begun)  # others may keep the processor busy meanwhile

    def _describe(self, attachments: Mapping[str, bytes] | None) -> tuple[dict[str, Any], bytes]:
        """Return what the server is told of a checkpoint, and its content."""
        facts: dict[str, Any] = {"seconds": self._stop_rules.spent_seconds, "ended_by": self._stop_rules.ended_by}
        created_at = datetime.now(UTC).isoformat()
        facts |= {"lineage": self.lineage, "config": self._config.model_dump(mode="json"), "created_at": created_at}
        facts[_EVALUATIONS], best_content = self._evaluations.to_state()
        best = {} if best_content is None else {_BEST: best_content}
        content, caveat = checkpoint.take(self.model, facts, {**best, **(attachments or {})})
        described = {
            "timesteps": self.model.num_timesteps,
            "created_at": created_at,
            "exact": is_exact(caveat),
            "note": None if caveat is None else caveat.reason,
        }
        return described, content


def _read_own(taken: Checkpoint, config: TrainConfig) -> Mapping[str, Any]:
    """Return the service's own facts.

    :raises CheckpointError: If they are of a training with another configuration.
    """
    own: dict[str, Any] = taken.facts["own"]
    try:
        is_same = config.is_written_as(own["config"])
    except (KeyError, AttributeError) as error:
        raise CheckpointError("the checkpoint does not say what is trained; another version wrote it.") from error
    if not is_same:
        raise CheckpointError("the checkpoint is of a job with another configuration.")
    return own
