"""The course of a job's rewards: what its curve was, what it is now, and whether the difference is more than chance."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from service.schemas.jobs import EpisodeFigures

#: With fewer points, a third of a curve says nothing about its spread.
MIN_POINTS = 12
# The last evaluations that show a plateau already where there are fewer than that: two halves of four each.
_MIN_PLATEAU = 8
# A part of a curve counts as higher than another if it lies this many of their spreads above the other. Among twelve
# random points the last third differs this much from one of the others in 1 case of 16, among twenty in 1 of 100.
_MIN_SPREADS = 2.5
# It must also be higher by this share of its size, since a curve of means over 100 episodes wanders smoothly.
_MIN_CHANGE = 0.05
# A change by more than this share that is still not clear drowns in the spread of the episodes.
_LARGE_CHANGE = 0.25
# Few episodes may show less spread than there is: three that earn the same say little of a fourth. The second makes the
# 97.5 % quantile of 4 episodes 1.8 times that of many; Student's is 1.6 times.
_HIDDEN_SPREAD, _STUDENT = 0.2, 2.4


class Level(NamedTuple):
    """A part of a curve.

    :param reward: Reward of an episode in it.
    :param spread: How far it may be off; infinite if unknown.
    """

    reward: float
    spread: float


class Course(NamedTuple):
    """The parts of a curve.

    :param start: Its beginning.
    :param middle: Its best part since.
    :param end: Its last part.
    :param is_rising: Whether it may still rise in the end.
    :param is_evaluated: Whether its points are evaluations.
    """

    start: Level
    middle: Level
    end: Level
    is_rising: bool
    is_evaluated: bool = True


def find_course(
    evaluations: Sequence[EpisodeFigures], final_evaluation: EpisodeFigures | None, rollout_rewards: Sequence[float]
) -> Course | None:
    """Find the parts of the curve that counts; None if it has too few points.

    :param evaluations: Evaluations on the way, oldest first.
    :param final_evaluation: The evaluation of the policy that is saved.
    :param rollout_rewards: Mean rewards of recent episodes over time, oldest first.
    """
    points = [*evaluations, *([] if final_evaluation is None else [final_evaluation])]
    if len(points) < 2:
        # A single evaluation is one of the saved policy, or of the untrained one.
        is_known = final_evaluation is not None or len(rollout_rewards) < MIN_POINTS
        if is_known:
            return None
        return _split(np.asarray(rollout_rewards, np.float64))._replace(is_evaluated=False)
    if len(evaluations) < MIN_POINTS:
        levels = [_measure_level(point) for point in points]
        start, *between, end = levels
        is_rising = not _has_settled(levels[: len(evaluations)])
        return Course(start, max(between, default=start), end, is_rising)
    course = _split(np.array([point.mean_reward for point in evaluations]))
    levels = [_measure_level(point) for point in points]
    # Those of single episodes have no spread of their own, but the parts of the curve have.
    errors = [level.spread if math.isfinite(level.spread) else course.start.spread for level in levels]
    middle, end = max(course.start, course.middle), course.end
    if final_evaluation is not None:
        # It plays other episodes than the evaluations before, which hardly differ from each other for that reason.
        middle = Level(middle.reward, max(middle.spread, float(np.median(errors))))
        end = Level(levels[-1].reward, max(end.spread, errors[-1]))
    # Much may be learned within the first third.
    return Course(Level(levels[0].reward, errors[0]), middle, end, course.is_rising)


def _has_settled(evaluations: Sequence[Level]) -> bool:
    """Return whether the last of a few evaluations have stopped rising, after one before them."""
    if len(evaluations) <= _MIN_PLATEAU:
        return False
    plateau = evaluations[-_MIN_PLATEAU:]
    halves = np.array_split(np.array([level.reward for level in plateau]), 2)
    return _compare(plateau[0], plateau[-1]) <= 0 and _compare(*map(_measure_part, halves)) <= 0


def _split(curve: npt.NDArray[np.float64]) -> Course:
    """Split a curve, ``(n_points,)`` with at least ``MIN_POINTS``, into thirds."""
    thirds = np.array_split(curve, 3)
    half = len(thirds[2]) // 2
    is_rising = half >= MIN_POINTS // 3 and _compare(*map(_measure_part, (thirds[2][:half], thirds[2][half:]))) > 0
    start, middle, end = map(_measure_part, thirds)
    return Course(start, middle, end, is_rising)


def _measure_part(part: npt.NDArray[np.float64]) -> Level:
    """Return the median, and the standard deviation about the best-fitting line: a steady rise is no spread."""
    places = np.arange(len(part)) - (len(part) - 1) / 2
    deviations = part - part.mean()
    residuals = deviations - places * (places @ deviations) / (places @ places)
    return Level(float(np.median(part)), float(np.sqrt((residuals @ residuals) / (len(part) - 2))))


def _measure_level(figures: EpisodeFigures) -> Level:
    """Return an evaluation's mean, and the standard error of a difference between two such means.

    It is larger the fewer the episodes, about as Student's quantiles are.
    """
    n, reward = figures.n_episodes, figures.mean_reward
    if n == 1:
        return Level(reward, math.inf)
    error = figures.std_reward * math.sqrt(2 / (n - 1)) * (1 + _STUDENT / (n - 1))
    return Level(reward, max(error, _HIDDEN_SPREAD * abs(reward) / n))


def judge_course(course: Course) -> Literal["learning", "steady", "flat", "worse"]:
    """Tell how a curve has changed, as far as its spread lets that be told."""
    since_start, since_middle = _compare(course.start, course.end), _compare(course.middle, course.end)
    if since_start < 0 or since_middle < 0:
        return "worse"
    if since_middle > 0 or (since_start > 0 and course.is_rising):
        return "learning"
    return "steady" if since_start > 0 else "flat"


def _compare(earlier: Level, later: Level) -> int:
    """Return 1 if the later part of a curve is clearly higher, -1 if clearly lower, else 0."""
    change, spread = later.reward - earlier.reward, (earlier.spread + later.spread) / 2
    if abs(change) <= max(_MIN_SPREADS * spread, _MIN_CHANGE * max(abs(earlier.reward), abs(later.reward))):
        return 0
    return 1 if change > 0 else -1


def differs(course: Course) -> bool:
    """Return whether the end is far from the start, regardless of whether their spread makes that certain."""
    start, end = course.start.reward, course.end.reward
    return abs(end - start) > _LARGE_CHANGE * max(abs(start), abs(end))
