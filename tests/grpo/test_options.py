"""What each option changes in what is learned."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule

from grpo import GRPO
from grpo_core.groups.rollout import Indices, StepBatch
from grpo_core.options.rewards import optimized_cartpole
from tests.grpo.small_models import Record, Stateless, build
from tests.models import with_either_path
from tests.walk import StepLog, collect, walk_model
from tests.weights import copy_weights, is_same


def test_a_rate_that_falls_to_zero_still_learns_from_the_last_rollout() -> None:
    model = build(learning_rate=lambda progress_remaining: 1e-2 * progress_remaining)
    before = model.policy.state_dict()["action_net.weight"].clone()
    model.learn(32)
    assert not torch.equal(before, model.policy.state_dict()["action_net.weight"])


class Kept(GRPO):
    """Keeps which steps of the last rollout each minibatch took, and the clip ranges of all rollouts."""

    clip_ranges: tuple[tuple[float, float], ...] = ()

    def _get_clip_ranges(self) -> tuple[float, float]:
        self.clip_ranges += (super()._get_clip_ranges(),)
        return self.clip_ranges[-1]

    def _draw_minibatches(self) -> Iterator[Indices]:
        self.minibatches: list[Indices] = []
        for chosen in super()._draw_minibatches():
            self.minibatches.append(chosen)
            yield chosen


def test_a_ratio_of_whole_branches_is_taken_over_whole_branches() -> None:
    model = Kept("MlpPolicy", "CartPole-v1", n_steps=128, batch_size=20, horizon=16, importance_level="branch", seed=0)
    model.learn(1)
    lengths = np.bincount(model._batch.branch_index)
    assert len(model.minibatches) > model.n_epochs
    for chosen in model.minibatches:
        counts = np.bincount(model._batch.branch_index[chosen], minlength=len(lengths))
        assert (counts[counts > 0] == lengths[counts > 0]).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "cispo"},
        {"importance_level": "branch"},
        {"importance_level": "branch", "loss_type": "cispo"},
        {"loss_normalization": "horizon"},
        {"loss_normalization": "branch"},
        {"clip_range_high": 0.001},
        {"clip_range": 0.001},
        {"kl_coef": 0.5},
        {"filter_zero_std_groups": True, "reward_function": lambda s, a, n: (s[:, :1] > 0).float() * a},
        {"restart_probability": 1.0},
        {"anchor_selection": "archive"},
        {"common_random_numbers": True, "group_mode": "action"},
        {"baseline": "group", "supervision": "outcome"},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_every_option_trains_and_to_other_weights(changes: dict[str, Any]) -> None:
    # Large steps: while no ratio leaves the interval, the two kinds of loss have the same gradient.
    plain: dict[str, Any] = {"horizon": 16, "n_steps": 128, "learning_rate": 0.03, "batch_size": 32}
    optional, default = build(**plain, **changes), build(**plain)
    untouched = copy_weights(optional)
    for model in (optional, default):
        model.learn(256)
    assert all(torch.isfinite(parameter).all() for parameter in optional.policy.parameters())
    assert not is_same(copy_weights(optional), untouched)
    assert not is_same(copy_weights(optional), copy_weights(default))


def compute_change(model: GRPO, before: npt.NDArray[np.float32]) -> float:
    """KL of the policy from what it was, in nats, over random observations."""
    after = model.make_actor().action_probs(draw_observations())
    return float((before * np.log(before / after)).sum(axis=1).mean())


def draw_observations() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


@with_either_path
def test_the_larger_kl_coef_the_less_the_policy_changes(algorithm: type[GRPO]) -> None:
    changes = []
    for kl_coef in (0.0, 1.0, 100.0):
        shape: dict[str, Any] = {"horizon": 16, "n_steps": 128, "n_epochs": 10}
        model = build(algorithm=algorithm, learning_rate=0.01, kl_coef=kl_coef, **shape)
        before = model.make_actor().action_probs(draw_observations())
        model.learn(512)
        changes.append(compute_change(model, before))
        assert ("train/kl_ref" in model.logger.name_to_value) == (kl_coef > 0)
    assert changes[0] > 2 * changes[1] > 4 * changes[2] > 0, changes


def read_kl_refs(model: GRPO, n_rollouts: int, **learn: Any) -> list[float]:
    """Of the first minibatch after each rollout, before any step on it."""
    logged = []
    for i in range(n_rollouts):
        model.learn(1, reset_num_timesteps=bool(learn) and i == 0)
        logged.append(model.logger.name_to_value["train/kl_ref"])
    return logged


def test_the_reference_is_the_policy_that_training_began_with() -> None:
    model = build(Stateless(spaces.Discrete(2)), kl_coef=0.1, n_epochs=1, batch_size=32, learning_rate=0.01)
    first = read_kl_refs(model, 4)
    assert first[0] == pytest.approx(0, abs=1e-7)
    assert min(first[1:]) > 1e-6
    going_on = read_kl_refs(model, 2)
    assert min(going_on) > 1e-6
    anew = read_kl_refs(model, 3, reset_num_timesteps=True)
    assert anew[0] == pytest.approx(0, abs=1e-7)
    assert min(anew[1:]) > 1e-6


@pytest.mark.parametrize(("ref_sync_steps", "period"), [(1, 1), (32, 1), (33, 2), (64, 2), (96, 3)])
def test_the_reference_is_renewed_after_so_many_steps(ref_sync_steps: int, period: int) -> None:
    changes: dict[str, Any] = {"kl_coef": 0.1, "n_epochs": 1, "batch_size": 32, "learning_rate": 0.01}
    model = build(Stateless(spaces.Discrete(2)), ref_sync_steps=ref_sync_steps, **changes)
    for i, kl_ref in enumerate(read_kl_refs(model, 7)):  # of 32 steps each
        assert (kl_ref < 1e-7) == (i % period == 0), i


@with_either_path
def test_the_ratio_may_rise_further_than_it_may_fall(algorithm: type[GRPO]) -> None:
    fractions = []
    plain: dict[str, Any] = {"algorithm": algorithm, "learning_rate": 1e-3, "batch_size": 64}
    for clip_range, clip_range_high in ((0.999, 10.0), (0.999, 1e-7), (1e-7, 10.0), (1e-7, 1e-7), (1e-7, None)):
        model = build(**plain, clip_range=clip_range, clip_range_high=clip_range_high)
        model.learn(1)
        fractions.append(model.logger.name_to_value["train/clip_fraction"])
    neither, above, below, both, alike = fractions
    assert neither == 0
    assert above > 0
    assert below > 0
    assert both == pytest.approx(above + below, abs=0.1)  # weights part a little
    assert alike == both


def test_the_upper_clip_range_follows_its_schedule() -> None:
    schedule = LinearSchedule(0.4, 0.0, 1.0)
    env = Stateless(spaces.Discrete(2))
    model = Kept("MlpPolicy", env, n_steps=32, n_epochs=1, horizon=16, clip_range_high=schedule, seed=0)
    model.learn(64)
    assert [high for _, high in model.clip_ranges] == pytest.approx([0.4, 0.2])
    assert [low for low, _ in model.clip_ranges] == pytest.approx([0.2, 0.2])


def pay_right(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return action.float()


def test_several_rewards_are_logged_one_by_one_and_added_up_by_weight() -> None:
    model = build(reward_function=[pay_right, None, optimized_cartpole], reward_weights=[2.0, 0.5, -1.0])
    record = Record()
    model.learn(1, callback=record)
    rollout, logged = model.rollout_buffer, record.logged[0]
    states, actions, next_states = (
        torch.from_numpy(array[rollout.step_mask])
        for array in (rollout.observations, rollout.actions, rollout.next_observations)
    )
    shaped = optimized_cartpole(states, actions, next_states).flatten().numpy()
    expected = 2.0 * actions.numpy() + 0.5 - shaped
    np.testing.assert_allclose(rollout.rewards[rollout.step_mask], expected, rtol=1e-5)
    assert logged["rewards/pay_right_mean"] == pytest.approx(actions.float().mean().item())
    assert logged["rewards/environment_mean"] == 1.0
    assert logged["rewards/optimized_cartpole_mean"] == pytest.approx(shaped.mean(), rel=1e-5)
    assert logged["rollout/reward_mean"] == pytest.approx(expected.mean(), rel=1e-5)


def test_without_weights_several_rewards_count_once_each() -> None:
    model = build(reward_function=[pay_right, None])
    model.learn(1)
    rollout = model.rollout_buffer
    assert (rollout.rewards[rollout.step_mask] == rollout.actions[rollout.step_mask] + 1).all()


def pay_on_the_right(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return (state[:, :1] > 0).float() * action


@pytest.mark.parametrize("is_filtered", [False, True])
def test_groups_whose_members_earned_the_same_are_left_out_if_asked_for(is_filtered: bool) -> None:
    batches: list[StepBatch] = []
    shape: dict[str, Any] = {"horizon": 2, "n_steps": 64, "group_size": 2}
    model = walk_model(StepLog(), **shape, reward_function=pay_on_the_right, filter_zero_std_groups=is_filtered)
    watch = collect(model, 4, on_end=lambda model: batches.append(model._batch))
    n_mixed = 0
    for seen, batch in zip(watch.rollouts, batches, strict=True):
        earned = seen.rewards.swapaxes(0, 1)  # (n_groups, horizon, group_size)
        # With rewards of 0 and 1, returns from each step on are alike where the rewards are.
        tells_apart = [bool((rewards != rewards[:, :1]).any()) for rewards in earned]
        n_mixed += 0 < sum(tells_apart) < 16
        assert batch.n_steps == 64  # the value network learns from all of them
        anchors = set((batch.branch_index[batch.weights > 0] // 2).tolist())
        assert anchors == {i for i, told in enumerate(tells_apart) if told or not is_filtered}
        assert batch.weights.mean().item() == pytest.approx(1.0 if anchors else 0.0)
        assert (batch.unfiltered_weights == 1.0).all()
    assert n_mixed > 0


def test_with_outcome_supervision_every_step_of_a_branch_is_credited_with_its_return() -> None:
    record = Record()
    changes: dict[str, Any] = {"baseline": "group", "bootstrap_value": False, "advantage_scaling": "none"}
    model = build(supervision="outcome", horizon=16, n_steps=96, group_size=3, gamma=0.9, **changes)
    model.learn(1, callback=record)
    rollout, (advantages,) = model.rollout_buffer, record.advantages
    for a in range(rollout.shape[1]):
        returns = [sum(0.9**t * rollout.rewards[t, a, b] for t in range(16)) for b in range(3)]
        for b in range(3):
            live = rollout.step_mask[:, a, b]
            expected = returns[b] - sum(returns) / 3
            np.testing.assert_allclose(advantages[live, a, b], expected, atol=1e-5)
            assert (advantages[~live, a, b] == 0).all()


@pytest.mark.parametrize("is_common", [False, True])
def test_with_common_random_numbers_the_same_actions_lead_to_the_same_place(is_common: bool) -> None:
    model = build("FrozenLake-v1", common_random_numbers=is_common, learning_rate=1e-9, group_size=4, n_steps=128)
    assert isinstance(model.policy.action_net, torch.nn.Linear)
    with torch.no_grad():
        model.policy.action_net.bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))  # always to the right, if not slipping
    places = np.concatenate([seen.next_observations for seen in collect(model, 3).rollouts], axis=1)
    assert (places == places[..., :1]).all() == is_common


@pytest.mark.parametrize("restart_probability", [0.0, 1.0])
def test_every_group_restarts_if_asked_to(restart_probability: float) -> None:
    log = StepLog()
    model = walk_model(log, n_steps=40, restart_probability=restart_probability)
    for seen in collect(model, 3).rollouts[1:]:
        assert (seen.observations[0, :, 0, 1] == 0).all() == (restart_probability == 1.0)
    assert (len(log.seeds) > 4 * 5) == (restart_probability == 1.0)


def set_logits(model: GRPO, logit: float) -> None:
    """Let the policy prefer the first action everywhere, about alike."""
    parameters = dict(model.policy.named_parameters())
    with torch.no_grad():
        parameters["action_net.bias"][:] = torch.tensor([logit, -logit])


@with_either_path
def test_enumerated_first_actions_do_not_inflate_the_divergence(algorithm: type[GRPO]) -> None:
    shape: dict[str, Any] = {"group_mode": "action", "horizon": 1, "n_steps": 64, "n_epochs": 1, "batch_size": 64}
    model = build(algorithm=algorithm, learning_rate=1e-9, **shape)
    set_logits(model, 3.0)
    collect(model, 1, on_end=lambda model: set_logits(model, 2.0))  # after collecting, before learning
    old, new = torch.tensor([3.0, -3.0]).log_softmax(0), torch.tensor([2.0, -2.0]).log_softmax(0)
    exact = (old.exp() * (old - new)).sum().item()
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("fill_rollouts", [False, True])
def test_the_share_from_the_archive_is_of_all_groups_of_the_rollout(fill_rollouts: bool) -> None:
    n_groups: list[int] = []
    n_from_archive = [0]  # before each rollout

    def count(model: GRPO) -> None:
        anchors = model._collector.anchors
        assert anchors.archive is not None
        archived = {id(anchor) for _, anchor in anchors.archive.list_anchors()}
        n_groups.append(len(model._collector.groups))
        n_from_archive.append(sum(id(start) in archived for start in anchors.starts))

    model = build(anchor_selection="archive", fill_rollouts=fill_rollouts, horizon=32, n_steps=128)
    record = Record(on_end=count)
    model.learn(512, callback=record)
    shares = [n / of for n, of in zip(n_from_archive, n_groups, strict=False)]
    assert [row["rollout/archive_share"] for row in record.logged] == shares
    assert max(n_from_archive) > 0
    assert (max(n_groups) > 2) == fill_rollouts


def test_learning_anew_forgets_what_earlier_rollouts_said_of_groups() -> None:
    at_starts: list[list[list[float]]] = []
    record = Record(on_start=lambda model: at_starts.append(model._group_correlation.to_json()))
    model = build(baseline="adaptive")
    model.learn(64, callback=record)
    model.learn(8, callback=record)
    first, second, anew = at_starts
    assert second != first
    assert anew == first
