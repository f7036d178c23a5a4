"""Capture and restore simulator states, so that the branches of a group can start from one state.

A ``Simulator`` is one Gymnasium environment with all its wrappers. ``capture`` copies what a step can change in each
of them, and ``restore`` puts it back. By default random generators are left alone, so that branches draw independent
noise.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import gymnasium as gym

from grpo_core.environments.errors import InvalidEnvironmentError
from grpo_core.environments.nested import list_nested_envs, name_env
from grpo_core.restoring.copying.layers import Layers
from grpo_core.restoring.errors import NotBranchableError, ReplacedLayerError
from grpo_core.restoring.generators import access_generators, find_noise
from grpo_core.restoring.proving.proof import Shipment, prove
from grpo_core.restoring.proving.report import LayerAccess, RestoringReport
from grpo_core.restoring.state import (
    StateAccess,
    access_innermost_env,
    access_own_methods,
    access_wrapper,
    list_restored_layers,
)
from grpo_core.spaces import check_spaces

# A captured state; only a simulator of the same environment and wrappers can restore it.
SimulatorState = Any

# Steps per branch of a trial, and how long it may take before training, and when asked for.
_N_PROOF_STEPS = 64
_MAX_PROOF_SECONDS = 4.0
_MAX_CHECK_SECONDS = 30.0


class Simulator:
    """One environment, with its wrappers, that can be put back into any state it has been in.

    Gymnasium's classic control, toy text and MuJoCo environments are restored exactly. An environment or wrapper with
    its own ``capture_state()`` and ``restore_state(state)`` is restored by these, an Atari game by ALE, and all others
    by copies of all their attributes; ``prove`` finds out whether that is enough.

    :param env: A Gymnasium environment.
    :param common_random_numbers: Whether to capture and restore the random generators among the attributes of the
        environment and its wrappers too, so that all branches of a state see the same noise. Otherwise those inside
        of copied objects go on as well, wherever a search finds them.
    :param keeps_originals: Whether restores write into the objects that were there at the first capture, so that they
        stay the environment's own; otherwise copies take their places.
    :param uses_own_methods: Whether layers with ``capture_state()`` and ``restore_state(state)`` are restored by these;
        otherwise by copies of their attributes.
    :raises NotBranchableError: If the environment or a wrapper cannot be copied.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        common_random_numbers: bool = False,
        *,
        keeps_originals: bool = True,
        uses_own_methods: bool = True,
    ) -> None:
        self.env = env
        self.step = env.step
        self.reset = env.reset
        self._layers = Layers(list_nested_envs(env), keeps_originals)
        #: The objects that restores write into.
        self.originals = self._layers.originals
        restored = list_restored_layers(env) if uses_own_methods else list_nested_envs(env)
        self._nested: list[tuple[Any, Any]] = list(pairwise(restored))
        find_own_methods = access_own_methods if uses_own_methods else lambda _: None
        of_wrappers: list[StateAccess] = []
        accesses: list[LayerAccess] = []
        of_generators = access_generators(self._layers.envs) if common_random_numbers else None
        try:
            while (by_own_methods := find_own_methods(env)) is None and isinstance(env, gym.Wrapper):
                of_wrapper = access_wrapper(env, self._layers)
                if of_wrapper is not None:
                    of_wrappers.append(of_wrapper)
                    accesses.append(LayerAccess(type(env).__name__, of_wrapper.means))
                env = env.env
            of_core = by_own_methods or access_innermost_env(env, common_random_numbers, self._layers)
        except NotBranchableError:
            raise
        except Exception as error:  # foreign code: its attributes may be anything
            raise NotBranchableError(
                f"{name_env(env)} cannot be captured, which branching groups need ({type(error).__name__}: {error}). "
                'group_mode="episode" only resets and steps.'
            ) from error
        # The innermost part is restored first: what a wrapper refers to must be in place before the wrapper.
        parts = [of_core, *reversed(of_wrappers), *([of_generators] if of_generators else [])]
        if self._layers.are_copied:
            native = self._layers.native
            native.settle()
            parts.append(StateAccess(native.capture, native.restore, is_cheap=False, is_copied=True))
        self._captures = [part.capture for part in parts]
        self._restores = [part.restore for part in parts]
        self._copies_together = self._layers.are_copied
        # Objects inside copied ones are copied with them.
        self._noise = None if common_random_numbers else find_noise(self.env, process_wide=False, shared=False)
        # What is known is restored before what refers to it, and generators once they are in their places.
        self._order = sorted(range(len(parts)), key=lambda i: parts[i].is_copied or parts[i] is of_generators)
        self._is_proven = all(part.is_proven for part in parts)
        self.is_cheap = all(part.is_cheap for part in parts)
        #: How each layer with a state is restored, the outermost first.
        self.accesses = (*accesses, LayerAccess(type(env).__name__, of_core.means))

    def capture(self) -> SimulatorState:
        """Copy the state of the environment and its wrappers.

        :raises ReplacedLayerError: If a wrapper holds another environment by now.
        """
        self.check_layers()
        if not self._copies_together:
            return [capture() for capture in self._captures]
        with self._layers.together(is_capture=True):
            parts = [capture() for capture in self._captures]
            return [*parts, self._layers.note(), bool(self._layers.list_generators())]

    def list_originals(self) -> dict[str, Any]:
        """Return the objects that restores write into, by where they are."""
        if self._copies_together:
            self.capture()
        return self.originals.by_path

    def list_hidden_generators(self) -> list[Any]:
        """Return the random generators that are copied, but that no search finds: a restore puts them back."""
        if not self._copies_together:
            return []
        with self._layers.together(is_capture=True):
            for capture in self._captures:
                capture()
            copied = self._layers.list_generators()
        found = find_noise(self.env, process_wide=False, shared=False).find().values()
        inner = [
            getattr(generator, name, None)
            for generator in (*found, *copied)
            for name in ("bit_generator", "_bit_generator")  # the latter of a RandomState
        ]
        known = {id(generator) for generator in (*found, *inner)}
        return [generator for generator in copied if id(generator) not in known]

    def restore(self, state: SimulatorState, *, in_place: bool = True) -> None:
        """Put the environment and its wrappers back into a captured state, which can be restored again later.

        :param in_place: Whether to write into the objects that were there at first, as far as the state was captured
            here; otherwise all are replaced by copies, as those of a state from another process are.
        :raises ReplacedLayerError: If a wrapper holds another environment by now.
        """
        self.check_layers()
        if not self._copies_together:
            for restore, part in zip(self._restores, state, strict=True):
                restore(part)
            return
        noted, have_generators = state[len(self._order) :]
        going_on = self._noise.going_on() if have_generators and self._noise is not None else nullcontext()
        with going_on, self._layers.together(is_capture=False, noted=noted if in_place else None):
            for i in self._order:
                self._restores[i](state[i])

    def check_layers(self) -> None:
        """Check that every wrapper holds the environment that it held at first.

        :raises ReplacedLayerError: If one does not.
        """
        for wrapper, env in self._nested:
            if wrapper.env is not env:
                raise ReplacedLayerError(
                    f"the wrapper {type(wrapper).__name__} holds another environment than before, and states of one do "
                    "not fit the other. Replace it between two rollouts, as in a callback's on_rollout_start, or train "
                    'with group_mode="episode", which only resets and steps.'
                )

    def prove(
        self,
        n_steps: int = _N_PROOF_STEPS,
        max_seconds: float = _MAX_PROOF_SECONDS,
        shipment: Shipment | None = None,
        shared: Mapping[str, Any] = MappingProxyType({}),
    ) -> RestoringReport | None:
        """Try out whether all layers are restored, unless each is known; leave all as it was found.

        If captures and restores turn out to be dear beside a step, ``is_cheap`` is unset.

        :param n_steps: Steps per branch.
        :param max_seconds: Take fewer steps rather than much more time than this.
        :param shipment: How states travel in training, if they do.
        :param shared: Objects that other environments hold, too, by where they are.
        :return: The findings; None if no trial was needed.
        :raises NotBranchableError: If it is not restored, or fails; the message names what.
        """
        if self._is_proven:
            return None
        return self._try_out(n_steps, max_seconds, None, shipment, shared)

    def _try_out(
        self, n_steps: int, max_seconds: float, seed: int | None, shipment: Shipment | None, shared: Mapping[str, Any]
    ) -> RestoringReport:
        try:
            report = prove(self, n_steps, max_seconds, seed, shipment, shared)
        except (NotBranchableError, InvalidEnvironmentError):
            raise
        except Exception as error:  # foreign code: objects may refuse even to be looked at
            raise NotBranchableError(
                f"{name_env(self.env)} cannot be tried out, which branching groups need ({type(error).__name__}: "
                f'{error}). group_mode="episode" only resets and steps.'
            ) from error
        if report.takes_turns and not report.pays:
            self.is_cheap = False
            report = replace(report, takes_turns=False)
        return report


def check_branchable(
    env: gym.Env[Any, Any], n_steps: int = _N_PROOF_STEPS, seed: int = 0, max_seconds: float = _MAX_CHECK_SECONDS
) -> RestoringReport:
    """Prove that an environment can be restored: replay the same actions from one state and compare exactly.

    Run it on your own environment before you train on it. From the start of an episode, from its middle and from the
    start of the next, it plays several branches, each again after others, after an end and after a reset, with the
    same noise. Observations, rewards, flags and action masks must be identical. The environment and all generators are
    left as they were found; what resets and steps write to classes, modules or files stays there.

    :param env: The environment with its wrappers, just as it will be trained.
    :param n_steps: Steps per branch, at least 1; the end of an episode ends the branch.
    :param seed: Seed of the first reset and of the actions.
    :param max_seconds: Take fewer steps rather than much more time than this; the report says so.
    :return: What was proven, how each layer is restored, and what it costs; print it.
    :raises NotBranchableError: If it cannot be restored or a replay differs; the message says where.
    :raises ValueError: If it is not an environment but, for example, its id.
    """
    if not isinstance(env, gym.Env):
        check_spaces(env)  # which says how an environment is made of it
        raise ValueError(f"env is a {type(env).__name__}; pass one environment of it, such as env.envs[0].")
    return Simulator(env)._try_out(n_steps, max_seconds, seed, None, {})
