"""Evaluate policies beside their training, a few steps at a time, without disturbing it."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np

from grpo import GRPO
from grpo_core import fast
from grpo_core.actor.actor import Actor
from grpo_core.environments.registered_limits import find_max_steps
from grpo_core.evaluation import Episode, make_policy, step_episode
from grpo_core.update.seeding import capture_process_wide, restore_process_wide
from service.environments.build import build_env
from service.environments.step_limit import MAX_STEPS_WITHOUT_LIMIT
from service.schemas.training import TrainConfig

# Seeds of first episodes; the others count up from them. They are far from what people choose, and apart: the policy
# that is saved was chosen by the episodes on the way, and its values are checked on other episodes than they are fitted
# to.
SEED_ON_THE_WAY, FINAL_SEED, CHECKED_SEED, FITTED_SEED = 1_000_000, 2_000_000, 3_000_000, 4_000_000
# Most episodes of a final evaluation. Each job seed (modulo 1,000) has a range of episode seeds of that size, or lucky
# starts would flatter every seed of a sweep alike. 1,000 x 1,000 fills the gap to CHECKED_SEED.
_MOST_FINAL = 1_000
# Final episodes for each that is asked for, where a hundred take hardly longer than ten: a mean over ten starts of
# Pendulum-v1 says little.
_N_TIMES_FINAL = 10
# Episodes that are played side by side where physics is batched, and at the end where they are stepped as one.
_BATCH_SIZE, _FINAL_BATCH_SIZE = 10, 100


class Evaluator:
    """Evaluates one policy after another in an environment of its own, which is built when it is first needed.

    :param config: The job's settings.
    :param n_threads: Threads that may step simulators.
    """

    def __init__(self, config: TrainConfig, n_threads: int = 1) -> None:
        self.config = config
        self._threads = fast.StepThreads(n_threads)

    @cached_property
    def env(self) -> gym.Env[Any, Any]:
        """The environment."""
        return build_env(self.config.env_setup)

    def start(self, actor: Actor) -> "EvaluationRun":
        """Start an evaluation on the way, of ``n_eval_episodes`` episodes that are the same for all jobs.

        It ends the one before.

        :param actor: The policy.
        """
        return EvaluationRun(self, actor, SEED_ON_THE_WAY, self.config.n_eval_episodes, _BATCH_SIZE)

    def start_final(self, actor: Actor) -> "EvaluationRun":
        """Start the evaluation of the policy that is saved, of episodes that depend on the job's seed.

        They are ``n_eval_episodes``, and where many are stepped as one ten times as many, but at most 1,000.

        :param actor: The policy.
        """
        n_episodes, batch_size = self.config.n_eval_episodes, _BATCH_SIZE
        if self._steps_as_one:
            n_episodes, batch_size = min(_N_TIMES_FINAL * n_episodes, _MOST_FINAL), _FINAL_BATCH_SIZE
        first_seed = FINAL_SEED + _MOST_FINAL * (self.config.seed % _MOST_FINAL)
        return EvaluationRun(self, actor, first_seed, n_episodes, batch_size)

    def step_episodes(self, actor: Actor, seeds: range, batch_size: int) -> Generator[None, None, list[Episode]]:
        """Play the next episodes, several side by side or one, and pause after every reset and step.

        :param seeds: Those of all episodes that are left, at least one.
        :param batch_size: How many are played side by side where physics is batched.
        :return: The episodes of the first of these seeds.
        """
        env, max_steps = self.env, self.max_steps
        if self._simulator is not None:
            return (yield from fast.step_episodes(env, self._simulator, actor, seeds[:batch_size], max_steps))
        # The most likely actions draw nothing from the generator.
        policy = make_policy(actor, True, np.random.default_rng(0))
        return [(yield from step_episode(env, policy, seeds[0], max_steps))]

    def count_steps(self, episodes: Sequence[Episode]) -> int:
        """Count the steps that episodes on the way took time for: of those played side by side, the longest one's."""
        lengths = [episode.n_steps for episode in episodes]
        if not self._steps_as_one:
            return sum(lengths)
        return sum(max(lengths[i : i + _BATCH_SIZE]) for i in range(0, len(lengths), _BATCH_SIZE))

    @property
    def max_steps(self) -> float:
        """Number of steps after which an episode is cut; infinite where the environment has a time limit."""
        return find_max_steps(self.env.spec, MAX_STEPS_WITHOUT_LIMIT)

    @cached_property
    def _simulator(self) -> fast.BatchedSimulator | None:
        return fast.find_batched_simulator(self.env, self._threads) if GRPO.use_fast_path else None

    @property
    def _steps_as_one(self) -> bool:
        return self._simulator is not None and self._simulator.steps_as_one

    def close(self) -> None:
        """Close the environment, if it was built."""
        if "env" in vars(self):
            self.env.close()


class EvaluationRun:
    """An evaluation under way: seeded episodes of a frozen policy, which takes its most likely actions.

    Training goes on as it would have without it: generators that the whole process shares are put back.

    :param evaluator: Has the environment to play in.
    :param actor: The policy.
    :param first_seed: Seed of the first episode; the others count up from it.
    :param n_episodes: Number of episodes.
    :param batch_size: How many of them are played side by side where physics is batched.
    """

    def __init__(self, evaluator: Evaluator, actor: Actor, first_seed: int, n_episodes: int, batch_size: int) -> None:
        self._evaluator, self._actor = evaluator, actor
        self._n_episodes, self._batch_size = n_episodes, batch_size
        #: The episodes that have ended.
        self.episodes: list[Episode] = []
        #: Whether no episode is left to play.
        self.is_over = False
        self._steps = self._play(range(first_seed, first_seed + n_episodes))
        self._spent_seconds = 0.0
        self._resumed: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all episodes have ended."""
        return len(self.episodes) == self._n_episodes

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
        generators = capture_process_wide()  # environments may draw from them
        try:
            while not self.is_over:
                next(self._steps, None)
                if len(self.episodes) > n_episodes:
                    n_episodes = len(self.episodes)
                    self.is_over = self.is_complete or is_enough()
                if not may_go_on():
                    break
        finally:
            restore_process_wide(generators)
            self._spent_seconds, self._resumed = self.seconds, None

    def _play(self, seeds: range) -> Iterator[None]:
        while seeds:
            episodes = yield from self._evaluator.step_episodes(self._actor, seeds, self._batch_size)
            if not all(math.isfinite(reward := episode.reward) for episode in episodes):
                raise ValueError(
                    f"the reward of an evaluation's episode is not finite ({reward}); fix the environment "
                    f"'{self._evaluator.config.env_name}'."
                )
            self.episodes += episodes
            seeds = seeds[len(episodes) :]
            yield
