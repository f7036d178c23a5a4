"""Small environments that hold MuJoCo as gymnasium-robotics, dm_control and Meta-World do."""

import pickle
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import EzPickle

from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.native import parts
from grpo_core.restoring.simulator import Simulator, check_branchable

mujoco: Any = pytest.importorskip("mujoco")

_XML = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <geom type="plane" size="5 5 .1"/>
    <body name="target" pos="1 0 0"><site name="target" size=".1"/></body>
    <body name="ball" pos="0 0 .5"><freejoint/><geom size=".1" friction="1 .1 .1"/></body>
    <body name="pole" pos="0 1 1">
      <joint name="hinge" axis="0 1 0" damping=".1"/><geom size=".05 .3" type="capsule"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge"/></actuator>
</mujoco>
"""
_TARGET = 1


class World:
    """An object inside an environment that holds the engine, and arrays that show a part of its memory."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(_XML)
        self.data = mujoco.MjData(self.model)
        self.positions = {"ball": self.data.qpos[:3]}


class Arena(gym.Env[Any, Any]):
    """Rewards the ball's way since the last step; ``edit`` may change the model at a reset."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (9,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.worlds = [World()]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        world = self.worlds[0]
        mujoco.mj_resetData(world.model, world.data)
        self.edit(world.model)
        world.data.qvel[:] = self.np_random.normal(size=world.model.nv)
        mujoco.mj_forward(world.model, world.data)
        return self._observe(), {}

    def edit(self, model: Any) -> None:
        """Change the model at a reset."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        world = self.worlds[0]
        # One simulator step late, as in the forward reward of Gymnasium's Ant.
        before = float(world.data.xpos[2, 0])
        world.data.ctrl[:] = action
        self.simulate(world.model, world.data)
        return self._observe(), float(world.data.xpos[2, 0]) - before, False, False, {}

    def simulate(self, model: Any, data: Any) -> None:
        mujoco.mj_step(model, data)

    def _observe(self) -> Any:
        data = self.worlds[0].data
        return np.concatenate([self.worlds[0].positions["ball"], data.qvel[:3], data.xpos[_TARGET]])


class EditingArena(Arena):
    """Moves a body, turns the friction of a geom and the gravity at every reset."""

    def edit(self, model: Any) -> None:
        model.body_pos[_TARGET] = self.np_random.normal(size=3)
        model.geom_friction[1, 0] = self.np_random.uniform(0.1, 1)
        model.opt.gravity[2] = -self.np_random.uniform(5, 10)
        model.opt.timestep = self.np_random.uniform(0.005, 0.02)


class LateArena(Arena):
    """Has no engine before its first reset."""

    def __init__(self) -> None:
        self.worlds = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.worlds = self.worlds or [World()]
        return super().reset(**kwargs)


class Pole(gym.Env[Any, Any], EzPickle):
    """A copy is made anew from the arguments: its angle is lost."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(self, length: float) -> None:
        EzPickle.__init__(self, length)
        self.angle = length

    def turn(self, by: float) -> float:
        self.angle += by + self.np_random.normal()
        return self.angle


class Holder(gym.Env[Any, Any]):
    """Plays in another environment, as PointMaze does."""

    action_space = Pole.action_space
    observation_space = Pole.observation_space

    def __init__(self) -> None:
        self.inner = gym.wrappers.OrderEnforcing(Pole(1.0))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.inner.unwrapped.np_random = np.random.default_rng(seed)
        return np.array([1.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        angle = self.inner.get_wrapper_attr("turn")(float(action))
        return np.array([angle]), angle, False, False, {}


@pytest.mark.parametrize("make", [Arena, EditingArena, LateArena, Holder])
def test_restores_exactly(make: type[gym.Env[Any, Any]]) -> None:
    check_branchable(make())


def test_leaves_model_and_views_where_they_are() -> None:
    env = Arena()
    env.reset(seed=0)
    world = env.worlds[0]
    simulator = Simulator(env)
    state = simulator.capture()
    env.step(np.ones(1))
    simulator.restore(state)
    assert env.worlds[0].model is world.model
    assert np.shares_memory(env.worlds[0].positions["ball"], world.data.qpos)


def test_state_holds_no_model_that_nobody_edited() -> None:
    # The model's arrays alone are larger.
    env = Arena()
    env.reset(seed=0)
    plain = len(pickle.dumps(Simulator(env).capture()))
    editing = EditingArena()
    editing.reset(seed=0)
    simulator = Simulator(editing)
    simulator.capture()
    editing.reset()
    assert plain + 500 < len(pickle.dumps(simulator.capture()))


def test_puts_edits_of_the_model_back() -> None:
    env = EditingArena()
    env.reset(seed=0)
    simulator = Simulator(env)
    simulator.capture()
    env.reset(seed=1)
    model = env.worlds[0].model
    position, timestep = model.body_pos[_TARGET].copy(), model.opt.timestep
    state = simulator.capture()
    env.reset(seed=2)
    assert not np.array_equal(model.body_pos[_TARGET], position)
    simulator.restore(state)
    assert np.array_equal(model.body_pos[_TARGET], position)
    assert model.opt.timestep == timestep


def test_finds_engine_built_anew() -> None:
    env = Arena()
    env.reset(seed=0)
    simulator = Simulator(env)
    simulator.capture()
    env.worlds = [World()]
    env.reset(seed=1)
    state, was = simulator.capture(), env.worlds[0].data.qpos.copy()
    env.step(np.ones(1))
    simulator.restore(state)
    assert np.array_equal(env.worlds[0].data.qpos, was)


def test_restores_the_engine_that_a_state_was_taken_from() -> None:
    env = Arena()
    env.reset(seed=0)
    simulator = Simulator(env)
    state = simulator.capture()
    env.worlds[0].model = mujoco.MjModel.from_xml_string(_XML)
    env.worlds[0].data = mujoco.MjData(env.worlds[0].model)
    env.reset(seed=1)
    simulator.restore(state)
    # The state's own engine is back in its place.
    assert env.worlds[0].data.model is env.worlds[0].model


class _Pointer:
    def __init__(self, struct: Any) -> None:
        self.ptr = struct


_Pointer.__module__ = "dm_control.mujoco.wrapper.core"


class _Physics:
    def __init__(self, world: World) -> None:
        self.model, self.data = _Pointer(world.model), _Pointer(world.data)


_Physics.__module__ = "dm_control.mujoco.engine"


class HalfSteppedArena(Arena):
    """Ends each step with the first half of the next, as dm_control does."""

    def __init__(self) -> None:
        super().__init__()
        self.physics = _Physics(self.worlds[0])

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        _, info = super().reset(**kwargs)
        mujoco.mj_step1(self.worlds[0].model, self.worlds[0].data)
        return self._observe(), info

    def simulate(self, model: Any, data: Any) -> None:
        mujoco.mj_step2(model, data)
        mujoco.mj_step1(model, data)


def test_restores_half_stepped_physics() -> None:
    check_branchable(HalfSteppedArena())


class RebuildingArena(Arena):
    """Builds its engine anew at each reset, as environments do that draw a shape."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.worlds = [World()]
        return super().reset(**kwargs)


def test_states_of_any_number_of_engines_are_restored_as_long_as_there_are_states() -> None:
    env, states = RebuildingArena(), []
    simulator = Simulator(env)
    for seed in range(20):
        env.reset(seed=seed)
        states.append((simulator.capture(), weakref.ref(env.worlds[0].model), env.worlds[0].data.qvel.copy()))
    for state, model, velocities in states:
        simulator.restore(state)
        assert env.worlds[0].model is model()
        assert np.array_equal(env.worlds[0].data.qvel, velocities)
    models = [model for _, model, _ in states]
    del states, state
    env.reset()
    assert sum(model() is not None for model in models) <= 1, "but for what restores would write into"


def test_a_state_of_an_engine_that_no_other_process_has_does_not_travel() -> None:
    env = RebuildingArena()
    simulator = Simulator(env)
    pickle.dumps(simulator.capture())
    env.reset(seed=0)
    with pytest.raises(NotBranchableError, match=r"builds its MjModel anew.* group_mode=\"episode\""):
        pickle.dumps(simulator.capture())


def test_states_that_would_fill_the_memory_with_engines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MAX_BYTES", 5 * 2**20)
    env, states = RebuildingArena(), []
    simulator = Simulator(env)
    for _ in range(20):  # a state is freed before the next
        env.reset(seed=0)
        simulator.capture()
    with pytest.raises(NotBranchableError, match=r"hold \d+ of these, \d MiB and more than the 5 MiB"):
        states += [simulator.capture() for _ in range(20) if env.reset(seed=0)]


def test_state_travels_to_another_process_and_back() -> None:
    env = EditingArena()
    env.reset(seed=0)
    simulator = Simulator(env)
    sent = pickle.dumps(simulator.capture())
    first = env.step(np.ones(1))[0]
    env.reset()
    simulator.restore(pickle.loads(sent))
    assert np.array_equal(env.step(np.ones(1))[0], first)
