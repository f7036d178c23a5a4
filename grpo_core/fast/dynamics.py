"""The equations of motion of Gymnasium's classic control environments, for many states at once.

They are those that Gymnasium documents (https://gymnasium.farama.org/environments/classic_control/), evaluated in the
order in which its environments evaluate them: sums, products and quotients round the same in an array as alone. Powers
do not, see ``square``. Whether sines and cosines do depends on the processor and the build of NumPy, which
``find_batched_simulator`` tries.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from grpo_core.fast.step_threads import StepThreads

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Up to this many states, Python's own numbers are faster than arrays, whose operations each cost a microsecond.
_FEW_STATES = 6


class Motion(NamedTuple):
    """The result of one step of an environment without wrappers, see ``BatchStep``.

    :param infos: None stands for empty ones.
    """

    observations: npt.NDArray[Any]
    rewards: FloatArray
    terminated: BoolArray
    infos: list[dict[str, Any]] | None = None


class Dynamics(ABC):
    """One environment's equations of motion, with the parameters that it has at the time of each step.

    :param env: The environment without wrappers.
    """

    observation_dtype: type[np.floating[Any]] = np.float32
    #: Numbers that make up a state.
    size: int
    #: Whether a step of many states takes hardly longer than one of a single state.
    steps_as_one: ClassVar[bool] = True

    def __init__(self, env: Any) -> None:
        self._env = env

    def copy_env(self) -> Any:
        """Return a copy of the environment that can be reset and stepped, and leaves the original as it is."""
        # Shallow: a seeded reset gives the copy a generator of its own, and steps assign whatever they change.
        return copy.copy(self._env)

    def capture(self) -> Sequence[float] | FloatArray:
        """Return the environment's state, ``size`` numbers."""
        return [float(value) for value in self._env.state]

    def begin(
        self, states: FloatArray, actions: npt.NDArray[Any], next_states: FloatArray, threads: StepThreads
    ) -> Callable[[], Motion]:
        """Begin to ``advance``, in other threads if that pays; what is returned finishes it."""
        return lambda: self.advance(states, actions, next_states)

    @abstractmethod
    def advance(self, states: FloatArray, actions: npt.NDArray[Any], next_states: FloatArray) -> Motion:
        """Move each state by one step.

        :param states: Shape ``(batch_size, at least size)``; only the first ``size`` columns are read.
        :param actions: Shape ``(batch_size, *action_shape)``.
        :param next_states: Its first ``size`` columns are written.
        """


class _CartPole(Dynamics):
    """A pole on a cart: https://coneural.org/florian/papers/05_cart_pole.pdf, equations 23 and 24 without friction.

    Columns: position of the cart (m), its velocity (m/s), angle of the pole (rad), its velocity (rad/s).
    """

    size = 4

    def advance(self, states: FloatArray, actions: npt.NDArray[Any], next_states: FloatArray) -> Motion:
        env = self._env
        if len(states) <= _FEW_STATES:
            for after, before, action in zip(next_states, states[:, :4].tolist(), actions.tolist(), strict=True):
                force = env.force_mag if action == 1 else -env.force_mag
                after[:4] = self._move(before, force, math.cos(before[2]), math.sin(before[2]))
        else:
            force, before = np.where(actions == 1, env.force_mag, -env.force_mag), states[:, :4].T
            next_states[:, :4].T[:] = self._move(before, force, np.cos(before[2]), np.sin(before[2]))
        after = next_states[:, :4]
        has_fallen = np.abs(after[:, 2]) > env.theta_threshold_radians
        terminated = has_fallen | (np.abs(after[:, 0]) > env.x_threshold)
        rewards = np.where(terminated, -1.0, 0.0) if env._sutton_barto_reward else np.ones(len(states))
        return Motion(after.astype(np.float32), rewards, terminated)

    def _move(self, before: Iterable[Any], force: Any, cos: Any, sin: Any) -> tuple[Any, Any, Any, Any]:
        """Move one state of four numbers, or four columns of many."""
        env, (position, velocity, angle, spin) = self._env, before
        push = (force + env.polemass_length * (spin * spin) * sin) / env.total_mass
        inertia = env.length * (4.0 / 3.0 - env.masspole * (cos * cos) / env.total_mass)
        spin_rate = (env.gravity * sin - cos * push) / inertia
        velocity_rate = push - env.polemass_length * spin_rate * cos / env.total_mass
        next_velocity, next_spin = velocity + env.tau * velocity_rate, spin + env.tau * spin_rate
        if env.kinematics_integrator != "euler":  # semi-implicit: moves with the velocities after the step
            velocity, spin = next_velocity, next_spin
        return position + env.tau * velocity, next_velocity, angle + env.tau * spin, next_spin


class _Acrobot(Dynamics):
    """Two links with a motor between them: Sutton and Barto, http://incompleteideas.net/book/the-book.html, 11.3.

    Columns: angle of the first link, of the second one relative to it (rad), and their velocities (rad/s).
    """

    size = 4

    def advance(self, states: FloatArray, actions: npt.NDArray[Any], next_states: FloatArray) -> Motion:
        env = self._env
        before, torques = states[:, :4].T, np.array(env.AVAIL_TORQUE, np.float64)[actions]
        if env.torque_noise_max > 0:  # set since; the draws are those of one step after the other
            torques += env.np_random.uniform(-env.torque_noise_max, env.torque_noise_max, len(states))
        after = self._integrate(before, torques)
        _wrap_angles(after[:2])
        for velocity, bound in zip(after[2:], (env.MAX_VEL_1, env.MAX_VEL_2), strict=True):
            np.minimum(np.maximum(velocity, -bound), bound, out=velocity)
        next_states[:, :4] = after.T
        cos, sin = np.cos(after[:2]), np.sin(after[:2])
        observations = np.empty((len(states), 6), np.float32)
        observations[:, 0:4:2], observations[:, 1:4:2], observations[:, 4:] = cos.T, sin.T, after[2:].T
        terminated = -cos[0] - np.cos(after[1] + after[0]) > 1.0
        return Motion(observations, np.where(terminated, 0.0, -1.0), terminated)

    def _integrate(self, before: FloatArray, torques: FloatArray) -> FloatArray:
        """Take one Runge-Kutta step of fourth order.

        :param before: Shape ``(4, batch_size)``.
        """
        duration = self._env.dt
        half = duration / 2.0
        rates_1 = self._compute_rates(before, torques)
        rates_2 = self._compute_rates(before + half * rates_1, torques)
        rates_3 = self._compute_rates(before + half * rates_2, torques)
        rates_4 = self._compute_rates(before + duration * rates_3, torques)
        after: FloatArray = before + duration / 6.0 * (rates_1 + 2 * rates_2 + 2 * rates_3 + rates_4)
        return after

    def _compute_rates(self, state: FloatArray, torques: FloatArray) -> FloatArray:
        """Compute how fast each column changes, shape ``(4, batch_size)`` as the states.

        Names and order are Sutton and Barto's: d1, d2, phi1, phi2 there are the inertias and loads here.
        """
        env = self._env
        m1, m2, l1 = env.LINK_MASS_1, env.LINK_MASS_2, env.LINK_LENGTH_1
        lc1, lc2, moment, gravity = env.LINK_COM_POS_1, env.LINK_COM_POS_2, env.LINK_MOI, 9.8
        angle_1, angle_2, spin_1, spin_2 = state
        cos_2, sin_2 = np.cos(angle_2), np.sin(angle_2)
        inertia_1 = m1 * lc1**2 + m2 * (l1**2 + lc2**2 + 2 * l1 * lc2 * cos_2) + moment + moment
        inertia_2 = m2 * (lc2**2 + l1 * lc2 * cos_2) + moment
        spin_1_squared, spin_2_squared, inertia_2_squared = square(np.array((spin_1, spin_2, inertia_2)))
        load_2 = m2 * lc2 * gravity * np.cos(angle_1 + angle_2 - np.pi / 2.0)
        load_1 = (
            -m2 * l1 * lc2 * spin_2_squared * sin_2
            - 2 * m2 * l1 * lc2 * spin_2 * spin_1 * sin_2
            + (m1 * lc1 + m2 * l1) * gravity * np.cos(angle_1 - np.pi / 2)
            + load_2
        )
        drive = torques + inertia_2 / inertia_1 * load_1
        if env.book_or_nips != "nips":
            drive -= m2 * l1 * lc2 * spin_1_squared * sin_2
        rates = np.empty_like(state)
        rates[:2] = state[2:]
        rates[3] = (drive - load_2) / (m2 * lc2**2 + moment - inertia_2_squared / inertia_1)
        rates[2] = -(inertia_2 * rates[3] + load_1) / inertia_1
        return rates


class _Pendulum(Dynamics):
    """A pendulum with a motor at its pivot: https://gymnasium.farama.org/environments/classic_control/pendulum/.

    Columns: angle (rad) and velocity (rad/s).
    """

    size = 2

    def advance(self, states: FloatArray, actions: npt.NDArray[Any], next_states: FloatArray) -> Motion:
        env = self._env
        angle, spin = states[:, 0], states[:, 1]
        # Stays in the single precision of the actions, as in the environment, until double precision joins it.
        torque = np.minimum(np.maximum(actions[:, 0], -env.max_torque), env.max_torque)
        upright = (angle + np.pi) % (2 * np.pi) - np.pi
        costs = square(upright) + 0.1 * square(spin) + 0.001 * square(torque)
        push = 3 * env.g / (2 * env.l) * np.sin(angle) + 3.0 / (env.m * env.l**2) * torque
        next_spin = np.minimum(np.maximum(spin + push * env.dt, -env.max_speed), env.max_speed)
        next_angle = angle + next_spin * env.dt
        next_states[:, 0], next_states[:, 1] = next_angle, next_spin
        observations = np.empty((len(states), 3), np.float32)
        observations[:, 0], observations[:, 1] = np.cos(next_angle), np.sin(next_angle)
        observations[:, 2] = next_spin
        return Motion(observations, -costs, np.zeros(len(states), np.bool_))


class _MountainCar(Dynamics):
    """A car in a valley: https://gymnasium.farama.org/environments/classic_control/mountain_car/.

    Columns: position and velocity.
    """

    size = 2

    def advance(self, states: FloatArray, actions: npt.NDArray[Any], next_states: FloatArray) -> Motion:
        env = self._env
        position, velocity = states[:, 0], states[:, 1]
        velocity = velocity + ((actions - 1) * env.force + np.cos(3 * position) * -env.gravity)
        velocity = np.minimum(np.maximum(velocity, -env.max_speed), env.max_speed)
        position = np.minimum(np.maximum(position + velocity, env.min_position), env.max_position)
        velocity[(position == env.min_position) & (velocity < 0)] = 0.0
        next_states[:, 0], next_states[:, 1] = position, velocity
        terminated = (position >= env.goal_position) & (velocity >= env.goal_velocity)
        return Motion(next_states[:, :2].astype(np.float32), np.full(len(states), -1.0), terminated)


class _ContinuousMountainCar(Dynamics):
    """The same with any force: https://gymnasium.farama.org/environments/classic_control/mountain_car_continuous/.

    Columns: position, velocity, and whether they have been rounded to single precision. A reset leaves them in double
    precision; the first step computes with that and rounds them, and all later ones compute in single precision.
    """

    size = 3

    def capture(self) -> list[float]:
        state = self._env.state
        return [float(state[0]), float(state[1]), float(state.dtype == np.float32)]

    def advance(self, states: FloatArray, actions: npt.NDArray[Any], next_states: FloatArray) -> Motion:
        action = actions[:, 0]
        observations = np.empty((len(states), 2), np.float32)
        is_rounded = states[:, 2] != 0.0
        if is_rounded.all():
            terminated = self._move(states[:, :2].astype(np.float32), action, observations)
        elif not is_rounded.any():
            terminated = self._move(states[:, :2], action, observations)
        else:
            terminated = self._move(states[:, :2].astype(np.float32), action, observations)
            first = ~is_rounded
            moved = np.empty((int(first.sum()), 2), np.float32)
            terminated[first] = self._move(states[first, :2], action[first], moved)
            observations[first] = moved
        next_states[:, :2], next_states[:, 2] = observations, 1.0
        effort = action.astype(np.float64)
        # Exact, and so the same as math.pow: the product of two single-precision numbers fits into a double.
        rewards = np.where(terminated, 100.0, 0.0) - effort * effort * 0.1
        return Motion(observations, rewards, terminated)

    def _move(self, before: npt.NDArray[Any], action: npt.NDArray[Any], after: npt.NDArray[np.float32]) -> BoolArray:
        """Move positions and velocities in the precision in which they come.

        :param before: Shape ``(batch_size, 2)``, float32 or float64.
        :param after: What they are afterwards, written.
        :return: Whether the goal was reached.
        """
        env = self._env
        position, velocity = before[:, 0], before[:, 1]
        velocity = velocity + self._compute_acceleration(position, action)
        velocity = np.maximum(np.minimum(velocity, env.max_speed), -env.max_speed)
        position = np.maximum(np.minimum(position + velocity, env.max_position), env.min_position)
        velocity[(position == env.min_position) & (velocity < 0)] = 0.0
        after[:, 0], after[:, 1] = position, velocity
        reached: BoolArray = (position >= env.goal_position) & (velocity >= env.goal_velocity)
        return reached

    def _compute_acceleration(self, position: npt.NDArray[Any], action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        env = self._env
        slope = 0.0025 * np.cos((3 * position).astype(np.float64))
        force = np.minimum(np.maximum(action, env.min_action), env.max_action)
        acceleration = force * env.power - slope.astype(action.dtype)
        is_clipped = force != action
        if is_clipped.any():
            # Where the environment takes the bound itself, a Python float, it computes this in double precision.
            bound = np.where(action < env.min_action, env.min_action, env.max_action)
            acceleration = np.where(is_clipped, bound * env.power - slope, acceleration).astype(position.dtype)
        rounded: npt.NDArray[Any] = acceleration
        return rounded


def square(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Raise to the second power as ``value**2`` does for a single NumPy number, in its precision.

    That is the C library's ``pow``, now and then one digit off the product that ``values**2`` and ``np.square`` are;
    ``np.power`` of arrays is a third thing where the processor has AVX-512.
    """
    # Python's floats take the same function in less time, but only in double precision.
    numbers = values.ravel().tolist() if values.dtype == np.float64 else values.ravel()
    squares: npt.NDArray[Any] = np.array([number**2 for number in numbers], values.dtype)
    return squares.reshape(values.shape)


def _wrap_angles(angles: FloatArray) -> None:
    """Add or subtract whole turns, one at a time, until all angles are within ±π."""
    while (is_outside := np.abs(angles) > np.pi).any():
        outside = angles[is_outside]
        angles[is_outside] = outside - np.copysign(2 * np.pi, outside)


# Read in Gymnasium 1.4's sources. Exact types only: a subclass may move differently.
DYNAMICS: Mapping[type, Callable[[Any], Dynamics]] = MappingProxyType(
    {
        CartPoleEnv: _CartPole,
        AcrobotEnv: _Acrobot,
        PendulumEnv: _Pendulum,
        MountainCarEnv: _MountainCar,
        Continuous_MountainCarEnv: _ContinuousMountainCar,
    }
)
