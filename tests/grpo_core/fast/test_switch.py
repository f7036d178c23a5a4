"""``GRPO.use_fast_path``: with the fast rooms and without them, a seed gives the same training."""

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

import grpo
from grpo import GRPO
from grpo_core.fast.batched_collector import BatchedCollector
from grpo_core.groups.collector import GroupCollector
from tests.models import PlainGRPO
from tests.walk import collect

STORED = (
    "observations",
    "next_observations",
    "actions",
    "log_probs",
    "rewards",
    "step_mask",
    "terminated",
    "truncated",
)


def train(algorithm: type[GRPO], env_id: str, total_timesteps: int, **changes: Any) -> GRPO:
    arguments: dict[str, Any] = {"n_steps": 64, "horizon": 16, "seed": 3, "device": "cpu", "learning_rate": 1e-3}
    env = make_vec_env(env_id, 2)
    return algorithm("MlpPolicy", env, **{**arguments, **changes}).learn(total_timesteps)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
@pytest.mark.parametrize("changes", [{}, {"kl_coef": 0.1, "ent_coef": 0.01}, {"baseline": "group"}], ids=str)
def test_a_seed_gives_the_same_rollout_to_the_bit_and_the_same_weights_to_rounding(
    env_id: str, changes: dict[str, Any]
) -> None:
    fast, plain = (train(algorithm, env_id, 1, **changes) for algorithm in (GRPO, PlainGRPO))
    assert type(fast._collector) is BatchedCollector
    assert type(plain._collector) is GroupCollector
    for name in STORED:
        np.testing.assert_array_equal(
            getattr(fast.rollout_buffer, name), getattr(plain.rollout_buffer, name), err_msg=name
        )
    for name in ("advantages", "value_targets"):
        one, other = getattr(fast.rollout_buffer, name), getattr(plain.rollout_buffer, name)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max(), err_msg=name)
    assert fast.rng.bit_generator.state == plain.rng.bit_generator.state
    for (name, one), other in zip(fast.policy.named_parameters(), plain.policy.parameters(), strict=True):
        # Up to twenty steps of 1e-3, or 1e-2 in the value network: a thousandth of what they moved.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4 if "value" in name else 2e-5, msg=name)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_while_nothing_is_learnt_all_rollouts_are_the_same_to_the_bit(env_id: str) -> None:
    # Steps of size 1e-30 leave every weight as it is.
    models = [GRPO, PlainGRPO]
    arguments: dict[str, Any] = {"n_steps": 64, "horizon": 16, "seed": 3, "learning_rate": 1e-30, "n_epochs": 1}
    seen = [collect(model("MlpPolicy", make_vec_env(env_id, 2), **arguments), 5).rollouts for model in models]
    for fast, plain in zip(*seen, strict=True):
        for name in STORED:
            np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name), err_msg=name)


def test_the_policy_learns_where_the_fast_rooms_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo, "fast", None)
    model = train(PlainGRPO, "CartPole-v1", 256)
    assert model._n_updates > 0
    with pytest.raises(AttributeError):
        train(GRPO, "CartPole-v1", 256)
