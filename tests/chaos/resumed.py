"""Interrupt trainings of every kind, let them go on from a checkpoint, and compare them with those that nobody stops.

``python -m tests.chaos.resumed`` prints a line per training, and ends with status 1 if one ends with another file.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from grpo import GRPO
from grpo_core.checkpoints import checkpoint

_TOTAL, _AT = 3_000, 1_000
_N_ACTIONS = {"CartPole-v1": 2, "Acrobot-v1": 3, "MountainCar-v0": 3, "FrozenLake-v1": 4}
_ENV_NAMES = (*_N_ACTIONS, "Pendulum-v1")


class _Interruption(BaseCallback):
    model: GRPO

    def __init__(self) -> None:
        super().__init__()
        self.content: bytes | None = None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.content is None and self.model.num_timesteps >= _AT:
            self.content = checkpoint.to_bytes(self.model)


def list_trainings() -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Yield environments, whether they are normalised, and arguments of ``GRPO``."""
    for env_name in _ENV_NAMES:
        for is_normalized in (False, True):
            if is_normalized and env_name == "FrozenLake-v1":
                continue  # its observations are no numbers
            yield env_name, is_normalized, {"group_mode": "branch"}
            yield env_name, is_normalized, {"group_mode": "episode"}
            if env_name in _N_ACTIONS:
                sizes = {"group_size": _N_ACTIONS[env_name], "n_steps": 384, "horizon": 32}
                yield env_name, is_normalized, {"group_mode": "action", **sizes}


def goes_on_exactly(env_name: str, is_normalized: bool, arguments: dict[str, Any]) -> bool:
    """Train once without and once with an interruption; return whether both end with the same model file."""

    def make_model() -> GRPO:
        env: VecEnv = make_vec_env(env_name)
        return GRPO("MlpPolicy", VecNormalize(env) if is_normalized else env, seed=3, device="cpu", **arguments)

    whole, interruption = make_model(), _Interruption()
    whole.learn(_TOTAL, interruption)
    assert interruption.content is not None, "the budget is larger than where it is interrupted"
    resumed = make_model()
    caveat = checkpoint.restore(resumed, checkpoint.from_bytes(interruption.content))
    resumed.learn(_TOTAL - resumed.num_timesteps, reset_num_timesteps=False)
    return caveat is None and resumed.to_bytes() == whole.to_bytes()


def main() -> int:
    """Try them all.

    :return: The exit status.
    """
    argparse.ArgumentParser(description=__doc__).parse_args()
    warnings.simplefilter("ignore")
    outcomes = []
    for training in list_trainings():
        outcomes.append(goes_on_exactly(*training))
        sys.stdout.write(f"{'same' if outcomes[-1] else 'OTHER'}  {training}\n")
    sys.stdout.write(f"{sum(outcomes)} of {len(outcomes)} end with the same file\n")
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
