"""The time of one optimizer step on a 64x64 CartPole policy: derived by hand, and by torch."""

import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.lib.timing import Case, Comparison, take_turns
from grpo import GRPO
from grpo_core.actor.actor import Actor
from grpo_core.fast.learner import MlpLearner
from grpo_core.groups.rollout import StepBatch, draw_minibatches
from grpo_core.update.learner import AutogradLearner, Learner, UpdateRule

BATCH_SIZES = (32, 64, 256)
# Steps of a rollout and passes over it: GRPO's defaults.
N_STEPS, _N_EPOCHS = 256, 10
LearnerMaker = Callable[[GRPO, Actor, StepBatch], Learner]
_AUTOGRAD = "AutogradLearner"
# GRPO's defaults.
_RULE = UpdateRule(
    clip_range=0.2,
    clip_range_high=0.2,
    ent_coef=0.0,
    vf_coef=0.5,
    kl_coef=0.0,
    max_grad_norm=0.5,
    target_kl=None,
    loss_type="clip",
    importance_level="step",
)


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
            [_AUTOGRAD],
        )
        for batch_size in BATCH_SIZES
    ]


def _make_cases(batch_size: int, n_rollouts: int, with_compiler: bool) -> dict[str, Case]:
    fused = {"eps": 1e-5, "fused": True}
    cases = {
        "MlpLearner": _make_case(_make_mlp_learner, _make_model(), batch_size, n_rollouts),
        _AUTOGRAD: _make_case(_make_autograd_learner, _make_model(), batch_size, n_rollouts),
        f"{_AUTOGRAD}, fused Adam": _make_case(
            _make_autograd_learner, _make_model(optimizer_kwargs=fused), batch_size, n_rollouts
        ),
    }
    if with_compiler:
        model = _make_model(optimizer_kwargs=fused)
        model.policy.mlp_extractor.compile()
        cases[f"{_AUTOGRAD}, fused Adam, compiled layers"] = _make_case(
            _make_autograd_learner, model, batch_size, n_rollouts
        )
    return cases


def _make_case(make_learner: LearnerMaker, model: GRPO, batch_size: int, n_rollouts: int) -> Case:
    rng, actor = np.random.default_rng(0), model.make_actor()
    batch = _make_batch(actor, rng)

    def run() -> float:
        started_at, n_updates = time.perf_counter(), 0
        for _ in range(n_rollouts):
            learner = make_learner(model, actor, batch)
            for _ in range(_N_EPOCHS):
                for chosen in draw_minibatches(batch, batch_size, rng):
                    learner.update(chosen)
                    n_updates += 1
            learner.finish()
        return (time.perf_counter() - started_at) / n_updates * 1e6

    return run


def _make_model(**policy_kwargs: Any) -> GRPO:
    return GRPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs=policy_kwargs)


def _make_mlp_learner(model: GRPO, actor: Actor, batch: StepBatch) -> Learner:
    return MlpLearner(model.policy, actor, batch, _RULE)


def _make_autograd_learner(model: GRPO, actor: Actor, batch: StepBatch) -> Learner:
    return AutogradLearner(model.policy, batch, _RULE, n_branches=1)


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
    )
