"""The tasks that Gymnasium's MuJoCo environments make of their physics, for many simulators at once.

Observations, rewards and ends are those that Gymnasium documents (https://gymnasium.farama.org/environments/mujoco/),
evaluated in the order and the precision in which its environments evaluate them: the costs of controls in the single
precision of the actions, most others in double precision.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv
from gymnasium.envs.mujoco.humanoidstandup_v5 import HumanoidStandupEnv
from gymnasium.envs.mujoco.inverted_double_pendulum_v5 import InvertedDoublePendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.pusher_v5 import PusherEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv

from grpo_core.fast.dynamics import BoolArray, FloatArray, square
from grpo_core.fast.mujoco_physics import Judgement, Moment, MujocoDynamics

Readings = Mapping[str, FloatArray]
Actions = npt.NDArray[Any]


def _never(batch: FloatArray) -> BoolArray:
    return np.zeros(len(batch), np.bool_)


def _sum_squares(numbers: npt.NDArray[Any]) -> Any:
    """Sum the squares of each simulator's numbers, shape ``(batch_size,)``."""
    return np.square(numbers).reshape(len(numbers), -1).sum(axis=1)


def _measure_lengths(vectors: FloatArray) -> FloatArray:
    """Compute each row's length; the library behind ``np.linalg.norm`` rounds a product of vectors in its own way."""
    vectors = np.ascontiguousarray(vectors)
    lengths: FloatArray = np.sqrt(np.array([vector.dot(vector) for vector in vectors]))
    return lengths


class _Runner(MujocoDynamics):
    """Runs along x by controls that cost: what HalfCheetah, Hopper and Walker2d have in common."""

    def _observe(self, after: Moment, n_hidden: int, qvel: FloatArray) -> FloatArray:
        n_hidden *= bool(self._env._exclude_current_positions_from_observation)
        return np.concatenate((after.qpos[:, n_hidden:], qvel), axis=1)

    def _compute_control_cost(self, actions: Actions) -> Any:
        return self._env._ctrl_cost_weight * _sum_squares(actions)


class _HalfCheetah(_Runner):
    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        x_velocity = (after.qpos[:, 0] - before.qpos[:, 0]) / self._env.dt
        forward_reward = self._env._forward_reward_weight * x_velocity
        ctrl_cost = self._compute_control_cost(actions)
        info = {
            "x_position": after.qpos[:, 0],
            "x_velocity": x_velocity,
            "reward_forward": forward_reward,
            "reward_ctrl": -ctrl_cost,
        }
        observations = self._observe(after, 1, after.qvel)
        return Judgement(observations, forward_reward - ctrl_cost, _never(after.qpos), info)


class _Walker2d(_Runner):
    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        env = self._env
        x_velocity = (after.qpos[:, 0] - before.qpos[:, 0]) / env.dt
        forward_reward = env._forward_reward_weight * x_velocity
        is_healthy = self._is_healthy(after)
        healthy_reward = is_healthy * env._healthy_reward
        ctrl_cost = self._compute_control_cost(actions)
        info = {
            "x_position": after.qpos[:, 0],
            "z_distance_from_origin": after.qpos[:, 1] - env.init_qpos[1],
            "x_velocity": x_velocity,
            "reward_forward": forward_reward,
            "reward_ctrl": -ctrl_cost,
            "reward_survive": healthy_reward,
        }
        observations = self._observe(after, 1, np.clip(after.qvel, -10, 10))
        terminated = ~is_healthy & bool(env._terminate_when_unhealthy)
        return Judgement(observations, forward_reward + healthy_reward - ctrl_cost, terminated, info)

    def _is_healthy(self, after: Moment) -> BoolArray:
        (min_z, max_z), (min_angle, max_angle) = self._env._healthy_z_range, self._env._healthy_angle_range
        z, angle = after.qpos[:, 1], after.qpos[:, 2]
        is_upright: BoolArray = (min_z < z) & (z < max_z) & (min_angle < angle) & (angle < max_angle)
        return is_upright


class _Hopper(_Walker2d):
    def _is_healthy(self, after: Moment) -> BoolArray:
        min_state, max_state = self._env._healthy_state_range
        state = np.concatenate((after.qpos[:, 2:], after.qvel), axis=1)
        is_inside: BoolArray = ((min_state < state) & (state < max_state)).all(axis=1)
        return super()._is_healthy(after) & is_inside


class _Swimmer(_Runner):
    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        velocity = (after.qpos[:, :2] - before.qpos[:, :2]) / self._env.dt
        forward_reward = self._env._forward_reward_weight * velocity[:, 0]
        ctrl_cost = self._compute_control_cost(actions)
        info = {
            "x_position": after.qpos[:, 0],
            "y_position": after.qpos[:, 1],
            "distance_from_origin": _measure_lengths(after.qpos[:, :2]),
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_forward": forward_reward,
            "reward_ctrl": -ctrl_cost,
        }
        observations = self._observe(after, 2, after.qvel)
        return Judgement(observations, forward_reward - ctrl_cost, _never(after.qpos), info)


class _InvertedPendulum(MujocoDynamics):
    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        observations = np.concatenate((after.qpos, after.qvel), axis=1)
        terminated = ~np.isfinite(observations).all(axis=1) | (np.abs(observations[:, 1]) > 0.2)
        rewards = (~terminated).astype(np.int64)
        return Judgement(observations, rewards, terminated, {"reward_survive": rewards.tolist()})


class _InvertedDoublePendulum(MujocoDynamics):
    def list_readings(self, data: Any) -> Readings:
        return {"tip": data.site_xpos[0], "force": data.qfrc_constraint}

    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        x, y = readings["tip"][:, 0], readings["tip"][:, 2]
        terminated = y <= 1
        x_squared, y_squared, v1_squared, v2_squared = square(np.stack((x, y - 2, after.qvel[:, 1], after.qvel[:, 2])))
        dist_penalty = 0.01 * x_squared + y_squared
        vel_penalty = 1e-3 * v1_squared + 5e-3 * v2_squared
        alive_bonus = self._env._healthy_reward * (~terminated).astype(np.int64)
        angles = after.qpos[:, 1:].copy()
        parts = (
            after.qpos[:, :1],
            np.sin(angles),
            np.cos(angles),
            np.clip(after.qvel, -10, 10),
            np.clip(readings["force"], -10, 10)[:, :1],
        )
        info = {"reward_survive": alive_bonus, "distance_penalty": -dist_penalty, "velocity_penalty": -vel_penalty}
        rewards = alive_bonus - dist_penalty - vel_penalty
        return Judgement(np.concatenate(parts, axis=1), rewards, terminated, info)


class _Reacher(MujocoDynamics):
    def list_readings(self, data: Any) -> Readings:
        return {name: data.body(name).xpos for name in ("fingertip", "target")}

    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        to_tip = readings["fingertip"] - readings["target"]
        reward_dist = -_measure_lengths(to_tip) * self._env._reward_dist_weight
        reward_ctrl = -_sum_squares(actions) * self._env._reward_control_weight
        angles = after.qpos[:, :2].copy()
        parts = (np.cos(angles), np.sin(angles), after.qpos[:, 2:], after.qvel[:, :2], to_tip[:, :2])
        info = {"reward_dist": reward_dist, "reward_ctrl": reward_ctrl}
        return Judgement(np.concatenate(parts, axis=1), reward_dist + reward_ctrl, _never(after.qpos), info)


class _Pusher(MujocoDynamics):
    def list_readings(self, data: Any) -> Readings:
        return {name: data.body(name).xpos for name in ("tips_arm", "object", "goal")}

    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        env, place = self._env, readings["object"]
        reward_near = -_measure_lengths(place - readings["tips_arm"]) * env._reward_near_weight
        reward_dist = -_measure_lengths(place - readings["goal"]) * env._reward_dist_weight
        reward_ctrl = -_sum_squares(actions) * env._reward_control_weight
        parts = (after.qpos[:, :7], after.qvel[:, :7], readings["tips_arm"], place, readings["goal"])
        info = {"reward_dist": reward_dist, "reward_ctrl": reward_ctrl, "reward_near": reward_near}
        rewards = reward_dist + reward_ctrl + reward_near
        return Judgement(np.concatenate(parts, axis=1), rewards, _never(after.qpos), info)


class _Ant(_Runner):
    n_lagging = 2
    reads_forces = True

    def list_readings(self, data: Any) -> Readings:
        return {"place": data.body(self._env._main_body).xpos[:2], "forces": data.cfrc_ext}

    def compute_lagging(self, readings: Readings) -> FloatArray:
        return readings["place"]

    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        env, qpos = self._env, after.qpos
        velocity = (after.lagging - before.lagging) / env.dt
        forces = np.clip(readings["forces"], *env._contact_force_range)
        forward_reward = velocity[:, 0] * env._forward_reward_weight
        (min_z, max_z), z = env._healthy_z_range, qpos[:, 2]
        is_finite = np.isfinite(qpos).all(axis=1) & np.isfinite(after.qvel).all(axis=1)
        is_healthy = is_finite & (min_z <= z) & (z <= max_z)
        healthy_reward = is_healthy * env._healthy_reward
        ctrl_cost = self._compute_control_cost(actions)
        contact_cost = env._contact_cost_weight * _sum_squares(forces)
        info = {
            "x_position": qpos[:, 0],
            "y_position": qpos[:, 1],
            "distance_from_origin": _measure_lengths(qpos[:, :2]),
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_forward": forward_reward,
            "reward_ctrl": -ctrl_cost,
            "reward_contact": -contact_cost,
            "reward_survive": healthy_reward,
        }
        observations = self._observe(after, 2, after.qvel)
        if env._include_cfrc_ext_in_observation:
            observations = np.concatenate((observations, forces[:, 1:].reshape(len(forces), -1)), axis=1)
        rewards = forward_reward + healthy_reward - (ctrl_cost + contact_cost)
        return Judgement(observations, rewards, ~is_healthy & bool(env._terminate_when_unhealthy), info)


class _Lifter(_Runner):
    """A body of many limbs, whose inertia, velocities and forces are observed."""

    reads_forces = True

    def list_readings(self, data: Any) -> Readings:
        names = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext", "ten_length", "ten_velocity")
        return {name: getattr(data, name) for name in names}

    def _observe_all(self, after: Moment, readings: Readings) -> FloatArray:
        env, parts = self._env, [self._observe(after, 2, after.qvel)]
        chosen = {
            "cinert": (env._include_cinert_in_observation, 1),
            "cvel": (env._include_cvel_in_observation, 1),
            "qfrc_actuator": (env._include_qfrc_actuator_in_observation, 6),
            "cfrc_ext": (env._include_cfrc_ext_in_observation, 1),
        }
        for name, (is_included, n_hidden) in chosen.items():
            if is_included is True:
                parts.append(readings[name][:, n_hidden:].reshape(len(after.qpos), -1))
        return np.concatenate(parts, axis=1)


class _Humanoid(_Lifter):
    n_lagging = 2

    def list_readings(self, data: Any) -> Readings:
        return {**super().list_readings(data), "xipos": data.xipos}

    def compute_lagging(self, readings: Readings) -> Any:
        masses = self._env.model.body_mass
        return (np.einsum("b,nbj->nj", masses, readings["xipos"]) / masses.sum())[:, :2]

    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        env, qpos = self._env, after.qpos
        velocity = (after.lagging - before.lagging) / env.dt
        forward_reward = env._forward_reward_weight * velocity[:, 0]
        min_z, max_z = env._healthy_z_range
        is_healthy = (min_z < qpos[:, 2]) & (qpos[:, 2] < max_z)
        healthy_reward = is_healthy * env._healthy_reward
        ctrl_cost = self._compute_control_cost(actions.astype(np.float64))
        contact_cost = np.clip(env._contact_cost_weight * _sum_squares(readings["cfrc_ext"]), *env._contact_cost_range)
        info = {
            "x_position": qpos[:, 0],
            "y_position": qpos[:, 1],
            "tendon_length": readings["ten_length"],
            "tendon_velocity": readings["ten_velocity"],
            "distance_from_origin": _measure_lengths(qpos[:, :2]),
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_survive": healthy_reward,
            "reward_forward": forward_reward,
            "reward_ctrl": -ctrl_cost,
            "reward_contact": -contact_cost,
        }
        rewards = forward_reward + healthy_reward - (ctrl_cost + contact_cost)
        terminated = ~is_healthy & bool(env._terminate_when_unhealthy)
        return Judgement(self._observe_all(after, readings), rewards, terminated, info)


class _HumanoidStandup(_Lifter):
    def judge(self, before: Moment, after: Moment, readings: Readings, actions: Actions) -> Judgement:
        env, qpos = self._env, after.qpos
        uph_cost = (qpos[:, 2] - 0) / env.model.opt.timestep
        quad_ctrl_cost = self._compute_control_cost(actions.astype(np.float64))
        quad_impact_cost = env._impact_cost_weight * _sum_squares(readings["cfrc_ext"])
        quad_impact_cost = np.clip(quad_impact_cost, *env._impact_cost_range)
        info = {
            "x_position": qpos[:, 0],
            "y_position": qpos[:, 1],
            "z_distance_from_origin": qpos[:, 2] - env.init_qpos[2],
            "tendon_length": readings["ten_length"],
            "tendon_velocity": readings["ten_velocity"],
            "reward_linup": uph_cost,
            "reward_quadctrl": -quad_ctrl_cost,
            "reward_impact": -quad_impact_cost,
        }
        rewards = uph_cost - quad_ctrl_cost - quad_impact_cost + 1
        return Judgement(self._observe_all(after, readings), rewards, _never(qpos), info)


# Read in Gymnasium 1.4's sources. Exact types only: a subclass may judge differently.
MUJOCO_TASKS: Mapping[type, Callable[[Any], MujocoDynamics]] = MappingProxyType(
    {
        AntEnv: _Ant,
        HalfCheetahEnv: _HalfCheetah,
        HopperEnv: _Hopper,
        HumanoidEnv: _Humanoid,
        HumanoidStandupEnv: _HumanoidStandup,
        InvertedDoublePendulumEnv: _InvertedDoublePendulum,
        InvertedPendulumEnv: _InvertedPendulum,
        PusherEnv: _Pusher,
        ReacherEnv: _Reacher,
        SwimmerEnv: _Swimmer,
        Walker2dEnv: _Walker2d,
    }
)
