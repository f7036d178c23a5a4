"""Step many states of one MuJoCo environment in threads, bit for bit as the environment would step each.

MuJoCo steps an ``MjData`` outside the interpreter's lock. Every thread has one of its own here: it writes a state into
it, steps it, and reads what the environment would read. ``mujoco.rollout`` steps whole batches, but it neither returns
the accelerations from which the solver starts the next step (``qacc_warmstart``), without which that step rounds
differently, nor the forces and the places of bodies that observations and rewards are made of.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import mujoco
import numpy as np
import numpy.typing as npt

from grpo_core.fast.dynamics import BoolArray, Dynamics, FloatArray, Motion
from grpo_core.fast.step_threads import StepThreads

# All that the next step depends on, warm start and applied forces included.
_PARTS = mujoco.mjtState.mjSTATE_INTEGRATION.value


class Moment(NamedTuple):
    """The state of a batch of simulators at one time.

    :param qpos: Positions, shape ``(batch_size, nq)``.
    :param qvel: Velocities, shape ``(batch_size, nv)``.
    :param lagging: What the task carries over from step to step, shape ``(batch_size, n_lagging)``.
    """

    qpos: FloatArray
    qvel: FloatArray
    lagging: FloatArray


class Judgement(NamedTuple):
    """An environment's answer to a step, a row per simulator.

    :param info: One column per key.
    """

    observations: FloatArray
    rewards: Any
    terminated: BoolArray
    info: Mapping[str, Any]


class _Scratch:
    """An ``MjData`` of one thread, and views of what the task reads in it."""

    def __init__(self, model: Any, list_readings: Callable[[Any], Mapping[str, Any]]) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self.readings = list_readings(self.data)


class MujocoDynamics(Dynamics):
    """The physics of a MuJoCo environment of Gymnasium; its classes add what each task makes of them.

    A state is MuJoCo's own integration state, and behind it what lags: MuJoCo computes the places of bodies before it
    moves them, so some tasks compare those of the last step's beginning with those of this step's.

    :param env: The environment without wrappers.
    """

    observation_dtype = np.float64
    steps_as_one = False
    #: Numbers that lag.
    n_lagging: ClassVar[int] = 0
    #: Whether the task reads forces between bodies, which MuJoCo computes on request.
    reads_forces: ClassVar[bool] = False

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        model = env.model
        self._n_physics = mujoco.mj_stateSize(model, _PARTS)
        self.size = self._n_physics + self.n_lagging
        starts = [mujoco.mj_stateSize(model, part) for part in _list_parts_before_ctrl()]
        self._qpos = slice(starts[0], starts[0] + model.nq)
        self._qvel = slice(self._qpos.stop, self._qpos.stop + model.nv)
        self._ctrl = slice(starts[1], starts[1] + model.nu)
        self._own = threading.local()

    def list_readings(self, data: Any) -> Mapping[str, FloatArray]:
        """Name the arrays of an ``MjData`` that the task reads besides positions and velocities."""
        return {}

    def compute_lagging(self, readings: Mapping[str, FloatArray]) -> Any:
        """Compute the numbers that lag from what was read, shape ``(batch_size, n_lagging)``."""
        raise NotImplementedError

    @abstractmethod
    def judge(
        self, before: Moment, after: Moment, readings: Mapping[str, FloatArray], actions: npt.NDArray[Any]
    ) -> Judgement:
        """Do what the environment's ``step`` does around its physics, in the order in which it does it.

        :param readings: What was read after the step, ``(batch_size, ...)`` each.
        :param actions: Shape ``(batch_size, nu)``.
        """

    def copy_env(self) -> Any:
        """Return an environment with a simulator of its own, of the same model."""
        core, probe = self._env, object.__new__(type(self._env))
        # Some edit their arrays in place.
        vars(probe).update(
            {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in vars(core).items()}
        )
        probe.data = mujoco.MjData(core.model)
        return probe

    def capture(self) -> FloatArray:
        state = np.empty(self.size)
        mujoco.mj_getState(self._env.model, self._env.data, state[: self._n_physics], _PARTS)
        if self.n_lagging:
            readings = {name: view[None] for name, view in self.list_readings(self._env.data).items()}
            state[self._n_physics :] = self.compute_lagging(readings)[0]
        return state

    def advance(self, states: FloatArray, actions: npt.NDArray[Any], next_states: FloatArray) -> Motion:
        return self.begin(states, actions, next_states, StepThreads())()

    def begin(
        self, states: FloatArray, actions: npt.NDArray[Any], next_states: FloatArray, threads: StepThreads
    ) -> Callable[[], Motion]:
        inputs = states[:, : self._n_physics].copy()
        inputs[:, self._ctrl] = actions
        shapes = {name: view.shape for name, view in self.list_readings(self._env.data).items()}
        readings = {name: np.empty((len(states), *shape)) for name, shape in shapes.items()}
        finish = threads.begin(lambda rows: self._simulate(rows, inputs, next_states, readings), len(states))

        def judge() -> Motion:
            finish()
            if self.n_lagging:
                next_states[:, self._n_physics : self.size] = self.compute_lagging(readings)
            judgement = self.judge(self._look_at(states), self._look_at(next_states), readings, actions)
            names, columns = judgement.info.keys(), judgement.info.values()
            infos = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
            return Motion(
                judgement.observations, np.asarray(judgement.rewards, np.float64), judgement.terminated, infos
            )

        return judge

    def _simulate(
        self, rows: Iterator[int], inputs: FloatArray, next_states: FloatArray, readings: Mapping[str, FloatArray]
    ) -> None:
        """Step those rows that no other thread has taken."""
        env, scratch = self._env, self._get_scratch()
        model, data, n_physics = scratch.model, scratch.data, self._n_physics
        pairs = [(scratch.readings[name], array) for name, array in readings.items()]
        for row in rows:
            mujoco.mj_setState(model, data, inputs[row], _PARTS)
            mujoco.mj_step(model, data, env.frame_skip)
            if self.reads_forces:
                mujoco.mj_rnePostConstraint(model, data)
            mujoco.mj_getState(model, data, next_states[row, :n_physics], _PARTS)
            for view, array in pairs:
                array[row] = view

    def _get_scratch(self) -> _Scratch:
        """Return this thread's own simulator."""
        scratch: _Scratch | None = getattr(self._own, "scratch", None)
        if scratch is None or scratch.model is not self._env.model:
            scratch = self._own.scratch = _Scratch(self._env.model, self.list_readings)
        return scratch

    def _look_at(self, states: FloatArray) -> Moment:
        return Moment(states[:, self._qpos], states[:, self._qvel], states[:, self._n_physics : self.size])


def _list_parts_before_ctrl() -> tuple[int, int]:
    """Return which parts of a state lie before the positions, and which before the controls."""
    parts = mujoco.mjtState
    # A state's parts come in the order of their bits.
    return parts.mjSTATE_TIME.value, parts.mjSTATE_CTRL.value - 1
