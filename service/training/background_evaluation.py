"""Evaluate a policy now and then, where the job did not say how often, for a small share of its time."""

import time
from dataclasses import asdict

from stable_baselines3.common.callbacks import BaseCallback

from grpo import GRPO
from grpo_core.evaluation import summarize_episodes
from service.errors import describe_error
from service.training.evaluator import SEED_ON_THE_WAY, EvaluationRun, Evaluator
from service.training.stop_rules import StopRules
from service.workers.task import Progress

# Share of a training's time that its evaluations may take.
_SHARE = 0.05
# What short trainings may spend, so that they too show what the untrained policy earns.
_LEAST_SECONDS = 0.2
# Points of the curve, if time allows; a screen shows no more.
_N_POINTS = 40
# The fewest episodes of a point, unless the job asks for fewer.
_MIN_EPISODES = 5
# Pausing more often would cost more than what is played in between.
_MIN_SLICE_SECONDS = 0.004


class BackgroundEvaluation(BaseCallback):
    """Evaluates policies between rollouts, the untrained one first, for at most 5 % of the time (or 0.2 s).

    Each is frozen, and its episodes are played whenever some of the time has been earned. They are as many as fit into
    a fortieth of it, from 5 to ``n_eval_episodes``. When they end depends on the clock, but training does not depend
    on them: its weights stay the same, and no rule sees them.

    :param evaluator: Plays the episodes.
    :param stop_rules: Pauses an evaluation when the training ends.
    :param progress: Receives every evaluation.
    :param build_seconds: How long it takes to build the environment.
    """

    model: GRPO

    def __init__(self, evaluator: Evaluator, stop_rules: StopRules, progress: Progress, build_seconds: float) -> None:
        super().__init__()
        self._evaluator, self._stop_rules, self._progress = evaluator, stop_rules, progress
        self._build_seconds = build_seconds
        self._begun = 0.0
        self._spent_seconds = 0.0
        self._next_timesteps = 0.0
        # The evaluation under way, and the steps that its policy had been trained for.
        self._run: tuple[EvaluationRun, int] | None = None
        self._has_failed = False

    def _on_training_start(self) -> None:
        self._begun = time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._has_failed:
            return
        begun = time.monotonic()
        if self._run is None and self.model.num_timesteps >= self._next_timesteps:
            run = self._evaluator.start(self.model.make_numpy_actor(), SEED_ON_THE_WAY)
            self._run = run, self.model.num_timesteps
        slice_seconds = max(_LEAST_SECONDS, _SHARE * (begun - self._begun)) - self._spent_seconds
        if self._run is not None and slice_seconds >= max(self._build_seconds, _MIN_SLICE_SECONDS):
            try:
                self._play(*self._run, begun + slice_seconds)
            except (Exception, SystemExit) as error:  # foreign code: the environment may raise anything
                self._has_failed = True
                self._progress.publish_warning(
                    f"the policy is not evaluated during training, since its episodes failed ({describe_error(error)})."
                )
            self._build_seconds = 0.0  # it is built by now
        self._spent_seconds += time.monotonic() - begun

    def _play(self, run: EvaluationRun, timesteps: int, deadline: float) -> None:
        share_seconds, n_least = self._compute_share(), min(_MIN_EPISODES, self._evaluator.config.n_eval_episodes)

        def may_go_on() -> bool:
            self._stop_rules.tick()
            return self._stop_rules.ended_by is None and time.monotonic() < deadline

        run.advance(may_go_on, lambda: len(run.episodes) >= n_least and run.seconds >= share_seconds)
        if run.is_over:
            self._progress.publish_evaluation({"timesteps": timesteps, **asdict(summarize_episodes(run.episodes))})
            self._run = None
            self._next_timesteps = timesteps + self._evaluator.config.total_timesteps / _N_POINTS

    def _compute_share(self) -> float:
        """Estimate the time that an evaluation may take if there are to be ``_N_POINTS``."""
        elapsed_seconds = time.monotonic() - self._begun
        progress = max(self.model.num_timesteps, 1) / self._evaluator.config.total_timesteps
        return _SHARE * elapsed_seconds / progress / _N_POINTS
