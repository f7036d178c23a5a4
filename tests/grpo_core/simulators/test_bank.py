"""Banks of simulators: in this process and in workers, under every wrapper, with and without restoring."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.simulator import check_branchable
from grpo_core.simulators.bank import Order, Outcome, SimulatorBank, find_obstacle, make_bank
from grpo_core.simulators.restorable_wrapper import RestorableWrapper

Env = gym.Env[Any, Any]
MakeWorkers = Callable[..., VecEnv]

# Forking starts a worker fast, and this process holds no lock that a worker needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def make_workers() -> Iterator[MakeWorkers]:
    """Start one worker per given function; all end with the test, even if some have died."""
    started: list[SubprocVecEnv] = []

    def make(*env_fns: Callable[[], Env]) -> VecEnv:
        started.append(SubprocVecEnv(list(env_fns), start_method="fork"))
        return started[-1]

    yield make
    for env in started:
        for remote, process in zip(env.remotes, env.processes, strict=True):
            if process.is_alive():
                remote.send(("close", None))
            process.join()
            remote.close()


def make_cart_pole(limit: int = 500) -> Env:
    return Monitor(gym.make("CartPole-v1", max_episode_steps=limit))


def make_slippery(**options: Any) -> Env:
    return gym.make("FrozenLake-v1", **options)


class Camera(gym.Env[Any, Any]):
    """Shows a moving picture; allows only steps that stay on the line."""

    action_space = spaces.Discrete(2)
    n_places = 40

    def __init__(self, shape: tuple[int, ...] = (40, 36, 1), with_dict: bool = False) -> None:
        self.with_dict = with_dict
        self.picture = np.zeros(shape, np.uint8)
        self.place = 0
        image_space = spaces.Box(0, 255, shape, np.uint8)
        places = spaces.Box(0, self.n_places, (2,), np.float32)
        self.observation_space = spaces.Dict({"image": image_space, "places": places}) if with_dict else image_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(10, 20))
        return self.show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 2 * int(action) - 1 + int(self.np_random.integers(2))
        return self.show(), self.place / 7, self.place > 30, False, {"place": self.place}

    def action_masks(self) -> list[bool]:
        return [self.place > 1, True]

    def show(self) -> Any:
        self.picture.reshape(-1)[:] = np.arange(self.picture.size) % 97 + self.place
        # Not the space's dtype, to which VecEnvs cast.
        picture = self.picture.copy()
        return {"image": picture, "places": [self.place, 1]} if self.with_dict else picture


class Slate(Camera):
    """Returns the same array every time, and draws over it at every step."""

    def show(self) -> Any:
        super().show()
        return {"image": self.picture, "places": [self.place, 1]}


class Gauge(Camera):
    """Fills the same info in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.info: dict[str, Any] = {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *outcome, info = super().step(action)
        self.info.update(info)
        self.info.setdefault("places", np.zeros(1))[0] = info["place"]
        self.info.setdefault("nested", {"places": [0]})["places"][0] = info["place"]
        return *outcome, self.info


class Fragile(gym.Env[Any, Any]):
    """Raises at action 1, and ends its process at action 2; neither is taken when it is tried out."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == 1:
            raise ZeroDivisionError("the wheels came off")
        if action == 2:
            os._exit(7)
        return np.zeros(1, np.float32), 1.0, False, False, {}

    def capture_state(self) -> Any:
        return "upright"

    def restore_state(self, state: Any) -> None:
        pass


class HoldsALock(gym.Wrapper[Any, Any, Any, Any]):
    """Cannot be copied."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.lock = threading.Lock()


def simplify(value: Any) -> Any:
    """Turn nested arrays into lists, which compare with ==."""
    if isinstance(value, dict):
        return {key: simplify(part) for key, part in value.items() if key != "t"}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def see(outcome: Outcome) -> Any:
    """Return all that a learner sees of an outcome, comparable with ==."""
    observed = outcome.observed
    seen = (observed.observation, observed.action_masks, outcome.reward, outcome.terminated, outcome.truncated)
    return [*map(simplify, seen), simplify(outcome.info)]


def follow(bank: SimulatorBank, state: Any, actions: Sequence[Any], i: int = 0) -> list[Any]:
    """Take actions from a state, restoring before every step as a rollout does."""
    seen = []
    for action in actions:
        outcome = bank.step({i: Order(action, state, capture=True)})[i]
        seen.append(see(outcome))
        state = outcome.state
        if state is None:
            break
    return seen


def start(bank: SimulatorBank, seed: int = 0) -> Any:
    """Reset the first environment and return its state."""
    return bank.reset({0: seed})[0][1]


STACKS: dict[str, Callable[[VecEnv], VecEnv]] = {
    "bare": lambda env: env,
    "normalized": lambda env: VecNormalize(env, norm_obs=False),
    "transposed": VecTransposeImage,
    "stacked": lambda env: VecFrameStack(env, 3),
    "stacked, then transposed": lambda env: VecTransposeImage(VecFrameStack(env, 3)),
    "transposed, then stacked": lambda env: VecFrameStack(VecTransposeImage(env), 3),
    "stacked twice": lambda env: VecFrameStack(VecFrameStack(env, 2), 2),
    "everything": lambda env: VecMonitor(
        VecCheckNan(VecTransposeImage(VecNormalize(VecFrameStack(env, 4), norm_obs=False)))
    ),
}


@pytest.mark.parametrize("with_dict", [False, True], ids=["image", "dict"])
@pytest.mark.parametrize("wrap", STACKS.values(), ids=STACKS.keys())
def test_observations_equal_those_of_the_vectorised_environment(
    wrap: Callable[[VecEnv], VecEnv], with_dict: bool
) -> None:
    """With any wrappers, up to and including the last observation of the episode."""
    vec_env, env = (wrap(DummyVecEnv([lambda: Camera(with_dict=with_dict)])) for _ in range(2))
    bank = make_bank(env, needs_restore=False)
    vec_env.seed(3)
    first = vec_env.reset()
    assert isinstance(first, dict if with_dict else np.ndarray)
    observed, state = bank.reset({0: 3})[0]
    assert simplify(observed.observation) == _first(simplify(first))
    assert state is None
    for t in range(100):
        expected, rewards, dones, infos = vec_env.step(np.array([t % 7 > 0]))
        outcome = bank.step({0: Order(t % 7 > 0)})[0]
        assert outcome.reward == pytest.approx(_raw(vec_env, rewards))
        assert outcome.terminated == dones[0]
        if dones[0]:
            assert simplify(outcome.observed.observation) == simplify(infos[0]["terminal_observation"])
            break
        assert simplify(outcome.observed.observation) == _first(simplify(expected))
    assert dones[0], "the episode has to end for its last observation to be compared"


def _first(batch: Any) -> Any:
    return {key: part[0] for key, part in batch.items()} if isinstance(batch, dict) else batch[0]


def _raw(env: Any, rewards: Any) -> float:
    while not isinstance(env, DummyVecEnv):
        if isinstance(env, VecNormalize):
            return float(env.get_original_reward()[0])
        env = env.venv
    return float(rewards[0])


def test_observations_have_the_dtype_of_the_space_and_do_not_change_afterwards() -> None:
    bank = make_bank(DummyVecEnv([lambda: Slate(with_dict=True)]), needs_restore=False)
    observed, _ = bank.reset({0: 0})[0]
    before = simplify(observed.observation)
    bank.step({0: Order(1)})
    assert simplify(observed.observation) == before
    assert observed.observation["places"].dtype == np.float32
    assert observed.observation["image"].dtype == np.uint8


def test_an_info_does_not_change_afterwards() -> None:
    bank = make_bank(DummyVecEnv([Gauge]), needs_restore=False)
    bank.reset({0: 0})
    infos = [bank.step({0: Order(1)})[0].info for _ in range(3)]
    assert len({info["place"] for info in infos}) > 1
    for info in infos:
        assert info["places"] == info["place"]
        assert info["nested"] == {"places": [info["place"]]}
    infos[0]["mine"] = True
    assert "mine" not in bank.step({0: Order(1)})[0].info


class Turning(gym.Env[Any, Any]):
    """Turns round after some steps, by taking another function, which is not restored."""

    observation_space, action_space = spaces.Box(-99.0, 99.0, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, turns_at: int) -> None:
        self.turns_at = turns_at
        self.move: Callable[[int], int]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.x, self.move = 0, 0, lambda x: x + 1
        return np.array([0.0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.t, self.x = self.t + 1, self.move(self.x)
        if self.t == self.turns_at:
            self.move = lambda x: x - 1
        return np.array([self.x], np.float32), 0.0, False, self.t >= 60, {}


def test_an_environment_of_the_same_class_with_other_parameters_is_tried_out_as_thoroughly() -> None:
    alike = make_bank(DummyVecEnv([lambda: Turning(-1), lambda: Turning(-1)]), needs_restore=True)
    assert [report.n_steps > 8 for report in alike.reports] == [True, False]
    with pytest.raises(NotBranchableError):
        make_bank(DummyVecEnv([lambda: Turning(-1), lambda: Turning(30)]), needs_restore=True)


def test_a_discrete_observation_is_an_integer() -> None:
    bank = make_bank(DummyVecEnv([make_slippery]), needs_restore=True)
    assert bank.reset({0: 0})[0][0].observation == 0
    assert type(bank.step({0: Order(np.int64(1))})[0].observed.observation) is int


@pytest.mark.parametrize("wrap", STACKS.values(), ids=STACKS.keys())
def test_stacked_frames_travel_with_the_states(wrap: Callable[[VecEnv], VecEnv]) -> None:
    bank = make_bank(wrap(DummyVecEnv([Camera])), needs_restore=True, common_random_numbers=True)
    state = start(bank)
    actions = [1, 0, 1, 1, 0, 1]
    first = follow(bank, state, actions)
    detour = follow(bank, state, [0, 0, 1])
    bank.reset({0: 8})
    assert follow(bank, state, actions) == first
    assert follow(bank, state, [0, 0, 1]) == detour


BRANCHABLE: dict[str, Callable[[], Env]] = {
    "CartPole": make_cart_pole,
    "Pendulum": lambda: gym.make("Pendulum-v1"),
    "FrozenLake": make_slippery,
    "Taxi": lambda: gym.make("Taxi-v4", fickle_passenger=True, is_rainy=True),
    "Blackjack": lambda: wrappers.FlattenObservation(gym.make("Blackjack-v1")),
    "Camera": Camera,
    "stacked in gymnasium": lambda: Monitor(wrappers.FrameStackObservation(gym.make("CartPole-v1"), 3)),
    "rewarded by a lambda": lambda: wrappers.TransformReward(make_cart_pole(), lambda reward: 2 * float(reward)),
    "cut soon": lambda: make_cart_pole(limit=9),
}


@pytest.mark.parametrize("make_env", BRANCHABLE.values(), ids=BRANCHABLE.keys())
def test_branches_in_lock_step_do_not_affect_each_other(make_env: Callable[[], Env]) -> None:
    """Two branches that alternate on one environment see what each sees alone."""
    bank = make_bank(DummyVecEnv([make_env]), needs_restore=True, common_random_numbers=True)
    state = start(bank)
    space = make_env().action_space
    space.seed(1)
    plans = [[space.sample() for _ in range(12)] for _ in range(2)]
    alone = [follow(bank, state, plan) for plan in plans]
    states, together = [state, state], [[], []]  # type: list[Any], list[list[Any]]
    for actions in zip(*plans, strict=True):
        for branch, action in enumerate(actions):
            if states[branch] is not None:
                outcome = bank.step({0: Order(action, states[branch], capture=True)})[0]
                states[branch] = outcome.state
                together[branch].append(see(outcome))
    assert together == alone


def run_orders(bank: SimulatorBank, space: spaces.Space[Any]) -> list[Any]:
    """Play two branches from the states of two environments each, then reset only one environment."""
    space.seed(4)
    starts = bank.reset({0: 11, 1: 12})
    seen = [simplify(starts[i][0].observation) for i in (0, 1)]
    for _ in range(2):
        states = {i: starts[i][1] for i in (0, 1)}
        for _ in range(8):
            orders = {i: Order(space.sample(), state, capture=True) for i, state in states.items()}
            outcomes = bank.step(orders)
            seen.append({i: see(outcome) for i, outcome in outcomes.items()})
            states = {i: outcome.state for i, outcome in outcomes.items() if outcome.state is not None}
    seen.append(simplify(bank.reset({1: None})[1][0].observation))
    seen.append(see(bank.step({1: Order(space.sample())})[1]))
    return seen


@pytest.mark.parametrize("common_random_numbers", [False, True])
@pytest.mark.parametrize("make_env", BRANCHABLE.values(), ids=BRANCHABLE.keys())
def test_workers_do_the_same_step_for_step(
    make_workers: MakeWorkers, make_env: Callable[[], Env], common_random_numbers: bool
) -> None:
    local = DummyVecEnv([make_env] * 2)
    remote = make_workers(*[lambda: RestorableWrapper(make_env())] * 2)
    banks = [make_bank(env, needs_restore=True, common_random_numbers=common_random_numbers) for env in (local, remote)]
    assert [bank.findings.is_cheap for bank in banks][1] is False
    assert all(bank.restorable and bank.n_envs == 2 for bank in banks)
    assert run_orders(banks[0], local.action_space) == run_orders(banks[1], local.action_space)


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["plain", "restorable"])
def test_workers_that_only_reset_and_step_do_the_same_as_this_process(
    make_workers: MakeWorkers, is_wrapped: bool
) -> None:
    workers = make_workers(*[lambda: RestorableWrapper(Camera()) if is_wrapped else Camera()] * 2)
    banks = [make_bank(VecFrameStack(env, 2), needs_restore=False) for env in (DummyVecEnv([Camera] * 2), workers)]
    seen: list[list[Any]] = [[], []]
    for bank, parts in zip(banks, seen, strict=True):
        first = bank.reset({0: 5, 1: 5})
        parts.extend(
            (simplify(first[i][0].observation), simplify(first[i][0].action_masks), first[i][1]) for i in first
        )
        assert parts[0] == parts[1], "one seed is one first state"
        while not (outcome := bank.step({1: Order(1)})[1]).terminated:
            parts.append(see(outcome))
        # No environment is reset when its episode ends: it would have gone back to a place under 20.
        assert outcome.info["place"] > 30
        parts.append(see(outcome))
        assert not bank.restorable
        assert not bank.findings.is_cheap
    assert seen[0] == seen[1]


def test_a_restorable_wrapper_does_no_harm_in_this_process() -> None:
    bank = make_bank(DummyVecEnv([lambda: RestorableWrapper(make_cart_pole())]), needs_restore=True)
    assert bank.findings.is_cheap
    assert follow(bank, start(bank), [0, 1, 1]) == follow(bank, start(bank), [0, 1, 1])
    check_branchable(RestorableWrapper(make_cart_pole()))


def test_the_monitor_counts_on_from_the_restored_step_in_a_worker(make_workers: MakeWorkers) -> None:
    bank = make_bank(make_workers(lambda: RestorableWrapper(make_cart_pole(limit=6))), needs_restore=True)
    state = start(bank)
    for _ in range(4):
        state = bank.step({0: Order(0, state, capture=True)})[0].state
    for _ in range(3):
        last = bank.step({0: Order(1, bank.step({0: Order(1, state, capture=True)})[0].state)})[0]
        assert last.truncated
        assert (last.info["episode"]["l"], last.info["episode"]["r"]) == (6, 6)


def test_no_state_is_captured_at_an_episodes_end_or_without_an_order() -> None:
    bank = make_bank(DummyVecEnv([lambda: make_cart_pole(limit=2)]), needs_restore=True)
    bank.reset({0: 0})
    assert bank.step({0: Order(1)})[0].state is None
    assert bank.step({0: Order(1, capture=True)})[0].state is None


@pytest.mark.parametrize("in_workers", [False, True], ids=["here", "in workers"])
def test_branches_share_noise_only_with_common_random_numbers(make_workers: MakeWorkers, in_workers: bool) -> None:
    for common_random_numbers in (False, True):
        env = make_workers(lambda: RestorableWrapper(make_slippery())) if in_workers else DummyVecEnv([make_slippery])
        bank = make_bank(env, needs_restore=True, common_random_numbers=common_random_numbers)
        state = start(bank)
        paths = {str(follow(bank, state, [2, 1, 2, 1, 2, 1])) for _ in range(8)}
        assert (len(paths) == 1) is common_random_numbers


class TwoAxes(Camera):
    """Returns masks as an integer array with two axes."""

    def action_masks(self) -> Any:
        return np.array([[int(self.place > 15)], [1]])


@pytest.mark.parametrize("env_type", [Camera, TwoAxes])
@pytest.mark.parametrize("kind", ["here", "restorable", "plain"])
def test_action_masks_are_those_after_the_step(make_workers: MakeWorkers, kind: str, env_type: type[Camera]) -> None:
    def make() -> Env:
        return Monitor(env_type())

    env_makers: dict[str, Callable[[], VecEnv]] = {
        "here": lambda: DummyVecEnv([make]),
        "restorable": lambda: make_workers(lambda: RestorableWrapper(make())),
        "plain": lambda: make_workers(make),
    }
    bank = make_bank(env_makers[kind](), needs_restore=kind != "plain")
    twin = env_type()
    twin.reset(seed=0)
    masks = bank.reset({0: 0})[0][0].action_masks
    for _ in range(10):
        assert masks is not None
        assert masks.dtype == np.bool_
        assert masks.tolist() == np.array(twin.action_masks(), np.bool_).ravel().tolist()
        twin.step(0)
        masks = bank.step({0: Order(0)})[0].observed.action_masks


def test_an_environment_without_masks_has_none() -> None:
    bank = make_bank(DummyVecEnv([make_cart_pole]), needs_restore=True)
    assert bank.reset({0: 0})[0][0].action_masks is None


@pytest.mark.parametrize(
    ("make_env", "is_cheap"),
    [
        (make_cart_pole, True),
        (make_slippery, True),
        (Camera, False),
        (lambda: wrappers.FrameStackObservation(make_cart_pole(), 2), False),
    ],
    ids=["attributes", "an integer", "a copy", "a copied wrapper"],
)
def test_only_cheap_restores_make_sharing_an_environment_cheap(make_env: Callable[[], Env], is_cheap: bool) -> None:
    assert make_bank(DummyVecEnv([make_env]), needs_restore=True).findings.is_cheap is is_cheap


def test_mujoco_is_restored_cheaply_and_exactly_in_workers(make_workers: MakeWorkers) -> None:
    pytest.importorskip("mujoco")

    def make() -> Env:
        return Monitor(gym.make("Ant-v5"))

    local = DummyVecEnv([make] * 2)
    banks = [
        make_bank(env, needs_restore=True) for env in (local, make_workers(*[lambda: RestorableWrapper(make())] * 2))
    ]
    assert banks[0].findings.is_cheap
    assert run_orders(banks[0], local.action_space) == run_orders(banks[1], local.action_space)


def make_atari() -> Env:
    return Monitor(gym.make("ALE/Pong-v5", obs_type="ram", repeat_action_probability=0.0))


@pytest.mark.parametrize("in_workers", [False, True], ids=["here", "in workers"])
def test_atari_in_a_bank(make_workers: MakeWorkers, in_workers: bool) -> None:
    gym.register_envs(pytest.importorskip("ale_py"))
    env = make_workers(lambda: RestorableWrapper(make_atari())) if in_workers else DummyVecEnv([make_atari])
    bank = make_bank(env, needs_restore=True, common_random_numbers=True)
    assert not bank.findings.is_cheap
    state = start(bank)
    actions = [2, 3, 3, 0, 1]
    first = follow(bank, state, actions)
    assert follow(bank, state, actions[::-1]) != first
    assert follow(bank, state, actions) == first


def test_box2d_can_be_reset_and_stepped_where_it_cannot_be_restored() -> None:
    pytest.importorskip("Box2D")
    env = make_vec_env("LunarLander-v3", n_envs=2)
    obstacle = find_obstacle(env)
    assert obstacle is not None
    assert 'group_mode="episode"' in obstacle
    with pytest.raises(NotBranchableError, match="LunarLander cannot be restored"):
        make_bank(env, needs_restore=True)
    bank = make_bank(env, needs_restore=False)
    first = bank.reset({0: 3, 1: 3})
    assert simplify(first[0][0].observation) == simplify(first[1][0].observation)
    outcomes = bank.step({0: Order(2), 1: Order(2)})
    assert see(outcomes[0]) == see(outcomes[1])


def test_there_is_no_obstacle_where_groups_can_branch(make_workers: MakeWorkers) -> None:
    assert find_obstacle(make_vec_env("CartPole-v1")) is None
    assert find_obstacle(VecNormalize(VecFrameStack(DummyVecEnv([Camera]), 2), norm_obs=False)) is None
    assert find_obstacle(make_workers(lambda: RestorableWrapper(make_cart_pole()))) is None


@pytest.mark.parametrize(
    "make_env",
    [make_cart_pole, lambda: make_cart_pole().unwrapped, lambda: wrappers.TimeLimit(RestorableWrapper(Camera()), 9)],
    ids=["Monitor", "bare", "inside another"],
)
def test_workers_need_the_wrapper_outermost_to_be_restored(
    make_workers: MakeWorkers, make_env: Callable[[], Env]
) -> None:
    env = make_workers(make_env)
    with pytest.raises(NotBranchableError, match=r"vec_env_cls=SubprocVecEnv, wrapper_class=RestorableWrapper\)"):
        make_bank(env, needs_restore=True)
    assert "RestorableWrapper is the outermost wrapper" in str(find_obstacle(env))
    make_bank(env, needs_restore=False).reset({0: 0})


def test_a_workers_reason_reaches_the_parent(make_workers: MakeWorkers) -> None:
    env = make_workers(make_cart_pole_in_a_wrapper, lambda: RestorableWrapper(HoldsALock(make_cart_pole())))
    assert "HoldsALock cannot be copied" in str(find_obstacle(env))
    with pytest.raises(NotBranchableError, match=r"HoldsALock cannot be copied.*group_mode=\"episode\""):
        make_bank(env, needs_restore=True)


def make_cart_pole_in_a_wrapper() -> Env:
    return RestorableWrapper(make_cart_pole())


@pytest.mark.parametrize("needs_restore", [True, False])
def test_an_error_in_a_worker_is_raised_in_the_parent_and_other_workers_continue(
    make_workers: MakeWorkers, needs_restore: bool
) -> None:
    bank = make_bank(make_workers(*[lambda: RestorableWrapper(Fragile())] * 3), needs_restore=needs_restore)
    bank.reset(dict.fromkeys(range(3), 0))
    with pytest.raises(RuntimeError, match=r"Environment 1 failed in its worker process:\n(.|\n)*the wheels came off"):
        bank.step({0: Order(0), 1: Order(1), 2: Order(0)})
    outcomes = bank.step({i: Order(0, capture=needs_restore) for i in range(3)})
    assert [outcome.state is None for outcome in outcomes.values()] == [not needs_restore] * 3


@pytest.mark.parametrize(
    ("is_wrapped", "action"), [(False, 1), (False, 2), (True, 2)], ids=["plain raises", "plain exits", "wrapped exits"]
)
def test_a_dead_worker_raises_an_error_instead_of_blocking(
    make_workers: MakeWorkers, is_wrapped: bool, action: int
) -> None:
    workers = make_workers(*[lambda: RestorableWrapper(Fragile()) if is_wrapped else Fragile()] * 3)
    bank = make_bank(workers, needs_restore=is_wrapped)
    bank.reset(dict.fromkeys(range(3), 0))
    for _ in range(2):  # both when it dies and at the next call
        with pytest.raises(RuntimeError, match=r"Environment 1 failed.*\nThe process died with exit code [17]"):
            bank.step({0: Order(0), 1: Order(action), 2: Order(0)})
    assert bank.step({0: Order(0), 2: Order(0)})[2].reward == 1


def test_an_environment_in_this_process_raises_its_own_error() -> None:
    bank = make_bank(DummyVecEnv([Fragile]), needs_restore=True)
    bank.reset({0: 0})
    with pytest.raises(ZeroDivisionError, match="the wheels came off"):
        bank.step({0: Order(1)})


def test_a_step_that_a_reset_puts_in_place_is_the_one_taken() -> None:
    class Rebinding(Gauge):
        def reset(self, **arguments: Any) -> Any:
            self.n_resets = getattr(self, "n_resets", 0) + 1
            self.step = partial(self.step_in, self.n_resets)  # type: ignore[method-assign]
            return super().reset(**arguments)

        def step_in(self, n_resets: int, action: Any) -> Any:
            observation, _, *_, info = super().step(action)
            return observation, float(n_resets), True, False, info

    bank = make_bank(DummyVecEnv([Rebinding]), needs_restore=False)
    for n_resets in range(1, 5):
        bank.reset({0: 0})
        assert bank.step({0: Order(0)})[0].reward == n_resets


def test_a_bank_that_cannot_restore_refuses_to() -> None:
    bank = make_bank(DummyVecEnv([make_cart_pole]), needs_restore=False)
    bank.reset({0: 0})
    for order in (Order(0, restore=()), Order(0, capture=True)):
        with pytest.raises(NotBranchableError, match="needs_restore=True"):
            bank.step({0: order})


def normalize_images(env: VecEnv) -> VecNormalize:
    """Normalise images: a new VecNormalize returns them as numbers, which SB3 does not transpose."""
    normalized = VecNormalize(env, norm_obs_keys=["places"])
    normalized.norm_obs_keys = ["places", "image"]
    return normalized


class Shifted(VecNormalize):
    """Normalises in its own way."""

    def normalize_obs(self, obs: Any) -> Any:
        return obs


class Counting(VecMonitor):
    """Counts steps that groups do not take."""

    def step_wait(self) -> Any:
        self.n_steps = getattr(self, "n_steps", 0) + 1
        return super().step_wait()


class Named(VecNormalize):
    """Has a name, and a way of its own to do what groups leave to it."""

    def __init__(self, env: VecEnv, name: str) -> None:
        super().__init__(env, norm_obs_keys=["places"])
        self.name = name

    def normalize_reward(self, reward: Any) -> Any:
        return super().normalize_reward(reward)


REFUSED: dict[str, tuple[Callable[[VecEnv], VecEnv], str]] = {
    "unknown wrapper": (
        lambda env: VecExtractDictObs(env, "image"),
        r"bypasses VecExtract.*wrapper_class=\.\.\.",
    ),
    "own normalization": (
        lambda env: Shifted(env, norm_obs_keys=["places"]),
        r"bypasses Shifted\.normalize_obs\. .*wrapper_class",
    ),
    "own monitor": (Counting, r"bypasses Counting\.step_wait\."),
    "normalized twice": (lambda env: VecNormalize(VecNormalize(env)), "two VecNormalize"),
    "normalized, then stacked": (
        lambda env: VecFrameStack(VecNormalize(env, norm_obs_keys=["places"]), 2),
        r"VecNormalize\(VecFrameStack\(env, n_stack\)\)",
    ),
    "normalized images": (
        lambda env: VecTransposeImage(normalize_images(env)),
        "norm_obs_keys without the images",
    ),
}


@pytest.mark.parametrize(("wrap", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_wrappers_that_cannot_be_bypassed_are_refused_with_the_remedy(
    wrap: Callable[[VecEnv], VecEnv], remedy: str
) -> None:
    env = wrap(DummyVecEnv([lambda: Camera(with_dict=True)]))
    for needs_restore in (False, True):
        with pytest.raises(ValueError, match=remedy):
            make_bank(env, needs_restore=needs_restore)


def test_subclasses_that_replace_nothing_that_is_bypassed_are_accepted() -> None:
    env = Named(DummyVecEnv([lambda: Camera(with_dict=True)]), "mine")
    assert make_bank(env, needs_restore=False).reset({0: 0})
    env.normalize_obs = lambda obs: obs  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"bypasses Named\.normalize_obs\."):
        make_bank(env, needs_restore=False)


def test_normalising_an_image_observation_is_refused() -> None:
    normalized = VecNormalize(DummyVecEnv([Camera]), norm_obs=False)
    normalized.norm_obs = True
    with pytest.raises(ValueError, match="norm_obs=False to VecNormalize"):
        make_bank(VecTransposeImage(normalized), needs_restore=False)


def test_numbers_may_be_normalised_inside_the_transposition() -> None:
    env = VecTransposeImage(VecNormalize(DummyVecEnv([lambda: Camera(with_dict=True)]), norm_obs_keys=["places"]))
    observed, _ = make_bank(env, needs_restore=True).reset({0: 0})[0]
    assert observed.observation["image"].shape == (1, 40, 36)
    assert observed.observation["places"][0] >= 10, "observations are not normalised here"


class UnknownVecEnv(VecEnv):
    """Steps its environments in a way of its own."""

    def __init__(self) -> None:
        super().__init__(1, spaces.Discrete(2), spaces.Discrete(2))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None]

    def reset(self) -> Any: ...
    def step_async(self, actions: Any) -> None: ...
    def step_wait(self) -> Any: ...
    def close(self) -> None: ...
    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...
    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return []


def test_other_vectorised_environments_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"not of a UnknownVecEnv; build one of these with make_vec_env"):
        make_bank(UnknownVecEnv(), needs_restore=False)


@pytest.mark.parametrize("needs_restore", [True, False])
@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_a_monitor_that_refuses_resets_is_refused(kind: Any, needs_restore: bool) -> None:
    env = kind([lambda: RestorableWrapper(Monitor(make_cart_pole(), allow_early_resets=False))])
    try:
        with pytest.raises(ValueError, match=r"allow_early_resets=False\) refuses .* take Monitor\(env\)"):
            make_bank(env, needs_restore=needs_restore)
    finally:
        env.close()
