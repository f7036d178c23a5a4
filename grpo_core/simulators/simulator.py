"""Capture and restore simulator states, the ground groups stand on.

A ``Simulator`` is one Gymnasium environment with all its wrappers. ``capture`` copies what a step can change in
every layer; ``restore`` puts it back, so that many branches can start from one state. Random generators are left
alone unless asked for: branches draw independent noise.
"""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from grpo_core.simulators.action_masks import get_action_masks, sample_action
from grpo_core.simulators.state import (
    Layer,
    NotBranchableError,
    list_layers,
    make_core_layer,
    make_own_layer,
    make_random_layer,
    make_wrapper_layer,
)

__all__ = ["NotBranchableError", "Simulator", "SimulatorState", "check_branchable"]

# Whatever a simulator captured; only a simulator of the same make can read it.
SimulatorState = Any

# Enough for a deep copy that misses what moves to show itself, few enough not to be noticed when training starts.
_N_PROOF_STEPS = 8
# Errors spell out observations up to this size.
_MAX_SHOWN_NUMBERS = 16


class Simulator:
    """One environment that can be put back into any state it has been in.

    Restored exactly are Gymnasium's classic control, toy text and MuJoCo environments, ALE's Atari games, and every
    environment or wrapper with its own ``capture_state()`` and ``restore_state(state)`` methods. Any other is
    deep-copied attribute by attribute, which ``prove`` has to show to be enough. Wrappers are captured with it.

    :param env: A Gymnasium environment.
    :param keep_random_state: Whether the random generators that the environment and its wrappers hold as attributes
        are captured and restored as well, so that all branches of a state see the same noise. A generator deeper
        within an object that is deep-copied is restored either way.
    :raises NotBranchableError: If the environment or a wrapper cannot be copied.
    """

    def __init__(self, env: gym.Env[Any, Any], keep_random_state: bool = False) -> None:
        self.step = env.step
        self.reset = env.reset
        layers: list[Layer] = []
        random_layer = make_random_layer(list_layers(env)) if keep_random_state else None
        while (own_layer := make_own_layer(env)) is None and isinstance(env, gym.Wrapper):
            wrapper_layer = make_wrapper_layer(env)
            if wrapper_layer is not None:
                layers.append(wrapper_layer)
            env = env.env
        core_layer = own_layer or make_core_layer(env, keep_random_state)
        # The innermost layer is restored first: what a wrapper refers to must be in place when its turn comes.
        layers = [core_layer, *reversed(layers), *([random_layer] if random_layer else [])]
        self._captures = [layer.capture for layer in layers]
        self._restores = [layer.restore for layer in layers]
        self._core = env
        self._is_proven = core_layer.is_proven
        self.is_cheap = all(layer.is_cheap for layer in layers)

    def capture(self) -> SimulatorState:
        """Copy the state of every layer."""
        return [capture() for capture in self._captures]

    def restore(self, state: SimulatorState) -> None:
        """Put every layer back into a captured state; the state stays usable."""
        for restore, layer_state in zip(self._restores, state, strict=True):
            restore(layer_state)

    def prove(self) -> None:
        """Replay a few steps of an environment of which nobody has shown that its copy is complete.

        It runs without the wrappers. The environment has to be reset afterwards; its random generators are left as
        they were.

        :raises NotBranchableError: If the replay differs.
        """
        if self._is_proven:
            return
        simulator = Simulator(self._core, keep_random_state=True)
        before = simulator.capture()
        try:
            check_branchable(self._core, _N_PROOF_STEPS)
        finally:
            simulator.restore(before)


def check_branchable(env: gym.Env[Any, Any], n_steps: int = 64, seed: int = 0) -> None:
    """Prove that an environment can be restored: replay the same actions from one state and compare exactly.

    Run it on your own environment before you train on it. From its first state and from one on the way the same
    actions are taken three times with the same noise, the last time after a reset; observations, rewards, flags and
    action masks must be identical.

    :param env: The environment; it is left in some state on the way and has to be reset before use.
    :param n_steps: Number of simulator steps to replay, at least 1. An episode's end closes the replay.
    :param seed: Seed of the reset and of the actions.
    :raises NotBranchableError: If there is no way to restore it, or a replay differs; the message says where.
    """
    simulator = Simulator(env, keep_random_state=True)
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
    for is_reset in (False, True):  # a captured state serves many branches, so once is not enough
        if is_reset:
            simulator.reset()
        simulator.restore(state)
        for t, (action, before) in enumerate(zip(actions, first, strict=True)):
            after = _take_step(env, simulator, action)
            if not _is_same(before, after):
                raise NotBranchableError(
                    f"{env} is not restored exactly: step {t} of a replay {_describe_difference(before, after)}. Its "
                    "capture_state() misses something that step() changes, or restore_state() hands out the captured "
                    "object itself instead of a copy; without these methods, it keeps state where deep copies do not "
                    'reach. group_mode="episode" needs none of this.'
                )


def _describe_difference(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    """Say what a replayed step gave instead of what it gave before."""
    names = ("observation", "reward", "terminated", "truncated", "action masks")
    pairs = zip(names, before, after, strict=True)
    name, was, came = next(pair for pair in pairs if not _is_same(*pair[1:]))
    is_short = np.size(was) <= _MAX_SHOWN_NUMBERS and not isinstance(was, dict)
    return f"gave {name} {came} instead of {was}" if is_short else f"gave another {name}"


def _take_step(env: gym.Env[Any, Any], simulator: Simulator, action: Any) -> tuple[Any, ...]:
    # Copied because an environment may hand out the same array again and again.
    return copy.deepcopy((*simulator.step(action)[:4], get_action_masks(env)))


def _is_over(step: tuple[Any, ...]) -> bool:
    return bool(step[2] or step[3])


def _is_same(before: Any, after: Any) -> bool:
    """Compare observations or steps of any structure, bit for bit but for the sign of zeros."""
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(_is_same(value, after[key]) for key, value in before.items())
    if isinstance(before, tuple | list):
        return len(before) == len(after) and all(map(_is_same, before, after))
    both = np.asarray(before), np.asarray(after)
    return np.array_equal(*both, equal_nan=both[0].dtype.kind in "fc")
