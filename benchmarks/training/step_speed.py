"""The time of a simulator step: collecting alone, and collecting and learning."""

import time
from collections.abc import Sequence
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from benchmarks.lib.http_jobs import make_service_model
from benchmarks.lib.timing import Case, Comparison, take_turns
from benchmarks.training.rollout_timer import RolloutTimer
from grpo import GRPO

# FrozenLake-v1 has no batched physics: its branches are restored and stepped one by one.
COLLECTED_ENVIRONMENTS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "FrozenLake-v1")
TRAINED_ENVIRONMENTS = ("Acrobot-v1", "Pendulum-v1")
# Simulator steps per rollout: the defaults of GRPO and of PPO.
ROLLOUT_STEPS = (256, 2048)
MEASURED_STEPS = 2048
_N_ENVS = 8
_PPO, _PPO_8 = "SB3 PPO, 1 environment", f"SB3 PPO, {_N_ENVS} environments"
# Policies stay untrained, so that their episodes have the same length.
_NO_LEARNING = 1e-9


def compare_collection(n_repetitions: int, n_timesteps: int) -> list[Comparison]:
    """Time rollouts of untrained policies, advantages included.

    :param n_timesteps: Simulator steps per measurement.
    """
    return [_compare_collection(env_name, n_repetitions, n_timesteps) for env_name in COLLECTED_ENVIRONMENTS]


def _compare_collection(env_name: str, n_repetitions: int, n_timesteps: int) -> Comparison:
    models: dict[str, OnPolicyAlgorithm] = {
        "GRPO, the library's defaults": _make_grpo(env_name, learning_rate=_NO_LEARNING, n_epochs=1),
        "GRPO, POST /train's defaults": make_service_model(
            {"env_name": env_name, "seed": 0, "learning_rate": _NO_LEARNING, "n_epochs": 1}
        ),
        "GRPO, n_steps=1024": _make_grpo(env_name, learning_rate=_NO_LEARNING, n_epochs=1, n_steps=1024),
        _PPO: _make_ppo(env_name, 1, n_timesteps, learning_rate=_NO_LEARNING, n_epochs=1),
        _PPO_8: _make_ppo(env_name, _N_ENVS, n_timesteps, learning_rate=_NO_LEARNING, n_epochs=1),
    }

    def make_case(model: OnPolicyAlgorithm) -> Case:
        def run() -> float:
            timer, n_before = RolloutTimer(), model.num_timesteps
            model.learn(n_timesteps, callback=timer, reset_num_timesteps=False)
            return timer.seconds / (model.num_timesteps - n_before) * 1e6

        return run

    timings = take_turns({label: make_case(model) for label, model in models.items()}, n_repetitions)
    return Comparison(f"{env_name}: microseconds per step collected", timings, [_PPO, _PPO_8])


def _make_grpo(env_name: str, **arguments: Any) -> GRPO:
    return GRPO("MlpPolicy", env_name, seed=0, device="cpu", **arguments)


def _make_ppo(env_name: str, n_envs: int, n_steps: int, **arguments: Any) -> PPO:
    """Make PPO with its defaults.

    :param n_steps: Simulator steps per rollout, all environments together.
    """
    env = make_vec_env(env_name, n_envs, seed=0)
    return PPO("MlpPolicy", env, n_steps=n_steps // n_envs, seed=0, device="cpu", **arguments)


def compare_training(n_repetitions: int, n_timesteps: int, rollout_steps: Sequence[int]) -> list[Comparison]:
    """Time collecting and learning, with the same network, rollout size, minibatches and epochs for all.

    :param n_timesteps: Simulator steps per measurement; the last rollout is completed.
    :param rollout_steps: Sizes of rollouts to try, in steps of all environments together.
    """
    return [
        _compare_training(env_name, n_steps, n_repetitions, n_timesteps)
        for env_name in TRAINED_ENVIRONMENTS
        for n_steps in rollout_steps
    ]


def _compare_training(env_name: str, rollout_steps: int, n_repetitions: int, n_timesteps: int) -> Comparison:
    learning = {"batch_size": 64, "n_epochs": 10}
    models: dict[str, OnPolicyAlgorithm] = {
        "GRPO": _make_grpo(env_name, n_steps=rollout_steps, **learning),
        _PPO: _make_ppo(env_name, 1, rollout_steps, **learning),
        _PPO_8: _make_ppo(env_name, _N_ENVS, rollout_steps, **learning),
    }

    def make_case(model: OnPolicyAlgorithm) -> Case:
        def run() -> float:
            started_at, n_before = time.perf_counter(), model.num_timesteps
            model.learn(n_timesteps, reset_num_timesteps=False)
            return (model.num_timesteps - n_before) / (time.perf_counter() - started_at)

        return run

    timings = take_turns({label: make_case(model) for label, model in models.items()}, n_repetitions)
    title = f"{env_name}: steps per second, rollouts of {rollout_steps}"
    return Comparison(title, timings, [_PPO, _PPO_8], is_rate=True, n_decimals=0)
