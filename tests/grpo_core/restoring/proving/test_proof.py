"""The proof steps what training steps: it finds what is not restored, names it, and leaves everything as it was."""

import copy
import functools
import itertools
import random
import re
import types
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces, wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from grpo import GRPO
from grpo_core.banks.choose_bank import find_obstacle
from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.proving.report import LayerAccess, RestoringReport
from grpo_core.restoring.simulator import Simulator, check_branchable

Env = gym.Env[Any, Any]


class Cart(gym.Env[Any, Any]):
    """A place on a line, pushed left and right; subclasses keep something else besides."""

    observation_space: Any = spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space: Any = spaces.Discrete(2)
    length = 50

    def __init__(self) -> None:
        self.x, self.t = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.normal()), 0
        self.prepare()
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.x += int(action) - 0.5 + self.push(int(action))
        return self.observe(), -abs(self.x), self.is_over(), False, {}

    def prepare(self) -> None:
        """Begin an episode."""

    def push(self, action: int) -> float:
        return 0.0

    def is_over(self) -> bool:
        return self.t >= self.length

    def observe(self) -> Any:
        return np.array([self.x, self.t], np.float32)


class Counter:
    def __init__(self) -> None:
        self.n = 0


class NamedLikeDrawing(Cart):
    def prepare(self) -> None:
        self.clock, self.window, self.screen = 0, [0], {"n": 0}

    def push(self, action: int) -> float:
        self.clock += 1
        self.window[0] += 1
        self.screen["n"] += 1
        return 0.0

    def is_over(self) -> bool:
        return self.clock + self.window[0] + self.screen["n"] >= 120


class WithQueue(Cart):
    def prepare(self) -> None:
        self.pushes = deque([0, 0, 0], 3)

    def push(self, action: int) -> float:
        self.pushes.append(action)
        return 0.1 * sum(self.pushes)


class WithIterator(Cart):
    def prepare(self) -> None:
        self.pushes = iter([0.1, 0.2, 0.3] * 20)

    def push(self, action: int) -> float:
        return next(self.pushes)


class WithView(Cart):
    def prepare(self) -> None:
        self.grid = np.zeros((2, 2))
        self.row = self.grid[1]

    def push(self, action: int) -> float:
        self.row += action
        return float(self.grid.sum())


class NewMapEachTime(Cart):
    def prepare(self) -> None:
        n = int(self.np_random.integers(1, 9))
        self.map = self.np_random.normal(size=(n, n))

    def push(self, action: int) -> float:
        self.map[0, 0] += action
        return float(self.map.sum())


class StateMachine(Cart):
    def prepare(self) -> None:
        self.next: Callable[[], float] = self.go_right

    def push(self, action: int) -> float:
        return self.next()

    def go_right(self) -> float:
        self.next = self.go_left
        return 1.0

    def go_left(self) -> float:
        self.next = self.go_right
        return -2.0


class OneArray(Cart):
    def __init__(self) -> None:
        super().__init__()
        self.seen = np.zeros(2, np.float32)

    def observe(self) -> Any:
        self.seen[:] = self.x, self.t
        return self.seen


class ShowsNothing(Cart):
    def observe(self) -> Any:
        return np.array([np.nan, self.t], np.float32)


class OneStep(Cart):
    length = 1


class Endless(Cart):
    length = 10**9


class Cached(Cart):
    @functools.lru_cache(maxsize=8)  # noqa: B019
    def push(self, action: int) -> float:
        return 0.1 * action


class DrawsEverywhere(Cart):
    """Noise of every kind, from generators that a reset makes anew."""

    def prepare(self) -> None:
        np.random.seed(3)
        random.seed(3)
        self.own, self.old, self.python = np.random.default_rng(1), np.random.RandomState(2), random.Random(3)
        self.world = types.SimpleNamespace(generator=self.np_random, another=np.random.default_rng(4))

    def push(self, action: int) -> float:
        own = self.own.normal() + self.old.normal() + self.python.random() + self.world.another.normal()
        wide = np.random.normal() + random.random() + self.world.generator.normal()
        return float(own + wide + self.observation_space.sample()[0] / 1e6 + self.action_space.sample())


class OwnMethodsAndNoise(DrawsEverywhere):
    def capture_state(self) -> Any:
        return self.x, self.t

    def restore_state(self, state: Any) -> None:
        self.x, self.t = state


GOOD: list[Callable[[], Env]] = [
    NamedLikeDrawing,
    WithQueue,
    WithIterator,
    WithView,
    NewMapEachTime,
    StateMachine,
    OneArray,
    ShowsNothing,
    OneStep,
    Endless,
    Cached,
    DrawsEverywhere,
    OwnMethodsAndNoise,
]


@pytest.mark.parametrize("make", GOOD)
def test_what_attributes_hold_is_restored_under_any_wrapper(make: Callable[[], Env]) -> None:
    wrapped = wrappers.FrameStackObservation(wrappers.RecordEpisodeStatistics(wrappers.TimeLimit(make(), 40)), 2)
    for env in (make(), wrapped):
        assert check_branchable(env).n_replayed > 10


class NestedNoise(Cart):
    """Holds a generator in an object, which is copied, though the generator goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.world = types.SimpleNamespace(generator=np.random.default_rng(4))


class OwnNoise(Cart):
    """Holds generators of its own, which are never copied, and refers to one of them elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(4)
        self.world = types.SimpleNamespace(generator=self.generator)


class CapturedNoise(NestedNoise):
    """Captures its generator by methods of its own."""

    def capture_state(self) -> Any:
        return copy.deepcopy((self.world, self.x, self.t))

    def restore_state(self, state: Any) -> None:
        self.world, self.x, self.t = copy.deepcopy(state)


class HiddenNoise(Cart):
    """Holds a generator where none is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.generators = {np.random.default_rng(4)}


@pytest.mark.parametrize(
    ("make", "rewound"),
    [
        (CapturedNoise, ("CapturedNoise.world.generator",)),
        (HiddenNoise, ("A numpy.random._generator.Generator deep inside",)),
        (NestedNoise, ()),
        (DrawsEverywhere, ()),
        (OwnNoise, ()),
        (OwnMethodsAndNoise, ()),
    ],
)
def test_it_is_found_out_which_generators_a_restore_rewinds(make: Callable[[], Env], rewound: tuple[str, ...]) -> None:
    report = check_branchable(make())
    assert report.rewound == rewound
    assert [path for path in rewound if f"{path} is restored, too" in str(report)] == [*rewound]


class SharedByAll(Cart):
    shared: ClassVar[list[int]] = [0]

    def push(self, action: int) -> float:
        self.shared[0] += 1
        return float(self.shared[0])


OF_THE_MODULE = {"n": 0}


class KeptByTheModule(Cart):
    """Shows what it hides only after 40 steps."""

    def prepare(self) -> None:
        OF_THE_MODULE["n"] = 0

    def push(self, action: int) -> float:
        OF_THE_MODULE["n"] += 1
        return 0.0

    def is_over(self) -> bool:
        return OF_THE_MODULE["n"] >= 40


class InAClosure(Cart):
    def prepare(self) -> None:
        velocity = [0.0]

        def accelerate(action: int) -> float:
            velocity[0] += action
            return velocity[0]

        self.accelerate = accelerate

    def push(self, action: int) -> float:
        return self.accelerate(action)


class HalfCaptured(Cart):
    def capture_state(self) -> Any:
        return self.x

    def restore_state(self, state: Any) -> None:
        self.x = state


class Remembers(weakref.WeakKeyDictionary[Any, float]):
    """Refuses to be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise OSError("the link is down")


class Unknown(gym.Wrapper[Any, Any, Any, Any]):
    """Does nothing, but nobody knows that."""


class NotCopied(Cart):
    def __init__(self) -> None:
        super().__init__()
        self.links = [Remembers()]


class SecondSimulator(gym.Wrapper[Any, Any, Any, Any]):
    """Pays by an environment of its own, hidden from copies."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        other = Cart()
        self.get_other: Callable[[], Cart] = lambda: other

    def reset(self, **kwargs: Any) -> Any:
        self.get_other().reset(seed=1)
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, self.get_other().step(1)[1], terminated, truncated, info


class Clock(Cart):
    """Shows the time, here the number of steps since the beginning of the world."""

    n_steps = iter(range(10**9))

    def observe(self) -> Any:
        return np.array([self.x, next(self.n_steps)], np.float32)


BAD: dict[Callable[[], Env], str] = {
    SharedByAll: r"do not hold SharedByAll.shared of the class",
    KeptByTheModule: r"terminated True instead of False.*OF_THE_MODULE of the module",
    InAClosure: r"InAClosure.accelerate's velocity",
    lambda: Unknown(
        HalfCaptured()
    ): r"capture_state\(\) misses something that step\(\) changes, HalfCaptured.t for one",
    NotCopied: r"links\[0\] \(.*Remembers\) cannot be copied: OSError: the link is down",
    lambda: SecondSimulator(Cart()): r"SecondSimulator.get_other's other.x",
    Clock: r"what does lies elsewhere",
}


@pytest.mark.parametrize(("make", "message"), BAD.items(), ids=range(len(BAD)))
def test_what_is_not_restored_is_named_and_automatic_groups_are_whole_episodes(
    make: Callable[[], Env], message: str
) -> None:
    with pytest.raises(NotBranchableError, match=message):
        check_branchable(make())
    with pytest.warns(UserWarning, match=message) as said:
        # One shows a clock, so that episodes of one seed begin differently: compared, they would be warned of.
        model = GRPO("MlpPolicy", make(), n_steps=64, horizon=16, baseline="value")
    assert len(said) == 1
    assert "Groups are whole episodes" in str(said[0].message)
    model.learn(64)
    assert ("misses something" in str(said[0].message)) == (make().has_wrapper_attr("capture_state"))


class NeedsTask(Cart):
    """Cannot be reset before a wrapper has given it a goal."""

    goal: float | None = None

    def prepare(self) -> None:
        if self.goal is None:
            raise AttributeError("no goal")


class Task(gym.Wrapper[Any, Any, Any, Any]):
    def reset(self, **kwargs: Any) -> Any:
        self.env.unwrapped.goal = 1.0  # type: ignore[attr-defined]
        return self.env.reset(**kwargs)


def test_the_core_is_never_stepped_without_its_wrappers() -> None:
    with warnings.catch_warnings(action="error"):
        GRPO("MlpPolicy", wrappers.TimeLimit(Task(NeedsTask()), 20)).learn(64)


class Broken(Cart):
    def __init__(self, method: str, first_step: int = 1) -> None:
        super().__init__()
        self.method, self.first_step = method, first_step

    def push(self, action: int) -> float:
        if self.method == "step" and self.t >= self.first_step:
            raise ZeroDivisionError("no wheels")
        return 0.0

    def prepare(self) -> None:
        if self.method == "reset":
            raise ZeroDivisionError("no wheels")


@pytest.mark.parametrize("first_step", [1, 3])
def test_an_environment_whose_step_fails_is_built_with_a_warning_and_is_no_obstacle_but_an_error(
    first_step: int,
) -> None:
    with pytest.warns(UserWarning, match=r"step\(\) failed when it was tried out.*ZeroDivisionError: no wheels"):
        GRPO("MlpPolicy", Broken("step", first_step=first_step))
    with pytest.raises(ZeroDivisionError, match="no wheels"):
        find_obstacle(DummyVecEnv([lambda: Broken("step", first_step=first_step)]))


@pytest.mark.parametrize("group_mode", ["auto", "branch"])
def test_an_environment_whose_reset_fails_is_refused_with_its_own_error(group_mode: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="no wheels") as failure:  # warnings are errors
        GRPO("MlpPolicy", Broken("reset"), group_mode=group_mode)
    assert failure.value.__suppress_context__
    with pytest.raises(ZeroDivisionError, match="no wheels"):
        find_obstacle(DummyVecEnv([lambda: Broken("reset")]))


def test_an_environment_in_a_worker_whose_reset_fails_is_refused_with_its_own_error() -> None:
    env = SubprocVecEnv([lambda: RestorableWrapper(Broken("reset"))])
    try:
        with pytest.raises(RuntimeError, match=r"(?s)Environment 0 failed.*ZeroDivisionError: no wheels\s*$"):
            GRPO("MlpPolicy", env)
    finally:
        env.close()


class HasSessions(Cart):
    """Closes on a server, as it is reset, the session that it opened last."""

    sessions: ClassVar[set[int]] = set()
    numbers: ClassVar[Any] = itertools.count()
    session: int | None = None

    def prepare(self) -> None:
        if self.session is not None:
            self.sessions.remove(self.session)
        self.session = next(self.numbers)
        self.sessions.add(self.session)


def test_a_reset_that_fails_only_after_a_restore_is_an_obstacle_and_no_error() -> None:
    obstacle = find_obstacle(DummyVecEnv([HasSessions]))
    assert obstacle is not None
    assert re.search(r"reset\(\) failed after a restore \(KeyError", obstacle)
    with pytest.warns(UserWarning, match="failed after a restore"):
        assert GRPO("MlpPolicy", HasSessions(), n_steps=64, horizon=16).learn(128)._mode == "episode"


class FailsAfterRestore(Cart):
    def capture_state(self) -> Any:
        raise OSError("no connection")

    def restore_state(self, state: Any) -> None: ...


def test_an_error_of_an_environments_own_methods_is_a_reason_not_to_branch() -> None:
    with pytest.warns(UserWarning, match=r"could not be captured \(OSError: no connection\)"):
        GRPO("MlpPolicy", Unknown(FailsAfterRestore()), n_steps=64, horizon=16).learn(32)


class Server:
    """A connection that ends with its object."""

    connected = 0

    def __init__(self) -> None:
        Server.connected += 1

    def __del__(self) -> None:
        Server.connected -= 1


class Remote(Cart):
    def __init__(self) -> None:
        super().__init__()
        self.server = Server()


def test_a_trial_leaves_connections_alone() -> None:
    env = Remote()
    with pytest.warns(UserWarning, match=r"server \(.*Server\) must not be copied"):
        model = GRPO("MlpPolicy", env, n_steps=64, horizon=16)
    assert Server.connected == 1
    model.learn(32)


def test_a_trial_leaves_generators_records_and_files_as_they_were(tmp_path: Path) -> None:
    core = DrawsEverywhere()
    env = Monitor(core, str(tmp_path / "tried"))
    env.reset(seed=1)
    for action in (0, 1):
        env.step(action)

    def look() -> list[Any]:
        spaces_ = [core.action_space.np_random, core.observation_space.np_random]
        own = [core.np_random, core.own, core.world.another, *spaces_]
        states = [generator.bit_generator.state for generator in own]
        wide = [np.random.get_state(), random.getstate(), core.old.get_state(), core.python.getstate()]
        return [core.x, core.t, env.rewards, env.get_total_steps(), env.get_episode_lengths(), str(wide), states]

    before = look()
    report = Simulator(env).prove()
    assert look() == before
    assert report is not None
    assert report.points == ("at the start of an episode", "on the way", "after the end of one")
    assert (tmp_path / "tried.monitor.csv").read_text().count("\n") == 2, "the header and nothing else"
    while not env.step(0)[2]:
        pass
    env.close()
    assert (tmp_path / "tried.monitor.csv").read_text().count("\n") == 3


def test_noise_that_all_share_is_no_obstacle() -> None:
    class Noisy(Cart):
        def push(self, action: int) -> float:
            return float(np.random.uniform(-1, 1))

    with warnings.catch_warnings(action="error"):
        model = GRPO("MlpPolicy", Noisy(), n_steps=64, horizon=16)
    before = str(np.random.get_state())
    model.learn(64)
    assert model._mode == "branch"
    assert str(np.random.get_state()) != before, "training restores no generator that others use too"


def test_slow_environments_are_tried_out_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Endless):
        seconds: ClassVar[float] = 0.0

        def push(self, action: int) -> float:
            Slow.seconds += 0.125
            return 0.0

    monkeypatch.setattr(
        "grpo_core.restoring.proving.proof.time", types.SimpleNamespace(perf_counter=lambda: Slow.seconds)
    )
    report = check_branchable(Slow(), max_seconds=30.0)
    assert report.is_shortened
    assert report.step_us == 125_000.0
    assert 4 <= report.n_steps < 64
    assert 15.0 <= report.seconds <= 45.0
    assert "Fewer steps were tried than wanted" in str(report)


REPORT = RestoringReport(
    env="<Cart>",
    layers=(LayerAccess("TimeLimit", "_elapsed_steps"), LayerAccess("Cart", "a copy of its attributes")),
    points=("at the start of an episode", "on the way"),
    n_branches=12,
    n_replayed=300,
    n_steps=64,
    is_shortened=False,
    seconds=0.1,
    capture_us=640.0,
    restore_us=1_280.0,
    step_us=40.0,
    takes_turns=False,
)


def test_the_price_is_that_of_a_group_of_two_branches_of_32_steps() -> None:
    assert REPORT.overhead_us == pytest.approx((4 * 640 + 2 * 1_280) / 64)
    assert replace(REPORT, takes_turns=True).overhead_us == 640 + 1_280
    # 3 * (40 + 200) µs may be paid per step.
    assert replace(REPORT, capture_us=11_519.0, restore_us=0.0).group_mode == "branch"
    assert replace(REPORT, capture_us=11_521.0, restore_us=0.0).group_mode == "episode"


def test_a_report_prints_all_that_was_found_out() -> None:
    assert str(REPORT) == (
        "<Cart> is restored exactly.\n"
        "  proven in 0.10 s: 300 steps in 12 branches of up to 64 steps,\n"
        "  from states at the start of an episode and on the way\n"
        "  TimeLimit  _elapsed_steps\n"
        "  Cart       a copy of its attributes\n"
        "  per capture 640 µs, restore 1.3 ms, step 40 µs\n"
        '  group_mode="auto" takes "branch"'
    )


class Heavy(Cart):
    """Takes a while to copy."""

    def __init__(self) -> None:
        super().__init__()
        self.load = {n: [n] for n in range(30_000)}


def test_where_restoring_costs_more_than_it_pays_back_groups_are_whole_episodes() -> None:
    with pytest.warns(UserWarning, match=r"costs more than it can pay back. A capture takes .* ms.*times as long"):
        model = GRPO("MlpPolicy", Heavy(), n_steps=64, horizon=16)
    assert model._mode == "episode"


class DearMethods(Cart):
    """Captures itself dearly enough for branches not to take turns, and cheaply enough to branch."""

    def capture_state(self) -> Any:
        sum(range(100_000))
        return self.x, self.t

    def restore_state(self, state: Any) -> None:
        self.x, self.t = state


def test_only_cheap_methods_let_branches_take_turns() -> None:
    assert not check_branchable(DearMethods()).takes_turns
    assert check_branchable(OwnMethodsAndNoise()).takes_turns


def test_own_methods_that_forget_something_are_found_out_where_all_else_is_known() -> None:
    env = Monitor(wrappers.TimeLimit(HalfCaptured(), 9))
    with pytest.warns(UserWarning, match=r"capture_state\(\) misses something.*HalfCaptured\.t for one"):
        assert GRPO("MlpPolicy", env, n_steps=64, horizon=16)._mode == "episode"


@pytest.mark.parametrize("method", ["capture_state", "restore_state"])
def test_own_methods_that_fail_end_in_episodes(method: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no connection")

    env = OwnMethodsAndNoise()
    setattr(env, method, fail)
    with pytest.warns(UserWarning, match=r"OSError: no connection"):
        GRPO("MlpPolicy", env, n_steps=64, horizon=16).learn(32)


def test_a_known_environment_with_another_step_is_tried_out() -> None:
    env = gym.make("CartPole-v1").unwrapped
    original, rewards = env.step, [0.0]

    def step(action: Any) -> Any:
        observation, _, *rest = original(action)
        rewards[0] += 1.0
        return observation, rewards[0], *rest

    env.step = step  # type: ignore[method-assign]
    with pytest.raises(NotBranchableError, match=r"not restored exactly.*CartPoleEnv\.step's rewards"):
        Simulator(env).prove()


class Unsendable(Cart):
    """Holds what can be copied, but not sent to another process."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = [lambda: 1.0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_states_that_cannot_be_sent_from_a_worker_are_an_obstacle_there_alone() -> None:
    check_branchable(Unsendable())
    env = SubprocVecEnv([lambda: RestorableWrapper(Unsendable())], start_method="fork")
    try:
        obstacle = find_obstacle(env)
    finally:
        env.close()
    assert obstacle is not None
    assert "could not be captured" in obstacle


class ChangesItsAction(Cart):
    """Scales the action in place."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def step(self, action: Any) -> Any:
        action *= 0.5
        return super().step(int(action[0] > 0.1))


def test_an_action_may_be_changed_in_place() -> None:
    check_branchable(ChangesItsAction())


class Wind(gym.Wrapper[Any, Any, Any, Any]):
    """Blows in some episodes, which changes the physics of the environment inside."""

    def __init__(self, env: Env, place: str) -> None:
        super().__init__(env)
        self._place = place

    def reset(self, **arguments: Any) -> Any:
        observed = self.env.reset(**arguments)
        self.force = 30.0 if self.unwrapped.np_random.random() < 0.5 else 10.0
        if self._place == "gravity":
            self.unwrapped.model.opt.gravity[2] = self.force  # type: ignore[attr-defined]
        elif self._place.startswith("body_"):
            getattr(self.unwrapped.model, self._place).flat[3] = self.force  # type: ignore[attr-defined]
        else:
            setattr(self.unwrapped, self._place, self.force)
        return observed

    def get(self) -> float:
        if self._place == "gravity":
            return float(self.unwrapped.model.opt.gravity[2])  # type: ignore[attr-defined]
        if self._place.startswith("body_"):
            return float(getattr(self.unwrapped.model, self._place).flat[3])  # type: ignore[attr-defined]
        return float(getattr(self.unwrapped, self._place))


@pytest.mark.parametrize(
    ("env_id", "place"),
    [("CartPole-v1", "force_mag"), *(("Hopper-v5", place) for place in ("gravity", "body_mass", "body_pos"))],
)
def test_what_a_wrapper_changes_in_a_known_environment_is_restored(env_id: str, place: str) -> None:
    if env_id == "Hopper-v5":
        pytest.importorskip("mujoco")
    env = Wind(gym.make(env_id), place)
    simulator, states = Simulator(env), {}
    for seed in range(20):
        env.reset(seed=seed)
        states[env.force] = simulator.capture()
    assert states.keys() == {10.0, 30.0}
    for force, state in [*states.items(), *states.items()]:
        simulator.restore(state)
        assert (env.force, env.get()) == (force, force)


class Slippery(gym.Wrapper[Any, Any, Any, Any]):
    """Draws at each reset where steps lead, inside the table of a known environment."""

    def reset(self, **arguments: Any) -> Any:
        observed = self.env.reset(**arguments)
        table = self.unwrapped.P  # type: ignore[attr-defined]
        end = int(self.unwrapped.np_random.integers(1, 4))
        for transitions in table[0].values():
            transitions[:] = [(1.0, end, 0.0, False)]
        return observed


def test_what_differs_in_a_known_environment_is_named() -> None:
    env = Slippery(gym.make("FrozenLake-v1", is_slippery=False))
    with pytest.raises(NotBranchableError, match=r"Copies of its attributes do not hold FrozenLakeEnv\.P\["):
        check_branchable(env)


class Recorded(Cart):
    """Remembers across restores what it drew and was told."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.recorder = Recorder(seen)

    def push(self, action: int) -> float:
        self.recorder.seen.append((action, float(self.np_random.random()), float(np.random.random())))
        return 0.0


class Recorder:
    """A record that is shared between copies of an environment."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def test_a_trial_meets_the_same_noise_every_time_and_leaves_it_as_it_was() -> None:
    records: list[list[Any]] = [[], []]
    for seen in records:
        env = Recorded(seen)
        before = env.np_random.bit_generator.state, np.random.get_state()[1].tolist()  # type: ignore[index]
        Simulator(env).prove()
        assert before == (env.np_random.bit_generator.state, np.random.get_state()[1].tolist())  # type: ignore[index]
    assert records[0][:8] == records[1][:8]


class Hurried(gym.Wrapper[Any, Any, Any, Any]):
    """Draws at each reset the limit of the TimeLimit inside."""

    def reset(self, **arguments: Any) -> Any:
        observed = self.env.reset(**arguments)
        self.limit = self.env._max_episode_steps = int(self.unwrapped.np_random.integers(5, 9))  # type: ignore[attr-defined]
        return observed


def test_what_a_wrapper_changes_in_a_known_one_is_restored() -> None:
    env: Any = Hurried(gym.make("CartPole-v1"))
    simulator, states = Simulator(env), {}
    for seed in range(20):
        env.reset(seed=seed)
        states[env.limit] = simulator.capture()
    assert len(states) == 4
    for limit, state in states.items():
        simulator.restore(state)
        assert (env.limit, env.env._max_episode_steps) == (limit, limit)
    check_branchable(env)


class Score:
    def __init__(self) -> None:
        self.value = 0.0


class Referred(Cart):
    """Keeps its score where something else holds on to it, too."""

    config: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.score = Score()

    def prepare(self) -> None:
        self.clear()

    def push(self, action: int) -> float:
        self.score.value += 1
        return 0.0

    def clear(self) -> None:
        self.score.value = 0.0

    def observe(self) -> Any:
        return np.array([self.x, self.score.value], np.float32)


class ClearedByAFunction(Referred):
    def __init__(self) -> None:
        super().__init__()
        score = self.score
        self.hooks = [lambda: setattr(score, "value", 0.0)]

    def clear(self) -> None:
        self.hooks[0]()


class ReadByAFunction(Referred):
    def __init__(self) -> None:
        super().__init__()
        score = self.score
        self.read = lambda: score.value

    def observe(self) -> Any:
        return np.array([self.x, self.read()], np.float32)  # type: ignore[no-untyped-call]


class ClearedThroughAReference(Referred):
    def __init__(self) -> None:
        super().__init__()
        self.listeners = weakref.WeakSet([self.score])

    def clear(self) -> None:
        for listener in self.listeners:
            listener.value = 0.0


class ChangedThroughAProxy(Referred):
    def __init__(self) -> None:
        super().__init__()
        self.proxy = weakref.proxy(self.score)

    def push(self, action: int) -> float:
        self.proxy.value += 1
        return 0.0


class ShownByAView(Referred):
    """Its score is a small part of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = np.zeros((100, 1000))
        self.row = self.table[7]

    def clear(self) -> None:
        self.table[:] = 0.0

    def push(self, action: int) -> float:
        self.row[3] += 1
        return 0.0

    def observe(self) -> Any:
        return np.array([self.x, self.table[7, 3]], np.float32)


def play(env: Env) -> list[list[float]]:
    """Play the beginnings of two episodes."""
    seen = []
    for seed in range(2):
        seen.append(env.reset(seed=seed)[0].tolist())
        seen += [env.step(1)[0].tolist() for _ in range(5)]
    return seen


@pytest.mark.parametrize("make", [ClearedThroughAReference, ChangedThroughAProxy, ShownByAView])
def test_what_is_restored_through_a_reference_is_left_as_it_was(make: Callable[[], Env]) -> None:
    env = make()
    check_branchable(env)
    assert play(env) == play(make())
    model = GRPO("MlpPolicy", env, n_steps=64, horizon=16, n_epochs=1).learn(64)
    assert model._mode == "branch"
    assert play(env) == play(make())


@pytest.mark.parametrize("make", [ClearedByAFunction, ReadByAFunction])
def test_what_is_not_restored_through_a_function_is_found_and_left_as_it_was(make: Callable[[], Env]) -> None:
    env = make()
    with pytest.raises(NotBranchableError, match="is not restored exactly"):
        check_branchable(env)
    assert play(env) == play(make())
    with pytest.warns(UserWarning, match="Groups are whole episodes"):
        GRPO("MlpPolicy", env, n_steps=64, horizon=16, n_epochs=1).learn(64)
    assert play(env) == play(make())


@pytest.mark.parametrize("make", [Cart, Referred], ids=["numbers", "an object"])
def test_a_trial_leaves_the_very_objects_in_place(make: Callable[[], Any]) -> None:
    env, shared = make(), {"level": [1, {2}, deque([3])], "table": np.arange(3.0)}
    env.config = shared
    before = dict(vars(env))
    check_branchable(env)
    assert all(vars(env)[name] is value for name, value in before.items() if name != "x")
    assert repr(shared) == repr({"level": [1, {2}, deque([3])], "table": np.arange(3.0)})
    shared["level"] = 5
    GRPO("MlpPolicy", env, n_steps=64, horizon=16)
    assert env.config is shared


class Painted(Cart):
    """Writes to a picture that is too large to be looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = np.zeros(2**20)

    def push(self, action: int) -> float:
        self.picture[self.t] += 1
        return 0.0


def test_a_trial_leaves_a_large_array_as_it_was() -> None:
    env = Painted()
    env.reset(seed=0)
    env.step(1)
    before = env.picture.copy()
    check_branchable(env)
    assert (env.picture == before).all()


class ClimbsLevels(Cart):
    """Begins where its level is, which rises with every episode that has gone some way."""

    level = 0

    def prepare(self) -> None:
        self.x += self.level

    def push(self, action: int) -> float:
        self.level += self.t == 3
        return 0.0


class BeginsByTorch(Cart):
    """Draws its start from a generator that a trial leaves alone."""

    def prepare(self) -> None:
        self.x = float(torch.rand(1))


@pytest.mark.parametrize("make", [ClimbsLevels, BeginsByTorch])
def test_a_reset_that_begins_anew_each_time_is_no_obstacle(make: Callable[[], Env]) -> None:
    check_branchable(make())
