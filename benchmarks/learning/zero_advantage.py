"""The obvious port of GRPO to Stable-Baselines3, as a negative control.

In each state every action gets a reward, and the rewards are normalised over the actions. But all of them are computed
from the one next state that followed the action taken, so a reward of the next state alone is the same for all actions:
every advantage is exactly 0, and nothing can be learned.
"""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.lib.runs import Settings
from grpo_core.options.rewards import optimized_cartpole

# The defaults of POST /train, with the largest minibatch that a rollout of 32 steps fills.
ZERO_ADVANTAGE: dict[str, Settings] = {
    "CartPole-v1": {
        "source": "PPO with the advantages replaced; trains on optimized_cartpole",
        "learning_rate": 3e-4,
        "n_steps": 32,
        "batch_size": 32,
        "n_epochs": 10,
        "normalize_advantage": False,
    }
}
_EPSILON = 1e-4  # as in TRL


class GroupRewards(gym.Wrapper[Any, Any, Any, Any]):
    """Puts a reward of every action into ``info["group_rewards"]``, all computed from the actual next state."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._state = np.zeros(0, np.float32)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Remember the first state."""
        self._state, info = self.env.reset(**kwargs)
        return self._state, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and reward all actions; the reward of the step is that of the action taken."""
        next_state, _, terminated, truncated, info = self.env.step(action)
        assert isinstance(self.action_space, spaces.Discrete)
        actions = torch.arange(int(self.action_space.n)).unsqueeze(1)
        states, next_states = (torch.as_tensor(x).expand(len(actions), -1) for x in (self._state, next_state))
        rewards = optimized_cartpole(states, actions, next_states).flatten().numpy()
        self._state = next_state
        return next_state, float(rewards[int(action)]), terminated, truncated, info | {"group_rewards": rewards}


class ReplaceAdvantages(BaseCallback):
    """Replaces PPO's advantages by the group-normalised rewards of the actions taken.

    ``max_abs_advantage`` is the largest absolute advantage of any action so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.max_abs_advantage = 0.0
        self._advantages: list[float] = []

    def _on_step(self) -> bool:
        rewards = self.locals["infos"][0]["group_rewards"]
        advantages = (rewards - rewards.mean()) / (rewards.std() + _EPSILON)
        self.max_abs_advantage = max(self.max_abs_advantage, float(np.abs(advantages).max()))
        self._advantages.append(float(advantages[int(self.locals["actions"][0])]))
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, PPO)
        self.model.rollout_buffer.advantages[:, 0] = self._advantages
        self._advantages.clear()
