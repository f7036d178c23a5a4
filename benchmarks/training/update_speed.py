"""The time of one optimizer step on a 64x64 CartPole policy: derived by hand, and by torch."""

import math
import shutil
import time
from typing import Any

import numpy as np
from stable_baselines3.common.utils import configure_logger

from benchmarks.lib.timing import Case, Comparison, take_turns
from grpo import GRPO
from grpo_core.actor.actor import Actor
from grpo_core.groups.rollout import StepBatch

BATCH_SIZES = (32, 64, 256)
# Steps of a rollout: GRPO's default.
N_STEPS = 256
_BY_HAND, _BY_TORCH = "by hand", "by torch"


class _PlainGRPO(GRPO):
    use_fast_path = False


def compare_updates(n_repetitions: int, n_rollouts: int, with_compiler: bool) -> list[Comparison]:
    """Time the updates of several rollouts, what a learner sets up for each included, per optimizer step.

    :param n_rollouts: Rollouts per measurement.
    :param with_compiler: Whether to try ``torch.compile`` too, where there is a C++ compiler.
    """
    with_compiler = with_compiler and shutil.which("g++") is not None
    return [
        Comparison(
            f"microseconds per optimizer step, minibatches of {batch_size}",
            take_turns(_make_cases(batch_size, n_rollouts, with_compiler), n_repetitions),
            [_BY_TORCH],
        )
        for batch_size in BATCH_SIZES
    ]


def _make_cases(batch_size: int, n_rollouts: int, with_compiler: bool) -> dict[str, Case]:
    fused = {"eps": 1e-5, "fused": True}
    models = {
        _BY_HAND: _make_model(GRPO, batch_size),
        _BY_TORCH: _make_model(_PlainGRPO, batch_size),
        f"{_BY_TORCH}, fused Adam": _make_model(_PlainGRPO, batch_size, optimizer_kwargs=fused),
    }
    if with_compiler:
        model = _make_model(_PlainGRPO, batch_size, optimizer_kwargs=fused)
        model.policy.mlp_extractor.compile()
        models[f"{_BY_TORCH}, fused Adam, compiled layers"] = model
    return {label: _make_case(model, n_rollouts) for label, model in models.items()}


def _make_case(model: GRPO, n_rollouts: int) -> Case:
    model._actor = actor = model.make_numpy_actor()
    model._batch = _make_batch(actor, np.random.default_rng(0))
    n_updates = n_rollouts * model.n_epochs * math.ceil(N_STEPS / model.batch_size)

    def run() -> float:
        started_at = time.perf_counter()
        for _ in range(n_rollouts):
            model.train()
        return (time.perf_counter() - started_at) / n_updates * 1e6

    return run


def _make_model(algorithm: type[GRPO], batch_size: int, **policy_kwargs: Any) -> GRPO:
    model = algorithm(
        "MlpPolicy", "CartPole-v1", batch_size=batch_size, seed=0, device="cpu", policy_kwargs=policy_kwargs
    )
    model.set_logger(configure_logger())
    return model


def _make_batch(actor: Actor, rng: np.random.Generator) -> StepBatch:
    """Make up a rollout's steps: what they hold does not change how long a step takes."""
    observations = rng.normal(size=(N_STEPS, 4)).astype(np.float32)
    actions, log_probs = actor.sample_actions(observations, rng)
    advantages, value_targets = (rng.normal(size=N_STEPS).astype(np.float32) for _ in range(2))
    return StepBatch(
        observations,
        actions,
        log_probs,
        advantages,
        value_targets,
        branch_index=np.zeros(N_STEPS, np.int64),
        weights=np.ones(N_STEPS, np.float32),
        unfiltered_weights=np.ones(N_STEPS, np.float32),
    )
