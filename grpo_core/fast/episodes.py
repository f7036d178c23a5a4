"""Play seeded episodes side by side: the same as ``grpo_core.evaluation`` up to rounding, but faster."""

from collections.abc import Generator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from grpo_core.actor.actor import Actor
from grpo_core.evaluation import Episode
from grpo_core.fast.physics import BatchedSimulator
from grpo_core.success import judge_success


def step_episodes(
    env: gym.Env[Any, Any], simulator: BatchedSimulator, actor: Actor, seeds: Sequence[int], max_steps: float
) -> Generator[None, None, list[Episode]]:
    """Play one episode per seed with the most likely actions, and pause after every reset and every step of all.

    :param env: The environment; it is only reset.
    :param simulator: What ``find_batched_simulator`` found for it.
    :param max_steps: Largest number of steps; longer episodes are cut.
    """
    starts = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        starts.append((observation, simulator.capture()))
        yield
    observations, states = (np.array(parts) for parts in zip(*starts, strict=True))
    rewards, n_steps = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    terminated = np.zeros(len(seeds), np.bool_)
    live = np.arange(len(seeds))
    while len(live) > 0 and n_steps[live[0]] < max_steps:
        step = simulator.step(states, actor.clip_actions(actor.best_actions(observations)))
        rewards[live] += step.rewards
        n_steps[live] += 1
        terminated[live] = step.terminated
        goes_on = ~(step.terminated | step.truncated)
        live, states, observations = live[goes_on], step.states[goes_on], step.observations[goes_on]
        yield
    ends = zip(rewards.tolist(), n_steps.tolist(), terminated.tolist(), strict=True)
    return [Episode(reward, n, judge_success(env, {}, is_terminated, reward)) for reward, n, is_terminated in ends]
