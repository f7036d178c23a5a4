"""Give a finished policy values that mean something, and measure how much."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from typing import Any

import gymnasium as gym
import numpy as np

from grpo import GRPO
from grpo_core.actor.actor import Actor
from grpo_core.options.choices import NEEDS_VALUES
from grpo_core.values.fit import ValueCheck, check_values, fit_values
from grpo_core.values.trajectories import Trajectory, TrajectoryPlayer
from service.environments.build import build_env
from service.environments.step_limit import MAX_STEPS_WITHOUT_LIMIT
from service.errors import describe_error
from service.spaces import count_numbers
from service.training.evaluation.evaluator import CHECKED_SEED, FITTED_SEED, Evaluator
from service.training.evaluation.work_time import Stopwatch, TimeBudget, WorkTime
from service.training.stop_rules import StopRules

logger = logging.getLogger("grpo.service")

# Simulator steps played, as many as were trained for within these bounds: on classic control 8,000 take a fifth of a
# second, and more hardly improve the values.
_MIN_STEPS, _MAX_STEPS = 2_000, 8_000
# Shares of these steps: to check the values on, and to fit them on states that the policy would not reach itself.
_CHECKED_SHARE, _EXCURSION_SHARE = 0.25, 0.3
_MAX_CHECKED_EPISODES = 10
# Time that this may take; the most is by the clock too.
_BUDGET = TimeBudget(share=0.1, least_seconds=5.0, most_seconds=30.0)
# More numbers observed than this take too much memory to fit values to: the values are then only checked.
_MAX_FITTED_NUMBERS = 2**24


def refit_values(
    model: GRPO, actor: Actor, evaluator: Evaluator, training_seconds: float, stop_rules: StopRules
) -> dict[str, Any] | None:
    """Fit the value network if what training made of it says little, and check it on other episodes.

    :param model: Its policy is the one that will be saved; only its value network may change.
    :param actor: The same policy, with the normalisation that it will be saved with.
    :param evaluator: Has an environment to play in.
    :param training_seconds: How long training took, which bounds how long this may take.
    :param stop_rules: Tell of stops, which end it.
    :return: For the model file: whether its values are worth showing, and why; None if that is not known.
    """
    config = evaluator.config
    limit = _BUDGET.compute_seconds(training_seconds)
    begun = WorkTime.now()
    stopwatch = Stopwatch(begun)

    def check_time() -> None:
        stop_rules.report()
        if stop_rules.n_stops > 0 or stopwatch.is_past(limit) or time.monotonic() - begun.clock > _BUDGET.most_seconds:
            raise _TimeUpError

    n_steps, scale = int(np.clip(config.total_timesteps, _MIN_STEPS, _MAX_STEPS)), _get_reward_scale(model)
    try:
        check_time()
        with _open_env(evaluator) as env:
            rewards = model.reward_function, model.reward_weights
            # Also where there is a time limit, which may be tens of thousands of steps: all observations are kept.
            player = TrajectoryPlayer(env, actor, *rewards, MAX_STEPS_WITHOUT_LIMIT, check_time)
            checked = _play_checked(player, int(_CHECKED_SHARE * n_steps))
            check = _check(actor, checked, config.gamma, scale)
            is_fine = check is not None and check.is_meaningful and config.baseline in NEEDS_VALUES
            if check is None or is_fine or not _can_be_fitted(model, n_steps):
                return _describe(check, config.gamma, scale)
            rng = np.random.default_rng(config.seed)
            fitted = _play_fitted(player, n_steps, rng)
            if not _are_finite(fitted):
                return _describe(check, config.gamma, scale)
    except (Exception, SystemExit) as error:  # foreign code: the environment may raise anything
        if not isinstance(error, _TimeUpError):
            logger.warning("the values are not known, since the policy's episodes failed (%s)", describe_error(error))
        return None
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    try:
        fit_values(model.policy, actor, fitted, config.gamma, rng, scale, check_time)
    except _TimeUpError:
        model.policy.load_state_dict(before)
        return _describe(check, config.gamma, scale)
    refitted = replace(actor, value_layers=model.make_numpy_actor().value_layers)
    new_check = _check(refitted, checked, config.gamma, scale)
    # Written so that an error of NaN is not taken for a small one.
    if new_check is None or not _get_error(new_check) <= _get_error(check):
        model.policy.load_state_dict(before)
        return _describe(check, config.gamma, scale)
    return _describe(new_check, config.gamma, scale)


@contextmanager
def _open_env(evaluator: Evaluator) -> Iterator[gym.Env[Any, Any]]:
    """Provide an environment that pays what the policy is trained on; wrappers may change that, and evaluations not."""
    if not evaluator.config.wrappers:
        yield evaluator.env
        return
    with closing(build_env(evaluator.config.env_setup, is_training=True)) as env:
        yield env


def _get_error(check: ValueCheck) -> float:
    return math.inf if check.error is None else check.error


def _play_checked(player: TrajectoryPlayer, n_steps: int) -> list[Trajectory]:
    """Play the episodes that values are checked on: about ``n_steps`` in all, and at least two episodes."""
    first_step, played = player.n_steps, list[Trajectory]()
    while len(played) < 2 or (player.n_steps - first_step < n_steps and len(played) < _MAX_CHECKED_EPISODES):
        played.append(player.play_episode(CHECKED_SEED + len(played)))
    return played


def _play_fitted(player: TrajectoryPlayer, n_steps: int, rng: np.random.Generator) -> list[Trajectory]:
    """Play the trajectories that values are fitted to: about ``n_steps`` in all, some of them off the policy's path."""
    first_step, seed, played = player.n_steps, FITTED_SEED, list[Trajectory]()
    while (n_played := player.n_steps - first_step) < n_steps:
        if n_played < (1 - _EXCURSION_SHARE) * n_steps:
            played.append(player.play_episode(seed))
        elif (excursion := player.play_excursion(seed, rng)) is not None:
            played.append(excursion)
        seed += 1
    return played


def _check(actor: Actor, checked: list[Trajectory], gamma: float, scale: float) -> ValueCheck | None:
    return check_values(actor, checked, gamma, scale) if _are_finite(checked) else None


def _are_finite(trajectories: list[Trajectory]) -> bool:
    """Return whether all rewards are finite; values can be neither fitted to others nor checked on them."""
    return all(np.isfinite(trajectory.rewards).all() for trajectory in trajectories)


def _can_be_fitted(model: GRPO, n_steps: int) -> bool:
    return model.gamma < 1.0 and n_steps * count_numbers(model.observation_space) <= _MAX_FITTED_NUMBERS


def _get_reward_scale(model: GRPO) -> float:
    """Return what rewards were divided by in training at last."""
    vec_normalize = model.get_vec_normalize_env()
    if vec_normalize is None or not vec_normalize.norm_reward:
        return 1.0
    return math.sqrt(float(vec_normalize.ret_rms.var) + vec_normalize.epsilon)


def _describe(check: ValueCheck | None, gamma: float, scale: float) -> dict[str, Any] | None:
    if check is None:
        return None
    return {"is_meaningful": check.is_meaningful, "gamma": gamma, "reward_scale": scale, **asdict(check)}


class _TimeUpError(Exception):
    """There is no more time to play, or to fit values."""
