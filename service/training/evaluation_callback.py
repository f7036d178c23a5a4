"""Evaluate a policy during training: to show how good it is, to keep the best one, and to stop when it is good."""

import math
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from grpo import GRPO
from grpo_core.evaluation import Episode, Evaluation, make_policy, play_episodes, summarize_episodes
from service.schemas.training import TrainConfig
from service.training.stop_rules import StopRules
from service.workers.task import Progress

# All evaluations of all jobs play the same episodes, so that they can be compared. The seeds are far from those that
# people choose, so that neither training nor a later evaluation plays these episodes.
_FIRST_SEED = 1_000_000
# Cuts episodes of environments without a time limit; the limit of most others is at most this.
MAX_EPISODE_STEPS = 1000


class EvaluationCallback(BaseCallback):
    """Evaluates the policy after the first update that follows each ``eval_freq`` steps.

    The policy plays seeded episodes with its most likely actions in a separate environment, so training continues
    exactly as it would have without evaluations. A stop or the time limit ends an evaluation at its next step.

    :param config: The job's settings, with an ``eval_freq``.
    :param env: Environment to play in; it must not be used elsewhere.
    :param stop_rules: Ends the training when the policy is good enough, or stops improving.
    :param progress: Receives every evaluation.
    """

    model: GRPO

    def __init__(self, config: TrainConfig, env: gym.Env[Any, Any], stop_rules: StopRules, progress: Progress) -> None:
        super().__init__()
        assert config.eval_freq is not None, "without it there is nothing to do"
        self._config, self._env, self._stop_rules, self._progress = config, env, stop_rules, progress
        self._eval_freq = self._next_timesteps = config.eval_freq
        self._best_reward = -math.inf
        self._n_without_improvement = 0
        self._n_updates = 0
        #: The latest evaluation, as ``Progress`` receives it.
        self.latest: dict[str, Any] | None = None
        #: The best evaluation and its policy's model file, if the job keeps the best policy.
        self.best: tuple[dict[str, Any], bytes] | None = None

    def _on_step(self) -> bool:
        return True

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

    def _is_latest_fresh(self) -> bool:
        # Compare updates, not steps: a stop takes effect one step into the next rollout.
        return self.latest is not None and self._n_updates == self.model._n_updates

    def _evaluate(self) -> bool:
        """Evaluate the current policy; return False if a stop or the time limit interrupted it."""
        try:
            episodes = self._play()
        except _InterruptedError:
            return False
        evaluation = summarize_episodes(episodes)
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

    def _play(self) -> list[Episode]:
        has_limit = self._env.spec is not None and self._env.spec.max_episode_steps is not None
        # The most likely actions draw nothing from the generator.
        policy = make_policy(self.model.make_actor(), True, np.random.default_rng(0))
        max_steps = math.inf if has_limit else MAX_EPISODE_STEPS
        episodes = play_episodes(
            self._env, policy, self._config.n_eval_episodes, _FIRST_SEED, max_steps, self._check_time
        )
        rewards = [episode.reward for episode in episodes]
        if not all(map(math.isfinite, rewards)):
            raise ValueError(
                f"the rewards of an evaluation's episodes are not all finite ({rewards[:3]}...); fix the environment "
                f"'{self._config.env_name}'."
            )
        return episodes

    def _check_time(self) -> None:
        self._stop_rules.tick()
        if self._stop_rules.ended_by is not None:
            raise _InterruptedError


class _InterruptedError(Exception):
    """A stop or the time limit has interrupted an evaluation."""
