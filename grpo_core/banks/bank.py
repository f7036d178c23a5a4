"""Drive the simulators behind a vectorised environment one by one, wherever they are.

A ``SimulatorBank`` resets and steps single environments, and restores captured states before a step on request. It does
not use ``VecEnv.step``, which would reset environments that are done. It does to observations what the vectorised
environment's wrappers do, except for normalisation, which the rollout does. ``choose_bank`` makes one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from grpo_core.banks.single_env import Observed, Order, Outcome, SingleEnv
from grpo_core.banks.vec_wrappers import Frames, ObservationTransform
from grpo_core.restoring.outside_changes import OutsideChanges
from grpo_core.restoring.proving.report import RestoringReport
from grpo_core.restoring.simulator import SimulatorState


class Findings(NamedTuple):
    """The findings of trials about the environments of a bank.

    :param is_cheap: Whether capturing and restoring is so cheap that one environment can play many branches in
        lock-step. It depends on the clock.
    :param rewound: Where the random generators are that a restore puts back, too.
    """

    is_cheap: bool
    rewound: tuple[str, ...] = ()


class SimulatorBank(ABC):
    """The single environments behind a vectorised environment.

    :param n_envs: Number of environments.
    :param transform: What the vectorised environment's wrappers do to observations.
    :param restorable: Whether states are captured and restored; otherwise the bank only resets and steps.
    :param findings: Findings about the environments.
    """

    def __init__(self, n_envs: int, transform: ObservationTransform, restorable: bool, findings: Findings) -> None:
        self.n_envs = n_envs
        self.restorable = restorable
        self.findings = findings
        #: The environments, if they are in this process and no wrapper but ``VecNormalize`` changes their observations;
        #: otherwise empty.
        self.plain_envs: Sequence[gym.Env[Any, Any]] = ()
        #: Changes made to the environments from outside, where they are restored by copies.
        self.outside_changes = OutsideChanges(())
        #: Findings about the environments that were tried out.
        self.reports: Sequence[RestoringReport] = ()
        self._transform = transform
        self._single_envs: Sequence[SingleEnv] = ()
        self._frames: list[Frames] = [()] * n_envs

    def reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        """Start new episodes.

        :param seeds: The seed for each environment to reset, by index; None continues its random sequence.
        :return: The first observation and the state, by index; the state is None unless ``restorable``.
        """
        return {i: self._transform_reset(i, observed, state) for i, (observed, state) in self._reset(seeds).items()}

    def step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        """Step environments; those in workers run in parallel.

        An environment is not reset when its episode ends. Every environment needs a reset before its first step, even
        if a state is restored first.

        :param orders: The orders, by index of the environment.
        :return: Their outcomes, by index.
        :raises RuntimeError: If an environment in a worker fails.
        """
        if self._transform.is_empty:
            return self._step(orders)
        inner_orders = {}
        for i, order in orders.items():
            if order.restore is not None:
                state, self._frames[i] = order.restore
                order = order._replace(restore=state)
            inner_orders[i] = order
        return {i: self._transform_outcome(i, outcome) for i, outcome in self._step(inner_orders).items()}

    def is_outdated(self, *, tries_capture: bool = False) -> bool:
        """Return whether environments, wrappers or methods were replaced since, so that a bank must be made anew.

        Of environments in workers only a wrapper that holds another one is noticed, when they are restored or captured.

        :param tries_capture: Whether it also must be where states can no longer be captured.
        """
        return False

    def find_masks(self) -> None:
        """Look up again where action masks come from; environments in workers are asked for them by name."""
        for single_env in self._single_envs:
            single_env.find_masks()

    def renew(self, states: Sequence[tuple[int, SimulatorState]]) -> list[SimulatorState]:
        """Set what was set on the environments from outside in states that were captured before, and here.

        :param states: Each with the index of its environment.
        :return: These states, in their order; all that is captured from now on has it, too.
        """
        if self._transform.is_empty:
            return self._renew(states)
        renewed = self._renew([(i, inner) for i, (inner, _) in states])
        return [(inner, frames) for inner, (_, (_, frames)) in zip(renewed, states, strict=True)]

    def _transform_reset(self, i: int, observed: Observed, state: SimulatorState | None) -> Any:
        if self._transform.is_empty:
            return observed, state
        observation, self._frames[i] = self._transform.apply(observed.observation, None)
        return observed._replace(observation=observation), (state, self._frames[i]) if self.restorable else None

    def _transform_outcome(self, i: int, outcome: Outcome) -> Outcome:
        observation, self._frames[i] = self._transform.apply(outcome.observed.observation, self._frames[i])
        state = None if outcome.state is None else (outcome.state, self._frames[i])
        return outcome._replace(observed=outcome.observed._replace(observation=observation), state=state)

    @abstractmethod
    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]: ...

    @abstractmethod
    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]: ...

    def _renew(self, states: Sequence[tuple[int, SimulatorState]]) -> list[SimulatorState]:
        return [state for _, state in states]  # nothing is noticed in environments that are not restored


def list_rewound(reports: Sequence[RestoringReport]) -> tuple[str, ...]:
    """List the random generators that restores put back, of all environments that were tried out."""
    return tuple(sorted({path for report in reports for path in report.rewound}))
