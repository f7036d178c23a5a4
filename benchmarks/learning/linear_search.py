"""Random search over linear policies: the simplest method, and a strong one on CartPole."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim

from benchmarks.learning.learning_curve import LearningCurve
from benchmarks.lib.evaluation import Policy


def make_linear_policy(
    weights: npt.NDArray[np.float64], observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Policy:
    """Make the policy ``argmax(observation @ weights)``, or ``clip(observation @ weights)`` for continuous actions.

    :param weights: Shape ``(n_inputs, n_outputs)``.
    :param observation_space: A Box, or Discrete, whose observations are then one-hot.
    :param action_space: A Box or Discrete.
    """

    def policy(observations: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if isinstance(observation_space, spaces.Discrete):
            outputs: npt.NDArray[np.float64] = weights[observations]
        else:
            outputs = observations @ weights
        if isinstance(action_space, spaces.Box):
            outputs = outputs.clip(action_space.low, action_space.high)
            return outputs.astype(np.float32)
        actions: npt.NDArray[Any] = outputs.argmax(axis=-1)  # a hashable integer for a single observation
        return actions

    return policy


def search(env_name: str, budget: int, seed: int, curve: LearningCurve) -> tuple[Policy, dict[str, Any]]:
    """Draw weights from N(0, 1), evaluate each on one episode, and keep the best until the budget is spent.

    :param env_name: Gymnasium id of an environment with Box or Discrete observations and actions.
    :param budget: Simulator steps to take; an episode cut at the end does not count.
    :param seed: Seed of the weights and of the environment.
    :param curve: Evaluates the best policy so far.
    :return: The best policy, the number of candidates and the best return.
    """
    rng = np.random.default_rng(seed)
    env = gym.make(env_name)
    n_outputs = flatdim(env.action_space)
    best_return, best_policy, n_candidates, n_timesteps = -np.inf, None, 0, 0
    while n_timesteps < budget:
        weights = rng.standard_normal((flatdim(env.observation_space), n_outputs))
        policy = make_linear_policy(weights, env.observation_space, env.action_space)
        observation, _ = env.reset(seed=seed if n_timesteps == 0 else None)
        episode_return, is_done = 0.0, False
        while not is_done and n_timesteps < budget:
            observation, reward, terminated, truncated, _ = env.step(policy(np.asarray(observation)))
            episode_return += float(reward)
            is_done = terminated or truncated
            n_timesteps += 1
            if curve.is_due(n_timesteps):
                curve.add(n_timesteps, best_policy or policy)
        if best_policy is None or (is_done and episode_return > best_return):
            best_return, best_policy = episode_return, policy
        n_candidates += 1
    assert best_policy is not None
    return best_policy, {"n_candidates": n_candidates, "best_training_return": best_return}
