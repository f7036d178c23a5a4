"""It learns, and only from what the reward says."""

import io
import pickle
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule

from grpo import GRPO
from grpo_core.options.choices import COMPARES_IN_GROUPS, AdvantageScaling, Baseline
from grpo_core.options.rewards import RewardFunction, optimized_cartpole
from tests.grpo.small_models import Record, Stateless, build, constant
from tests.models import PlainGRPO, with_either_path
from tests.weights import Weights, copy_weights, is_same


def score(model: GRPO, n_episodes: int = 5) -> float:
    """Mean return of the deterministic policy by CartPole's own reward, from fixed starts; at most 500."""
    env = Monitor(gym.make("CartPole-v1"))
    env.reset(seed=100)
    mean_reward, _ = evaluate_policy(model, env, n_episodes)
    assert isinstance(mean_reward, float | np.floating)
    return float(mean_reward)


def train_short(reward_function: RewardFunction | None, n_rollouts: int = 4, **changes: Any) -> tuple[GRPO, Record]:
    """A few rollouts on CartPole in which nothing but the advantages can move the policy."""
    model = build(
        **{
            "n_steps": 64,
            "horizon": 16,
            "baseline": "group",
            "bootstrap_value": False,
            "vf_coef": 0.0,
            "reward_function": reward_function,
            **changes,
        }
    )
    record = Record()
    while record.n_rollouts_started < n_rollouts:
        model.learn(1, callback=record, reset_num_timesteps=False)
    return model, record


def test_it_learns_to_balance_the_pole() -> None:
    # 4,000 simulator steps. Seeds 0, 1 and 2 go from 9, 29 and 9 to 468, 473 and 500.
    model = GRPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=32,
        group_size=2,
        horizon=16,
        baseline="group",
        bootstrap_value=False,
        reward_function=optimized_cartpole,
        seed=0,
    )
    untrained = score(model)
    model.learn(4000)
    assert untrained < 60
    assert score(model) > 200


def test_with_a_reward_of_zero_nothing_is_learnt_at_all() -> None:
    untouched = copy_weights(build(n_steps=64, horizon=16, baseline="group", bootstrap_value=False))
    model, record = train_short(constant(0.0))
    assert is_same(copy_weights(model), untouched)
    assert len(record.advantages) == 4
    assert all((advantages == 0).all() for advantages in record.advantages)
    assert all(logged["rollout/zero_std_group_fraction"] == 1.0 for logged in record.logged)


def test_with_a_constant_reward_it_learns_to_survive() -> None:
    untouched = copy_weights(build(n_steps=64, horizon=16, baseline="group", bootstrap_value=False))
    model, record = train_short(constant(1.0))
    assert not is_same(copy_weights(model), untouched)
    assert any((advantages != 0).any() for advantages in record.advantages)
    assert any(logged["rollout/zero_std_group_fraction"] < 1.0 for logged in record.logged)


def test_one_step_branches_tell_nothing_apart_where_the_next_position_ignores_the_action() -> None:
    # CartPole moves its positions with the old velocities, so one step cannot show what an action did.
    untouched = copy_weights(build(n_steps=64, horizon=1, group_size=4, baseline="group", bootstrap_value=False))
    model, record = train_short(optimized_cartpole, horizon=1, group_size=4)
    assert is_same(copy_weights(model), untouched)
    assert all((advantages == 0).all() for advantages in record.advantages)
    assert [logged["rollout/zero_std_group_fraction"] for logged in record.logged] == [1.0] * 4


def test_two_step_branches_do_tell_them_apart() -> None:
    _, record = train_short(optimized_cartpole, horizon=2, group_size=4)
    assert all((advantages != 0).any() for advantages in record.advantages)


@pytest.mark.parametrize("paid", [0, 1])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": PlainGRPO},
        {"group_mode": "action"},
        {"group_mode": "episode"},
        {"supervision": "outcome"},
        {"baseline": "leave_one_out", "advantage_scaling": "none"},
        {"loss_type": "cispo"},
        {"loss_type": "cispo", "algorithm": PlainGRPO},
        {"importance_level": "branch", "supervision": "outcome"},
        {"loss_normalization": "horizon"},
        {"loss_normalization": "branch"},
        {"filter_zero_std_groups": True},
        {"clip_range_high": 0.4},
        {"kl_coef": 0.001},
        {"restart_probability": 0.5},
        {"anchor_selection": "archive"},
    ],
    ids=str,
)
def test_an_action_that_pays_is_taken_more_often(paid: int, changes: dict[str, Any]) -> None:
    arguments = {"learning_rate": 0.03, "seed": 1, **changes}
    model, _ = train_short(lambda state, action, next_state: (action == paid).float(), n_rollouts=12, **arguments)
    probs = model.make_actor().action_probs(np.zeros((1, 4), np.float32))
    assert probs[0, paid] > 0.6  # 0.75 to 0.97, with seeds 0 and 2 0.59 to 0.98; half at first


@pytest.mark.parametrize(
    ("baseline", "advantage_scaling"),
    [
        (baseline, scaling)
        for baseline in get_args(Baseline)
        for scaling in get_args(AdvantageScaling)
        if scaling != "group" or baseline in COMPARES_IN_GROUPS
    ],
)
def test_every_baseline_and_scaling_moves_policy_and_value_network(baseline: str, advantage_scaling: str) -> None:
    model = build(baseline=baseline, advantage_scaling=advantage_scaling)
    untouched = copy_weights(model)
    model.learn(64)
    assert not any(torch.equal(tensor, untouched[name]) for name, tensor in copy_weights(model).items())
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_the_value_network_is_fitted_to_what_is_earned() -> None:
    model = build(Stateless(spaces.Discrete(2)), reward_function=constant(1.0), gamma=0.5, n_epochs=10, n_steps=64)
    model.learning_rate = 0.02
    model._setup_lr_schedule()
    model.learn(1024)  # a step costs next to nothing here
    value = model.make_actor().values(np.zeros((1, 2), np.float32))[0]
    assert value == pytest.approx(2.0, abs=0.2)  # 1 / (1 - gamma)


@with_either_path
def test_the_entropy_bonus_alone_makes_the_policy_more_even(algorithm: type[GRPO]) -> None:
    silent: dict[str, Any] = {"reward_function": constant(0.0), "baseline": "group", "bootstrap_value": False}
    model = build(algorithm=algorithm, **silent, vf_coef=0.0, ent_coef=1.0)
    with torch.no_grad():
        assert isinstance(model.policy.action_net, torch.nn.Linear)
        model.policy.action_net.bias.copy_(torch.tensor([1.0, -1.0]))
    before = model.make_actor().action_probs(np.zeros((1, 4), np.float32))
    model.learn(64)
    after = model.make_actor().action_probs(np.zeros((1, 4), np.float32))
    assert before is not None
    assert after is not None
    assert after[0, 0] < before[0, 0]


@with_either_path
def test_no_step_is_larger_than_the_gradient_norms_allow(algorithm: type[GRPO]) -> None:
    model = build(algorithm=algorithm, max_grad_norm=0.0)
    untouched = copy_weights(model)
    model.learn(32)
    assert is_same(copy_weights(model), untouched)


def split_weights(model: GRPO) -> tuple[Weights, Weights]:
    """The policy's own parameters, and the value network's."""
    weights = copy_weights(model)
    value = {name: tensor for name, tensor in weights.items() if "value_net" in name}
    return {name: tensor for name, tensor in weights.items() if name not in value}, value


@with_either_path
def test_the_value_networks_gradient_leaves_the_policys_step_alone(algorithm: type[GRPO]) -> None:
    steps = [split_weights(build())]
    plain: dict[str, Any] = {"algorithm": algorithm, "baseline": "group", "bootstrap_value": False}
    for vf_coef in (0.0, 0.5, 1e6):
        model = build(**plain, vf_coef=vf_coef, reward_function=optimized_cartpole)
        model.learn(96)
        steps.append(split_weights(model))
    untouched = steps.pop(0)
    assert not is_same(steps[0][0], untouched[0])
    assert is_same(steps[0][0], steps[1][0])
    assert is_same(steps[0][0], steps[2][0])
    assert not is_same(steps[0][1], steps[1][1])


@with_either_path
def test_the_value_network_takes_steps_of_its_own_size(algorithm: type[GRPO]) -> None:
    model = build(algorithm=algorithm, learning_rate=0.002, vf_lr_factor=7.0)
    model.learn(64)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == pytest.approx([0.002, 0.014])
    frozen = build(algorithm=algorithm, vf_lr_factor=0.0)
    policy, value = split_weights(frozen)
    frozen.learn(64)
    assert not is_same(policy, split_weights(frozen)[0])
    assert is_same(value, split_weights(frozen)[1])


@with_either_path
def test_target_kl_skips_the_updates_that_go_too_far(algorithm: type[GRPO]) -> None:
    steps: dict[float | None, int] = {}
    for target_kl in (1e-9, None):
        model = build(algorithm=algorithm, target_kl=target_kl, learning_rate=0.05, n_epochs=5, batch_size=64)
        model.learn(1)
        steps[target_kl] = int(model.policy.optimizer.state_dict()["state"][0]["step"].item())
    # At the first minibatch old and new policy are one; from the second on they differ by more than 1e-9.
    assert steps == {1e-9: 1, None: 5}


def test_schedules_follow_the_progress_at_which_a_rollout_began() -> None:
    model = build(
        Stateless(spaces.Discrete(2)),  # its branches never end early: a rollout is a third of the way
        learning_rate=lambda progress: 0.1 * progress + 0.01,
        clip_range=LinearSchedule(0.4, 0.1, 1.0),
    )
    used: list[tuple[float, float]] = []

    def read(model: GRPO) -> None:
        used.append((model.policy.optimizer.param_groups[0]["lr"], model.logger.name_to_value["train/clip_range"]))

    model.learn(96, callback=Record(on_start=read))
    read(model)
    assert used[1:] == [
        pytest.approx((0.11, 0.4)),
        pytest.approx((0.1 * 2 / 3 + 0.01, 0.3)),
        pytest.approx((0.1 / 3 + 0.01, 0.2)),
    ]


def test_what_the_adaptive_baseline_learns_is_for_the_rollouts_that_follow() -> None:
    model, record = build("Pendulum-v1", baseline="adaptive"), Record()
    model.learn(96, callback=record)
    coefficients = [logged["rollout/group_coefficient"] for logged in record.logged]
    assert coefficients[0] == 1.0
    assert all(0.0 <= coefficient < 1.0 for coefficient in coefficients[1:])
    assert all(logged["rollout/group_variance_saved"] <= 1.0 for logged in record.logged)
    model.learn(32, callback=record)  # begins anew
    assert record.logged[3]["rollout/group_coefficient"] == 1.0


def test_the_adaptive_baseline_goes_on_from_a_file_and_from_a_copy() -> None:
    model = build("Pendulum-v1", baseline="adaptive").learn(32)
    content = io.BytesIO(model.to_bytes())
    for other in (GRPO.load(content, env=gym.make("Pendulum-v1")), pickle.loads(pickle.dumps(model))):
        record = Record()
        other.learn(32, callback=record, reset_num_timesteps=False)
        assert 0.0 <= record.logged[0]["rollout/group_coefficient"] < 1.0
