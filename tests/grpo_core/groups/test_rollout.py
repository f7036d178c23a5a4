"""The storage of a rollout: every step in its place, whatever is observed and however many steps there are."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from grpo import GRPO
from grpo_core.banks.single_env import Observed, Outcome
from grpo_core.groups.advantage import Floats
from grpo_core.groups.group import GroupPlan
from grpo_core.groups.rollout import GroupRollout, StepBatch, draw_minibatches
from grpo_core.options.rewards import RewardFunction
from grpo_core.spaces import pack
from tests.grpo_core.groups.filled import CAR, CHOICE, PLACE, fill
from tests.suites import DEVICE
from tests.walk import FencedWalk, StepLog, Walk, cartpole_model, collect, walk_model


def copy_arrays(rollout: GroupRollout) -> dict[str, npt.NDArray[Any]]:
    return {name: array.copy() for name, array in rollout._arrays()}


def set_judgement(rollout: GroupRollout) -> None:
    numbers = np.arange(rollout.step_mask.size, dtype=np.float32).reshape(rollout.shape)
    rollout.advantages, rollout.value_targets = numbers, -numbers


def flatten(rollout: GroupRollout) -> StepBatch:
    """With the number of its place as a step's observation and weights."""
    set_judgement(rollout)
    numbers = rollout.advantages
    return rollout.flatten(numbers[rollout.step_mask][:, None], 2 * numbers, 3 * numbers)


def test_what_was_made_of_one_rollout_is_not_laid_out_with_the_next() -> None:
    rollout = fill([[4, 3], [1, 2]])
    rollout.trim(2, None)
    set_judgement(rollout)
    judged = rollout.advantages.copy()
    rollout.clear()
    rollout.store_actions((np.array([5]), np.array([2]), np.array([0])), np.zeros((1, 2)), np.ones(1), np.ones(1), None)
    rollout.trim(3, None)
    assert np.array_equal(rollout.advantages, judged)


@pytest.mark.parametrize("observation_space", [PLACE, CAR], ids=["Box", "Dict"])
@pytest.mark.parametrize("first_shape", [(1, 1), (3, 1), (1, 4), (16, 8)])
def test_storage_grows_as_it_has_to_and_is_trimmed_to_what_there_is(
    observation_space: spaces.Space[Any], first_shape: tuple[int, int]
) -> None:
    lengths = [[5, 2], [1, 7], [4, 4]]
    roomy = fill(lengths, observation_space, first_shape=(7, 3), n_mask_bits=3)
    grown = fill(lengths, observation_space, first_shape=first_shape, n_mask_bits=3)
    assert all(np.greater_equal(grown.shape, (7, 3, 2)))
    grown.trim(3, None)
    assert grown.shape == (7, 3, 2)
    assert grown.step_mask.sum(axis=0).tolist() == lengths
    expected = copy_arrays(roomy)
    assert (
        set(expected)
        == set(copy_arrays(grown))
        >= {"observations", "next_observations", "actions", "action_masks", "rewards"}
    )
    for name, array in copy_arrays(grown).items():
        assert array.dtype == expected[name].dtype, name
        # Where no step was taken, masks are unspecified.
        assert (array[grown.step_mask] == expected[name][grown.step_mask]).all(), name


def test_a_given_horizon_is_kept_though_every_branch_was_shorter() -> None:
    rollout = fill([[2, 1], [1, 1]], first_shape=(6, 2))
    rollout.trim(2, 6)
    assert rollout.shape == (6, 2, 2)
    assert rollout.step_mask.sum() == 5


def test_what_was_stored_is_forgotten_before_the_next_rollout() -> None:
    rollout = fill([[3, 3]], first_shape=(2, 1), n_mask_bits=3)
    rollout.clear()
    assert rollout.shape == (2, 1, 2)
    assert rollout.action_masks is None
    assert not any(array.any() for array in copy_arrays(rollout).values())


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (GroupPlan("branch", group_size=2, horizon=8, n_steps=64), (8, 12, 2)),
        (GroupPlan("episode", group_size=4, horizon=10, n_steps=100), (10, 6, 4)),
        (GroupPlan("episode", group_size=2, horizon=None, n_steps=300), (64, 6, 2)),
        (GroupPlan("episode", group_size=2, horizon=None, n_steps=20), (20, 3, 2)),
    ],
)
def test_there_is_room_for_the_groups_of_a_plan(plan: GroupPlan, expected: tuple[int, int, int]) -> None:
    assert GroupRollout.for_plan(plan, 3, PLACE, CHOICE).shape == expected


def test_masks_are_stored_with_their_steps() -> None:
    rollout = GroupRollout(2, 1, 2, PLACE, CHOICE)
    observations = np.zeros((2, 2), np.float32)
    masks = np.array([[True, False, True], [False, True, True]])
    at = (np.array([0, 0]), np.array([0, 0]), np.array([0, 1]))
    rollout.store_actions(at, observations, np.array([2, 1]), np.zeros(2), masks)
    rollout.store_actions(
        (np.array([1]), np.array([0]), np.array([1])), observations[:1], np.array([0]), np.zeros(1), ~masks[1:]
    )
    rollout.trim(1, None)
    rows = flatten(rollout)
    assert rows.action_masks is not None
    assert rows.actions.tolist() == [2, 1, 0]
    assert rows.action_masks.tolist() == [[True, False, True], [False, True, True], [True, False, False]]


@pytest.mark.parametrize("is_terminated", [False, True])
def test_an_episode_that_terminates_on_its_last_step_was_not_cut_by_the_time_limit(is_terminated: bool) -> None:
    rollout = GroupRollout(1, 1, 2, PLACE, CHOICE)
    rollout.store_outcome((0, 0, 1), Outcome(Observed(np.ones(2), None), 1.5, is_terminated, True, {}, None))
    assert rollout.terminated[0, 0].tolist() == [False, is_terminated]
    assert rollout.truncated[0, 0].tolist() == [False, not is_terminated]
    assert rollout.rewards[0, 0].tolist() == [0.0, 1.5]


def test_dict_observations_are_stored_key_by_key() -> None:
    rollout = GroupRollout(1, 1, 2, CAR, CHOICE)
    before: dict[str, Any] = {"speed": np.array([1.0, -2.0], np.float32), "gear": 3, "lamps": np.array([1, 0, 1])}
    after: dict[str, Any] = {"speed": np.array([0.5, 4.0], np.float32), "gear": 1, "lamps": np.array([0, 1, 1])}
    at = (np.array([0]), np.array([0]), np.array([1]))
    rollout.store_actions(at, pack(CAR, before)[None], np.array([0]), np.zeros(1), None)
    rollout.store_outcome((0, 0, 1), Outcome(Observed(after, None), 0.0, False, False, {}, None))
    for stored, observation in ((rollout.observations, before), (rollout.next_observations, after)):
        for key, value in observation.items():
            assert stored[key].dtype == CAR[key].dtype
            assert (stored[key][0, 0, 1] == value).all()
            assert not stored[key][0, 0, 0].any()


@pytest.mark.parametrize(
    ("action_space", "shape", "dtype"),
    [
        (CHOICE, (), np.int64),
        (spaces.MultiDiscrete([3, 2]), (2,), np.int64),
        (spaces.MultiBinary(3), (3,), np.float32),
        (spaces.Box(-1.0, 1.0, (2, 2)), (4,), np.float32),
    ],
    ids=str,
)
def test_live_steps_are_gathered_with_what_belongs_to_them(
    action_space: spaces.Space[Any], shape: tuple[int, ...], dtype: type[np.generic]
) -> None:
    rollout = fill([[3, 1, 2], [2, 3, 1]], action_space=action_space, n_mask_bits=4)
    rollout.trim(2, None)
    batch = flatten(rollout)
    places = [place for place in np.ndindex(rollout.shape) if rollout.step_mask[place]]
    assert batch.n_steps == len(places) == 12 < rollout.step_mask.size
    assert (batch.actions.shape, batch.actions.dtype) == ((12, *shape), dtype)
    assert rollout.action_masks is not None
    assert batch.action_masks is not None
    for row, place in enumerate(places):
        number = float(np.ravel_multi_index(place, rollout.shape))
        assert batch.observations[row].tolist() == [number]
        assert batch.actions[row].flatten().tolist() == rollout.actions[place].flatten().tolist()
        assert batch.old_log_prob[row] == rollout.log_probs[place]
        judgement = (batch.advantages[row], batch.value_targets[row], batch.weights[row], batch.unfiltered_weights[row])
        assert [x.item() for x in judgement] == [number, -number, 2 * number, 3 * number]
        assert batch.branch_index[row] == 3 * place[1] + place[2]
        assert (batch.action_masks[row] == rollout.action_masks[place]).all()
    assert batch.ref_log_prob is None


def test_steps_are_what_was_stored() -> None:
    rollout = fill([[3, 1, 2]])
    for name, array in rollout.steps._asdict().items():
        assert (array == getattr(rollout, name)).all(), name


def test_enumerated_first_actions_weigh_as_the_policy_would_take_them() -> None:
    # The second group may take two of three actions; the policy gives them 0.2 and 0.8.
    rollout = fill([[2, 2, 2], [1, 0, 2]])
    rollout.trim(2, None)
    rollout.log_probs[0] = np.log([[0.5, 0.125, 0.375], [0.2, 1.0, 0.8]])
    weights = rollout.first_action_weights[rollout.step_mask[0]]
    np.testing.assert_allclose(weights, [1.5, 0.375, 1.125, 0.4, 1.6], rtol=1e-6)


def make_batch(branch_index: Sequence[int], has_options: bool = True) -> StepBatch:
    index = np.arange(len(branch_index))
    return StepBatch(
        index.reshape(-1, 1).astype(np.float32),
        index,
        index * 2.0,
        index * 3.0,
        index * 4.0,
        np.array(branch_index),
        index * 5.0,
        index * 6.0,
        np.stack([index % 2 == 0, index % 3 == 0], axis=1) if has_options else None,
        index * 7.0 if has_options else None,
    )


def test_minibatches_cover_every_step_once() -> None:
    batch = make_batch([0] * 10)
    orders = []
    rng = np.random.default_rng(0)
    for _ in range(2):
        minibatches = list(draw_minibatches(batch, 4, rng))
        assert [len(chosen) for chosen in minibatches] == [4, 4, 2]
        orders.append(np.concatenate(minibatches).tolist())
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] != orders[1]
    assert list(range(10)) not in orders


@pytest.mark.parametrize("whole_branches", [False, True])
def test_a_minibatch_larger_than_the_rollout_holds_all_of_it(whole_branches: bool) -> None:
    batch = make_batch([0, 1, 0])
    (chosen,) = draw_minibatches(batch, 64, np.random.default_rng(0), whole_branches)
    assert sorted(chosen.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("has_options", [False, True])
def test_a_selection_of_steps_keeps_what_belongs_together(has_options: bool) -> None:
    batch = make_batch([0, 0, 1, 1, 2], has_options)
    chosen = torch.tensor([3, 0, 4])
    minibatch = batch.to_tensors(torch.device("cpu")).select(chosen)
    assert minibatch.n_steps == 3
    assert minibatch.actions.tolist() == [3, 0, 4]
    for part, whole in zip(minibatch, batch, strict=True):
        assert (part is None) == (whole is None)
        if part is not None:
            np.testing.assert_array_equal(part.numpy(), whole[chosen.numpy()])
            assert part.numpy().dtype == whole.dtype


def test_dict_observations_are_selected_key_by_key() -> None:
    batch = make_batch([0, 0, 1, 1])._replace(observations={"a": np.arange(4), "b": np.arange(8).reshape(4, 2)})
    minibatch = batch.to_tensors(torch.device("cpu")).select(torch.tensor([2, 0]))
    assert {key: rows.tolist() for key, rows in minibatch.observations.items()} == {"a": [2, 0], "b": [[4, 5], [0, 1]]}


@pytest.mark.parametrize(
    ("lengths", "batch_size"),
    [
        ([4, 4, 4, 4], 4),
        ([4, 4, 4, 4], 6),
        ([1, 9, 2, 30, 1, 1, 17], 8),  # branches longer than a minibatch
        ([3, 0, 0, 5, 0, 2], 4),  # and without steps
        ([0, 50, 0], 8),
        ([1] * 20, 3),
    ],
)
def test_whole_branches_stay_together_and_no_minibatch_is_empty(lengths: list[int], batch_size: int) -> None:
    steps_of = [branch for branch, length in enumerate(lengths) for _ in range(length)]
    batch = make_batch(np.random.default_rng(1).permutation(steps_of).tolist())
    orders = set()
    rng = np.random.default_rng(0)
    for _ in range(10):
        minibatches = list(draw_minibatches(batch, batch_size, rng, whole_branches=True))
        branches = [set(batch.branch_index[chosen].tolist()) for chosen in minibatches]
        assert all(branches), "none is empty"
        assert sum(map(len, branches)) == len(set(steps_of)), "no branch is in two of them"
        assert sorted(np.concatenate(minibatches).tolist()) == list(range(len(steps_of)))
        assert all(len(chosen) < batch_size + max(lengths) for chosen in minibatches)
        orders.add(tuple(min(part) for part in branches))
    assert len(orders) > 1 or len(set(steps_of)) == 1


def test_the_policy_learns_from_live_steps_only_and_each_keeps_what_belongs_to_it() -> None:
    batches: list[StepBatch] = []
    judged: list[tuple[Floats, Floats]] = []

    def keep(model: GRPO) -> None:
        batches.append(model._batch)
        judged.append((model.rollout_buffer.advantages.copy(), model.rollout_buffer.value_targets.copy()))

    watch = collect(walk_model(StepLog(), walk={"edge": 2}, horizon=6, n_steps=24), on_end=keep)
    seen, batch, (advantages, value_targets) = watch.rollouts[0], batches[0], judged[0]
    live = list(zip(*np.nonzero(seen.step_mask), strict=True))
    assert batch.n_steps == len(live) < seen.step_mask.size
    row_of = {float(stamp): row for row, stamp in enumerate(batch.observations[:, 2])}
    for at in live:
        # An observation's stamp is its own, but for the group's branches sharing their first one.
        if at[0] > 0:
            row = row_of[float(seen.observations[at][2])]
            assert batch.observations[row].tolist() == seen.observations[at].tolist()
            assert batch.actions[row] == seen.actions[at]
            assert batch.old_log_prob[row] == seen.log_probs[at]
            assert batch.advantages[row] == advantages[at]
            assert batch.value_targets[row] == value_targets[at]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_no_number_is_refused_with_the_remedy(bad: float) -> None:
    def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        rewards = torch.ones(len(state), 1)
        rewards[3] = bad
        return rewards

    functions: list[RewardFunction | list[RewardFunction | None]] = [reward, [None, reward]]
    for one in functions:
        model = cartpole_model(reward_function=one)
        before = [parameter.clone() for parameter in model.policy.parameters()]
        with pytest.raises(
            ValueError, match=rf"a reward is NaN or infinite: {bad} at step .* check the reward function"
        ):
            model.learn(64)
        assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


class Broken(Walk):
    """One of its steps shows an observation that is no number; the reset is number 0."""

    bad_step = 3

    def _observe(self) -> Any:
        return np.array([np.nan if self.n_steps == self.bad_step else 0.0, 0.0, 0.0], np.float32)


class BrokenFromTheStart(Broken):
    bad_step = 0


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (Broken, r"an observation is NaN or infinite: nan .* environment's step\(\)"),
        (
            BrokenFromTheStart,
            r"BrokenFromTheStart\.reset\(\) returned array\(\[nan.*\(not finite in float32\); it has to",
        ),
    ],
)
def test_an_observation_that_is_no_number_is_refused_with_the_remedy(kind: type[Walk], problem: str) -> None:
    model = walk_model(StepLog(), walk={"kind": kind}, n_steps=16, horizon=8)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match=problem):
        model.learn(16)
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


class Huge(Walk):
    """One of its steps shows more than float32 holds."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def _observe(self) -> Any:
        return np.array([-1e39 if self.n_steps == 3 else 0.0, 0.0, 0.0])


def test_an_observation_beyond_float32_is_refused_with_the_remedy() -> None:
    model = walk_model(StepLog(), walk={"kind": Huge}, n_steps=16, horizon=8)
    with (
        pytest.raises(ValueError, match=r"beyond float32, .*: -1e\+39 at step 2 of branch 0 .* check .* step\(\), or"),
        pytest.warns(RuntimeWarning, match="overflow"),
    ):
        model.learn(16)


def test_an_observation_beyond_float32_is_learnt_from_where_it_is_normalised() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Huge(StepLog())]))
    GRPO("MlpPolicy", env, n_steps=16, horizon=8, device=DEVICE).learn(16)


class BlowsUp(gym.Env[Any, Any]):
    """Ends because its state has become something that float32 does not hold, and shows that."""

    action_space = spaces.Discrete(2)

    def __init__(self, last: float, with_dict: bool, cuts: bool = False) -> None:
        self.last, self.with_dict, self.cuts = last, with_dict, cuts
        speed = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = spaces.Dict(speed=speed, gear=spaces.Discrete(3)) if with_dict else speed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.show(0.0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        is_over = self.t == 5
        seen = self.show(self.last if is_over else float(self.t))
        return seen, float(action), is_over and not self.cuts, is_over and self.cuts, {}

    def show(self, speed: float) -> Any:
        seen = np.full(1, speed)
        return {"speed": seen, "gear": 2} if self.with_dict else seen


@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("with_dict", [False, True])
def test_what_the_last_observation_of_a_terminated_episode_shows_changes_nothing(
    with_dict: bool, normalizes: bool
) -> None:
    learned = []
    for last in (0.0, np.nan, -np.inf, 1e39):
        env: VecEnv = DummyVecEnv([partial(BlowsUp, last, with_dict)])
        env = VecNormalize(env, norm_obs_keys=["speed"] if with_dict else None) if normalizes else env
        policy = "MultiInputPolicy" if with_dict else "MlpPolicy"
        model = GRPO(policy, env, n_steps=64, horizon=8, n_epochs=1, baseline="value", seed=0, device=DEVICE)
        learned.append(torch.cat([p.detach().ravel() for p in model.learn(128).policy.parameters()]))
    assert all(torch.equal(weights, learned[0]) for weights in learned)


def test_the_last_observation_of_an_episode_that_was_cut_has_to_be_finite() -> None:
    model = GRPO("MlpPolicy", BlowsUp(np.nan, False, cuts=True), n_steps=64, horizon=8, device=DEVICE)
    with pytest.raises(ValueError, match=r"an observation is NaN or infinite: nan at step 4 .* environment's step\(\)"):
        model.learn(64)


def test_one_number_of_a_dict_observation_that_is_none_is_refused() -> None:
    rollout = fill([[3, 1], [2, 2]], CAR)
    rollout.check_finite()
    rollout.next_observations["speed"][2, 0, 1] = np.inf  # no step was taken there
    rollout.check_finite()
    rollout.next_observations["speed"][1, 1, 1] = np.inf
    with pytest.raises(ValueError, match="an observation is NaN or infinite: inf at step 1 of branch 1 in group 1,"):
        rollout.check_finite()


def test_advantages_are_computed_from_what_the_branches_really_earned() -> None:
    seen: list[Floats] = []
    model = walk_model(
        StepLog(),
        group_size=3,
        horizon=4,
        n_steps=24,
        baseline="group",
        bootstrap_value=False,
        advantage_scaling="none",
    )
    watch = collect(model, on_end=lambda model: seen.append(model.rollout_buffer.advantages.copy()))
    rewards = watch.rollouts[0].rewards.astype(np.float64)
    for t in range(4):
        returns = sum(model.gamma**k * rewards[t + k] for k in range(4 - t))
        expected = returns - returns.mean(axis=-1, keepdims=True)
        np.testing.assert_allclose(seen[0][t], expected, atol=1e-5)


def test_advantages_use_the_value_network_at_each_step_and_where_it_led() -> None:
    # One step per branch, so that GAE is the temporal difference alone: r + gamma V(s') - V(s). The networks stay as
    # they were, so that they can be asked again afterwards.
    shape: dict[str, Any] = {"n_steps": 64, "group_size": 2, "horizon": 1}
    model = cartpole_model(**shape, baseline="value", advantage_scaling="none", gamma=0.5, learning_rate=1e-12)
    collect(model)
    rollout = model.rollout_buffer
    with torch.no_grad():
        v, v_next = (
            model.policy.predict_values(torch.from_numpy(x[rollout.step_mask])).flatten()
            for x in (rollout.observations, rollout.next_observations)
        )
    alive = torch.from_numpy(~rollout.terminated[rollout.step_mask])
    expected = torch.from_numpy(rollout.rewards[rollout.step_mask]) + 0.5 * v_next * alive - v
    torch.testing.assert_close(torch.from_numpy(rollout.advantages[rollout.step_mask]), expected)


@pytest.mark.parametrize("loss_normalization", ["step", "branch", "horizon"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_in_action_mode_first_steps_count_as_often_as_the_policy_would_take_them(
    loss_normalization: str, is_masked: bool
) -> None:
    batches: list[StepBatch] = []
    walk = {"kind": FencedWalk} if is_masked else {"edge": 2}
    shape: dict[str, Any] = {"group_mode": "action", "group_size": 3 if is_masked else 2, "horizon": 3, "n_steps": 18}
    model = walk_model(StepLog(), walk=walk, **shape, loss_normalization=loss_normalization, learning_rate=0.1)
    watch = collect(model, 3, on_end=lambda model: batches.append(model._batch))
    for seen, batch in zip(watch.rollouts, batches, strict=True):
        mask = seen.step_mask
        weights = np.zeros(mask.shape)
        for t, a, b in zip(*np.nonzero(mask), strict=True):
            n_live, n_branches = mask.sum(), mask[0].sum()
            weights[t, a, b] = {
                "step": 1.0,
                "branch": n_live / (n_branches * mask[:, a, b].sum()),
                "horizon": n_live / mask.size,
            }[loss_normalization]
            if t == 0:
                weights[t, a, b] *= np.exp(seen.log_probs[t, a, b]) * mask[0, a].sum()
        np.testing.assert_allclose(batch.weights, weights[mask], rtol=1e-5)
        if is_masked:
            assert batch.action_masks is not None


def test_the_loss_is_divided_by_the_horizon_though_every_branch_was_shorter() -> None:
    batches: list[StepBatch] = []
    env = gym.wrappers.TimeLimit(gym.make("CartPole-v1").unwrapped, 3)
    model = cartpole_model(env=env, loss_normalization="horizon", horizon=8, n_steps=32)
    collect(model, on_end=lambda model: batches.append(model._batch))
    assert model.rollout_buffer.shape == (8, 2, 2)
    assert batches[0].weights.tolist() == [pytest.approx(3 / 8)] * 12
