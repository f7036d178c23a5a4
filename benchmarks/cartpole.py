"""Train CartPole-v1 over HTTP with the defaults of POST /train, beside SB3's PPO on the same reward and step budget.

Run it with ``make bench-cartpole``. Every policy is judged by 100 deterministic episodes of the environment's *own*
reward (at most 500). The seeds were not used while the method was tuned; change them with ``--first-seed``.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, SupportsFloat

# One thread per training; several trainings share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch
from fastapi.testclient import TestClient
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

from api import create_app
from benchmarks.evaluation import N_EPISODES, evaluate, format_table
from grpo import GRPO
from grpo_core.options.rewards import optimized_cartpole
from service.settings import Settings

ENV_NAME = "CartPole-v1"
SOLVED_SCORE = 475.0
FIRST_SEED = 1000
TOTAL_TIMESTEPS = 10_000  # the default of POST /train
_POLL_SECONDS = 0.5

# rl-baselines3-zoo, hyperparams/ppo.yml, CartPole-v1 (its n_timesteps aside); "lin_x" there falls linearly to 0.
PPO_ZOO: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    "ent_coef": 0.0,
    "learning_rate": LinearSchedule(0.001, 0.0, 1.0),
    "clip_range": LinearSchedule(0.2, 0.0, 1.0),
}
PPO_ZOO_N_ENVS = 8
# What POST /train's defaults give GRPO, given to PPO: the same epochs and falling learning rate, and minibatches of 32,
# because a rollout of 32 steps fills no larger one.
PPO_SAME: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 32,
    "n_epochs": 10,
    "learning_rate": LinearSchedule(3e-4, 0.0, 1.0),
}


class OptimizedCartPoleReward(gym.Wrapper[Any, Any, Any, Any]):
    """Gives PPO the reward that GRPO trains on."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._state = np.zeros(4, np.float32)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Remember the first state."""
        self._state, info = self.env.reset(**kwargs)
        return self._state, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and score the step anew."""
        next_state, _, terminated, truncated, info = self.env.step(action)
        tensors = (torch.as_tensor(x).reshape(1, -1) for x in (self._state, action, next_state))
        self._state = next_state
        return next_state, optimized_cartpole(*tensors).item(), terminated, truncated, info


def train_grpo_over_http(seeds: Sequence[int]) -> list[float]:
    """Send ``POST /train`` with nothing but a seed and a name, wait, and judge the saved model files."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(models_dir=Path(folder), max_queued_jobs=len(seeds))
        with TestClient(create_app(settings), base_url="http://localhost") as client:
            jobs = [client.post("/train", json={"seed": seed, "model_name": f"seed-{seed}"}).json() for seed in seeds]
            for job in jobs:
                wait_for(client, job["job_id"])
        scores = []
        for seed in seeds:
            actor = GRPO.load(Path(folder) / f"seed-{seed}.zip").make_actor()
            scores.append(evaluate(ENV_NAME, actor.best_actions, seed))
        return scores


def wait_for(client: TestClient, job_id: str) -> dict[str, Any]:
    """Wait until a job is completed, and return its status."""
    while True:
        status: dict[str, Any] = client.get(f"/training/{job_id}/status").json()
        if status["status"] == "completed":
            return status
        if status["status"] in ("failed", "stopped"):
            raise RuntimeError(f"job {job_id} {status['status']}: {status['error_message']}")
        time.sleep(_POLL_SECONDS)


def train_ppo(n_envs: int, arguments: dict[str, Any], seed: int) -> float:
    """Train SB3's PPO on the same reward and judge it the same way."""
    torch.set_num_threads(1)
    env = make_vec_env(ENV_NAME, n_envs, seed=seed, wrapper_class=OptimizedCartPoleReward)
    model = PPO("MlpPolicy", env, seed=seed, device="cpu", **arguments)
    model.learn(TOTAL_TIMESTEPS)
    return evaluate(ENV_NAME, lambda observations: model.predict(observations, deterministic=True)[0], seed)


def _train_grpo_constant(seed: int) -> float:
    """Train what the service trains, but for a learning rate that does not fall."""
    torch.set_num_threads(1)
    model = GRPO(
        "MlpPolicy",
        ENV_NAME,
        learning_rate=3e-4,
        n_steps=32,
        seed=seed,
        device="cpu",
        reward_function=optimized_cartpole,
        horizon=16,
        baseline="group",
        bootstrap_value=False,
    )
    model.learn(TOTAL_TIMESTEPS)
    return evaluate(ENV_NAME, model.make_actor().best_actions, seed)


def _train_ppo_default(seed: int) -> float:
    return train_ppo(1, {}, seed)


def _train_ppo_same(seed: int) -> float:
    return train_ppo(1, PPO_SAME, seed)


def _train_ppo_zoo(seed: int) -> float:
    return train_ppo(PPO_ZOO_N_ENVS, PPO_ZOO, seed)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.n_seeds)
    scores = {"GRPO, POST /train defaults": train_grpo_over_http(seeds)}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as executor:
        for method, train in (
            ("GRPO, constant learning rate", _train_grpo_constant),
            ("SB3 PPO, the same settings", _train_ppo_same),
            ("SB3 PPO, zoo settings", _train_ppo_zoo),
            ("SB3 PPO, defaults", _train_ppo_default),
        ):
            scores[method] = list(executor.map(train, seeds))
    print(f"{ENV_NAME}, {TOTAL_TIMESTEPS} simulator steps, seeds {seeds[0]} to {seeds[-1]}, own reward over")
    print(f"{N_EPISODES} deterministic episodes; all methods train on optimized_cartpole.\n")
    print(format_table(scores, SOLVED_SCORE))


if __name__ == "__main__":
    main()
