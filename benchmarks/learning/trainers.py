"""One trainer per algorithm, and how a run is made."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from sb3_contrib import ARS, TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

import grpo
from benchmarks.learning.grpo_settings import make_grpo
from benchmarks.learning.learning_curve import CurveCallback, LearningCurve, make_policy
from benchmarks.learning.linear_search import search
from benchmarks.learning.zero_advantage import GroupRewards, ReplaceAdvantages
from benchmarks.lib.evaluation import Policy
from benchmarks.lib.grids import register_grids
from benchmarks.lib.runs import Run, RunSpec, Settings
from benchmarks.lib.tasks import get_task
from benchmarks.lib.versions import read_versions
from grpo_core.options.presets import parse_schedules

_PACKAGES = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium")

# Simulator steps taken, the final policy, and other figures.
Training = tuple[int, Policy, dict[str, Any]]
Trainer = Callable[[RunSpec, LearningCurve], Training]


def make_env(env_name: str, settings: Settings, seed: int) -> VecEnv:
    """Make ``n_envs`` environments, like the zoo behind ``VecNormalize`` if there are arguments in ``normalize``."""
    env: VecEnv = make_vec_env(env_name, settings.get("n_envs", 1), seed=seed)
    if "normalize" not in settings:
        return env
    gamma = {"gamma": settings["gamma"]} if "gamma" in settings else {}
    return VecNormalize(env, **gamma, **settings["normalize"])


def to_arguments(settings: Settings) -> dict[str, Any]:
    """Turn settings into keyword arguments: ``"lin_x"`` into schedules, names into torch's classes."""
    arguments = parse_schedules(settings)
    for name in ("source", "n_envs", "normalize", "policy"):
        arguments.pop(name, None)
    if "activation_fn" in arguments.get("policy_kwargs", {}):
        activation_fn = getattr(nn, arguments["policy_kwargs"]["activation_fn"])
        arguments["policy_kwargs"] = arguments["policy_kwargs"] | {"activation_fn": activation_fn}
    return arguments


def _learn(model: BaseAlgorithm, spec: RunSpec, curve: LearningCurve) -> Training:
    model.learn(spec.budget, callback=CurveCallback(curve))
    return model.num_timesteps, make_policy(model), {}


def _train_sb3(algorithm: type[PPO] | type[TRPO] | type[ARS], spec: RunSpec, curve: LearningCurve) -> Training:
    env = make_env(spec.env, spec.settings, spec.seed)
    policy = spec.settings.get("policy", "MlpPolicy")
    model = algorithm(policy, env, seed=spec.seed, device="cpu", **to_arguments(spec.settings))
    return _learn(model, spec, curve)


def _train_ppo(spec: RunSpec, curve: LearningCurve) -> Training:
    return _train_sb3(PPO, spec, curve)


def _train_trpo(spec: RunSpec, curve: LearningCurve) -> Training:
    return _train_sb3(TRPO, spec, curve)


def _train_ars(spec: RunSpec, curve: LearningCurve) -> Training:
    return _train_sb3(ARS, spec, curve)


def _train_grpo(spec: RunSpec, curve: LearningCurve) -> Training:
    return _learn(make_grpo(spec.env, spec.settings, spec.seed), spec, curve)


def _train_linear_search(spec: RunSpec, curve: LearningCurve) -> Training:
    return spec.budget, *search(spec.env, spec.budget, spec.seed, curve)


def _train_zero_advantage(spec: RunSpec, curve: LearningCurve) -> Training:
    env = make_vec_env(spec.env, 1, seed=spec.seed, wrapper_class=GroupRewards)
    model = PPO("MlpPolicy", env, seed=spec.seed, device="cpu", **to_arguments(spec.settings))
    group_advantages = ReplaceAdvantages()
    model.learn(spec.budget, callback=[group_advantages, CurveCallback(curve)])
    return model.num_timesteps, make_policy(model), {"max_abs_advantage": group_advantages.max_abs_advantage}


TRAINERS: dict[str, Trainer] = {
    "PPO": _train_ppo,
    "TRPO": _train_trpo,
    "ARS": _train_ars,
    "GRPO": _train_grpo,
    "linear_search": _train_linear_search,
    "zero_advantage": _train_zero_advantage,
}


def train(spec: RunSpec) -> Run:
    """Make one run in this process, with one torch thread."""
    versions = read_versions(*_PACKAGES)  # before the training, which may take hours
    torch.set_num_threads(1)
    register_grids()
    curve = LearningCurve(get_task(spec.env, spec.budget), spec.budget, spec.seed)
    started_at = time.monotonic()
    total_timesteps, policy, notes = TRAINERS[spec.algorithm](spec, curve)
    wall_seconds = time.monotonic() - started_at - curve.evaluation_seconds
    return Run(
        **asdict(spec),
        score=curve.finish(total_timesteps, policy),
        total_timesteps=total_timesteps,
        curve=curve.points,
        wall_seconds=round(wall_seconds, 1),
        versions={**versions, "grpo": grpo.__version__},
        notes=notes,
    )
