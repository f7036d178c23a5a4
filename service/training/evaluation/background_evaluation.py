"""Evaluate a policy now and then, where the job did not say how often, for a small share of its steps and its time."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from grpo_core.evaluation import summarize_episodes
from service.errors import describe_error
from service.training.evaluation.evaluation_callback import EvaluationCallback
from service.training.evaluation.evaluator import EvaluationRun, Evaluator
from service.training.evaluation.work_time import Stopwatch, WorkTime
from service.training.stop_rules import StopRules
from service.workers.task import Progress

# Points of the curve, that of the untrained policy among them; the final evaluation is its end.
_N_POINTS = 20
# What evaluations may play, as a share of the training's steps: short trainings need more of it for a curve.
_STEP_SHARE, _SHORT_STEP_SHARE, _SHORT_STEPS = 0.1, 1.0, 6_000
# Share of these steps that one point may take with more than the fewest episodes.
_POINT_SHARE = 0.25
# The fewest episodes of a point, unless the job asks for fewer, and what is left of them where they take long.
_MIN_EPISODES, _FEWEST_EPISODES = 5, 2
# Share of a training's time that its evaluations may take; a short one's may take a larger share, up to these seconds.
_TIME_SHARE, _SHORT_TIME_SHARE, _SHORT_SECONDS = 0.05, 0.5, 1.0
# What the evaluation of the untrained policy may take besides: without it, a curve has no start.
_FIRST_SECONDS = 0.4
# Pausing more often would cost more than what is played in between.
_MIN_SLICE_SECONDS = 0.004


class BackgroundEvaluation(EvaluationCallback):
    """Evaluates the untrained policy, and others after every twentieth of the steps as far as steps and time allow.

    At which steps, and how many episodes, depends on steps alone. The clock says only when a point is played: its
    policy is frozen, and its episodes go on between rollouts whenever there is time for it, 5 % in all. Points that
    come due meanwhile are left out; if most of them are, a warning says so. If none are, jobs of one seed draw the same
    curve. Training does not depend on any of it: its weights stay the same, and no rule sees an evaluation.

    :param evaluator: Plays the episodes.
    :param stop_rules: Pauses an evaluation when the training ends.
    :param progress: Receives every evaluation.
    :param build_seconds: How long it takes to build the environment.
    """

    def __init__(self, evaluator: Evaluator, stop_rules: StopRules, progress: Progress, build_seconds: float) -> None:
        super().__init__()
        self._evaluator, self._stop_rules, self._progress = evaluator, stop_rules, progress
        self._build_seconds = build_seconds
        self._trains_elsewhere = evaluator.config.n_rollout_workers > 1
        self._begun = self._look_up()
        self._spent_seconds = 0.0
        self._points = _Points(evaluator.config.total_timesteps)
        # The evaluation under way, and the steps that its policy had been trained for.
        self._run: tuple[EvaluationRun, int] | None = None
        self._has_failed = False

    def to_state(self) -> tuple[dict[str, Any], None]:
        """Return what a checkpoint keeps of it: JSON values, and no model file."""
        points = replace(self._points)
        if self._run is not None:
            # A policy of these steps is there again after the checkpoint; older ones are gone.
            if self._run[1] == self.model.num_timesteps:
                points.take_back()
            else:
                points.n_left_out += 1
        return asdict(points), None

    def put_state(self, state: dict[str, Any], best: bytes | None) -> None:
        """Go on from what ``to_state`` returned."""
        self._points = _Points(**state)

    def _on_training_start(self) -> None:
        self._begun = self._look_up()

    def _on_rollout_start(self) -> None:
        if self._has_failed:
            return
        begins = self._points.reach(self.model.num_timesteps, self._run is not None)
        if not begins and self._run is None:
            return
        begun = self._look_up()
        if begins:
            run = self._evaluator.start(self.model.make_numpy_actor())
            self._run = run, self.model.num_timesteps
        self._go_on(begun)

    def _on_training_end(self) -> None:
        if self._has_failed:
            return
        if self._stop_rules.ended_by is None:
            self._go_on(self._look_up())
            self._points.n_left_out += self._run is not None
        if (n_left_out := self._points.n_left_out) > _N_POINTS / 2:  # a few make a curve no worse to read
            self._progress.publish_warning(
                f"{n_left_out} of the evaluations on the way were left out, because they may "
                f"take {_TIME_SHARE * 100:g} % of a training's time: another run of the same seed may draw the curve "
                "through other points. With eval_freq all of them are made, however long they take."
            )

    def _look_up(self) -> WorkTime:
        return WorkTime.now(self._trains_elsewhere)

    def _go_on(self, begun: WorkTime) -> None:
        """Play on, as long as there is time for it.

        :param begun: When this turn began.
        """
        is_first = self._run is not None and self._run[1] == 0
        elapsed = begun.since(self._begun)
        earned_seconds = max(_TIME_SHARE * elapsed, min(_SHORT_TIME_SHARE * elapsed, _SHORT_SECONDS))
        slice_seconds = earned_seconds + _FIRST_SECONDS * is_first - self._spent_seconds
        if self._run is not None and slice_seconds >= max(self._build_seconds, _MIN_SLICE_SECONDS):
            try:
                self._play(*self._run, begun, slice_seconds)
            except (Exception, SystemExit) as error:  # foreign code: the environment may raise anything
                self._has_failed = True
                self._progress.publish_warning(
                    f"the policy is not evaluated during training, since its episodes failed ({describe_error(error)})."
                )
            self._build_seconds = 0.0  # it is built by now
        self._spent_seconds += self._look_up().since(begun)
        if is_first and self._run is None:
            self._spent_seconds = max(0.0, self._spent_seconds - _FIRST_SECONDS)

    def _play(self, run: EvaluationRun, timesteps: int, begun: WorkTime, slice_seconds: float) -> None:
        stopwatch = Stopwatch(begun, self._trains_elsewhere)

        def may_go_on() -> bool:
            self._stop_rules.tick()
            return self._stop_rules.ended_by is None and not stopwatch.is_past(slice_seconds)

        def is_enough() -> bool:
            n_episodes, n_steps = len(run.episodes), self._evaluator.count_steps(run.episodes)
            if n_episodes >= min(_MIN_EPISODES, self._evaluator.config.n_eval_episodes):
                return True
            return n_episodes >= _FEWEST_EPISODES and n_steps * (1 + 1 / n_episodes) > self._points.n_most_steps

        run.advance(may_go_on, is_enough)
        if run.is_over:
            self._progress.publish_evaluation({"timesteps": timesteps, **asdict(summarize_episodes(run.episodes))})
            self._points.end(self._evaluator.count_steps(run.episodes))
            self._run = None


@dataclass
class _Points:
    """Choose the points of a curve, by steps; the time decides only about those that come during another.

    :param total_timesteps: Steps of the training.
    :param latest: Number of the latest point that was reached: 0 is before the training, 20 would be its end.
    :param started: Number of the latest point that was begun.
    :param stride: One point in this many is made, 1, 2, 4, ...: more where the time has not sufficed.
    :param n_steps: Steps that have been played, but for the first point's.
    :param n_latest_steps: Steps of the latest point.
    :param n_left_out: Points that were left out for want of time.
    """

    total_timesteps: int
    latest: int = -1
    started: int = -1
    stride: int = 1
    n_steps: int = 0
    n_latest_steps: int = 0
    n_left_out: int = 0

    @property
    def n_most_steps(self) -> float:
        """Steps that a point with more than the fewest episodes may take."""
        return _POINT_SHARE * self._share * self.total_timesteps

    @property
    def _share(self) -> float:
        return max(_STEP_SHARE, min(_SHORT_STEP_SHARE, _SHORT_STEPS / self.total_timesteps))

    def reach(self, timesteps: int, is_busy: bool) -> bool:
        """Return whether a point begins after these steps.

        :param is_busy: Whether another is being made.
        """
        number = timesteps * _N_POINTS // self.total_timesteps
        if number <= self.latest:
            return False
        self.latest = number
        if number > 0 and self.n_steps + self.n_latest_steps > self._share * timesteps:
            return False
        if is_busy or (self.started >= 0 and number // self.stride == self.started // self.stride):
            self.n_left_out += 1
            return False
        self.started = number
        return True

    def take_back(self) -> None:
        """Begin the latest point once more when its steps are reached again."""
        self.latest -= 1
        self.started -= self.stride

    def end(self, n_steps: int) -> None:
        """Note the steps that the point has taken which was begun last."""
        self.n_steps += n_steps if self.started > 0 else 0
        self.n_latest_steps = n_steps
        while self.latest - self.started >= self.stride:
            self.stride *= 2
