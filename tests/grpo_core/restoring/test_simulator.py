"""Simulators are captured and restored: every supported environment and wrapper; others are refused."""

import copy
import dataclasses
import functools
import itertools
import pickle
import random
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces, wrappers
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from stable_baselines3.common import atari_wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
)

from grpo_core.banks.choose_bank import make_bank
from grpo_core.banks.single_env import Order
from grpo_core.restoring.errors import NotBranchableError, ReplacedLayerError
from grpo_core.restoring.simulator import Simulator, check_branchable

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
    """Does not capture the velocity."""

    def capture_state(self) -> float:
        return self.position

    def restore_state(self, state: float) -> None:
        self.position = state


class DrawnSpring(RestorableSpring):
    """Draws its stiffness in every reset, and does not capture it."""

    stiffness = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observed = super().reset(seed=seed)
        self.stiffness = float(self.np_random.random())
        return observed

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.velocity -= self.stiffness * self.position
        return super().step(action)


class SpringInAnArray(Spring):
    """Returns the same array at every step."""

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


class AliasedSpring(SpringInAnArray):
    """Returns the object that a step changes in place."""

    def capture_state(self) -> Any:
        return self.both

    def restore_state(self, state: Any) -> None:
        self.both = state


class ShrinkingReward(gym.Wrapper[Any, Any, Any, Any]):
    """A custom wrapper: rewards shrink with every step of the episode."""

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
    """A wrapper that reads the innermost environment, as reward-shaping wrappers do."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.core: Any = env.unwrapped

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, -abs(float(self.core.state[0])), terminated, truncated, info


class SubclassedCartPole(CartPoleEnv):
    """A subclass may keep more state, so the table of known environments does not cover it."""


class SpringWithASharedGenerator(Spring):
    """Draws from generators of its own, and shares np_random with another object."""

    def __init__(self) -> None:
        super().__init__()
        self.generators = [random.Random(0)]
        self.numpy_generator = np.random.default_rng(0)
        self.old_generator = np.random.RandomState(0)
        self.accomplice: list[np.random.Generator] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observed = super().reset(seed=seed)
        self.accomplice = [self.np_random, self.numpy_generator]
        return observed

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.accomplice[0] is self.np_random, "a restored state must share the generator as the reset did"
        self.velocity += 0.01 * float(self.accomplice[1].normal() + self.old_generator.normal())
        self.velocity += 0.01 * self.generators[0].random()
        return super().step(action)


class GeneratedSpring(Spring):
    """Keeps its state in a Python generator, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.pushes: Iterator[float] = (0.1 * n for n in range(1000))


class HiddenSpring(Spring):
    """Keeps its velocity where copies of the attributes do not reach."""

    def __init__(self) -> None:
        velocities = [0.0]
        self.read: Callable[[], float] = lambda: velocities[0]
        self.write: Callable[[float], None] = lambda value: velocities.__setitem__(0, value)
        super().__init__()

    @property
    def velocity(self) -> float:
        return self.read()

    @velocity.setter
    def velocity(self, value: float) -> None:
        self.write(value)


def make(env_id: str, **kwargs: Any) -> Env:
    return gym.make(env_id, **kwargs)


def replay(simulator: Simulator, actions: list[Any]) -> list[Any]:
    """Return all that a learner sees along the actions, as plain comparable values."""
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
        lambda env: Monitor(ShrinkingReward(wrappers.TimeLimit(ShrinkingReward(env), 30))),
    ],
    ids=["transform", "reward", "stack", "delay", "time", "normalize", "sticky", "statistics", "limit", "own"],
)
def test_unknown_wrappers_are_captured_with_all_attributes(wrap: Callable[[Env], Env]) -> None:
    check_branchable(wrap(make("CartPole-v1")))


def test_states_do_not_go_into_another_environment_that_a_wrapper_holds_by_now() -> None:
    env: Any = gym.Wrapper(CartPoleEnv())
    env.reset(seed=0)
    simulator = Simulator(env)
    state, env.env = simulator.capture(), CartPoleEnv()
    for use in (simulator.capture, lambda: simulator.restore(state)):
        with pytest.raises(ReplacedLayerError, match="the wrapper Wrapper holds another environment"):
            use()


def test_a_wrapper_that_refers_to_the_simulator_still_refers_to_it_after_a_restore() -> None:
    check_branchable(Centred(make("CartPole-v1")))


def test_an_environment_with_its_own_capture_and_restore_is_branchable() -> None:
    check_branchable(Monitor(gym.wrappers.TimeLimit(RestorableSpring(), 20)))


@pytest.mark.parametrize("forgetful", [HalfCapturedSpring, AliasedSpring, DrawnSpring])
def test_an_incomplete_capture_is_detected(forgetful: Callable[[], Env]) -> None:
    with pytest.raises(NotBranchableError, match=r"not restored exactly.*capture_state\(\) misses something"):
        check_branchable(forgetful())


def test_the_check_replays_at_least_one_step() -> None:
    check_branchable(RestorableSpring(), n_steps=1)
    with pytest.raises(NotBranchableError, match="not restored exactly"):
        check_branchable(AliasedSpring(), n_steps=1)


@pytest.mark.parametrize("env_type", [Spring, SubclassedCartPole, SpringInAnArray, SpringWithASharedGenerator])
def test_other_environments_are_deep_copied(env_type: Callable[[], Env]) -> None:
    check_branchable(env_type())
    check_branchable(Monitor(wrappers.FrameStackObservation(wrappers.TimeLimit(env_type(), 20), 3)))
    simulator = Simulator(Monitor(env_type()))
    simulator.prove()
    assert not simulator.is_cheap


def test_an_environment_that_cannot_be_copied_is_refused_with_the_remedy() -> None:
    with pytest.raises(NotBranchableError) as refusal:
        Simulator(Monitor(GeneratedSpring()))
    message = str(refusal.value)
    assert message.startswith("GeneratedSpring cannot be restored")
    assert 'group_mode="episode"' in message
    assert "capture_state()" in message
    assert "restore_state(state)" in message


def test_the_proof_detects_an_incomplete_copy() -> None:
    env = HiddenSpring()
    simulator = Simulator(env)
    with pytest.raises(NotBranchableError, match=r'not restored exactly.*group_mode="episode"'):
        simulator.prove()


def test_the_proof_leaves_generators_and_wrappers_as_they_were() -> None:
    proven, untouched = (wrappers.RecordEpisodeStatistics(Monitor(SpringWithASharedGenerator())) for _ in range(2))
    for env in (proven, untouched):
        env.reset(seed=5)
        env.action_space.seed(5)
    Simulator(proven).prove()
    assert proven.get_wrapper_attr("total_steps") == 0
    assert proven.action_space.sample() == untouched.action_space.sample()
    proven.reset()
    untouched.reset()
    actions = [0, 1, 1, 0, 1]
    assert replay(Simulator(proven), actions) == replay(Simulator(untouched), actions)


def test_an_environment_that_needs_no_proof_is_not_stepped() -> None:
    env = Monitor(make("CartPole-v1"))
    env.reset(seed=0)
    state = env.unwrapped.__dict__["state"]
    Simulator(env).prove()
    assert env.unwrapped.__dict__["state"] is state


def test_generators_among_the_attributes_are_restored_only_with_common_random_numbers() -> None:
    for common_random_numbers, n_paths in ((False, 4), (True, 1)):
        simulator = Simulator(SpringWithASharedGenerator(), common_random_numbers)
        simulator.reset(seed=0)
        state = simulator.capture()
        paths = set()
        for _ in range(4):
            simulator.restore(state)
            paths.add(str(replay(simulator, [1, 0, 1])))
        assert len(paths) == n_paths


@dataclasses.dataclass
class Weather:
    rng: Any


class Slotted:
    __slots__ = ("rng",)

    def __init__(self, rng: Any) -> None:
        self.rng = rng


class Room(Spring):
    """An environment that another one holds."""


class Gusty(Spring):
    """Shows what it draws."""

    def __init__(self, held: Any, draw: Callable[[Any], float]) -> None:
        super().__init__()
        self.held, self.draw = held, draw

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return super().step(action)[0], float(self.draw(self.held)), False, False, {}


def seeded() -> np.random.Generator:
    return np.random.default_rng(0)


HOLDERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "attribute": (seeded, lambda held: held.normal()),
    "object": (lambda: types.SimpleNamespace(rng=seeded()), lambda held: held.rng.normal()),
    "objects": (lambda: Weather([Weather(seeded())]), lambda held: held.rng[0].rng.normal()),
    "slots": (lambda: Slotted(seeded()), lambda held: held.rng.normal()),
    "list": (lambda: [seeded()], lambda held: held[0].normal()),
    "tuple": (lambda: (seeded(),), lambda held: held[0].normal()),
    "dict": (lambda: {"a": seeded()}, lambda held: held["a"].normal()),
    "deque": (lambda: deque([seeded()]), lambda held: held[0].normal()),
    "method": (lambda: seeded().normal, lambda held: held()),
    "method in an object": (lambda: Weather(seeded().normal), lambda held: held.rng()),
    "partial": (lambda: functools.partial(seeded().normal, 0.0), lambda held: held(1.0)),
    "RandomState": (lambda: [np.random.RandomState(0)], lambda held: held[0].normal()),
    "Random": (lambda: [random.Random(0)], lambda held: held[0].random()),
    "torch": (lambda: torch.Generator().manual_seed(0), lambda held: torch.rand((), generator=held)),
    "torch in a list": (lambda: [torch.Generator().manual_seed(0)], lambda held: torch.rand((), generator=held[0])),
    "bits": (lambda: np.random.PCG64(0), lambda held: held.random_raw() / 2**64),
    "bits in a list": (lambda: [np.random.PCG64(0)], lambda held: held[0].random_raw() / 2**64),
    "space": (lambda: spaces.Box(-1, 1, (1,), seed=0), lambda held: held.sample()[0]),
    "space of spaces": (
        lambda: spaces.Dict({"a": spaces.Box(-1, 1, (1,), seed=0)}, seed=0),
        lambda held: held.sample()["a"][0],
    ),
    "space in a dict": (lambda: {"a": spaces.Box(-1, 1, (1,), seed=0)}, lambda held: held["a"].sample()[0]),
    "environment": (lambda: Room(), lambda held: held.np_random.normal()),
    "behind a table": (lambda: [[0.5] * 5_000, Weather(seeded())], lambda held: held[1].rng.normal()),
}


@pytest.mark.parametrize("travels", [False, True], ids=["here", "travelling"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_generator_goes_on_wherever_it_is_except_with_common_random_numbers(holder: str, travels: bool) -> None:
    for is_common in (False, True):
        simulator = Simulator(Gusty(HOLDERS[holder][0](), HOLDERS[holder][1]), is_common)
        report = simulator.prove(n_steps=8)
        assert is_common or (report is not None and report.rewound == ())
        simulator.reset(seed=0)
        replay(simulator, [1])
        if travels:
            simulator.env.__dict__["draw"] = HOLDERS["attribute"][1]  # a lambda, which is no part of a state
        state = pickle.dumps(simulator.capture()) if travels else simulator.capture()
        simulator.env.__dict__["draw"] = HOLDERS[holder][1]
        branches = []
        for _ in range(4):
            simulator.restore(pickle.loads(state) if travels else state)
            branches.append([simulator.step(1)[1] for _ in range(8)])
            simulator.reset()
        draws = np.array(branches)
        if is_common:
            assert (draws == draws[0]).all()
            assert len(np.unique(draws)) == 8
        else:
            assert len(np.unique(draws)) == draws.size


class Goalkeeper(Spring):
    """Has another kind of space, and another kind of generator, after its first step."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.goal: gym.Space[Any] = spaces.Dict(x=spaces.Discrete(3))
        self.luck: Any = np.random.default_rng(1)
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.goal, self.luck = spaces.Discrete(4), np.random.RandomState(1)
        return super().step(action)


def test_a_generator_that_another_kind_has_replaced_is_left_alone() -> None:
    simulator = Simulator(Goalkeeper(), common_random_numbers=True)
    simulator.reset(seed=0)
    state = simulator.capture()
    expected = replay(simulator, [1, 1])
    simulator.restore(state)
    assert replay(simulator, [1, 1]) == expected


def test_a_process_wide_generator_in_an_object_is_copied_with_it() -> None:
    class Torched(Spring):
        def __init__(self) -> None:
            super().__init__()
            self.weather = Weather(torch.default_generator)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            blown = float(torch.rand((), generator=self.weather.rng))
            return super().step(action)[0], blown, False, False, {}

    assert "weather" in str(check_branchable(Torched()))


class Flock(Spring):
    """Its birds fly away one by one, each with a generator that a reset makes, all alike."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.birds = [Weather(seeded()) for _ in range(3)]
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        drawn = sum(bird.rng.normal() for bird in self.birds)
        del self.birds[1:]
        return super().step(action)[0], float(drawn), False, False, {}


def test_a_generator_that_is_gone_by_then_begins_a_new_sequence_of_the_environments_seed() -> None:
    def play() -> list[float]:
        simulator = Simulator(Flock())
        simulator.reset(seed=0)
        state, drawn = simulator.capture(), list[float]()
        for _ in range(8):
            simulator.restore(state)
            lone = copy.deepcopy(simulator.env.unwrapped.__dict__["birds"][0].rng).normal()
            drawn.append(simulator.step(1)[1] - lone)
        return drawn

    assert len(np.unique(play())) == 8
    assert play() == play()
    assert check_branchable(Flock()).rewound == ()


@pytest.mark.parametrize("env_id", CLASSIC_CONTROL + TOY_TEXT)
def test_two_branches_from_one_state_agree_when_given_the_same_actions_and_noise(env_id: str) -> None:
    env = make(env_id)
    simulator = Simulator(env, common_random_numbers=True)
    simulator.reset(seed=3)
    env.action_space.seed(3)
    actions = [env.action_space.sample() for _ in range(20)]
    state = simulator.capture()
    branches = []
    for _ in range(3):
        simulator.restore(state)
        branches.append(replay(simulator, actions))
    assert branches[0] == branches[1] == branches[2]
    assert len(branches[0]) > 0


def test_a_restored_environment_continues_like_an_untouched_copy() -> None:
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


def test_the_random_generator_is_not_restored_so_branches_draw_independent_noise() -> None:
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


def test_monitor_reports_length_and_return_of_the_restored_branch() -> None:
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


class Numbered(Monitor):
    """Numbers the steps of an episode."""

    def reset(self, **options: Any) -> Any:
        self.n_steps = 0
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        *outcome, info = super().step(action)
        return *outcome, info | {"n_steps": self.n_steps}


def test_a_subclass_of_monitor_goes_on_counting_while_what_it_adds_is_restored(tmp_path: Path) -> None:
    env = Numbered(make("CartPole-v1"), str(tmp_path / "numbered"))
    bank = make_bank(DummyVecEnv([lambda: env]), needs_restore=True)
    assert (env.get_total_steps(), env.get_episode_lengths()) == (0, []), "the trial has left its own"
    _, state = bank.reset({0: 0})[0]
    for n_steps in range(1, 4):
        outcome = bank.step({0: Order(0, restore=state)})[0]
        assert outcome.info["n_steps"] == len(env.rewards) == 1
        assert env.get_total_steps() == n_steps
    assert not bank.is_outdated(tries_capture=True), "the file that it writes is no obstacle"
    env.close()


def test_the_check_leaves_global_generators_alone() -> None:
    before: Any = np.random.get_state(legacy=False)
    check_branchable(make("Taxi-v4"))
    after: Any = np.random.get_state(legacy=False)
    assert before["state"]["key"].tolist() == after["state"]["key"].tolist()
    assert before["state"]["pos"] == after["state"]["pos"]


def test_a_vectorised_environment_that_cannot_be_restored_is_refused() -> None:
    with pytest.raises(NotBranchableError, match=r"GeneratedSpring cannot be restored.*capture_state\(\)"):
        make_bank(DummyVecEnv([GeneratedSpring]), needs_restore=True)
    with pytest.raises(NotBranchableError, match=r"HiddenSpring.*not restored exactly"):
        make_bank(DummyVecEnv([HiddenSpring]), needs_restore=True)


class RoomWithADoor(Spring):
    """Makes a grid at each reset, and writes to a small part of it."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order

    def reset(self, **kwargs: Any) -> Any:
        grid = np.zeros((20, 20))
        parts = {"grid": grid, "door": grid[5, 5:6], "column": grid[:, 3]}
        self.parts = {name: parts[name] for name in self.order.split()}
        return super().reset(**kwargs)


@pytest.mark.parametrize("order", ["grid door column", "door column grid"])
@pytest.mark.parametrize("travels", [False, True])
@pytest.mark.parametrize("is_first_grid", [False, True])
def test_a_view_of_a_much_larger_array_shows_it_after_a_restore(order: str, travels: bool, is_first_grid: bool) -> None:
    env = RoomWithADoor(order)
    env.reset(seed=0)
    simulator = Simulator(env)
    simulator.capture()
    if not is_first_grid:
        env.reset(seed=1)
    env.parts["door"][0] = 1
    state = simulator.capture()
    env.parts["door"][0] = 2
    simulator.restore(pickle.loads(pickle.dumps(state)) if travels else state)
    assert env.parts["grid"][5, 5] == env.parts["door"][0] == 1
    env.parts["door"][0] = env.parts["column"][2] = 3
    assert env.parts["grid"][5, 5] == env.parts["grid"][2, 3] == 3


def test_a_view_of_a_much_larger_array_that_nothing_holds_is_copied_alone() -> None:
    env = RoomWithADoor("door")
    env.reset(seed=0)
    simulator = Simulator(env)
    env.parts["door"][0] = 1
    state = simulator.capture()
    env.parts["door"][0] = 2
    assert len(pickle.dumps(state)) < 1600
    for _ in range(2):
        simulator.restore(state)
        assert env.parts["door"].tolist() == [1]
        env.parts["door"][0] = 3


class World:
    gain = 1


class Body:
    def __init__(self, world: World, env: gym.Env[Any, Any]) -> None:
        self.world, self.ref, self.env = weakref.proxy(world), weakref.ref(world), weakref.proxy(env)
        self.key = Key()
        self.worlds = weakref.WeakSet([world])
        self.gone = weakref.ref(World())
        self.names = weakref.WeakKeyDictionary({world: [1]})
        self.by_key = weakref.WeakValueDictionary({self.key: world})


class Key:
    """A key of a weak dictionary."""


class SpringWithBodies(Spring):
    """Makes a world and what refers to it weakly at each reset."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order

    def reset(self, **kwargs: Any) -> Any:
        world = World()
        parts: dict[str, Any] = {"body": Body(world, self), "world": world}
        self.parts = {name: parts[name] for name in self.order.split()}
        return super().reset(**kwargs)


@pytest.mark.parametrize("order", ["world body", "body world"])
@pytest.mark.parametrize("travels", [False, True])
@pytest.mark.parametrize("is_first_world", [False, True])
def test_weak_references_lead_to_what_a_restore_puts_in_place(order: str, travels: bool, is_first_world: bool) -> None:
    env = SpringWithBodies(order)
    env.reset(seed=0)
    simulator = Simulator(env)
    simulator.capture()
    if not is_first_world:
        env.reset(seed=1)
    state = simulator.capture()
    env.reset(seed=2)
    for _ in range(2):
        simulator.restore(pickle.loads(pickle.dumps(state)) if travels else state)
        world, body = env.parts["world"], env.parts["body"]
        world.gain = 5
        assert body.world.gain == 5
        assert body.ref() is world
        assert body.env.parts is env.parts
        assert list(body.worlds) == [world]
        assert body.gone() is None
        assert list(body.names.items()) == [(world, [1])]
        assert list(body.by_key.items()) == [(body.key, world)]
    assert type(body.world) is type(body.env) is weakref.ProxyType


def test_a_chain_of_weak_references_that_is_too_long_is_refused() -> None:
    env = SpringWithBodies("world")
    env.reset(seed=0)
    env.parts["chain"] = chain = [World() for _ in range(2000)]
    for world, following in itertools.pairwise(chain):
        vars(world)["next"] = weakref.ref(following)
    simulator = Simulator(env)
    state = simulator.capture()
    with pytest.raises(NotBranchableError, match="nested too deep to be copied"):
        simulator.restore(state, in_place=False)


def test_a_weak_reference_to_what_is_not_copied_stays_and_one_with_a_callback_is_told_of_no_copy() -> None:
    env, told = SpringWithBodies("world"), list[Any]()
    env.reset(seed=0)
    outside, world = World(), env.parts["world"]
    env.parts["outside"] = weakref.ref(outside), weakref.proxy(outside)
    env.parts["told"] = weakref.ref(world, told.append)
    simulator = Simulator(env)
    state = simulator.capture()
    env.step(0)
    simulator.restore(state, in_place=False)
    assert env.parts["outside"][0]() is outside
    outside.gain = 5
    assert env.parts["outside"][1].gain == 5
    simulator.restore(state, in_place=False)
    assert env.parts["world"] is not world
    assert told == []


class Forwarding(gym.Wrapper[Any, Any, Any, Any]):
    """Shows a count of its own, and looks up in what it wraps whatever it does not have."""

    n_steps = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        observation, _, *rest = self.env.step(action)
        return observation, float(self.n_steps), *rest


def test_a_wrapper_that_forwards_the_methods_of_what_it_wraps_is_restored_itself() -> None:
    report = check_branchable(gym.wrappers.TimeLimit(Forwarding(Forwarding(RestorableSpring())), 20))
    assert [layer.name for layer in report.layers] == ["TimeLimit", "Forwarding", "Forwarding", "RestorableSpring"]


class Adapter(gym.Env[Any, Any]):
    """Plays in an object of another library that it calls ``env``, as adapters do, and makes it anew at each reset."""

    observation_space, action_space = Spring.observation_space, Spring.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.env = types.SimpleNamespace(x=0.0)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.env.x += float(action) - 0.5
        return np.array([self.env.x], np.float32), self.env.x, False, False, {}


def test_what_an_environment_calls_env_is_copied_like_anything_else() -> None:
    check_branchable(Adapter())
    check_branchable(gym.Wrapper(gym.wrappers.TimeLimit(Adapter(), 20)))


class RestoredByReference(Spring):
    """Captures a copy of its state, but restores the captured object itself and changes it in steps."""

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


def test_an_environment_that_changes_the_captured_object_is_detected() -> None:
    with pytest.raises(NotBranchableError, match="instead of a copy"):
        check_branchable(RestoredByReference())


class CountsLazily(gym.Wrapper[Any, Any, Any, Any]):
    """Creates its counter at the first step."""

    def reset(self, **kwargs: Any) -> Any:
        self.__dict__.pop("n", None)
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.n = getattr(self, "n", 0) + 1
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, float(self.n), terminated, truncated, info


def test_attributes_that_a_wrapper_creates_later_are_removed_again() -> None:
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
    """Cannot be deep-copied, but captures and restores itself."""

    def capture_state(self) -> Any:
        return Simulator(self.env).capture()

    def restore_state(self, state: Any) -> None:
        Simulator(self.env).restore(state)


def test_a_wrapper_that_cannot_be_copied_is_refused_by_name() -> None:
    with pytest.raises(NotBranchableError, match=r"wrapper HoldsALock cannot be copied.*give it capture_state"):
        Simulator(HoldsALock(gym.make("CartPole-v1")))


def test_a_wrapper_may_copy_itself_and_all_it_wraps() -> None:
    check_branchable(CopiesItself(gym.make("CartPole-v1")))


class ReadsTheCore(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps a reference to an object of the innermost environment, to a space and to a function."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.both: Any = None
        self.actions = env.action_space
        self.shape: Callable[[float], float] = lambda reward: 2 * reward

    def reset(self, **kwargs: Any) -> Any:
        observed = self.env.reset(**kwargs)
        self.both = self.env.unwrapped.__dict__["both"]
        return observed

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, self.shape(float(self.both[1])), terminated, truncated, info


def test_a_wrappers_references_to_the_environments_objects_survive_a_restore() -> None:
    env = ReadsTheCore(SpringInAnArray())
    check_branchable(env)
    simulator = Simulator(env)
    simulator.reset(seed=0)
    simulator.restore(simulator.capture())
    assert env.both is env.unwrapped.__dict__["both"]
    assert env.actions is env.env.action_space


def test_a_state_can_be_pickled_and_restored_in_another_copy() -> None:
    envs = [Centred(wrappers.TransformReward(make("CartPole-v1"), lambda reward: 2 * float(reward))) for _ in range(2)]
    simulators = [Simulator(env) for env in envs]
    for simulator, seed in zip(simulators, (1, 2), strict=True):
        simulator.reset(seed=seed)
    replay(simulators[0], [0, 1, 1])
    simulators[1].restore(pickle.loads(pickle.dumps(simulators[0].capture())))
    assert envs[1].core is envs[1].unwrapped
    assert replay(simulators[0], [1, 0, 0, 1]) == replay(simulators[1], [1, 0, 0, 1])


class OnlyOneAllowed(Spring):
    """Allows only one action at a time, each in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.n_steps = 0

    def action_masks(self) -> Any:
        return np.arange(2) == self.n_steps % 2

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_masks()[action], "this action is not allowed now"
        self.n_steps += 1
        return super().step(action)


class OnlyOneOfSixAllowed(OnlyOneAllowed):
    action_space: Any = spaces.MultiDiscrete([2, 4])

    def action_masks(self) -> Any:
        return np.concatenate([np.arange(2) == self.n_steps % 2, np.arange(4) == self.n_steps % 4])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.tolist() == [self.n_steps % 2, self.n_steps % 4]
        self.n_steps += 1
        return Spring.step(self, action[0])


@pytest.mark.parametrize("env_type", [OnlyOneAllowed, OnlyOneOfSixAllowed])
def test_the_check_takes_only_allowed_actions(env_type: Callable[[], Env]) -> None:
    check_branchable(Monitor(env_type()))


def test_the_check_compares_dictionaries_and_treats_nan_as_equal() -> None:
    def show(observation: Any) -> dict[str, Any]:
        return {"x": observation, "gap": np.array([np.nan], np.float32)}

    space = spaces.Dict({"x": spaces.Box(-np.inf, np.inf, (1,)), "gap": spaces.Box(-np.inf, np.inf, (1,))})
    check_branchable(wrappers.TransformObservation(RestorableSpring(), show, space))
    with pytest.raises(NotBranchableError, match="not restored exactly"):
        check_branchable(wrappers.TransformObservation(HalfCapturedSpring(), show, space))


MUJOCO = [
    "Ant",
    "HalfCheetah",
    "Hopper",
    "Humanoid",
    "HumanoidStandup",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "Pusher",
    "Reacher",
    "Swimmer",
    "Walker2d",
]


@pytest.fixture
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the working directory, where MuJoCo writes a log of warnings about HalfCheetah's model."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
@pytest.mark.parametrize("name", MUJOCO)
def test_every_mujoco_environment_is_branchable(name: str) -> None:
    pytest.importorskip("mujoco")
    env = Monitor(make(f"{name}-v5"))
    check_branchable(env, n_steps=32)
    assert Simulator(env).is_cheap


# Gymnasium warns that there is a newer version.
@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
# Gymnasium refuses to make Pusher-v4 with this version of MuJoCo.
@pytest.mark.usefixtures("_in_a_folder_of_its_own")
@pytest.mark.parametrize("name", [name for name in MUJOCO if name != "Pusher"])
def test_version_4_of_mujoco_environments_is_branchable_too(name: str) -> None:
    pytest.importorskip("mujoco")
    check_branchable(make(f"{name}-v4"), n_steps=16)


def test_attributes_that_a_reset_draws_are_restored_with_the_physics() -> None:
    pytest.importorskip("mujoco")
    env = make("Reacher-v5")
    simulator = Simulator(env)
    simulator.reset(seed=0)
    state = pickle.loads(pickle.dumps(simulator.capture()))
    goal = env.unwrapped.__dict__["goal"].copy()
    simulator.reset(seed=1)
    assert goal.tolist() != env.unwrapped.__dict__["goal"].tolist()
    simulator.restore(state)
    assert goal.tolist() == env.unwrapped.__dict__["goal"].tolist()


def test_a_subclass_of_a_mujoco_environment_is_restored_with_its_own_attributes() -> None:
    pytest.importorskip("mujoco")
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

    class Tiring(HopperEnv):
        n_steps = 0

        def step(self, action: Any) -> Any:
            self.n_steps += 1
            observation, reward, terminated, truncated, info = HopperEnv.step(self, action)  # type: ignore[no-untyped-call]
            return observation, reward - self.n_steps, terminated, truncated, info

    env = Tiring()
    check_branchable(env, n_steps=16)
    Simulator(env).prove()


def test_a_method_that_one_mujoco_environment_was_given_has_its_state_restored() -> None:
    pytest.importorskip("mujoco")
    env: Any = make("InvertedDoublePendulum-v5").unwrapped

    def get_reward(self: Any, *arguments: Any) -> Any:
        self.energy -= 1.0
        return self.energy, {}

    env._get_rew, env.energy = types.MethodType(get_reward, env), 0.0
    simulator = Simulator(env)
    simulator.reset(seed=0)
    state = simulator.capture()
    for _ in range(2):
        simulator.restore(state)
        assert simulator.step(env.action_space.sample())[1] == -1.0
    assert simulator.prove() is not None


def test_methods_that_a_known_class_was_given_have_their_state_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    step: Any = CartPoleEnv.step
    base = DummyVecEnv([CartPoleEnv])
    bank = make_bank(base, needs_restore=True)

    @functools.wraps(step)
    def burn_fuel(self: Any, action: Any) -> Any:
        self.fuel -= 1
        observation, _, *rest = step(self, action)
        return observation, self.fuel, *rest

    monkeypatch.setattr(CartPoleEnv, "fuel", 9, raising=False)
    assert not bank.is_outdated()
    monkeypatch.setattr(CartPoleEnv, "step", burn_fuel)
    assert bank.is_outdated()
    simulator = Simulator(base.envs[0])
    simulator.reset(seed=0)
    state = simulator.capture()
    for _ in range(2):
        simulator.restore(state)
        assert simulator.step(0)[1] == 8
    assert simulator.prove() is not None


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3"])
def test_box2d_is_refused_with_a_way_to_train_on_it(env_id: str) -> None:
    pytest.importorskip("Box2D")
    with pytest.raises(NotBranchableError, match=r'Box2D.s contacts.*group_mode="episode"'):
        Simulator(make(env_id))


def make_atari(**options: Any) -> Env:
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    return make("ALE/Pong-v5", **{"frameskip": 1, "repeat_action_probability": 0.0, **options})


def wrap_atari(env: Env) -> Env:
    """Wrap like SB3's AtariWrapper, without the parts that need OpenCV."""
    env = atari_wrappers.NoopResetEnv(atari_wrappers.StickyActionEnv(env, 0.25), 10)
    env = atari_wrappers.EpisodicLifeEnv(atari_wrappers.MaxAndSkipEnv(env, 4))
    return Monitor(atari_wrappers.ClipRewardEnv(atari_wrappers.FireResetEnv(env)))


@pytest.mark.parametrize("wrap", [lambda env: env, wrap_atari], ids=["bare", "wrapped"])
@pytest.mark.parametrize("options", [{}, {"frameskip": (2, 5)}, {"obs_type": "ram"}], ids=str)
def test_atari_is_branchable(wrap: Callable[[Env], Env], options: dict[str, Any]) -> None:
    env = wrap(make_atari(**options))
    check_branchable(env, n_steps=16)
    simulator = Simulator(env)
    simulator.prove()
    simulator.reset()
    simulator.restore(pickle.loads(pickle.dumps(simulator.capture())))


def test_atari_in_the_full_wrapper_is_branchable() -> None:
    pytest.importorskip("cv2")
    check_branchable(Monitor(atari_wrappers.AtariWrapper(make_atari(), action_repeat_probability=0.25)), n_steps=16)


def test_atari_that_itself_repeats_actions_is_refused_with_the_remedy() -> None:
    remedy = r"repeat_action_probability=0 and .* AtariWrapper\(env, action_repeat_probability=0.25\)"
    with pytest.raises(NotBranchableError, match=remedy):
        Simulator(make_atari(repeat_action_probability=0.25))
