"""Statistics do what the VecNormalize that they come from does, stay frozen in a rollout, and survive a model file."""

import json
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core.groups.normalization import Normalizer
from grpo_core.groups.rollout import GroupRollout, StepBatch
from grpo_core.options.network_json import network_to_json
from grpo_core.saving import model_file
from grpo_core.saving.model_file import ModelContent
from grpo_core.saving.model_state import get_normalization, restore_normalization
from grpo_core.saving.space_json import space_to_json
from grpo_core.spaces import pack
from tests.models import with_either_path
from tests.walk import StepLog, Walk, Watch, cartpole_model, collect

BOX = spaces.Box(-5.0, 5.0, (3,))
GRID = spaces.Box(-5.0, 5.0, (2, 2), np.float64)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
CAR = spaces.Dict({"speed": BOX, "grid": GRID, "camera": IMAGE, "gear": spaces.Discrete(4)})


class SamplingEnv(gym.Env[Any, Any]):
    """Observes random samples of a space and pays for them at random."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.action_space = spaces.Discrete(2)
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), float(self.np_random.normal(3.0, 2.0)), False, False, {}


def build(space: spaces.Space[Any], n_steps: int = 20, **settings: Any) -> VecNormalize:
    """A VecNormalize that has seen some steps."""
    vec_normalize = VecNormalize(DummyVecEnv([lambda: SamplingEnv(space)] * 2), **settings)
    vec_normalize.seed(0)
    vec_normalize.reset()
    for _ in range(n_steps):
        vec_normalize.step(np.zeros(2, np.int64))
    return vec_normalize


def draw_observations(space: spaces.Space[Any], n: int = 16) -> Any:
    space.seed(5)
    samples: list[Any] = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(actual[key], array, strict=True)
    else:
        np.testing.assert_array_equal(actual, expected, strict=True)


SETTINGS: list[tuple[spaces.Space[Any], dict[str, Any]]] = [
    (BOX, {}),
    (BOX, {"clip_obs": 0.5, "epsilon": 0.3}),
    (GRID, {"norm_reward": False}),
    (IMAGE, {}),
    (CAR, {"norm_obs_keys": ["speed"]}),
    (CAR, {"norm_obs_keys": ["grid", "camera"], "clip_obs": 1.0, "clip_reward": 0.7, "gamma": 0.5}),
]


@pytest.mark.parametrize(("space", "settings"), SETTINGS, ids=str)
def test_observations_are_normalized_as_vec_normalize_does(space: spaces.Space[Any], settings: dict[str, Any]) -> None:
    vec_normalize, observations = build(space, **settings), draw_observations(space)
    statistics = Normalizer(vec_normalize).freeze()
    assert statistics is not None
    assert_same(statistics.apply(observations), vec_normalize.normalize_obs(observations))
    if isinstance(space, spaces.Dict):
        assert_same(statistics.apply(pack(space, observations)), vec_normalize.normalize_obs(observations))


def test_statistics_stay_as_they_were_taken() -> None:
    vec_normalize, observations = build(BOX), draw_observations(BOX)
    statistics = Normalizer(vec_normalize).freeze()
    assert statistics is not None
    before = statistics.apply(observations)
    vec_normalize.step(np.zeros(2, np.int64))
    assert not np.array_equal(np.asarray(vec_normalize.normalize_obs(observations)), np.asarray(before))
    np.testing.assert_array_equal(statistics.apply(observations), before)
    with pytest.raises(ValueError, match="read-only"):
        statistics.mean[0] = 1.0  # type: ignore[index]  # what is being tested


@pytest.mark.parametrize("space", [BOX, CAR], ids=["box", "dict"])
def test_those_of_resets_alone_do_not_clip_the_first_rollout(space: spaces.Space[Any]) -> None:
    keys = ["speed"] if isinstance(space, spaces.Dict) else None
    vec_normalize = build(space, n_steps=0, norm_obs_keys=keys)
    rms: Any = vec_normalize.obs_rms["speed"] if keys else vec_normalize.obs_rms
    rms.mean, rms.var = np.array([0.02, -0.5, 40.0]), np.full(3, 1e-4)
    statistics, observations = Normalizer(vec_normalize).freeze(), draw_observations(space)
    assert statistics is not None
    applied: Any = statistics.apply(observations)
    seen, shown = (observations["speed"], applied["speed"]) if keys else (observations, applied)
    expected = (seen / np.sqrt(np.array([1.0, 1.0, 1600.0]) + 1e-8)).astype(np.float32)
    np.testing.assert_array_equal(shown, expected)
    for _ in range(10):
        vec_normalize.step(np.zeros(2, np.int64))
    statistics = Normalizer(vec_normalize).freeze()
    assert statistics is not None
    assert_same(statistics.apply(observations), vec_normalize.normalize_obs(observations))


def test_those_set_by_hand_are_taken_as_they_are_where_they_do_not_train() -> None:
    vec_normalize, observations = build(BOX, n_steps=0, training=False), draw_observations(BOX)
    rms: Any = vec_normalize.obs_rms
    rms.mean, rms.var = np.array([0.02, -0.5, 40.0]), np.full(3, 4.0)
    statistics = Normalizer(vec_normalize).freeze()
    assert statistics is not None
    assert_same(statistics.apply(observations), vec_normalize.normalize_obs(observations))


def test_there_are_none_where_observations_are_left_alone() -> None:
    assert Normalizer(build(BOX, norm_obs=False)).freeze() is None


def save_and_load(vec_normalize: VecNormalize) -> ModelContent:
    """Through the bytes of a model file, of a policy whose weights are all 0."""
    settings, arrays = get_normalization(vec_normalize)
    policy = "MultiInputPolicy" if isinstance(vec_normalize.observation_space, spaces.Dict) else "MlpPolicy"
    meta = {
        "spaces": {
            "observation": space_to_json(vec_normalize.observation_space),
            "action": space_to_json(vec_normalize.action_space),
        },
        "network": {**network_to_json({"net_arch": []}, ActorCriticPolicy), "policy": policy},
        "normalization": settings,
    }
    weights = {name: np.zeros(shape, np.float32) for name, shape in model_file.expected_shapes(meta).items()}
    content = model_file.from_bytes(model_file.to_bytes(json.loads(json.dumps(meta)), weights, {}, arrays))
    assert model_file.normalization_shapes(content.meta) == {name: array.shape for name, array in arrays.items()}
    return content


@pytest.mark.parametrize(("space", "settings"), [*SETTINGS, (BOX, {"norm_obs": False})], ids=str)
def test_a_restored_vec_normalize_goes_on_as_the_saved_one(space: spaces.Space[Any], settings: dict[str, Any]) -> None:
    saved, observations = build(space, **settings), draw_observations(space)
    content = save_and_load(saved)
    keys = {name: settings[name] for name in ("norm_obs", "norm_obs_keys") if name in settings}
    restored = build(space, n_steps=3, **keys)
    restore_normalization(restored, content)
    for vec_normalize in (saved, restored):
        vec_normalize.seed(9)
        vec_normalize.observation_space.seed(9)
        vec_normalize.reset()
    rewards = np.random.default_rng(0).normal(size=(5, 2))
    for reward in rewards:
        for vec_normalize in (saved, restored):
            vec_normalize._update_reward(reward)
        np.testing.assert_array_equal(saved.normalize_reward(reward), restored.normalize_reward(reward))
    assert saved.ret_rms.count == restored.ret_rms.count
    restore_normalization(saved, content)
    restore_normalization(restored, content)
    assert_same(restored.normalize_obs(observations), saved.normalize_obs(observations))
    assert (restored.gamma, restored.clip_reward) == (saved.gamma, saved.clip_reward)


def test_frozen_statistics_stay_frozen_if_the_file_does_not_say() -> None:
    content = save_and_load(build(BOX))
    del content.meta["normalization"]["training"]
    frozen = build(BOX)
    frozen.training = False
    restore_normalization(frozen, content)
    assert not frozen.training


@pytest.mark.parametrize(("space", "settings"), SETTINGS, ids=str)
def test_the_actor_of_a_file_normalizes_as_the_saved_vec_normalize_does(
    space: spaces.Space[Any], settings: dict[str, Any]
) -> None:
    saved, observations = build(space, **settings), draw_observations(space)
    statistics = save_and_load(saved).make_actor().normalization
    assert statistics is not None
    assert_same(statistics.apply(observations), saved.normalize_obs(observations))


def test_statistics_of_other_observations_are_refused_with_both() -> None:
    content = save_and_load(build(BOX))
    for other in (build(GRID), build(BOX, norm_obs=False), build(CAR, norm_obs_keys=["speed"])):
        mean = other.ret_rms.mean
        with pytest.raises(ValueError, match=r"model was saved with .*\(3,\).* build it with norm_obs=True"):
            restore_normalization(other, content)
        assert other.ret_rms.mean == mean


def test_a_file_without_statistics_is_refused() -> None:
    content = save_and_load(build(BOX))
    bare = ModelContent({**content.meta, "normalization": None}, content.weights)
    with pytest.raises(ValueError, match="saved without VecNormalize; use the environment without it"):
        restore_normalization(build(BOX), bare)


class Moments(NamedTuple):
    """Of a running mean and variance."""

    mean: Any
    var: Any
    n_samples: float

    @property
    def exact(self) -> tuple[Any, Any, float]:
        return np.asarray(self.mean).tolist(), np.asarray(self.var).tolist(), self.n_samples


def read_rms(rms: Any) -> Moments:
    return Moments(np.copy(rms.mean), np.copy(rms.var), rms.count)


def read_moments(model: GRPO) -> tuple[Moments, Moments]:
    """Of the observations and of the returns."""
    normalize = model.get_vec_normalize_env()
    assert normalize is not None
    return read_rms(normalize.obs_rms), read_rms(normalize.ret_rms)


def assert_merged(after: Moments, before: Moments, samples: Any) -> None:
    """Compare with mean and variance of all samples, those behind ``before`` and the new ones, from their sums."""
    count = before.n_samples + len(samples)
    mean = (before.mean * before.n_samples + samples.sum(axis=0)) / count
    squares = (before.var + before.mean**2) * before.n_samples + (samples**2).sum(axis=0)
    assert after.n_samples == pytest.approx(count)
    # Means of float32 observations are taken in float32.
    np.testing.assert_allclose(after.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(after.var, squares / count - mean**2, rtol=1e-5, atol=1e-6)


def normalized_walk(**options: Any) -> GRPO:
    log = StepLog()
    env = VecNormalize(DummyVecEnv([lambda: Walk(log, edge=5)] * 2), gamma=0.9, **options)
    model = GRPO("MlpPolicy", env, n_steps=32, group_size=2, horizon=4, n_epochs=1, seed=0)
    log.is_open = True
    return model


def discount_along_branches(rewards: Any, step_mask: Any, starts: Any) -> Any:
    """By a slow loop, with a discount of 0.9; NaN where no step was taken."""
    discounted = np.full(step_mask.shape, np.nan)
    for a, b in np.ndindex(*step_mask.shape[1:]):
        running = starts[a]
        for t in range(int(step_mask[:, a, b].sum())):
            running = running * 0.9 + rewards[t, a, b]
            discounted[t, a, b] = running
    return discounted


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
    observed = watch.rollouts[0].observations[watch.rollouts[0].step_mask].astype(np.float64)
    assert_merged(at_end[0][0], at_start[0][0], observed)


def test_rewards_are_divided_by_the_spread_of_discounted_returns_their_own_included() -> None:
    at_start: list[tuple[Moments, Moments]] = []
    at_end: list[tuple[Moments, Moments]] = []
    watch = Watch(
        on_start=lambda model: at_start.append(read_moments(model)),
        on_end=lambda model: at_end.append(read_moments(model)),
    )
    normalized_walk().learn(64, callback=watch)
    first = watch.rollouts[0]
    own = first.next_observations[..., 0].astype(np.float64)  # a step earns the position it leads to
    expected = np.clip(own / np.sqrt(at_end[0][1].var + 1e-8), -10, 10)
    np.testing.assert_allclose(first.rewards[first.step_mask], expected[first.step_mask], rtol=1e-5)
    # The first rollout starts from resets.
    discounted = discount_along_branches(own, first.step_mask, np.zeros(own.shape[1]))
    assert_merged(at_end[0][1], at_start[0][1], discounted[first.step_mask])


def test_discounted_returns_are_carried_over_to_the_next_rollout() -> None:
    starts: list[Any] = []
    at_start: list[tuple[Moments, Moments]] = []
    at_end: list[tuple[Moments, Moments]] = []

    def read(model: GRPO) -> None:
        at_end.append(read_moments(model))
        starts.append(model._collector.start_returns)

    model = normalized_walk(norm_reward=True)
    watch = collect(model, 2, on_start=lambda model: at_start.append(read_moments(model)), on_end=read)
    first, second = watch.rollouts
    own, carried = first.next_observations[..., 0].astype(np.float64), np.zeros(second.observations.shape[1])
    possible = discount_along_branches(own, first.step_mask, np.zeros(own.shape[1]))
    for anchor, start in enumerate(second.observations[0, :, 0]):
        kept = (first.next_observations[:, anchor] == start).all(axis=-1)
        if kept.any():  # else it was a reset
            carried[anchor] = possible[:, anchor][kept][0]
    assert (carried != 0).any()
    # At each end the next rollout's anchors are chosen, but these are still the returns that this one started with.
    np.testing.assert_allclose(starts, [np.zeros(8), carried], atol=1e-5)
    rewards = second.next_observations[..., 0].astype(np.float64)
    discounted = discount_along_branches(rewards, second.step_mask, carried)
    assert_merged(at_end[1][1], at_start[1][1], discounted[second.step_mask])


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
    np.testing.assert_allclose(batches[1].observations, expected, rtol=1e-4, atol=1e-5)
    assert (plain[1][:, 0] == plain[1][:, 0].round()).all()


def fill_rollout(space: spaces.Space[Any]) -> GroupRollout:
    """Two groups of two branches with random observations and rewards; one branch ends early."""
    rollout = GroupRollout(3, 2, 2, space, spaces.Discrete(2))
    rollout.step_mask[:] = True
    rollout.step_mask[1:, 1, 0] = False
    observations = pack(space, draw_observations(space, 12)).reshape(rollout.observations.shape)
    for stored in (rollout.observations, rollout.next_observations):
        stored[rollout.step_mask] = observations[rollout.step_mask]
    rollout.rewards[:] = np.random.default_rng(0).normal(2.0, 3.0, rollout.shape) * rollout.step_mask
    return rollout


def test_the_statistics_of_a_dict_are_updated_key_by_key_and_only_those_there_are() -> None:
    vec_normalize, rollout = build(CAR, norm_obs_keys=["speed", "camera"], gamma=0.9), fill_rollout(CAR)
    statistics: Any = vec_normalize.obs_rms
    before, before_returns = {key: read_rms(rms) for key, rms in statistics.items()}, read_rms(vec_normalize.ret_rms)
    own, starts = rollout.rewards.astype(np.float64), np.array([5.0, -1.0])
    normalizer = Normalizer(vec_normalize)
    frozen = normalizer.freeze()
    assert frozen is not None
    seen = frozen.apply(rollout.observations[rollout.step_mask])
    returned = normalizer.compute_discounted_returns(rollout, starts)
    assert returned is not None
    normalizer.update(rollout, returned)
    normalizer.scale_rewards(rollout)
    assert set(before) == set(statistics) == {"speed", "camera"}
    for key, rms in statistics.items():
        assert_merged(read_rms(rms), before[key], rollout.observations[key][rollout.step_mask].astype(np.float64))
    discounted = discount_along_branches(own, rollout.step_mask, starts)
    np.testing.assert_allclose(returned[rollout.step_mask], discounted[rollout.step_mask], rtol=1e-6)
    assert_merged(read_rms(vec_normalize.ret_rms), before_returns, discounted[rollout.step_mask])
    expected = np.clip(own / np.sqrt(read_rms(vec_normalize.ret_rms).var + 1e-8), -10, 10) * rollout.step_mask
    np.testing.assert_allclose(rollout.rewards, expected, rtol=1e-5)
    assert_same(frozen.apply(rollout.observations[rollout.step_mask]), seen)


@pytest.mark.parametrize("norm_obs", [False, True])
def test_rewards_may_be_left_alone_and_observations_too(norm_obs: bool) -> None:
    vec_normalize, rollout = build(BOX, norm_obs=norm_obs, norm_reward=False), fill_rollout(BOX)
    own, statistics = rollout.rewards.copy(), [vec_normalize.ret_rms]
    if norm_obs:
        assert not isinstance(vec_normalize.obs_rms, dict)
        statistics.append(vec_normalize.obs_rms)
    counts = [rms.count for rms in statistics]
    normalizer = Normalizer(vec_normalize)
    assert (normalizer.freeze() is not None) == norm_obs
    normalizer.update(rollout, normalizer.compute_discounted_returns(rollout, np.zeros(2)))
    normalizer.scale_rewards(rollout)
    assert (rollout.rewards == own).all()
    assert [rms.count for rms in statistics] == [count + 10 for count in counts]


def test_without_a_vec_normalize_everything_passes_through() -> None:
    normalizer, rollout = Normalizer(None), fill_rollout(BOX)
    own = rollout.rewards.copy()
    assert normalizer.freeze() is None
    assert normalizer.compute_discounted_returns(rollout, np.zeros(2)) is None
    normalizer.update(rollout, None)
    normalizer.scale_rewards(rollout)
    assert (rollout.rewards == own).all()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("mode", ["branch", "episode"])
@pytest.mark.parametrize("is_normalized", [False, True])
@with_either_path
def test_the_ratio_is_one_on_the_first_minibatch(
    env_id: str, mode: str, is_normalized: bool, algorithm: type[GRPO]
) -> None:
    env: Any = make_vec_env(env_id, n_envs=2, seed=0, vec_env_cls=DummyVecEnv)
    env = VecNormalize(env) if is_normalized else env
    model = cartpole_model(algorithm, env=env, n_epochs=1, batch_size=2048, group_mode=mode)
    for _ in range(2):
        model.learn(1, reset_num_timesteps=False)
        logged = model.logger.name_to_value
        assert logged["train/clip_fraction"] == 0
        assert abs(logged["train/approx_kl"]) < 1e-6
        advantages = model.rollout_buffer.advantages[model.rollout_buffer.step_mask]
        assert logged["train/policy_gradient_loss"] == pytest.approx(-advantages.mean().item(), abs=1e-4)


def test_the_ratio_is_one_on_the_first_minibatch_where_keys_of_a_dict_are_normalized() -> None:
    class SmallCar(SamplingEnv):
        def capture_state(self) -> None:
            return None

        def restore_state(self, state: None) -> None:
            return None

    space = spaces.Dict({"speed": BOX, "gear": spaces.Discrete(4)})
    env = VecNormalize(DummyVecEnv([lambda: SmallCar(space)] * 2), norm_obs_keys=["speed"])
    model = GRPO("MultiInputPolicy", env, n_steps=32, horizon=8, n_epochs=1, seed=0, learning_rate=0.01)
    for _ in range(3):
        model.learn(1, reset_num_timesteps=False)
        assert model.logger.name_to_value["train/clip_fraction"] == 0
        assert abs(model.logger.name_to_value["train/approx_kl"]) < 1e-6
