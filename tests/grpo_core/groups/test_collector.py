"""Collecting whole groups: every simulator step counted, every branch restored, the next groups chosen fairly."""

import copy
import types
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

from grpo import GRPO
from grpo_core.actor.actor import Actor
from grpo_core.banks.choose_bank import make_bank
from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.groups import archive as archive_module
from grpo_core.groups.collector import GroupCollector
from grpo_core.groups.group import MAX_FILLED, GroupPlan
from grpo_core.groups.rollout import GroupRollout
from grpo_core.options.choices import AnchorSelection, GroupMode
from grpo_core.options.network_json import network_to_json
from grpo_core.update.policies import evaluate_actions
from tests.sb3.environments import MatchEnv
from tests.sb3.small_models import build
from tests.walk import FencedWalk, Seen, StepLog, Walk, Watch, cartpole_model, collect, make_walk, walk_model

# In an environment that is cheap to restore all branches advance in step; in any other, one after the other.
ORDERS = pytest.mark.parametrize("is_slow", [False, True], ids=["in step", "one by one"])
BY_STEPS = pytest.mark.parametrize("mode", ["branch", "action"])


def make_actor(walk: gym.Env[Any, Any], logits: list[float]) -> Actor:
    """A policy that acts alike everywhere."""
    shapes = {"action_net": len(logits), "value_net": 1}
    weights = {f"{name}.weight": np.zeros((n, 3)) for name, n in shapes.items()}
    biases = {"action_net.bias": np.array(logits), "value_net.bias": np.zeros(1)}
    network = network_to_json({"net_arch": []}, ActorCriticPolicy)
    return Actor.from_weights(walk.observation_space, walk.action_space, network, {**weights, **biases})


class Stage:
    """A collector on walks, without an algorithm around it."""

    def __init__(
        self,
        mode: GroupMode = "branch",
        n_envs: int = 1,
        group_size: int = 2,
        horizon: int | None = 4,
        n_steps: int = 8,
        logits: list[float] | None = None,
        anchor_selection: AnchorSelection = "continue",
        fill_rollouts: bool = False,
        **walk: Any,
    ) -> None:
        self.log = StepLog()
        env = DummyVecEnv([lambda: make_walk(self.log, **walk)] * n_envs)
        env.reset()
        bank = make_bank(env, needs_restore=mode != "episode")
        self.log.is_open = True
        plan = GroupPlan(mode, group_size, horizon, n_steps, fill_rollouts, anchor_selection=anchor_selection)
        self.collector = GroupCollector(bank, env.observation_space, plan)
        self.rollout = GroupRollout(horizon or 2, n_envs, group_size, env.observation_space, env.action_space)
        self.actor = make_actor(env.envs[0], logits or [0.0] * int(env.envs[0].action_space.n))  # type: ignore[attr-defined]
        self.rng = np.random.default_rng(0)
        self.n_stepped: list[int] = []

    def collect(self, n_vec_steps: float = np.inf, should_stop: Callable[[], bool] = lambda: False) -> bool:
        def on_vec_step(infos: Any, dones: Any, rewards: Any, n_stepped: int) -> bool:
            self.n_stepped.append(n_stepped)
            return len(self.n_stepped) < n_vec_steps

        return self.collector.collect(self.rollout, self.actor, self.rng, on_vec_step, should_stop)

    def go_on(
        self,
        restart_probability: float = 0.0,
        discounted_returns: npt.NDArray[np.float64] | None = None,
        spreads: npt.NDArray[Any] | None = None,
        is_stopped: bool = False,
    ) -> None:
        """Choose where the next groups start.

        :param spreads: Of the groups, shape ``(n_groups,)``; an archive needs them.
        """
        if spreads is not None:
            # Two members, so far from their mean.
            self.rollout.value_targets = np.zeros(self.rollout.shape, np.float32)
            self.rollout.value_targets[0] = np.stack([spreads, -spreads], axis=-1)
        self.collector.anchors.choose(
            self.rollout,
            self.collector.groups,
            discounted_returns,
            restart_probability=restart_probability,
            rng=self.rng,
            should_stop=lambda: is_stopped,
        )

    def find_kept(self) -> npt.NDArray[np.int64]:
        """Go on, and return how often each step of each branch was kept, ``(horizon, group_size)``."""
        reached = self.rollout.next_observations.copy()
        self.go_on()
        assert self.collect()
        counts = np.zeros((reached.shape[0], reached.shape[2]), np.int64)
        for i, start in enumerate(self.rollout.observations[0, :, 0]):
            is_kept = (reached[:, i] == start).all(axis=-1)
            assert is_kept.sum() <= 1, "every observation is one of its own"
            counts += is_kept
        return counts


def assert_likely(counts: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], limit: float) -> None:
    """Test by chi-square that counts were drawn with these probabilities.

    :param limit: Exceeded once in 10,000 seeds.
    """
    expected = counts.sum() * probabilities
    assert ((counts - expected) ** 2 / expected).sum() < limit, counts


@ORDERS
@pytest.mark.parametrize(
    ("n_envs", "group_size", "horizon", "n_groups"), [(1, 2, 1, 1), (1, 3, 5, 2), (2, 2, 4, 3), (3, 4, 2, 1)]
)
def test_every_simulator_step_is_counted_and_no_other(
    is_slow: bool, n_envs: int, group_size: int, horizon: int, n_groups: int
) -> None:
    log, n_steps = StepLog(), n_groups * group_size * horizon
    walk = {"is_slow": is_slow}
    model = walk_model(log, n_envs, walk, group_size=group_size, horizon=horizon, n_steps=n_steps)
    for n_rollouts in (1, 2, 3):
        model.learn(1, reset_num_timesteps=False)
        assert len(log.steps) == model.num_timesteps == n_rollouts * n_envs * n_steps


@ORDERS
@BY_STEPS
@pytest.mark.parametrize(("n_envs", "n_groups", "edge"), [(1, 12, 1), (1, 6, 2), (2, 3, 3), (3, 5, 2)])
def test_steps_are_counted_exactly_where_branches_die_early(
    is_slow: bool, mode: GroupMode, n_envs: int, n_groups: int, edge: int
) -> None:
    log = StepLog()
    walk = {"is_slow": is_slow, "edge": edge}
    model = walk_model(log, n_envs, walk, horizon=6, n_steps=12 * n_groups, group_mode=mode)
    watch = collect(model, 3)
    n_live = sum(int(seen.step_mask.sum()) for seen in watch.rollouts)
    assert len(log.steps) == model.num_timesteps == n_live
    assert n_live < 3 * n_envs * 12 * n_groups


@ORDERS
@BY_STEPS
@pytest.mark.parametrize(("n_envs", "n_groups", "edge"), [(1, 12, 2), (1, 1, 1), (2, 3, 3), (3, 5, 2)])
def test_groups_from_new_episodes_fill_a_rollout_whose_branches_die_early(
    is_slow: bool, mode: GroupMode, n_envs: int, n_groups: int, edge: int
) -> None:
    log, n_steps = StepLog(), 12 * n_groups
    walk = {"is_slow": is_slow, "edge": edge}
    model = walk_model(log, n_envs, walk, horizon=6, n_steps=n_steps, group_mode=mode, fill_rollouts=True)
    n_taken = 0
    for seen in collect(model, 3).rollouts:
        n_live = int(seen.step_mask.sum())
        assert abs(n_live - n_envs * n_steps) <= n_envs * 12 / 2, "half a group for each environment"
        assert (seen.observations[0, n_envs * n_groups :, :, 1] == 0).all(), "an added group starts at a reset"
        assert seen.step_mask[0].all()
        n_taken += n_live
    assert len(log.steps) == model.num_timesteps == n_taken


def test_a_rollout_without_early_ends_is_full_as_it_is() -> None:
    rollouts = [collect(walk_model(StepLog(), fill_rollouts=fills), 3).rollouts for fills in (True, False)]
    for filled, plain in zip(*rollouts, strict=True):
        for name in filled._fields:
            np.testing.assert_array_equal(getattr(filled, name), getattr(plain, name))


def test_no_more_groups_are_added_than_there_is_room_for_side_by_side() -> None:
    stage = Stage(group_size=2, horizon=50, n_steps=100, edge=1, fill_rollouts=True)  # each branch takes one step
    assert stage.collect()
    assert stage.rollout.shape == (50, MAX_FILLED, 2)


def test_a_stop_ends_the_filling_of_a_rollout() -> None:
    stage = Stage(edge=1, horizon=8, n_steps=16, fill_rollouts=True)
    assert not stage.collect(should_stop=lambda: len(stage.log.steps) >= 4)
    assert len(stage.log.steps) == 4


def test_learning_ends_with_the_rollout_that_reaches_the_total() -> None:
    model = walk_model(StepLog())
    assert model.learn(17).num_timesteps == 24


@ORDERS
def test_a_callback_is_called_once_per_vec_step_over_the_environments(is_slow: bool) -> None:
    model = walk_model(StepLog(), 3, {"is_slow": is_slow}, n_steps=16)
    assert collect(model).n_vec_steps == 16
    assert model.num_timesteps == 48


@ORDERS
def test_a_vec_step_steps_no_environment_twice_and_none_whose_branches_are_over(is_slow: bool) -> None:
    stage = Stage(n_envs=3, group_size=2, horizon=6, n_steps=24, edge=2, is_slow=is_slow)
    assert stage.collect()
    per_env = stage.rollout.step_mask.sum(axis=(0, 2)).reshape(2, 3).sum(axis=0)
    if is_slow:  # an environment plays on as long as it has branches
        assert stage.n_stepped == [int((per_env > i).sum()) for i in range(per_env.max())]
    assert max(stage.n_stepped) == 3
    assert min(stage.n_stepped) < 3
    assert sum(stage.n_stepped) == len(stage.log.steps) == per_env.sum()


@ORDERS
def test_branches_take_turns_where_restoring_is_cheap_and_follow_each_other_elsewhere(is_slow: bool) -> None:
    stage = Stage(group_size=3, horizon=4, n_steps=24, is_slow=is_slow)
    assert stage.collect()
    turn = stage.rollout.next_observations[..., 2] - 1  # how many steps were taken before
    t, anchor, branch = np.indices(turn.shape)
    n_branches, index = 6, 3 * anchor + branch
    assert (turn == (4 * index + t if is_slow else n_branches * t + index)).all()
    # Each branch once, or before each step.
    assert stage.log.n_restores == (n_branches if is_slow else n_branches * 4)


@ORDERS
def test_branches_of_a_group_start_from_one_observation_and_part_by_their_actions(is_slow: bool) -> None:
    watch = collect(walk_model(StepLog(), 2, {"is_slow": is_slow}, group_size=4, horizon=5, n_steps=40), 3)
    for seen in watch.rollouts:
        assert (seen.observations[0] == seen.observations[0, :, :1]).all()
        assert len(np.unique(seen.next_observations[..., 2])) == seen.step_mask.sum(), "every step is one of its own"
    assert len({tuple(path) for seen in watch.rollouts for path in seen.actions.reshape(5, -1).T}) > 4


def assert_continuous(seen: Seen, edge: int) -> None:
    live = seen.step_mask
    moved = seen.observations[..., 0] + 2 * seen.actions - 1
    assert (seen.next_observations[..., 0][live] == moved[live]).all()
    assert (seen.next_observations[..., 1][live] == seen.observations[..., 1][live] + 1).all()
    assert (seen.rewards[live] == moved[live]).all()
    assert (seen.terminated[live] == (np.abs(moved[live]) >= edge)).all()
    assert not seen.truncated.any()
    goes_on = live[1:]
    assert (seen.observations[1:][goes_on] == seen.next_observations[:-1][goes_on]).all()
    assert (live[1:] == (live[:-1] & ~seen.terminated[:-1])).all()


@ORDERS
@pytest.mark.parametrize("mode", ["branch", "action", "episode"])
@pytest.mark.filterwarnings("ignore:the episodes of a group begin")
def test_every_branch_goes_on_from_where_it_was(is_slow: bool, mode: GroupMode) -> None:
    log = StepLog()
    walk = {"is_slow": is_slow, "edge": 3}
    watch = collect(walk_model(log, 2, walk, horizon=6, n_steps=36, group_mode=mode), 3)
    for seen in watch.rollouts:
        assert_continuous(seen, edge=3)
    assert len(log.steps) == sum(int(seen.step_mask.sum()) for seen in watch.rollouts)


def test_what_is_stored_about_dead_steps_is_nothing() -> None:
    for seen in collect(walk_model(StepLog(), walk={"edge": 1}, horizon=6, n_steps=48), 2).rollouts:
        dead = ~seen.step_mask
        assert dead.any()
        assert (seen.rewards[dead] == 0).all()
        assert not seen.terminated[dead].any()


@ORDERS
@pytest.mark.parametrize("mode", ["branch", "action", "episode"])
@pytest.mark.filterwarnings("ignore:the episodes of a group begin")
def test_a_time_limit_truncates_and_does_not_terminate(is_slow: bool, mode: GroupMode) -> None:
    walk = {"is_slow": is_slow, "time_limit": 3}
    seen = collect(walk_model(StepLog(), walk=walk, horizon=8, n_steps=16, group_mode=mode)).rollouts[0]
    assert (seen.step_mask.sum(axis=0) == 3).all()
    assert seen.truncated[2].all()
    assert not seen.terminated.any()


def test_a_fall_on_the_last_permitted_step_is_a_termination() -> None:
    seen = collect(walk_model(StepLog(), walk={"edge": 1, "time_limit": 1})).rollouts[0]
    assert seen.terminated[0].all()
    assert not seen.truncated.any()


@ORDERS
@BY_STEPS
def test_the_next_rollout_starts_from_a_step_of_the_same_environment(is_slow: bool, mode: GroupMode) -> None:
    walk = {"is_slow": is_slow}
    watch = collect(walk_model(StepLog(), 2, walk, horizon=5, n_steps=30, group_mode=mode), 4)
    for before, after in zip(watch.rollouts, watch.rollouts[1:], strict=False):
        for anchor in range(before.observations.shape[1]):  # even ones are of the first environment
            reached = {tuple(observation) for observation in before.next_observations[:, anchor].reshape(-1, 3)}
            assert tuple(after.observations[0, anchor, 0]) in reached
            assert after.observations[0, anchor, 0, 1] >= 1
        # The simulator was put there, too, and not just its observation.
        assert_continuous(after, edge=10**6)


@ORDERS
def test_a_group_whose_kept_step_was_the_last_starts_anew(is_slow: bool) -> None:
    log = StepLog()
    model = walk_model(log, walk={"edge": 1, "is_slow": is_slow})
    collect(model)
    n_resets = len(log.seeds)
    seen = collect(model).rollouts[-1]  # every episode lasts one step, so every kept step is a last one
    assert len(log.seeds) == n_resets + 1
    assert (seen.observations[0, :, :, :2] == 0).all()


@ORDERS
def test_the_kept_step_is_uniform_over_branches_and_steps(is_slow: bool) -> None:
    # 16,000 simulator steps, twice, of a walk that does next to nothing: a distribution needs many draws.
    n_groups = 2000
    stage = Stage(group_size=2, horizon=4, n_steps=n_groups * 8, is_slow=is_slow)
    assert stage.collect()
    counts = stage.find_kept()
    assert counts.sum() == n_groups
    assert_likely(counts, np.full((4, 2), 1 / 8), limit=30)


@ORDERS
def test_the_kept_step_is_uniform_over_the_steps_a_short_branch_lived(is_slow: bool) -> None:
    # 9,000 simulator steps; the horizon is 8, every branch lives for 3, and the third step ends the episode.
    n_groups = 1500
    stage = Stage(group_size=2, horizon=8, n_steps=n_groups * 16, time_limit=3, is_slow=is_slow)
    assert stage.collect()
    stage.log.seeds.clear()
    stage.go_on()
    n_resets = len(stage.log.seeds)
    assert stage.collect()
    n_steps = np.bincount(stage.rollout.observations[0, :, 0, 1].astype(int), minlength=3)
    assert n_resets == n_steps[0]
    assert n_steps.sum() == n_groups
    assert_likely(n_steps, np.full(3, 1 / 3), limit=18.4)


def test_after_a_filled_rollout_longer_groups_are_likelier_to_be_gone_on_from() -> None:
    # Two groups are planned of 8 steps per branch, and episodes end after 9. The first draw is by length.
    stage = Stage(n_envs=1, group_size=2, horizon=8, n_steps=32, time_limit=9, fill_rollouts=True)
    assert stage.collect()
    stage.go_on()
    assert stage.collect()
    n_steps = np.array([group.n_steps for group in stage.collector.groups])
    assert len(set(n_steps)) > 1
    assert len(n_steps) > 2
    assert n_steps.sum() == stage.rollout.step_mask.sum()
    counts = np.zeros(len(n_steps), np.int64)
    for _ in range(3000):
        first, second = stage.collector.anchors.draw_predecessors(stage.collector.groups, stage.rng)
        assert first is not second
        counts[first.index] += 1
    assert_likely(counts, n_steps / n_steps.sum(), limit=27.9)


def test_in_action_mode_the_kept_branch_is_drawn_by_the_policys_probability() -> None:
    n_groups, probabilities = 1000, np.array([0.6, 0.1, 0.3])
    stage = Stage(
        "action",
        group_size=3,
        horizon=2,
        n_steps=n_groups * 6,
        logits=np.log(probabilities).tolist(),
        kind=type("Stroll", (Walk,), {"moves": (-1, 0, 1)}),
    )
    assert stage.collect()
    counts = stage.find_kept()
    assert counts.sum() == n_groups
    assert_likely(counts, np.array([probabilities / 2] * 2), limit=25.7)


@pytest.mark.parametrize(("restart_probability", "expected"), [(0.0, 0), (1.0, 300), (0.3, 90)])
def test_groups_restart_as_often_as_they_are_told_to(restart_probability: float, expected: int) -> None:
    stage = Stage(n_steps=300 * 8)
    assert stage.collect()
    n_resets = len(stage.log.seeds)
    stage.go_on(restart_probability)
    n_restarts = len(stage.log.seeds) - n_resets
    assert abs(n_restarts - expected) <= (32 if 0 < restart_probability < 1 else 0)  # four standard deviations
    assert stage.collect()
    assert (stage.rollout.observations[0, :, 0, 1] == 0).sum() == n_restarts


@ORDERS
@BY_STEPS
@pytest.mark.parametrize("n_envs", [1, 3])
def test_half_of_the_groups_return_to_states_of_earlier_rollouts(is_slow: bool, mode: GroupMode, n_envs: int) -> None:
    walk = {"is_slow": is_slow, "time_limit": 12, "spread": 9}
    model = walk_model(StepLog(), n_envs, walk, n_steps=48, group_mode=mode, anchor_selection="archive")
    reached: list[set[tuple[float, ...]]] = [set() for _ in range(n_envs)]  # every observation is one of its own
    latest: set[tuple[float, ...]] = set()
    n_returns = n_groups = 0
    for n_rollouts, seen in enumerate(collect(model, 30).rollouts):
        starts = seen.observations[0, :, 0]
        for i, start in enumerate(starts):
            is_known = tuple(start) in reached[i % n_envs]
            assert is_known or start[1] == 0, "the state of another environment"
            n_returns += is_known and tuple(start) not in latest
            # The simulator was in that state.
            np.testing.assert_array_equal(seen.next_observations[0, i, :, 1], start[1] + 1)
            moved = seen.next_observations[0, i, :, 0] - start[0]
            np.testing.assert_array_equal(moved, 2 * seen.actions[0, i] - 1)
        n_groups += len(starts) if n_rollouts > 0 else 0
        latest = set(map(tuple, seen.next_observations[seen.step_mask]))
        for i, start in enumerate(starts):
            reached[i % n_envs] |= {tuple(start), *map(tuple, seen.next_observations[:, i][seen.step_mask[:, i]])}
    assert 0.3 < n_returns / n_groups < 0.55  # some of the archived are of the latest rollout


class _BrokenReset(RuntimeError):
    pass


def test_a_reset_that_fails_between_rollouts_leaves_new_episodes_to_begin_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(n_envs=2, n_steps=16, time_limit=3)
    assert stage.collect()
    n_resets = 0

    def fail_at_the_third(env_index: int, rng: np.random.Generator) -> Any:
        nonlocal n_resets
        n_resets += 1
        if n_resets == 3:
            raise _BrokenReset
        return begin(env_index, rng)

    begin = stage.collector.anchors._begin_episode
    monkeypatch.setattr(stage.collector.anchors, "_begin_episode", fail_at_the_third)
    with pytest.raises(_BrokenReset):
        stage.go_on(restart_probability=1.0)
    assert stage.collector.anchors.starts == []
    assert stage.collect()
    assert (stage.rollout.observations[0, :, :, 1] == 0).all()


def test_whoever_begins_the_episodes_of_a_shard_may_be_stopped_between_them() -> None:
    stage = Stage(n_steps=24)
    stage.collector.anchors.starts = [None] * 3
    asked = iter([False, True])
    assert not stage.collect(should_stop=lambda: next(asked))
    assert len(stage.log.seeds) == 1


def test_an_archived_state_remembers_its_episode() -> None:
    stage = Stage(n_envs=2, n_steps=24, anchor_selection="archive")
    known: set[tuple[float, float, int]] = set()  # position, discounted return, length
    for n_rollouts in range(10):
        assert stage.collect()
        for group, start in zip(stage.collector._groups, stage.rollout.observations[0, :, 0], strict=True):
            assert group.anchor is not None
            assert group.anchor.episode_length == start[1]
            if n_rollouts > 0 and start[1] > 0:
                assert (float(start[2]), group.anchor.discounted_return, group.anchor.episode_length) in known
        so_far = stage.rng.normal(size=stage.rollout.shape)
        stage.go_on(discounted_returns=so_far, spreads=np.ones(6))
        reached = stage.rollout.next_observations
        known |= {
            (float(reached[at][2]), float(so_far[at]), int(reached[at][1])) for at in np.ndindex(stage.rollout.shape)
        }


def test_an_archived_state_has_the_spread_of_the_group_that_it_comes_from() -> None:
    stage = Stage(n_envs=2, n_steps=48, edge=2, anchor_selection="archive", fill_rollouts=True)
    archive = stage.collector.anchors.archive
    assert archive is not None
    spreads: dict[bytes, float] = {}  # by the observations of the states
    n_kept = 0
    for n_rollouts in range(5):
        assert stage.collect()
        groups = stage.collector.groups
        assert len(groups) > len(stage.collector.anchors.starts), "predecessors are drawn"
        of_groups = np.arange(len(groups)) + 100.0 * n_rollouts
        for group, spread in zip(groups, of_groups, strict=True):
            assert group.anchor is not None
            reached = [group.anchor.observed] if group.kept is None else [group.anchor.observed, group.kept[0]]
            spreads |= {np.asarray(observed.observation).tobytes(): spread for observed in reached}
        stage.go_on(spreads=of_groups)
        n_kept = len(archive) - len(groups)
        for key, anchor, spread, _ in (entry for shelf in archive.to_state()[0] for entry in shelf):
            # Two resets may look alike; every later observation is one of its own.
            assert anchor.episode_length == 0 or spread == spreads[key]
    assert n_kept > 0


def test_those_from_the_archive_are_no_more_than_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_ARCHIVED_STATES", 1)
    stage = Stage(n_steps=80, anchor_selection="archive")
    assert stage.collect()
    stage.go_on(spreads=np.ones(10))  # about half of the ten would start from there
    assert stage.collector.anchors.n_archived == 1


def test_none_is_from_the_archive_where_a_stop_left_new_episodes_to_begin_with() -> None:
    stage = Stage(n_steps=80, anchor_selection="archive")
    assert stage.collect()
    stage.go_on(spreads=np.ones(10))
    assert stage.collector.anchors.n_archived > 0
    assert stage.collect()
    stage.go_on(1.0, spreads=np.ones(10), is_stopped=True)
    assert stage.collector.anchors.n_archived == 0


def test_learning_anew_forgets_the_archive_and_going_on_does_not() -> None:
    model = walk_model(StepLog(), anchor_selection="archive")
    assert model._collector.anchors.archive is not None
    model.learn(64)
    n_kept = len(model._collector.anchors.archive)
    assert n_kept > 2
    model.learn(8, reset_num_timesteps=False)
    assert len(model._collector.anchors.archive) >= n_kept
    model.learn(8)
    assert len(model._collector.anchors.archive) <= 2


def test_discounted_returns_go_on_where_the_episode_does() -> None:
    stage = Stage(n_envs=2, n_steps=24)
    assert stage.collect()
    assert (stage.collector.start_returns == 0).all()
    so_far = np.arange(stage.rollout.step_mask.size, dtype=np.float64).reshape(stage.rollout.shape)
    reached = stage.rollout.next_observations.copy()
    stage.go_on(0.5, so_far)
    assert stage.collect()
    n_new = 0
    for i, start in enumerate(stage.rollout.observations[0, :, 0]):
        if start[1] == 0:
            n_new += 1
            assert stage.collector.start_returns[i] == 0
        else:
            assert stage.collector.start_returns[i] == so_far[:, i][(reached[:, i] == start).all(axis=-1)]
    assert 0 < n_new < 6


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0"])
@pytest.mark.parametrize("horizon", [1, 4])
def test_the_simulator_is_where_the_policy_sees_it(env_id: str, horizon: int) -> None:
    watch = collect(cartpole_model(env=env_id, horizon=horizon), 4)
    core: Any = gym.make(env_id).unwrapped
    core.reset(seed=0)
    for seen in watch.rollouts:
        for place in zip(*np.nonzero(seen.step_mask), strict=True):
            core.state = tuple(seen.observations[place].astype(np.float64))
            core.steps_beyond_terminated = None
            observation, *_ = core.step(int(seen.actions[place]))
            np.testing.assert_allclose(observation, seen.next_observations[place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_anew", [True, False])
def test_learning_anew_starts_from_new_episodes_and_going_on_does_not(is_anew: bool) -> None:
    model = walk_model(StepLog())
    model.learn(64)
    watch = Watch()
    model.learn(32, callback=watch, reset_num_timesteps=is_anew)
    starts = watch.rollouts[0].observations[0, :, :, :2]
    assert (starts == 0).all() == is_anew


@ORDERS
def test_a_rollout_ends_at_the_vec_step_that_says_so(is_slow: bool) -> None:
    stage = Stage(n_envs=2, n_steps=16, is_slow=is_slow)
    assert not stage.collect(n_vec_steps=3)
    assert stage.n_stepped == [2, 2, 2]
    assert len(stage.log.steps) == 6


def test_a_stop_between_resets_takes_no_further_one_and_starts_anew_later() -> None:
    stage = Stage(n_steps=40)
    assert not stage.collect(should_stop=lambda: len(stage.log.seeds) >= 2)
    assert len(stage.log.seeds) == 2
    assert stage.log.steps == []
    assert stage.collect()
    assert len(stage.log.seeds) == 2 + 5


def test_so_does_a_stop_between_the_resets_that_fill_a_rollout() -> None:
    stage = Stage(n_steps=40, edge=1, fill_rollouts=True)
    assert not stage.collect(should_stop=lambda: len(stage.log.seeds) >= 7)
    assert len(stage.log.seeds) == 7
    assert len(stage.log.steps) == 5 * 2
    assert stage.collect()


@pytest.mark.parametrize("n_envs", [1, 2])
def test_members_of_an_episode_group_share_a_seeded_start_and_groups_do_not(n_envs: int) -> None:
    stage = Stage("episode", n_envs, group_size=3, horizon=None, n_steps=40, spread=1000, time_limit=7)
    starts = []
    for _ in range(2):
        stage.log.seeds.clear()
        assert stage.collect()
        first = stage.rollout.observations[0, :, :, 0]
        assert (first == first[:, :1]).all()
        starts += first[:, 0].tolist()
        assert None not in stage.log.seeds
        assert len(stage.log.seeds) == first.size, "one reset per branch"
        assert len(set(stage.log.seeds)) == len(first)
        stage.go_on()
    assert len(set(starts)) > len(starts) - 2


def test_whole_episodes_take_at_least_the_steps_asked_for_and_complete_their_groups() -> None:
    # Two groups of two episodes of 7 steps are 28, the third goes beyond the 30.
    stage = Stage("episode", n_envs=3, horizon=None, n_steps=30, time_limit=7)
    assert stage.collect()
    assert stage.rollout.shape == (7, 3 * 3, 2)
    assert stage.rollout.step_mask.all()
    assert len(stage.log.steps) == 3 * 42
    exact = Stage("episode", horizon=None, n_steps=28, time_limit=7)
    assert exact.collect()
    assert exact.rollout.shape == (7, 2, 2)


def test_whole_episodes_end_by_themselves_or_at_the_horizon() -> None:
    free, cut = (Stage("episode", horizon=horizon, n_steps=60, edge=4) for horizon in (None, 6))
    for stage in (free, cut):
        assert stage.collect()
    lengths = free.rollout.step_mask.sum(axis=0)
    assert free.rollout.terminated.any(axis=0).all()
    assert free.rollout.shape[0] == lengths.max() > 6, "the storage grows with the longest"
    assert cut.rollout.step_mask.sum(axis=0).max() == cut.rollout.shape[0] == 6
    assert not cut.rollout.terminated.any(axis=0).all()


def test_whole_episodes_need_no_restoring() -> None:
    class OnlyForward(Walk):
        capture_state = restore_state = None  # type: ignore[assignment]  # it has no such methods

    stage = Stage("episode", horizon=None, n_steps=20, time_limit=5, kind=OnlyForward)
    assert stage.collect()
    assert stage.log.n_restores == 0
    assert stage.rollout.step_mask.sum() == 20


@ORDERS
def test_in_action_mode_a_group_takes_every_action_first(is_slow: bool) -> None:
    stage = Stage("action", 2, horizon=3, n_steps=12, logits=[0.0, np.log(3.0)], is_slow=is_slow)
    assert stage.collect()
    assert (stage.rollout.actions[0] == [0, 1]).all()
    np.testing.assert_allclose(stage.rollout.log_probs[0], np.log([[0.25, 0.75]] * 4), rtol=1e-6)
    np.testing.assert_allclose(stage.rollout.first_action_weights, [[0.5, 1.5]] * 4, rtol=1e-6)
    later = stage.rollout.actions[1:]
    assert 0 < later.mean() < 1, "what follows is drawn"


def test_a_first_action_that_the_policy_would_never_take_has_a_finite_log_probability() -> None:
    stage = Stage("action", horizon=1, n_steps=2, logits=[0.0, 300.0])
    assert stage.collect()
    assert stage.rollout.log_probs[0, 0].tolist() == [-300.0, 0.0]


@ORDERS
def test_in_action_mode_only_legal_actions_are_enumerated(is_slow: bool) -> None:
    n_groups = 200
    stage = Stage("action", group_size=3, horizon=2, n_steps=n_groups * 6, kind=FencedWalk, is_slow=is_slow)
    for _ in range(4):
        assert stage.collect()
        rollout = stage.rollout
        start = rollout.observations[0, :, 1, 0]  # standing still is always legal
        for i, live in enumerate(rollout.step_mask[0]):
            assert live.tolist() == [bool(start[i] > -1), True, bool(start[i] < 1)]
        assert (rollout.actions[0][rollout.step_mask[0]] == np.nonzero(rollout.step_mask[0])[1]).all()
        n_legal = rollout.step_mask[0].sum(axis=-1)
        np.testing.assert_allclose(
            rollout.log_probs[0][rollout.step_mask[0]], -np.log(np.repeat(n_legal, n_legal)), rtol=1e-6
        )
        np.testing.assert_allclose(rollout.first_action_weights[rollout.step_mask[0]], 1.0, rtol=1e-6)
        stage.go_on()
    assert len(set(start)) == 3
    assert len(stage.log.seeds) == n_groups, "every group was continued from a legal action"


@ORDERS
def test_only_legal_actions_are_drawn_and_the_masks_are_kept_beside_them(is_slow: bool) -> None:
    watched: list[tuple[Any, Any, Any]] = []

    def keep(model: GRPO) -> None:
        rollout = model.rollout_buffer
        assert rollout.action_masks is not None
        watched.append((rollout.observations[..., 0].copy(), rollout.action_masks.copy(), rollout.actions.copy()))

    walk = {"kind": FencedWalk, "is_slow": is_slow}
    collect(walk_model(StepLog(), 2, walk, horizon=8, n_steps=48, learning_rate=0.05), 3, on_end=keep)
    for position, masks, actions in watched:
        assert (masks == np.stack([position > -1, np.ones_like(position), position < 1], axis=-1)).all()
        assert np.take_along_axis(masks, actions[..., None], axis=-1).all()
        assert not masks.all()


class HalfFencedWalk(FencedWalk):
    """Returns no masks in the middle, where every action is legal."""

    def action_masks(self) -> Any:
        return None if self.position == 0 else super().action_masks()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert abs(self.position + self.moves[int(action)]) <= 1, "took an illegal action"
        return Walk.step(self, action)


@ORDERS
@BY_STEPS
def test_states_without_masks_allow_all_actions_and_leave_those_of_other_branches(
    is_slow: bool, mode: GroupMode
) -> None:
    stage = Stage(mode, group_size=3, horizon=8, n_steps=240, kind=HalfFencedWalk, is_slow=is_slow)
    for _ in range(3):
        assert stage.collect()
        rollout = stage.rollout
        assert rollout.action_masks is not None
        position, live = rollout.observations[..., 0], rollout.step_mask
        expected = np.stack([position > -1, np.ones_like(position), position < 1], axis=-1)
        assert (rollout.action_masks[live] == expected[live]).all()
        stage.go_on()


def test_steps_without_masks_allow_all_actions_in_a_rollout_that_has_grown() -> None:
    rollout = GroupRollout(1, 1, 2, Walk.observation_space, spaces.Discrete(3))
    seen, chosen, masks = np.zeros((1, 3)), np.zeros(1), np.array([[False, True, False]])
    for t in range(4):
        at = np.array([t]), np.array([0]), np.array([0])
        rollout.store_actions(at, seen, chosen, chosen, None if t % 2 else masks)
    taken = rollout.gather((np.arange(4), np.zeros(4, int), np.zeros(4, int)))
    other = GroupRollout(1, 2, 2, Walk.observation_space, spaces.Discrete(3))
    other.put((np.arange(4), np.zeros(4, int), np.zeros(4, int)), taken)
    del taken["action_masks"]
    other.put((np.arange(4), np.ones(4, int), np.zeros(4, int)), taken)
    assert other.action_masks is not None
    assert other.action_masks[:, 0, 0].tolist() == [[False, True, False], [True] * 3] * 2
    assert other.action_masks[:4, 1, 0].all()


class Noisy(Walk):
    """It pays at random."""

    def _earn(self) -> float:
        return float(self.np_random.normal())


@ORDERS
@pytest.mark.parametrize("is_common", [False, True])
def test_branches_meet_the_same_noise_only_where_they_are_told_to(is_slow: bool, is_common: bool) -> None:
    walk = {"kind": Noisy, "is_slow": is_slow}
    model = walk_model(StepLog(), walk=walk, group_size=3, n_steps=24, common_random_numbers=is_common)
    for seen in collect(model, 2).rollouts:
        assert (seen.rewards == seen.rewards[..., :1]).all() == is_common
        assert len(np.unique(seen.rewards[:, 0, 0])) == 4, "every step brings noise of its own"
        assert is_common or len(np.unique(seen.rewards)) == seen.rewards.size


class Lottery(gym.Env[Any, Any]):
    """Draws where an episode begins from a generator inside an object, which no seed reaches."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.drum, self.t, self.start = types.SimpleNamespace(rng=np.random.default_rng(0)), 0, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.start = 0, self.drum.rng.normal()
        return np.array([self.start], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.array([self.start + 10 * self.t], np.float32), 0.0, self.t == 4, False, {}


class OwnLottery(Lottery):
    """Captures its generator by methods of its own."""

    def capture_state(self) -> Any:
        return copy.deepcopy((self.drum, self.t, self.start))

    def restore_state(self, state: Any) -> None:
        self.drum, self.t, self.start = copy.deepcopy(state)


class Raffle(Lottery):
    """Draws what it pays from there, too."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, float(self.drum.rng.normal()), *rest


def make_worker(makers: list[Callable[[], gym.Env[Any, Any]]]) -> SubprocVecEnv:
    return SubprocVecEnv([lambda make=make: RestorableWrapper(make()) for make in makers], "fork")  # type: ignore[misc]


IN_A_WORKER = pytest.mark.parametrize("make_vec_env", [DummyVecEnv, make_worker], ids=["here", "in a worker"])


@IN_A_WORKER
@pytest.mark.parametrize("is_common", [False, True])
def test_branches_meet_the_same_noise_of_an_object_only_where_they_are_told_to(
    make_vec_env: Callable[[Any], VecEnv], is_common: bool
) -> None:
    env, rewards = make_vec_env([Raffle]), list[Any]()
    settings: dict[str, Any] = {"group_mode": "branch", "group_size": 4, "n_steps": 64, "horizon": 4, "n_epochs": 1}
    model = GRPO("MlpPolicy", env, seed=0, common_random_numbers=is_common, **settings)
    for _ in range(3):
        model.learn(1, reset_num_timesteps=False)
        rollout = model.rollout_buffer
        assert not is_common or (rollout.rewards == rollout.rewards[..., :1])[rollout.step_mask.all(-1)].all()
        rewards += rollout.rewards[rollout.step_mask].tolist()
    env.close()
    assert is_common or len(set(rewards)) == len(rewards)


@IN_A_WORKER
@pytest.mark.parametrize("kind", [Lottery, OwnLottery])
@pytest.mark.parametrize("is_common", [False, True], ids=["independent", "common"])
def test_no_episode_begins_twice_where_restoring_rewinds_the_generator(
    kind: type[Lottery], make_vec_env: Callable[[Any], VecEnv], is_common: bool
) -> None:
    def list_starts() -> list[float]:
        env = make_vec_env([kind])
        settings: dict[str, Any] = {"n_steps": 64, "horizon": 4, "n_epochs": 1, "common_random_numbers": is_common}
        model = GRPO("MlpPolicy", env, seed=0, restart_probability=0.5, **settings)
        starts = [
            anchor.observed.observation.item()
            for _ in range(8)
            for group in model.learn(1, reset_num_timesteps=False)._collector.groups
            if (anchor := group.anchor) is not None and anchor.episode_length == 0
        ]
        env.close()
        return starts

    starts = list_starts()
    assert len(starts) > 32
    assert len(set(starts)) == len(starts)
    assert list_starts() == starts


@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "residual", "adaptive", "value"])
@pytest.mark.parametrize("obeys", [True, False], ids=["obeys its seed", "ignores its seed"])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_episodes_that_are_compared_and_begin_differently_are_told_of(baseline: Any, obeys: bool, n_envs: int) -> None:
    class Careless(Lottery):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            if obeys:
                self.drum.rng = np.random.default_rng(seed)
            return super().reset(seed=seed)

    env = DummyVecEnv([Careless] * n_envs)
    settings: dict[str, Any] = {"group_mode": "episode", "n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0}
    model = GRPO("MlpPolicy", env, baseline=baseline, **settings)
    if obeys or baseline in ("adaptive", "value"):
        model.learn(1)  # warnings are errors
        return
    with pytest.warns(UserWarning, match=r"although their resets got the same seed.* super\(\).reset\(seed=seed\)"):
        model.learn(1)
    model.learn(1, reset_num_timesteps=False)


def test_stacked_frames_follow_their_branch() -> None:
    log = StepLog()
    env = VecFrameStack(DummyVecEnv([lambda: Walk(log)] * 2), 3)
    model = GRPO("MlpPolicy", env, n_steps=24, group_size=3, horizon=4, n_epochs=1, seed=0)
    log.is_open = True
    for seen in collect(model, 3).rollouts:
        before, after = (
            stored.reshape(*seen.step_mask.shape, 3, 3) for stored in (seen.observations, seen.next_observations)
        )
        assert (after[..., :2, :] == before[..., 1:, :]).all()
        assert (after[..., 2, 0] == before[..., 2, 0] + 2 * seen.actions - 1).all()
        assert (before[1:] == after[:-1]).all()
        assert (before[0] == before[0, :, :1]).all()


class Panel(gym.Env[Any, Any]):
    """Any actions, of which the first choice or digit is ruled out in every other step."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if isinstance(self.action_space, spaces.MultiBinary):
            assert action[0] != self.n_steps % 2
        else:
            assert self.action_masks()[np.ravel(action)[0]]
        self.n_steps += 1
        return self._observe(), float(np.sum(action)), False, False, {}

    def action_masks(self) -> Any:
        if isinstance(self.action_space, spaces.MultiBinary):  # may be 0, may be 1
            return np.array([self.n_steps % 2, 1 - self.n_steps % 2, 1, 1, 1, 1])
        n = self.action_space.n if isinstance(self.action_space, spaces.Discrete) else sum(self.action_space.nvec)  # type: ignore[attr-defined]
        return np.array([self.n_steps % 2, *[1] * (n - 1)])

    def capture_state(self) -> int:
        return self.n_steps

    def restore_state(self, state: int) -> None:
        self.n_steps = state

    def _observe(self) -> Any:
        return np.array([self.n_steps % 2, self.n_steps % 3 - 1], np.float32)


MASKED = [spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]


def make_env(name: Any) -> DummyVecEnv:
    if isinstance(name, str):
        return make_vec_env(name, 2, seed=0, vec_env_cls=DummyVecEnv)  # type: ignore[return-value]
    return DummyVecEnv([lambda: Panel(name)] * 2)


@pytest.mark.parametrize(
    ("name", "mode", "group_size"),
    [
        *[(name, "branch", 2) for name in ("CartPole-v1", "Pendulum-v1", "FrozenLake-v1", *MASKED)],
        *[(name, "episode", 3) for name in ("CartPole-v1", "Pendulum-v1", *MASKED)],
        *[("CartPole-v1", "action", 2), ("FrozenLake-v1", "action", 4), (MASKED[0], "action", 3)],
    ],
    ids=str,
)
def test_stored_log_probabilities_are_those_of_the_policy_that_learns(
    name: Any, mode: GroupMode, group_size: int
) -> None:
    differences: list[float] = []

    def compare(model: GRPO) -> None:
        batch = model._batch.to_tensors(model.device)
        assert (batch.action_masks is None) == isinstance(name, str)
        with torch.no_grad():
            _, log_prob, _ = evaluate_actions(model.policy, batch.observations, batch.actions, batch.action_masks)
        differences.append((log_prob - batch.old_log_prob).abs().max().item())

    changes: dict[str, Any] = {"group_mode": mode, "group_size": group_size, "horizon": 8}
    changes["n_steps"] = 16 * group_size
    collect(cartpole_model(env=make_env(name), learning_rate=0.01, **changes), 3, on_end=compare)
    assert len(differences) == 3
    assert max(differences) < 1e-4


@pytest.mark.parametrize("action_space", MASKED, ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"importance_level": "branch"}, {"loss_type": "cispo"}, {"kl_coef": 0.1, "ref_sync_steps": 1}]
)
def test_the_ratio_is_one_on_the_first_minibatch_under_masks(
    action_space: spaces.Space[Any], changes: dict[str, Any]
) -> None:
    model = cartpole_model(env=make_env(action_space), n_epochs=1, batch_size=512, learning_rate=0.01, **changes)
    for _ in range(3):
        model.learn(1, reset_num_timesteps=False)
        logged = model.logger.name_to_value
        assert logged["train/clip_fraction"] == 0
        assert abs(logged["train/approx_kl"]) < 1e-6
        assert np.isfinite(logged["train/entropy_loss"])
        assert abs(logged.get("train/kl_ref", 0.0)) < 1e-6, "the reference is the policy itself, under the same masks"


def test_an_episode_without_an_end_is_cut_as_by_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_core.groups.collector.MAX_EPISODE_STEPS", 10)
    model, ends = build(MatchEnv(episode_length=10**6), mode="episode", n_steps=16), list[bool]()

    def look(found: dict[str, Any], _: dict[str, Any]) -> bool:
        ends.append(bool(found["dones"][0]))
        return True

    with pytest.warns(UserWarning, match=r"went on for 10 steps without an end and was cut there.* Pass horizon=n"):
        model.learn(16, look)
    model.learn(40)  # warnings are errors, so this one came once
    assert ends == ([False] * 9 + [True]) * 2
    rollout = model.rollout_buffer
    assert rollout.truncated[9].all()
    assert rollout.shape[0] == 10
    assert not rollout.terminated.any()


def test_a_horizon_of_ones_own_and_an_end_in_time_need_no_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_core.groups.collector.MAX_EPISODE_STEPS", 10)
    build(MatchEnv(episode_length=10**6), mode="episode", horizon=12).learn(16)
    model = build(MatchEnv(episode_length=10), mode="episode")
    model.learn(16)
    assert model.rollout_buffer.terminated[9].all()
    assert not model.rollout_buffer.truncated.any()
