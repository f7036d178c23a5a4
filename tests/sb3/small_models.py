"""Models so small that a training takes a fraction of a second, and observations for them."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo import GRPO
from tests.sb3.environments import ACTION_SPACES, OBSERVATION_SPACES, MatchEnv
from tests.suites import DEVICE

# Arguments of each group mode; "action" needs the three choices that the Discrete action space here has.
MODES: dict[str, dict[str, Any]] = {
    "branch": {"group_mode": "branch", "n_steps": 16, "group_size": 2, "horizon": 4},
    "episode": {"group_mode": "episode", "n_steps": 12, "group_size": 2},
    "action": {"group_mode": "action", "n_steps": 12, "group_size": 3, "horizon": 2},
}
POLICY_OF = dict.fromkeys(OBSERVATION_SPACES, "MlpPolicy") | {"image": "CnnPolicy", "dict": "MultiInputPolicy"}
# Workers that import nothing; those that SB3 starts by default, as one test has them, spend seconds on torch.
FORKED = {"start_method": "fork"}
_EXTRACTOR_KWARGS = {"MlpPolicy": {}, "CnnPolicy": {"features_dim": 8}, "MultiInputPolicy": {"cnn_output_dim": 8}}


def list_combinations() -> list[tuple[str, str, str, int]]:
    """List spaces of observations and actions, group modes and numbers of environments: every two of them meet."""
    pairs = [
        (observation, action, ("branch", "episode")[(i + j) % 2], 1 + (i + j // 2) % 2)
        for i, observation in enumerate(OBSERVATION_SPACES)
        for j, action in enumerate(ACTION_SPACES)
    ]
    return pairs + [(observation, "discrete", "action", 1 + i % 2) for i, observation in enumerate(OBSERVATION_SPACES)]


def build(env: Any = None, policy: Any = "MlpPolicy", mode: str = "branch", **changes: Any) -> GRPO:
    """Build a model that trains in no time."""
    arguments: dict[str, Any] = {
        **MODES[mode],
        "batch_size": 8,
        "n_epochs": 2,
        "seed": 0,
        "device": DEVICE,
        "policy_kwargs": {"net_arch": [8], "features_extractor_kwargs": _EXTRACTOR_KWARGS.get(policy)},
    }
    return GRPO(policy, MatchEnv() if env is None else env, **{**arguments, **changes})


def build_over(observation: str, action: str, mode: str = "branch", n_envs: int = 1, **changes: Any) -> GRPO:
    """Build a model over spaces by their names."""

    def make_env() -> MatchEnv:
        return MatchEnv(OBSERVATION_SPACES[observation], ACTION_SPACES[action])

    return build(DummyVecEnv([make_env] * n_envs), POLICY_OF[observation], mode, **changes)


def sample_observations(model: GRPO, n_observations: int, seed: int = 0) -> Any:
    """Draw observations as the policy sees them, shape ``(n_observations, ...)``, or a dict of such."""
    space = model.observation_space
    space.seed(seed)
    observations: list[Any] = [space.sample() for _ in range(n_observations)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in observations]) for key in space.spaces}
    return np.stack(observations)
