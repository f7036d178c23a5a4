"""Evaluating a policy while it is trained: to see how it does, to keep the best one, to end when it does well."""

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

# The same episodes every time and in every job, so that evaluations can be compared; far from the seeds that people
# choose, so that neither training nor a later evaluation begins with them.
_FIRST_SEED = 1_000_000
# An episode that nothing ends is cut here: as long as those of most environments that have a time limit.
MAX_EPISODE_STEPS = 1000


class EvaluationCallback(BaseCallback):
    """Evaluates the policy after the first update that follows each ``eval_freq`` steps.

    The policy plays seeded episodes in an environment of its own and takes its most likely actions, so that training
    goes on exactly as it would have without. A stop, or the end of the time, ends an evaluation at its next step.

    :param config: What it trains with; with an ``eval_freq``.
    :param env: The environment to play in, used for nothing else.
    :param stop_rules: Told when the policy is good enough, or has become no better for too long.
    :param progress: Told of every evaluation.
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
        #: The latest evaluation, as ``Progress`` is told.
        self.latest: dict[str, Any] | None = None
        #: The best one, and the content of the model file that it is of; only where the best policy is kept.
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
        """Evaluate what training ended with, unless that was done or training was to end at once."""
        if not self._is_latest_fresh() and self._stop_rules.ended_by is None:
            self._evaluate()

    def find_evaluation(self) -> dict[str, Any] | None:
        """Return the evaluation of the policy that is to be saved, the best or the last one, if there was one."""
        if self.best is not None:
            return self.best[0]
        return self.latest if self._is_latest_fresh() else None

    def _is_latest_fresh(self) -> bool:
        # By updates, since a stop takes effect at the next step.
        return self.latest is not None and self._n_updates == self.model._n_updates

    def _evaluate(self) -> bool:
        """Evaluate the policy as it is now; return whether training was to go on until that was done."""
        try:
            episodes = self._play()
        except _InterruptedError:
            return False
        spec, timesteps = self._env.spec, self.model.num_timesteps
        evaluation = summarize_episodes(episodes, None if spec is None else spec.reward_threshold)
        self.latest, self._n_updates = {"timesteps": timesteps, **asdict(evaluation)}, self.model._n_updates
        self._n_without_improvement += 1
        if evaluation.mean_reward > self._best_reward:
            self._best_reward, self._n_without_improvement = evaluation.mean_reward, 0
            if self._config.keep_best:
                self.best = self.latest, self.model.to_bytes()
        self._publish(evaluation)
        return True

    def _publish(self, evaluation: Evaluation) -> None:
        assert self.latest is not None, "it is what is published"
        self._progress.publish_evaluation(self.latest)
        self.logger.record("eval/mean_reward", evaluation.mean_reward)
        self.logger.record("eval/mean_ep_length", evaluation.mean_length)
        if evaluation.success_rate is not None:
            self.logger.record("eval/success_rate", evaluation.success_rate)
        self.logger.dump(self.model.num_timesteps)

    def _apply_rules(self) -> None:
        assert self.latest is not None, "it is what is judged"
        stop_reward, patience = self._config.stop_reward, self._config.patience
        if stop_reward is not None and self.latest["mean_reward"] >= stop_reward:
            self._stop_rules.conclude("stop_reward")
        elif patience is not None and self._n_without_improvement >= patience:
            self._stop_rules.conclude("patience")

    def _play(self) -> list[Episode]:
        has_limit = self._env.spec is not None and self._env.spec.max_episode_steps is not None
        # Nothing is drawn from the generator.
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
        self._stop_rules.pulse()
        if self._stop_rules.ended_by is not None:
            raise _InterruptedError


class _InterruptedError(Exception):
    """Training is to end, and the evaluation under way with it."""
