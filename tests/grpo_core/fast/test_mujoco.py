"""MuJoCo's tasks in batches against Gymnasium's environments, which step one simulator at a time."""

import multiprocessing
import pickle
import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from grpo import GRPO
from grpo_core import fast
from grpo_core.evaluation import make_policy, play_episodes
from grpo_core.fast.batched_collector import BatchedCollector
from grpo_core.fast.physics import BatchedSimulator, BatchStep, find_batched_simulator
from grpo_core.fast.step_threads import StepThreads, count_threads
from grpo_core.groups.collector import GroupCollector
from tests.grpo_core.fast.test_episodes import finish
from tests.models import PlainGRPO, make_model
from tests.support import PATIENCE_SECONDS, wait_until
from tests.walk import collect

TASKS = (
    *("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "HumanoidStandup-v5", "InvertedDoublePendulum-v5"),
    *("InvertedPendulum-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5", "Walker2d-v5"),
)
# Arguments that change what a task observes, earns, or where it ends; each is set to what is not its default.
ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("Ant-v5", {"include_cfrc_ext_in_observation": False, "exclude_current_positions_from_observation": False}),
    ("Ant-v5", {"contact_force_range": (-0.2, 0.5), "contact_cost_weight": 0.3, "healthy_z_range": (0.4, 0.7)}),
    ("Ant-v5", {"main_body": "aux_1", "forward_reward_weight": 2.0, "ctrl_cost_weight": 1, "healthy_reward": 0.3}),
    ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False, "ctrl_cost_weight": 0.7}),
    ("HalfCheetah-v5", {"xml_file": "hopper.xml", "frame_skip": 3, "forward_reward_weight": 3.0}),
    ("Hopper-v5", {"exclude_current_positions_from_observation": False, "healthy_state_range": (-1.0, 1.0)}),
    ("Hopper-v5", {"terminate_when_unhealthy": False, "healthy_z_range": (1.2, 1.26), "healthy_reward": 2}),
    ("Humanoid-v5", {"include_cinert_in_observation": False, "contact_cost_weight": 1e-3}),
    ("Humanoid-v5", {"include_cvel_in_observation": False, "include_cfrc_ext_in_observation": False}),
    ("Humanoid-v5", {"include_qfrc_actuator_in_observation": False, "contact_cost_range": (0.1, 0.2)}),
    ("HumanoidStandup-v5", {"impact_cost_range": (0.01, 0.02), "uph_cost_weight": 3, "ctrl_cost_weight": 2.0}),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 3.5, "frame_skip": 2}),
    ("Pusher-v5", {"reward_near_weight": 2.0, "reward_dist_weight": 3, "reward_control_weight": 0.7}),
    ("Reacher-v5", {"reward_dist_weight": 0.3, "reward_control_weight": np.float64(0.2)}),
    ("Swimmer-v5", {"exclude_current_positions_from_observation": False, "frame_skip": 2}),
    ("Walker2d-v5", {"healthy_angle_range": (-0.1, 0.1), "terminate_when_unhealthy": False}),
]
N_ENVS = 7
# Enough for limbs to reach the ground, and for what falls to have fallen.
N_STEPS = 60
Env = gym.Env[Any, Any]


def make_env(env_id: str, seed: int = 0, **arguments: Any) -> Monitor:
    env = Monitor(gym.make(env_id, **arguments))
    env.reset(seed=seed)
    return env


def find(env: Env, n_threads: int = 1) -> BatchedSimulator:
    simulator = find_batched_simulator(env, StepThreads(n_threads))
    assert simulator is not None
    return simulator


def assert_same_step(step: BatchStep, real: list[Any]) -> None:
    """Compare bit for bit with what the environments returned, but for the seconds that an episode took."""
    observations, rewards, terminated, truncated, infos = zip(*real, strict=True)
    assert step.observations.dtype == np.float64
    assert step.observations.tobytes() == np.array(observations).tobytes()
    assert step.rewards.tobytes() == np.array(rewards, np.float64).tobytes()
    assert step.terminated.tolist() == list(terminated)
    assert step.truncated.tolist() == list(truncated)
    for info, expected in zip(step.infos, infos, strict=True):
        assert info.keys() == expected.keys()
        for key, value in expected.items():
            if key == "episode":
                assert (info[key]["r"], info[key]["l"]) == (value["r"], value["l"])
            else:
                assert np.array_equal(info[key], value), key


def assert_steps_alike(env_id: str, n_threads: int, prepare: Callable[[Any], None], **arguments: Any) -> None:
    """Step several environments, and all of their states at once, until each has ended or ``N_STEPS`` are taken."""
    envs = [make_env(env_id, seed, **arguments) for seed in range(N_ENVS)]
    for env in envs:
        prepare(env.unwrapped)
    simulator = find(envs[0], n_threads)
    capture = BatchedSimulator([envs[0].unwrapped], simulator._dynamics, None, None)
    states = []
    for env in envs:
        capture._dynamics._env = env.unwrapped
        states.append(capture.capture())
    capture._dynamics._env = envs[0].unwrapped
    envs[0].action_space.seed(0)
    live, rows = envs, np.array(states)
    for _ in range(N_STEPS):
        actions = np.array([envs[0].action_space.sample() for _ in live])
        step = simulator.step(rows, actions)
        assert_same_step(step, [env.step(action) for env, action in zip(live, actions, strict=True)])
        goes_on = ~(step.terminated | step.truncated)
        live, rows = [env for env, is_live in zip(live, goes_on, strict=True) if is_live], step.states[goes_on]
        if not live:
            break


def change_nothing(core: Any) -> None:
    pass


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("env_id", TASKS)
def test_every_task_comes_out_exactly_as_its_environment_plays_it(env_id: str, n_threads: int) -> None:
    assert_steps_alike(env_id, n_threads, change_nothing)


@pytest.mark.parametrize(("env_id", "arguments"), ARGUMENTS, ids=str)
def test_the_arguments_of_the_environments_count(env_id: str, arguments: dict[str, Any]) -> None:
    assert_steps_alike(env_id, 1, change_nothing, **arguments)


def test_what_is_set_in_the_model_counts_before_and_after_it_was_found() -> None:
    def lighten(core: Any) -> None:
        core.model.opt.gravity[:] = (0.0, 0.0, -3.0)
        core.model.body_mass[:] *= 0.5
        core.model.opt.timestep = 0.003

    assert_steps_alike("Walker2d-v5", 1, lighten)
    env = make_env("Walker2d-v5")
    simulator = find(env)
    state, action = simulator.capture()[None], env.action_space.sample()
    lighten(env.unwrapped)
    assert_same_step(simulator.step(state, action[None]), [env.step(action)])


def test_forces_that_a_user_applies_are_part_of_the_state() -> None:
    env, untouched = make_env("Hopper-v5"), make_env("Hopper-v5")
    simulator, action = find(env), np.zeros(3, np.float32)
    core: Any = env.unwrapped
    core.data.xfrc_applied[1] = (40.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    step = simulator.step(simulator.capture()[None], action[None])
    assert_same_step(step, [env.step(action)])
    assert step.observations.tobytes() != untouched.step(action)[0].tobytes()


def test_a_model_that_was_replaced_is_stepped() -> None:
    env = make_env("HalfCheetah-v5")
    core: Any = env.unwrapped
    simulator = find(env)
    action = env.action_space.sample()
    simulator.step(simulator.capture()[None], action[None])
    core.model, core.data = core._initialize_simulation()
    core.model.opt.gravity[:] = 0.0
    env.reset(seed=1)
    assert_same_step(simulator.step(simulator.capture()[None], action[None]), [env.step(action)])


def test_looking_for_it_leaves_the_environment_and_its_generators_alone() -> None:
    for env_id in ("Pusher-v5", "Ant-v5"):
        env = make_env(env_id)
        env.step(env.action_space.sample())
        core: Any = env.unwrapped
        size = mujoco.mj_stateSize(core.model, mujoco.mjtState.mjSTATE_INTEGRATION.value)
        states = np.empty((2, size))
        generators = env.np_random.bit_generator.state, env.action_space.np_random.bit_generator.state
        arrays = {name: value.copy() for name, value in vars(core).items() if isinstance(value, np.ndarray)}
        places = core.data.xpos.copy()
        mujoco.mj_getState(core.model, core.data, states[0], mujoco.mjtState.mjSTATE_INTEGRATION.value)
        find(env)
        mujoco.mj_getState(core.model, core.data, states[1], mujoco.mjtState.mjSTATE_INTEGRATION.value)
        assert states[0].tobytes() == states[1].tobytes()
        assert np.array_equal(core.data.xpos, places)
        assert generators == (env.np_random.bit_generator.state, env.action_space.np_random.bit_generator.state)
        for name, value in arrays.items():
            assert np.array_equal(getattr(core, name), value), name


class HeavyHopper(HopperEnv):
    pass


def replace_step(env: Any) -> Any:
    original = env.step
    env.step = lambda action: original(0.5 * action)
    return env


@pytest.mark.parametrize(
    "make",
    [
        HeavyHopper,
        lambda: replace_step(HopperEnv()),
        lambda: gym.wrappers.ClipAction(HopperEnv()),
        lambda: gym.wrappers.NormalizeObservation(HopperEnv()),
    ],
)
def test_anything_that_may_behave_otherwise_is_left_alone(make: Callable[[], Env]) -> None:
    assert find_batched_simulator(HopperEnv()) is not None
    assert find_batched_simulator(make()) is None


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("_get_obs", lambda value: np.nextafter(value, np.inf)),
        ("control_cost", lambda value: np.nextafter(value, np.float32(9.0))),
    ],
)
def test_a_class_whose_steps_come_out_differently_is_left_alone(
    name: str, changed: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(AntEnv, name)
    monkeypatch.setattr(AntEnv, name, lambda self, *arguments: changed(original(self, *arguments)))
    assert find_batched_simulator(AntEnv()) is None


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5", "Reacher-v5"])
def test_a_seed_gives_the_same_rollouts_with_and_without_the_fast_rooms(env_id: str) -> None:
    # Steps of size 1e-30 leave every weight as it is; statistics of observations and rewards do move.
    arguments: dict[str, Any] = {"n_steps": 64, "horizon": 16, "seed": 3, "learning_rate": 1e-30, "n_epochs": 1}
    models = [kind("MlpPolicy", VecNormalize(make_vec_env(env_id, 2)), **arguments) for kind in (GRPO, PlainGRPO)]
    assert [type(model._collector) for model in models] == [BatchedCollector, GroupCollector]
    models[0].n_simulator_threads = 3
    seen = [collect(model, 3).rollouts for model in models]
    for batched, plain in zip(*seen, strict=True):
        for name in ("observations", "next_observations", "actions", "log_probs", "rewards", "terminated"):
            np.testing.assert_array_equal(getattr(batched, name), getattr(plain, name), err_msg=name)
    assert models[0].rng.bit_generator.state == models[1].rng.bit_generator.state


def test_episodes_side_by_side_are_those_that_are_played_one_after_the_other() -> None:
    env, actor = gym.make("Hopper-v5"), make_model("Hopper-v5", seed=1).make_numpy_actor()
    expected = play_episodes(env, make_policy(actor, True, np.random.default_rng(0)), 4, 7, 1000)
    episodes, _ = finish(fast.step_episodes(env, find(env), actor, range(7, 11), 1000))
    assert [episode[1:] for episode in episodes] == [episode[1:] for episode in expected]
    assert [episode.reward for episode in episodes] == pytest.approx([episode.reward for episode in expected], rel=1e-4)


def test_a_copy_of_a_model_that_has_threads_goes_on_learning() -> None:
    model = make_model("InvertedPendulum-v5")
    model.n_simulator_threads = 2
    model.learn(64)
    copied = pickle.loads(pickle.dumps(model)).learn(64, reset_num_timesteps=False)
    assert copied.num_timesteps > model.num_timesteps
    assert copied.n_simulator_threads == 2


def list_step_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("grpo-step")]


def count_rows_by_thread(threads: StepThreads) -> set[int]:
    """Let every thread take a row before any may take a second."""
    barrier, seen = threading.Barrier(threads.n_threads), set()

    def work(rows: Any) -> None:
        for _ in rows:
            barrier.wait(PATIENCE_SECONDS)
            seen.add(threading.get_ident())

    threads.begin(work, 2 * threads.n_threads)()
    return seen


def test_threads_share_the_rows_and_end_with_their_owner() -> None:
    others = set(list_step_threads())  # those of models that are gone may end meanwhile
    threads = StepThreads(3)
    assert len(count_rows_by_thread(threads)) == 3
    own = set(list_step_threads()) - others
    assert len(own) == 2
    del threads
    wait_until(lambda: not own & set(list_step_threads()))


def test_a_row_that_fails_is_heard_of_whichever_thread_took_it() -> None:
    here = threading.get_ident()

    def work(rows: Any) -> None:
        for _ in rows:
            if threading.get_ident() != here:
                other_failed.set()
                raise ZeroDivisionError
            assert other_failed.wait(PATIENCE_SECONDS)

    other_failed = threading.Event()
    threads = StepThreads(2)
    run = threads.begin(work, 4)
    with pytest.raises(ZeroDivisionError):
        run()


def test_a_forked_process_starts_threads_of_its_own() -> None:
    threads = StepThreads(2)
    assert len(count_rows_by_thread(threads)) == 2
    child = multiprocessing.get_context("fork").Process(target=count_rows_by_thread, args=(threads,))
    child.start()
    child.join(PATIENCE_SECONDS)
    assert child.exitcode == 0


def test_no_more_threads_than_torch_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_threads() == 1  # conftest.py tells it
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 5, 6}, raising=False)
    assert count_threads() == 3
