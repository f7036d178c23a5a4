"""Evaluate a policy during training: to show how good it is, to keep the best one, and to stop when it is good."""

import math
from dataclasses import asdict
from typing import Any

from grpo_core.evaluation import Evaluation, summarize_episodes
from service.schemas.training import TrainConfig
from service.training.evaluation.evaluation_callback import EvaluationCallback
from service.training.evaluation.evaluator import Evaluator
from service.training.stop_rules import StopRules
from service.workers.task import Progress


class PeriodicEvaluation(EvaluationCallback):
    """Evaluates the policy after the first update that follows each ``eval_freq`` steps.

    The policy plays seeded episodes with its most likely actions in a separate environment, so training continues
    exactly as it would have without evaluations. A stop or the time limit ends an evaluation at its next step.

    :param config: The job's settings, with an ``eval_freq``.
    :param evaluator: Plays the episodes.
    :param stop_rules: Ends the training when the policy is good enough, or stops improving.
    :param progress: Receives every evaluation.
    """

    def __init__(self, config: TrainConfig, evaluator: Evaluator, stop_rules: StopRules, progress: Progress) -> None:
        super().__init__()
        assert config.eval_freq is not None, "without it there is nothing to do"
        self._config, self._evaluator, self._stop_rules, self._progress = config, evaluator, stop_rules, progress
        self._eval_freq = self._next_timesteps = config.eval_freq
        self._best_reward = -math.inf
        self._n_without_improvement = 0
        self._n_updates = 0
        #: The latest evaluation, as ``Progress`` receives it.
        self.latest: dict[str, Any] | None = None

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps < self._next_timesteps:
            return
        self._next_timesteps = (self.model.num_timesteps // self._eval_freq + 1) * self._eval_freq
        if self._evaluate():
            self._apply_rules()

    def evaluate_last(self) -> None:
        """Evaluate the last policy, unless that is done already or training was stopped."""
        if not self._is_latest_fresh() and self._stop_rules.ended_by is None:
            self._evaluate()

    def find_evaluation(self) -> dict[str, Any] | None:
        """Return the evaluation of the policy that will be saved, the best or the last one; None if there is none."""
        if self.best is not None:
            return self.best[0]
        return self.latest if self._is_latest_fresh() else None

    def to_state(self) -> tuple[dict[str, Any], bytes | None]:
        """Return what a checkpoint keeps of it: JSON values, and the best policy's model file."""
        state = {
            "next_timesteps": self._next_timesteps,
            "best_reward": None if self._best_reward == -math.inf else self._best_reward,
            "n_without_improvement": self._n_without_improvement,
            "n_updates": self._n_updates,
            "latest": self.latest,
            "best": None if self.best is None else self.best[0],
        }
        return state, None if self.best is None else self.best[1]

    def put_state(self, state: dict[str, Any], best: bytes | None) -> None:
        """Go on from what ``to_state`` returned."""
        self._next_timesteps, self._n_updates = state["next_timesteps"], state["n_updates"]
        self._best_reward = -math.inf if state["best_reward"] is None else state["best_reward"]
        self._n_without_improvement, self.latest = state["n_without_improvement"], state["latest"]
        self.best = None if best is None else (state["best"], best)

    def _is_latest_fresh(self) -> bool:
        # Compare updates, not steps: a stop takes effect one step into the next rollout.
        return self.latest is not None and self._n_updates == self.model._n_updates

    def _evaluate(self) -> bool:
        """Evaluate the current policy; return False if a stop or the time limit interrupted it."""
        run = self._evaluator.start(self.model.make_numpy_actor())
        run.advance(self._may_go_on)
        if not run.is_over:
            return False
        evaluation = summarize_episodes(run.episodes)
        self.latest = {"timesteps": self.model.num_timesteps, **asdict(evaluation)}
        self._n_updates = self.model._n_updates
        self._n_without_improvement += 1
        if evaluation.mean_reward > self._best_reward:
            self._best_reward, self._n_without_improvement = evaluation.mean_reward, 0
            if self._config.keep_best:
                self.best = self.latest, self.model.to_bytes()
        self._publish(evaluation)
        return True

    def _publish(self, evaluation: Evaluation) -> None:
        assert self.latest is not None, "called after an evaluation"
        self._progress.publish_evaluation(self.latest)
        self.logger.record("eval/mean_reward", evaluation.mean_reward)
        self.logger.record("eval/mean_ep_length", evaluation.mean_length)
        if evaluation.success_rate is not None:
            self.logger.record("eval/success_rate", evaluation.success_rate)
        self.logger.dump(self.model.num_timesteps)

    def _apply_rules(self) -> None:
        assert self.latest is not None, "called after an evaluation"
        stop_reward, patience = self._config.stop_reward, self._config.patience
        if stop_reward is not None and self.latest["mean_reward"] >= stop_reward:
            self._stop_rules.end_training("stop_reward")
        elif patience is not None and self._n_without_improvement >= patience:
            self._stop_rules.end_training("patience")

    def _may_go_on(self) -> bool:
        self._stop_rules.tick()
        return self._stop_rules.ended_by is None
