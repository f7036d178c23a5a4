import copy
import pickle
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.wrappers import ClipAction, OrderEnforcing, RescaleAction, TimeLimit
from stable_baselines3.common.monitor import Monitor

from grpo_core.fast import physics as batched_physics
from grpo_core.fast.physics import BatchedSimulator, BatchStep, find_batched_simulator

ENV_IDS = [
    "CartPole-v0",
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
]
# Half-widths of the box that states are drawn from, reaching beyond what episodes get to; and the bounds in it.
STATE_BOXES = {
    "CartPole-v1": [3.0, 5.0, 0.3, 5.0],
    "Acrobot-v1": [2 * np.pi, 2 * np.pi, 4 * np.pi, 9 * np.pi],
    "Pendulum-v1": [30.0, 8.0],
    "MountainCar-v0": [1.2, 0.07],
    "MountainCarContinuous-v0": [1.2, 0.07],
}
Env = gym.Env[Any, Any]

# Gymnasium says that its v0 is out of date.
pytestmark = pytest.mark.filterwarnings("ignore:.*CartPole-v0 is out of date:DeprecationWarning")


def make_env(env_id: str, seed: int = 0, **arguments: Any) -> Monitor:
    env = Monitor(gym.make(env_id, **arguments))
    env.reset(seed=seed)
    return env


def find(env: Env) -> BatchedSimulator:
    simulator = find_batched_simulator(env)
    assert simulator is not None
    return simulator


def draw_actions(env: Env, n_actions: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Draw actions; those of a Box also beyond its bounds, on them and zero."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=n_actions)
    assert isinstance(space, spaces.Box)
    actions = rng.uniform(1.5 * space.low, 1.5 * space.high, (n_actions, 1)).astype(np.float32)
    special = np.array([space.low[0], space.high[0], 0.0, -0.0], np.float32)
    return np.where(rng.random((n_actions, 1)) < 0.2, rng.choice(special, (n_actions, 1)), actions)


def swing(env: Env, observations: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Push into the direction of the last velocity, which gets a car up its hill and Acrobot up to its line."""
    is_right = np.where(
        rng.random(len(observations)) < 0.1, rng.random(len(observations)) < 0.5, observations[:, -1] > 0
    )
    if isinstance(env.action_space, spaces.Discrete):
        return np.where(is_right, int(env.action_space.n) - 1, 0)
    return np.where(is_right, 1.0, -1.0).astype(np.float32)[:, None]


def split_randomly(rows: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
    rest = iter(rows)
    chunks = iter(lambda: list(islice(rest, int(rng.integers(1, 18)))), [])
    return list(chunks)


def assert_same_step(step: BatchStep, real: Sequence[tuple[Any, ...]]) -> None:
    """Compare bit for bit with what the environments returned, but for the seconds that an episode took."""
    observations, rewards, terminated, truncated, infos = zip(*real, strict=True)
    assert step.observations.tobytes() == np.array(observations).tobytes()
    assert step.observations.dtype == np.array(observations).dtype
    assert step.rewards.tobytes() == np.array(rewards, np.float64).tobytes()
    assert step.terminated.dtype == step.truncated.dtype == np.bool_
    assert step.terminated.tolist() == list(terminated)
    assert step.truncated.tolist() == list(truncated)
    assert [strip_time(info) for info in step.infos] == [strip_time(info) for info in infos]


def strip_time(info: dict[str, Any]) -> dict[str, Any]:
    return {"r": info["episode"]["r"], "l": info["episode"]["l"], "keys": set(info["episode"])} if info else {}


@pytest.mark.parametrize("policy", ["random", "swing"])
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_whole_episodes_come_out_exactly_as_the_environments_play_them(env_id: str, policy: str) -> None:
    rng = np.random.default_rng(1)
    envs = [make_env(env_id, seed) for seed in range(20)]
    simulator = find(make_env(env_id))
    states = np.stack([find(env).capture() for env in envs])
    observations = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    live = list(range(len(envs)))
    while live:
        still_live = []
        for chunk in split_randomly(live, rng):
            is_random = policy == "random"
            actions = draw_actions(envs[0], len(chunk), rng) if is_random else swing(envs[0], observations[chunk], rng)
            step = simulator.step(states[chunk], actions)
            assert_same_step(step, [envs[i].step(action) for i, action in zip(chunk, actions, strict=True)])
            states[chunk], observations[chunk] = step.states, step.observations
            is_over = step.terminated | step.truncated
            still_live += [i for i, over in zip(chunk, is_over, strict=True) if not over]
        live = still_live
    final_states = np.stack([find(env).capture() for env in envs])
    assert states.tobytes() == final_states.tobytes()


@pytest.mark.parametrize(("env_id", "ends"), [("CartPole-v1", 20), ("MountainCar-v0", 20), ("Acrobot-v1", 10)])
def test_the_episodes_compared_above_reach_their_goals(env_id: str, ends: int) -> None:
    rng = np.random.default_rng(0)
    n_terminated = 0
    env = make_env(env_id)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        is_over = False
        while not is_over:
            observation, _, terminated, truncated, _ = env.step(swing(env, observation[None], rng)[0])
            is_over = terminated or truncated
            n_terminated += terminated
    assert n_terminated >= ends


def draw_states(env_id: str, n_states: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    box = np.array(STATE_BOXES[env_id])
    states = rng.uniform(-box, box, (n_states, len(box)))
    states = np.where(rng.random(states.shape) < 0.05, rng.choice([-1.0, 0.0, 1.0], states.shape) * box, states)
    return states


def assert_drawn_states_step_alike(
    env_id: str, batch_size: int, n_states: int, prepare: Callable[[Any], None] = lambda core: None
) -> None:
    rng = np.random.default_rng(batch_size)
    env = make_env(env_id)
    core: Any = env.unwrapped
    prepare(core)
    simulator = find(env)
    for first in range(0, n_states, batch_size):
        actions = draw_actions(env, batch_size, rng)
        rows, real = [], []
        for k, state in enumerate(draw_states(env_id, batch_size, rng)):
            # MountainCarContinuous rounds its state in every step, and a reset does not.
            is_rounded = env_id == "MountainCarContinuous-v0" and (first + k) % 3 > 0
            core.state = state.astype(np.float32) if is_rounded else state
            rows.append(simulator.capture())
            real.append((*core.step(actions[k])[:3], False, {}))
            core.steps_beyond_terminated = None
        step = simulator.step(np.stack(rows), actions)
        assert_same_step(step._replace(infos=[{}] * batch_size), real)
        assert simulator.capture()[:-4].tobytes() == step.states[-1, :-4].tobytes()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8, 13, 17, 64])
@pytest.mark.parametrize("env_id", STATE_BOXES)
def test_any_state_steps_exactly_in_batches_of_any_size(env_id: str, batch_size: int) -> None:
    assert_drawn_states_step_alike(env_id, batch_size, 256)


@pytest.mark.parametrize(
    ("env_id", "parameters"),
    [
        ("CartPole-v1", {"gravity": 3.7, "masspole": 0.3, "total_mass": 1.4, "force_mag": 7, "x_threshold": 1.1}),
        ("CartPole-v1", {"length": 1.3, "polemass_length": 0.21, "tau": 0.05, "theta_threshold_radians": 0.05}),
        ("CartPole-v1", {"kinematics_integrator": "semi-implicit euler", "_sutton_barto_reward": True}),
        ("Acrobot-v1", {"book_or_nips": "nips", "dt": 0.1, "LINK_MASS_1": 1.3, "LINK_MASS_2": 0.7, "LINK_MOI": 0.9}),
        ("Acrobot-v1", {"LINK_LENGTH_1": 1.2, "LINK_COM_POS_1": 0.4, "LINK_COM_POS_2": 0.6, "MAX_VEL_1": 2.0}),
        ("Acrobot-v1", {"AVAIL_TORQUE": [-2.0, 0.5, 3], "MAX_VEL_2": 40.0, "dt": 0.5}),
        ("Pendulum-v1", {"g": 9.81, "m": 1.2, "l": 0.8, "dt": 0.1, "max_torque": 1.3, "max_speed": 5}),
        ("MountainCar-v0", {"force": 0.003, "gravity": 0.002, "goal_position": 0.1, "goal_velocity": 0.01}),
        ("MountainCar-v0", {"max_speed": 0.05, "min_position": -1.1, "max_position": 0.4}),
        ("MountainCarContinuous-v0", {"power": 0.01, "goal_position": 0.1, "goal_velocity": 0.01, "max_speed": 0.06}),
        ("MountainCarContinuous-v0", {"min_position": -1.1, "min_action": -0.7, "max_action": 0.3}),
    ],
)
def test_parameters_set_on_the_environment_count_before_and_after_it_was_found(
    env_id: str, parameters: dict[str, Any]
) -> None:
    def prepare(core: Any) -> None:
        for name, value in parameters.items():
            assert hasattr(core, name)
            setattr(core, name, value)

    assert_drawn_states_step_alike(env_id, 16, 512, prepare)

    env = make_env(env_id)
    simulator = find(env)
    states, actions = simulator.capture()[None], draw_actions(env, 1, np.random.default_rng(0))
    prepare(env.unwrapped)
    assert_same_step(simulator.step(states, actions), [env.step(actions[0])])


def test_the_arguments_of_the_environments_count() -> None:
    assert_arguments_count("CartPole-v1", sutton_barto_reward=True)
    assert_arguments_count("Pendulum-v1", g=9.81)
    assert_arguments_count("MountainCar-v0", goal_velocity=0.03)
    assert_arguments_count("Acrobot-v1", max_episode_steps=3)


def assert_arguments_count(env_id: str, **arguments: Any) -> None:
    env = make_env(env_id, **arguments)
    simulator = find(make_env(env_id, **arguments))
    state, rng = find(env).capture()[None], np.random.default_rng(0)
    is_over = False
    while not is_over:
        actions = draw_actions(env, 1, rng)
        step = simulator.step(state, actions)
        assert_same_step(step, [env.step(actions[0])])
        state, is_over = step.states, bool(step.terminated[0] or step.truncated[0])


def test_fresh_and_rounded_states_of_the_continuous_car_share_a_batch() -> None:
    env, later = make_env("MountainCarContinuous-v0", 1), make_env("MountainCarContinuous-v0", 2)
    actions = np.array([[0.3], [-0.7]], np.float32)
    later.step(actions[0])
    states = np.stack([find(env).capture(), find(later).capture()])
    assert states[:, 2].tolist() == [0.0, 1.0]
    assert_same_step(
        find(make_env("MountainCarContinuous-v0")).step(states, actions), [env.step(actions[0]), later.step(actions[1])]
    )


def test_branches_of_one_state_do_not_touch_it() -> None:
    env = make_env("Acrobot-v1")
    simulator = find(env)
    state = simulator.capture()
    states = np.stack([state] * 3)
    step = simulator.step(states, np.array([0, 1, 2]))
    assert np.array_equal(states, np.stack([state] * 3))
    assert not np.shares_memory(step.states, states)
    assert len({row.tobytes() for row in step.states}) == 3
    step.infos[0]["mine"] = 1
    assert step.infos[1] == {}


def test_a_state_captured_on_the_way_holds_the_running_episode() -> None:
    env = make_env("Pendulum-v1")
    simulator = find(env)
    states, rng = simulator.capture()[None], np.random.default_rng(0)
    for _ in range(150):
        actions = draw_actions(env, 1, rng)
        env.step(actions[0])
        states = simulator.step(states, actions).states
    assert simulator.capture().tobytes() == states[0].tobytes()


def test_monitor_keeps_the_books_that_branches_leave_to_go_on() -> None:
    env, twin = make_env("CartPole-v1"), make_env("CartPole-v1")
    simulator = find(env)
    states = simulator.capture()[None]
    is_over = False
    while not is_over:
        step = simulator.step(states, np.array([1]))
        is_over, states = bool(step.terminated[0]), step.states
        twin.step(1)
    assert env.get_total_steps() == twin.get_total_steps() > 5
    assert env.get_episode_rewards() == twin.get_episode_rewards()
    assert env.get_episode_lengths() == twin.get_episode_lengths()
    assert env.get_episode_times() == pytest.approx([step.infos[0]["episode"]["t"]], abs=1e-6)
    assert (env.rewards, env.needs_reset) == ([], False)


def test_returns_are_summed_as_later_pythons_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.random.default_rng(1).integers(-9, 9, 1000)
    # What sum() does from Python 3.12 on: Neumaier's summation.
    total = compensation = 0.0
    for reward in rewards.tolist():
        new_total = total + reward
        small, large = sorted((total, reward), key=abs)
        compensation += (large - new_total) + small
        total = new_total
    assert total + compensation != total

    monkeypatch.setattr(batched_physics, "_SUM_COMPENSATES", True)
    env = Monitor(PendulumEnv())
    env.reset()
    env.rewards = rewards.tolist()
    assert find(env).capture()[-3:].tolist() == [1000, total, compensation]


@pytest.mark.parametrize("wrap", [lambda env: env, OrderEnforcing, lambda env: TimeLimit(env, 4), Monitor])
def test_wrappers_are_optional(wrap: Callable[[Env], Env]) -> None:
    env, rng = wrap(PendulumEnv()), np.random.default_rng(0)
    simulator = find(env)
    env.reset(seed=0)
    states = simulator.capture()[None]
    for _ in range(4):
        actions = draw_actions(env, 1, rng)
        step = simulator.step(states, actions)
        assert_same_step(step, [env.step(actions[0])])
        states = step.states


def test_looking_for_it_leaves_the_environment_and_its_generators_alone() -> None:
    for env_id in STATE_BOXES:
        env = make_env(env_id)
        env.action_space.seed(5)
        env.step(env.action_space.sample())
        before = pickle.dumps([vars(env.unwrapped), vars(env), env.np_random.bit_generator.state])
        generators = (env.np_random, env.action_space.np_random)
        states = copy.deepcopy([generator.bit_generator.state for generator in generators])
        assert find_batched_simulator(env) is not None
        assert generators == (env.np_random, env.action_space.np_random)
        assert states == [generator.bit_generator.state for generator in generators]
        assert before == pickle.dumps([vars(env.unwrapped), vars(env), env.np_random.bit_generator.state])


class HeavyCart(CartPoleEnv):
    pass


class LoudMonitor(Monitor):
    pass


def set_attribute(env: Env, name: str, value: Any) -> Env:
    setattr(env, name, value)
    return env


def set_core_attribute(env: Env, name: str, value: Any) -> Env:
    setattr(env.unwrapped, name, value)
    return env


@pytest.mark.parametrize(
    "make",
    [
        lambda: gym.make("FrozenLake-v1"),
        HeavyCart,
        lambda: LoudMonitor(CartPoleEnv()),
        lambda: CartPoleEnv(render_mode="human"),
        lambda: RescaleAction(PendulumEnv(), np.float32(-1), np.float32(1)),
        lambda: ClipAction(PendulumEnv()),
        lambda: Monitor(CartPoleEnv(), allow_early_resets=False),
        lambda: Monitor(CartPoleEnv(), info_keywords=("x",)),
        lambda: Monitor(CartPoleEnv(), reset_keywords=("options",)),
        lambda: Monitor(Monitor(CartPoleEnv())),
        lambda: TimeLimit(TimeLimit(CartPoleEnv(), 5), 9),
        lambda: TimeLimit(Monitor(CartPoleEnv()), 5),
        lambda: set_attribute(gym.make("CartPole-v1"), "step", CartPoleEnv().step),
        lambda: set_core_attribute(gym.make("CartPole-v1"), "step", CartPoleEnv().step),
        lambda: set_core_attribute(gym.make("Acrobot-v1"), "_terminal", lambda: False),
        lambda: set_core_attribute(gym.make("Acrobot-v1"), "torque_noise_max", 0.1),
        lambda: set_core_attribute(gym.make("CartPole-v1"), "action_masks", lambda: [True, True]),
        lambda: set_attribute(gym.make("CartPole-v1"), "capture_state", lambda: 0),
        lambda: set_attribute(CartPoleEnv(), "observation_space", spaces.Box(-9, 9, (4,), np.float64)),
    ],
)
def test_anything_that_may_behave_otherwise_is_left_alone(make: Callable[[], Env]) -> None:
    assert find_batched_simulator(make()) is None


def test_a_monitor_that_writes_a_file_is_left_alone(tmp_path: Path) -> None:
    env = Monitor(CartPoleEnv(), str(tmp_path / "log"))
    assert find_batched_simulator(env) is None
    env.close()


def test_a_class_whose_steps_come_out_differently_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = CartPoleEnv.step

    def step(self: CartPoleEnv, action: Any) -> Any:
        result = original(self, action)
        assert self.state is not None
        self.state[3] = np.nextafter(self.state[3], np.inf)  # the last digit of one velocity
        return result

    assert find_batched_simulator(CartPoleEnv()) is not None
    monkeypatch.setattr(CartPoleEnv, "step", step)
    assert find_batched_simulator(CartPoleEnv()) is None


def test_a_machine_whose_arrays_round_otherwise_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    cos: Callable[..., Any] = np.cos

    def round_otherwise(angles: Any) -> Any:
        """Differ in the last digit, in arrays only and only at angles that CartPole does not reach."""
        return (
            np.where(np.abs(angles) > 1.0, np.nextafter(cos(angles), 2.0), cos(angles))
            if np.ndim(angles)
            else cos(angles)
        )

    monkeypatch.setattr(np, "cos", round_otherwise)
    assert find_batched_simulator(CartPoleEnv()) is None
