"""Train CartPole-v1 over HTTP with the defaults of POST /train, beside SB3's PPO on the same reward and step budget.

Run it with ``make bench-cartpole``. A score is the mean of the environment's *own* reward (at most 500) over 100
deterministic episodes. The seeds were not used to tune the method; ``--first-seed`` takes others.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# One thread per training; several trainings share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from fastapi.testclient import TestClient
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from api import create_app
from benchmarks.learning.peer_settings import PPO_ZOO as PPO_ZOO_SETTINGS
from benchmarks.lib.evaluation import N_EPISODES, evaluate, format_table, store_scores
from benchmarks.lib.http_jobs import wait_for
from benchmarks.lib.versions import read_versions
from grpo import GRPO
from grpo_core.options.presets import parse_schedules
from grpo_core.options.rewards import optimized_cartpole
from service.settings import Settings

ENV_NAME = "CartPole-v1"
SOLVED_SCORE = 475.0
FIRST_SEED = 1000
TOTAL_TIMESTEPS = 10_000  # the default of POST /train

PPO_ZOO = parse_schedules(PPO_ZOO_SETTINGS[ENV_NAME])
del PPO_ZOO["source"]
PPO_ZOO_N_ENVS: int = PPO_ZOO.pop("n_envs")
# Epochs and learning rate of POST /train's defaults; a rollout of 32 steps fills no larger minibatch.
PPO_SAME: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 32,
    "n_epochs": 10,
    "learning_rate": LinearSchedule(3e-4, 0.0, 1.0),
}


class OptimizedCartPoleRewards(VecEnvWrapper):
    """Gives PPO the reward that GRPO trains on, computed for all environments in one call."""

    def reset(self) -> VecEnvObs:
        """Reset all environments."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Step, and replace the rewards."""
        observations, _, dones, infos = self.venv.step_wait()
        assert isinstance(observations, np.ndarray)
        reached = observations.copy()
        for i in np.flatnonzero(dones):
            reached[i] = infos[i]["terminal_observation"]
        next_states = torch.from_numpy(reached)
        # The reward depends on the next states alone.
        rewards = optimized_cartpole(next_states, next_states, next_states)
        return observations, rewards[:, 0].numpy(), dones, infos


def train_grpo_over_http(seeds: Sequence[int]) -> list[float]:
    """Train with ``POST /train`` and its defaults, and return the score of each saved model file."""
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
            print(f"seed {seed}: {scores[-1]:.1f}", file=sys.stderr, flush=True)
        return scores


def train_ppo(n_envs: int, arguments: dict[str, Any], seed: int) -> float:
    """Train SB3's PPO on the same reward, and return its score."""
    torch.set_num_threads(1)
    env: VecEnv = make_vec_env(ENV_NAME, n_envs, seed=seed)
    model = PPO("MlpPolicy", OptimizedCartPoleRewards(env), seed=seed, device="cpu", **arguments)
    model.learn(TOTAL_TIMESTEPS)
    return evaluate(ENV_NAME, lambda observations: model.predict(observations, deterministic=True)[0], seed)


def _train_grpo_constant(seed: int) -> float:
    """Train like the service, with a constant learning rate."""
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
    parser.add_argument("--store", action="store_true", help="keep the scores in results/scores")
    arguments = parser.parse_args()
    versions = read_versions("torch", "stable-baselines3", "gymnasium")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.n_seeds)
    print("GRPO, POST /train defaults: all seeds are trained, then judged", file=sys.stderr, flush=True)
    scores = {"GRPO, POST /train defaults": train_grpo_over_http(seeds)}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as executor:
        for method, train in (
            ("GRPO, constant learning rate", _train_grpo_constant),
            ("SB3 PPO, the same settings", _train_ppo_same),
            ("SB3 PPO, zoo settings", _train_ppo_zoo),
            ("SB3 PPO, defaults", _train_ppo_default),
        ):
            print(method, file=sys.stderr, flush=True)
            scores[method] = []
            for seed, score in zip(seeds, executor.map(train, seeds), strict=True):
                scores[method].append(score)
                print(f"seed {seed}: {score:.1f}", file=sys.stderr, flush=True)
    print(f"{ENV_NAME}, {TOTAL_TIMESTEPS} simulator steps, seeds {seeds[0]} to {seeds[-1]}, own reward over")
    print(f"{N_EPISODES} deterministic episodes; all methods train on optimized_cartpole.\n")
    print(format_table(scores, SOLVED_SCORE))
    if arguments.store:
        store_scores("cartpole-api", seeds, SOLVED_SCORE, scores, versions)


if __name__ == "__main__":
    main()
