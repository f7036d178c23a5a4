"""Train GRPO with its preset and its defaults, and SB3's PPO with its defaults, on an environment's own reward.

``python -m benchmarks.learning.own_reward Acrobot-v1 10000 --solved-score -100``
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from stable_baselines3 import PPO

from benchmarks.learning.grpo_settings import get_grpo_settings, make_grpo
from benchmarks.lib.evaluation import N_EPISODES, evaluate, format_table, store_scores
from benchmarks.lib.versions import read_versions
from grpo import GRPO

FIRST_SEED = 2000
METHODS = ("GRPO, preset", "GRPO, defaults", "SB3 PPO, defaults")


def train(method: str, env_name: str, total_timesteps: int, seed: int) -> float:
    """Train, and return the mean own reward of the deterministic policy.

    :param method: One of ``METHODS``.
    """
    torch.set_num_threads(1)
    if method == "GRPO, preset":
        settings = get_grpo_settings(env_name)
        if settings is None:
            raise ValueError(f"{env_name} has no preset in grpo_core/options/presets.yml; choose other --methods.")
        actor = make_grpo(env_name, settings, seed).learn(total_timesteps).make_actor()
        return evaluate(env_name, actor.best_actions, seed)
    algorithm: type[GRPO] | type[PPO] = GRPO if method == "GRPO, defaults" else PPO
    model = algorithm("MlpPolicy", env_name, seed=seed, device="cpu")
    model.learn(total_timesteps)
    return evaluate(env_name, lambda observations: model.predict(observations, deterministic=True)[0], seed)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("env_name")
    parser.add_argument("total_timesteps", type=int)
    parser.add_argument("--solved-score", type=float, required=True)
    parser.add_argument("--n-seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--store", action="store_true", help="keep the scores in results/scores")
    arguments = parser.parse_args()
    versions = read_versions("torch", "stable-baselines3", "gymnasium")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.n_seeds)
    scores = {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as executor:
        for method in arguments.methods:
            job = partial(train, method, arguments.env_name, arguments.total_timesteps)
            scores[method] = list(executor.map(job, seeds))
    print(f"{arguments.env_name}, {arguments.total_timesteps} simulator steps, seeds {seeds[0]} to {seeds[-1]},")
    print(f"own reward over {N_EPISODES} deterministic episodes.\n")
    print(format_table(scores, arguments.solved_score))
    if arguments.store:
        store_scores(f"{arguments.env_name}-own-reward", seeds, arguments.solved_score, scores, versions)


if __name__ == "__main__":
    main()
