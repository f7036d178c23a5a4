"""The time until CartPole-v1 is balanced: over HTTP, and with SB3's PPO in the zoo's settings."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from fastapi.testclient import TestClient
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from benchmarks.learning.cartpole import ENV_NAME, PPO_ZOO, PPO_ZOO_N_ENVS, SOLVED_SCORE, OptimizedCartPoleRewards
from benchmarks.lib.evaluation import N_EPISODES, evaluate
from benchmarks.lib.http_jobs import HttpTraining, make_service_model, serve, train_over_http
from benchmarks.lib.timing import Comparison
from grpo import GRPO
from grpo_core.actor.actor import Actor, PolicyActor
from grpo_core.options.network_json import network_to_json
from grpo_core.saving.model_state import get_weights

_CHECK_STEPS = 2048
# Above the seeds of trainings and their environments.
_FIRST_EVALUATION_SEED = 1_000_000
_WARM_UP_STEPS = 64


def compare_times_to_policy(seeds: Sequence[int], job_timesteps: int, ppo_timesteps: int) -> list[Comparison]:
    """Time every method on every seed, seed by seed.

    :param job_timesteps: Simulator steps of a ``POST /train`` job.
    :param ppo_timesteps: Simulator steps after which PPO's learning rate is 0 and its training ends.
    """
    own, same = "SB3 PPO, zoo settings, own reward", "SB3 PPO, zoo settings, optimized_cartpole"
    with serve() as (client, folder):
        # Imports on first use should not count for one method only.
        train_over_http(client, {"seed": seeds[0], "total_timesteps": _WARM_UP_STEPS})
        _make_ppo(seeds[0], own_reward=False).learn(_WARM_UP_STEPS)
        methods: dict[str, Callable[[int], float]] = {
            "POST /train, until completed": lambda seed: _time_job(client, folder, job_timesteps, seed),
            "the same training, until a check succeeds": lambda seed: time_until_solved(
                lambda: make_service_model({"seed": seed, "total_timesteps": job_timesteps}), job_timesteps, seed
            ),
            own: lambda seed: time_until_solved(lambda: _make_ppo(seed, own_reward=True), ppo_timesteps, seed),
            same: lambda seed: time_until_solved(lambda: _make_ppo(seed, own_reward=False), ppo_timesteps, seed),
        }
        rounds = [{label: method(seed) for label, method in methods.items()} for seed in seeds]
    timings = {label: [measured[label] for measured in rounds] for label in methods}
    title = f"seconds to a policy with {SOLVED_SCORE:g} or more, seeds {seeds[0]} to {seeds[-1]}"
    return [Comparison(title, timings, [own, same], n_decimals=2)]


def compare_cold_start(seed: int, job_timesteps: int) -> list[Comparison]:
    """Time the first job of a new server process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        training = executor.submit(_train_cold, {"seed": seed, "total_timesteps": job_timesteps}).result()
    timings = {"POST /train answers": [training.answer_seconds], "the job is completed": [training.total_seconds]}
    return [Comparison("seconds, first job of a fresh server", timings, [], n_decimals=2)]


def _train_cold(request: Mapping[str, Any]) -> HttpTraining:
    torch.set_num_threads(1)
    with serve() as (client, _):
        return train_over_http(client, request)


def _time_job(client: TestClient, folder: Path, total_timesteps: int, seed: int) -> float:
    """Return the seconds until a job is completed; infinite if its policy does not balance the pole."""
    name = f"seed-{seed}"
    training = train_over_http(client, {"seed": seed, "model_name": name, "total_timesteps": total_timesteps})
    actor = GRPO.load(folder / f"{name}.zip").make_actor()
    return training.total_seconds if _evaluate(actor, seed) >= SOLVED_SCORE else math.inf


def _evaluate(actor: PolicyActor, seed: int) -> float:
    return evaluate(ENV_NAME, actor.best_actions, _FIRST_EVALUATION_SEED + N_EPISODES * seed)


def _make_ppo(seed: int, own_reward: bool) -> PPO:
    env = make_vec_env(ENV_NAME, PPO_ZOO_N_ENVS, seed=seed)
    return PPO("MlpPolicy", env if own_reward else OptimizedCartPoleRewards(env), seed=seed, device="cpu", **PPO_ZOO)


def time_until_solved(
    make_model: Callable[[], OnPolicyAlgorithm], total_timesteps: int, seed: int, solved_score: float = SOLVED_SCORE
) -> float:
    """Train until a check finds a policy good enough.

    :return: Seconds spent building the model and training it, checks excluded; infinite if the steps did not suffice.
    """
    until_solved = _UntilSolved(seed, solved_score)  # its clock starts here
    make_model().learn(total_timesteps, callback=until_solved)
    return until_solved.seconds


class _UntilSolved(BaseCallback):
    """Checks the policy between rollouts, and ends the training once it is good enough."""

    def __init__(self, seed: int, solved_score: float) -> None:
        super().__init__()
        self.seconds = math.inf
        self._seed, self._solved_score = seed, solved_score
        self._started_at = time.perf_counter()
        self._next_check = _CHECK_STEPS

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next_check:
            self._next_check = self.num_timesteps + _CHECK_STEPS
            self._check()

    def _on_step(self) -> bool:
        return math.isinf(self.seconds)

    def _on_training_end(self) -> None:
        if math.isinf(self.seconds):
            self._check()

    def _check(self) -> None:
        paused_at = time.perf_counter()
        model, policy = self.model, self.model.policy
        assert isinstance(policy, ActorCriticPolicy)
        network = network_to_json(model.policy_kwargs, type(policy))
        actor = Actor.from_weights(model.observation_space, model.action_space, network, get_weights(policy))
        if _evaluate(actor, self._seed) >= self._solved_score:
            self.seconds = paused_at - self._started_at
        self._started_at += time.perf_counter() - paused_at
