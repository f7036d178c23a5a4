"""Banks of simulators: in this process and in workers, under every wrapper, with and without restoring."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from grpo_core.banks.bank import SimulatorBank
from grpo_core.banks.choose_bank import make_bank
from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.banks.single_env import Order
from grpo_core.restoring.errors import NotBranchableError
from tests.grpo_core.banks.support import (
    Camera,
    Env,
    MakeWorkers,
    follow,
    make_cart_pole,
    make_slippery,
    see,
    simplify,
    start,
)

# Forking starts a worker fast, and this process holds no lock that a worker needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Slate(Camera):
    """Returns the same array every time, and draws over it at every step."""

    def show(self) -> Any:
        super().show()
        return {"image": self.picture, "places": [self.place, 1]}


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


def test_a_bank_that_cannot_restore_refuses_to() -> None:
    bank = make_bank(DummyVecEnv([make_cart_pole]), needs_restore=False)
    bank.reset({0: 0})
    for order in (Order(0, restore=()), Order(0, capture=True)):
        with pytest.raises(NotBranchableError, match="needs_restore=True"):
            bank.step({0: order})
