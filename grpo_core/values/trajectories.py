"""Play a policy's own trajectories, and tell what each of their states was worth."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from grpo_core.actor.actor import PolicyActor
from grpo_core.environments.action_masks import get_action_masks, sample_action
from grpo_core.evaluation import Policy, make_policy, to_batch
from grpo_core.groups.rewards import combine_rewards
from grpo_core.options.rewards import Reward
from grpo_core.spaces import Array, pack

# An excursion draws at most this many actions, holds each of them for some steps, because actions that change at every
# step hardly lead away, and then shows what the policy makes of it for some steps.
_MAX_DRAWN_STEPS = 60
_MAX_HELD_STEPS = 8
_EXCURSION_STEPS = 30

Floats = npt.NDArray[np.float64]


class Trajectory(NamedTuple):
    """A stretch that the policy played with its most likely actions.

    :param observations: The observations acted on, packed, shape ``(n_steps, *observation_shape)``.
    :param rewards: The rewards that the policy is trained on, shape ``(n_steps,)``.
    :param last_observation: The observation after the last step, a batch of one.
    :param terminated: Whether the episode ended by itself; otherwise it could have gone on.
    """

    observations: Array
    rewards: Floats
    last_observation: Array
    terminated: bool

    def compute_returns(self, gamma: float, end_value: float) -> Floats:
        """Discount the rewards from each step to the end, and then what the end is worth; shape ``(n_steps,)``.

        :param gamma: Discount factor in [0, 1].
        :param end_value: Value of the last observation, which counts unless the episode terminated.
        """
        returns, following = np.empty_like(self.rewards), 0.0 if self.terminated else end_value
        for t in range(len(returns) - 1, -1, -1):
            returns[t] = following = self.rewards[t] + gamma * following
        return returns


class TrajectoryPlayer:
    """Plays trajectories of a policy in one environment.

    :param env: The environment, used for nothing else meanwhile.
    :param actor: The policy.
    :param reward_function: What it is trained on, as ``GRPO`` takes it; None is the environment's own reward.
    :param reward_weights: Weights of several reward functions; None: 1 each.
    :param max_steps: Largest number of steps of an episode; a longer one is cut.
    :param on_step: Called after every step; an exception it raises ends the trajectory.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        actor: PolicyActor,
        reward_function: Reward | None = None,
        reward_weights: Sequence[float] | None = None,
        max_steps: float = math.inf,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.n_steps = 0
        self._env = env
        self._actor = actor
        self._reward_function = reward_function
        self._reward_weights = reward_weights
        self._max_steps = max_steps
        self._on_step = on_step
        self._policy: Policy = make_policy(actor, deterministic=True, rng=np.random.default_rng(0))

    def play_episode(self, seed: int) -> Trajectory:
        """Play one episode from its reset.

        :param seed: Seed of the reset.
        """
        observation, _ = self._env.reset(seed=seed)
        return self._play(observation, self._max_steps)

    def play_excursion(self, seed: int, rng: np.random.Generator) -> Trajectory | None:
        """Play some steps from a state that the policy itself might never reach.

        Drawn actions lead away from the reset, to the end of the episode at the furthest. The policy takes over at a
        random point on that way.

        :param seed: Seed of the reset.
        :param rng: Draws the actions and the point.
        :return: None if there was no state to take over in.
        """
        drawn = self._draw_actions(seed, rng)
        observation, _ = self._env.reset(seed=seed)
        for action in drawn[: int(rng.integers(len(drawn)))]:
            observation, _, terminated, truncated, _ = self._step(action)
            if terminated or truncated:  # the same seed and actions led further before: its noise comes from elsewhere
                return None
        return self._play(observation, _EXCURSION_STEPS)

    def _draw_actions(self, seed: int, rng: np.random.Generator) -> list[Any]:
        self._env.reset(seed=seed)
        space = self._env.action_space
        space.seed(int(rng.integers(2**31)))
        drawn: list[Any] = []
        over = False
        while not over and len(drawn) < _MAX_DRAWN_STEPS:
            masks = get_action_masks(self._env)
            action = sample_action(space, masks)
            # A masked action may not be allowed again.
            n_held = int(rng.integers(1, _MAX_HELD_STEPS + 1)) if masks is None else 1
            while not over and n_held > 0:
                over = any(self._step(action)[2:4])
                drawn.append(action)
                n_held -= 1
        return drawn

    def _play(self, observation: Any, max_steps: float) -> Trajectory:
        seen: list[Array] = [self._pack(observation)]
        actions: list[Any] = []
        rewards: list[float] = []
        terminated = truncated = False
        while not (terminated or truncated) and len(rewards) < max_steps:
            actions.append(self._policy(observation, get_action_masks(self._env)))
            observation, reward, terminated, truncated, _ = self._step(actions[-1])
            rewards.append(float(reward))
            seen.append(self._pack(observation))
        observations, own = np.concatenate(seen), np.asarray(rewards)
        if self._reward_function is not None:
            steps = observations[:-1], np.asarray(actions), observations[1:]
            own, _ = combine_rewards(*steps, own, self._reward_function, self._reward_weights)
        return Trajectory(observations[:-1], own, observations[-1:], bool(terminated))

    def _step(self, action: Any) -> tuple[Any, ...]:
        stepped = self._env.step(action)
        self.n_steps += 1
        self._on_step()
        return stepped

    def _pack(self, observation: Any) -> Array:
        space = self._actor.observation_space
        # Copied, because an environment may return the same array every time.
        return pack(space, to_batch(space, observation)).copy()
