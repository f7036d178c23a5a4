"""Step many states of an environment at once, bit for bit as the environment would step each.

A state is a row of numbers here: the physics, the steps that ``TimeLimit`` has counted and what ``Monitor`` has added
up. Gymnasium's own ``CartPoleVectorEnv`` moves the pole identically but is not used: the other environments
have no such class, and it resets and counts time in its own way.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.monitor import Monitor

from grpo_core.environments.nested import list_nested_envs
from grpo_core.fast.dynamics import DYNAMICS, BoolArray, Dynamics, FloatArray, Motion
from grpo_core.fast.step_threads import StepThreads
from grpo_core.replaced_methods import KnownMethods, has_replaced_methods

# Batch sizes of the replay: every tail that vector instructions for 2, 4 or 8 numbers leave, and whole vectors.
_REPLAYED_BATCHES = (1, 2, 3, 5, 7, 8, 17, 64)
# Methods by which an environment takes part in training beyond Gymnasium's own.
_OWN_METHODS = ("action_masks", "capture_state", "restore_state")
_MUJOCO_MODULES = "gymnasium.envs.mujoco."
# From Python 3.12 on sum() keeps what additions of floats round off, and Monitor's returns change with it.
_SUM_COMPENSATES = sum([0.1] * 10) == 1.0


class BatchStep(NamedTuple):
    """One step of each state in a batch.

    :param states: Input of the next step, shape ``(batch_size, state_size)``.
    :param observations: Shape ``(batch_size, *observation_shape)``, in the dtype of the observation space.
    :param rewards: Shape ``(batch_size,)``.
    :param terminated: Shape ``(batch_size,)``.
    :param truncated: Shape ``(batch_size,)``.
    :param infos: One per state, the environment's own; Monitor's ``"episode"`` in those that ended an episode.
    """

    states: FloatArray
    observations: npt.NDArray[Any]
    rewards: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    infos: list[dict[str, Any]]


class BatchedSimulator:
    """Steps many states as the environment and its wrappers would, without touching the environment.

    Physics parameters and the time limit are read anew in every step. As with the environment itself, do not step an
    episode that is over. A ``Monitor`` goes on counting steps and collecting episodes' returns, lengths and times as if
    it saw every step; its running episode is part of the states.

    :param layers: The wrappers, the outermost first, and the environment inside.
    :param dynamics: The equations of motion of that.
    :param time_limit: The wrapper that truncates episodes, if there is one.
    :param monitor: The wrapper outside of it that reports episodes, if there is one.
    :param threads: Where steps that take long are shared out.
    """

    def __init__(
        self,
        layers: Sequence[gym.Env[Any, Any]],
        dynamics: Dynamics,
        time_limit: TimeLimit[Any, Any] | None,
        monitor: Monitor | None,
        threads: StepThreads | None = None,
    ) -> None:
        self._layers, self._dynamics, self._threads = layers, dynamics, threads or StepThreads()
        self._time_limit = time_limit
        self._monitor = monitor
        # Behind the physics: steps until the time limit, Monitor's length, return, and what rounding took from that.
        self._clocks = slice(dynamics.size, dynamics.size + 2)
        self.state_size = dynamics.size + 4

    @property
    def steps_as_one(self) -> bool:
        """Whether a step of many states takes hardly longer than one of a single state."""
        return self._dynamics.steps_as_one

    def is_outdated(self) -> bool:
        """Tell whether steps of the environment may come out differently now, parameters of its physics aside."""
        return _does_more(self._layers)

    def capture(self) -> FloatArray:
        """Return the state that the environment is in, shape ``(state_size,)``; it must have been reset before."""
        n_elapsed = 0 if self._time_limit is None else self._time_limit._elapsed_steps
        rewards = [] if self._monitor is None else self._monitor.rewards
        total = lost = 0.0
        for reward in rewards:
            total, lost = _add_reward(total, lost, reward)
        return np.array([*self._dynamics.capture(), n_elapsed, len(rewards), total, lost])

    def step(self, states: FloatArray, actions: npt.NDArray[Any]) -> BatchStep:
        """Step each state with its action; states are left as they are.

        :param states: Shape ``(batch_size, state_size)``: captured, or from an earlier step.
        :param actions: Shape ``(batch_size, *action_shape)``, in the dtype of the action space.
        """
        return self.begin_step(states, actions)()

    def begin_step(self, states: FloatArray, actions: npt.NDArray[Any]) -> Callable[[], BatchStep]:
        """Begin what ``step`` does; what is returned finishes it. The steps of other simulators may begin meanwhile."""
        next_states = np.empty_like(states)
        finish = self._dynamics.begin(states, actions, next_states, self._threads)
        return lambda: self._count(states, next_states, finish())

    def _count(self, states: FloatArray, next_states: FloatArray, motion: Motion) -> BatchStep:
        """Do what the wrappers do in a step."""
        observations, rewards, terminated, infos = motion
        np.add(states[:, self._clocks], 1.0, out=next_states[:, self._clocks])
        limit = np.inf if self._time_limit is None else self._time_limit._max_episode_steps
        truncated = next_states[:, self._clocks.start] >= limit
        if infos is None:
            infos = [{} for _ in range(len(states))]
        total, lost = _add_reward(states[:, -2], states[:, -1], rewards)
        next_states[:, -2], next_states[:, -1] = total, lost
        if self._monitor is not None:
            self._monitor.total_steps += len(states)
            for i, is_over in enumerate((terminated | truncated).tolist()):
                if is_over:
                    infos[i]["episode"] = _report_episode(self._monitor, *next_states[i, -3:].tolist())
        return BatchStep(next_states, observations, rewards, terminated, truncated, infos)


def _add_reward(total: Any, lost: Any, reward: Any) -> tuple[Any, Any]:
    """Add a reward to a running sum, ``total + lost``, exactly as ``sum()`` does.

    :return: The new total, and all that additions have rounded off (Knuth's TwoSum) where ``sum()`` keeps it.
    """
    new_total = total + reward
    if not _SUM_COMPENSATES:
        return new_total, lost
    added = new_total - total
    return new_total, lost + ((total - (new_total - added)) + (reward - added))


def _report_episode(monitor: Monitor, length: float, total: float, lost: float) -> dict[str, Any]:
    """Let Monitor remember an episode, and describe it as its ``step`` would."""
    n_seconds = time.time() - monitor.t_start
    monitor.episode_returns.append(total + lost)
    monitor.episode_lengths.append(int(length))
    monitor.episode_times.append(n_seconds)
    return {"r": round(total + lost, 6), "l": int(length), "t": round(n_seconds, 6)}


def find_batched_simulator(env: gym.Env[Any, Any], threads: StepThreads | None = None) -> BatchedSimulator | None:
    """Find a batched simulator for an environment; None where any step might come out differently.

    There is one for Gymnasium's environments of classic control and of MuJoCo (version 5), of exactly these classes
    and with none of their methods replaced, inside ``TimeLimit``, ``OrderEnforcing``, ``PassiveEnvChecker`` (which then
    gives no warnings about the first step) and a ``Monitor`` that writes no file. To see whether this machine rounds
    arrays as it rounds single numbers, a hundred steps of a copy are replayed, which takes some milliseconds, or a
    tenth of a second with MuJoCo; for classic control, sines and cosines are compared too. The environment and its
    random generators stay as they are.

    :param env: The environment; it need not have been reset.
    :param threads: Where steps that take long are shared out; None lets the caller's thread take them all.
    """
    *wrappers, core = list_nested_envs(env)
    make_dynamics = _get_dynamics(type(core))
    if make_dynamics is None or _does_more([*wrappers, core]) or getattr(core, "torque_noise_max", 0.0) > 0.0:
        return None
    if any(map(has_replaced_methods, [*wrappers, core])) or any(map(env.has_wrapper_attr, _OWN_METHODS)):
        return None
    kinds = [type(wrapper) for wrapper in wrappers]
    if not _WRAPPERS.issuperset(kinds):
        return None
    # A wrapper used twice is rare, and so is a time limit outside of Monitor, which would not report what it cuts.
    counting = [wrapper for wrapper in wrappers if isinstance(wrapper, TimeLimit | Monitor)]
    if [type(wrapper) for wrapper in counting] not in ([], [Monitor], [TimeLimit], [Monitor, TimeLimit]):
        return None
    monitor = next((wrapper for wrapper in counting if isinstance(wrapper, Monitor)), None)
    if monitor is not None and not _only_counts(monitor):
        return None
    dynamics = make_dynamics(core)
    if env.observation_space.dtype != dynamics.observation_dtype or not _replays_exactly(dynamics, make_dynamics):
        return None
    time_limit = next((wrapper for wrapper in counting if isinstance(wrapper, TimeLimit)), None)
    return BatchedSimulator([*wrappers, core], dynamics, time_limit, monitor, threads)


def _does_more(layers: Sequence[gym.Env[Any, Any]]) -> bool:
    """Tell whether steps are shown on a screen, or methods of the classes were replaced."""
    kinds = [*map(type, layers)]
    return layers[-1].render_mode == "human" or any(known.are_replaced(kinds) for known in _KNOWN_METHODS)


def _get_dynamics(kind: type) -> Callable[[Any], Dynamics] | None:
    """Return what makes the batched dynamics of an environment's class; None if nothing does."""
    if kind.__module__.startswith(_MUJOCO_MODULES):
        # Only now: whoever has such an environment has imported MuJoCo, and who has none need not install it.
        from grpo_core.fast.mujoco_tasks import MUJOCO_TASKS

        if len(_KNOWN_METHODS) == 1:
            _KNOWN_METHODS.append(KnownMethods(MUJOCO_TASKS))
        return MUJOCO_TASKS.get(kind)
    return DYNAMICS.get(kind) if _rounds_alike() else None


def _only_counts(monitor: Monitor) -> bool:
    """Tell whether Monitor writes no file, reads no further keywords, and allows early resets.

    Batched episodes end without the environment reaching their ends, so most of its resets are early.
    """
    has_extras = monitor.results_writer is not None or monitor.reset_keywords or monitor.info_keywords
    return monitor.allow_early_resets and not has_extras


def _rounds_alike() -> bool:
    """Compare sines and cosines of arrays with those of single numbers; a replay near rest hardly covers them."""
    columns = np.random.default_rng(0).uniform(-10.0, 10.0, (500, 2))
    angles = columns[:, 0]
    for of_array, of_number in ((np.cos, math.cos), (np.sin, math.sin)):
        expected = [of_number(angle) for angle in angles]
        attempts = (of_array(angles), of_array(angles.copy()), [of_array(angle) for angle in angles])
        if not all(np.array_equal(attempt, expected) for attempt in attempts):
            return False
    return True


def _replays_exactly(dynamics: Dynamics, make_dynamics: Callable[[Any], Dynamics]) -> bool:
    """Step a copy of an environment, and see whether batches of many sizes give the same."""
    probe = dynamics.copy_env()
    dynamics, action_space = make_dynamics(probe), copy.deepcopy(probe.action_space)
    probe.reset(seed=0)
    action_space.seed(0)
    for batch_size in _REPLAYED_BATCHES:
        states, next_states, actions, steps = [], [], [], []
        for _ in range(batch_size):
            states.append(dynamics.capture())
            actions.append(action_space.sample())
            steps.append(probe.step(actions[-1]))
            next_states.append(dynamics.capture())
            if steps[-1][2]:
                probe.reset()
        replayed_states = np.empty((batch_size, dynamics.size))
        *motion, replayed_infos = dynamics.advance(np.array(states), np.array(actions), replayed_states)
        *expected, _, infos = zip(*steps, strict=True)
        pairs = zip((replayed_states, *motion), (next_states, *expected), strict=True)
        if not all(np.array_equal(*pair) for pair in pairs):
            return False
        if not all(map(_is_same_info, replayed_infos or [{}] * batch_size, infos)):
            return False
    return True


def _is_same_info(info: dict[str, Any], other: dict[str, Any]) -> bool:
    return info.keys() == other.keys() and all(np.array_equal(value, other[key]) for key, value in info.items())


_WRAPPERS = frozenset({TimeLimit, OrderEnforcing, PassiveEnvChecker, Monitor})
# MuJoCo's classes follow when the first is seen.
_KNOWN_METHODS = [KnownMethods([*DYNAMICS, *_WRAPPERS])]
