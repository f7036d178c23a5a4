"""Every supported environment and space trains, predicts and reloads."""

import io
import threading
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from grpo import GRPO, RestorableWrapper
from grpo_core.options.choices import GroupMode
from grpo_core.restoring.errors import NotBranchableError
from tests.grpo.small_models import Stateless, build, constant
from tests.models import with_either_path
from tests.weights import copy_weights, is_same


@pytest.mark.parametrize(
    ("env_id", "n_envs"),
    [
        ("CartPole-v1", 3),
        ("Acrobot-v1", 1),
        ("MountainCar-v0", 1),
        ("MountainCarContinuous-v0", 1),
        ("Pendulum-v1", 2),
        ("FrozenLake-v1", 1),
        ("FrozenLake-v1", 3),
        ("CliffWalking-v1", 1),
        ("Taxi-v4", 1),
    ],
)
def test_every_supported_environment_trains_predicts_and_reloads(env_id: str, n_envs: int) -> None:
    env = make_vec_env(env_id, n_envs=n_envs, seed=0, vec_env_cls=DummyVecEnv)
    model = build(env)
    model.learn(1)
    assert 0 < model.num_timesteps <= n_envs * 32
    observations: Any = env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    assert all(env.action_space.contains(action) for action in actions)
    loaded = GRPO.load(io.BytesIO(model.to_bytes()), env=env)
    again, _ = loaded.predict(observations, deterministic=True)
    assert (actions == again).all()
    loaded.learn(1)


def test_actions_that_are_matrices_are_trained_too() -> None:
    model = build(Stateless(spaces.Box(-1.0, 1.0, (2, 2))), learning_rate=0.01)
    model.learn(64)
    action, _ = model.predict(np.zeros(2, np.float32), deterministic=True)
    assert action.shape == (2, 2)


def test_several_environments_share_the_groups_evenly() -> None:
    model = build(make_vec_env("Pendulum-v1", n_envs=3, seed=0, vec_env_cls=DummyVecEnv), n_steps=64)
    model.learn(1)
    assert model.num_timesteps == 3 * 64
    assert model.rollout_buffer.step_mask.shape == (8, 12, 2)


def test_vec_normalize_is_trained_through_and_its_statistics_move() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0, vec_env_cls=DummyVecEnv))
    model = build(env)
    model.learn(128)
    assert env.ret_rms.count > 100
    rewards = model.rollout_buffer.rewards
    assert 0.01 < np.abs(rewards).mean() < 10
    action, _ = model.predict(env.normalize_obs(np.zeros((1, 3), np.float32)))
    assert action.shape == (1, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"horizon": 4},
        {"horizon": 4, "group_mode": "action", "group_size": 3, "n_steps": 36},
        {"horizon": None, "group_mode": "episode"},
    ],
    ids=str,
)
def test_episode_statistics_are_those_of_whole_episodes_not_of_branches(changes: dict[str, Any]) -> None:
    model = build(gym.wrappers.TimeLimit(gym.make("MountainCar-v0").unwrapped, 11), **changes)
    model.learn(256)
    assert model.ep_info_buffer is not None
    assert len(model.ep_info_buffer) > 3
    for episode in model.ep_info_buffer:
        assert episode["l"] == 11
        assert episode["r"] == -11


def test_episode_rewards_are_the_environments_own_whatever_it_learns_from() -> None:
    model = build(reward_function=constant(-7.0), horizon=16)
    model.learn(128)
    assert model.ep_info_buffer is not None
    assert len(model.ep_info_buffer) > 0
    assert all(episode["r"] == episode["l"] for episode in model.ep_info_buffer)
    assert (model.rollout_buffer.rewards[model.rollout_buffer.step_mask] == -7).all()


def test_set_env_moves_training_to_the_new_environment() -> None:
    model = build()
    model.learn(32)
    short = gym.wrappers.TimeLimit(gym.make("CartPole-v1").unwrapped, 3)
    model.set_env(short)
    model.learn(32, reset_num_timesteps=False)
    assert model.rollout_buffer.step_mask.sum(axis=0).max() <= 3
    assert model.get_env() is not None


def test_a_refused_environment_leaves_the_old_one_in_place() -> None:
    class LockedCartPole(gym.envs.classic_control.cartpole.CartPoleEnv):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    model = build(group_mode="branch")
    before = model.get_env()
    with pytest.raises(NotBranchableError):
        model.set_env(gym.wrappers.TimeLimit(LockedCartPole(), 500))
    assert model.get_env() is before
    model.learn(32)


class Locking(gym.Env[Any, Any]):
    """Comes to hold what nothing can copy, in a method, once it is told to."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2)

    def __init__(self, method: str) -> None:
        self.method, self.is_told, self.held = method, False, dict[str, Any]()

    def tell(self) -> None:
        self.is_told = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_left = int(self.np_random.integers(3, 9))
        self.hold("reset")
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_left -= 1
        self.hold("step")
        return np.zeros(1, np.float32), float(action), False, self.n_left == 0, {}

    def hold(self, method: str) -> None:
        if self.is_told and self.method == method:
            self.held[method] = threading.Lock()


class Telling(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls == 20:
            self.training_env.env_method("tell")
        return True


@pytest.mark.parametrize("in_worker", [False, True])
@pytest.mark.parametrize("method", ["reset", "step"])
def test_training_goes_on_in_whole_episodes_once_an_environment_cannot_be_copied(method: str, in_worker: bool) -> None:
    env = SubprocVecEnv([lambda: RestorableWrapper(Locking(method))], "fork") if in_worker else Locking(method)
    model = build(env)
    try:
        with pytest.warns(UserWarning, match=rf"held\['{method}'\] \(_thread.lock\) cannot be copied.* whole episodes"):
            model.learn(256, Telling())
        assert model._mode == "episode"
        assert model.num_timesteps >= 256
    finally:
        env.close()


def test_with_branches_alone_an_environment_that_cannot_be_copied_any_more_ends_the_training() -> None:
    model = build(Locking("step"), group_mode="branch")
    with pytest.raises(NotBranchableError, match=r"Locking cannot be restored.* Train with group_mode=\"episode\""):
        model.learn(256, Telling())


def test_an_environment_whose_rollouts_cannot_be_cut_leaves_the_old_one_in_place() -> None:
    make_envs = [lambda: gym.make("CartPole-v1")] * 2
    model = build(DummyVecEnv(make_envs), n_rollout_shards=2, group_mode="episode", horizon=None)
    before, theirs = model.get_env(), SubprocVecEnv(make_envs, "fork")
    with pytest.raises(ValueError, match="DummyVecEnv"):
        model.set_env(theirs)
    assert model.get_env() is before
    fresh = GRPO.load(io.BytesIO(model.to_bytes()), n_rollout_shards=2)
    with pytest.raises(ValueError, match="DummyVecEnv"):
        fresh.set_env(theirs)
    assert fresh.get_env() is None
    model.env = theirs
    for _ in range(2):
        with pytest.raises(ValueError, match="DummyVecEnv"):
            model.learn(32)
    theirs.close()


class Passing(Stateless):
    """Shows random samples of any space, and ends after five steps."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        super().__init__(action_space)
        self.observation_space = observation_space
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        gym.Env.reset(self, seed=seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.n_steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.n_steps >= 5, False, {}

    def capture_state(self) -> Any:
        return self.n_steps

    def restore_state(self, state: Any) -> None:
        self.n_steps = state


PLACE = spaces.Box(-1.0, 1.0, (2,))
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
CAR = spaces.Dict({"speed": PLACE, "camera": IMAGE, "gear": spaces.Discrete(4), "lamps": spaces.MultiBinary(2)})


@pytest.mark.parametrize("mode", ["branch", "episode"])
@pytest.mark.parametrize(
    ("policy", "observation_space", "action_space"),
    [
        ("MlpPolicy", PLACE, spaces.MultiDiscrete([3, 2])),
        ("MlpPolicy", spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)),
        ("MlpPolicy", spaces.MultiBinary(4), spaces.Box(-1.0, 1.0, (3,))),
        ("CnnPolicy", IMAGE, spaces.Discrete(2)),
        ("MultiInputPolicy", CAR, spaces.MultiBinary(2)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:the episodes of a group begin")
def test_every_space_trains_predicts_and_reloads(
    policy: str, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], mode: GroupMode
) -> None:
    env = Passing(observation_space, action_space)
    arguments: dict[str, Any] = {"n_steps": 32, "n_epochs": 1, "horizon": 8, "kl_coef": 0.1, "ref_sync_steps": 32}
    model = GRPO(policy, env, group_mode=mode, seed=0, **arguments)
    untouched = copy_weights(model)
    model.learn(64)
    assert not is_same(untouched, copy_weights(model))
    vec_env = model.get_env()
    assert vec_env is not None
    observations: Any = vec_env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    loaded = GRPO.load(io.BytesIO(model.to_bytes()), env=env)
    again, _ = loaded.predict(observations, deterministic=True)
    assert (actions == again).all()
    loaded.learn(32, reset_num_timesteps=False)


class ComputingInFloat64(CartPoleEnv):
    """Makes float64 torch's default, as environments that simulate with torch do, at one of its calls."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.call = call
        self._change_at("__init__")

    def _change_at(self, call: str) -> None:
        if self.call == call:
            torch.set_default_dtype(torch.float64)

    def reset(self, **options: Any) -> Any:
        self._change_at("reset")
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self._change_at("step")
        return super().step(action)  # type: ignore[no-untyped-call]


@pytest.fixture
def usual_numbers() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("usual_numbers")
@pytest.mark.parametrize("call", ["__init__", "reset", "step"])
@with_either_path
def test_an_environment_may_change_torchs_default_type_of_numbers(algorithm: type[GRPO], call: str) -> None:
    trained, model = (
        build(gym.wrappers.TimeLimit(ComputingInFloat64(at), 100), algorithm).learn(64) for at in ("close", call)
    )
    assert torch.get_default_dtype() == torch.float64
    assert is_same(copy_weights(model), copy_weights(trained))
    loaded = GRPO.load(io.BytesIO(model.to_bytes()))
    assert is_same(copy_weights(loaded), copy_weights(trained))
