"""Capturing and restoring simulators: every supported environment, every layer around it, and what is refused."""

import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from grpo_core.branching import NotBranchableError, Simulator, check_branchable, make_simulators

CLASSIC_CONTROL = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
TOY_TEXT = [
    "Blackjack-v1",
    "CliffWalking-v1",
    "CliffWalkingSlippery-v1",
    "FrozenLake-v1",
    "FrozenLake8x8-v1",
    "Taxi-v4",
]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("CartPole-v1", {"sutton_barto_reward": True}),
    ("FrozenLake-v1", {"is_slippery": False}),
    ("Taxi-v4", {"fickle_passenger": True, "is_rainy": True}),
    ("Blackjack-v1", {"natural": True, "sab": False}),
]

Env = gym.Env[Any, Any]


class Spring(gym.Env[Any, Any]):
    """A mass on a spring with noise: the observation shows the position, not the velocity."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.position, self.velocity = 0.0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.velocity = float(self.np_random.normal()), 0.0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.velocity += 0.1 * (2 * int(action) - 1) - 0.2 * self.position + 0.01 * float(self.np_random.normal())
        self.position += 0.3 * self.velocity
        return self._observe(), -abs(self.position), False, False, {}

    def _observe(self) -> Any:
        return np.array([self.position], np.float32)


class RestorableSpring(Spring):
    def capture_state(self) -> tuple[float, float]:
        return self.position, self.velocity

    def restore_state(self, state: tuple[float, float]) -> None:
        self.position, self.velocity = state


class HalfCapturedSpring(Spring):
    """Forgets the velocity."""

    def capture_state(self) -> float:
        return self.position

    def restore_state(self, state: float) -> None:
        self.position = state


class AliasedSpring(Spring):
    """Hands out the very object that a step changes in place."""

    def __init__(self) -> None:
        self.both = np.zeros(2)

    @property
    def position(self) -> float:
        return float(self.both[0])

    @position.setter
    def position(self, value: float) -> None:
        self.both[0] = value

    @property
    def velocity(self) -> float:
        return float(self.both[1])

    @velocity.setter
    def velocity(self, value: float) -> None:
        self.both[1] = value

    def capture_state(self) -> Any:
        return self.both

    def restore_state(self, state: Any) -> None:
        self.both = state


class Tired(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper of a user's own: rewards shrink with every step of the episode."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.tiredness: list[float] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.tiredness = []
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.tiredness.append(0.5)
        return observation, float(reward) - sum(self.tiredness), terminated, truncated, info


class Centred(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that looks past the others at the simulator itself, as reward-shaping wrappers do."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.core: Any = env.unwrapped

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, -abs(float(self.core.state[0])), terminated, truncated, info


class SubclassedCartPole(CartPoleEnv):
    """It might keep state of its own, so the table of known simulators does not cover it."""


def make(env_id: str, **kwargs: Any) -> Env:
    return gym.make(env_id, **kwargs)


def replay(simulator: Simulator, actions: list[Any]) -> list[Any]:
    """Everything a learner sees along the actions, as plain comparable values."""
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = simulator.step(action)
        seen.append((np.array(observation).tolist(), float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            break
    return seen


def test_the_list_of_environments_covers_the_registered_ones() -> None:
    families = ("gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.")
    registered = {env_id for env_id, spec in gym.registry.items() if str(spec.entry_point).startswith(families)}
    assert registered - {"CartPole-v0"} == set(CLASSIC_CONTROL + TOY_TEXT)


@pytest.mark.parametrize("env_id", CLASSIC_CONTROL + TOY_TEXT)
@pytest.mark.parametrize("wrap", [lambda env: env, Monitor, lambda env: env.unwrapped], ids=["made", "Monitor", "bare"])
def test_every_known_environment_is_branchable(env_id: str, wrap: Callable[[Env], Env]) -> None:
    for seed in range(3):
        check_branchable(wrap(make(env_id)), seed=seed)


@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_every_variant_of_a_known_environment_is_branchable(env_id: str, options: dict[str, Any]) -> None:
    for seed in range(3):
        check_branchable(make(env_id, **options), n_steps=200, seed=seed)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: wrappers.TransformObservation(env, lambda observation: observation * 2, env.observation_space),
        lambda env: wrappers.TransformReward(env, lambda reward: float(reward) - 1),
        lambda env: wrappers.FrameStackObservation(env, 3),
        lambda env: wrappers.DelayObservation(env, 2),
        lambda env: wrappers.TimeAwareObservation(env),
        lambda env: wrappers.NormalizeReward(env),
        lambda env: wrappers.StickyAction(env, 0.3),
        lambda env: wrappers.RecordEpisodeStatistics(env),
        lambda env: wrappers.TimeLimit(env, 9),
        lambda env: Monitor(Tired(wrappers.TimeLimit(Tired(env), 30))),
    ],
    ids=["transform", "reward", "stack", "delay", "time", "normalize", "sticky", "statistics", "limit", "own"],
)
def test_wrappers_that_are_not_known_are_captured_whole(wrap: Callable[[Env], Env]) -> None:
    check_branchable(wrap(make("CartPole-v1")))


def test_a_wrapper_that_refers_to_the_simulator_still_refers_to_it_after_a_restore() -> None:
    check_branchable(Centred(make("CartPole-v1")))


def test_an_environment_with_its_own_capture_and_restore_is_branchable() -> None:
    check_branchable(Monitor(gym.wrappers.TimeLimit(RestorableSpring(), 20)))


@pytest.mark.parametrize("forgetful", [HalfCapturedSpring, AliasedSpring])
def test_a_capture_that_misses_something_is_caught(forgetful: Callable[[], Env]) -> None:
    with pytest.raises(NotBranchableError, match=r"not restored exactly.*capture_state\(\) misses something"):
        check_branchable(forgetful())


def test_the_check_replays_at_least_one_step() -> None:
    check_branchable(RestorableSpring(), n_steps=1)
    with pytest.raises(NotBranchableError, match="not restored exactly"):
        check_branchable(AliasedSpring(), n_steps=1)


@pytest.mark.parametrize("env_type", [Spring, SubclassedCartPole])
def test_an_environment_that_cannot_be_restored_is_refused_with_the_remedy(env_type: Callable[[], Env]) -> None:
    env = env_type()
    with pytest.raises(NotBranchableError) as refusal:
        Simulator(Monitor(env))
    message = str(refusal.value)
    assert type(env).__name__ in message
    assert "capture_state()" in message
    assert "restore_state(state)" in message
    assert "CartPoleEnv" in message  # what is restorable without further ado


@pytest.mark.parametrize("env_id", CLASSIC_CONTROL + TOY_TEXT)
def test_two_branches_from_one_state_agree_when_given_the_same_actions_and_noise(env_id: str) -> None:
    env = make(env_id)
    simulator = Simulator(env)
    simulator.reset(seed=3)
    env.action_space.seed(3)
    actions = [env.action_space.sample() for _ in range(20)]
    state, random_state = simulator.capture(), simulator.random_state
    branches = []
    for _ in range(3):
        simulator.restore(state)
        simulator.random_state = random_state
        branches.append(replay(simulator, actions))
    assert branches[0] == branches[1] == branches[2]
    assert len(branches[0]) > 0


def test_restoring_brings_back_a_trajectory_that_an_untouched_twin_takes() -> None:
    env, twin = make("CartPole-v1"), make("CartPole-v1")
    simulator, untouched = Simulator(env), Simulator(twin)
    simulator.reset(seed=1)
    untouched.reset(seed=1)
    prefix, detour, suffix = [0, 1, 1, 0], [1, 1, 1], [0, 0, 1, 0, 1]
    replay(simulator, prefix)
    state = simulator.capture()
    replay(simulator, detour)
    simulator.restore(state)
    replay(untouched, prefix)
    assert replay(simulator, suffix) == replay(untouched, suffix)


def test_a_state_outlives_the_end_of_the_episode_it_was_captured_in() -> None:
    simulator = Simulator(Monitor(make("CartPole-v1")))
    simulator.reset(seed=0)
    state = simulator.capture()
    first = replay(simulator, [1] * 50)
    assert first[-1][2], "pushing one way topples the pole"
    simulator.reset()
    simulator.restore(state)
    assert replay(simulator, [1] * 50) == first


def test_the_random_generator_is_not_rewound_so_branches_draw_their_own_noise() -> None:
    simulator = Simulator(make("FrozenLake-v1"))
    simulator.reset(seed=0)
    state = simulator.capture()
    paths = []
    for _ in range(8):
        simulator.restore(state)
        paths.append(str(replay(simulator, [2, 1, 2, 1, 2, 1])))
    assert len(set(paths)) > 1


def test_time_limit_counts_on_from_the_restored_step() -> None:
    simulator = Simulator(gym.wrappers.TimeLimit(make("MountainCar-v0").unwrapped, 10))
    simulator.reset(seed=0)
    replay(simulator, [1] * 4)
    state = simulator.capture()
    for _ in range(3):
        simulator.restore(state)
        rest = replay(simulator, [1] * 20)
        assert len(rest) == 6
        assert rest[-1][3]


def test_monitor_reports_the_length_and_return_of_the_restored_branch() -> None:
    simulator = Simulator(Monitor(gym.wrappers.TimeLimit(make("MountainCar-v0").unwrapped, 10)))
    simulator.reset(seed=0)
    replay(simulator, [1] * 7)
    state = simulator.capture()
    for _ in range(3):
        simulator.restore(state)
        simulator.step(0)
        simulator.step(2)
        *_, info = simulator.step(0)
        assert info["episode"]["l"] == 10
        assert info["episode"]["r"] == -10


def test_the_check_leaves_no_trace_in_the_process_wide_generators() -> None:
    before: Any = np.random.get_state(legacy=False)
    check_branchable(make("Taxi-v4"))
    after: Any = np.random.get_state(legacy=False)
    assert before["state"]["key"].tolist() == after["state"]["key"].tolist()
    assert before["state"]["pos"] == after["state"]["pos"]


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_dummy_vec_env_hands_out_one_simulator_per_environment(n_envs: int) -> None:
    env = make_vec_env("CartPole-v1", n_envs=n_envs, vec_env_cls=DummyVecEnv)
    assert len(make_simulators(env)) == n_envs
    assert len(make_simulators(VecNormalize(env))) == n_envs


# Forking is the fast way to start a worker; this process holds no lock that the worker could need.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_subproc_vec_env_is_refused_with_the_remedy() -> None:
    env = SubprocVecEnv([lambda: make("CartPole-v1")], start_method="fork")
    try:
        with pytest.raises(NotBranchableError, match=r"SubprocVecEnv.*vec_env_cls=DummyVecEnv"):
            make_simulators(env)
    finally:
        env.close()


@pytest.mark.parametrize(
    "wrap",
    [VecMonitor, lambda env: VecFrameStack(env, 2), lambda env: VecNormalize(VecNormalize(env))],
    ids=["VecMonitor", "VecFrameStack", "two VecNormalize"],
)
def test_other_vectorised_wrappers_are_refused_with_the_remedy(wrap: Callable[[VecEnv], VecEnv]) -> None:
    env = wrap(DummyVecEnv([lambda: make("CartPole-v1")]))
    with pytest.raises(NotBranchableError, match=r"bare or in one VecNormalize, not inside Vec\w+\. Build it with"):
        make_simulators(env)


def test_a_vectorised_environment_that_cannot_be_restored_is_refused() -> None:
    with pytest.raises(NotBranchableError, match=r"Spring cannot be restored.*capture_state\(\)"):
        make_simulators(DummyVecEnv([Spring]))


class RestoredByReference(Spring):
    """Copies its state when it is captured and then steps in the captured object itself."""

    def capture_state(self) -> Any:
        return [self.position, self.velocity]

    def restore_state(self, state: Any) -> None:
        self.both = state
        self.position, self.velocity = state

    def step(self, action: Any) -> Any:
        outcome = super().step(action)
        if hasattr(self, "both"):
            self.both[:] = [self.position, self.velocity]
        return outcome


def test_an_environment_that_steps_in_the_captured_object_is_caught() -> None:
    with pytest.raises(NotBranchableError, match="instead of a copy"):
        check_branchable(RestoredByReference())


class CountsLazily(gym.Wrapper[Any, Any, Any, Any]):
    """Makes the attribute it counts in only when the first step is taken."""

    def reset(self, **kwargs: Any) -> Any:
        self.__dict__.pop("n", None)
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.n = getattr(self, "n", 0) + 1
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, float(self.n), terminated, truncated, info


def test_what_a_wrapper_makes_on_the_way_is_taken_away_again() -> None:
    env = CountsLazily(gym.make("CartPole-v1"))
    check_branchable(env)
    simulator = Simulator(env)
    simulator.reset(seed=0)
    state = simulator.capture()
    for _ in range(3):
        simulator.restore(state)
        assert simulator.step(0)[1] == 1.0


class HoldsALock(gym.Wrapper[Any, Any, Any, Any]):
    """Cannot be copied."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.lock = threading.Lock()


class CopiesItself(HoldsALock):
    """Cannot be copied, but knows how to copy what matters."""

    def capture_state(self) -> Any:
        return Simulator(self.env).capture()

    def restore_state(self, state: Any) -> None:
        Simulator(self.env).restore(state)


def test_a_wrapper_that_cannot_be_copied_is_refused_by_name() -> None:
    with pytest.raises(NotBranchableError, match=r"wrapper HoldsALock cannot be copied.*give it capture_state"):
        Simulator(HoldsALock(gym.make("CartPole-v1")))


def test_a_wrapper_may_copy_itself_and_all_it_wraps() -> None:
    check_branchable(CopiesItself(gym.make("CartPole-v1")))
