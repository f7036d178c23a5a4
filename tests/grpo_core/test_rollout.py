"""Collecting whole groups: every simulator step counted, every branch restored, every step learnt from once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core.actor import Actor
from grpo_core.branching import Simulator
from grpo_core.rollout import GroupRollout, Normalizer, StepBatch, draw_minibatches, reset_to_anchor


class StepLog:
    """What really happened in the simulators, kept outside of anything that a restore puts back."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []  # position before, action
        self.n_resets = 0


class Walk(gym.Env[Any, Any]):
    """A walk on the integers that falls off at ``+-edge``. Every observation carries a stamp of its own.

    Stepping it after the fall raises: a dead branch must not be stepped.
    """

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (3,))

    def __init__(self, log: StepLog, edge: int = 10**6) -> None:
        self.log, self.edge = log, edge
        self.position, self.n_steps = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.log.n_resets += 1
        self.position, self.n_steps = 0, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if abs(self.position) >= self.edge:
            raise AssertionError("stepped after the fall")
        self.log.steps.append((self.position, int(action)))
        self.position += 2 * int(action) - 1
        self.n_steps += 1
        return self._observe(), float(self.position), abs(self.position) >= self.edge, False, {}

    def capture_state(self) -> tuple[int, int]:
        return self.position, self.n_steps

    def restore_state(self, state: tuple[int, int]) -> None:
        self.position, self.n_steps = state

    def _observe(self) -> Any:
        return np.array([self.position, self.n_steps, len(self.log.steps)], np.float32)


class Seen(NamedTuple):
    """A copy of what one rollout stored."""

    states: Any
    next_states: Any
    actions: Any
    log_probs: Any
    rewards: Any
    step_mask: Any
    terminated: Any
    truncated: Any


class Watch(BaseCallback):
    """Copies every rollout, and calls a function when it ends, before the policy learns from it."""

    def __init__(self, on_end: Callable[[GRPO], None] | None = None, on_start: Callable[[GRPO], None] | None = None):
        super().__init__()
        self.on_end, self.on_start = on_end, on_start
        self.rollouts: list[Seen] = []
        self.n_sweeps = 0

    @property
    def grpo(self) -> GRPO:
        assert isinstance(self.model, GRPO)
        return self.model

    def _on_rollout_start(self) -> None:
        if self.on_start is not None:
            self.on_start(self.grpo)

    def _on_step(self) -> bool:
        self.n_sweeps += 1
        return True

    def _on_rollout_end(self) -> None:
        stored = self.grpo.rollout_buffer
        self.rollouts.append(Seen(**{name: getattr(stored, name).copy() for name in Seen._fields}))
        if self.on_end is not None:
            self.on_end(self.grpo)


def walk_model(log: StepLog, n_envs: int = 1, edge: int = 10**6, time_limit: int | None = None, **changes: Any) -> GRPO:
    def make() -> gym.Env[Any, Any]:
        walk = Walk(log, edge)
        return walk if time_limit is None else gym.wrappers.TimeLimit(walk, time_limit)

    arguments = {"group_size": 2, "horizon": 4, "n_steps": 8, "n_epochs": 1, "seed": 0, **changes}
    return GRPO("MlpPolicy", DummyVecEnv([make] * n_envs), policy_kwargs={"net_arch": [4]}, **arguments)


def cartpole_model(**changes: Any) -> GRPO:
    arguments = {"env": "CartPole-v1", "n_steps": 64, "group_size": 2, "horizon": 16, "seed": 0, **changes}
    return GRPO("MlpPolicy", **arguments)


def collect(model: GRPO, n_rollouts: int = 1, **watch: Callable[[GRPO], None]) -> Watch:
    """Train for a number of rollouts, none of which may end early, and return what was seen."""
    callback = Watch(**watch)
    while len(callback.rollouts) < n_rollouts:
        model.learn(1, callback=callback, reset_num_timesteps=False)
    return callback


@pytest.mark.parametrize(
    ("n_envs", "group_size", "horizon", "n_groups"), [(1, 2, 1, 1), (1, 3, 5, 2), (2, 2, 4, 3), (3, 4, 2, 1)]
)
def test_every_simulator_step_is_counted_and_no_other(
    n_envs: int, group_size: int, horizon: int, n_groups: int
) -> None:
    log, n_steps = StepLog(), n_groups * group_size * horizon
    model = walk_model(log, n_envs, group_size=group_size, horizon=horizon, n_steps=n_steps)
    for n_rollouts in (1, 2, 3):
        model.learn(1, reset_num_timesteps=False)
        assert len(log.steps) == model.num_timesteps == n_rollouts * n_envs * n_steps


@pytest.mark.parametrize(("n_envs", "group_size", "edge"), [(1, 2, 1), (1, 4, 2), (2, 3, 3), (3, 2, 2)])
def test_steps_are_counted_exactly_where_branches_die_early(n_envs: int, group_size: int, edge: int) -> None:
    log = StepLog()
    model = walk_model(log, n_envs, edge, group_size=group_size, horizon=6, n_steps=12 * group_size)
    watch = collect(model, 3)
    n_live = sum(int(seen.step_mask.sum()) for seen in watch.rollouts)
    assert len(log.steps) == model.num_timesteps == n_live
    assert n_live < 3 * n_envs * 12 * group_size


def test_learning_ends_with_the_rollout_that_reaches_the_total() -> None:
    model = walk_model(StepLog())
    assert model.learn(17).num_timesteps == 24


def test_a_callback_is_called_once_per_sweep_over_the_environments() -> None:
    model = walk_model(StepLog(), n_envs=3, n_steps=16)
    assert collect(model).n_sweeps == 16
    assert model.num_timesteps == 48


def test_branches_of_a_group_start_from_one_observation_and_part_by_their_actions() -> None:
    watch = collect(walk_model(StepLog(), n_envs=2, group_size=4, horizon=5, n_steps=40), 3)
    for seen in watch.rollouts:
        assert (seen.states[0] == seen.states[0, :, :1]).all()
        assert len(np.unique(seen.next_states[..., 2])) == seen.step_mask.sum(), "every step is one of its own"
    assert len({tuple(path) for seen in watch.rollouts for path in seen.actions.reshape(5, -1).T}) > 4


def test_every_branch_goes_on_from_where_it_was() -> None:
    log = StepLog()
    watch = collect(walk_model(log, n_envs=2, edge=3, group_size=3, horizon=6, n_steps=36), 2)
    for seen in watch.rollouts:
        live = seen.step_mask
        moved = seen.states[..., 0] + 2 * seen.actions - 1
        assert (seen.next_states[..., 0][live] == moved[live]).all()
        assert (seen.next_states[..., 1][live] == seen.states[..., 1][live] + 1).all()
        assert (seen.rewards[live] == moved[live]).all()
        assert (seen.terminated[live] == (np.abs(moved[live]) >= 3)).all()
        assert not seen.truncated.any()
        goes_on = live[1:]
        assert (seen.states[1:][goes_on] == seen.next_states[:-1][goes_on]).all()
        assert (live[1:] == (live[:-1] & ~seen.terminated[:-1])).all()
    n_all = sum(int(seen.step_mask.sum()) for seen in watch.rollouts)
    assert len(log.steps) == n_all


def test_what_is_stored_about_dead_steps_is_nothing() -> None:
    for seen in collect(walk_model(StepLog(), edge=1, horizon=6, n_steps=48), 2).rollouts:
        dead = ~seen.step_mask
        assert dead.any()
        assert (seen.rewards[dead] == 0).all()
        assert not seen.terminated[dead].any()


def test_a_time_limit_truncates_and_does_not_terminate() -> None:
    seen = collect(walk_model(StepLog(), time_limit=3, horizon=8, n_steps=16)).rollouts[0]
    assert seen.step_mask[:, 0].sum(axis=0).tolist() == [3, 3]
    assert seen.truncated[2].all()
    assert not seen.terminated.any()


def test_a_fall_on_the_last_permitted_step_is_a_termination() -> None:
    seen = collect(walk_model(StepLog(), edge=1, time_limit=1)).rollouts[0]
    assert seen.terminated[0].all()
    assert not seen.truncated.any()


def test_the_next_rollout_starts_from_a_step_of_the_last_one() -> None:
    watch = collect(walk_model(StepLog(), n_envs=2, group_size=3, horizon=5, n_steps=30), 4)
    for before, after in zip(watch.rollouts, watch.rollouts[1:], strict=False):
        for anchor in range(before.states.shape[1]):
            reached = {tuple(observation) for observation in before.next_states[:, anchor].reshape(-1, 3)}
            assert tuple(after.states[0, anchor, 0]) in reached
            assert after.states[0, anchor, 0, 1] >= 1


def test_a_group_whose_kept_step_was_the_last_starts_anew() -> None:
    log = StepLog()
    model = walk_model(log, edge=1)
    collect(model)
    n_resets = log.n_resets
    seen = collect(model).rollouts[-1]  # every episode lasts one step, so every kept step is a last one
    assert log.n_resets == n_resets + 1
    assert (seen.states[0, :, :, :2] == 0).all()


def uniform_actor(walk: Walk) -> Actor:
    weights = {
        "action_net.weight": np.zeros((2, 3)),
        "action_net.bias": np.zeros(2),
        "value_net.weight": np.zeros((1, 3)),
        "value_net.bias": np.zeros(1),
    }
    return Actor.from_weights(walk.observation_space, walk.action_space, "Tanh", weights)


def collect_by_hand(
    n_groups: int, group_size: int, horizon: int, time_limit: int = 10**6
) -> tuple[GroupRollout, Simulator, StepLog]:
    log = StepLog()
    walk = Walk(log)
    simulator = Simulator(gym.wrappers.TimeLimit(walk, time_limit))
    rollout = GroupRollout(horizon, n_groups, group_size, walk.observation_space, walk.action_space)
    anchors = [reset_to_anchor(simulator) for _ in range(n_groups)]
    assert rollout.collect(
        [simulator], anchors, uniform_actor(walk), Normalizer(None), np.random.default_rng(0), lambda *_: True
    )
    return rollout, simulator, log


def test_the_kept_step_is_uniform_over_branches_and_steps() -> None:
    # 16,000 simulator steps of a walk that does next to nothing: a distribution needs many draws.
    n_groups, group_size, horizon = 2000, 2, 4
    rollout, simulator, _ = collect_by_hand(n_groups, group_size, horizon)
    counts = np.zeros((horizon, group_size))
    for i, anchor in enumerate(rollout.next_anchors([simulator], np.zeros(rollout.shape))):
        is_kept = (rollout.next_states[:, i] == anchor.observation).all(axis=-1)
        assert is_kept.sum() == 1
        counts += is_kept
    expected = n_groups / (horizon * group_size)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 30, counts  # 7 degrees of freedom: exceeded once in 10,000 seeds


def test_the_kept_step_is_uniform_over_the_steps_a_short_branch_lived() -> None:
    # 9,000 simulator steps; the horizon is 8, every branch lives for 3, and the third step ends the episode.
    n_groups = 1500
    rollout, simulator, log = collect_by_hand(n_groups, 2, 8, time_limit=3)
    log.n_resets = 0
    anchors = rollout.next_anchors([simulator], np.zeros(rollout.shape))
    n_steps = np.bincount([int(anchor.observation[1]) for anchor in anchors], minlength=3)
    assert log.n_resets == n_steps[0]
    assert n_steps.sum() == n_groups
    five_sigma = 5 * np.sqrt(n_groups * (1 / 3) * (2 / 3))
    assert (np.abs(n_steps - n_groups / 3) < five_sigma).all(), n_steps


def test_minibatches_cover_every_step_once() -> None:
    index = torch.arange(10)
    batch = StepBatch(index.reshape(10, 1).float(), index, index * 2.0, index * 3.0, index * 4.0)
    orders = []
    rng = np.random.default_rng(0)
    for _ in range(2):
        minibatches = list(draw_minibatches(batch, 4, rng))
        assert [len(minibatch.actions) for minibatch in minibatches] == [4, 4, 2]
        for minibatch in minibatches:
            steps = minibatch.actions
            assert minibatch.observations.flatten().tolist() == steps.tolist()
            assert minibatch.old_log_prob.tolist() == (steps * 2).tolist()
            assert minibatch.advantages.tolist() == (steps * 3).tolist()
            assert minibatch.returns.tolist() == (steps * 4).tolist()
        orders.append([int(step) for minibatch in minibatches for step in minibatch.actions])
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] != orders[1]
    assert list(range(10)) not in orders


def test_a_minibatch_larger_than_the_rollout_holds_all_of_it() -> None:
    index = torch.arange(3.0)
    (minibatch,) = draw_minibatches(StepBatch(index, index, index, index, index), 64, np.random.default_rng(0))
    assert sorted(minibatch.actions.tolist()) == [0, 1, 2]


def test_the_policy_learns_from_live_steps_only_and_each_keeps_what_belongs_to_it() -> None:
    batches: list[StepBatch] = []
    judged: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(model: GRPO) -> None:
        batches.append(model._batch)
        judged.append((model.rollout_buffer.advantages.clone(), model.rollout_buffer.returns.clone()))

    watch = collect(walk_model(StepLog(), edge=2, horizon=6, n_steps=24), on_end=keep)
    seen, batch, (advantages, returns) = watch.rollouts[0], batches[0], judged[0]
    live = list(zip(*np.nonzero(seen.step_mask), strict=True))
    assert len(live) < seen.step_mask.size
    assert all(len(tensor) == len(live) for tensor in batch)
    row_of = {float(stamp): row for row, stamp in enumerate(batch.observations[:, 2])}
    for at in live:
        # An observation's stamp is its own, but for the group's branches sharing their first one.
        if at[0] > 0:
            row = row_of[float(seen.states[at][2])]
            assert batch.observations[row].tolist() == seen.states[at].tolist()
            assert batch.actions[row] == seen.actions[at]
            assert batch.old_log_prob[row] == seen.log_probs[at]
            assert batch.advantages[row] == advantages[at]
            assert batch.returns[row] == returns[at]


@pytest.mark.parametrize(
    ("env_id", "n_observations", "n_actions"),
    [("CartPole-v1", 4, 1), ("FrozenLake-v1", 1, 1), ("Pendulum-v1", 3, 1), ("MountainCarContinuous-v0", 2, 1)],
)
def test_a_reward_function_gets_one_row_per_live_step(env_id: str, n_observations: int, n_actions: int) -> None:
    calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        calls.append((state, action, next_state))
        return torch.arange(len(state)).reshape(-1, 1) * 0.5

    model = cartpole_model(env=env_id, reward_function=reward)
    seen = collect(model).rollouts[0]
    assert len(calls) == 1
    state, action, next_state = calls[0]
    n_live = int(seen.step_mask.sum())
    assert state.shape == next_state.shape == (n_live, n_observations)
    assert action.shape == (n_live, n_actions)
    assert (state.numpy() == seen.states[seen.step_mask].reshape(n_live, -1)).all()
    assert (next_state.numpy() == seen.next_states[seen.step_mask].reshape(n_live, -1)).all()
    assert (seen.rewards[seen.step_mask] == np.arange(n_live) * 0.5).all()
    assert (seen.rewards[~seen.step_mask] == 0).all()


def test_a_reward_function_sees_actions_as_the_simulator_did() -> None:
    actions: list[torch.Tensor] = []

    def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        actions.append(action)
        return torch.zeros(len(action), 1)

    model = cartpole_model(env="Pendulum-v1", reward_function=reward, policy_kwargs={"log_std_init": 2.0})
    seen = collect(model).rollouts[0]
    assert np.abs(seen.actions).max() > 2, "samples leave the bounds of the torque"
    assert actions[0].abs().max() == 2
    assert (actions[0].numpy() == np.clip(seen.actions[seen.step_mask], -2, 2)).all()


@pytest.mark.parametrize("convert", [lambda r: r, lambda r: r.flatten(), lambda r: r.flatten().tolist()])
def test_a_reward_function_may_return_a_column_a_row_or_a_list(convert: Callable[[torch.Tensor], Any]) -> None:
    model = cartpole_model(reward_function=lambda state, action, next_state: convert(next_state[:, :1]))
    seen = collect(model).rollouts[0]
    assert (seen.rewards[seen.step_mask] == seen.next_states[seen.step_mask][:, 0]).all()


def test_a_reward_function_that_scribbles_on_its_arguments_changes_no_step() -> None:
    def scribble(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        for tensor in (state, action, next_state):
            tensor.zero_()
        return torch.ones(len(state), 1)

    tidy, scribbled = (
        collect(cartpole_model(reward_function=function)).rollouts[0]
        for function in (lambda state, action, next_state: torch.ones(len(state), 1), scribble)
    )
    for name in Seen._fields:
        assert (getattr(tidy, name)[tidy.step_mask] == getattr(scribbled, name)[tidy.step_mask]).all(), name


def two_columns(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
    return next_state[:, :2]


def one_number(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
    return torch.ones(1, 1)


def nothing(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> Any:
    """It forgets to return."""


@pytest.mark.parametrize("reward_function", [two_columns, one_number, nothing])
def test_a_reward_of_the_wrong_size_is_refused_with_the_remedy(reward_function: Callable[..., Any]) -> None:
    model = cartpole_model(reward_function=reward_function)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match=r"must return one reward per step, shape \(\d+, 1\)") as refusal:
        model.learn(64)
    assert reward_function.__name__ in str(refusal.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_no_number_is_refused_with_the_remedy(bad: float) -> None:
    def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        rewards = torch.ones(len(state), 1)
        rewards[3] = bad
        return rewards

    model = cartpole_model(reward_function=reward)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match=r"a reward is NaN or infinite; check the reward function"):
        model.learn(64)
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


class Broken(Walk):
    """Its third step shows an observation that is no number."""

    def _observe(self) -> Any:
        return np.array([np.nan if self.n_steps == 3 else 0.0, 0.0, 0.0], np.float32)


def test_an_observation_that_is_no_number_is_refused_with_the_remedy() -> None:
    model = GRPO("MlpPolicy", Broken(StepLog()), n_steps=16, group_size=2, horizon=8, seed=0)
    with pytest.raises(ValueError, match=r"an observation is NaN or infinite; check the environment's step\(\)"):
        model.learn(16)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_stored_log_probabilities_are_those_of_the_policy_that_learns(env_id: str) -> None:
    differences: list[float] = []

    def compare(model: GRPO) -> None:
        stored = model.rollout_buffer
        mask = stored.step_mask
        with torch.no_grad():
            _, log_prob, _ = model.policy.evaluate_actions(
                torch.as_tensor(stored.states[mask]), torch.as_tensor(stored.actions[mask])
            )
        differences.append(float(np.abs(log_prob.numpy() - stored.log_probs[mask]).max()))

    collect(cartpole_model(env=env_id, learning_rate=0.01), 3, on_end=compare)
    assert len(differences) == 3
    assert max(differences) < 1e-4


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("is_normalized", [False, True])
def test_the_ratio_is_one_on_the_first_minibatch(env_id: str, is_normalized: bool) -> None:
    env: Any = make_vec_env(env_id, n_envs=2, seed=0, vec_env_cls=DummyVecEnv)
    env = VecNormalize(env) if is_normalized else env
    model = cartpole_model(env=env, n_epochs=1, batch_size=256)
    for _ in range(2):
        model.learn(1, reset_num_timesteps=False)
        logged = model.logger.name_to_value
        assert logged["train/clip_fraction"] == 0
        assert abs(logged["train/approx_kl"]) < 1e-6
        advantages = model.rollout_buffer.advantages[torch.from_numpy(model.rollout_buffer.step_mask)]
        assert logged["train/policy_gradient_loss"] == pytest.approx(-advantages.mean().item(), abs=1e-4)


def test_advantages_are_computed_from_what_the_branches_really_earned() -> None:
    seen: list[torch.Tensor] = []
    model = walk_model(
        StepLog(),
        group_size=3,
        horizon=4,
        n_steps=24,
        baseline="group",
        bootstrap_value=False,
        advantage_scaling="none",
    )
    watch = collect(model, on_end=lambda model: seen.append(model.rollout_buffer.advantages.clone()))
    rewards = watch.rollouts[0].rewards.astype(np.float64)
    for t in range(4):
        returns = sum(model.gamma**k * rewards[t + k] for k in range(4 - t))
        expected = returns - returns.mean(axis=-1, keepdims=True)
        np.testing.assert_allclose(seen[0][t].numpy(), expected, atol=1e-5)


class Moments(NamedTuple):
    mean: Any
    var: Any
    n_samples: float

    @property
    def exact(self) -> tuple[Any, Any, float]:
        return np.asarray(self.mean).tolist(), np.asarray(self.var).tolist(), self.n_samples


def read_moments(model: GRPO) -> tuple[Moments, Moments]:
    normalize = model.get_vec_normalize_env()
    assert normalize is not None
    obs_rms: Any = normalize.obs_rms
    ret_rms = normalize.ret_rms
    return (
        Moments(obs_rms.mean.copy(), obs_rms.var.copy(), obs_rms.count),
        Moments(np.copy(ret_rms.mean), np.copy(ret_rms.var), ret_rms.count),
    )


def merge(before: Moments, samples: Any) -> tuple[Any, Any]:
    """Mean and variance of all samples, those behind ``before`` and the new ones, from their sums."""
    count = before.n_samples + len(samples)
    total = before.mean * before.n_samples + samples.sum(axis=0)
    squares = (before.var + before.mean**2) * before.n_samples + (samples**2).sum(axis=0)
    mean = total / count
    return mean, squares / count - mean**2


def normalized_walk(**options: Any) -> GRPO:
    log = StepLog()
    env = VecNormalize(DummyVecEnv([lambda: Walk(log, edge=5)] * 2), gamma=0.9, **options)
    return GRPO("MlpPolicy", env, n_steps=32, group_size=2, horizon=4, n_epochs=1, seed=0)


def test_normalisation_statistics_are_frozen_during_a_rollout_and_updated_after_it() -> None:
    at_start: list[tuple[Moments, Moments]] = []
    during: list[tuple[Moments, Moments]] = []
    at_end: list[tuple[Moments, Moments]] = []

    class Steps(Watch):
        def _on_step(self) -> bool:
            during.append(read_moments(self.grpo))
            return True

    watch = Steps(
        on_start=lambda model: at_start.append(read_moments(model)),
        on_end=lambda model: at_end.append(read_moments(model)),
    )
    normalized_walk().learn(64, callback=watch)
    n_first = len(at_start)
    assert n_first == len(at_end) >= 1
    known = [(obs.exact, ret.exact) for obs, ret in at_start]
    assert during
    assert all((obs.exact, ret.exact) in known for obs, ret in during)
    states = watch.rollouts[0].states[watch.rollouts[0].step_mask].astype(np.float64)
    mean, var = merge(at_start[0][0], states)
    assert at_end[0][0].n_samples == pytest.approx(at_start[0][0].n_samples + len(states))
    np.testing.assert_allclose(at_end[0][0].mean, mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(at_end[0][0].var, var, rtol=1e-6, atol=1e-9)


def test_rewards_are_divided_by_the_spread_of_discounted_returns_known_before_the_rollout() -> None:
    at_start: list[tuple[Moments, Moments]] = []
    at_end: list[tuple[Moments, Moments]] = []
    watch = Watch(
        on_start=lambda model: at_start.append(read_moments(model)),
        on_end=lambda model: at_end.append(read_moments(model)),
    )
    normalized_walk().learn(64, callback=watch)
    first = watch.rollouts[0]
    own = first.next_states[..., 0].astype(np.float64)  # a step earns the position it leads to
    expected = np.clip(own / np.sqrt(at_start[0][1].var + 1e-8), -10, 10)
    np.testing.assert_allclose(first.rewards[first.step_mask], expected[first.step_mask], rtol=1e-5)
    discounted = []
    for a, b in np.ndindex(*first.step_mask.shape[1:]):
        running = 0.0  # the first rollout starts from resets
        for t in range(int(first.step_mask[:, a, b].sum())):
            running = running * 0.9 + own[t, a, b]
            discounted.append(running)
    mean, var = merge(at_start[0][1], np.array(discounted))
    np.testing.assert_allclose(at_end[0][1].mean, mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(at_end[0][1].var, var, rtol=1e-6, atol=1e-9)


def test_discounted_returns_are_carried_over_to_the_next_rollout() -> None:
    model = normalized_walk(norm_reward=True)
    before: list[tuple[float, ...]] = []
    watch = collect(
        model, 2, on_start=lambda model: before.append(tuple(anchor.discounted_return for anchor in model._anchors))
    )
    first, carried = watch.rollouts[0], before[-1]
    own = first.next_states[..., 0].astype(np.float64)
    assert len(carried) == first.step_mask.shape[1]
    for anchor, discounted in enumerate(carried):
        possible = [0.0]  # a reset
        for b in range(2):
            running = 0.0
            for t in range(int(first.step_mask[:, anchor, b].sum())):
                running = running * 0.9 + own[t, anchor, b]
                possible.append(running)
        assert min(abs(discounted - one) for one in possible) < 1e-5
    assert any(discounted != 0 for discounted in carried)


def test_statistics_that_do_not_train_stay_as_they_are() -> None:
    model = normalized_walk(training=False)
    before = [moments.exact for moments in read_moments(model)]
    collect(model)
    assert [moments.exact for moments in read_moments(model)] == before


def test_the_policy_sees_normalised_and_the_reward_function_plain_observations() -> None:
    plain: list[torch.Tensor] = []
    batches: list[StepBatch] = []

    def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        plain.append(state)
        return torch.ones(len(state), 1)

    model = normalized_walk()
    model.reward_function = reward
    moments: list[tuple[Moments, Moments]] = []
    collect(
        model,
        2,
        on_start=lambda model: moments.append(read_moments(model)),
        on_end=lambda model: batches.append(model._batch),
    )
    obs = moments[1][0]
    expected = np.clip((plain[1].numpy() - obs.mean) / np.sqrt(obs.var + 1e-8), -10, 10)
    np.testing.assert_allclose(batches[1].observations.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (plain[1][:, 0] == plain[1][:, 0].round()).all()


def test_advantages_use_the_value_network_at_each_step_and_where_it_led() -> None:
    # One step per branch, so that GAE is the temporal difference alone: r + gamma V(s') - V(s). The networks stay as
    # they were, so that they can be asked again afterwards.
    shape = {"n_steps": 64, "group_size": 2, "horizon": 1}
    model = cartpole_model(**shape, baseline="value", advantage_scaling="none", gamma=0.5, learning_rate=1e-12)
    collect(model)
    rollout = model.rollout_buffer
    with torch.no_grad():
        v, v_next = (
            model.policy.predict_values(torch.from_numpy(x[rollout.step_mask])).flatten()
            for x in (rollout.states, rollout.next_states)
        )
    alive = torch.from_numpy(~rollout.terminated[rollout.step_mask])
    expected = torch.from_numpy(rollout.rewards[rollout.step_mask]) + 0.5 * v_next * alive - v
    torch.testing.assert_close(rollout.advantages[torch.from_numpy(rollout.step_mask)], expected)


@pytest.mark.parametrize("horizon", [1, 4])
def test_an_anchor_is_a_simulator_state_and_the_observation_made_there(horizon: int) -> None:
    model = cartpole_model(n_steps=64, group_size=2, horizon=horizon)
    for _ in range(4):
        collect(model)
        for anchor in model._anchors:
            model._simulators[0].restore(anchor.simulator_state)
            assert model.env is not None
            core = model.env.unwrapped.envs[0].unwrapped  # type: ignore[attr-defined]
            np.testing.assert_allclose(np.asarray(core.state, np.float32), anchor.observation)


@pytest.mark.parametrize("is_anew", [True, False])
def test_learning_anew_starts_from_new_episodes_and_going_on_does_not(is_anew: bool) -> None:
    model = walk_model(StepLog())
    model.learn(64)
    watch = Watch()
    model.learn(32, callback=watch, reset_num_timesteps=is_anew)
    starts = watch.rollouts[0].states[0, :, :, :2]
    assert (starts == 0).all() == is_anew
