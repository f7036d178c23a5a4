"""Evaluate policies beside their training, a few steps at a time, without disturbing it."""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from grpo_core.actor.actor import Actor
from grpo_core.evaluation import Episode, make_policy, step_episode
from service.environments.build import build_env
from service.schemas.training import TrainConfig

# Cuts episodes of environments without a time limit; the limit of most others is at most this.
MAX_EPISODE_STEPS = 1000


class Evaluator:
    """Evaluates one policy after another in an environment of its own, which is built when it is first needed.

    :param config: The job's settings.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    @cached_property
    def env(self) -> gym.Env[Any, Any]:
        """The environment."""
        return build_env(self.config.env_setup)

    def start(self, actor: Actor, first_seed: int) -> "EvaluationRun":
        """Start an evaluation of ``n_eval_episodes`` episodes; it ends the one before.

        :param actor: The policy.
        :param first_seed: Seed of the first episode; the others count up from it.
        """
        return EvaluationRun(lambda: self.env, actor, self.config, first_seed)

    def close(self) -> None:
        """Close the environment, if it was built."""
        if "env" in vars(self):
            self.env.close()


class EvaluationRun:
    """An evaluation under way: seeded episodes of a frozen policy, which takes its most likely actions.

    Training goes on as it would have without it: generators that the whole process shares are put back.

    :param get_env: Returns the environment to play in.
    :param actor: The policy.
    :param config: The job's settings.
    :param first_seed: Seed of the first episode; the others count up from it.
    """

    def __init__(
        self, get_env: Callable[[], gym.Env[Any, Any]], actor: Actor, config: TrainConfig, first_seed: int
    ) -> None:
        self._get_env, self._actor, self._config = get_env, actor, config
        #: The episodes that have ended.
        self.episodes: list[Episode] = []
        #: Whether no episode is left to play.
        self.is_over = False
        self._steps = self._play(range(first_seed, first_seed + config.n_eval_episodes))
        self._spent_seconds = 0.0
        self._resumed: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all episodes have ended."""
        return len(self.episodes) == self._config.n_eval_episodes

    @property
    def seconds(self) -> float:
        """Time spent so far."""
        return self._spent_seconds + (0.0 if self._resumed is None else time.monotonic() - self._resumed)

    def advance(self, may_go_on: Callable[[], bool], is_enough: Callable[[], bool] = lambda: False) -> None:
        """Play on until the evaluation is over.

        :param may_go_on: Asked after every reset and step; False pauses.
        :param is_enough: Asked after every episode; True ends the evaluation. A pause in the middle of an episode
            would be no good end: long episodes would be left out more often than short ones.
        :raises ValueError: If an episode's reward is not finite.
        :raises Exception: Whatever the environment raises.
        """
        self._resumed = time.monotonic()
        n_episodes = len(self.episodes)
        try:
            with _keep_shared_generators():
                while not self.is_over:
                    next(self._steps, None)
                    if len(self.episodes) > n_episodes:
                        n_episodes += 1
                        self.is_over = self.is_complete or is_enough()
                    if not may_go_on():
                        break
        finally:
            self._spent_seconds, self._resumed = self.seconds, None

    def _play(self, seeds: range) -> Iterator[None]:
        env = self._get_env()
        has_limit = env.spec is not None and env.spec.max_episode_steps is not None
        # The most likely actions draw nothing from the generator.
        policy = make_policy(self._actor, True, np.random.default_rng(0))
        for seed in seeds:
            episode = yield from step_episode(env, policy, seed, math.inf if has_limit else MAX_EPISODE_STEPS)
            if not math.isfinite(episode.reward):
                raise ValueError(
                    f"the reward of an evaluation's episode is not finite ({episode.reward}); fix the environment "
                    f"'{self._config.env_name}'."
                )
            self.episodes.append(episode)
            yield


@contextmanager
def _keep_shared_generators() -> Iterator[None]:
    """Put the generators back that all code of a process shares, and that environments may draw from."""
    of_numpy, of_python, of_torch = np.random.get_state(), random.getstate(), torch.get_rng_state()
    try:
        yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        torch.set_rng_state(of_torch)
