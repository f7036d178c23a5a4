"""Evaluate a policy now and then, where the job did not say how often, for a small share of its time."""

import time
from dataclasses import asdict

from stable_baselines3.common.callbacks import BaseCallback

from grpo import GRPO
from grpo_core.evaluation import summarize_episodes
from service.errors import describe_error
from service.training.evaluation.evaluator import SEED_ON_THE_WAY, EvaluationRun, Evaluator
from service.training.stop_rules import StopRules
from service.workers.task import Progress

# Share of a training's time that its evaluations may take.
_SHARE = 0.05
# What short trainings may spend over their whole course, so that they too have a curve.
_LEAST_SECONDS = 0.2
# What the evaluation of the untrained policy may take besides: without it, a curve has no start.
_FIRST_SECONDS = 0.4
# Points of the curve, if time allows; a screen shows no more.
_N_POINTS = 40
# The fewest episodes of a point, unless the job asks for fewer, and what is left of them where they take long.
_MIN_EPISODES, _FEWEST_EPISODES = 5, 2
# Points that the time has to suffice for: so much of it may one of more than the fewest episodes take.
_N_LEAST_POINTS = 4
# Pausing more often would cost more than what is played in between.
_MIN_SLICE_SECONDS = 0.004


class BackgroundEvaluation(BaseCallback):
    """Evaluates policies between rollouts for at most 5 % of the time (or 0.2 s), and at first the untrained one.

    Each is frozen, and its episodes are played whenever some of the time has been earned. They are as many as fit into
    a fortieth of it, from 5 to ``n_eval_episodes``, and down to 2 where they take long. When they end depends on the
    clock, but training does not depend on them: its weights stay the same, and no rule sees them.

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
        # What the latest evaluation took.
        self._run_seconds = 0.0
        self._has_started = False
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
        slice_seconds, had_started = self._earn(begun) - self._spent_seconds, self._has_started
        # Not before half of it can be played at once: a policy that waits for the rest is an old one by then.
        is_due = self.model.num_timesteps >= self._next_timesteps and slice_seconds >= self._run_seconds / 2
        if self._run is None and is_due:
            run = self._evaluator.start(self.model.make_numpy_actor(), SEED_ON_THE_WAY)
            self._run = run, self.model.num_timesteps
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
        if self._has_started and not had_started:
            self._spent_seconds = max(0.0, self._spent_seconds - _FIRST_SECONDS)

    def _play(self, run: EvaluationRun, timesteps: int, deadline: float) -> None:
        whole_seconds = self._estimate_whole()
        share_seconds, n_least = whole_seconds / _N_POINTS, min(_MIN_EPISODES, self._evaluator.config.n_eval_episodes)
        most_seconds = max(_LEAST_SECONDS, whole_seconds) / _N_LEAST_POINTS if self._has_started else _FIRST_SECONDS

        def may_go_on() -> bool:
            self._stop_rules.tick()
            return self._stop_rules.ended_by is None and time.monotonic() < deadline

        def is_enough() -> bool:
            n_episodes = len(run.episodes)
            if n_episodes >= n_least and run.seconds >= share_seconds:
                return True
            return n_episodes >= _FEWEST_EPISODES and run.seconds * (1 + 1 / n_episodes) > most_seconds

        run.advance(may_go_on, is_enough)
        if run.is_over:
            self._progress.publish_evaluation({"timesteps": timesteps, **asdict(summarize_episodes(run.episodes))})
            self._run, self._run_seconds, self._has_started = None, run.seconds, True
            self._next_timesteps = timesteps + self._evaluator.config.total_timesteps / _N_POINTS

    def _earn(self, now: float) -> float:
        """Return the time that all evaluations together may have taken by now."""
        least_seconds = _LEAST_SECONDS * self.model.num_timesteps / self._evaluator.config.total_timesteps
        return _FIRST_SECONDS * (not self._has_started) + max(least_seconds, _SHARE * (now - self._begun))

    def _estimate_whole(self) -> float:
        """Estimate the time that all evaluations together may take."""
        progress = max(self.model.num_timesteps, 1) / self._evaluator.config.total_timesteps
        return _SHARE * (time.monotonic() - self._begun) / progress
