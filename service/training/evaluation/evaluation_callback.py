"""What a training needs of the callback that evaluates its policies on the way."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from grpo import GRPO


class EvaluationCallback(BaseCallback):
    """Evaluates policies on the way. This one evaluates none; subclasses override what they do differently."""

    leaves_environments_alone = True

    model: GRPO

    #: The best evaluation and its policy's model file, if the job keeps the best policy.
    best: tuple[dict[str, Any], bytes] | None = None

    def evaluate_last(self) -> None:
        """Evaluate the last policy after the training, if its evaluation is missing."""

    def find_evaluation(self) -> dict[str, Any] | None:
        """Return the evaluation of the policy that will be saved, the best or the last one; None if there is none."""
        return None

    def to_state(self) -> tuple[dict[str, Any], bytes | None]:
        """Return what a checkpoint keeps of it: JSON values, and the best policy's model file."""
        return {}, None

    def put_state(self, state: dict[str, Any], best: bytes | None) -> None:
        """Go on from what ``to_state`` returned."""

    def _on_step(self) -> bool:
        return True
