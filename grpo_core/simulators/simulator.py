"""Capture and restore simulator states, so that the branches of a group can start from one state.

A ``Simulator`` is one Gymnasium environment with all its wrappers. ``capture`` copies what a step can change in each
of them, and ``restore`` puts it back. By default random generators are left alone, so that branches draw independent
noise.
"""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from grpo_core.simulators.action_masks import get_action_masks, sample_action
from grpo_core.simulators.layers import Layers, list_nested_envs
from grpo_core.simulators.state import (
    NotBranchableError,
    StateAccess,
    access_generators,
    access_innermost_env,
    access_own_methods,
    access_wrapper,
)

__all__ = ["NotBranchableError", "Simulator", "SimulatorState", "check_branchable"]

# A captured state; only a simulator of the same environment and wrappers can restore it.
SimulatorState = Any

# Enough to reveal an incomplete deep copy, and too few to delay training noticeably.
_N_PROOF_STEPS = 8
# Errors show observations up to this size.
_MAX_SHOWN_NUMBERS = 16


class Simulator:
    """One environment, with its wrappers, that can be put back into any state it has been in.

    Gymnasium's classic control, toy text and MuJoCo environments and ALE's Atari games are restored exactly, and so is
    every environment or wrapper with its own ``capture_state()`` and ``restore_state(state)``. All others are
    deep-copied attribute by attribute, and ``prove`` checks that this is enough.

    :param env: A Gymnasium environment.
    :param common_random_numbers: Whether to capture and restore the random generators among the attributes of the
        environment and its wrappers too, so that all branches of a state see the same noise. A generator inside a
        deep-copied object is always restored.
    :raises NotBranchableError: If the environment or a wrapper cannot be copied.
    """

    def __init__(self, env: gym.Env[Any, Any], common_random_numbers: bool = False) -> None:
        self.step = env.step
        self.reset = env.reset
        self._layers = Layers(list_nested_envs(env))
        of_wrappers: list[StateAccess] = []
        of_generators = access_generators(self._layers.envs) if common_random_numbers else None
        while (by_own_methods := access_own_methods(env)) is None and isinstance(env, gym.Wrapper):
            of_wrapper = access_wrapper(env, self._layers)
            if of_wrapper is not None:
                of_wrappers.append(of_wrapper)
            env = env.env
        of_core = by_own_methods or access_innermost_env(env, common_random_numbers, self._layers)
        # The innermost part is restored first: what a wrapper refers to must be in place before the wrapper.
        parts = [of_core, *reversed(of_wrappers), *([of_generators] if of_generators else [])]
        if self._layers.are_copied:
            parts.append(StateAccess(self._layers.native.capture, self._layers.native.restore, is_cheap=False))
        self._captures = [part.capture for part in parts]
        self._restores = [part.restore for part in parts]
        self._copies_together = self._layers.are_copied
        self._core = env
        self._is_proven = of_core.is_proven
        self.is_cheap = all(part.is_cheap for part in parts)

    def capture(self) -> SimulatorState:
        """Copy the state of the environment and its wrappers."""
        if not self._copies_together:
            return [capture() for capture in self._captures]
        with self._layers.together(is_capture=True):
            return [capture() for capture in self._captures]

    def restore(self, state: SimulatorState) -> None:
        """Put the environment and its wrappers back into a captured state, which can be restored again later."""
        if not self._copies_together:
            for restore, part in zip(self._restores, state, strict=True):
                restore(part)
            return
        with self._layers.together(is_capture=False):
            for restore, part in zip(self._restores, state, strict=True):
                restore(part)

    def prove(self) -> None:
        """Replay a few steps, without the wrappers, if the copy of the environment is not known to be complete.

        The environment must be reset afterwards; its random generators are left as they were.

        :raises NotBranchableError: If the replay differs.
        """
        if self._is_proven:
            return
        simulator = Simulator(self._core, common_random_numbers=True)
        before = simulator.capture()
        try:
            check_branchable(self._core, _N_PROOF_STEPS)
        finally:
            simulator.restore(before)


def check_branchable(env: gym.Env[Any, Any], n_steps: int = 64, seed: int = 0) -> None:
    """Prove that an environment can be restored: replay the same actions from one state and compare exactly.

    Run it on your own environment before you train on it. From the first state, and from a later one, it takes the same
    actions three times with the same noise, the last time after a reset. Observations, rewards, flags and action masks
    must be identical.

    :param env: The environment; it must be reset before further use.
    :param n_steps: Number of simulator steps to replay, at least 1; the end of an episode ends the replay.
    :param seed: Seed of the reset and of the actions.
    :raises NotBranchableError: If it cannot be restored or a replay differs; the message says where.
    """
    simulator = Simulator(env, common_random_numbers=True)
    simulator.reset(seed=seed)
    action_space = copy.deepcopy(env.action_space)
    action_space.seed(seed)
    _check_replays(env, simulator, action_space, n_steps)
    simulator.reset()
    for _ in range(n_steps // 8):
        if _is_over(simulator.step(sample_action(action_space, get_action_masks(env)))):
            simulator.reset()
    _check_replays(env, simulator, action_space, n_steps)


def _check_replays(env: gym.Env[Any, Any], simulator: Simulator, action_space: spaces.Space[Any], n_steps: int) -> None:
    state = simulator.capture()
    actions: list[Any] = []
    first: list[tuple[Any, ...]] = []
    while len(first) < n_steps and not (first and _is_over(first[-1])):
        actions.append(sample_action(action_space, get_action_masks(env)))
        first.append(_take_step(env, simulator, actions[-1]))
    for is_reset in (False, True):  # a captured state serves many branches, so one restore proves too little
        if is_reset:
            simulator.reset()
        simulator.restore(state)
        for t, (action, before) in enumerate(zip(actions, first, strict=True)):
            after = _take_step(env, simulator, action)
            if not _is_same(before, after):
                raise NotBranchableError(
                    f"{env} is not restored exactly: step {t} of a replay {_describe_difference(before, after)}. "
                    "Either its capture_state() misses something that step() changes, or its restore_state() uses "
                    "the captured object itself instead of a copy, or, without these methods, it keeps state that deep "
                    'copies do not reach. Fix them, or use group_mode="episode", which restores nothing.'
                )


def _describe_difference(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    """Describe how a replayed step differs from the first time."""
    names = ("observation", "reward", "terminated", "truncated", "action masks")
    pairs = zip(names, before, after, strict=True)
    name, was, came = next(pair for pair in pairs if not _is_same(*pair[1:]))
    is_short = np.size(was) <= _MAX_SHOWN_NUMBERS and not isinstance(was, dict)
    return f"gave {name} {came} instead of {was}" if is_short else f"gave another {name}"


def _take_step(env: gym.Env[Any, Any], simulator: Simulator, action: Any) -> tuple[Any, ...]:
    # Copied, because an environment may return the same array every time.
    return copy.deepcopy((*simulator.step(action)[:4], get_action_masks(env)))


def _is_over(step: tuple[Any, ...]) -> bool:
    return bool(step[2] or step[3])


def _is_same(before: Any, after: Any) -> bool:
    """Compare observations or steps of any structure; NaN equals NaN, and everything else must be exactly equal."""
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(_is_same(value, after[key]) for key, value in before.items())
    if isinstance(before, tuple | list):
        return len(before) == len(after) and all(map(_is_same, before, after))
    both = np.asarray(before), np.asarray(after)
    return np.array_equal(*both, equal_nan=both[0].dtype.kind in "fc")
